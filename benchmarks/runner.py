"""Runs controllers on trainings of known seeds, so that all are compared on the same weights and the same data order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.actor_critic import knows_same_state, same_states
from lr_env.controllers import BoundController, Controller, OnlineController, decide
from lr_env.episodes import Episodes, Execution, Outcome
from lr_env.groups import make_episodes
from lr_env.mdp import MDP
from lr_env.seeding import Streams
from lr_env.tasks import Task, TaskFamily, as_family, make_task
from lr_env.tasks.task import ACCURACY
from lr_env.training import Evaluation

DIVERGENCE_PENALTY = 1.0
"""Decades above its initial loss that a diverged training scores."""


@dataclass(frozen=True)
class Result:
    """What a controller achieved on N trainings.

    Attributes:
        scores: log10 of the loss of the final weights over the training split, above its bound, ``(N,)``; of a diverged training, its
            initial log10 loss + 1.
        diverged: ``(N,)``.
        test_losses: Loss over the test split, ``(N,)``; not a number where it was not evaluated.
        test_metrics: The task's metric over the test split, ``(N,)``, or None.
        losses: Minibatch losses before each decision and after the last, ``(T + 1, N)``; after a divergence, not a number.
        rates: Rates applied, ``(T, N)``; after a divergence, not a number.
        extra_forward_passes: Of a controller that looks at more than observations, see :class:`agents.rules.AttachedRule`, ``(N,)``; else None.
        steps_per_action: SGD steps of a decision, but for the last one.
    """

    scores: np.ndarray
    diverged: np.ndarray
    test_losses: np.ndarray
    test_metrics: np.ndarray | None
    losses: np.ndarray
    rates: np.ndarray
    extra_forward_passes: np.ndarray | None = None
    steps_per_action: int = 1


@dataclass(frozen=True)
class _InstanceStreams(Streams):
    """A seed's streams, but for the draws of the family, which are another seed's."""

    instance: int = 0

    @property
    def family(self) -> np.random.SeedSequence:
        return Streams(self.instance).family


class Runner:
    """Trainings of one task under one decision process, run by one controller after another.

    Args:
        task: A registered name, a task or a family.
        mdp: The decision process; controllers with the same one share a runner, which builds its graphs once.
        seeds: One per training.
        horizon: SGD steps; None for the task's default.
        num_examples: Examples of each split that losses and metrics are taken over, the same for all trainings; None for whole splits.
        tests: Whether the test split is evaluated.
        execution: How trainings are computed; None for the defaults.
        instances: Seeds whose draws of the family the trainings have, one per training, of a task of one variant; None for their own.

    Raises:
        ValueError: If there are ``instances`` and several variants.
    """

    def __init__(
        self,
        task: str | Task | TaskFamily,
        mdp: MDP,
        seeds: Sequence[int],
        horizon: int | None = None,
        num_examples: int | None = None,
        tests: bool = True,
        execution: Execution | None = None,
        instances: Sequence[int] | None = None,
    ) -> None:
        self.mdp, self.seeds, self.num_examples, self.tests = mdp, list(seeds), num_examples, tests
        self._episodes = make_episodes(task, len(self.seeds), mdp, horizon, execution)
        self._streams: list[Streams] | None = None
        if instances is not None:
            if not isinstance(self._episodes, Episodes):
                raise ValueError("instances need a task of one variant, but one of several was given: choose a variant.")
            self._streams = [_InstanceStreams(seed, instance=instance) for seed, instance in zip(self.seeds, instances, strict=True)]
        self._initial_scores: np.ndarray | None = None

    def run(self, controller: Controller) -> Result:
        """Trains all members under this controller, deterministically; one that learns online explores. What has ended stays as it is."""
        episodes, members = self._episodes, np.arange(len(self.seeds))
        outcome = self._begin()
        if (attach := getattr(controller, "attach", None)) is not None:  # see :class:`agents.rules.AttachedRule`
            attach(episodes)
        learner = controller if isinstance(controller, OnlineController) else None
        knows_same = learner is not None and knows_same_state(self.mdp)
        if learner is not None:
            learner.begin(self.seeds, self.mdp)
        losses, rates, state = [outcome.losses], [], None
        running, diverged, starts = np.ones(len(members), bool), np.zeros(len(members), bool), np.ones(len(members), bool)
        while running.any():
            actions, state = decide(controller, outcome.observations, state, starts, deterministic=learner is None)
            outcome = episodes.step(episodes.parse_actions(actions), None if running.all() else np.flatnonzero(running))
            if learner is not None:
                same = same_states(losses[-1], outcome.rewards) if knows_same else None
                learner.observe(outcome.rewards, outcome.observations, same, outcome.ended | ~running)
            losses.append(np.where(running, outcome.losses, np.nan))
            rates.append(np.where(running, outcome.rates[:, 0], np.nan))
            diverged |= running & outcome.diverged
            running &= ~outcome.ended
            starts = np.zeros(len(members), bool)
        final = episodes.evaluate("train", self.num_examples)
        diverged |= ~np.isfinite(final.losses)
        test = episodes.evaluate("test", self.num_examples) if self.tests else Evaluation(np.full(len(members), np.nan), None)
        passes = getattr(controller, "extra_forward_passes", None)
        scores = self._scores(final)
        if diverged.any():
            scores[diverged] = self._initial()[diverged] + DIVERGENCE_PENALTY
        return Result(scores, diverged, test.losses, test.metrics, np.array(losses), np.array(rates), passes, self.mdp.steps_per_action)

    def _begin(self) -> Outcome:
        """All trainings at their start."""
        episodes, members = self._episodes, np.arange(len(self.seeds))
        episodes.restart(members, self.seeds)
        if self._streams is not None:
            assert isinstance(episodes, Episodes)
            episodes.population.restart(members, self._streams)
        return episodes.begin(members)

    def _initial(self) -> np.ndarray:
        """Scores of the initial weights, which all controllers start from; takes the trainings back to their start."""
        if self._initial_scores is None:
            self._begin()
            self._initial_scores = self._scores(self._episodes.evaluate("train", self.num_examples))
        return self._initial_scores

    def _scores(self, evaluation: Evaluation) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            scores: np.ndarray = np.log10(np.maximum(evaluation.losses - self._episodes.lower_bounds, 1e-38))
        return scores


def run(bound: BoundController, task: str | Task | TaskFamily, seeds: Sequence[int], horizon: int | None = None) -> Result:
    """Runs one controller on one training per seed; see :class:`Runner`."""
    return Runner(task, bound.mdp, seeds, horizon).run(bound.controller)


def compare(
    controllers: dict[str, BoundController], task: str | Task | TaskFamily, seeds: Sequence[int], horizon: int | None = None
) -> dict[str, Result]:
    """Runs several controllers on the same trainings: same weights, same data order.

    Raises:
        TypeError: If a controller has no decision process.
    """
    for name, bound in controllers.items():
        if not isinstance(bound, BoundController):
            raise TypeError(
                f"Controllers need their decision process, but {bound!r} was given for {name!r}: bind it, BoundController(controller, mdp)."
            )
    return {name: run(bound, task, seeds, horizon) for name, bound in controllers.items()}


def require_accuracy(name: str) -> None:
    """Finds before the work that a benchmark which speaks of classes has a task without any.

    Raises:
        ValueError: If the metric of the task is another than accuracy.
    """
    metric = as_family(make_task(name)).variants[0].metric
    if metric is not ACCURACY:
        raise ValueError(f"task must be one whose metric is accuracy, but that of {name!r} is {metric.name if metric else 'none'}: name another one.")
