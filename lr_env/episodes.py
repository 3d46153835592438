"""Episodes of N trainings: a population under a decision process, with rewards and ends. Both environments wrap this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lr_env.checks import positive_integer
from lr_env.mdp import MDP
from lr_env.mdp.statistics import TINY
from lr_env.seeding import Streams
from lr_env.tasks import Task, TaskFamily, as_family, make_task
from lr_env.tasks.task import SplitName
from lr_env.training import Evaluation, Population, make_optimizer
from lr_env.training.gradients import Engine

SUBSET_SEED = 0
"""Seed of the reference and validation subsets: the same for all trainings of a task."""


@dataclass
class Outcome:
    """What one decision led to; arrays ``(N,)``."""

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    diverged: np.ndarray


class Episodes:
    """N trainings of one task, each an episode of the MDP.

    Args:
        task: A task, a family, or a registered name.
        num_members: N.
        mdp: The decision process.
        horizon: SGD steps of an episode; None for the task's default.
        gradients: Engine, see :class:`lr_env.training.Population`.
        dtype: ``"float32"`` or ``"float64"``.

    Raises:
        TypeError: If the task is none.
        ValueError: If a name is unknown or a number is out of range.
    """

    def __init__(
        self,
        task: str | Task | TaskFamily,
        num_members: int,
        mdp: MDP,
        horizon: int | None = None,
        gradients: Engine = "auto",
        dtype: str = "float32",
    ) -> None:
        if not isinstance(task, (str, Task, TaskFamily)):
            raise TypeError(
                f"task must be a registered name, a Task or a TaskFamily, but {type(task).__name__} was given. "
                "Task.from_tensors(name, model, inputs, targets) makes a Task of a module and its data."
            )
        self.family = as_family(make_task(task) if isinstance(task, str) else task)
        self.horizon = self.family.task.horizon if horizon is None else positive_integer("horizon", horizon)
        self.num_members = num_members
        self.lower_bound = self.family.task.loss_lower_bound
        optimizer, _ = make_optimizer(mdp.optimizer)
        num_groups = 1
        self.process = mdp.begin(num_members, num_groups, self.horizon, self.lower_bound)
        self.population = Population(self.family, num_members, optimizer, signals=self.process.needs, gradients=gradients, dtype=dtype)
        self.reward = self.process.reward
        self.seeds: list[int] = [0] * num_members
        self.episode = np.zeros(num_members, np.int64)
        self.first_excess = np.ones(num_members)
        self.potential = np.zeros(num_members)
        self.losses = np.zeros(num_members)
        self.applied_rates = np.zeros((num_members, num_groups))
        self._subset_split: SplitName = "validation" if self.reward.source == "validation" else "train"
        self._subset = self._draw_subset()

    def restart(self, members: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Gives members ``(K,)`` new trainings: the first of a seed, or where it is None the next of the member's own.

        Their first gradient is taken by :meth:`begin` or in the next :meth:`step`.
        """
        streams = []
        for member, seed in zip(members, seeds, strict=True):
            if seed is not None:
                self.seeds[member] = seed
            self.episode[member] = 0 if seed is not None else self.episode[member] + 1
            streams.append(Streams.of(self.seeds[member], int(self.episode[member])))
        self.population.restart(members, streams)
        self.process.restart(members, [stream.noise for stream in streams])
        self.applied_rates[members] = 10.0 ** self.process.statistics.log_rates[members]

    def begin(self, members: np.ndarray) -> None:
        """Takes the first gradient of restarted members ``(K,)``."""
        with np.errstate(all="ignore"):  # other members may have diverged
            self._compute(None if len(members) == self.num_members else members)
            self._begin_potential(members)

    def step(self, actions: np.ndarray, members: np.ndarray | None = None, restarting: np.ndarray | None = None) -> Outcome:
        """One decision: the chosen rate is applied to the gradient at hand, and for ``steps_per_action − 1`` steps more.

        Args:
            actions: Parsed actions ``(N, G)``.
            members: Members ``(K,)`` that act; None for all.
            restarting: Restarted members that take their first gradient in the same pass; they do not act.
        """
        with np.errstate(all="ignore"):  # a diverging training overflows; what is returned is bounded
            return self._step(actions, members, restarting)

    def observation(self) -> np.ndarray:
        """Observations ``(N, F)``, float32; a fresh array."""
        with np.errstate(all="ignore"):
            return self.process.observation()

    def _step(self, actions: np.ndarray, members: np.ndarray | None, restarting: np.ndarray | None) -> Outcome:
        rates = self.process.act(actions, members)
        self.applied_rates[_rows(members)] = rates[_rows(members)]
        outcome = Outcome(*(np.zeros(self.num_members, kind) for kind in (np.float64, bool, bool, bool)))
        for _ in range(self.process.mdp.steps_per_action):
            self._step_once(rates, members, restarting, outcome)
            restarting = None
            ended = outcome.terminated | outcome.truncated
            if ended.any():
                members = np.flatnonzero(~ended) if members is None else members[~ended[members]]
                if len(members) == 0:
                    return outcome
        if self.reward.source not in ("same_batch", "final"):
            self._pay(outcome, members)
        return outcome

    def _step_once(self, rates: np.ndarray, members: np.ndarray | None, restarting: np.ndarray | None, outcome: Outcome) -> None:
        """One SGD step of the acting members; marks those that ended, and pays them."""
        rows = _rows(members)
        self.population.update(rates, members)
        on_same_batch = (self.losses.copy(), self.population.current_batch_losses()) if self.reward.source == "same_batch" else None
        self.population.advance(members)
        computed = members if restarting is None or members is None else np.union1d(members, restarting)
        self._compute(None if computed is None or len(computed) == self.num_members else computed)
        if restarting is not None:
            self._begin_potential(restarting)
        diverged = self.reward.has_diverged(self.losses[rows], self.first_excess[rows], self.lower_bound)
        outcome.diverged[rows] = diverged
        if on_same_batch is not None:
            before, after = on_same_batch
            outcome.rewards[rows] += self._same_batch_rewards(before[rows], after[rows], diverged, rows)
        ended = diverged | (self.population.steps[rows] >= self.horizon)
        if ended.any():
            ends = np.flatnonzero(ended) if members is None else members[ended]
            # An end that the controller can see coming is a termination (Pardo et al. 2018), another one a truncation.
            outcome.terminated[ends] = outcome.diverged[ends] | self.process.observes_progress
            outcome.truncated[ends] = ~outcome.terminated[ends]
            if self.reward.source != "same_batch":
                self._pay(outcome, ends, at_end=True)

    def evaluate(self, split: SplitName) -> Evaluation:
        """Mean loss and metric of all members over a whole split, in evaluation mode."""
        return self.population.evaluate(split)

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Everything that determines the future of members ``(K,)``."""
        return {
            "population": self.population.get_state(members),
            "statistics": self.process.statistics.get_state(members),
            "seeds": [self.seeds[member] for member in members],
            **{name: getattr(self, name)[members] for name in ("episode", "first_excess", "potential", "losses", "applied_rates")},
        }

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        self.population.set_state(state["population"], members)
        self.process.statistics.set_state(state["statistics"], members)
        for member, seed in zip(members, state["seeds"], strict=True):
            self.seeds[member] = seed
        for name in ("episode", "first_excess", "potential", "losses", "applied_rates"):
            getattr(self, name)[members] = state[name]

    def _compute(self, members: np.ndarray | None) -> None:
        signals = self.population.compute_gradients(members)
        self.losses[_rows(members)] = signals.values[0, _rows(members)]
        self.process.observe(signals, members)

    def _begin_potential(self, members: np.ndarray) -> None:
        losses = self.losses if self.reward.source == "same_batch" else self._subset_losses()
        self.first_excess[members] = np.fmax(losses[members] - self.lower_bound, TINY)
        self.potential[members] = self.reward.potential(losses[members], self.first_excess[members], self.lower_bound)

    def _subset_losses(self) -> np.ndarray:
        return self.population.evaluate(self._subset_split, self._subset).losses

    def _same_batch_rewards(self, before: np.ndarray, after: np.ndarray, diverged: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        after = np.where(diverged, np.inf, after)  # the worst potential
        first_excess = self.first_excess[rows]
        reduction: np.ndarray = self.reward.potential(before, first_excess, self.lower_bound) - self.reward.potential(
            after, first_excess, self.lower_bound
        )
        return reduction

    def _pay(self, outcome: Outcome, members: np.ndarray | None, at_end: bool = False) -> None:
        """Pays members ``(K,)``, or all, the reduction of their potential since it was last taken."""
        diverged = outcome.diverged
        if (self.reward.source == "next_batch" and not at_end) or (at_end and diverged[members].all()):
            losses = self.losses
        else:
            if not at_end and self.reward.interval > 1:
                steps = self.population.steps[_rows(members)]
                is_due = steps // self.reward.interval > (steps - self.process.mdp.steps_per_action) // self.reward.interval
                members = np.arange(self.num_members)[_rows(members)][is_due]
                if len(members) == 0:
                    return
            losses = self._subset_losses()
        rows = _rows(members)
        losses = np.where(diverged[rows], np.inf, losses[rows]) if at_end else losses[rows]
        potential = self.reward.potential(losses, self.first_excess[rows], self.lower_bound)
        outcome.rewards[rows] = self.potential[rows] - potential
        self.potential[rows] = potential

    def _draw_subset(self) -> np.ndarray:
        size = len(self.family.task.data.split(self._subset_split))
        if self.reward.subset_size >= size:
            return np.arange(size)
        return np.sort(np.random.default_rng(SUBSET_SEED).choice(size, self.reward.subset_size, replace=False))


def _rows(members: np.ndarray | None) -> np.ndarray | slice:
    """An index of members ``(K,)``, or of all without a copy."""
    return slice(None) if members is None else members
