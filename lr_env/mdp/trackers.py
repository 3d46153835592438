"""Statistics that only some features use, kept only where they are asked for; most come from published state vectors.

A tracker owns rows of the table of :class:`lr_env.mdp.statistics.Statistics` and changes them once per SGD step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lr_env.mdp.arrays import Array, Record, namespace

TINY = 1e-38
"""Stands for 0 where a logarithm is taken or a division made."""

LOG_TINY = math.log10(TINY)

DISCOUNT = 0.9
"""γ of Daniel et al. 2016."""

WINDOW = 20
"""SGD steps over which SOLAR takes the deviation of the loss."""

SHORT_DISCOUNT, LONG_DISCOUNT = 0.9, 0.99
"""Of SOLAR's averages of the loss."""


@dataclass(frozen=True)
class Observed:
    """The signals of one step.

    Attributes:
        positions: Row of each signal by its name.
        values: ``(R, C)``.
        logs: log10 of them, as the statistics keep them; ``(R, C)``.
        is_first: Whose first step it is, booleans ``(1, C)``, or None for nobody's.
    """

    positions: Mapping[str, int]
    values: Array
    logs: Array
    is_first: Array | None

    def value(self, signal: str) -> Array:
        """A signal as it is, ``(1, C)``."""
        row = self.positions[signal]
        return self.values[row : row + 1]

    def log(self, signal: str) -> Array:
        """Its logarithm, ``(1, C)``."""
        row = self.positions[signal]
        return self.logs[row : row + 1]

    def at_first(self, first: Array, otherwise: Array) -> Array:
        """``first`` for those whose first step it is, ``otherwise`` for the others."""
        return otherwise if self.is_first is None else namespace(otherwise).where(self.is_first, first, otherwise)


class Tracker(Protocol):
    """Rows and how a step changes them."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Names and numbers of the rows; a single row may be used by features."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Signals beside the loss."""
        ...

    def update(self, record: Record, observed: Observed) -> None:
        """Takes in one step, after the other statistics."""
        ...


class RawSignal:
    """A signal as it is, where it may be negative.

    Args:
        name: Of the signal and of the row.
    """

    def __init__(self, name: str) -> None:
        self.sizes, self.needs = {f"raw_{name}": 1}, frozenset({name})
        self._name = name

    def update(self, record: Record, observed: Observed) -> None:
        """See :class:`Tracker`."""
        record[f"raw_{self._name}"][:] = observed.value(self._name)


class DiscountedMoments:
    """``x``, its mean ``m ← γ m + (1 − γ) x`` and its uncertainty ``u ← γ u + (1 − γ) (x − m)²`` (Daniel et al. 2016).

    At the first step ``m = x`` and ``u = 0``.

    Args:
        name: Of the row of x; those of m and u end with ``_mean`` and ``_uncertainty``.
        signal: x is its logarithm.
        rate_power: Power of the rate in force that multiplies the signal.
    """

    def __init__(self, name: str, signal: str, rate_power: int) -> None:
        self.sizes, self.needs = {name: 1, f"{name}_mean": 1, f"{name}_uncertainty": 1}, frozenset({signal})
        self._name, self._signal, self._rate_power = name, signal, rate_power

    def update(self, record: Record, observed: Observed) -> None:
        """See :class:`Tracker`."""
        value = observed.log(self._signal)
        if self._rate_power:
            rate = record["log_rate"]  # of a rate of 0 the average would keep −∞
            value = value + self._rate_power * namespace(rate).maximum(rate, LOG_TINY + 0 * value)
        mean, uncertainty = record[f"{self._name}_mean"], record[f"{self._name}_uncertainty"]
        mean[:] = observed.at_first(value, DISCOUNT * mean + (1 - DISCOUNT) * value)
        uncertainty[:] = observed.at_first(0 * value, DISCOUNT * uncertainty + (1 - DISCOUNT) * (value - mean) ** 2)
        record[self._name][:] = value


class LossWindow:
    """``std(ℓ) / mean(ℓ)`` over the last 20 steps; before the first step the loss is taken to have been as it was there (SOLAR 2026)."""

    def __init__(self) -> None:
        self.sizes, self.needs = {"recent_losses": WINDOW, "relative_loss_deviation": 1}, frozenset[str]()

    def update(self, record: Record, observed: Observed) -> None:
        """See :class:`Tracker`."""
        losses, loss = record["recent_losses"], observed.value("loss")
        # A copy, as rows are moved within one array.
        losses[:-1] = observed.at_first(loss + 0 * losses[:-1], 1.0 * losses[1:])
        losses[-1:] = loss
        mean = losses.mean(0)
        deviation = namespace(losses).sqrt(((losses - mean) ** 2).mean(0))
        record["relative_loss_deviation"][:] = deviation / namespace(losses).fmax(abs(mean), TINY + 0 * mean)


class LossAverages:
    """``(short − long) / long`` of two averages of the loss, with discounts 0.9 and 0.99 (SOLAR 2026)."""

    def __init__(self) -> None:
        self.sizes, self.needs = {"short_loss": 1, "long_loss": 1, "loss_average_gap": 1}, frozenset[str]()

    def update(self, record: Record, observed: Observed) -> None:
        """See :class:`Tracker`."""
        loss = observed.value("loss")
        for name, discount in (("short_loss", SHORT_DISCOUNT), ("long_loss", LONG_DISCOUNT)):
            record[name][:] = observed.at_first(loss, discount * record[name] + (1 - discount) * loss)
        short, long = record["short_loss"], record["long_loss"]
        record["loss_average_gap"][:] = (short - long) / namespace(long).fmax(abs(long), TINY + 0 * long)


class GradientNormChange:
    """Change of log10 ‖g‖ since the step before, 0 at the first (SOLAR 2026)."""

    def __init__(self) -> None:
        self.sizes, self.needs = {"last_log_norm": 1, "gradient_norm_change": 1}, frozenset({"gradient_norm_squared"})

    def update(self, record: Record, observed: Observed) -> None:
        """See :class:`Tracker`."""
        log_norm = observed.log("gradient_norm_squared")
        record["gradient_norm_change"][:] = observed.at_first(0 * log_norm, log_norm - record["last_log_norm"])
        record["last_log_norm"][:] = log_norm


_TRACKERS = (
    lambda: RawSignal("direction_agreement"),
    lambda: RawSignal("output_weight_mean"),
    lambda: DiscountedMoments("predictive_change", "slope_variance", rate_power=2),
    lambda: DiscountedMoments("disagreement", "loss_variance", rate_power=0),
    LossWindow,
    LossAverages,
    GradientNormChange,
)


def make_trackers(rows: Sequence[str]) -> list[Tracker]:
    """The trackers that own some of these rows."""
    trackers: list[Tracker] = [make() for make in _TRACKERS]
    return [tracker for tracker in trackers if any(row in tracker.sizes for row in rows)]
