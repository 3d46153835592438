"""Controls: what is left of a controller without its view of the training that it decides for. If that loses nothing, its state does not matter.

| Control | what it knows |
|---|---|
| :func:`shuffled_observations` | at each step the observation of another training, drawn at random among those beside it |
| :func:`state_blind` | at each step the mean observation of other trainings: what they are like by then |
| :func:`population_replay` | nothing: the controller's mean rate at each step, over other trainings |
| :func:`same_instance_replay` | nothing: the same over other seeds of the very same instance, smoothed, times a constant that is to be tuned |

Controllers that see more than observations, as they look at the trainings themselves or learn online, have the replays only.

Only the last one knows what kind of training it is; "state feedback matters" only if it loses. The first two keep the controller's action: what it
is relative to, such as a Polyak step size, remains the training's own. Random actions are :func:`benchmarks.baselines.random_policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d

from benchmarks.runner import Runner
from lr_env.controllers import BoundController, Controller, OnlineController
from lr_env.mdp import MDP
from lr_env.tasks import Task, TaskFamily

SMOOTHING_FRACTION = 0.05
"""Of the decisions: the width of the window over which an instance's rates are averaged."""


class ShuffledObservations:
    """A controller that decides, at each step, by the observation of another training, drawn anew each time, every one once; its state stays.

    Args:
        controller: Whose observations are shuffled.
        seed: Of the draws.
    """

    def __init__(self, controller: Controller, seed: int) -> None:
        self.controller, self.seed = _observing(controller), seed

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`; the state counts the steps.

        Raises:
            ValueError: If there is one training only.
        """
        count, own = (0, None) if state is None else state
        if len(observation) < 2:
            raise ValueError("Observations can be shuffled between two trainings or more, but there is one: run more seeds side by side.")
        order = np.random.default_rng([self.seed, count]).permutation(len(observation))
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)  # Round one random cycle, so that none is its own.
        actions, own = self.controller.predict(observation[others], own, episode_start, deterministic=deterministic)
        return actions, (count + 1, own)


class GivenObservations:
    """A controller that sees given observations instead of its training's.

    Args:
        controller: Who sees them.
        observations: One for each decision, ``(T, F)``; the last one stays.
    """

    def __init__(self, controller: Controller, observations: np.ndarray) -> None:
        self.controller, self.observations = _observing(controller), np.asarray(observations, np.float32)

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`."""
        decisions, own = _decisions(len(observation), state, episode_start), None if state is None else state[1]
        seen = self.observations[np.minimum(decisions, len(self.observations) - 1)]
        actions, own = self.controller.predict(seen, own, episode_start, deterministic=deterministic)
        return actions, (decisions, own)


class Replay:
    """Given rates, whatever happens.

    Args:
        rates: One for each decision ``(T,)``, or for each decision and training ``(T, N)``; the last one stays.

    Raises:
        ValueError: If they are no finite numbers ≥ 0.
    """

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = np.asarray(rates, np.float64)
        if not (self.rates.ndim in (1, 2) and self.rates.size and np.isfinite(self.rates).all() and (self.rates >= 0).all()):
            raise ValueError(f"Rates to replay must be finite numbers >= 0 of shape (T,) or (T, N), but {self.rates!r} was given.")

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``; see :class:`lr_env.controllers.Controller`.

        Raises:
            ValueError: If the rates are those of another number of trainings.
        """
        num_members = len(observation)
        if self.rates.ndim == 2 and self.rates.shape[1] != num_members:
            raise ValueError(f"Rates of {self.rates.shape[1]} trainings can't be replayed in {num_members}: replay them with the seeds they are for.")
        decisions = _decisions(num_members, state, episode_start)
        rows = self.rates[np.minimum(decisions, len(self.rates) - 1)]
        return (rows if rows.ndim == 1 else rows[np.arange(num_members), np.arange(num_members)])[:, None], (decisions, None)


def shuffled_observations(bound: BoundController, seed: int = 0) -> BoundController:
    """The controller, who sees at each step the observation of another training drawn at random; every observation is seen by one."""
    return BoundController(ShuffledObservations(bound.controller, seed), bound.mdp)


def state_blind(bound: BoundController, observations: np.ndarray) -> BoundController:
    """The controller, who sees :func:`mean_observations` ``(T, F)`` of other trainings; or the same ``(1, F)`` always."""
    return BoundController(GivenObservations(bound.controller, observations), bound.mdp)


def mean_observations(runner: Runner, controller: Controller) -> np.ndarray:
    """What a controller sees at each decision ``(T, F)``, averaged over the trainings that have not ended by then."""
    recorder = _Recorder(controller)
    losses = runner.run(recorder).losses
    seen = np.array(recorder.observations)  # (T, N, F)
    running = np.broadcast_to(np.isfinite(losses[: len(seen), :, None]), seen.shape)
    means: np.ndarray = np.mean(seen, axis=1, where=running)
    return means


def population_replay(mdp: MDP, rates: np.ndarray) -> BoundController:
    """The mean over all trainings, at each decision, of rates ``(T, N)`` that a controller chose under this decision process.

    Raises:
        ValueError: If the process decides more than one rate.
    """
    return _replay(mdp, mean_rates(rates))


def same_instance_replay(mdp: MDP, rates: np.ndarray, factor: float = 1.0) -> BoundController:
    """Each training's own column of rates ``(T, N)``, which other seeds of its instance gave, smoothed, times a factor.

    Args:
        mdp: Under which a controller chose the rates.
        rates: See :func:`other_seeds_rates`; or :func:`leave_one_out` where all trainings are of one instance.
        factor: > 0; to be tuned on other trainings than those reported.

    Raises:
        ValueError: If the process decides more than one rate, or the factor is out of range.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor must be a finite number > 0, but {factor!r} was given.")
    return _replay(mdp, factor * smoothed(rates))


def other_seeds_rates(
    bound: BoundController, task: str | Task | TaskFamily, instances: Sequence[int], other_seeds: Sequence[int], horizon: int | None = None
) -> np.ndarray:
    """Mean rates ``(T, N)`` that a controller chooses on N instances, each trained from K other seeds.

    An instance is what a seed's draws of the family are: input scale, labels, examples, scale of the initial weights. The other seeds give
    initial weights and data order.

    Args:
        bound: The controller.
        task: See :class:`benchmarks.runner.Runner`.
        instances: Seeds of the instances, ``(N,)``.
        other_seeds: ``(K,)``.
        horizon: SGD steps.
    """
    seeds = list(other_seeds) * len(instances)
    runner = Runner(task, bound.mdp, seeds, horizon, num_examples=1, tests=False, instances=np.repeat(instances, len(other_seeds)).tolist())
    rates = runner.run(bound.controller).rates
    return np.stack([mean_rates(part) for part in np.split(rates, len(instances), axis=1)], axis=1)


def leave_one_out(rates: np.ndarray) -> np.ndarray:
    """For each training the mean rates of all others: ``(T, N) -> (T, N)``."""
    return np.stack([mean_rates(np.delete(rates, member, axis=1)) for member in range(rates.shape[1])], axis=1)


def mean_rates(rates: np.ndarray) -> np.ndarray:
    """Geometric mean at each decision over the trainings that have not ended by then; where all have, the last one stays: ``(T, N) -> (T,)``.

    Raises:
        ValueError: If there is no rate at the first decision.
    """
    if rates.shape[1] == 0 or not np.isfinite(rates[0]).any():
        raise ValueError(f"There must be a rate at the first decision, but rates {rates!r} were given.")
    running = np.isfinite(rates)
    means = np.array([np.log10(np.maximum(row[own], 1e-38)).mean() if own.any() else np.nan for row, own in zip(rates, running, strict=True)])
    latest = np.maximum.accumulate(np.where(np.isfinite(means), np.arange(len(means)), 0))
    return np.asarray(10.0 ** means[latest])


def smoothed(rates: np.ndarray) -> np.ndarray:
    """Moving geometric mean over 5 % of the decisions; at either end, the outermost rates go on: ``(T, …) -> (T, …)``."""
    width = 2 * round(SMOOTHING_FRACTION * len(rates) / 2) + 1
    return np.asarray(10.0 ** uniform_filter1d(np.log10(rates), width, axis=0, mode="nearest"))


class _Recorder:
    """A controller that keeps what it sees."""

    def __init__(self, controller: Controller) -> None:
        self.controller = _observing(controller)
        self.observations: list[np.ndarray] = []

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        self.observations.append(observation.astype(np.float64))
        return self.controller.predict(observation, state, episode_start, deterministic=deterministic)


def only_observes(controller: Controller) -> bool:
    """Whether what it sees are observations: it neither looks at the trainings themselves nor learns from rewards."""
    return not (hasattr(controller, "attach") or isinstance(controller, OnlineController))


def _observing(controller: Controller) -> Controller:
    if not only_observes(controller):
        raise ValueError(f"{type(controller).__name__} sees more than observations: the trainings themselves, or rewards; replay its rates instead.")
    return controller


def _decisions(num_members: int, state: Any, episode_start: Any) -> np.ndarray:
    """How many decisions each training has behind it, ``(N,)``; the state begins with the last answer."""
    if state is None:
        return np.zeros(num_members, np.int64)
    starts = np.zeros(num_members, bool) if episode_start is None else np.asarray(episode_start, bool)
    return np.where(starts, 0, state[0] + 1)


def _replay(mdp: MDP, rates: np.ndarray) -> BoundController:
    if mdp.lr_groups != "global" or mdp.control_momentum:
        raise ValueError(
            f"Only one rate for all parameters can be replayed, but lr_groups={mdp.lr_groups!r}, control_momentum={mdp.control_momentum}."
        )
    return BoundController(Replay(rates), replace(mdp, features=["log_loss"], action="rate"))
