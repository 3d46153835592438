"""The decision process: what a controller observes and what its actions do.

Written once: environments train controllers with it, and a deployed controller runs in the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from lr_env.checks import positive_integer
from lr_env.mdp.actions import RateAction, RateRange, ResidualAction, make_action
from lr_env.mdp.features import CLIP, Observer, resolve_features
from lr_env.mdp.rewards import make_reward
from lr_env.mdp.statistics import Statistics
from lr_env.training import Signals, make_optimizer


@dataclass(frozen=True)
class MDP:
    """Specification of the decision process; plain data, so that it can be saved with a controller.

    Attributes:
        optimizer: Name, or mapping with hyperparameters; see :func:`lr_env.training.make_optimizer`.
        features: A set's name or a list of names; see :data:`lr_env.mdp.FEATURES`.
        action: Kind, or mapping with options; see :mod:`lr_env.mdp.actions`.
        reward: Kind, or mapping with options; see :class:`lr_env.mdp.Reward`.
        reward_on: See :class:`lr_env.mdp.Reward`.
        steps_per_action: SGD steps that share one decision.
        lr_min: Lowest rate; None for the optimizer's default.
        lr_max: Highest rate; None for the optimizer's default.
        initial_rate: Rate before the first decision; None for the optimizer's default.
        initial_rate_decades: Each training starts ``10**u`` off the initial rate, u uniform in ± this number; in [0, 4].

    Raises:
        ValueError: If a name is unknown or a number is out of range.
    """

    optimizer: str | Mapping[str, Any] = "sgd"
    features: str | Sequence[str] = "scale_free"
    action: str | Mapping[str, Any] = "relative"
    reward: str | Mapping[str, Any] = "log_loss"
    reward_on: str = "next_batch"
    steps_per_action: int = 1
    lr_min: float | None = None
    lr_max: float | None = None
    initial_rate: float | None = None
    initial_rate_decades: float = 0.0

    def __post_init__(self) -> None:
        positive_integer("steps_per_action", self.steps_per_action)
        if not 0 <= self.initial_rate_decades <= 4:
            raise ValueError(f"initial_rate_decades must be within [0, 4], but {self.initial_rate_decades!r} was given.")
        make_optimizer(self.optimizer)
        resolve_features(self.features)
        make_action(self.action)
        make_reward(self.reward, self.reward_on)
        self.rate_range()

    def rate_range(self) -> RateRange:
        """The range, with the optimizer's defaults where nothing was given."""
        _, defaults = make_optimizer(self.optimizer)
        lowest = defaults.lowest if self.lr_min is None else self.lr_min
        highest = defaults.highest if self.lr_max is None else self.lr_max
        if self.initial_rate is None and 0 < lowest < highest:  # a default must not fall outside of the user's range
            return RateRange(lowest, highest, min(max(defaults.initial, lowest), highest))
        return RateRange(lowest, highest, defaults.initial if self.initial_rate is None else self.initial_rate)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data from which ``MDP(**data)`` makes an equal one."""
        data = dict(vars(self))
        for name in ("optimizer", "action", "reward"):
            data[name] = data[name] if isinstance(data[name], str) else dict(data[name])
        data["features"] = self.features if isinstance(self.features, str) else list(self.features)
        return data

    def begin(self, num_members: int, num_groups: int, horizon: int, loss_lower_bound: float) -> DecisionProcess:
        """The process for N trainings of ``horizon`` SGD steps with G parameter groups."""
        return DecisionProcess(self, num_members, num_groups, horizon, loss_lower_bound)


class DecisionProcess:
    """An :class:`MDP` at work on N trainings: turns signals into observations and actions into rates."""

    def __init__(self, mdp: MDP, num_members: int, num_groups: int, horizon: int, loss_lower_bound: float) -> None:
        self.mdp = mdp
        self.num_members, self.num_groups, self.horizon = num_members, num_groups, horizon
        self.features = resolve_features(mdp.features)
        self.action = make_action(mdp.action)
        self.reward = make_reward(mdp.reward, mdp.reward_on)
        self.rates = mdp.rate_range()
        self.needs = frozenset().union(self.action.needs, *(feature.needs for feature in self.features))
        self.statistics = Statistics(self.needs, num_members, num_groups, horizon, loss_lower_bound)
        self._observer = Observer(self.features, self.statistics)
        self.observation_space = gym.spaces.Box(-CLIP, CLIP, (len(self.features),), np.float32)
        self.action_space = self.action.space(num_groups)
        self._low, self._high = _bounds(self.action_space)
        self._lowest_log_rate, self._highest_log_rate = math.log10(self.rates.lowest), math.log10(self.rates.highest)
        self._action_shape = (num_members, *self.action_space.shape) if self.action_space.shape else (num_members,)

    @property
    def observes_progress(self) -> bool:
        """Whether the controller can know when the training ends."""
        return any(feature.name == "progress" for feature in self.features)

    def restart(self, members: np.ndarray, seeds: Sequence[np.random.SeedSequence]) -> None:
        """Members ``(K,)`` begin anew, each with its own stream for draws of the initial rate."""
        self.statistics.restart(members)
        log_rate = math.log10(self.rates.initial)
        for member, seed in zip(members, seeds, strict=True):
            width = self.mdp.initial_rate_decades
            offset = np.random.default_rng(seed).uniform(-width, width) if width else 0.0
            self.statistics.log_rates[member] = np.clip(log_rate + offset, math.log10(self.rates.lowest), math.log10(self.rates.highest))

    def observe(self, signals: Signals, members: np.ndarray | None = None) -> None:
        """Takes in the signals of one SGD step of members ``(K,)``, or all."""
        rows: np.ndarray | slice = slice(None) if members is None else members
        self.statistics.update(signals, rows)
        if isinstance(self.action, ResidualAction):
            is_first = self.statistics.age[rows] == 0
            if is_first.any():
                self._set_log_rates(self.action.base_log_rates(self.statistics, self.rates), np.arange(self.num_members)[rows][is_first])

    def observation(self) -> np.ndarray:
        """Observations ``(N, F)``, float32; a fresh array."""
        return self._observer()

    def parse_actions(self, actions: Any) -> np.ndarray:
        """Actions as float64 ``(N, G)``, clipped to their space.

        Raises:
            TypeError: If they are not real numbers.
            ValueError: If their shape is wrong or one is not a number.
        """
        array = np.asarray(actions)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"An action must be real numbers, but an array of dtype {array.dtype} was given ({actions!r}).")
        if array.shape != self._action_shape:
            raise ValueError(
                f"Actions of shape {self._action_shape[1:]} are expected for each training, {self._action_shape} in all, but {array.shape} was given."
            )
        values = array.astype(np.float64).reshape(self.num_members, self.num_groups)
        if np.isnan(values).any():
            raise ValueError(f"An action must be a number, but NaN was given: {actions!r}. Look at the observation and at the policy's weights.")
        if isinstance(self.action_space, gym.spaces.Discrete) and (values != np.round(values)).any():
            raise ValueError(f"A discrete action must be an integer, but {actions!r} was given.")
        return np.minimum(np.maximum(values, self._low), self._high)

    def act(self, actions: np.ndarray, members: np.ndarray | None = None) -> np.ndarray:
        """The rates ``(N, G)`` that parsed actions ``(N, G)`` choose; they become the rates in force of members ``(K,)``, or all."""
        self._set_log_rates(self.action.log_rates(actions, self.statistics, self.rates), members)
        if isinstance(self.action, RateAction):
            return actions
        rates: np.ndarray = 10.0**self.statistics.log_rates
        return rates

    def _set_log_rates(self, log_rates: np.ndarray, members: np.ndarray | None) -> None:
        if not isinstance(self.action, RateAction):
            log_rates = np.fmin(np.fmax(log_rates, self._lowest_log_rate), self._highest_log_rate)
        if members is None:
            self.statistics.log_rates[:] = log_rates
        else:
            self.statistics.log_rates[members] = log_rates[members]


def _bounds(space: gym.Space[Any]) -> tuple[float, float]:
    """Lowest and highest action, the same for all parameter groups."""
    if isinstance(space, gym.spaces.Discrete):
        return 0.0, float(space.n - 1)
    assert isinstance(space, gym.spaces.Box)
    return float(space.low.min()), float(space.high.max())
