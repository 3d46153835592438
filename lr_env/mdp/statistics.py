"""Running statistics of N trainings, from which features are computed. All logarithms are base 10: units are decades."""

from __future__ import annotations

from typing import Any

import numpy as np

from lr_env.training import Signals

FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT = 5.0, 20.0
"""Time constants of the exponential moving averages (EMAs), in SGD steps."""

FAST_HORIZON_FRACTION, SLOW_HORIZON_FRACTION = 0.01, 0.05
"""Time constants of the horizon's EMAs, as fractions of the horizon."""

LOSS_FLOOR = 1e-6
"""Losses are floored at this fraction of their first value above the lower bound."""

TINY = 1e-38


class Statistics:
    """What has been seen of N trainings so far. Averages advance once per SGD step, not per decision.

    Attributes:
        age: SGD steps since the start, ``(N,)``.
        log_rate: log10 of the rate in force, per parameter group, ``(N, G)``.
        log_excess: log10(ℓ − b), ``(N,)``, with the task's lower bound b.
        averages: EMAs of ``log_excess``, ``(4, N)``: fast, slow, and the same two in fractions of the horizon.
        log_gradient_norm: log10 ‖g‖, ``(N,)``.
        cosine: Cosine between successive gradients, ``(N,)``; 0 at the first.
        cosine_average: Its fast EMA, ``(N,)``.
        log_slope: log10 ⟨g, u⟩⁺, ``(N,)``: the predicted decrease of the loss at unit rate.
        log_direction_norm: log10 ‖u‖, ``(N,)``.
        log_weight_norm: log10 ‖w‖, ``(N,)``.
    """

    def __init__(self, num_members: int, num_groups: int, horizon: int, loss_lower_bound: float) -> None:
        self.horizon = horizon
        self.loss_lower_bound = loss_lower_bound
        self.age = np.full(num_members, -1, np.int64)
        self.log_rate = np.zeros((num_members, num_groups))
        self.excess_floor = np.zeros(num_members)
        self.log_excess, self.first_log_excess = np.zeros(num_members), np.zeros(num_members)
        self.averages = np.zeros((4, num_members))
        self.squared_gradient_norm = np.zeros(num_members)
        self.log_gradient_norm, self.first_log_gradient_norm = np.zeros(num_members), np.zeros(num_members)
        self.cosine, self.cosine_average = np.zeros(num_members), np.zeros(num_members)
        self.log_slope, self.log_direction_norm, self.log_weight_norm = np.zeros(num_members), np.zeros(num_members), np.zeros(num_members)
        time_constants = np.array([FAST_TIME_CONSTANT, SLOW_TIME_CONSTANT, FAST_HORIZON_FRACTION * horizon, SLOW_HORIZON_FRACTION * horizon])
        self._gains = (1 / np.maximum(time_constants, 1.0))[:, None]  # (4, 1)

    def restart(self, members: np.ndarray) -> None:
        """Forgets members ``(K,)``; their next update is their first."""
        self.age[members] = -1

    def update(self, signals: Signals, members: np.ndarray | slice) -> None:
        """Takes in one SGD step's signals of members ``(K,)``."""
        self.age[members] += 1
        is_first = self.age[members] == 0
        any_first = bool(is_first.any())
        excess = signals.losses[members] - self.loss_lower_bound
        if any_first:
            self.excess_floor[members] = np.where(is_first, np.maximum(np.abs(excess) * LOSS_FLOOR, TINY), self.excess_floor[members])
        rows = [np.maximum(excess, self.excess_floor[members])]
        values = {name: value[members].sum(1) for name, value in signals.values.items()}  # (K,): sums over parameter groups
        rows += [np.maximum(value, TINY) for name, value in values.items() if name != "gradient_dot_previous"]
        logs = iter(np.log10(np.stack(rows)))
        log_excess = next(logs)
        self.log_excess[members] = log_excess
        if "gradient_dot_previous" in values:
            squared_norm, previous = values["gradient_norm_squared"], self.squared_gradient_norm[members]
            norms = np.sqrt(squared_norm) * np.sqrt(previous)
            cosine = np.where(is_first | (norms <= 0), 0.0, values["gradient_dot_previous"] / np.maximum(norms, TINY))
            average = self.cosine_average[members]
            self.cosine[members] = cosine
            self.cosine_average[members] = np.where(is_first, 0.0, average + (cosine - average) / FAST_TIME_CONSTANT)
        for name in values:
            if name == "gradient_norm_squared":
                self.squared_gradient_norm[members] = values[name]
                self.log_gradient_norm[members] = 0.5 * next(logs)
            elif name == "gradient_dot_direction":
                self.log_slope[members] = next(logs)
            elif name == "direction_norm_squared":
                self.log_direction_norm[members] = 0.5 * next(logs)
            elif name == "weight_norm_squared":
                self.log_weight_norm[members] = 0.5 * next(logs)
        averages = self.averages[:, members]
        averages = averages + self._gains * (log_excess - averages)
        if any_first:
            averages = np.where(is_first, log_excess, averages)
            self.first_log_excess[members] = np.where(is_first, log_excess, self.first_log_excess[members])
            self.first_log_gradient_norm[members] = np.where(is_first, self.log_gradient_norm[members], self.first_log_gradient_norm[members])
        self.averages[:, members] = averages

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """The statistics of members ``(K,)``."""
        return {name: value[..., members] if name == "averages" else value[members] for name, value in self._arrays().items()}

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        for name, value in self._arrays().items():
            if name == "averages":
                value[:, members] = state[name]
            else:
                value[members] = state[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray) and name != "_gains"}
