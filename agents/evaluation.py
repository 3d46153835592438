"""Whole trainings under a controller, and the fixed ones on which the training command evaluates controllers and reports on the best."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from lr_env.controllers import BoundController, Controller
from lr_env.episodes import Episodes, Outcome
from lr_env.groups import EpisodeGroups
from lr_env.mdp import MDP
from lr_env.seeding import Role, role_seeds
from lr_env.tasks import TaskFamily
from lr_env.vector_env import LearningRateVectorEnv

if TYPE_CHECKING:
    from agents.training_options import TrainingOptions

REFERENCE_DECADES = 2.0
REFERENCE_POINTS = 9
"""The reference is the best constant rate of so many, evenly spaced, so far either side of the initial rate; chosen on other trainings."""

TUNING_TRAININGS = 24
"""So many for each of these rates, or one for each variant of a family where these are more."""

DIVERGENCE_PENALTY = 1.0
"""Decades above its initial loss that a diverged training scores."""


@dataclass(frozen=True)
class Scores:
    """What a controller achieved on N trainings.

    Attributes:
        values: log10 of the final loss above its bound on the training split, ``(N,)``, plus the reward's floor; one decade above the
            first loss for a diverged training.
        diverged: ``(N,)``.
    """

    values: np.ndarray
    diverged: np.ndarray

    @property
    def mean(self) -> float:
        """Of the values; lower is better."""
        return float(self.values.mean())


class EvaluationTrainings:
    """Fixed trainings, of seeds that are never trained on, with a reference: the best of a few constant rates.

    Args:
        family: What is trained on; N is a multiple of its variants.
        options: Of the training.
        mdp: The decision process that is trained in.
        arguments: Of the environment that is trained in, the horizon among them; the decision process's own play no part.
    """

    def __init__(self, family: TaskFamily, options: TrainingOptions, mdp: MDP, arguments: Mapping[str, Any]) -> None:
        self.family, self.options, self.arguments = family, options, arguments
        self.count = _multiple(options.evaluation_trainings, family.num_variants)
        reward = mdp.to_dict()["reward"]
        self.loss_floor = reward.get("loss_floor", 0.0) if isinstance(reward, dict) and reward.get("kind", "log_loss") == "log_loss" else 0.0
        action = {"kind": "residual", "base": "constant", "decades": REFERENCE_DECADES}
        simple: dict[str, Any] = {"features": ["progress"], "lr_groups": "global", "control_momentum": False, "steps_per_action": 1}
        self.reference_mdp = dataclasses.replace(mdp, action=action, initial_rate_decades=0.0, reward_on="final", **simple)
        self._environments: dict[str, LearningRateVectorEnv] = {}

    def run(self, bound: BoundController, role: Role = Role.EVALUATE) -> Scores:
        """Deterministic scores of a controller, on the trainings of a role."""
        key = repr(bound.mdp)
        if key not in self._environments:
            self._environments[key] = self._environment(bound.mdp, self.count)
        return _scores(self._environments[key], bound.controller, role_seeds(self.options.seed, role, self.count), self.loss_floor)

    def tune_reference(self) -> dict[str, Any]:
        """The best constant of the grid on other seeds, and its score on these: a JSON-ready mapping."""
        points, count = np.linspace(-1, 1, REFERENCE_POINTS), _multiple(min(TUNING_TRAININGS, self.count), self.family.num_variants)
        environment = self._environment(self.reference_mdp, count * REFERENCE_POINTS)  # all points side by side
        seeds = role_seeds(self.options.seed, Role.TUNE, count) * REFERENCE_POINTS
        scores = _scores(environment, ConstantAction(np.repeat(points, count)), seeds, self.loss_floor)
        environment.close()
        means = scores.values.reshape(REFERENCE_POINTS, count).mean(1)
        reference = {"action": float(points[means.argmin()])}
        result = self.run(self._reference(reference))
        grid = [[float(10 ** (REFERENCE_DECADES * point)), float(mean)] for point, mean in zip(points, means, strict=True)]
        return reference | {"factor": float(10 ** (REFERENCE_DECADES * reference["action"])), "score": result.mean, "tuning": grid}

    def compare(self, bound: BoundController, reference: Mapping[str, Any]) -> dict[str, Any]:
        """Scores of each of other trainings, by which nothing was chosen, under the controller and under the reference: a JSON-ready mapping."""
        scores, expected = (self.run(each, Role.REPORT) for each in (bound, self._reference(reference)))
        return {"controller": scores.values.tolist(), "reference": expected.values.tolist(), "diverged": scores.diverged.tolist()}

    def close(self) -> None:
        """Ends other processes."""
        for environment in self._environments.values():
            environment.close()

    def _environment(self, mdp: MDP, count: int) -> LearningRateVectorEnv:
        with interrupts_ignored():
            execution: dict[str, Any] = {"device": self.options.device, "num_processes": self.options.num_processes}
            return LearningRateVectorEnv(count, self.family, **(dict(self.arguments) | execution | mdp.to_dict()))

    def _reference(self, reference: Mapping[str, Any]) -> BoundController:
        return BoundController(ConstantAction(np.full(self.count, reference["action"])), self.reference_mdp)


class ConstantAction:
    """The same action throughout, for each of N trainings: ``actions (N,)``."""

    def __init__(self, actions: np.ndarray) -> None:
        self.actions = actions.astype(np.float32)[:, None]

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`."""
        return self.actions, state


def _scores(environment: LearningRateVectorEnv, controller: Controller, seeds: Sequence[int], loss_floor: float) -> Scores:
    """Runs a controller on one training per seed; trainings that have ended cost nothing more."""
    episodes, members = environment.episodes, np.arange(environment.num_envs)
    episodes.restart(members, seeds)
    outcome = episodes.begin(members)
    first = episodes.evaluate("train").losses - episodes.lower_bounds
    diverged = run_to_the_end(episodes, controller, outcome).diverged
    last = episodes.evaluate("train").losses - episodes.lower_bounds
    last = np.where(diverged | ~np.isfinite(last), first * 10**DIVERGENCE_PENALTY, last)
    return Scores(np.log10(np.maximum(last + loss_floor * first, 1e-38)), diverged)


@dataclass(frozen=True)
class Ends:
    """How N trainings went.

    Attributes:
        returns: Sums of their rewards, ``(N,)``.
        diverged: ``(N,)``.
        num_decisions: Made until they ended, ``(N,)``.
    """

    returns: np.ndarray
    diverged: np.ndarray
    num_decisions: np.ndarray


def run_to_the_end(
    episodes: Episodes | EpisodeGroups, controller: Controller, outcome: Outcome, progress: Callable[[int], object] | None = None
) -> Ends:
    """Lets a controller run trainings that have begun with this outcome until all have ended; ``progress`` is told the decisions made so far."""
    running, starts, state = np.ones(episodes.num_members, bool), np.ones(episodes.num_members, bool), None
    returns, diverged, num_decisions = np.zeros(len(running)), np.zeros(len(running), bool), np.zeros(len(running), np.int64)
    while running.any():
        actions, state = controller.predict(outcome.observations, state, starts, deterministic=True)
        outcome = episodes.step(episodes.parse_actions(actions), None if running.all() else np.flatnonzero(running))
        returns += np.where(running, outcome.rewards, 0.0)
        diverged |= running & outcome.diverged
        num_decisions += running
        running &= ~outcome.ended
        starts = np.zeros(len(running), bool)
        if progress is not None:
            progress(int(num_decisions.sum()))
    return Ends(returns, diverged, num_decisions)


def _multiple(number: int, of: int) -> int:
    """The smallest multiple that is not below ``number``."""
    return -(-number // of) * of


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes that begin here ignore Ctrl-C, which a terminal sends to all: the training must outlive it to be saved."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
