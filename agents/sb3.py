"""Stable-Baselines3 on learning rates: the vector environment as its ``VecEnv``, and hyperparameters that suit it.

```python
from stable_baselines3 import PPO
from agents.sb3 import default_hyperparameters, make_sb3_env

env = make_sb3_env(64, task="digits-mlp-scaled", horizon=100)
model = PPO("MlpPolicy", env, seed=0, **default_hyperparameters("ppo", num_envs=64)).learn(300_000)
```

A trained model is a controller as it stands: its ``predict`` has the signature that controllers have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from lr_env import LearningRateVectorEnv
from lr_env.checks import positive_integer, unknown_name
from lr_env.training import Evaluation

try:
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError as error:
    raise ImportError("agents.sb3 needs Stable-Baselines3: pip install 'lr-env[sb3]'.") from error


def make_sb3_env(num_envs: int, *, seed: int | None = None, **environment_arguments: Any) -> VecMonitor:
    """N trainings side by side as an SB3 environment that reports episode returns, as SB3's ``make_vec_env`` does.

    Args:
        num_envs: N, at least 1.
        seed: Seed s of the first reset: member i has s + i. SB3's ``seed=`` of an algorithm does the same.
        **environment_arguments: Of :class:`lr_env.LearningRateVectorEnv`, except ``autoreset_mode``.

    Raises:
        ValueError: As :class:`lr_env.LearningRateVectorEnv`.
    """
    env = LearningRateVecEnv(LearningRateVectorEnv(num_envs, **environment_arguments, autoreset_mode=AutoresetMode.SAME_STEP))
    if seed is not None:
        env.seed(seed)
    return VecMonitor(env)


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
        self.reset_infos = _by_member(info)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions ``(N, …)`` for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """One decision of every member: observations ``(N, F)``, rewards ``(N,)``, ends ``(N,)`` and N dictionaries of information."""
        observations, rewards, terminated, truncated, info = self.vector_env.step(self._actions)
        ends = terminated | truncated
        infos = _by_member(info)
        if ends.any():
            final_infos = _by_member(info["final_info"])
            for member in np.flatnonzero(ends):
                self.reset_infos[member] = infos[member]
                infos[member] = final_infos[member] | {"terminal_observation": info["final_obs"][member]}
        for member_info, is_truncated in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            member_info["TimeLimit.truncated"] = is_truncated
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


def _by_member(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gymnasium's information in columns as SB3's in rows of plain numbers."""
    columns = {name: values.tolist() for name, values in info.items() if name[0] != "_" and name not in ("final_obs", "final_info")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def default_hyperparameters(algorithm: str, num_envs: int, decisions: int = 100) -> dict[str, Any]:
    """Arguments of an SB3 algorithm's constructor, after ``"MlpPolicy"`` and ``env``, that suit many short trainings side by side.

    SB3's own defaults are for one environment: PPO's ``n_steps=2048`` would be 131,072 transitions a rollout with 64 members. Here a
    rollout of PPO is one training of each member; off-policy algorithms learn after every step of all members. The discount is
    1 − 1 / (10 · decisions): a smaller one prefers rates that are far too small (Wu et al. 2018).

    Args:
        algorithm: ``"a2c"``, ``"ddpg"``, ``"dqn"`` (for ``action="discrete"``), ``"ppo"``, ``"sac"`` or ``"td3"``.
        num_envs: N; for 16 to 256.
        decisions: Decisions of one training, ``horizon / steps_per_action``.

    Raises:
        ValueError: If the algorithm is unknown or a number is no integer >= 1.
    """
    num_envs, decisions = positive_integer("num_envs", num_envs), positive_integer("decisions", decisions)
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    common = {"gamma": 1 - 1 / (10 * decisions), "device": "cpu"}
    return common | _HYPERPARAMETERS[algorithm](num_envs, decisions)


def _ppo(num_envs: int, decisions: int) -> dict[str, Any]:
    return {
        "n_steps": decisions,
        "batch_size": max(2, num_envs * decisions // 8),
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "gae_lambda": 0.98,
        "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},
    }


def _a2c(num_envs: int, decisions: int) -> dict[str, Any]:
    return {
        "n_steps": 10,
        "learning_rate": 1e-3,
        "gae_lambda": 0.95,
        "use_rms_prop": False,
        "normalize_advantage": True,
        "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},
    }


def _off_policy(num_envs: int, decisions: int) -> dict[str, Any]:
    return {
        "learning_rate": 1e-3,
        "buffer_size": 500_000,
        "learning_starts": 20 * num_envs,
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": max(1, num_envs // 16),
        "policy_kwargs": {"net_arch": [64, 64]},
    }


def _sac(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {"ent_coef": "auto_0.01", "gradient_steps": max(1, num_envs // 8)}


def _deterministic(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, 0.1))}


def _dqn(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {
        "target_update_interval": 50 * num_envs,
        "exploration_fraction": 0.2,
        "exploration_initial_eps": 0.2,
        "exploration_final_eps": 0.02,
    }


_HYPERPARAMETERS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "a2c": _a2c,
    "ddpg": _deterministic,
    "dqn": _dqn,
    "ppo": _ppo,
    "sac": _sac,
    "td3": _deterministic,
}
