"""How an action becomes a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from lr_env.checks import number, options_of, positive_integer, unknown_name
from lr_env.mdp.arrays import Array, Record, namespace
from lr_env.mdp.statistics import Statistics
from lr_env.mdp.trackers import TINY


@dataclass(frozen=True)
class RateRange:
    """Range and start of the rate. Bounds hold for every action but ``rate``."""

    lowest: float
    highest: float
    initial: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.highest) and 0 < self.lowest < self.highest):
            raise ValueError(
                f"lr_min and lr_max must satisfy 0 < lr_min < lr_max < inf, but lr_min={self.lowest} and lr_max={self.highest} were given."
            )
        if not self.lowest <= self.initial <= self.highest:
            raise ValueError(f"initial_rate must be within [lr_min, lr_max] = [{self.lowest}, {self.highest}], but {self.initial} was given.")


class Action(Protocol):
    """A mapping from actions to rates."""

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the mapping uses, beside the loss."""
        ...

    def space(self, num_groups: int) -> gym.Space[Any]:
        """The action space of one training with ``num_groups`` parameter groups."""
        ...

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """log10 of the rates ``(1, C)`` before clipping to the range; ``action`` is ``(1, C)``, within its space."""
        ...


def _box(num_groups: int) -> gym.Space[Any]:
    return gym.spaces.Box(-1.0, 1.0, (num_groups,), np.float32)


class _Continuous:
    """Actions in [−1, 1], one per parameter group."""

    needs = frozenset[str]()

    def space(self, num_groups: int) -> gym.Space[Any]:
        """Box [−1, 1] of shape ``(G,)``."""
        return _box(num_groups)


@dataclass(frozen=True)
class RelativeAction(_Continuous):
    """Each decision moves the rate: ``log η ← log η + max_change · a``.

    Attributes:
        max_change: Largest change of one decision, decades, > 0.
    """

    max_change: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("max_change", self.max_change)

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """See :class:`Action`."""
        return record["log_rate"] + self.max_change * action


@dataclass(frozen=True)
class AbsoluteAction(_Continuous):
    """The action is the rate, log-uniform over ``[lr_min, lr_max]``."""

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """See :class:`Action`."""
        low, high = math.log10(rates.lowest), math.log10(rates.highest)
        return low + (action + 1) / 2 * (high - low)


BASE_SCHEDULES: Mapping[str, Callable[[Array], Array]] = {
    "constant": lambda progress: 1 + 0 * progress,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + namespace(progress).cos(math.pi * progress)) / 2,
    "step": lambda progress: 10.0 ** -(0.0 * progress + (progress >= 0.5) + (progress >= 0.75)),
    "warmup_stable_decay": lambda progress: _lowest(0.1 + 18.0 * progress, 1 + 0 * progress, 5.0 * (1 - progress)),
}
"""Shapes of a base schedule: factor on a rate against progress in [0, 1). The last is up from a tenth over 5 %
and down to 0 over 20 % (Hägele et al. 2024, arXiv 2405.18392)."""


def _lowest(first: Array, *others: Array) -> Array:
    for other in others:
        first = namespace(first).minimum(first, other)
    return first


LOG_LEAST_COSINE = -1.0
"""log10 of the cosine between gradient and direction below which the Polyak step size takes it for this."""


@dataclass(frozen=True)
class ResidualAction:
    """A correction of a base rate, anew at every decision: ``η = base · 10^(decades · a)`` (as SOLAR, 2026, on a schedule).

    Attributes:
        base: ``"sps"`` for the stochastic Polyak step size ``constant · (ℓ − b) / max(⟨g, u⟩, 0.1 ‖g‖ ‖u‖)`` (Loizou et al. 2021; for SGD
            the denominator is ‖g‖²), which makes the action invariant to the scale of the loss and to the initial rate; or one of
            :data:`BASE_SCHEDULES` times ``rate``, off by what a training's start is off. The floor of the slope is ours: momentum's direction
            may be nearly orthogonal to the gradient, or ascend.
        decades: Largest correction, > 0.
        constant: Factor of the Polyak step size, > 0.
        rate: Of a schedule, > 0, whatever the initial rate is; None for the initial rate.
    """

    base: str = "sps"
    decades: float = 1.5
    constant: float = 0.2
    rate: float | None = None

    _slope_signals: ClassVar = ("gradient_dot_direction", "gradient_norm_squared", "direction_norm_squared")

    def __post_init__(self) -> None:
        if self.base != "sps" and self.base not in BASE_SCHEDULES:
            raise unknown_name("base of a residual action", self.base, ["sps", *BASE_SCHEDULES])
        _require_positive("decades", self.decades)
        _require_positive("constant", self.constant)
        if self.rate is not None:
            _require_positive("rate", self.rate)
            if self.base == "sps":
                raise ValueError(f'rate belongs to a base schedule, but base="sps" and rate={self.rate} were given. Use constant in its place.')

    @property
    def needs(self) -> frozenset[str]:
        """Signals of the base rate."""
        return frozenset(self._slope_signals) if self.base == "sps" else frozenset()

    def space(self, num_groups: int) -> gym.Space[Any]:
        """Box [−1, 1] of shape ``(G,)``."""
        return _box(num_groups)

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """See :class:`Action`; action 0 chooses the base rates, which are in force before the first decision."""
        return self.log_base_rates(statistics, record, rates) + self.decades * action

    def log_base_rates(self, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """log10 of the base rates ``(1, C)``."""
        if self.base == "sps":
            slope, gradient, direction = (statistics.log(record, signal) for signal in self._slope_signals)
            floored = namespace(slope).maximum(slope, gradient + direction + LOG_LEAST_COSINE)
            polyak = math.log10(self.constant) + statistics.log(record, "loss") - floored
            # Without a gradient there is no Polyak step size: the rate in force stays.
            return namespace(slope).where(floored <= math.log10(TINY), record["log_rate"], polyak)
        factor = BASE_SCHEDULES[self.base](abs(record["age"]) / statistics.horizon) + 1e-12  # a schedule may end at 0
        base = math.log10(rates.initial if self.rate is None else self.rate) + namespace(factor).log10(factor)
        return base + record["rate_offset"] if "rate_offset" in record else base


@dataclass(frozen=True)
class DiscreteAction:
    """``Discrete(2k + 1)``: choice j multiplies the rate by ``10^(max_change · (j − k) / k)``. One parameter group only.

    Attributes:
        steps: k, at least 1.
        max_change: Largest change of one decision, decades, > 0.
    """

    needs = frozenset[str]()
    steps: int = 2
    max_change: float = 0.5

    def __post_init__(self) -> None:
        positive_integer("steps", self.steps)
        _require_positive("max_change", self.max_change)

    def space(self, num_groups: int) -> gym.Space[Any]:
        """``Discrete(2k + 1)``."""
        if num_groups != 1:
            raise ValueError("A discrete action needs exactly one parameter group; use a continuous action for more.")
        return gym.spaces.Discrete(2 * self.steps + 1)

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """See :class:`Action`."""
        return record["log_rate"] + self.max_change * (action - self.steps) / self.steps


@dataclass(frozen=True)
class RateAction:
    """The action is the raw rate, ≥ 0, not clipped to the range; for schedules and rules."""

    needs = frozenset[str]()

    def space(self, num_groups: int) -> gym.Space[Any]:
        """Box [0, ∞) of shape ``(G,)``, float64 so that a schedule's rates are taken exactly."""
        return gym.spaces.Box(0.0, np.inf, (num_groups,), np.float64)

    def log_rates(self, action: Array, statistics: Statistics, record: Record, rates: RateRange) -> Array:
        """See :class:`Action`; −∞ for a rate of 0."""
        return namespace(action).log10(action)


ACTIONS: Mapping[str, Callable[..., Action]] = {
    "relative": RelativeAction,
    "absolute": AbsoluteAction,
    "residual": ResidualAction,
    "discrete": DiscreteAction,
    "rate": RateAction,
}
"""Action kinds by name."""


def make_action(specification: str | Mapping[str, Any]) -> Action:
    """The action of a kind's name, or of ``{"kind": "residual", "base": "cosine"}`` with options.

    Raises:
        TypeError: If it is neither, or an option is no number.
        ValueError: If the kind or an option is unknown or out of range.
    """
    options = options_of("action", specification)
    kind = str(options.pop("kind", None))
    if kind not in ACTIONS:
        raise unknown_name("action", kind, ACTIONS)
    valid = [field.name for field in fields(ACTIONS[kind])]  # type: ignore[arg-type]
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of action {kind!r}", option, valid)
    return ACTIONS[kind](**options)


def _require_positive(name: str, value: float) -> None:
    if not 0 < number(name, value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, but {value!r} was given.")
