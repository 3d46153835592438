"""The decision process: what a controller observes and what its actions do.

Written once: environments train controllers with it, and a deployed controller runs in the same one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from lr_env.checks import positive_integer
from lr_env.mdp.actions import RateAction, RateRange, ResidualAction, make_action
from lr_env.mdp.arrays import Array, Record, constant, namespace
from lr_env.mdp.features import CLIP, Observer, resolve_features
from lr_env.mdp.rewards import make_reward
from lr_env.mdp.statistics import TINY, Statistics
from lr_env.training import make_optimizer


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

    def begin(self, num_groups: int, horizon: int, loss_lower_bound: float, device: torch.device | None = None) -> DecisionProcess:
        """The process for trainings of ``horizon`` SGD steps with G parameter groups, on tensors of a device, or on NumPy's arrays."""
        return DecisionProcess(self, num_groups, horizon, loss_lower_bound, device)


class DecisionProcess:
    """An :class:`MDP` at work: turns signals into observations and rewards, and actions into rates.

    What is kept of N trainings lies in one table ``(rows, N)``, float64, whose rows have names. To those of
    :class:`lr_env.mdp.statistics.Statistics` come ``potential`` (Φ), ``first_excess`` (ℓ₀ − b), and what a step reports: ``loss``,
    ``reward``, ``diverged`` (0 or 1) and ``rates`` (last applied, G). The methods that take a record change it in place.
    """

    def __init__(self, mdp: MDP, num_groups: int, horizon: int, loss_lower_bound: float, device: torch.device | None = None) -> None:
        self.mdp = mdp
        self.num_groups, self.horizon, self.lower_bound = num_groups, horizon, loss_lower_bound
        self.features = resolve_features(mdp.features)
        self.action = make_action(mdp.action)
        self.reward = make_reward(mdp.reward, mdp.reward_on)
        self.rates = mdp.rate_range()
        self.needs = frozenset().union(self.action.needs, *(feature.needs for feature in self.features))
        self.statistics = Statistics(self.needs, num_groups, horizon, loss_lower_bound, device)
        self.sizes = self.statistics.sizes | {"potential": 1, "first_excess": 1, "loss": 1, "reward": 1, "diverged": 1, "rates": num_groups}
        stops = list(itertools.accumulate(self.sizes.values()))
        self._parts = {name: slice(stop - size, stop) for (name, size), stop in zip(self.sizes.items(), stops, strict=True)}
        self._observer, self._device = Observer(self.features, self.statistics, device), device
        self.observation_space = gym.spaces.Box(-CLIP, CLIP, (len(self.features),), np.float32)
        self.action_space = self.action.space(num_groups)
        self._low, self._high = _bounds(self.action_space)
        self._action_shape = self.action_space.shape or ()
        self._log_range = constant([math.log10(self.rates.lowest), math.log10(self.rates.highest)], device)

    @property
    def observes_progress(self) -> bool:
        """Whether the controller can know when the training ends."""
        return any(feature.name == "progress" for feature in self.features)

    def initial(self, count: int, seeds: Sequence[np.random.SeedSequence] | None = None) -> Array:
        """The table of K trainings that begin, each with its own stream for the draw of its initial rate, or all without."""
        width = self.mdp.initial_rate_decades
        offsets = np.array([np.random.default_rng(seed).uniform(-width, width) for seed in seeds]) if seeds else np.zeros(count)
        log_rates = np.clip(math.log10(self.rates.initial) + offsets, math.log10(self.rates.lowest), math.log10(self.rates.highest))
        table = np.zeros((sum(self.sizes.values()), count))
        record = self.record(table)
        self.statistics.begin(record, np.tile(log_rates, (self.num_groups, 1)))
        record["rates"][:] = 10.0**log_rates
        return constant(table, self._device)

    def record(self, table: Array) -> Record:
        """The rows of a table by name."""
        return {name: table[part] for name, part in self._parts.items()}

    def act(self, record: Record, actions: Array, deciding: Array | None) -> None:
        """Sets the rates that parsed actions ``(G, N)`` choose, of those ``deciding (1, N)``, or of all."""
        log_rates = self._clipped(self.action.log_rates(actions, self.statistics, record, self.rates))
        rates = actions if isinstance(self.action, RateAction) else 10.0**log_rates
        if deciding is not None:
            library = namespace(deciding)
            log_rates, rates = library.where(deciding, log_rates, record["log_rates"]), library.where(deciding, rates, record["rates"])
        self._set_log_rates(record, log_rates)
        record["rates"][:] = rates

    def observe(self, record: Record, signals: Array, begins: bool = True) -> None:
        """Takes in one SGD step with signals ``(R, N)``; ``begins`` says whether it may be somebody's first."""
        self.statistics.update(record, signals, begins)
        record["loss"][:] = signals[:1]
        if begins and isinstance(self.action, ResidualAction):  # before the first decision the base rates are in force
            base = self._clipped(self.action.log_rates(0 * record["rates"], self.statistics, record, self.rates))
            self._set_log_rates(record, namespace(base).where(record["age"] == 0, base, record["log_rates"]))

    def pay(self, record: Record, losses: Array, paid: Array | None) -> None:
        """Losses ``(1, N)`` set the potential of those ``paid (1, N)``, or of all, anew; ``reward`` is what it fell by."""
        potential = self.reward.potential(self._excess(losses), record["first_excess"])
        if paid is not None:
            potential = namespace(paid).where(paid, potential, record["potential"])
        record["reward"][:] = record["potential"] - potential
        record["potential"][:] = potential

    def begin_potential(self, record: Record, losses: Array) -> None:
        """Takes the first losses ``(1, N)`` of trainings."""
        record["first_excess"][:] = namespace(losses).fmax(self._excess(losses), constant(TINY, self._device))
        record["potential"][:] = self.reward.potential(self._excess(losses), record["first_excess"])

    def has_diverged(self, record: Record) -> Array:
        """Booleans ``(1, N)``."""
        return self.reward.has_diverged(self._excess(record["loss"]), record["first_excess"])

    def observation(self, table: Array) -> Array:
        """Observations ``(N, F)``, float32."""
        return self._observer(table)

    def parse_actions(self, actions: Any, num_members: int) -> np.ndarray:
        """Actions of N members as float64 ``(N, G)``, clipped to their space.

        Raises:
            TypeError: If they are not real numbers.
            ValueError: If their shape is wrong or one is not a number.
        """
        array = np.asarray(actions)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"An action must be real numbers, but an array of dtype {array.dtype} was given ({actions!r}).")
        shape = (num_members, *self._action_shape)
        if array.shape != shape:
            raise ValueError(f"Actions of shape {shape[1:]} are expected for each training, {shape} in all, but {array.shape} was given.")
        values = array.astype(np.float64).reshape(num_members, self.num_groups)
        if np.isnan(values).any():
            raise ValueError(f"An action must be a number, but NaN was given: {actions!r}. Look at the observation and at the policy's weights.")
        if isinstance(self.action_space, gym.spaces.Discrete) and (values != np.round(values)).any():
            raise ValueError(f"A discrete action must be an integer, but {actions!r} was given.")
        return np.minimum(np.maximum(values, self._low), self._high)

    def _excess(self, losses: Array) -> Array:
        return losses - self.lower_bound if self.lower_bound else losses

    def _set_log_rates(self, record: Record, log_rates: Array) -> None:
        record["log_rates"][:], record["log_rate"][:] = log_rates, log_rates if self.num_groups == 1 else log_rates.mean(0)

    def _clipped(self, log_rates: Array) -> Array:
        if isinstance(self.action, RateAction):
            return log_rates
        library, (lowest, highest) = namespace(log_rates), self._log_range
        return library.minimum(library.maximum(log_rates, lowest), highest)


def _bounds(space: gym.Space[Any]) -> tuple[float, float]:
    """Lowest and highest action, the same for all parameter groups."""
    if isinstance(space, gym.spaces.Discrete):
        return 0.0, float(space.n - 1)
    assert isinstance(space, gym.spaces.Box)
    return float(space.low.min()), float(space.high.max())
