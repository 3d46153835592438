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

from lr_env.checks import number, number_within, plain, positive_integer
from lr_env.mdp.actions import RateAction, RateRange, ResidualAction, make_action
from lr_env.mdp.arrays import Array, Record, constant, namespace
from lr_env.mdp.features import CLIP, Observer, resolve_features
from lr_env.mdp.rewards import make_circuit_breaker, make_reward
from lr_env.mdp.statistics import Statistics
from lr_env.mdp.trackers import TINY
from lr_env.training import OptimizerSpecification, check_groups, make_optimizer

ON_REQUEST = ("momentum", "momentum_decades", "previous_action", "log_base_rate", "depth", "rate_offset")
"""Rows that a process keeps where features or actions use them: the momentum in force and −log10(1 − μ), the action that was taken last,
log10 of the action's base rate, where the group stands among all, from 0 to 1, and decades by which a training's start is off."""

ALWAYS = ("potential", "first_excess", "loss", "reward", "diverged", "rates")
HIGHEST_MOMENTUM = 0.9999
"""Bound of a momentum that is chosen as it is."""


@dataclass(frozen=True)
class MDP:
    """Specification of the decision process; plain data, so that it can be saved with a controller.

    Attributes:
        optimizer: Name, mapping with hyperparameters, or function; see :func:`lr_env.training.make_optimizer`.
        features: A set's name or a list of names; see :data:`lr_env.mdp.FEATURES`.
        action: Kind, or mapping with options; see :mod:`lr_env.mdp.actions`.
        reward: Kind, or mapping with options; see :class:`lr_env.mdp.Reward`.
        reward_on: See :class:`lr_env.mdp.Reward`.
        steps_per_action: SGD steps that share one decision.
        lr_min: Lowest rate; None for the optimizer's default.
        lr_max: Highest rate; None for the optimizer's default.
        initial_rate: Rate before the first decision; None for the optimizer's default.
        initial_rate_decades: Each training starts ``10**u`` off the initial rate, u uniform in ± this number; in [0, 4]. So does the schedule that
            a residual action corrects.
        lr_groups: Parameter groups with rates of their own; see :func:`lr_env.training.parameter_groups`.
        control_momentum: Whether the momentum (or β₁) is chosen too, by a second action for each group; see :class:`DecisionProcess`.
        circuit_breaker: Undoes steps that make the loss jump; False, True, or a mapping with options; see :class:`lr_env.mdp.CircuitBreaker`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a name is unknown or a number is out of range.
    """

    optimizer: OptimizerSpecification = "sgd"
    features: str | Sequence[str] = "scale_free"
    action: str | Mapping[str, Any] = "relative"
    reward: str | Mapping[str, Any] = "log_loss"
    reward_on: str = "next_batch"
    steps_per_action: int = 1
    lr_min: float | None = None
    lr_max: float | None = None
    initial_rate: float | None = None
    initial_rate_decades: float = 0.0
    lr_groups: str | Sequence[Sequence[str]] = "global"
    control_momentum: bool = False
    circuit_breaker: bool | Mapping[str, Any] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps_per_action", positive_integer("steps_per_action", self.steps_per_action))
        object.__setattr__(self, "initial_rate_decades", number_within("initial_rate_decades", self.initial_rate_decades, 0, 4))
        for name in ("lr_min", "lr_max", "initial_rate"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else number(name, given))
        optimizer, _ = make_optimizer(self.optimizer)
        resolve_features(self.features)
        for name in ("features", "lr_groups"):  # equal whether they came as lists or tuples
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        make_action(self.action)
        make_reward(self.reward, self.reward_on)
        if make_circuit_breaker(self.circuit_breaker) and self.reward_on == "same_batch":
            raise ValueError(
                "The circuit breaker goes back to the gradient of an earlier minibatch, on which reward_on='same_batch' would have to pay: "
                "use reward_on='next_batch', or another of those, with it."
            )
        check_groups(self.lr_groups)
        self.rate_range()
        if not isinstance(self.control_momentum, bool):
            raise TypeError(f"control_momentum must be True or False, but {self.control_momentum!r} was given.")
        if self.control_momentum and not optimizer.has_momentum:
            raise ValueError(f"control_momentum needs an optimizer that has one, such as 'momentum' or 'adam', but {self.optimizer!r} was given.")

    def rate_range(self) -> RateRange:
        """The range, with the optimizer's defaults where nothing was given."""
        _, defaults = make_optimizer(self.optimizer)
        lowest = defaults.lowest if self.lr_min is None else self.lr_min
        highest = defaults.highest if self.lr_max is None else self.lr_max
        if self.initial_rate is None and 0 < lowest < highest:  # a default must not fall outside of the user's range
            return RateRange(lowest, highest, min(max(defaults.initial, lowest), highest))
        return RateRange(lowest, highest, defaults.initial if self.initial_rate is None else self.initial_rate)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data from which ``MDP(**data)`` makes an equal one.

        Raises:
            TypeError: If the optimizer is a function.
        """
        if callable(self.optimizer):
            raise TypeError(f"A decision process whose optimizer is a function can't be saved, but {self.optimizer!r} was given: use a name.")
        data: dict[str, Any] = plain(vars(self))
        return data

    def begin(self, num_groups: int, horizon: int, loss_lower_bound: float, device: torch.device | None = None) -> DecisionProcess:
        """The process for trainings of ``horizon`` SGD steps with G parameter groups, on tensors of a device, or on NumPy's arrays."""
        return DecisionProcess(self, num_groups, horizon, loss_lower_bound, device)


class DecisionProcess:
    """An :class:`MDP` at work: turns signals into observations and rewards, and actions into rates.

    What is kept of N trainings lies in one table ``(rows, G, N)``, float64, whose rows have names; formulas run over its C = G · N columns, of
    all trainings' first groups, then of their second ones, and so on. To the rows of
    :class:`lr_env.mdp.statistics.Statistics` come ``potential`` (Φ), ``first_excess`` (ℓ₀ − b), those of :data:`ON_REQUEST` that are used, and
    what a step reports: ``loss``, ``reward``, ``diverged`` (0 or 1) and ``rates`` (last applied). The methods that take a record
    change it in place.

    An action has A entries: the rates of the G groups, in their order; then, where the momentum is chosen too, the momenta of the groups: an
    entry a in [−1, 1] is the momentum 1 − 10^(−1 − a), from 0 through 0.9 to 0.99; with the action ``rate`` it is the momentum itself.
    """

    def __init__(self, mdp: MDP, num_groups: int, horizon: int, loss_lower_bound: float, device: torch.device | None = None) -> None:
        self.mdp = mdp
        self.num_groups, self.horizon, self.lower_bound = num_groups, horizon, loss_lower_bound
        self.features = resolve_features(mdp.features)
        self.action = make_action(mdp.action)
        self.reward = make_reward(mdp.reward, mdp.reward_on)
        self.circuit_breaker = make_circuit_breaker(mdp.circuit_breaker)
        self.rates = mdp.rate_range()
        used = [row for feature in self.features for row in (*feature.plus, feature.minus)]
        self.statistics = Statistics(
            frozenset().union(self.action.needs, *(feature.needs for feature in self.features)), used, horizon, loss_lower_bound, device
        )
        self.needs = self.statistics.needs
        requested = {*used, *(["momentum", "momentum_decades"] if mdp.control_momentum else [])}
        if mdp.initial_rate_decades and isinstance(self.action, ResidualAction) and self.action.base != "sps":
            requested.add("rate_offset")
        self.sizes = self.statistics.sizes | {name: 1 for name in ON_REQUEST if name in requested} | dict.fromkeys(ALWAYS, 1)
        stops = list(itertools.accumulate(self.sizes.values()))
        self._parts = {name: slice(stop - size, stop) for (name, size), stop in zip(self.sizes.items(), stops, strict=True)}
        rows = {name: part.start for name, part in self._parts.items()} | self.statistics.rows | {"raw_loss": self._parts["loss"].start}
        self._observer, self._device = Observer(self.features, rows, device), device
        self.observation_space = gym.spaces.Box(-CLIP, CLIP, (num_groups * len(self.features),), np.float32)
        self.action_space = self._space()
        self.lowest_action, self.highest_action = _bounds(self.action_space)
        self._action_shape = self.action_space.shape or ()
        self._log_range = constant([math.log10(self.rates.lowest), math.log10(self.rates.highest)], device)

    @property
    def num_actions(self) -> int:
        """A."""
        return self.num_groups * (2 if self.mdp.control_momentum else 1)

    @property
    def observes_progress(self) -> bool:
        """Whether the controller can know when the training ends."""
        return any(feature.name == "progress" for feature in self.features)

    def initial(self, count: int, seeds: Sequence[np.random.SeedSequence] | None = None) -> Array:
        """The table of K trainings that begin, each with its own stream for the draw of its initial rate, or all without."""
        width = self.mdp.initial_rate_decades
        offsets = np.array([np.random.default_rng(seed).uniform(-width, width) for seed in seeds]) if seeds else np.zeros(count)
        log_rates = np.clip(math.log10(self.rates.initial) + offsets, math.log10(self.rates.lowest), math.log10(self.rates.highest))
        table = np.zeros((sum(self.sizes.values()), self.num_groups, count))
        record = self.record(table)
        log_rates = self.of_columns(log_rates)
        self.statistics.begin(record, log_rates)
        record["rates"][:] = np.where(log_rates == math.log10(self.rates.initial), self.rates.initial, 10.0**log_rates)  # not rounded
        if "rate_offset" in record:
            record["rate_offset"][:] = log_rates - math.log10(self.rates.initial)
        if "momentum_decades" in record:
            momentum = _own_momentum(self.mdp.optimizer)
            record["momentum_decades"][:] = -math.log10(1 - momentum)
            if "momentum" in record:
                record["momentum"][:] = momentum
        if "depth" in record:
            record["depth"][:] = np.repeat(np.linspace(0, 1, self.num_groups), count)
        return constant(table, self._device)

    def record(self, table: Array) -> Record:
        """The rows of a table, which lies in memory row by row, by name."""
        columns = table.reshape(len(table), -1)
        return {name: columns[part] for name, part in self._parts.items()}

    def act(self, record: Record, actions: Array, deciding: Array | None) -> None:
        """Sets the rates that parsed actions ``(A, N)`` choose, of those ``deciding (N,)``, or of all."""
        chosen = actions[: self.num_groups].reshape(1, -1)
        log_rates = self._clipped(self.action.log_rates(chosen, self.statistics, record, self.rates))
        changes = {"log_rate": log_rates, "rates": chosen if isinstance(self.action, RateAction) else 10.0**log_rates}
        if self.mdp.control_momentum:
            second = actions[self.num_groups :].reshape(1, -1)
            momentum = second if isinstance(self.action, RateAction) else 1 - 10.0 ** (-1 - second)
            changes["momentum"], changes["momentum_decades"] = momentum, -namespace(momentum).log10(1 - momentum)
        if "previous_action" in record:
            changes["previous_action"] = chosen
        columns = None if deciding is None else self.of_columns(deciding)
        for name, values in changes.items():
            record[name][:] = values if columns is None else namespace(columns).where(columns, values, record[name])

    def observe(self, record: Record, signals: Array, begins: bool = True) -> None:
        """Takes in one SGD step with signals ``(R, G, N)``; ``begins`` says whether it may be somebody's first."""
        signals = signals.reshape(len(signals), -1)
        observed = self.statistics.update(record, signals, begins)
        record["loss"][:] = signals[:1]
        if isinstance(self.action, ResidualAction) and (begins or "log_base_rate" in record):
            base = self._clipped(self.action.log_base_rates(self.statistics, record, self.rates))
            if begins:  # before the first decision the base rates are in force
                record["log_rate"][:] = namespace(base).where(record["age"] == 0, base, record["log_rate"])
        else:
            base = record["log_rate"]
        if "log_base_rate" in record:
            record["log_base_rate"][:] = base
        self.statistics.track(record, observed)

    def pay(self, record: Record, losses: Array, paid: Array | None) -> None:
        """Losses ``(N,)``, or a row of them, set the potential of those ``paid (N,)``, or of all, anew; ``reward`` is what it fell by."""
        potential = self.reward.potential(self._excess(self.of_columns(losses)), record["first_excess"])
        if paid is not None:
            potential = namespace(paid).where(self.of_columns(paid), potential, record["potential"])
        record["reward"][:] = record["potential"] - potential
        record["potential"][:] = potential

    def begin_potential(self, record: Record, losses: Array) -> None:
        """Takes the first losses ``(N,)``, or a row of them, of trainings."""
        losses = self.of_columns(losses)
        record["first_excess"][:] = namespace(losses).fmax(self._excess(losses), constant(TINY, self._device))
        record["potential"][:] = self.reward.potential(self._excess(losses), record["first_excess"])

    def has_diverged(self, record: Record) -> Array:
        """Booleans ``(N,)``."""
        num_members = record["loss"].shape[1] // self.num_groups
        return self.reward.has_diverged(self._excess(record["loss"][0, :num_members]), record["first_excess"][0, :num_members])

    def observation(self, table: Array) -> Array:
        """Observations ``(N, G · F)``, float32: the features of the first group, then those of the second, and so on."""
        return self._observer(table)

    def parse_actions(self, actions: Any, num_members: int) -> np.ndarray:
        """Actions of N members as float64 ``(N, A)``, clipped to their space.

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
        values = array.astype(np.float64).reshape(num_members, -1)
        clipped: np.ndarray = np.minimum(np.maximum(values, self.lowest_action), self.highest_action)
        if math.isnan(clipped.min()):
            raise ValueError(f"An action must be a number, but NaN was given: {actions!r}. Look at the observation and at the policy's weights.")
        if isinstance(self.action_space, gym.spaces.Discrete) and (values != np.round(values)).any():
            raise ValueError(f"A discrete action must be an integer, but {actions!r} was given.")
        return clipped

    def _space(self) -> gym.Space[Any]:
        space = self.action.space(self.num_groups)
        if not self.mdp.control_momentum:
            return space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError("control_momentum needs continuous actions, but discrete ones were given: use action='relative'.")
        low, high = (0.0, HIGHEST_MOMENTUM) if isinstance(self.action, RateAction) else (-1.0, 1.0)
        lows, highs = (np.append(bounds, np.full(self.num_groups, bound)) for bounds, bound in ((space.low, low), (space.high, high)))
        return gym.spaces.Box(lows.astype(space.dtype), highs.astype(space.dtype), dtype=space.dtype.type)

    def of_columns(self, values: Array) -> Array:
        """Values of the trainings ``(N,)`` for all columns ``(C,)``; those of columns ``(1, C)`` as they are."""
        return values if self.num_groups == 1 or values.ndim == 2 else namespace(values).tile(values, (self.num_groups,))

    def _excess(self, losses: Array) -> Array:
        return losses - self.lower_bound if self.lower_bound else losses

    def _clipped(self, log_rates: Array) -> Array:
        if isinstance(self.action, RateAction):
            return log_rates
        library, (lowest, highest) = namespace(log_rates), self._log_range
        return library.minimum(library.maximum(log_rates, lowest), highest)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _own_momentum(optimizer: OptimizerSpecification) -> float:
    made, _ = make_optimizer(optimizer)
    return float(getattr(made, "beta1", getattr(made, "momentum", None)) or 0.0)


def _bounds(space: gym.Space[Any]) -> tuple[Any, Any]:
    """Lowest and highest action, of each entry."""
    if isinstance(space, gym.spaces.Discrete):
        return 0.0, float(space.n - 1)
    assert isinstance(space, gym.spaces.Box)
    return space.low.astype(np.float64), space.high.astype(np.float64)
