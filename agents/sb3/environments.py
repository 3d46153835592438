"""The vector environment as Stable-Baselines3's ``VecEnv``, and wrappers of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from lr_env import MDP, LearningRateVectorEnv
from lr_env.checks import positive_integer
from lr_env.training import Evaluation
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn


def make_sb3_env(num_envs: int, *, seed: int | None = None, paired: bool = False, **environment_arguments: Any) -> VecMonitor:
    """N trainings side by side as an SB3 environment that reports episode returns, as SB3's ``make_vec_env`` does.

    Args:
        num_envs: N, at least 1.
        seed: Seed s of the first reset: member i has s + i. SB3's ``seed=`` of an algorithm does the same.
        paired: Whether rewards are differences from those of twins, see :class:`PairedVecEnv`.
        **environment_arguments: Of :class:`lr_env.LearningRateVectorEnv`, except ``autoreset_mode``.

    Raises:
        ValueError: As :class:`lr_env.LearningRateVectorEnv` and :class:`PairedVecEnv`.
    """
    count = positive_integer("num_envs", num_envs) * (2 if paired else 1)
    adapter = LearningRateVecEnv(LearningRateVectorEnv(count, **environment_arguments, autoreset_mode=AutoresetMode.SAME_STEP))
    env = PairedVecEnv(adapter) if paired else adapter
    if seed is not None:
        env.seed(seed)
    return EpisodeMonitor(env)


class EpisodeMonitor(VecMonitor):
    """SB3's monitor, but looking at members only where a training ends: a loop over all takes as long as many a step.

    Args:
        venv: Of N trainings.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)

    def step_wait(self) -> VecEnvStepReturn:
        """One decision of every member; what has ended tells its return, its length and the time in ``infos[i]["episode"]``."""
        observations, rewards, ends, infos = self.venv.step_wait()
        self.episode_returns += rewards
        self.episode_lengths += 1
        for member in np.flatnonzero(ends).tolist() if ends.any() else ():
            seconds = round(time.time() - self.t_start, 6)
            infos[member]["episode"] = {"r": self.episode_returns[member], "l": self.episode_lengths[member], "t": seconds}
            self.episode_count += 1
            self.episode_returns[member] = self.episode_lengths[member] = 0
        return observations, rewards, ends, infos


class LearningRateVecEnv(VecEnv):
    """The native vector environment behind SB3's interface; observations and rewards are passed through without a copy.

    Where a member's training ends, ``infos[i]`` is the information of the end, with ``terminal_observation``, and ``reset_infos[i]``
    that of the next training. ``TimeLimit.truncated`` marks ends at the horizon that the observation does not announce.

    Members are no objects of their own, so SB3's access to them covers what a single environment offers: ``get_attr`` the attributes
    ``action_space``, ``mdp``, ``metadata``, ``observation_space``, ``render_mode`` and ``spec``, and whatever ``set_attr`` has set;
    ``env_method`` the methods ``evaluate``, ``get_state``, ``render`` and ``set_state``. ``reset`` takes no options.

    Args:
        vector_env: Made with ``autoreset_mode="SameStep"``.

    Raises:
        ValueError: If it was made with another ``autoreset_mode``.
    """

    def __init__(self, vector_env: LearningRateVectorEnv) -> None:
        if vector_env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(f'SB3 needs autoreset_mode="SameStep", but the environment was made with "{vector_env.autoreset_mode.value}".')
        self.vector_env = vector_env
        self._own_attributes: list[dict[str, Any]] = [{} for _ in range(vector_env.num_envs)]
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)

    def reset(self) -> np.ndarray:
        """Starts all trainings, with the seeds of :meth:`seed` if there are any; observations ``(N, F)``."""
        observations, info = self.vector_env.reset(seed=self._seeds)
        self.reset_infos = [_of_reset(member_info) for member_info in _by_member(info)]
        self._reset_seeds()
        self._reset_options()
        return observations

    @property
    def mdp(self) -> MDP:
        """The decision process, as saved with a controller."""
        return self.vector_env.mdp

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """One seed per member for the next reset, where :meth:`seed` gives consecutive ones."""
        self._seeds = list(seeds)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions ``(N, …)`` for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One decision of every member: observations ``(N, F)``, rewards ``(N,)``, ends ``(N,)`` and N dictionaries of information."""
        observations, rewards, terminated, truncated, info = self.vector_env.step(self._actions)
        ends = terminated | truncated
        if not ends.any():
            return observations, rewards, ends, _by_member(info)
        is_cut = truncated & ~terminated
        infos, final_infos = _by_member(info, is_cut), _by_member(info["final_info"], is_cut)
        for member in np.flatnonzero(ends):
            self.reset_infos[member] = _of_reset(infos[member])
            infos[member] = final_infos[member] | {"terminal_observation": info["final_obs"][member]}
        return observations, rewards, ends, infos

    def close(self) -> None:
        """Frees what the environment holds."""
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One image ``(height, width, 3)`` per member; None without a render mode."""
        return self.vector_env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each member.

        Raises:
            AttributeError: If members have no such attribute.
        """
        shared = self._shared_attributes()
        values = []
        for member in self._members(indices):
            attributes = self._own_attributes[member] if attr_name in self._own_attributes[member] else shared
            if attr_name not in attributes:
                raise AttributeError(f"Members have no attribute {attr_name!r}. Valid: {', '.join(sorted(shared))}, and what set_attr has set.")
            values.append(attributes[attr_name])
        return values

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of each member, for :meth:`get_attr`.

        Raises:
            AttributeError: If it is one of the environment's own, which are fixed when it is made.
        """
        if attr_name in self._shared_attributes():
            raise AttributeError(f"{attr_name!r} is fixed when the environment is made; make another one.")
        for member in self._members(indices):
            self._own_attributes[member][attr_name] = value

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Results of a method of each member, as a single environment returns them.

        Raises:
            AttributeError: If members have no such method.
        """
        members = self._members(indices)
        if method_name == "evaluate":  # one pass over the data for all of them
            evaluation = self.vector_env.evaluate(*method_args, **method_kwargs)
            metrics = evaluation.metrics
            return [Evaluation(evaluation.losses[[member]], None if metrics is None else metrics[[member]]) for member in members]
        if method_name == "render":
            images = self.get_images()
            return [images[member] for member in members]
        if method_name in ("get_state", "set_state"):
            method = getattr(self.vector_env, method_name)
            return [method(*method_args, **method_kwargs, members=[member]) for member in members]
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """False for each member: wrap the whole, with SB3's ``VecEnvWrapper``."""
        return [False for _ in self._members(indices)]

    def _shared_attributes(self) -> dict[str, Any]:
        env = self.vector_env
        shared = {name: getattr(env, name) for name in ("mdp", "metadata", "render_mode", "spec")}
        return shared | {"action_space": env.single_action_space, "observation_space": env.single_observation_space}

    def _members(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]  # negative ones too, as of a list


class PairedVecEnv(VecEnvWrapper):
    """Pays each training what it gained over its twin: the same weights, batches and draws, under the action 0 throughout.

    Trainings differ in what can be gained far more than controllers do on one of them. The twin takes that out of the returns, as common random
    numbers do, at the price of a second training. Of a residual action the twin is the schedule or rule that is corrected; of a relative one, the
    first rate held constant.

    Where a twin diverges, it has lost what it has lost, and earns nothing more; where the other one does, the next training of both begins.

    Args:
        env: Of 2N trainings; the last N become the twins of the first N.

    Attributes:
        is_over: Whose twin has come to its end before, booleans ``(N,)``.

    Raises:
        ValueError: If 0 is no action, the number of trainings is odd, or two twins are of different variants of a family.
    """

    def __init__(self, env: LearningRateVecEnv) -> None:
        space, variants = env.action_space, env.vector_env.episodes.variants
        if not isinstance(space, gym.spaces.Box) or not space.contains(np.zeros(space.shape, space.dtype)):
            raise ValueError(f'Twins take the action 0, but the space is {space}. Use action="residual" or "relative".')
        count, is_odd = divmod(env.num_envs, 2)
        if is_odd or (variants[:count] != variants[count:]).any():
            raise ValueError(
                "Twins need an even number of trainings whose halves are of the same variants, "
                f"but {env.num_envs} of {len(np.unique(variants))} variants were given. Choose a multiple of twice the number of variants."
            )
        super().__init__(env)
        self.num_envs, self.is_over = count, np.zeros(count, bool)
        self._adapter = env

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """One seed for each pair, for the next reset."""
        self._adapter.set_seeds([*seeds, *seeds])

    def reset(self) -> np.ndarray:
        """Observations ``(N, F)``."""
        observations = self._adapter.reset()
        self._make_twins(np.arange(self.num_envs))  # seed() gives each member another seed
        self.is_over[:] = False
        return observations[: self.num_envs]

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions ``(N, …)`` for :meth:`step_wait`."""
        self.venv.step_async(np.concatenate([actions, np.zeros_like(actions)]))

    def step_wait(self) -> VecEnvStepReturn:
        """As the wrapped environment's, of N trainings, with other rewards."""
        count = self.num_envs
        observations, rewards, ends, infos = self.venv.step_wait()
        assert isinstance(observations, np.ndarray)
        own_ends, twin_ends = ends[:count], ends[count:]
        gains = rewards[:count] - np.where(self.is_over, 0.0, rewards[count:])
        astray = np.flatnonzero(own_ends & (self.is_over | ~twin_ends))
        self.is_over = (self.is_over | twin_ends) & ~own_ends
        if len(astray):
            self._make_twins(astray)
        return observations[:count], gains, own_ends, infos[:count]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See :meth:`LearningRateVecEnv.get_attr`; of those that act."""
        return self.venv.get_attr(attr_name, self._get_indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See :meth:`LearningRateVecEnv.set_attr`; of those that act."""
        self.venv.set_attr(attr_name, value, self._get_indices(indices))

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """See :meth:`LearningRateVecEnv.env_method`; of those that act."""
        return self.venv.env_method(method_name, *method_args, indices=self._get_indices(indices), **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """See :meth:`LearningRateVecEnv.env_is_wrapped`; of those that act."""
        return self.venv.env_is_wrapped(wrapper_class, self._get_indices(indices))

    def _make_twins(self, members: np.ndarray) -> None:
        """Makes the twins of members ``(K,)`` what these are."""
        environment = self._adapter.vector_env
        environment.set_state(environment.get_state(members.tolist()), (members + self.num_envs).tolist())


class VariantRewardScale(VecEnvWrapper):
    """Divides each member's rewards by the running standard deviation of the discounted returns of its variant.

    As SB3's ``VecNormalize(norm_obs=False)``, but with a scale for each variant of a family, so that tasks with large rewards don't drown
    the others.

    Args:
        env: SB3's environment of N trainings.
        num_variants: V; member i has variant i mod V.
        discount: γ of the returns.
    """

    def __init__(self, env: VecEnv, num_variants: int, discount: float) -> None:
        super().__init__(env)
        self.variants, self.discount = np.arange(env.num_envs) % num_variants, discount
        self.statistics = [RunningMeanStd(shape=()) for _ in range(num_variants)]
        self.returns = np.zeros(env.num_envs)

    def reset(self) -> Any:
        """Observations ``(N, F)``."""
        self.returns = np.zeros(self.num_envs)
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """As the wrapped environment's, with other rewards."""
        observations, rewards, ends, infos = self.venv.step_wait()
        self.returns = self.discount * self.returns + rewards
        for variant, statistics in enumerate(self.statistics):
            statistics.update(self.returns[self.variants == variant])
        scales = np.sqrt(np.array([float(statistics.var) for statistics in self.statistics]) + 1e-8)
        self.returns[ends] = 0.0
        return observations, rewards / scales[self.variants], ends, infos

    def get_state(self) -> dict[str, Any]:
        """What :meth:`set_state` puts back."""
        statistics = [[float(each.mean), float(each.var), float(each.count)] for each in self.statistics]
        return {"returns": self.returns, "statistics": statistics}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Puts back what :meth:`get_state` returned."""
        self.returns = state["returns"]
        for each, (mean, variance, count) in zip(self.statistics, state["statistics"], strict=True):
            each.mean, each.var, each.count = np.array(mean), np.array(variance), count


def _of_reset(info: dict[str, Any]) -> dict[str, Any]:
    """A member's information at its start, which nothing has truncated yet."""
    del info["TimeLimit.truncated"]
    return info


def _by_member(info: Mapping[str, Any], is_cut: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Gymnasium's information in columns as SB3's in rows of plain numbers, with who was truncated, booleans ``(N,)``; None where no training ends.

    Each step waits for this: names are written out, as dictionaries with known keys are made faster, and so is what holds for all.
    """
    columns = zip(info["loss"].tolist(), info["learning_rate"].tolist(), info["step"].tolist(), strict=True)
    infos = [{"loss": loss, "learning_rate": rate, "step": step, "diverged": False, "TimeLimit.truncated": False} for loss, rate, step in columns]
    if is_cut is not None:
        for name, values in (("diverged", info["diverged"]), ("TimeLimit.truncated", is_cut)):
            for member in np.flatnonzero(values):
                infos[member][name] = True
    if "rolled_back" in info:
        for member_info, value in zip(infos, info["rolled_back"].tolist(), strict=True):
            member_info["rolled_back"] = value
    return infos
