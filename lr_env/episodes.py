"""Episodes of N trainings: a population under a decision process, with rewards and ends. Both environments wrap this."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from lr_env.checks import positive_integer
from lr_env.decision_kernel import DecisionKernel
from lr_env.isolation import computing, isolated
from lr_env.mdp import MDP
from lr_env.mdp.arrays import Array, Record, namespace
from lr_env.mdp.recording import Recorder
from lr_env.seeding import Streams
from lr_env.tasks import FamilySpecification, Task, TaskFamily, as_family, make_task
from lr_env.tasks.task import SplitName
from lr_env.training import Evaluation, Population, TorchOptimizer, draw_subset, make_optimizer
from lr_env.training.gradients import Engine
from lr_env.training.population import State

NUM_REPORTED = 4
"""Rows at the end of a process's table that a step reports: loss, reward, diverged, rates."""


@dataclass(frozen=True)
class Execution:
    """How trainings are computed; what they are does not depend on it, but for rounding.

    Attributes:
        gradients: Engine, see :class:`lr_env.training.Population`.
        dtype: ``"float32"`` or ``"float64"``.
        compile: See :class:`lr_env.training.Population`.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        num_threads: PyTorch's threads while a step is computed; the process has its own number before and after.
    """

    gradients: Engine = "auto"
    dtype: str = "float32"
    compile: bool = False
    device: str = "cpu"
    num_threads: int = 1

    def __post_init__(self) -> None:
        positive_integer("num_threads", self.num_threads)
        if not isinstance(self.compile, bool):
            raise TypeError(f"compile must be True or False, but {self.compile!r} was given.")


@dataclass
class Outcome:
    """What one decision led to, or a beginning; of N members, fresh arrays.

    Attributes:
        observations: ``(N, F)``, float32.
        rewards: ``(N,)``.
        terminated: ``(N,)``.
        truncated: ``(N,)``.
        diverged: ``(N,)``.
        losses: Minibatch losses at the observation, ``(N,)``.
        rates: Rates last applied, ``(N, G)``.
        steps: SGD steps made, ``(N,)``.
        rolled_back: Whose step the circuit breaker has undone, ``(N,)``.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    diverged: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    steps: np.ndarray
    rolled_back: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        """``(N,)``."""
        ended: np.ndarray = self.terminated | self.truncated
        return ended

    def copy(self) -> Outcome:
        """The same in fresh arrays."""
        return Outcome(**{field.name: getattr(self, field.name).copy() for field in fields(self)})

    def without_events(self) -> Outcome:
        """Where all members are, with nothing having happened to them."""
        nothing = {name: np.zeros_like(getattr(self, name)) for name in ("rewards", "terminated", "truncated", "diverged", "rolled_back")}
        return replace(self, **nothing)

    def write(self, members: np.ndarray, other: Outcome) -> None:
        """Takes over the outcome of members ``(K,)``."""
        for field in fields(self):
            getattr(self, field.name)[members] = getattr(other, field.name)


class _Pass(NamedTuple):  # is made faster than a dataclass, once a step
    """What one pass is to do.

    Attributes:
        actions: ``(N, A)``.
        deciding: Whose action is taken, booleans ``(N,)``, or None for all; the others keep their rates.
        running: Who takes a step, booleans ``(N,)``, or None for all; the others get their first gradient.
        begins: Whether the gradient may be somebody's first.
        inputs: The batches of the gradients at hand, ``(N, B, …)``, where they are rewarded.
        targets: The same.
    """

    actions: np.ndarray
    deciding: np.ndarray | None
    running: np.ndarray | None
    begins: bool
    inputs: Tensor | None = None
    targets: Tensor | None = None


class SafeStates:
    """What the circuit breaker goes back to.

    Args:
        state: Of the population.
        table: Of the process.

    Attributes:
        levels: E and D of :class:`lr_env.mdp.CircuitBreaker`, ``(2, N)``.
    """

    def __init__(self, state: State, table: Array) -> None:
        self.levels = np.zeros((2, table.shape[-1]))
        self._state, self._table = {name: value.clone() for name, value in state.items()}, copy.deepcopy(table)

    def keep(self, members: np.ndarray, state: State, table: Array) -> None:
        """Takes the present state and columns of members ``(K,)`` for safe."""
        _copy(members, state, self._state)
        self._table[..., members] = table[..., members]

    def restore(self, members: np.ndarray, state: State, table: Array) -> None:
        """Puts members ``(K,)`` back to their safe states, in place."""
        _copy(members, self._state, state)
        table[..., members] = self._table[..., members]

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Everything that is kept of members ``(K,)``."""
        rows = torch.from_numpy(members)
        tensors = {name: value[rows] for name, value in self._state.items()}
        return {"levels": self.levels[:, members], "tensors": tensors, "table": self._table[..., members]}

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        self.levels[:, members] = state["levels"]
        rows = torch.from_numpy(members)
        for name, value in self._state.items():
            value[rows] = state["tensors"][name]
        self._table[..., members] = state["table"]


def _copy(members: np.ndarray, source: State, target: State) -> None:
    rows = torch.from_numpy(members)
    for name, value in target.items():
        value[rows] = source[name][rows]


class Episodes:
    """N trainings of one task, each an episode of the MDP.

    Args:
        task: A task, a registered name, or a family of one variant.
        num_members: N.
        mdp: The decision process.
        horizon: SGD steps of an episode; None for the task's default.
        execution: How trainings are computed.

    Raises:
        TypeError: If the task is none.
        ValueError: If a name is unknown or a number is out of range.
    """

    @isolated()
    def __init__(
        self,
        task: str | Mapping[str, Any] | Task | TaskFamily,
        num_members: int,
        mdp: MDP,
        horizon: int | None = None,
        execution: Execution = Execution(),
    ) -> None:
        self.family = find_family(task)
        variant = self.family.variants[0]
        self.horizon = variant.horizon if horizon is None else positive_integer("horizon", horizon)
        self.num_members = num_members
        self.lower_bounds, self.horizons = np.full(num_members, variant.loss_lower_bound), np.full(num_members, self.horizon)
        self.num_threads = execution.num_threads
        if self.family.optimizers[0] is not None:
            mdp = replace(mdp, optimizer=self.family.optimizers[0])
        if self.family.initial_rate_decades:
            mdp = replace(mdp, initial_rate_decades=self.family.initial_rate_decades)
        optimizer, _ = make_optimizer(mdp.optimizer)
        needs = mdp.begin(1, self.horizon, variant.loss_lower_bound).needs
        self.population = Population(
            self.family,
            num_members,
            optimizer,
            signals=needs,
            lr_groups=mdp.lr_groups,
            controls_momentum=mdp.control_momentum,
            gradients=execution.gradients,
            dtype=execution.dtype,
            compile=execution.compile,
            device=execution.device,
        )
        # On a GPU a decision is one graph; else the process is faster on NumPy's arrays.
        self._device_type = self.population.device.type
        self._is_fused = self._device_type != "cpu"
        device = self.population.device if self._is_fused else None
        self.process = mdp.begin(len(self.population.groups), self.horizon, variant.loss_lower_bound, device)
        self.seeds: list[int] = [0] * num_members
        self.episode = np.zeros(num_members, np.int64)
        self._steps_until_end = 0  # a lower bound over all members, so that most steps need no look at each
        self.table = self.process.initial(num_members)
        self._recorded = Recorder(self.table, execution.compile)
        self._graph: Any = None
        self._kernel: DecisionKernel | None = None
        self._safe = SafeStates(self.population.state, self.table) if self.process.circuit_breaker else None
        if self._safe is not None and isinstance(optimizer, TorchOptimizer):
            raise ValueError("The circuit breaker can't put back an optimizer that is made by a function: use an optimizer by name.")
        # Where nothing but the process happens between a step and the next one.
        self._may_have_kernel = execution.compile and not self._is_fused and self._safe is None and self.process.reward.source != "same_batch"
        self._subset_split: SplitName = "validation" if self.process.reward.source == "validation" else "train"
        self._subset = draw_subset(variant, self._subset_split, self.process.reward.subset_size)

    @property
    def mdp(self) -> MDP:
        """The decision process, as saved with a controller."""
        return self.process.mdp

    @property
    def losses(self) -> np.ndarray:
        """Minibatch losses at the last observation, ``(N,)``."""
        losses: np.ndarray = _to_numpy(self.table[-NUM_REPORTED, 0]).copy()
        return losses

    @property
    def parameter_groups(self) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters of each group, ``(G,)``."""
        return self.population.groups.names

    @property
    def variants(self) -> np.ndarray:
        """The members' variants, ``(N,)``: all the same here."""
        return np.zeros(self.num_members, np.int64)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one member."""
        return self.process.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one member."""
        return self.process.action_space

    def parse_actions(self, actions: Any) -> np.ndarray:
        """See :meth:`lr_env.mdp.DecisionProcess.parse_actions`."""
        return self.process.parse_actions(actions, self.num_members)

    def close(self) -> None:
        """Nothing to be freed."""

    def restart(self, members: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Gives members ``(K,)`` new trainings: the first of a seed, or where it is None the next of the member's own.

        Their first gradient is taken by :meth:`begin` or in the next :meth:`step`.
        """
        streams = []
        for member, seed in zip(members.tolist(), seeds, strict=True):
            if seed is not None:
                self.seeds[member] = seed
            self.episode[member] = 0 if seed is not None else self.episode[member] + 1
            streams.append(Streams(self.seeds[member], int(self.episode[member])))
        with self._settings():
            self.population.restart(members, streams)
        noise = [stream.noise for stream in streams] if self.mdp.initial_rate_decades else None
        self.table[..., members] = self.process.initial(len(members), noise)

    def begin(self, members: np.ndarray) -> Outcome:
        """Takes the first gradient of restarted members ``(K,)``."""
        nobody = np.zeros(self.num_members, bool)
        with self._settings():
            nothing = np.zeros((self.num_members, self.process.num_actions))
            outcome = self._compute(_Pass(nothing, nobody, nobody, True, *self._batches_to_reward()), members)
            self._begin_potential(members)
        return outcome

    def step(self, actions: np.ndarray, members: np.ndarray | None = None, restarting: np.ndarray | None = None) -> Outcome:
        """One decision: the chosen rate is applied to the gradient at hand, and for ``steps_per_action − 1`` steps more.

        Args:
            actions: Parsed actions ``(N, A)``.
            members: Members ``(K,)`` that act; None for all.
            restarting: Restarted members that take their first gradient in the same pass; they do not act.
        """
        with self._settings():
            running = None if members is None else _mask(members, self.num_members)
            outcome, made = self._take_steps(actions, running, running, restarting, self.mdp.steps_per_action)
            if made < self.mdp.steps_per_action:
                self._hold(actions, running, outcome, made)
            if self.process.reward.source in ("reference", "validation"):
                self._pay_due(outcome, ~outcome.ended if running is None else running & ~outcome.ended)
        return outcome

    def evaluate(self, split: SplitName, num_examples: int | None = None) -> Evaluation:
        """Mean loss and metric of all members over a whole split, or over so many fixed examples of it, in evaluation mode."""
        subset = None if num_examples is None else draw_subset(self.family.variants[0], split, num_examples)
        with self._settings():
            return self.population.evaluate(split, subset)

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Everything that determines the future of members ``(K,)``."""
        return {
            "kind": self._kind_of_state(),
            "population": self.population.get_state(members),
            "table": _to_numpy(self.table[..., members]),
            "seeds": [self.seeds[member] for member in members],
            "episode": self.episode[members],
            "safe": None if self._safe is None else self._safe.get_state(members),
        }

    @isolated()
    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``.

        Raises:
            ValueError: If it is of other trainings. Nothing is changed.
        """
        for name, needed in self._kind_of_state().items():
            given = state["kind"][name]
            if given != needed:
                if isinstance(needed, dict):
                    given, needed = dict(given.items() - needed.items()), dict(needed.items() - given.items())
                raise ValueError(f"The state does not fit: {name} {given} was given, but {needed} is needed. Make both with the same arguments.")
        self.population.set_state(state["population"], members)
        self.table[..., members] = self._to_table(state["table"])
        for member, seed in zip(members, state["seeds"], strict=True):
            self.seeds[member] = seed
        self.episode[members] = state["episode"]
        self._steps_until_end = 0
        if self._safe is not None:
            self._safe.set_state(state["safe"], members)

    def _kind_of_state(self) -> dict[str, Any]:
        """What a state must agree in."""
        tensors = {name: f"{value.dtype} {tuple(value.shape[1:])}" for name, value in self.population.state.items()}
        return {"horizon": self.horizon, "circuit breaker": self._safe is not None, "tensors": tensors, "statistics": dict(self.process.sizes)}

    def _settings(self) -> AbstractContextManager[None]:
        """PyTorch's settings while we compute; the process has its own before and after."""
        return computing(self._device_type, self.num_threads)

    def _hold(self, actions: np.ndarray, running: np.ndarray | None, outcome: Outcome, made: int) -> None:
        """The rest of a decision's steps, of which some are made, at the same rate; adds to its outcome."""
        nobody = np.zeros(self.num_members, bool)
        while made < self.mdp.steps_per_action:
            running = ~outcome.ended if running is None else running & ~outcome.ended
            if not running.any():
                return
            latest, more = self._take_steps(actions, nobody, None if running.all() else running, None, self.mdp.steps_per_action - made)
            made += more
            outcome.rewards += latest.rewards
            for name in ("terminated", "truncated", "diverged", "rolled_back"):
                setattr(outcome, name, getattr(outcome, name) | getattr(latest, name))
            for name in ("observations", "losses", "rates", "steps"):
                setattr(outcome, name, getattr(latest, name))

    def _take_steps(
        self, actions: np.ndarray, deciding: np.ndarray | None, running: np.ndarray | None, restarting: np.ndarray | None, most: int
    ) -> tuple[Outcome, int]:
        """SGD steps of those running, or all: one, or up to ``most`` where they can be made at once; pays and marks those that end."""
        kernel, made = self._decision_kernel() if running is None and restarting is None else None, 1
        if kernel is not None:
            self.population.move_on()
            made = kernel(
                actions.T if deciding is None else None, min(most, 1 + self.population.batches.num_following, max(1, self._steps_until_end))
            )
            if made > 1:
                self.population.move_on(count=made - 1)
            observations, reported = kernel.results
            outcome = self._outcome(observations.copy(), reported.copy())
        else:
            outcome = self._step_once(actions, deciding, running, restarting)
        self._steps_until_end -= made
        if self._steps_until_end <= 0 or outcome.diverged.any():
            self._end(outcome, running)
        return outcome, made

    def _step_once(self, actions: np.ndarray, deciding: np.ndarray | None, running: np.ndarray | None, restarting: np.ndarray | None) -> Outcome:
        """One SGD step of those running, or all; ends are not looked at."""
        members = computed = None if running is None else np.flatnonzero(running)
        if computed is not None and restarting is not None:
            computed = np.union1d(computed, restarting)
        work = _Pass(actions, deciding, running, restarting is not None, *self._batches_to_reward())
        self.population.move_on(members)
        outcome = self._compute(work, computed)
        if restarting is not None:
            self._begin_potential(restarting)
        if self._safe is not None:
            self._roll_back(self._safe, outcome, np.ones(self.num_members, bool) if running is None else running)
        return outcome

    def _decision_kernel(self) -> DecisionKernel | None:
        """What makes whole decisions at once; None where they can't be, or their parts are not at hand before the first decision."""
        if self._kernel is None and self._may_have_kernel and self.population.kernel_sources is not None:
            choose, learn = (self._recorded.find(function, self.table, None, None) for function in (self._choose_in, self._learn_in))
            if choose is not None and learn is not None and choose.kernel is not None and learn.kernel is not None:
                self._kernel = DecisionKernel(choose, learn, self.process.record(self.table), self.population)
        return self._kernel

    def _end(self, outcome: Outcome, running: np.ndarray | None) -> None:
        """Marks and pays those whose training ended with this step."""
        self._steps_until_end = self.horizon - int(outcome.steps.max())
        ended = outcome.steps >= self.horizon
        if running is not None:
            ended &= running
        ended |= outcome.diverged
        if ended.any():
            # An end that the controller can see coming is a termination (Pardo et al. 2018), another one a truncation.
            outcome.terminated = outcome.diverged | (ended & self.process.observes_progress)
            outcome.truncated = ended & ~outcome.terminated
            survived = ended & ~outcome.diverged
            if self.process.reward.source != "same_batch" and survived.any():
                self._pay(outcome, survived)

    def _batches_to_reward(self) -> tuple[Tensor, Tensor] | tuple[()]:
        """The batches of the gradients at hand, where they are rewarded."""
        return self.population.batches.current() if self.process.reward.source == "same_batch" else ()

    def _compute(self, work: _Pass, computed: np.ndarray | None) -> Outcome:
        """One pass; only members ``computed (K,)``, or all, are changed by it."""
        make_pass = self._pass_fused if self._is_fused else self._pass
        if computed is None or len(computed) == self.num_members:
            observations, reported = make_pass(work)
        else:
            others = ~_mask(computed, self.num_members)
            kept = self._to_table(others)
            before = self.table[..., kept]
            with self.population.others_kept(computed):
                make_pass(work)
            self.table[..., kept] = before
            observations = _to_numpy(self.process.observation(self.table))
            reported = _to_numpy(self.table[-NUM_REPORTED:]).copy()
            reported[1:3, :, others] = 0  # the others' last reward and divergence
        return self._outcome(observations, reported)

    def _outcome(self, observations: np.ndarray, reported: np.ndarray) -> Outcome:
        """Of all members: their observations ``(N, F)`` and the reported rows ``(4, G, N)``, fresh arrays."""
        losses, rewards, diverged = reported[:3, 0]
        terminated, truncated, rolled_back = np.zeros((3, self.num_members), bool)
        return Outcome(observations, rewards, terminated, truncated, diverged > 0, losses, reported[3].T, self.population.steps.copy(), rolled_back)

    def _pass(self, work: _Pass) -> tuple[np.ndarray, np.ndarray]:
        """The process on NumPy's arrays around the population's graph; observations ``(N, F)`` and the reported rows ``(4, G, N)``."""
        population = self.population
        with np.errstate(all="ignore"):  # a diverging training overflows; what is returned is bounded
            rates, momenta = self._recorded(self._choose_in, work.actions.T, work.deciding, work.running)
            signals, after = population.train(rates, momenta), None
            if work.inputs is not None and work.targets is not None:
                after = population.losses_on(work.inputs, work.targets)
            learn = self._begin_in if work.begins else self._learn_in
            observations, reported = self._recorded(learn, signals, work.running, after)
            return observations.copy(), reported.copy()

    def _choose_in(self, table: Array, *arguments: Array) -> tuple[Array, Array | None]:
        """:meth:`_choose` for a table."""
        return self._choose(self.process.record(table), *arguments)

    def _learn_in(self, table: Array, signals: Array, running: Array | None, losses_after: Array | None, begins: bool = False) -> tuple[Array, Array]:
        """:meth:`_learn` in a table; returns observations ``(N, F)`` and the reported rows ``(4, G, N)``."""
        self._learn(self.process.record(table), signals, running, losses_after, begins)
        return self.process.observation(table), table[-NUM_REPORTED:]

    def _begin_in(self, table: Array, signals: Array, running: Array | None, losses_after: Array | None) -> tuple[Array, Array]:
        """The same where the gradient may be somebody's first."""
        return self._learn_in(table, signals, running, losses_after, begins=True)

    def _pass_fused(self, work: _Pass) -> tuple[np.ndarray, np.ndarray]:
        """The same with process and population in one graph, which holds for first steps too; one transfer to the device and one back."""
        population = self.population
        controls = np.ones((self.process.num_actions + 3, self.num_members))  # actions, who decides, who runs, steps made
        controls[:-3] = work.actions.T
        for row, mask in ((-3, work.deciding), (-2, work.running)):
            if mask is not None:
                controls[row] = mask
        controls[-1] = population.steps
        moving = self._to_table(controls), work.inputs, work.targets
        inputs, targets, indices, *others = population.batch()
        arguments = (population.state, self.table, *moving, indices, inputs, targets, *others)
        if self._graph is None:
            self._graph = population.fused(self._decide_fused, arguments)
        population.state, self.table, seen = self._graph(*arguments)
        values, num_seen = _to_numpy(seen), self.num_members * len(self.process.features) * self.process.num_groups
        observations = values[:num_seen].reshape(self.num_members, -1).astype(np.float32)
        return observations, values[num_seen:].reshape(NUM_REPORTED, -1, self.num_members)

    def _decide_fused(
        self,
        state: State,
        table: Tensor,
        controls: Tensor,
        rewarded_inputs: Tensor | None,
        rewarded_targets: Tensor | None,
        indices: Tensor,
        inputs: Tensor,
        targets: Tensor,
        *others: Tensor | None,
    ) -> tuple[State, Tensor, Tensor]:
        """The next state and table, and what :meth:`_seen` gives."""
        actions, deciding, running, steps = _unpacked(controls)
        table, losses_after = table.clone(), None
        record = self.process.record(table)
        rates, momenta = self._choose(record, actions, deciding, running)
        following, signals = self.population.transition(state, steps, rates, momenta, inputs, targets, indices, *others)
        if rewarded_inputs is not None and rewarded_targets is not None:
            losses_after = self.population.losses_after(following["parameters"], state, rewarded_inputs, rewarded_targets)
        self._learn(record, signals, running, losses_after)
        return following, table, self._seen(table)

    def _seen(self, table: Tensor) -> Tensor:
        """Observations ``(N, F)``, then the reported rows of the table, in one vector, float64."""
        return torch.cat([self.process.observation(table).double().flatten(), table[-NUM_REPORTED:].flatten()])

    def _choose(self, record: Record, actions: Array, deciding: Array | None, running: Array | None) -> tuple[Array, Array | None]:
        """A decision's part before the SGD step, in place.

        Args:
            record: Of the process.
            actions: ``(A, N)``.
            deciding: Whose action is taken, booleans ``(N,)``, or None for all; the others keep their rates.
            running: Who takes a step, booleans ``(N,)``, or None for all; the others get their first gradient.

        Returns:
            The rates ``(N, G)`` of the step, and the momenta ``(N, G)`` or None.
        """
        process = self.process
        process.act(record, actions, deciding)
        shape = (process.num_groups, -1)
        rates = record["rates"].reshape(shape)  # (G, N)
        if running is not None:
            rates = namespace(actions).where(running, rates, 0.0)
        return rates.T, record["momentum"].reshape(shape).T if process.mdp.control_momentum else None

    def _learn(self, record: Record, signals: Array, running: Array | None, losses_after: Array | None, begins: bool = True) -> None:
        """Its part after the step: statistics and reward, in place.

        Args:
            record: Of the process.
            signals: Of the step, ``(R, G, N)``.
            running: As of :meth:`_choose`.
            losses_after: The losses ``(N,)`` after the step on the batches before it, where they are rewarded.
            begins: Whether the gradient may be somebody's first.
        """
        process, library = self.process, namespace(signals)
        process.observe(record, signals, begins)
        diverged = process.has_diverged(record)
        if running is not None:
            diverged &= running
        if losses_after is not None:
            process.pay(record, library.where(diverged, math.inf, losses_after), running)
            reward = 1.0 * record["reward"]
            process.pay(record, record["loss"], running)
            record["reward"][:] = reward
        else:
            # Of the other sources, only "next_batch" takes its potential from minibatches; but all pay for a divergence at once.
            process.pay(record, record["loss"], running if process.reward.source == "next_batch" else diverged)
        record["diverged"][:] = process.of_columns(diverged)

    def _to_table(self, values: np.ndarray) -> Array:
        """Values in the form that the table has."""
        return torch.from_numpy(values).to(self.population.device) if self._is_fused else values

    def _begin_potential(self, members: np.ndarray) -> None:
        losses = self.losses if self.process.reward.source == "same_batch" else self._subset_losses()
        columns = _columns(self.table, members)
        with np.errstate(all="ignore"):
            self.process.begin_potential(self.process.record(columns), self._to_table(losses[members]))
        self.table[..., members] = columns
        if self._safe is not None:
            self._safe.levels[0, members] = self.losses[members] - self.lower_bounds[members]
            self._safe.levels[1, members] = 0
            self._safe.keep(members, self.population.state, self.table)

    def _roll_back(self, safe: SafeStates, outcome: Outcome, running: np.ndarray) -> None:
        """The circuit breaker: those whose loss has jumped go back to their last safe state; the others' states are kept where they are safe."""
        breaker, process, excess = self.process.circuit_breaker, self.process, outcome.losses - self.lower_bounds
        assert breaker is not None
        # After many jumps the limit is beyond what counts as a divergence.
        jumped = running & (outcome.diverged | ~(excess <= breaker.limits(safe.levels)))
        calm = running & ~jumped
        is_safe = calm & (excess <= safe.levels[0])
        safe.levels = np.where(running, breaker.following(safe.levels, excess), safe.levels)
        safe.keep(np.flatnonzero(is_safe), self.population.state, self.table)
        if not jumped.any():
            return
        members = np.flatnonzero(jumped)
        spoilt = _to_numpy(process.record(self.table)["potential"][0, members])
        safe.restore(members, self.population.state, self.table)
        columns = _columns(self.table, members)
        record = process.record(columns)
        record["age"][:] = self._to_table(np.tile(outcome.steps[members].astype(np.float64), process.num_groups))
        record["progress"][:] = record["age"] / self.horizon
        self.table[..., members] = columns
        outcome.rewards[members] += spoilt - _to_numpy(record["potential"][0, : len(members)]) - breaker.penalty
        outcome.observations[members] = _to_numpy(process.observation(columns))
        outcome.losses[members] = _to_numpy(record["loss"][0, : len(members)])
        outcome.rates[members] = _to_numpy(record["rates"]).reshape(process.num_groups, -1).T
        outcome.diverged = outcome.diverged & ~jumped
        outcome.rolled_back = jumped

    def _pay_due(self, outcome: Outcome, running: np.ndarray) -> None:
        """Pays the running members for whom an evaluation is due since the last decision."""
        interval, steps = self.process.reward.interval, outcome.steps
        due = running & (steps // interval > (steps - self.mdp.steps_per_action) // interval)
        if due.any():
            self._pay(outcome, due)

    def _pay(self, outcome: Outcome, paid: np.ndarray) -> None:
        """Pays some the reduction of their potential on the subset since it was last taken."""
        record = self.process.record(self.table)
        with np.errstate(all="ignore"):
            self.process.pay(record, self._to_table(self._subset_losses()), self._to_table(paid))
        outcome.rewards += _to_numpy(record["reward"])[0, : self.num_members]

    def _subset_losses(self) -> np.ndarray:
        return self.population.evaluate(self._subset_split, self._subset, with_metric=False).losses

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graph": None, "_kernel": None}  # made anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def find_family(task: str | Mapping[str, Any] | Task | TaskFamily) -> TaskFamily:
    """The family of a registered name, of a :class:`lr_env.FamilySpecification` as a mapping, or of a task.

    Raises:
        TypeError: If the task is none.
        ValueError: If the name is unknown, or the specification invalid.
    """
    if isinstance(task, Mapping):
        return FamilySpecification.from_dict(task).family()
    if not isinstance(task, (str, Task, TaskFamily)):
        raise TypeError(
            f"task must be a registered name, a Task or a TaskFamily, but {type(task).__name__} was given. "
            "Task.from_tensors(name, model, inputs, targets) makes a Task of a module and its data."
        )
    return as_family(make_task(task) if isinstance(task, str) else task)


def _columns(table: Array, members: np.ndarray) -> Array:
    """The columns of members ``(K,)`` in a table of their own, which lies in memory row by row."""
    return np.take(table, members, axis=-1) if isinstance(table, np.ndarray) else table[..., members].contiguous()


def _to_numpy(values: Array) -> Any:
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def _unpacked(controls: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of what a fused pass is given: actions ``(A, N)``, who decides and who runs, booleans ``(N,)``, and steps made ``(N, 1)``."""
    return controls[:-3], controls[-3] > 0, controls[-2] > 0, controls[-1].long().unsqueeze(1)


def _mask(members: np.ndarray, num_members: int) -> np.ndarray:
    mask = np.zeros(num_members, bool)
    mask[members] = True
    return mask
