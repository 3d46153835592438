"""Learning-rate schedules as controllers: any scheduler of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from lr_env.checks import positive_integer
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.training import OptimizerSpecification
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

WARMUP_FRACTION = 0.05
"""Of the horizon, rounded up, but never all of it."""

DECAY_FRACTION = 0.2
"""Of the horizon: the last part of warm-up–stable–decay (Hägele et al. 2024, arXiv 2405.18392)."""

EXPONENTIAL_END = 0.01
"""Of the peak rate: where the exponential schedule would be at the horizon, which is as far down as ``step_decay`` goes."""

PLATEAU_FRACTION = 0.1
"""Of the horizon: how long a rate is kept without a new lowest loss."""


class Schedule:
    """A schedule of ``torch.optim.lr_scheduler`` as a controller: one scheduler for all trainings, or one each where it looks at their losses.

    Args:
        make_scheduler: Makes the scheduler of an optimizer, such as ``lambda optimizer: CosineAnnealingLR(optimizer, T_max=100)``.
        initial_rate: The optimizer's rate before the scheduler changes it, > 0.
        steps_per_epoch: SGD steps between calls of ``scheduler.step()``.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, make_scheduler: Callable[[Optimizer], LRScheduler], initial_rate: float, steps_per_epoch: int = 1) -> None:
        if not 0 < initial_rate < float("inf"):
            raise ValueError(f"initial_rate must be a finite number > 0, but {initial_rate!r} was given.")
        self.make_scheduler, self.initial_rate = make_scheduler, initial_rate
        self.steps_per_epoch = positive_integer("steps_per_epoch", steps_per_epoch)
        self._shared: LRScheduler | None = None

    def bind(self, optimizer: OptimizerSpecification = "sgd") -> BoundController:
        """The schedule with the decision process it needs: it observes the loss (for ``ReduceLROnPlateau``) and sets the raw rate."""
        return BoundController(self, MDP(optimizer=optimizer, features=["log_loss"], action="rate"))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, float64; see :class:`lr_env.controllers.Controller`. The state holds step counts, and schedulers that look at losses."""
        observations = np.atleast_2d(observation)
        num_members = len(observations)
        starts = np.zeros(num_members, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(num_members)
        if state is None:
            steps, starts = np.zeros(num_members, np.int64), np.ones(num_members, bool)
        else:
            steps = np.where(starts, 0, state[0] + 1)
        if self._shared is None:
            self._shared = self._new_scheduler()
            self._shared_rates = [_rate(self._shared)]
        if isinstance(self._shared, ReduceLROnPlateau):
            schedulers = np.full(num_members, None, object) if state is None else state[1].copy()
            state = steps, schedulers
            for i in range(num_members):
                if starts[i]:
                    schedulers[i] = self._new_scheduler()
                elif steps[i] % self.steps_per_epoch == 0:
                    schedulers[i].step(10.0 ** float(observations[i, 0]))
            chosen = [_rate(scheduler) for scheduler in schedulers]
        else:  # it looks at nothing: at the same step all have the same rate, and one scheduler serves them
            state, epochs = (steps,), steps // self.steps_per_epoch
            while len(self._shared_rates) <= epochs.max():
                self._shared.step()
                self._shared_rates.append(_rate(self._shared))
            chosen = [self._shared_rates[epoch] for epoch in epochs.tolist()]
        rates = np.array(chosen, np.float64)[:, None]
        return (rates if np.ndim(observation) == 2 else rates[0]), state

    def _new_scheduler(self) -> LRScheduler:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.initial_rate)
        scheduler = self.make_scheduler(optimizer)
        optimizer.step()  # or the scheduler's first step warns about the order
        return scheduler

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shared": None}  # torch's schedulers can't be pickled


def _rate(scheduler: LRScheduler) -> float:
    return float(scheduler.optimizer.param_groups[0]["lr"])


def constant(rate: float) -> Schedule:
    """The same rate throughout."""
    return Schedule(partial(LambdaLR, lr_lambda=_one), rate)


def cosine(rate: float, horizon: int) -> Schedule:
    """From ``rate`` to 0 over ``horizon`` SGD steps along half a cosine."""
    return Schedule(partial(CosineAnnealingLR, T_max=horizon), rate)


def step_decay(rate: float, horizon: int) -> Schedule:
    """``rate``, times 0.1 at one half and at three quarters of ``horizon`` SGD steps."""
    return Schedule(partial(MultiStepLR, milestones=[horizon // 2, horizon * 3 // 4], gamma=0.1), rate)


def linear(rate: float, horizon: int) -> Schedule:
    """From ``rate`` to 0 over ``horizon`` SGD steps along a line."""
    return Schedule(partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=horizon), rate)


def exponential(rate: float, horizon: int) -> Schedule:
    """From ``rate`` to a hundredth of it over ``horizon`` SGD steps, by the same factor each step."""
    return Schedule(partial(ExponentialLR, gamma=EXPONENTIAL_END ** (1 / horizon)), rate)


def warmup_cosine(rate: float, horizon: int) -> Schedule:
    """Up to ``rate`` along a line over the first 5 % of ``horizon`` SGD steps, then to 0 along half a cosine."""
    return Schedule(partial(_warmup_cosine, horizon=horizon), rate)


def warmup_stable_decay(rate: float, horizon: int) -> Schedule:
    """Up to ``rate`` along a line over the first 5 % of ``horizon`` SGD steps; it stays; to 0 along a line over the last 20 %."""
    return Schedule(partial(_warmup_stable_decay, horizon=horizon), rate)


def one_cycle(rate: float, horizon: int) -> Schedule:
    """``OneCycleLR`` over ``horizon`` SGD steps: from ``rate / 25`` up to ``rate`` at 30 %, then down to ``rate / 250,000``.

    The momentum is not cycled: it is the optimizer's own throughout. A single step is the end of the cycle. More steps than ``horizon``
    are torch's ValueError.
    """
    return Schedule(partial(OneCycleLR, max_lr=rate, total_steps=horizon, cycle_momentum=False), rate)


def reduce_on_plateau(rate: float, horizon: int) -> Schedule:
    """``ReduceLROnPlateau`` on the minibatch loss: times 0.1 after more than 10 % of ``horizon`` SGD steps without a new lowest loss."""
    return Schedule(partial(ReduceLROnPlateau, factor=0.1, patience=max(1, round(PLATEAU_FRACTION * horizon))), rate)


def _warmup_cosine(optimizer: Optimizer, horizon: int) -> LRScheduler:
    steps = _warmup_steps(horizon)
    return SequentialLR(optimizer, [_warmup(optimizer, steps), CosineAnnealingLR(optimizer, T_max=horizon - steps)], [steps])


def _warmup_stable_decay(optimizer: Optimizer, horizon: int) -> LRScheduler:
    steps, decay_steps = _warmup_steps(horizon), max(1, round(DECAY_FRACTION * horizon))
    parts = [_warmup(optimizer, steps), ConstantLR(optimizer, 1.0), LinearLR(optimizer, 1.0, 0.0, decay_steps)]
    return SequentialLR(optimizer, parts, [steps, horizon - decay_steps])


def _warmup_steps(horizon: int) -> int:
    return min(math.ceil(WARMUP_FRACTION * horizon), horizon - 1)


def _warmup(optimizer: Optimizer, steps: int) -> LRScheduler:
    """A line that is above 0 at the first step and at the peak after ``steps``."""
    return LinearLR(optimizer, 1 / (steps + 1), 1.0, steps)


def _one(step: int) -> float:
    return 1.0
