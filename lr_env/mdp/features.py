"""The features of an observation: named functions of the running statistics, with fixed and documented transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lr_env.checks import unknown_name
from lr_env.mdp.arrays import Array, constant, namespace

CLIP = 10.0
"""Features are clipped to ±10; one that is not a number becomes −10."""

TREND_SCALE = 10.0
"""A trend is a small difference of averages; this factor brings it to order one."""


@dataclass(frozen=True)
class Feature:
    """One entry of an observation: a scaled sum and difference of rows of the table of a :class:`lr_env.mdp.DecisionProcess`.

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


def _signal(name: str, formula: str, signal: str, scale: float = 1.0) -> Feature:
    """The logarithm of a signal."""
    return Feature(name, formula, (signal,), scale=scale, needs=frozenset({signal}))


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
        Feature("momentum", "−log(1 − μ)", ("momentum_decades",)),
        # Xu et al. 2017
        Feature("minibatch_loss", "ℓ", ("raw_loss",)),
        # Daniel et al. 2016
        Feature("predictive_change", "log Var_i(η ⟨g_i, u⟩)", ("predictive_change",)),
        Feature("predictive_change_mean", "m ← 0.9 m + 0.1 x, x = predictive_change", ("predictive_change_mean",)),
        Feature("predictive_change_uncertainty", "v ← 0.9 v + 0.1 (x − m)²", ("predictive_change_uncertainty",)),
        Feature("disagreement", "log Var_i(ℓ_i)", ("disagreement",)),
        Feature("disagreement_mean", "m ← 0.9 m + 0.1 x, x = disagreement", ("disagreement_mean",)),
        Feature("disagreement_uncertainty", "v ← 0.9 v + 0.1 (x − m)²", ("disagreement_uncertainty",)),
        Feature("alignment", "mean_j sign(u_j · u₋₁_j), 0 at first", ("raw_direction_agreement",)),
        # Xu et al. 2019
        _signal("log_validation_loss", "log(ℓ_V − b)", "validation_loss"),
        _signal("log_prediction_variance", "log Var(f(V; w))", "prediction_variance"),
        _signal("log_prediction_change_variance", "log Var(f(V; w) − f(V; w₋₁)), −10 at first", "prediction_change_variance"),
        Feature("output_weight_mean", "mean_j W_j", ("raw_output_weight_mean",)),
        _signal("log_output_weight_variance", "log Var_j(W_j)", "output_weight_variance"),
        # SOLAR 2026
        Feature("relative_loss_deviation", "std(ℓ) / mean(ℓ) over 20 steps", ("relative_loss_deviation",)),
        Feature("loss_average_gap", "(s − l) / l, s ← 0.9 s + 0.1 ℓ, l ← 0.99 l + 0.01 ℓ", ("loss_average_gap",)),
        Feature("log_base_rate", "log of the action's base rate; of η without one", ("log_base_rate",)),
        Feature("previous_action", "a₋₁, 0 at first", ("previous_action",)),
        Feature("depth", "group / (G − 1), 0 for G = 1", ("depth",)),
        _signal("log_weight_norm", "log ‖w‖", "weight_norm_squared"),
        Feature("gradient_norm_change", "log ‖g‖ − log ‖g₋₁‖, 0 at first", ("gradient_norm_change",)),
    )
}
"""All features by name. ℓ: minibatch loss; b: its lower bound; g: gradient; u: update direction at unit rate; w: weights; η: the rate
in force (the last one applied, or the initial one); μ: momentum in force; EMA₅: exponential moving average with a time constant of 5 SGD
steps; index 0: the first step; index −1: the previous step; T: horizon; index i: one example of the minibatch; j: one weight; V: a fixed
subset of the validation split, f its outputs in evaluation mode; W: weights of the output layer; G: number of parameter groups. With
several parameter groups g, u, w, η, μ and a are a group's, and the loss is everybody's."""

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
    "xu2017": ("minibatch_loss",),
    "daniel2016": (
        "predictive_change",
        "predictive_change_mean",
        "predictive_change_uncertainty",
        "disagreement",
        "disagreement_mean",
        "disagreement_uncertainty",
        "alignment",
    ),
    "xu2019": (
        "log_loss",
        "log_validation_loss",
        "log_prediction_variance",
        "log_prediction_change_variance",
        "output_weight_mean",
        "log_output_weight_variance",
        "log_rate",
    ),
    "solar2026": (
        "progress",
        "log_loss",
        "relative_loss_deviation",
        "loss_average_gap",
        "log_base_rate",
        "log_gradient_norm",
        "previous_action",
        "depth",
        "log_weight_norm",
        "gradient_norm_change",
    ),
}
"""Named sets. ``scale_free`` is invariant to the scale of the loss wherever the rates compensate for it; ``absolute`` is not. The others are
published state vectors, as far as they are known: ``xu2017`` (Xu et al. 2017, arXiv 1705.11159), ``daniel2016`` (Daniel et al. 2016),
``xu2019`` (Xu et al. 2019, arXiv 1909.09712) and ``solar2026`` (SOLAR). Quantities that are positive enter as logarithms."""


def resolve_features(specification: str | Sequence[str]) -> tuple[Feature, ...]:
    """The features of a set's name or of a list of feature and set names, without repetition.

    Raises:
        TypeError: If it is neither.
        ValueError: If a name is unknown or the list is empty.
    """
    if not isinstance(specification, (str, Sequence)):
        raise TypeError(f"features must be a name or a list of names, but {specification!r} was given.")
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

    def __init__(self, features: Sequence[Feature], rows: Mapping[str, int], device: torch.device | None) -> None:
        terms = [(*(*feature.plus, "zero")[:2], feature.minus) for feature in features]
        chosen = np.array([[rows[name] for name in names] for names in terms]).T  # (3, F)
        self._rows: Array = chosen if device is None else torch.from_numpy(chosen).to(device)
        self._scales = constant([[feature.scale] for feature in features], device)
        self._lowest, self._highest = constant(-CLIP, device), constant(CLIP, device)

    def __call__(self, table: Array) -> Array:
        """Observations ``(N, G · F)``, float32, finite, within ±10, of a table ``(rows, G, N)``; a fresh array, group after group."""
        library, (_, num_groups, num_members) = namespace(table), table.shape
        columns = table.reshape(len(table), -1)
        first, second, minus = columns.take(self._rows, axis=0) if library is np else columns[self._rows]
        values = (first + second - minus) * self._scales  # (F, C)
        # fmax takes the number where the other operand is not one.
        clipped = library.minimum(library.fmax(values, self._lowest), self._highest)
        if num_groups > 1:
            clipped = library.moveaxis(clipped.reshape(-1, num_groups, num_members), 0, 1).reshape(-1, num_members)
        if library is np:
            return clipped.T.astype(np.float32, order="C")
        return clipped.t().to(torch.float32, memory_format=torch.contiguous_format)
