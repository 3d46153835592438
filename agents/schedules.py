"""Learning-rate schedules as controllers: any scheduler of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from lr_env.checks import positive_integer
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, ReduceLROnPlateau


class Schedule:
    """A schedule of ``torch.optim.lr_scheduler`` as a controller, one scheduler per training.

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

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The schedule with the decision process it needs: it observes the loss (for ``ReduceLROnPlateau``) and sets the raw rate."""
        return BoundController(self, MDP(optimizer=optimizer, features=["log_loss"], action="rate"))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, float64; see :class:`lr_env.controllers.Controller`. The state holds schedulers and step counts."""
        observations = np.atleast_2d(observation)
        num_members = len(observations)
        starts = np.zeros(num_members, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(num_members)
        if state is None:
            schedulers, steps, starts = np.full(num_members, None, object), np.zeros(num_members, np.int64), np.ones(num_members, bool)
        else:
            schedulers, steps = state[0].copy(), state[1] + 1
        for i in range(num_members):
            if starts[i]:
                schedulers[i], steps[i] = self._new_scheduler(), 0
            elif steps[i] % self.steps_per_epoch == 0:
                if isinstance(schedulers[i], ReduceLROnPlateau):
                    schedulers[i].step(10.0 ** float(observations[i, 0]))
                else:
                    schedulers[i].step()
        rates = np.array([[scheduler.optimizer.param_groups[0]["lr"]] for scheduler in schedulers], np.float64)
        return (rates if np.ndim(observation) == 2 else rates[0]), (schedulers, steps)

    def _new_scheduler(self) -> LRScheduler:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.initial_rate)
        scheduler = self.make_scheduler(optimizer)
        optimizer.step()  # or the scheduler's first step warns about the order
        return scheduler


def constant(rate: float) -> Schedule:
    """The same rate throughout."""
    return Schedule(partial(LambdaLR, lr_lambda=_one), rate)


def cosine(rate: float, horizon: int) -> Schedule:
    """From ``rate`` to 0 over ``horizon`` SGD steps along half a cosine."""
    return Schedule(partial(CosineAnnealingLR, T_max=horizon), rate)


def step_decay(rate: float, horizon: int) -> Schedule:
    """``rate``, times 0.1 at one half and at three quarters of ``horizon`` SGD steps."""
    return Schedule(partial(MultiStepLR, milestones=[horizon // 2, horizon * 3 // 4], gamma=0.1), rate)


def _one(step: int) -> float:
    return 1.0
