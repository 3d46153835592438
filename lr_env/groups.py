"""Trainings that don't share one population: of different variants, or in processes of their own. Groups of them, behind one interface."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import CloudpickleWrapper

from lr_env.checks import positive_integer
from lr_env.episodes import Episodes, Execution, Outcome, find_family
from lr_env.mdp import MDP
from lr_env.tasks import Task, TaskFamily
from lr_env.tasks.task import SplitName
from lr_env.training import Evaluation


def make_episodes(
    task: str | Mapping[str, Any] | Task | TaskFamily,
    num_members: int,
    mdp: MDP,
    horizon: int | None = None,
    execution: Execution | None = None,
    variant: int | None = None,
    num_processes: int = 1,
) -> Episodes | EpisodeGroups:
    """N episodes, in as few groups as possible.

    Args:
        task: A task, a registered name, or a family, which may be a mapping.
        num_members: N.
        mdp: The decision process.
        horizon: SGD steps of an episode; None for each task's default.
        execution: How trainings are computed; None for the defaults.
        variant: The family's variant of all members; None for variant i mod ``num_variants`` of member i.
        num_processes: Processes over which members are spread, each with ``execution.num_threads``; with 1, there is none but this. With several
            threads each, processes import the main module anew: a script needs ``if __name__ == "__main__":``.

    Raises:
        TypeError: If the task is none.
        ValueError: If a name is unknown or a number is out of range.
    """
    execution = execution or Execution()
    family, num_members = find_family(task), positive_integer("num_envs", num_members)
    if positive_integer("num_processes", num_processes) > num_members:
        raise ValueError(f"num_processes must not exceed the number of members, {num_members}, but {num_processes} was given.")
    if variant is not None:
        family = family.variant(variant)
    variants = np.arange(num_members) % family.num_variants
    optimizers = [family.optimizers[variant] for variant in np.unique(variants)]
    if optimizers[0] is not None and all(optimizer == optimizers[0] for optimizer in optimizers):
        mdp = replace(mdp, optimizer=optimizers[0])  # then it is that of all
    if family.initial_rate_decades:
        mdp = replace(mdp, initial_rate_decades=family.initial_rate_decades)
    if num_processes == 1:
        return _make_local(family, variants, mdp, horizon, execution)
    shares = np.array_split(np.arange(num_members), num_processes)
    return EpisodeGroups([(RemoteEpisodes(family, variants[share], mdp, horizon, execution), share) for share in shares], mdp, variants)


def _make_local(family: TaskFamily, variants: np.ndarray, mdp: MDP, horizon: int | None, execution: Execution) -> Episodes | EpisodeGroups:
    """Episodes of members with these variants ``(N,)``."""
    groups = []
    for variant in np.unique(variants):
        members = np.flatnonzero(variants == variant)
        groups.append((Episodes(family.variant(int(variant)), len(members), mdp, horizon, execution), members))
    return groups[0][0] if len(groups) == 1 else EpisodeGroups(groups, mdp, variants)


class EpisodeGroups:
    """Groups of episodes with the interface of :class:`lr_env.episodes.Episodes`; groups in other processes compute at the same time.

    Args:
        groups: Episodes, and which members ``(K,)`` of the whole they are.
        mdp: The decision process of all.
        variants: Each member's variant, ``(N,)``.

    Raises:
        ValueError: If the members' models differ in their number of parameter groups.
    """

    def __init__(self, groups: Sequence[tuple[Episodes | EpisodeGroups | RemoteEpisodes, np.ndarray]], mdp: MDP, variants: np.ndarray) -> None:
        self._groups, self.variants, self.mdp = list(groups), variants, mdp
        self.num_members = len(variants)
        self.parameter_groups: tuple[tuple[str, ...], ...] = self._groups[0][0].parameter_groups
        counts = sorted({len(episodes.parameter_groups) for episodes, _ in self._groups})
        if len(counts) > 1:
            raise ValueError(
                f"lr_groups={mdp.lr_groups!r} makes {' or '.join(map(str, counts))} parameter groups of the family's models, but observations "
                "and actions of one vector environment have one shape. Use lr_groups='global', or one variant: variant=j."
            )
        process = mdp.begin(counts[0], 1, 0.0)  # for its spaces alone
        self.observation_space, self.action_space, self._parse_actions = process.observation_space, process.action_space, process.parse_actions
        self.lower_bounds, self.horizons = np.zeros(self.num_members), np.zeros(self.num_members, np.int64)
        for episodes, members in self._groups:
            self.lower_bounds[members], self.horizons[members] = episodes.lower_bounds, episodes.horizons
        self._outcome: Outcome | None = None

    def parse_actions(self, actions: Any) -> np.ndarray:
        """See :meth:`lr_env.mdp.DecisionProcess.parse_actions`."""
        return self._parse_actions(actions, self.num_members)

    def restart(self, members: np.ndarray, seeds: Sequence[int | None]) -> None:
        """See :class:`lr_env.episodes.Episodes`."""
        given = dict(zip(members.tolist(), seeds, strict=True))
        arguments: list[tuple[Any, ...] | None] = []
        for _, own in self._groups:
            local = np.flatnonzero(np.isin(own, members))
            arguments.append((local, [given[member] for member in own[local].tolist()]) if len(local) else None)
        self._call("restart", arguments)

    def begin(self, members: np.ndarray) -> Outcome:
        """See :class:`lr_env.episodes.Episodes`."""
        chosen = [np.flatnonzero(np.isin(own, members)) for _, own in self._groups]
        return self._joined("begin", [(local,) if len(local) else None for local in chosen])

    def step(self, actions: np.ndarray, members: np.ndarray | None = None, restarting: np.ndarray | None = None) -> Outcome:
        """See :class:`lr_env.episodes.Episodes`."""
        if members is None:
            return self._joined("step", [(actions[own],) for _, own in self._groups])
        beginning = members[:0] if restarting is None else restarting
        begun, arguments = [], []
        for _, own in self._groups:
            acting, fresh = (np.flatnonzero(np.isin(own, some)) for some in (members, beginning))
            begun.append((fresh,) if len(fresh) and not len(acting) else None)
            arguments.append((actions[own], acting, fresh if len(fresh) else None) if len(acting) else None)
        if any(group is not None for group in begun):
            self._joined("begin", begun)
        return self._joined("step", arguments)

    def evaluate(self, split: SplitName, num_examples: int | None = None) -> Evaluation:
        """See :class:`lr_env.episodes.Episodes`; the metric of a task that has none is not a number."""
        losses, metrics = np.zeros(self.num_members), np.full(self.num_members, np.nan)
        evaluations: list[Evaluation] = self._call("evaluate", [(split, num_examples)] * len(self._groups))
        for (_, own), evaluation in zip(self._groups, evaluations, strict=True):
            losses[own] = evaluation.losses
            if evaluation.metrics is not None:
                metrics[own] = evaluation.metrics
        return Evaluation(losses, None if all(evaluation.metrics is None for evaluation in evaluations) else metrics)

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """See :class:`lr_env.episodes.Episodes`."""
        states = []
        for member in members.tolist():
            group, local = self._find(member)
            states.append(self._call("get_state", [(local,) if index == group else None for index in range(len(self._groups))])[group])
        outcome = None if self._outcome is None else {field.name: getattr(self._outcome, field.name)[members] for field in fields(Outcome)}
        return {"variants": self.variants[members], "members": states, "outcome": outcome}

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """See :class:`lr_env.episodes.Episodes`.

        Raises:
            ValueError: If a member is to get the state of another variant.
        """
        if (state["variants"] != self.variants[members]).any():
            given, expected = state["variants"].tolist(), self.variants[members].tolist()
            raise ValueError(f"States of variants {given} can't be put into members of variants {expected}.")
        for member, own_state in zip(members.tolist(), state["members"], strict=True):
            group, local = self._find(member)
            self._call("set_state", [(own_state, local) if index == group else None for index in range(len(self._groups))])
        if state["outcome"] is not None:
            outcome = Outcome(**state["outcome"])
            self._outcome = self._whole(outcome)
            self._outcome.write(members, outcome)

    def close(self) -> None:
        """Ends the processes."""
        for episodes, _ in self._groups:
            episodes.close()

    def _find(self, member: int) -> tuple[int, np.ndarray]:
        for index, (_, own) in enumerate(self._groups):
            if member in own:
                return index, np.flatnonzero(own == member)
        raise AssertionError(f"No group has member {member}.")

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """The results of a method of each group; None for groups without arguments. Other processes go first, so that all are at work."""
        for (episodes, _), own in zip(self._groups, arguments, strict=True):
            if isinstance(episodes, RemoteEpisodes) and own is not None:
                episodes.send(method, own)
        results: list[Any] = []
        errors: list[Exception] = []
        for (episodes, _), own in zip(self._groups, arguments, strict=True):
            result = None
            try:
                if own is not None:
                    result = episodes.receive() if isinstance(episodes, RemoteEpisodes) else getattr(episodes, method)(*own)
            except Exception as error:  # raised once all have answered: an answer left behind would be taken for the next call's
                errors.append(error)
            results.append(result)
        if errors:
            raise errors[0]
        return results

    def _joined(self, method: str, arguments: Sequence[tuple[Any, ...] | None]) -> Outcome:
        """The outcomes of a method of the groups as one; members of groups without arguments are as they were, without reward."""
        outcomes: list[Outcome | None] = self._call(method, arguments)
        whole = self._whole(next(outcome for outcome in outcomes if outcome is not None))
        for (_, own), outcome in zip(self._groups, outcomes, strict=True):
            if outcome is not None:
                whole.write(own, outcome)
        self._outcome = whole
        return whole.copy()

    def _whole(self, example: Outcome) -> Outcome:
        """Where all members are, with nothing having happened to them; at nothing yet before there is an outcome."""
        if self._outcome is not None:
            return self._outcome.without_events()
        empty = {field.name: getattr(example, field.name) for field in fields(Outcome)}
        return Outcome(**{name: np.zeros((self.num_members, *value.shape[1:]), value.dtype) for name, value in empty.items()})


class RemoteEpisodes:
    """Episodes in a process of their own.

    Args:
        family: See :class:`lr_env.episodes.Episodes`.
        variants: The members' variants, ``(N,)``.
        mdp: The decision process.
        horizon: See :class:`lr_env.episodes.Episodes`.
        execution: See :class:`lr_env.episodes.Episodes`.

    Raises:
        Exception: Whatever making the episodes raises in the process.
    """

    def __init__(self, family: TaskFamily, variants: np.ndarray, mdp: MDP, horizon: int | None, execution: Execution) -> None:
        # A process that is forked can't use several threads where this one has: it would wait for them for ever.
        context: Any = multiprocessing.get_context("spawn" if execution.num_threads > 1 else None)
        self._connection, other = context.Pipe()
        arguments = CloudpickleWrapper(lambda: _make_local(family, variants, mdp, horizon, execution))  # type: ignore[type-var]  # it is for environments, but pickles any function
        self._process = context.Process(target=_serve, args=(other, self._connection, arguments), daemon=True)
        self._process.start()
        other.close()
        self.lower_bounds, self.horizons, self.parameter_groups = self.receive()

    def send(self, method: str, arguments: tuple[Any, ...]) -> None:
        """Has a method of the episodes called; :meth:`receive` waits for its result.

        Raises:
            ClosedEnvironmentError: After :meth:`close`.
            RuntimeError: If the process has died.
        """
        if self._connection.closed:
            raise gym.error.ClosedEnvironmentError("The environment is closed. Make it anew.")
        try:
            self._connection.send((method, arguments))
        except (BrokenPipeError, OSError) as error:
            raise RuntimeError(self._obituary()) from error

    def receive(self) -> Any:
        """The result of the method that was sent; what it raised is raised here.

        Raises:
            RuntimeError: If the process has died.
        """
        try:
            succeeded, result = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise RuntimeError(self._obituary()) from error
        if not succeeded:
            raise result
        return result

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join()
        self._connection.close()

    def _obituary(self) -> str:
        self._process.join(1)
        return f"A process of the vector environment has died (exit code {self._process.exitcode}). Make the environment anew."

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("An environment with num_processes > 1 can't be pickled: its trainings live in other processes.")


def _serve(connection: Connection, other: Connection, arguments: CloudpickleWrapper) -> None:
    """What a process does: makes the episodes, and calls their methods until it is told None or the other end is gone."""
    other.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does at one, it must be able to end this process
    torch.set_num_threads(1)
    try:
        episodes: Any = arguments()
        connection.send((True, (episodes.lower_bounds, episodes.horizons, episodes.parameter_groups)))
    except Exception as error:
        connection.send((False, error))
        return
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        while (message := connection.recv()) is not None:
            method, values = message
            try:
                connection.send((True, getattr(episodes, method)(*values)))
            except Exception as error:
                connection.send((False, error))
