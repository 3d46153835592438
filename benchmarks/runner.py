"""Runs controllers on trainings of known seeds, so that all are compared on the same weights and the same data order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lr_env.controllers import BoundController, Controller
from lr_env.mdp import MDP
from lr_env.tasks import Task, TaskFamily
from lr_env.vector_env import LearningRateVectorEnv

DIVERGENCE_PENALTY = 1.0
"""Decades above its initial loss that a diverged training scores."""


@dataclass(frozen=True)
class Result:
    """What a controller achieved on N trainings.

    Attributes:
        scores: log10 of the loss of the final weights over the whole training split, ``(N,)``; of a diverged training, its initial log10
            loss + 1.
        diverged: ``(N,)``.
        test_losses: Loss over the test split, ``(N,)``.
        test_metrics: The task's metric over the test split, ``(N,)``, or None.
        losses: Minibatch losses before each SGD decision and after the last, ``(T + 1, N)``; after a divergence, not a number.
        rates: Rates applied, ``(T, N)``; after a divergence, not a number.
    """

    scores: np.ndarray
    diverged: np.ndarray
    test_losses: np.ndarray
    test_metrics: np.ndarray | None
    losses: np.ndarray
    rates: np.ndarray


class Runner:
    """Trainings of one task under one decision process, run by one controller after another.

    Args:
        task: A registered name, a task or a family.
        mdp: The decision process; controllers with the same one share a runner, which builds its graphs once.
        seeds: One per training.
        horizon: SGD steps; None for the task's default.
    """

    def __init__(self, task: str | Task | TaskFamily, mdp: MDP, seeds: Sequence[int], horizon: int | None = None) -> None:
        self.mdp, self.seeds = mdp, list(seeds)
        self._environment = LearningRateVectorEnv(len(self.seeds), task, horizon, **mdp.to_dict())

    def run(self, controller: Controller) -> Result:
        """Trains all members under this controller, deterministically."""
        environment, num_members = self._environment, len(self.seeds)
        observations, info = environment.reset(seed=self.seeds)
        initial = np.log10(environment.evaluate("train").losses - environment.episodes.lower_bounds)
        losses, rates, state = [info["loss"]], [], None
        running, diverged, starts = np.ones(num_members, bool), np.zeros(num_members, bool), np.ones(num_members, bool)
        ended = np.zeros(num_members, bool)
        while running.any():
            actions, state = controller.predict(observations, state, starts, deterministic=True)
            observations, _, terminated, truncated, info = environment.step(actions)
            losses.append(np.where(running, info["loss"], np.nan))
            rates.append(np.where(running, info["learning_rate"], np.nan))
            diverged |= running & info["diverged"]
            running &= ~(terminated | truncated)
            # A diverged member is reset in the next step; what it does from then on is not recorded.
            starts, ended = ended, terminated | truncated
        final, test = environment.evaluate("train"), environment.evaluate("test")
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = np.log10(np.maximum(final.losses - environment.episodes.lower_bounds, 1e-38))
        scores = np.where(diverged, initial + DIVERGENCE_PENALTY, scores)
        return Result(scores, diverged, test.losses, test.metrics, np.array(losses), np.array(rates))


def run(bound: BoundController, task: str | Task | TaskFamily, seeds: Sequence[int], horizon: int | None = None) -> Result:
    """Runs one controller on one training per seed; see :class:`Runner`."""
    return Runner(task, bound.mdp, seeds, horizon).run(bound.controller)


def compare(
    controllers: dict[str, BoundController], task: str | Task | TaskFamily, seeds: Sequence[int], horizon: int | None = None
) -> dict[str, Result]:
    """Runs several controllers on the same trainings: same weights, same data order."""
    return {name: run(bound, task, seeds, horizon) for name, bound in controllers.items()}
