"""Update directions of the optimizers, for a whole population at once.

Every optimizer maps gradients to a direction ``u`` at unit rate, so that a step is ``w ← w − rate · u``. Each equals the
optimizer of ``torch.optim`` of the same name; Lion, its paper's formula.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from lr_env.checks import unknown_name
from lr_env.training.torch_optimizers import DECADES_ABOVE, DECADES_BELOW, Factory, TorchOptimizer

OptimizerSpecification: TypeAlias = str | Mapping[str, Any] | Factory
"""See :func:`make_optimizer`."""


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
        self, gradients: Tensor, parameters: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The directions, and the next state.

        Args:
            gradients: ``(N, P)``.
            parameters: The weights at which the gradients were taken, ``(N, P)``.
            state: As :meth:`initial_state` or the last call returned it.
            steps: The number of this step, counted from 1, ``(N, 1)``, or one for all.
            momentum: Replaces the momentum or β₁ of this step, ``(N, 1)`` or ``(N, P)``; None for the optimizer's own.

        Returns:
            ``u (N, P)``, and the next state.

        Raises:
            ValueError: If a momentum is given and the optimizer has none.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StackedOptimizer(ABC):
    """What all optimizers share: clipping, then weight decay, then a rule of their own.

    Attributes:
        weight_decay: λ ≥ 0. ``λ w`` is added to the gradient; to the direction where the decay is decoupled, as AdamW's, NAdamW's and Lion's.
        clip_norm: A longer gradient, over all of a member's parameters, is shortened to this norm, as
            ``torch.nn.utils.clip_grad_norm_`` does; None for no clipping.
    """

    weight_decay: float = 0.0
    clip_norm: float | None = None

    is_decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in _OPTIONAL:
                continue
            is_allowed, range_ = _RANGES[field.name]
            if not is_allowed(value):
                raise ValueError(f"{field.name} must be {range_}, but {value!r} was given.")

    @property
    def has_momentum(self) -> bool:
        """Whether there is a momentum or β₁, be it 0."""
        return self._constant_momentum is not None

    @abstractmethod
    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """State tensors, all zero, shaped like ``parameters (N, P)``."""

    def directions(
        self, gradients: Tensor, parameters: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`Optimizer`."""
        if momentum is not None and not self.has_momentum:
            raise ValueError(
                f"{self} has no momentum that could be set; use an optimizer that has one, such as 'momentum', 'adam' or "
                "{'name': 'rmsprop', 'momentum': 0.9}."
            )
        if self.clip_norm is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients = gradients * (self.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        if self.weight_decay and not self.is_decoupled:
            gradients = gradients.add(parameters, alpha=self.weight_decay)
        # In float64, as 1 − β₁ᵗ would lose its digits otherwise.
        direction, state = self._rule(gradients, state, steps, (self._constant_momentum or 0.0) if momentum is None else momentum.double())
        if self.weight_decay and self.is_decoupled:
            direction = direction.add(parameters, alpha=self.weight_decay)
        return direction, state

    @property
    @abstractmethod
    def _constant_momentum(self) -> float | None: ...

    @abstractmethod
    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Directions and the next state; the momentum is a number (0 where there is none), or float64 ``(N, 1)`` or ``(N, P)``."""


@dataclass(frozen=True, kw_only=True)
class SGD(StackedOptimizer):
    """``torch.optim.SGD``: ``m ← μ m + g``; ``u = m``, or ``g + μ m`` with Nesterov's momentum; ``u = g`` where the momentum is None."""

    momentum: float | None = None
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("Nesterov's momentum needs a momentum > 0.")

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"momentum": (N, P)}``, or nothing without momentum."""
        return {} if self.momentum is None else {"momentum": torch.zeros_like(parameters)}

    @property
    def _constant_momentum(self) -> float | None:
        return self.momentum

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.has_momentum:
            return gradients, {}
        velocity = _accumulated(gradients, state["momentum"], momentum)
        if not self.nesterov:
            return velocity, {"momentum": velocity}
        if isinstance(momentum, Tensor):
            return gradients.addcmul(velocity, momentum.to(velocity.dtype)), {"momentum": velocity}
        return gradients.add(velocity, alpha=momentum), {"momentum": velocity}


@dataclass(frozen=True, kw_only=True)
class AdaGrad(StackedOptimizer):
    """``torch.optim.Adagrad``: ``u = g / (√s + ε)``, where ``s`` is the sum of all ``g²`` and ``initial_accumulator``."""

    epsilon: float = 1e-10
    initial_accumulator: float = 0.0

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"sum_of_squares": (N, P)}``, without ``initial_accumulator``."""
        return {"sum_of_squares": torch.zeros_like(parameters)}

    @property
    def _constant_momentum(self) -> float | None:
        return None

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        squares = state["sum_of_squares"].addcmul(gradients, gradients)
        accumulator = squares + self.initial_accumulator if self.initial_accumulator else squares
        return gradients / (accumulator.sqrt() + self.epsilon), {"sum_of_squares": squares}


@dataclass(frozen=True, kw_only=True)
class RMSprop(StackedOptimizer):
    """``torch.optim.RMSprop``: ``u = g / (√v + ε)``, where ``v`` averages ``g²``, less the square of the averaged ``g`` if ``centered``.

    With a momentum, ``m ← μ m + g / (√v + ε)``; ``u = m``. ``smoothing`` is torch's ``alpha``.
    """

    smoothing: float = 0.99
    epsilon: float = 1e-8
    momentum: float | None = None
    centered: bool = False

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"second_moment": (N, P)}``; beside it ``"first_moment"`` if centered and ``"momentum"`` with momentum."""
        names = ["second_moment", *["first_moment"] * self.centered, *["momentum"] * self.has_momentum]
        return {name: torch.zeros_like(parameters) for name in names}

    @property
    def _constant_momentum(self) -> float | None:
        return self.momentum

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        variance = second = _averaged_squares(state["second_moment"], gradients, self.smoothing)
        following = {"second_moment": second}
        if self.centered:
            first = following["first_moment"] = _averaged(state["first_moment"], gradients, self.smoothing)
            variance = second.addcmul(first, first, value=-1).clamp(min=0)  # rounded below 0, a constant gradient's would give NaN
        direction = gradients / (variance.sqrt() + self.epsilon)
        if self.has_momentum:
            direction = following["momentum"] = _accumulated(direction, state["momentum"], momentum)
        return direction, following


@dataclass(frozen=True, kw_only=True)
class Adam(StackedOptimizer):
    """``torch.optim.Adam``: ``u = m̂ / (√v̂ + ε)`` with bias-corrected moments."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"first_moment": (N, P), "second_moment": (N, P)}``."""
        return {"first_moment": torch.zeros_like(parameters), "second_moment": torch.zeros_like(parameters)}

    @property
    def _constant_momentum(self) -> float:
        return self.beta1

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count = _count(steps)
        denominator, following = self._moments(gradients, state, count, momentum)
        correction = _typed(1 - momentum**count, gradients)  # (N, 1), or as the momentum
        return (following["first_moment"] / denominator).div_(correction), following

    def stepped(self, parameters: Tensor, rates: Tensor, state: dict[str, Tensor], steps: Tensor, momentum: Tensor | None = None) -> Tensor:
        """The weights after a step of Adam or AdamW, in float32 rounded as by ``torch.optim`` on a CPU, with more operations than ``w − rate · u``.

        ``(1 − rate λ) w − (rate / (1 − β₁ᵗ)) m / (√v̂ + ε)``, where λ is decoupled.

        Args:
            parameters: The weights at which the directions were taken, ``(N, P)``.
            rates: float64, ``(N, 1)`` or ``(N, P)``.
            state: That :meth:`directions` returned.
            steps: Given to :meth:`directions`; 0 of members that have not begun, whose rate must be 0. ``(N, 1)``.
            momentum: Given to :meth:`directions`.

        Returns:
            ``(N, P)``.
        """
        count = steps.clamp(min=1).double()
        step_sizes = rates / (1 - (self.beta1 if momentum is None else momentum.double()) ** count)
        if self.weight_decay and self.is_decoupled:
            parameters = parameters * (1 - rates * self.weight_decay).to(parameters.dtype)
        scaled = state["first_moment"] * -step_sizes.to(parameters.dtype)
        return parameters.addcdiv(scaled, self._denominator(state["second_moment"], count))

    def _moments(
        self, gradients: Tensor, state: dict[str, Tensor], count: Tensor | float, momentum: float | Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``√v̂ + ε``, and the next moments, at step ``count (N, 1)``, float64."""
        first = _averaged(state["first_moment"], gradients, momentum)
        second = _averaged_squares(state["second_moment"], gradients, self.beta2)
        return self._denominator(second, count), {"first_moment": first, "second_moment": second}

    def _denominator(self, second: Tensor, count: Tensor | float) -> Tensor:
        """``√v̂ + ε``."""
        correction = 1 - self.beta2**count
        root = correction.sqrt() if isinstance(correction, Tensor) else math.sqrt(correction)
        return second.sqrt().div_(_typed(root, second)).add_(self.epsilon)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """``torch.optim.AdamW``: Adam with decoupled weight decay, 0.01 where none is given."""

    weight_decay: float = 0.01

    is_decoupled = True


@dataclass(frozen=True, kw_only=True)
class NAdamW(AdamW):
    """``torch.optim.NAdam`` with decoupled weight decay, 0.01 where none is given.

    ``u = ((1 − μ_t) g / (1 − μ_1 ⋯ μ_t) + μ_{t+1} m / (1 − μ_1 ⋯ μ_{t+1})) / (√v̂ + ε)``, where
    ``μ_t = β₁ (1 − 0.96^(t · momentum_decay) / 2)``.
    """

    momentum_decay: float = 4e-3

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """As Adam's, and ``"bias_correction" (N, P)``: ``1 − μ_1 ⋯ μ_t``, which β₁ may make different for each parameter."""
        return {**super().initial_state(parameters), "bias_correction": torch.zeros_like(parameters)}

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count = _count(steps)
        denominator, following = self._moments(gradients, state, count, momentum)
        mu, mu_next = (momentum * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)) for t in (count, count + 1))
        ones = torch.ones_like(gradients)
        correction = following["bias_correction"] = _averaged(state["bias_correction"], ones, mu)  # 1 − μ (1 − c) = μ c + (1 − μ)
        correction_next = _averaged(correction, ones, mu_next)
        part_of_gradient = _typed(1 - mu, gradients) * gradients / correction
        part_of_momentum = _typed(mu_next, gradients) * following["first_moment"] / correction_next
        return (part_of_gradient + part_of_momentum) / denominator, following


@dataclass(frozen=True, kw_only=True)
class Lion(StackedOptimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675): ``u = sign(β₁ m + (1 − β₁) g)``, then ``m ← β₂ m + (1 − β₂) g``; decoupled weight decay."""

    beta1: float = 0.9
    beta2: float = 0.99

    is_decoupled = True

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """``{"first_moment": (N, P)}``."""
        return {"first_moment": torch.zeros_like(parameters)}

    @property
    def _constant_momentum(self) -> float:
        return self.beta1

    def _rule(self, gradients: Tensor, state: dict[str, Tensor], steps: Tensor | int, momentum: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        average = state["first_moment"]
        return _averaged(average, gradients, momentum).sign(), {"first_moment": _averaged(average, gradients, self.beta2)}


def _accumulated(values: Tensor, average: Tensor, momentum: float | Tensor) -> Tensor:
    """``x + μ m``, rounded as ``torch.optim`` does: twice."""
    accumulated: Tensor = (average * _typed(momentum, values)).add_(values)
    return accumulated


def _averaged(average: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """``β m + (1 − β) x``."""
    return average.lerp(values, _typed(1 - beta, values))


def _averaged_squares(average: Tensor, values: Tensor, beta: float) -> Tensor:
    """``β v + (1 − β) x²``, rounded as ``torch.optim`` does."""
    return (average * beta).addcmul_(values, values, value=1 - beta)


def _count(steps: Tensor | int) -> Tensor | float:
    """In float64: a float32 power would lose the digits of 1 − β₂ᵗ."""
    return steps.double() if isinstance(steps, Tensor) else float(steps)


def _typed(value: Tensor | float, like: Tensor) -> Any:
    """Of the type of another; a number is by what it multiplies."""
    return value.to(like.dtype) if isinstance(value, Tensor) else value


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


_FRACTION = (lambda value: _is_finite(value) and 0 <= value < 1, "in [0, 1)")
_POSITIVE = (lambda value: _is_finite(value) and value > 0, "finite and > 0")
_NOT_NEGATIVE = (lambda value: _is_finite(value) and value >= 0, "finite and >= 0")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("momentum", "beta1", "beta2", "smoothing"), _FRACTION),
    **dict.fromkeys(("epsilon", "clip_norm"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "initial_accumulator", "momentum_decay"), _NOT_NEGATIVE),
    **dict.fromkeys(("nesterov", "centered"), _FLAG),
}
_OPTIONAL = ("momentum", "clip_norm")


@dataclass(frozen=True)
class RateDefaults:
    """Range and start of the learning rate where the user gives none."""

    lowest: float
    highest: float
    initial: float


_DEFINITIONS: Mapping[str, tuple[type[StackedOptimizer], Mapping[str, Any], RateDefaults]] = {
    "sgd": (SGD, {}, RateDefaults(1e-4, 1e2, 1e-1)),
    "momentum": (SGD, {"momentum": 0.9}, RateDefaults(1e-5, 1e1, 1e-2)),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, RateDefaults(1e-5, 1e1, 1e-2)),
    "adagrad": (AdaGrad, {}, RateDefaults(1e-5, 1e1, 1e-2)),
    "rmsprop": (RMSprop, {}, RateDefaults(1e-6, 1e0, 1e-3)),
    "adam": (Adam, {}, RateDefaults(1e-6, 1e0, 1e-3)),
    "adamw": (AdamW, {}, RateDefaults(1e-6, 1e0, 1e-3)),
    "nadamw": (NAdamW, {}, RateDefaults(1e-6, 1e0, 1e-3)),
    "lion": (Lion, {}, RateDefaults(1e-7, 1e-1, 1e-4)),
}
OPTIMIZERS = tuple(_DEFINITIONS)


def make_optimizer(specification: OptimizerSpecification) -> tuple[Optimizer | TorchOptimizer, RateDefaults]:
    """The optimizer and the defaults of its rate.

    Args:
        specification: One of :data:`OPTIMIZERS`; ``{"name": "adam", "beta1": 0.95}`` with hyperparameters; or a function that makes an
            optimizer of ``torch.optim``'s kind, such as ``lambda parameters: torch.optim.RAdam(parameters)``.

    Raises:
        ValueError: If a name or a hyperparameter is unknown or out of range, or the function makes no usable optimizer.
    """
    if not isinstance(specification, (str, Mapping)):
        made = TorchOptimizer(specification)
        rate = made.default_rate
        return made, RateDefaults(rate / 10**DECADES_BELOW, rate * 10**DECADES_ABOVE, rate)
    options = {"name": specification} if isinstance(specification, str) else dict(specification)
    if "name" not in options:
        raise ValueError(f"An optimizer's mapping must have a name, such as {{'name': 'adam', 'beta1': 0.95}}, but {options!r} was given.")
    name = str(options.pop("name"))
    if name not in _DEFINITIONS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    kind, defaults, rates = _DEFINITIONS[name]
    valid = [field.name for field in fields(kind)]
    for option in options:
        if option not in valid:
            raise unknown_name(f"hyperparameter of optimizer {name!r}", option, valid)
    return kind(**{**defaults, **options}), rates
