"""The features of an observation: named functions of the running statistics, with fixed and documented transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lr_env.mdp.statistics import Statistics
from lr_env.naming import unknown_name

CLIP = 10.0
"""Features are clipped to ±10; one that is not a number becomes −10."""

TREND_SCALE = 10.0
"""A trend is a small difference of averages; this factor brings it to order one."""


@dataclass(frozen=True)
class Feature:
    """One entry of an observation.

    Attributes:
        name: Its registered name.
        formula: How it is computed, for people; log is base 10.
        needs: Signals it is computed from, beside the loss.
        compute: ``statistics -> values (N,)``.
    """

    name: str
    formula: str
    needs: frozenset[str]
    compute: Callable[[Statistics], np.ndarray]

    def __reduce__(self) -> tuple[Callable[[str], Feature], tuple[str]]:
        """Pickled by name: the formula is code."""
        return _registered, (self.name,)


def _registered(name: str) -> Feature:
    return FEATURES[name]


_GRADIENT = frozenset({"gradient_norm_squared"})
_COSINE = frozenset({"gradient_norm_squared", "gradient_dot_previous"})

FEATURES: Mapping[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("log_loss", "log(ℓ − b)", frozenset(), lambda s: s.log["loss"]),
        Feature("loss_ratio", "EMA₅(log(ℓ − b)) − log(ℓ₀ − b)", frozenset(), lambda s: s.fast_loss - s.first_log["loss"]),
        Feature("loss_trend", "10·(EMA₅ − EMA₂₀)(log(ℓ − b))", frozenset(), lambda s: TREND_SCALE * (s.fast_loss - s.slow_loss)),
        Feature(
            "loss_trend_of_horizon",
            "10·(EMA₀.₀₁T − EMA₀.₀₅T)(log(ℓ − b))",
            frozenset(),
            lambda s: TREND_SCALE * (s.horizon_fast_loss - s.horizon_slow_loss),
        ),
        Feature("log_gradient_norm", "log ‖g‖", _GRADIENT, lambda s: s.log["gradient_norm_squared"]),
        Feature(
            "gradient_norm_ratio", "log ‖g‖ − log ‖g₀‖", _GRADIENT, lambda s: s.log["gradient_norm_squared"] - s.first_log["gradient_norm_squared"]
        ),
        Feature("gradient_cosine", "⟨g, g₋₁⟩ / (‖g‖ ‖g₋₁‖), 0 at first", _COSINE, lambda s: s.cosine),
        Feature("gradient_cosine_average", "EMA₅ of gradient_cosine", _COSINE, lambda s: s.cosine_average),
        Feature("log_rate", "log η", frozenset(), lambda s: s.log_rate),
        Feature(
            "predicted_decrease",
            "log(η ⟨g, u⟩⁺ / (ℓ − b))",
            frozenset({"gradient_dot_direction"}),
            lambda s: s.log_rate + s.log["gradient_dot_direction"] - s.log["loss"],
        ),
        Feature(
            "relative_update",
            "log(η ‖u‖ / ‖w‖)",
            frozenset({"direction_norm_squared", "weight_norm_squared"}),
            lambda s: s.log_rate + s.log["direction_norm_squared"] - s.log["weight_norm_squared"],
        ),
        Feature("progress", "t / T", frozenset(), lambda s: s.age / s.horizon),
        Feature("log_horizon", "log(T) / 4", frozenset(), lambda s: np.full(s.age.shape, np.log10(s.horizon) / 4)),
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


def compute_features(features: Sequence[Feature], statistics: Statistics) -> np.ndarray:
    """Observations ``(N, F)``, float32, finite, within ±10."""
    values = np.empty((len(features), len(statistics.age)))
    for row, feature in enumerate(features):
        values[row] = feature.compute(statistics)
    # fmax takes the number where the other operand is not one.
    return np.fmin(np.fmax(values, -CLIP), CLIP).astype(np.float32).T.copy()
