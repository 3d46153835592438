"""Optimizers that find their rate themselves, as factories for ``optimizer=``; they train in a loop over members.

Each takes the options of its class. With the rate that its authors recommend, which is its default, there is nothing to tune.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lr_env.controllers import BoundController
from lr_env.training import TorchOptimizer
from torch.nn.utils import parameters_to_vector

from agents.schedules import constant

AVERAGING_POWER = 8
"""γ of Ivgi et al. 2023."""


class DoG(torch.optim.Optimizer):
    """Distance over gradients (Ivgi et al. 2023, arXiv 2302.12022): ``rate_t = lr · r_t / √(‖g_0‖² + … + ‖g_t‖² + ε)``.

    ``r_t`` is the largest distance of the weights from the initial ones so far, at first ``first_distance · (1 + ‖w_0‖)``; norms are over all groups.

    Args:
        parameters: Parameters or their groups.
        lr: Factor, > 0; 1 in the paper.
        first_distance: r_ε of the paper, relative, > 0.
        epsilon: ε, ≥ 0.
    """

    def __init__(self, parameters: Iterable[Any], lr: float = 1.0, first_distance: float = 1e-6, epsilon: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "first_distance": first_distance, "distance": 0.0, "sum_of_squares": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss is returned
        """One step on the gradients at hand; they must be there, so that there is no ``closure``."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            self.state[weight].setdefault("initial", weight.clone())
        now, initial = parameters_to_vector(weights), parameters_to_vector([self.state[weight]["initial"] for weight in weights])
        squares = float(parameters_to_vector([gradient for weight in weights if (gradient := weight.grad) is not None]).square().sum())
        first, distance = 1 + float(torch.linalg.vector_norm(initial)), float(torch.linalg.vector_norm(now - initial))
        for group in self.param_groups:
            group["distance"] = max(group["distance"], group["first_distance"] * first, distance)
            group["sum_of_squares"] += squares
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.add_(weight.grad, alpha=-group["lr"] * group["distance"] / math.sqrt(group["sum_of_squares"]))


class AveragedDoG(DoG):
    """DoG that is evaluated, after :meth:`eval`, at the polynomial-decay average of its weights (Ivgi et al. 2023, γ = 8)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """As :class:`DoG`; then ``w̄_t = w̄_{t−1} + (1 + γ)/(t + γ) · (w_t − w̄_{t−1})``, t counted from 1."""
        super().step(closure)
        for weight, state in self.state.items():
            state["count"] = state.get("count", 0) + 1
            state.setdefault("average", torch.zeros_like(weight)).lerp_(weight, (1 + AVERAGING_POWER) / (state["count"] + AVERAGING_POWER))

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the averages in the weights' place."""
        for weight, state in self.state.items():
            state["own"] = weight.clone()
            weight.copy_(state["average"])

    @torch.no_grad()
    def train(self) -> None:
        """Puts the weights back."""
        for weight, state in self.state.items():
            if "own" in state:
                weight.copy_(state.pop("own"))


def schedule_free_sgd(parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """``schedulefree.SGDScheduleFree`` (Defazio et al. 2024, arXiv 2405.15682): its gradients are at y, it is evaluated at the average x."""
    return _made("schedulefree", "SGDScheduleFree", parameters, options)


def schedule_free_adamw(parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """``schedulefree.AdamWScheduleFree``; see :func:`schedule_free_sgd`."""
    return _made("schedulefree", "AdamWScheduleFree", parameters, options)


def prodigy(parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """``prodigyopt.Prodigy`` (Mishchenko & Defazio 2023, arXiv 2306.06101)."""
    return _made("prodigyopt", "Prodigy", parameters, options)


def d_adapt_sgd(parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """``dadaptation.DAdaptSGD`` (Defazio & Mishchenko 2023, arXiv 2301.07733); a first gradient that is all 0 is its ZeroDivisionError."""
    return _made("dadaptation", "DAdaptSGD", parameters, options)


def d_adapt_adam(parameters: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
    """``dadaptation.DAdaptAdam``; see :func:`d_adapt_sgd`."""
    return _made("dadaptation", "DAdaptAdam", parameters, options)


RATE_FREE: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "schedule-free SGD": schedule_free_sgd,
    "schedule-free AdamW": schedule_free_adamw,
    "Prodigy": prodigy,
    "D-Adapt SGD": d_adapt_sgd,
    "D-Adapt Adam": d_adapt_adam,
    "DoG": DoG,
    "DoG, averaged": AveragedDoG,
}
"""Factories by name."""


def untouched(factory: Callable[..., torch.optim.Optimizer]) -> BoundController:
    """The optimizer at the rate that it has by default, throughout."""
    return constant(TorchOptimizer(factory).default_rate).bind(factory)


def _made(package: str, name: str, parameters: Iterable[Any], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{name} needs the package {package}: pip install 'lr-env[baselines]'.") from error
    optimizer: torch.optim.Optimizer = getattr(module, name)(parameters, **options)
    return optimizer
