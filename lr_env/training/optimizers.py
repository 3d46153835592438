"""Update directions of the optimizers, for a whole population at once.

Every optimizer maps gradients to a direction ``u`` at unit rate, so that a step is ``w ← w − rate · u``. Each equals the
optimizer of ``torch.optim`` of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from lr_env.checks import unknown_name


class Optimizer(Protocol):
    """Update directions; the rate is applied by the population."""

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """State tensors, all zero, shaped like ``parameters (N, P)``."""
        ...

    def directions(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The directions ``u (N, P)`` of ``gradients (N, P)``, and the next state; ``steps (N, 1)`` counts from 1."""
        ...


@dataclass(frozen=True)
class SGD:
    """``torch.optim.SGD``: ``m ← μ m + g``; ``u = m``, or ``g + μ m`` with Nesterov's momentum."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), but {self.momentum} was given.")
        if self.nesterov and self.momentum == 0:
            raise ValueError("Nesterov's momentum needs a momentum > 0.")

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"momentum": (N, P)}``, or nothing without momentum."""
        return {"momentum": torch.zeros_like(parameters)} if self.momentum else {}

    def directions(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Optimizer`."""
        if not self.momentum:
            return gradients, {}
        momentum = gradients.add(state["momentum"], alpha=self.momentum)
        return gradients.add(momentum, alpha=self.momentum) if self.nesterov else momentum, {"momentum": momentum}


@dataclass(frozen=True)
class Adam:
    """``torch.optim.Adam``: ``u = m̂ / (√v̂ + ε)`` with bias-corrected moments."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ValueError(f"beta1 and beta2 must be in [0, 1) and epsilon > 0, but {self} was given.")

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"first_moment": (N, P), "second_moment": (N, P)}``."""
        return {"first_moment": torch.zeros_like(parameters), "second_moment": torch.zeros_like(parameters)}

    def directions(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Optimizer`."""
        first = state["first_moment"].lerp(gradients, 1 - self.beta1)
        second = (state["second_moment"] * self.beta2).addcmul(gradients, gradients, value=1 - self.beta2)
        count = steps.double()  # a float32 power would lose the digits of 1 − β₂ᵗ
        correction1 = (1 - self.beta1**count).to(gradients.dtype)  # (N, 1)
        correction2 = (1 - self.beta2**count).sqrt().to(gradients.dtype)
        denominator = second.sqrt() / correction2 + self.epsilon
        return first / denominator / correction1, {"first_moment": first, "second_moment": second}


@dataclass(frozen=True)
class RateDefaults:
    """Range and start of the learning rate where the user gives none."""

    lowest: float
    highest: float
    initial: float


_DEFINITIONS: Mapping[str, tuple[type[SGD] | type[Adam], Mapping[str, Any], RateDefaults]] = {
    "sgd": (SGD, {}, RateDefaults(1e-4, 1e2, 1e-1)),
    "momentum": (SGD, {"momentum": 0.9}, RateDefaults(1e-5, 1e1, 1e-2)),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, RateDefaults(1e-5, 1e1, 1e-2)),
    "adam": (Adam, {}, RateDefaults(1e-6, 1e0, 1e-3)),
}
OPTIMIZERS = tuple(_DEFINITIONS)


def make_optimizer(specification: str | Mapping[str, Any]) -> tuple[Optimizer, RateDefaults]:
    """The optimizer and the defaults of its rate.

    Args:
        specification: One of :data:`OPTIMIZERS`, or ``{"name": "adam", "beta1": 0.95}`` with hyperparameters.

    Raises:
        ValueError: If a name or a hyperparameter is unknown or out of range.
    """
    options = {"name": specification} if isinstance(specification, str) else dict(specification)
    name = str(options.pop("name", None))
    if name not in _DEFINITIONS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    kind, defaults, rates = _DEFINITIONS[name]
    valid = [field.name for field in fields(kind)]
    for option in options:
        if option not in valid:
            raise unknown_name(f"hyperparameter of optimizer {name!r}", option, valid)
    return kind(**{**defaults, **options}), rates
