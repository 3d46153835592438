"""Running statistics of N trainings, from which features are computed. All logarithms are base 10: units are decades."""

from __future__ import annotations

from typing import Any

import numpy as np

from lr_env.training import Signals, signal_rows

FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT = 5.0, 20.0
"""Time constants of the exponential moving averages (EMAs), in SGD steps."""

FAST_HORIZON_FRACTION, SLOW_HORIZON_FRACTION = 0.01, 0.05
"""Time constants of the horizon's EMAs, as fractions of the horizon."""

AVERAGES = ("fast_loss", "slow_loss", "horizon_fast_loss", "horizon_slow_loss", "cosine_average")
"""EMAs: four of log10(ℓ − b), the last two with time constants in fractions of the horizon; the fast one of the cosine."""

OTHERS = ("cosine", "log_rate", "progress", "log_horizon", "zero")
"""Cosine between successive gradients, 0 at the first; log10 of the rate in force, its mean over parameter groups; age / T;
log10(T) / 4; and 0."""

LOSS_FLOOR = 1e-6
"""Losses are floored at this fraction of their first value above the lower bound."""

TINY = 1e-38


class Statistics:
    """What has been seen of N trainings so far. Averages advance once per SGD step, not per decision.

    Args:
        needs: Signals that features and actions need, beside the loss.
        num_members: N.
        num_groups: G.
        horizon: T, SGD steps.
        loss_lower_bound: b.

    Attributes:
        age: SGD steps since the start, ``(N,)``.
        log_rates: log10 of the rate in force, per parameter group, ``(N, G)``.
        log: Signal name to its log10, ``(N,)``; of a squared norm, the norm's; of the loss, log10(ℓ − b).
        rows: Names of the rows of :meth:`table`: the signals' logarithms by the signals' names, the same at the first step with
            ``first_`` before the name, then :data:`AVERAGES` and :data:`OTHERS`.
    """

    def __init__(self, needs: frozenset[str], num_members: int, num_groups: int, horizon: int, loss_lower_bound: float) -> None:
        self.horizon = horizon
        names = signal_rows(needs)
        self.rows = {name: row for row, name in enumerate([*names, *(f"first_{name}" for name in names), *AVERAGES, *OTHERS])}
        self.age = np.full(num_members, -1, np.int64)
        self.log_rates = np.zeros((num_members, num_groups))
        self._table = np.zeros((len(self.rows), num_members))
        self._table[self.rows["log_horizon"]] = np.log10(horizon) / 4
        self._floors = np.full((len(names), num_members), TINY)
        self._squared_gradient_norm = np.zeros(num_members)
        self._any_new = True
        self._has_cosine = "gradient_dot_previous" in names
        self._make_views()
        self._offsets = np.array([[loss_lower_bound if name == "loss" else 0.0] for name in names])
        # Norms come squared: half the logarithm.
        self._scales = np.array([[0.5 if name.endswith("squared") else 1.0] for name in names])
        horizon_constants = FAST_HORIZON_FRACTION * horizon, SLOW_HORIZON_FRACTION * horizon
        time_constants = np.array([FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT, *horizon_constants, FAST_TIME_CONSTANT])
        self._gains = (1 / np.maximum(time_constants, 1.0))[:, None]

    def _make_views(self) -> None:
        """Parts of the table; they stay valid, since all updates are in place."""
        num_signals = len(self._floors)
        self._logs, self._first_logs = self._table[:num_signals], self._table[num_signals : 2 * num_signals]
        self._averages = self._table[2 * num_signals : 2 * num_signals + len(AVERAGES)]
        self.log = {name: self._logs[row] for name, row in self.rows.items() if row < num_signals}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()

    def restart(self, members: np.ndarray) -> None:
        """Forgets members ``(K,)``; their next update is their first."""
        self.age[members] = -1
        self._any_new = True

    def update(self, signals: Signals, members: np.ndarray | slice) -> None:
        """Takes in one SGD step's signals of members ``(K,)``."""
        values = signals.values[:, members] - self._offsets  # (R, K)
        self.age[members] += 1
        is_first = self.age[members] == 0 if self._any_new else None
        if is_first is not None:
            self._floors[0, members] = np.where(is_first, np.maximum(np.abs(values[0]) * LOSS_FLOOR, TINY), self._floors[0, members])
        logs = np.log10(np.maximum(values, self._floors[:, members])) * self._scales
        self._logs[:, members] = logs
        targets = np.empty((len(AVERAGES), values.shape[1]))
        targets[:] = logs[0]
        targets[4] = 0.0
        if self._has_cosine:
            squared_norm = values[self.rows["gradient_norm_squared"]]
            norms = np.sqrt(squared_norm) * np.sqrt(self._squared_gradient_norm[members])
            self._squared_gradient_norm[members] = squared_norm
            targets[4] = values[self.rows["gradient_dot_previous"]] / np.maximum(norms, TINY)
            if is_first is not None:
                targets[4, is_first] = 0.0
            self._table[self.rows["cosine"], members] = targets[4]
        averages = self._averages[:, members]
        averages = averages + self._gains * (targets - averages)
        if is_first is not None:
            averages = np.where(is_first, targets, averages)
            self._first_logs[:, members] = np.where(is_first, logs, self._first_logs[:, members])
            self._any_new = bool((self.age < 0).any())
        self._averages[:, members] = averages

    def table(self) -> np.ndarray:
        """All that features are made of, ``(rows, N)``; valid until the next update."""
        self._table[self.rows["log_rate"]] = self.log_rates[:, 0] if self.log_rates.shape[1] == 1 else self.log_rates.mean(1)
        self._table[self.rows["progress"]] = self.age / self.horizon
        return self._table

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """The statistics of members ``(K,)``."""
        return {name: (value[:, members] if name in _BY_ROW else value[members]) for name, value in self._arrays().items()}

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        for name, value in self._arrays().items():
            if name in _BY_ROW:
                value[:, members] = state[name]
            else:
                value[members] = state[name]
        self._any_new = bool((self.age < 0).any())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("age", "log_rates", "_squared_gradient_norm", *_BY_ROW)}


_BY_ROW = ("_floors", "_table")
