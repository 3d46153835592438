"""What a learned controller must beat: schedules and rules, each tuned on a grid, on other seeds than those reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from agents.rules import StochasticPolyak
from agents.schedules import Schedule, constant, cosine, step_decay
from benchmarks.runner import Result, Runner
from lr_env.controllers import BoundController, Controller, decide
from lr_env.mdp import MDP
from lr_env.tasks import Task, TaskFamily
from lr_env.training import make_optimizer

GRID_POINTS = 15
GRID_STEP = 1 / 3
"""Decades between neighbours."""

GRID_STARTS: Mapping[str, float] = {"sgd": -3.0, "momentum": -4.0, "adam": -5.0, "sps": -3.0}
"""log10 of the lowest point. Wide enough that a winner on the edge is rare; then the grid is extended."""


def grid(start: float) -> list[float]:
    """The 15 points from ``10**start`` upwards."""
    return [float(10 ** (start + GRID_STEP * i)) for i in range(GRID_POINTS)]


def schedule_shapes(horizon: int, optimizer: str = "sgd") -> dict[str, Callable[[float], BoundController]]:
    """The schedule shapes by name, each a function of its peak rate."""
    shapes: dict[str, Callable[[float], Schedule]] = {
        "constant": constant,
        "cosine": partial(cosine, horizon=horizon),
        "step": partial(step_decay, horizon=horizon),
    }
    return {name: partial(_bind_schedule, shape, optimizer) for name, shape in shapes.items()}


def polyak(value: float, optimizer: str = "sgd") -> BoundController:
    """SPS with this constant."""
    return StochasticPolyak(value).bind(optimizer)


@dataclass(frozen=True)
class Tuned:
    """The best point of a grid and the scores of all points, ``{point: mean score}``."""

    best: float
    scores: dict[float, float]


def extended_search(mean_score: Callable[[float], float], points: Iterable[float], lowest: float, highest: float) -> Tuned:
    """The point with the lowest mean score; while it lies on the edge, the grid grows, up to the range that all controllers share.

    Args:
        mean_score: Of one point.
        points: The grid, log-spaced.
        lowest: Lowest point allowed.
        highest: Highest point allowed.
    """
    scores = {point: mean_score(point) for point in points if lowest <= point <= highest}
    while True:
        ordered = sorted(scores)
        best = min(ordered, key=lambda point: scores[point])
        beyond = best * 10**GRID_STEP if best == ordered[-1] else best / 10**GRID_STEP if best == ordered[0] else None
        if beyond is None or not lowest * 0.999 <= beyond <= highest * 1.001:
            return Tuned(best, scores)
        scores[beyond] = mean_score(beyond)


def tune(tuning: RunnerCache, make: Callable[[float], BoundController], start: float, limits: tuple[float, float]) -> Tuned:
    """The best of the controllers ``make(point)`` over the grid from ``10**start``, extended up to ``limits``, on the tuning trainings."""
    return extended_search(lambda point: float(tuning.run(make(point)).scores.mean()), grid(start), *limits)


def rate_limits(optimizer: str) -> tuple[float, float]:
    """The range that schedules share with the controllers."""
    _, rates = make_optimizer(optimizer)
    return rates.lowest, rates.highest


class RandomController:
    """Uniform random actions in [−1, 1].

    Args:
        seed: Seed of the actions.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def predict(
        self, observation: np.ndarray, state: object = None, episode_start: object = None, deterministic: bool = False
    ) -> tuple[np.ndarray, object]:
        """Actions ``(N, 1)``; random even where ``deterministic``."""
        return self._generator.uniform(-1, 1, (len(observation), 1)).astype(np.float32), state


class SideBySide:
    """Controllers of one decision process, each for its own members of a population.

    Args:
        controllers: Of equal numbers of members, in their order.
    """

    def __init__(self, controllers: Sequence[Controller]) -> None:
        self.controllers = list(controllers)

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`; the state holds that of each."""
        count = len(self.controllers)
        states = [None] * count if state is None else state
        starts = [None] * count if episode_start is None else np.split(np.asarray(episode_start), count)
        made = [
            decide(controller, part, own, begins, deterministic)
            for controller, part, own, begins in zip(self.controllers, np.split(observation, count), states, starts, strict=True)
        ]
        return np.concatenate([np.asarray(actions) for actions, _ in made]), [own for _, own in made]


class RunnerCache:
    """Runners of one task and one set of seeds, one per decision process, so that graphs are built once.

    Args:
        task: As of :class:`benchmarks.runner.Runner`.
        seeds: One per training.
        **options: Of the runners.
    """

    def __init__(self, task: str | Task | TaskFamily, seeds: list[int], **options: Any) -> None:
        self.task, self.seeds, self.options = task, seeds, options
        self._runners: dict[str, Runner] = {}

    def run(self, bound: BoundController) -> Result:
        """Runs a controller on the trainings of all seeds."""
        key = repr(bound.mdp)
        if key not in self._runners:
            self._runners[key] = Runner(self.task, bound.mdp, self.seeds, **self.options)
        return self._runners[key].run(bound.controller)


def random_policy(mdp: MDP, seed: int) -> BoundController:
    """Random actions under this decision process."""
    controller: Controller = RandomController(seed)
    return BoundController(controller, mdp)


def _bind_schedule(shape: Callable[[float], Schedule], optimizer: str, rate: float) -> BoundController:
    return shape(rate).bind(optimizer)
