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

    @property
    def has_momentum(self) -> bool:
        """Whether :meth:`directions` takes a ``momentum``."""
        ...

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """State tensors, all zero, shaped like ``parameters (N, P)``."""
        ...

    def directions(
        self, gradients: Tensor, parameters: Tensor, state: dict[str, Tensor], steps: Tensor, momentum: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The directions, and the next state.

        Args:
            gradients: ``(N, P)``.
            parameters: The weights at which the gradients were taken, ``(N, P)``.
            state: As :meth:`initial_state` or the last call returned it.
            steps: The number of this step, counted from 1, ``(N, 1)``.
            momentum: Replaces the momentum or β₁ of this step, ``(N, 1)`` or ``(N, P)``; None for the optimizer's own.

        Returns:
            ``u (N, P)``, and the next state.

        Raises:
            ValueError: If a momentum is given and the optimizer has none.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """``torch.optim.SGD``: ``m ← μ m + g``; ``u = m``, or ``g + μ m`` with Nesterov's momentum; ``u = g`` where the momentum is None."""

    momentum: float | None = None
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), but {self.momentum} was given.")
        if self.nesterov and not self.momentum:
            raise ValueError("Nesterov's momentum needs a momentum > 0.")

    @property
    def has_momentum(self) -> bool:
        """Whether a momentum was given, be it 0."""
        return self.momentum is not None

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"momentum": (N, P)}``, or nothing without momentum."""
        return {} if self.momentum is None else {"momentum": torch.zeros_like(parameters)}

    def directions(
        self, gradients: Tensor, parameters: Tensor, state: dict[str, Tensor], steps: Tensor, momentum: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Optimizer`."""
        if self.momentum is None:
            if momentum is not None:
                raise ValueError("This optimizer has no momentum that could be controlled; give it one, as 'momentum' has.")
            return gradients, {}
        average = _accumulated(gradients, state["momentum"], self.momentum, momentum)
        return _accumulated(gradients, average, self.momentum, momentum) if self.nesterov else average, {"momentum": average}


@dataclass(frozen=True)
class Adam:
    """``torch.optim.Adam``: ``u = m̂ / (√v̂ + ε)`` with bias-corrected moments."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    has_momentum = True

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon > 0):
            raise ValueError(f"beta1 and beta2 must be in [0, 1) and epsilon > 0, but {self} was given.")

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"first_moment": (N, P), "second_moment": (N, P)}``."""
        return {"first_moment": torch.zeros_like(parameters), "second_moment": torch.zeros_like(parameters)}

    def directions(
        self, gradients: Tensor, parameters: Tensor, state: dict[str, Tensor], steps: Tensor, momentum: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Optimizer`."""
        beta1 = self.beta1 if momentum is None else momentum.double()
        first = _averaged(state["first_moment"], gradients, beta1)
        second = (state["second_moment"] * self.beta2).addcmul(gradients, gradients, value=1 - self.beta2)
        count = steps.double()  # a float32 power would lose the digits of 1 − β₂ᵗ
        correction1 = (1 - beta1**count).to(gradients.dtype)  # (N, 1)
        correction2 = (1 - self.beta2**count).sqrt().to(gradients.dtype)
        denominator = second.sqrt() / correction2 + self.epsilon
        return first / denominator / correction1, {"first_moment": first, "second_moment": second}


def _accumulated(gradients: Tensor, average: Tensor, constant: float, momentum: Tensor | None) -> Tensor:
    """``g + μ m``, with the constant μ or that of this step."""
    if momentum is None:
        return gradients.add(average, alpha=constant)
    return gradients.addcmul(average, momentum.to(gradients.dtype))


def _averaged(average: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """``β m + (1 − β) x``, with β a number or float64 ``(N, 1)`` or ``(N, P)``."""
    return average.lerp(values, (1 - beta).to(values.dtype) if isinstance(beta, Tensor) else 1 - beta)


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
