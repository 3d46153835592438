"""The features of an observation: named functions of the running statistics, with fixed and documented transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lr_env.checks import unknown_name
from lr_env.mdp.arrays import Array, constant, namespace
from lr_env.mdp.statistics import Statistics

CLIP = 10.0
"""Features are clipped to ±10; one that is not a number becomes −10."""

TREND_SCALE = 10.0
"""A trend is a small difference of averages; this factor brings it to order one."""


@dataclass(frozen=True)
class Feature:
    """One entry of an observation: a scaled sum and difference of rows of the table of :class:`Statistics`.

    Attributes:
        name: Its registered name.
        formula: How it is computed, for people; log is base 10.
        plus: One or two rows that are added.
        minus: Row that is subtracted.
        scale: Factor on the result.
        needs: Signals it is computed from, beside the loss.
    """

    name: str
    formula: str
    plus: tuple[str, ...]
    minus: str = "zero"
    scale: float = 1.0
    needs: frozenset[str] = frozenset()


_GRADIENT = frozenset({"gradient_norm_squared"})
_COSINE = frozenset({"gradient_norm_squared", "gradient_dot_previous"})
_DECREASE = frozenset({"gradient_dot_direction"})
_UPDATE = frozenset({"direction_norm_squared", "weight_norm_squared"})

FEATURES: Mapping[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("log_loss", "log(ℓ − b)", ("loss",)),
        Feature("loss_ratio", "EMA₅(log(ℓ − b)) − log(ℓ₀ − b)", ("fast_loss",), "first_loss"),
        Feature("loss_trend", "10·(EMA₅ − EMA₂₀)(log(ℓ − b))", ("fast_loss",), "slow_loss", TREND_SCALE),
        Feature("loss_trend_of_horizon", "10·(EMA₀.₀₁T − EMA₀.₀₅T)(log(ℓ − b))", ("horizon_fast_loss",), "horizon_slow_loss", TREND_SCALE),
        Feature("log_gradient_norm", "log ‖g‖", ("gradient_norm_squared",), needs=_GRADIENT),
        Feature("gradient_norm_ratio", "log ‖g‖ − log ‖g₀‖", ("gradient_norm_squared",), "first_gradient_norm_squared", needs=_GRADIENT),
        Feature("gradient_cosine", "⟨g, g₋₁⟩ / (‖g‖ ‖g₋₁‖), 0 at first", ("cosine",), needs=_COSINE),
        Feature("gradient_cosine_average", "EMA₅ of gradient_cosine", ("cosine_average",), needs=_COSINE),
        Feature("log_rate", "log η", ("log_rate",)),
        Feature("predicted_decrease", "log(η ⟨g, u⟩⁺ / (ℓ − b))", ("log_rate", "gradient_dot_direction"), "loss", needs=_DECREASE),
        Feature("relative_update", "log(η ‖u‖ / ‖w‖)", ("log_rate", "direction_norm_squared"), "weight_norm_squared", needs=_UPDATE),
        Feature("progress", "t / T", ("progress",)),
        Feature("log_horizon", "log(T) / 4", ("log_horizon",)),
    )
}
"""All features by name. ℓ: minibatch loss; b: its lower bound; g: gradient; u: update direction at unit rate; w: weights; η: the rate
in force (the last one applied, or the initial one); EMA₅: exponential moving average with a time constant of 5 SGD steps; index 0: the
first step; index −1: the previous step; T: horizon."""

FEATURE_SETS: Mapping[str, tuple[str, ...]] = {
    "absolute": ("log_loss", "loss_trend", "loss_ratio", "log_gradient_norm", "gradient_cosine", "log_rate", "progress"),
    "scale_free": (
        "predicted_decrease",
        "relative_update",
        "loss_ratio",
        "loss_trend",
        "loss_trend_of_horizon",
        "gradient_cosine",
        "gradient_cosine_average",
        "gradient_norm_ratio",
        "progress",
        "log_horizon",
    ),
}
"""Named sets. ``scale_free`` is invariant to the scale of the loss wherever the rates compensate for it; ``absolute`` is not."""


def resolve_features(specification: str | Sequence[str]) -> tuple[Feature, ...]:
    """The features of a set's name or of a list of feature and set names, without repetition.

    Raises:
        ValueError: If a name is unknown or the list is empty.
    """
    requested = [specification] if isinstance(specification, str) else list(specification)
    names: list[str] = []
    for name in requested:
        if name in FEATURE_SETS:
            names += FEATURE_SETS[name]
        elif name in FEATURES:
            names.append(name)
        else:
            raise unknown_name("feature", name, [*FEATURE_SETS, *FEATURES])
    if not names:
        raise ValueError(f"At least one feature is needed. Valid: {', '.join([*FEATURE_SETS, *FEATURES])}.")
    return tuple(FEATURES[name] for name in dict.fromkeys(names))


class Observer:
    """Computes features all at once: a few operations on arrays, however many features there are."""

    def __init__(self, features: Sequence[Feature], statistics: Statistics, device: torch.device | None) -> None:
        terms = [(*(*feature.plus, "zero")[:2], feature.minus) for feature in features]
        rows = np.array([[statistics.rows[name] for name in names] for names in terms]).T  # (3, F)
        self._rows: Array = rows if device is None else torch.from_numpy(rows).to(device)
        self._scales = constant([[feature.scale] for feature in features], device)
        self._lowest, self._highest = constant(-CLIP, device), constant(CLIP, device)

    def __call__(self, table: Array) -> Array:
        """Observations ``(N, F)``, float32, finite, within ±10, of a table ``(rows, N)``; a fresh array."""
        library = namespace(table)
        first, second, minus = table.take(self._rows, axis=0) if library is np else table[self._rows]
        values = (first + second - minus) * self._scales
        # fmax takes the number where the other operand is not one.
        clipped = library.minimum(library.fmax(values, self._lowest), self._highest)
        if library is np:
            return clipped.T.astype(np.float32, order="C")
        return clipped.t().to(torch.float32, memory_format=torch.contiguous_format)
