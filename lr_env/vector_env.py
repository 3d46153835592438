"""The vector environment: N trainings side by side, each as the single environment would run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lr_env.checks import positive_integer, unknown_name
from lr_env.episodes import Execution, Outcome
from lr_env.groups import make_episodes
from lr_env.mdp import MDP
from lr_env.rendering import render_training
from lr_env.seeding import check_seed
from lr_env.tasks import Task, TaskFamily
from lr_env.tasks.task import SplitName
from lr_env.training import Evaluation, OptimizerSpecification
from lr_env.training.gradients import Engine


class LearningRateVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """N episodes of :class:`lr_env.LearningRateEnv`, advanced together; made by ``gym.make_vec("LearningRate-v0", num_envs=N)``.

    Observations, actions, rewards, ends and all arguments but those below are the single environment's, with a leading dimension N.
    Member i after ``reset(seed=s)`` equals the single environment after ``reset(seed=s + i)``, through every automatic reset.

    Args:
        num_envs: N, at least 1.
        autoreset_mode: ``"NextStep"`` (Gymnasium's default: the step after an end resets, ignoring its action), ``"SameStep"`` (the step
            that ends resets; ``info["final_obs"]`` and ``info["final_info"]`` hold the end) or ``"Disabled"`` (pass
            ``reset(options={"reset_mask": mask})``); or a ``gymnasium.vector.AutoresetMode``.
        variant: Of a family with variants, the variant of all members; None for variant i mod ``num_variants`` of member i.
        num_processes: Processes over which members are spread, each with ``num_threads``: as many as there are free cores. As for
            every use of ``multiprocessing``, a script that starts them by "spawn", as all with ``num_threads > 1`` are, needs
            ``if __name__ == "__main__":``.

    Raises:
        ValueError: As the single environment; ``max_episode_steps`` is refused, use ``horizon``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: str | Mapping[str, Any] | Task | TaskFamily = "digits-mlp",
        horizon: int | None = None,
        optimizer: OptimizerSpecification = "sgd",
        features: str | Sequence[str] = "scale_free",
        action: str | Mapping[str, Any] = "relative",
        reward: str | Mapping[str, Any] = "log_loss",
        reward_on: str = "next_batch",
        steps_per_action: int = 1,
        lr_min: float | None = None,
        lr_max: float | None = None,
        initial_rate: float | None = None,
        initial_rate_decades: float = 0.0,
        lr_groups: str | Sequence[Sequence[str]] = "global",
        control_momentum: bool = False,
        circuit_breaker: bool | Mapping[str, Any] = False,
        variant: int | None = None,
        gradients: Engine = "auto",
        dtype: str = "float32",
        compile: bool = False,  # noqa: A002  (torch's word)
        device: str = "cpu",
        num_threads: int = 1,
        num_processes: int = 1,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **unknown: Any,
    ) -> None:
        _refuse(unknown)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', but {render_mode!r} was given.")
        rates = lr_min, lr_max, initial_rate, initial_rate_decades, lr_groups, control_momentum, circuit_breaker
        mdp = MDP(optimizer, features, action, reward, reward_on, steps_per_action, *rates)
        self.num_envs = positive_integer("num_envs", num_envs)
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20, "autoreset_mode": self.autoreset_mode}
        execution = Execution(gradients, dtype, compile, device, num_threads)
        self.episodes = make_episodes(task, self.num_envs, mdp, horizon, execution, variant, num_processes)
        self.single_observation_space, self.single_action_space = self.episodes.observation_space, self.episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._is_new = True
        self._ended = np.ones(self.num_envs, bool)
        self._everyone = np.ones(self.num_envs, bool)
        self._everyone.flags.writeable = False  # part of what each step returns
        self._histories: list[list[tuple[float, np.ndarray]]] = [[] for _ in range(self.num_envs)]

    @property
    def mdp(self) -> MDP:
        """The decision process, as saved with a controller."""
        return self.episodes.mdp

    @property
    def parameter_groups(self) -> tuple[tuple[str, ...], ...]:
        """The names of the parameters of each group, ``(G,)``; of member 0, where members' models differ."""
        return self.episodes.parameter_groups

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts trainings.

        Args:
            seed: s for the seeds s, s + 1, …; or one seed per member, None for a member's next training.
            options: ``{"reset_mask": mask}`` resets only the members of a boolean array ``(N,)``.

        Returns:
            Observations ``(N, F)`` of all members, and the information of those that were reset.

        Raises:
            TypeError: If a seed is no integer or the mask no boolean array.
            ValueError: If the number of seeds or the mask's shape is wrong, or a seed is negative.
        """
        seeds = self._seeds(seed)
        members = self._masked_members(options)
        if self._is_new:
            super().reset(seed=None)
            drawn = self.np_random.integers(2**31, size=self.num_envs)
            seeds = [int(drawn[i]) if given is None else given for i, given in enumerate(seeds)]
            if len(members) < self.num_envs:
                raise ResetNeeded("The first reset() must reset all members: call it without a reset_mask.")
        self.episodes.restart(members, [seeds[member] for member in members])
        outcome = self.episodes.begin(members)
        self._is_new = False
        self._ended[members] = False
        for member in members:
            self._histories[member] = []
        return outcome.observations, self._info(members, outcome)

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision of every member.

        Raises:
            ResetNeeded: Before the first reset; with autoreset disabled, when a member has ended.
            TypeError: If the actions are no real numbers.
            ValueError: If their shape is wrong or one is not a number. The environment stays as it was.
        """
        if self._is_new:
            raise ResetNeeded("Call reset() before step().")
        parsed = self.episodes.parse_actions(actions)
        if not self._ended.any():
            outcome = self.episodes.step(parsed)
        elif self.autoreset_mode == AutoresetMode.NEXT_STEP:
            outcome = self._step_with_resets(parsed, np.flatnonzero(~self._ended), np.flatnonzero(self._ended))
        else:
            raise ResetNeeded(f"Members {np.flatnonzero(self._ended).tolist()} have ended: call reset(options={{'reset_mask': mask}}) before step().")
        self._ended = outcome.ended
        observations, info = outcome.observations, self._info(None, outcome)
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            observations, info = self._reset_in_same_step(observations, info)
        return observations, outcome.rewards, outcome.terminated, outcome.truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One image ``(height, width, 3)`` per member, see :meth:`lr_env.LearningRateEnv.render`."""
        if self.render_mode is None:
            gym.logger.warn('render() was called without a render mode; pass render_mode="rgb_array".')
            return None
        if self._is_new:
            raise ResetNeeded("Call reset() before render().")
        frames = []
        for history, horizon in zip(self._histories, self.episodes.horizons.tolist(), strict=True):
            losses, rates = (np.array(values) for values in zip(*history, strict=True))
            frames.append(render_training(losses, rates, horizon, self.mdp.steps_per_action))
        return tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        """Ends other processes; called by ``close``."""
        self.episodes.close()

    def evaluate(self, split: SplitName) -> Evaluation:
        """Mean loss ``(N,)`` and metric ``(N,)`` of the present weights over a split.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._is_new:
            raise ResetNeeded("Call reset() before evaluate().")
        return self.episodes.evaluate(split)

    def get_state(self, members: Sequence[int] | None = None) -> dict[str, Any]:
        """The whole state of some members, or of all, to be put back by :meth:`set_state`.

        Args:
            members: Indices of members; a repeated index copies one member several times.

        Raises:
            ResetNeeded: Before the first reset.
        """
        if self._is_new:
            raise ResetNeeded("Call reset() before get_state().")
        chosen = self._check_members(members)
        return {
            "episodes": self.episodes.get_state(chosen),
            "ended": self._ended[chosen],
            "histories": [list(self._histories[member]) for member in chosen],
        }

    def set_state(self, state: dict[str, Any], members: Sequence[int] | None = None) -> None:
        """Puts back what :meth:`get_state` returned, into these members or all.

        Raises:
            ResetNeeded: Before the first reset, if other members are left without a training.
            ValueError: If the state holds another number of members, does not fit, or was taken without a render mode and this environment
                has one. The environment stays as it was.
        """
        chosen = self._check_members(members)
        if self._is_new and len(np.unique(chosen)) < self.num_envs:
            raise ResetNeeded("The other members have no training yet: call reset() before set_state() of some, or set all.")
        if len(state["ended"]) != len(chosen):
            raise ValueError(f"The state holds {len(state['ended'])} members, but {len(chosen)} are to be set.")
        if self.render_mode is not None and not all(state["histories"]):
            raise ValueError("The state has no history to render: it was taken from an environment without a render mode. Make both with one.")
        self.episodes.set_state(state["episodes"], chosen)
        self._ended[chosen] = state["ended"]
        for member, history in zip(chosen, state["histories"], strict=True):
            self._histories[member] = [] if self.render_mode is None else list(history)  # without one, nothing would be added
        self._is_new = False

    def _step_with_resets(self, actions: np.ndarray, acting: np.ndarray, resetting: np.ndarray) -> Outcome:
        """Members that ended start anew while the others act, in the same pass."""
        self.episodes.restart(resetting, [None] * len(resetting))
        for member in resetting:
            self._histories[member] = []
        if len(acting) == 0:
            return self.episodes.begin(resetting)
        return self.episodes.step(actions, acting, resetting)

    def _reset_in_same_step(self, observations: np.ndarray, info: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        ended = np.flatnonzero(self._ended)
        final_observations = np.full(self.num_envs, None, dtype=object)
        for member in ended:
            final_observations[member] = observations[member].copy()
        final_info = {}
        for name, values in info.items():
            final_info[name] = np.where(self._ended if values.ndim == 1 else self._ended[:, None], values, np.zeros_like(values))
        self.episodes.restart(ended, [None] * len(ended))
        for member in ended:
            self._histories[member] = []
        outcome = self.episodes.begin(ended)
        present = self._info(None, outcome, recorded=ended)
        if "rolled_back" in info:  # also by those whose trainings go on
            present["rolled_back"] = np.where(self._ended, False, info["rolled_back"])
        info = present | {
            "final_obs": final_observations,
            "_final_obs": self._ended.copy(),
            "final_info": final_info,
            "_final_info": self._ended.copy(),
        }
        self._ended = np.zeros(self.num_envs, bool)
        return outcome.observations, info

    def _info(self, members: np.ndarray | None, outcome: Outcome, recorded: np.ndarray | None = None) -> dict[str, Any]:
        """The information of members ``(K,)``, or all; ``recorded`` are those whose history goes on, if not all of these."""
        losses, rates = outcome.losses, outcome.rates
        if self.render_mode is not None:
            everyone = np.arange(self.num_envs) if members is None else members
            for member in everyone if recorded is None else recorded:
                self._histories[member].append((float(losses[member]), rates[member].copy()))
        values = {"loss": losses, "learning_rate": rates[:, 0] if rates.shape[1] == 1 else rates, "step": outcome.steps}
        values["diverged"] = outcome.diverged
        if self.mdp.circuit_breaker is not False:
            values["rolled_back"] = outcome.rolled_back
        if members is None:
            return values | {f"_{name}": self._everyone for name in values}
        mask = np.zeros(self.num_envs, bool)
        mask[members] = True
        info: dict[str, Any] = {}
        for name, value in values.items():
            info[name], info[f"_{name}"] = np.where(mask if value.ndim == 1 else mask[:, None], value, np.zeros_like(value)), mask
        return info

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (list, tuple, np.ndarray)):
            if len(seed) != self.num_envs:
                raise ValueError(f"One seed per member is needed: {self.num_envs}, but {len(seed)} were given.")
            return [None if given is None else check_seed(given) for given in seed]
        first = check_seed(seed)
        super().reset(seed=first)
        return [first + member for member in range(self.num_envs)]

    def _masked_members(self, options: dict[str, Any] | None) -> np.ndarray:
        if not options or "reset_mask" not in options:
            return np.arange(self.num_envs)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"options['reset_mask'] must be a NumPy array of booleans, but {mask!r} was given.")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"options['reset_mask'] must have shape ({self.num_envs},) and at least one True, but {mask!r} was given.")
        return np.flatnonzero(mask)

    def _check_members(self, members: Sequence[int] | None) -> np.ndarray:
        if members is None:
            return np.arange(self.num_envs)
        chosen = np.asarray(members)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (chosen < 0).any() or (chosen >= self.num_envs).any():
            raise ValueError(f"members must be indices from 0 to {self.num_envs - 1}, but {members!r} was given.")
        return chosen


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    modes = {member.value: member for member in AutoresetMode}
    if mode not in modes:
        raise unknown_name("autoreset_mode", mode, modes)
    return modes[mode]


def _refuse(unknown: dict[str, Any]) -> None:
    """Raises for arguments that the environment does not have; ``gym.make_vec`` passes ``max_episode_steps`` on."""
    limit = unknown.pop("max_episode_steps", None)
    if limit is not None:
        raise ValueError(f"max_episode_steps={limit} is not supported: pass horizon= (SGD steps of an episode) instead.")
    valid = [name for name in LearningRateVectorEnv.__init__.__annotations__ if name not in ("unknown", "return")]
    for name in unknown:
        raise unknown_name("argument of LearningRate-v0", name, valid)
