"""Naive implementations that read like the formulas; the fast ones are compared with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_env import Task
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023 (arXiv 2302.06675)."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                m, g = self.state[parameter].get("m", torch.zeros_like(parameter)), parameter.grad
                update = torch.sign(beta1 * m + (1 - beta1) * g) + group["weight_decay"] * parameter
                parameter.sub_(group["lr"] * update)
                self.state[parameter]["m"] = beta2 * m + (1 - beta2) * g


def nadamw(parameters: Any, weight_decay: float = 0.01, **options: Any) -> torch.optim.Optimizer:
    """``torch.optim.NAdam`` with its product of momenta, which torch would keep in float32, in float64."""
    stepper = torch.optim.NAdam(parameters, weight_decay=weight_decay, decoupled_weight_decay=True, **options)
    for group in stepper.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            stepper.state[parameter] = {"step": torch.tensor(0.0), "mu_product": torch.ones((), dtype=torch.float64), **moments}
    return stepper


TORCH_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1.0),
    "momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
    "adam": partial(torch.optim.Adam, lr=1.0),
    "adamw": partial(torch.optim.AdamW, lr=1.0),
    "nadamw": partial(nadamw, lr=1.0),
    "lion": partial(Lion, lr=1.0),
}


@dataclass
class Training:
    """History of one training: T rates, and T + 1 losses, gradients, weights and directions at w_0, …, w_T."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)


def train(task: Task, seed: int, rates: Sequence[float], optimizer: str = "sgd", dtype: torch.dtype = torch.float64) -> Training:
    """The loop that anybody would write with ``torch.optim``."""
    batches = task.batches(seed)
    with preserved_global_generators():
        seed_global_generators(Streams(seed).weights)
        history = Training(task.initialise().to(dtype))
        model = history.model
        stepper = TORCH_OPTIMIZERS[optimizer](model.parameters())
        for rate in [*rates, None]:
            inputs, targets = next(batches)
            stepper.zero_grad()
            outputs = model(inputs.to(dtype))
            loss = task.loss(outputs, targets).mean()
            loss.backward()
            history.losses.append(loss.item())
            history.weights.append(flat(parameter for parameter in model.parameters()))
            history.gradients.append(flat(gradient_of(parameter) for parameter in model.parameters()))
            history.models.append(copy.deepcopy(model))
            if rate is not None:
                stepper.param_groups[0]["lr"] = rate
                stepper.step()
    return history


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    """All values in one float64 vector."""
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient; zero where the loss does not depend on the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def mean_loss(task: Task, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Mean loss of a model in evaluation mode; the model is left in training mode."""
    with torch.no_grad():
        loss = task.loss(model.eval()(inputs.to(next(model.parameters()).dtype)), targets).mean().item()
    model.train()
    return loss


def directions(gradients: Sequence[np.ndarray], optimizer: str, weights: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """Update directions at unit rate, from all gradients and weights so far (zeros where none are given)."""
    result = []
    momentum = first = second = squares = smooth = lion = np.zeros_like(gradients[0])
    mu = [0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in range(1, len(gradients) + 2)]
    for t, gradient in enumerate(gradients, start=1):
        decay = 0.01 * (np.zeros_like(gradient) if weights is None else weights[t - 1])
        momentum = 0.9 * momentum + gradient
        squares, smooth = squares + gradient**2, 0.99 * smooth + 0.01 * gradient**2
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        adam = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        ahead = (1 - mu[t - 1]) * gradient / (1 - np.prod(mu[:t])) + mu[t] * first / (1 - np.prod(mu[: t + 1]))
        result.append(
            {
                "sgd": gradient,
                "momentum": momentum,
                "nesterov": gradient + 0.9 * momentum,
                "adagrad": gradient / (np.sqrt(squares) + 1e-10),
                "rmsprop": gradient / (np.sqrt(smooth) + 1e-8),
                "adam": adam,
                "adamw": adam + decay,
                "nadamw": ahead / (np.sqrt(second / (1 - 0.999**t)) + 1e-8) + decay,
                "lion": np.sign(0.9 * lion + 0.1 * gradient),
            }[optimizer]
        )
        lion = 0.99 * lion + 0.01 * gradient
    return result


def average(values: Sequence[float], time_constant: float) -> float:
    """Exponential moving average that starts at the first value."""
    result = values[0]
    for value in values[1:]:
        result += (value - result) / max(time_constant, 1.0)
    return result


def features(history: Training, rates: Sequence[float], optimizer: str, horizon: int, lower_bound: float = 0.0) -> list[dict[str, float]]:
    """All features at w_0, …, w_T from the whole history; ``rates[0]`` is the initial rate, ``rates[t + 1]`` the one applied at step t."""
    units = directions(history.gradients, optimizer, history.weights)
    excess = [loss - lower_bound for loss in history.losses]
    logs = [float(np.log10(max(value, 1e-6 * abs(excess[0])))) for value in excess]
    cosines = [0.0]
    for g, before in zip(history.gradients[1:], history.gradients, strict=False):
        cosines.append(float(g @ before / np.linalg.norm(g) / np.linalg.norm(before)))
    rows = []
    for t, (g, u, w) in enumerate(zip(history.gradients, units, history.weights, strict=True)):
        so_far, norm = logs[: t + 1], np.linalg.norm
        row = {
            "log_loss": logs[t],
            "loss_ratio": average(so_far, 5) - logs[0],
            "loss_trend": 10 * (average(so_far, 5) - average(so_far, 20)),
            "loss_trend_of_horizon": 10 * (average(so_far, 0.01 * horizon) - average(so_far, 0.05 * horizon)),
            "log_gradient_norm": np.log10(norm(g)),
            "gradient_norm_ratio": np.log10(norm(g) / norm(history.gradients[0])),
            "gradient_cosine": cosines[t],
            "gradient_cosine_average": average(cosines[: t + 1], 5),
            "log_rate": np.log10(rates[t]),
            "predicted_decrease": np.log10(rates[t] * max(g @ u, 1e-38) / 10 ** logs[t]),
            "relative_update": np.log10(rates[t] * norm(u) / norm(w)),
            "progress": t / horizon,
            "log_horizon": np.log10(horizon) / 4,
        }
        rows.append({name: float(np.clip(value, -10, 10)) for name, value in row.items()})
    return rows


def quadratic_expected_losses(
    curvatures: Sequence[float], noise_variances: Sequence[float], initial_weights: Sequence[float], rates: Sequence[float]
) -> list[float]:
    """E[½ Σ h w²] before each step and after the last: E[w²] ← (1 − η h)² E[w²] + η² c, coordinate by coordinate."""
    squares = [weight**2 for weight in initial_weights]
    losses = []
    for rate in [*rates, None]:
        losses.append(sum(0.5 * h * square for h, square in zip(curvatures, squares, strict=True)))
        if rate is not None:
            squares = [(1 - rate * h) ** 2 * square + rate**2 * c for h, c, square in zip(curvatures, noise_variances, squares, strict=True)]
    return losses
