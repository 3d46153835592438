"""Running statistics of N trainings, from which features are computed. All logarithms are base 10: units are decades.

They are rows of a table, float64, by name, with a column for each parameter group of each training, C in all; see
:data:`lr_env.mdp.arrays.Record`. What belongs to the training as a whole, such as its loss, stands in the columns of all of its groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lr_env.mdp.arrays import Array, Record, constant, namespace
from lr_env.mdp.trackers import TINY, Observed, make_trackers
from lr_env.training import signal_rows

FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT = 5.0, 20.0
"""Time constants of the exponential moving averages (EMAs), in SGD steps."""

FAST_HORIZON_FRACTION, SLOW_HORIZON_FRACTION = 0.01, 0.05
"""Time constants of the horizon's EMAs, as fractions of the horizon."""

AVERAGES = ("fast_loss", "slow_loss", "horizon_fast_loss", "horizon_slow_loss", "cosine_average")
"""EMAs: four of log10(ℓ − b), the last two with time constants in fractions of the horizon; the fast one of the cosine."""

OTHERS = ("log_rate", "progress", "log_horizon", "zero")
"""log10 of the rate in force; age / T; log10(T) / 4; and 0."""

LOSSES = ("loss", "validation_loss")
LOSS_FLOOR = 1e-6
"""Losses are floored at this fraction of their first value above the lower bound."""


class Statistics:
    """What is kept of N trainings, and how a step changes it. Averages advance once per SGD step, not per decision.

    Args:
        needs: Signals that features and actions need, beside the loss and what trackers need.
        rows: Names of the rows that features use; trackers are made for those that are not kept anyway.
        horizon: T, SGD steps.
        loss_lower_bound: b.
        device: Where tensors lie; None for NumPy's arrays.

    Attributes:
        needs: All signals that are used, beside the loss.
        sizes: Rows of each part, in the order of a table: ``logs`` (log10 of the R signals; of a squared norm, the
            norm's; of the loss, log10(ℓ − b)), ``first_logs`` (the same at the first step), ``averages`` (:data:`AVERAGES`), ``averaged``
            (what they are taken of; last the cosine between successive gradients, 0 at the first), then :data:`OTHERS`, ``floors`` (of
            the signals), ``age`` (SGD steps since the start, −1 before the first), ``squared_norm`` (of the last gradient), and those
            of the trackers.
        rows: Where in a table the rows of ``logs``, ``first_logs`` and ``averages`` and the cosine lie: by the signals' names, with
            ``first_`` before the name, by :data:`AVERAGES`, and as ``cosine``.
    """

    def __init__(self, needs: frozenset[str], rows: Sequence[str], horizon: int, loss_lower_bound: float, device: torch.device | None) -> None:
        self.horizon, self._lower_bound = horizon, loss_lower_bound
        self._trackers = make_trackers(rows)
        self.needs = needs.union(*(tracker.needs for tracker in self._trackers))
        names = signal_rows(self.needs)
        self._signals = {name: row for row, name in enumerate(names)}
        self.sizes = {"logs": len(names), "first_logs": len(names), "averages": len(AVERAGES), "averaged": len(AVERAGES)}
        self.sizes |= dict.fromkeys(OTHERS, 1) | {"floors": len(names), "age": 1, "squared_norm": 1}
        for tracker in self._trackers:
            self.sizes |= tracker.sizes
        self.rows = {name: row for row, name in enumerate([*names, *(f"first_{name}" for name in names), *AVERAGES])}
        self.rows["cosine"] = len(self.rows) + len(AVERAGES) - 1

        of_horizon = FAST_HORIZON_FRACTION * horizon, SLOW_HORIZON_FRACTION * horizon
        time_constants = FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT, *of_horizon, FAST_TIME_CONSTANT
        columns = (
            [loss_lower_bound if name in LOSSES else 0.0 for name in names],
            [0.5 if name.endswith("squared") else 1.0 for name in names],  # norms come squared: half the logarithm
            [LOSS_FLOOR if name in LOSSES else 0.0 for name in names],
            [1 / max(time_constant, 1.0) for time_constant in time_constants],
        )
        self._offsets, self._scales, self._floors, self._gains = (constant(column, device)[:, None] for column in columns)
        self._tiny = constant(TINY, device)

    def begin(self, record: Record, log_rates: np.ndarray) -> None:
        """Sets the record, all zero, of trainings that have seen nothing yet, with log10 of their initial rates ``(C,)``."""
        record["log_horizon"][:] = math.log10(self.horizon) / 4
        record["age"][:] = -1
        record["log_rate"][:] = log_rates

    def update(self, record: Record, signals: Array, begins: bool = True) -> Observed:
        """Takes in one SGD step with signals ``(R, C)``; ``begins`` says whether it may be somebody's first. :meth:`track` does the rest."""
        library = namespace(signals)
        age, floors, averages, averaged = record["age"], record["floors"], record["averages"], record["averaged"]
        age += 1
        excess = signals - self._offsets if self._lower_bound else signals
        is_first = None
        if begins:
            is_first = age == 0
            floors[:] = library.where(is_first, library.maximum(abs(excess) * self._floors, self._tiny), floors)
        logs = library.log10(library.maximum(excess, floors)) * self._scales
        record["logs"][:] = logs
        averaged[:-1] = logs[:1]
        if "gradient_dot_previous" in self._signals:
            squared_norm = self._row(excess, "gradient_norm_squared")
            norms = library.sqrt(squared_norm * record["squared_norm"])
            # At the first step there is no previous gradient: the product is 0.
            averaged[-1:] = self._row(excess, "gradient_dot_previous") / library.maximum(norms, self._tiny)
            record["squared_norm"][:] = squared_norm
        averages += self._gains * (averaged - averages)
        if begins:
            averages[:] = library.where(is_first, averaged, averages)
            record["first_logs"][:] = library.where(is_first, logs, record["first_logs"])
        record["progress"][:] = age / self.horizon
        return Observed(self._signals, signals, logs, is_first)

    def track(self, record: Record, observed: Observed) -> None:
        """Has the trackers take in what :meth:`update` returned, once the rate in force is known."""
        for tracker in self._trackers:
            tracker.update(record, observed)

    def log(self, record: Record, signal: str) -> Array:
        """log10 of a signal, ``(1, C)``; of a squared norm, the norm's; of the loss, log10(ℓ − b)."""
        return self._row(record["logs"], signal)

    def _row(self, values: Array, signal: str) -> Array:
        row = self._signals[signal]
        return values[row : row + 1]
