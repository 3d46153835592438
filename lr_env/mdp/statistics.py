"""Running statistics of N trainings, from which features are computed. All logarithms are base 10: units are decades."""

from __future__ import annotations

from typing import Any

import numpy as np

from lr_env.training import Signals, signal_rows

FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT = 5.0, 20.0
"""Time constants of the exponential moving averages (EMAs), in SGD steps."""

FAST_HORIZON_FRACTION, SLOW_HORIZON_FRACTION = 0.01, 0.05
"""Time constants of the horizon's EMAs, as fractions of the horizon."""

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
        first_log: The same at the first step.
        fast_loss: EMA of log10(ℓ − b), ``(N,)``; ``slow_loss`` and, in fractions of the horizon, ``horizon_fast_loss`` and
            ``horizon_slow_loss`` likewise.
        cosine: Cosine between successive gradients, ``(N,)``; 0 at the first.
        cosine_average: Its fast EMA, ``(N,)``.
    """

    def __init__(self, needs: frozenset[str], num_members: int, num_groups: int, horizon: int, loss_lower_bound: float) -> None:
        self.horizon = horizon
        self.rows = {name: row for row, name in enumerate(signal_rows(needs))}
        self.age = np.full(num_members, -1, np.int64)
        self.log_rates = np.zeros((num_members, num_groups))
        self.cosine = np.zeros(num_members)
        shape = (len(self.rows), num_members)
        self._floors, self._logs, self._first_logs = np.full(shape, TINY), np.zeros(shape), np.zeros(shape)
        self._squared_gradient_norm = np.zeros(num_members)
        self._averages = np.zeros((5, num_members))  # of the log loss: fast, slow, the horizon's two; of the cosine: fast
        self._any_new = True
        self._make_views()
        self._offsets = np.array([[loss_lower_bound if name == "loss" else 0.0] for name in self.rows])
        # Norms come squared: half the logarithm.
        self._scales = np.array([[0.5 if name.endswith("squared") else 1.0] for name in self.rows])
        time_constants = np.array(
            [FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT, FAST_HORIZON_FRACTION * horizon, SLOW_HORIZON_FRACTION * horizon, FAST_TIME_CONSTANT]
        )
        self._gains = (1 / np.maximum(time_constants, 1.0))[:, None]

    def _make_views(self) -> None:
        """Rows by name; they stay valid, since all updates are in place."""
        self.log = {name: self._logs[row] for name, row in self.rows.items()}
        self.first_log = {name: self._first_logs[row] for name, row in self.rows.items()}
        self.fast_loss, self.slow_loss, self.horizon_fast_loss, self.horizon_slow_loss, self.cosine_average = self._averages

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
        targets = np.empty((5, values.shape[1]))
        targets[:4] = logs[0]
        targets[4] = 0.0
        if "gradient_dot_previous" in self.rows:
            squared_norm = values[self.rows["gradient_norm_squared"]]
            norms = np.sqrt(squared_norm) * np.sqrt(self._squared_gradient_norm[members])
            self._squared_gradient_norm[members] = squared_norm
            targets[4] = values[self.rows["gradient_dot_previous"]] / np.maximum(norms, TINY)
            if is_first is not None:
                targets[4, is_first] = 0.0
            self.cosine[members] = targets[4]
        averages = self._averages[:, members]
        averages = averages + self._gains * (targets - averages)
        if is_first is not None:
            averages = np.where(is_first, targets, averages)
            self._first_logs[:, members] = np.where(is_first, logs, self._first_logs[:, members])
            self._any_new = bool((self.age < 0).any())
        self._averages[:, members] = averages

    @property
    def log_rate(self) -> np.ndarray:
        """log10 of the rate in force, ``(N,)``: its mean over parameter groups."""
        return self.log_rates[:, 0] if self.log_rates.shape[1] == 1 else self.log_rates.mean(1)

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
        return {name: getattr(self, name) for name in ("age", "log_rates", "cosine", "_squared_gradient_norm", *_BY_ROW)}


_BY_ROW = ("_floors", "_logs", "_first_logs", "_averages")
