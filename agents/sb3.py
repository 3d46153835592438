"""Stable-Baselines3 on learning rates: the vector environment as its ``VecEnv``, and hyperparameters that suit it.

```python
from stable_baselines3 import PPO
from agents.sb3 import default_hyperparameters, make_sb3_env

env = make_sb3_env(64, task="digits-mlp-scaled", horizon=100)
model = PPO("MlpPolicy", env, seed=0, **default_hyperparameters("ppo", num_envs=64)).learn(300_000)
```

A trained model is a controller as it stands: its ``predict`` has the signature that controllers have. :func:`export_policy` turns it into a
network that can be saved without SB3, and :class:`SB3Agent` trains one with checkpoints; ``python -m agents.train`` does both.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from lr_env import LearningRateVectorEnv
from lr_env.checks import positive_integer, unknown_name
from lr_env.controllers import Activation, BoundController, Output, PolicyNetwork
from lr_env.files import FileFormatError, pack, read_file, unpack, write_file
from lr_env.mdp import MDP
from lr_env.seeding import Role, check_seed, role_seeds
from lr_env.training import Evaluation
from torch import nn

try:
    import stable_baselines3
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import VectorizedActionNoise
    from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
    from stable_baselines3.common.utils import LinearSchedule
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
    from stable_baselines3.dqn.policies import DQNPolicy
    from stable_baselines3.sac.policies import Actor as SACActor
    from stable_baselines3.sac.policies import SACPolicy
    from stable_baselines3.td3.policies import Actor as TD3Actor
    from stable_baselines3.td3.policies import TD3Policy
except ImportError as error:
    raise ImportError("agents.sb3 needs Stable-Baselines3: pip install 'lr-env[sb3]'.") from error


CHECKPOINT_KIND = "sb3-checkpoint"

LONGEST_ROLLOUT = 128
"""Decisions of a member in a rollout of PPO at most: trainings may be of 10,000."""


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
        for member in np.flatnonzero(ends).tolist():
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
        self.reset_infos = [_of_reset(member_info) for member_info in _by_member(info, np.zeros(self.num_envs, bool))]
        self._reset_seeds()
        self._reset_options()
        return observations

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
        is_cut = truncated & ~terminated
        infos = _by_member(info, is_cut)
        if ends.any():
            final_infos = _by_member(info["final_info"], is_cut)
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


def _by_member(info: Mapping[str, Any], is_cut: np.ndarray) -> list[dict[str, Any]]:
    """Gymnasium's information in columns as SB3's in rows of plain numbers, with who was truncated, booleans ``(N,)``.

    Each step waits for this: names are written out, as dictionaries with known keys are made faster.
    """
    columns = [values.tolist() for values in (info["loss"], info["learning_rate"], info["step"], info["diverged"], is_cut)]
    infos = [
        {"loss": loss, "learning_rate": rate, "step": step, "diverged": diverged, "TimeLimit.truncated": cut}
        for loss, rate, step, diverged, cut in zip(*columns, strict=True)
    ]
    if "rolled_back" in info:
        for member_info, value in zip(infos, info["rolled_back"].tolist(), strict=True):
            member_info["rolled_back"] = value
    return infos


class CorrelatedActionNoise(VectorizedActionNoise):
    """Stationary Ornstein-Uhlenbeck noise of all members at once (Lillicrap et al. 2015, section 3).

    A rate that is off for some decisions shows in their rewards, where white noise averages out. SB3's own noise begins each training at
    0, and begins anew where a training is resumed.

    Args:
        num_envs: N.
        scale: Standard deviation, of actions in [-1, 1].
        correlation: Of successive noise, within [0, 1).
    """

    def __init__(self, num_envs: int, scale: float = 0.2, correlation: float = 0.85) -> None:
        self.num_envs, self.scale, self.correlation = num_envs, scale, correlation
        self.values: np.ndarray | None = None
        """The noise of the last decision over its scale, ``(N, 1)``."""

    def __call__(self) -> np.ndarray:
        """The next noise ``(N, 1)``, the same for all rates of a member; drawn from NumPy's global generator, as SB3 does."""
        fresh = np.random.normal(size=(self.num_envs, 1))  # noqa: NPY002
        self.values = fresh if self.values is None else self.correlation * self.values + np.sqrt(1 - self.correlation**2) * fresh
        return (self.scale * self.values).astype(np.float32)

    def reset(self, indices: Iterable[int] | None = None) -> None:
        """Draws afresh for members whose training has ended; SB3 calls it without members when ``learn`` begins, which changes nothing."""
        if self.values is not None and indices is not None:
            members = list(indices)
            self.values[members] = np.random.normal(size=(len(members), 1))  # noqa: NPY002

    def __repr__(self) -> str:
        return f"CorrelatedActionNoise({self.num_envs}, scale={self.scale}, correlation={self.correlation})"


class CalmActor(BasePolicy):
    """What :class:`CalmTD3Policy` and :class:`CalmSACPolicy` do to SB3's actors.

    Attributes:
        num_updates: So many gradients have come by.
    """

    num_updates: torch.Tensor

    def start_calmly(self, last: nn.Linear, actor_starts: int, saturation_penalty: float) -> None:
        """Makes the first actions nearly 0 and sets what :meth:`calm` does.

        Args:
            last: The layer before the tanh.
            actor_starts: Gradients that are ignored at first.
            saturation_penalty: Weight of the mean squared preactivation of the tanh in the loss.
        """
        nn.init.uniform_(last.weight, -3e-3, 3e-3)  # Lillicrap et al. 2015, section 7
        nn.init.zeros_(last.bias)
        self.actor_starts, self.saturation_penalty = actor_starts, saturation_penalty
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    def calm(self, preactivations: torch.Tensor) -> torch.Tensor:
        """Preactivations ``(N, A)`` as they are, with the gradient changed where one will come."""
        if preactivations.requires_grad:
            values = preactivations.detach()

            def change(gradient: torch.Tensor) -> torch.Tensor:
                self.num_updates += 1
                if int(self.num_updates) <= self.actor_starts:
                    return torch.zeros_like(gradient)
                return gradient + 2 * self.saturation_penalty / values.numel() * values

            preactivations.register_hook(change)
        return preactivations


class CalmTD3Actor(TD3Actor, CalmActor):
    """Of :class:`CalmTD3Policy`."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations ``(N, F)`` to actions ``(N, A)`` in [-1, 1]."""
        return self.calm(self.mu[:-1](self.extract_features(obs, self.features_extractor))).tanh()


class CalmSACActor(SACActor, CalmActor):
    """Of :class:`CalmSACPolicy`."""

    def get_action_dist_params(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Of observations ``(N, F)``: mean and log of the standard deviation before the tanh, ``(N, A)`` each."""
        mean, log_std, others = super().get_action_dist_params(obs)
        return self.calm(mean), log_std, others


class NormalisedReLU(nn.Module):
    """Layer normalisation without parameters, then ReLU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """``(N, H) -> (N, H)``."""
        return nn.functional.layer_norm(values, values.shape[-1:]).relu()


class CalmTD3Policy(TD3Policy):
    """SB3's policy of TD3 and DDPG, with what steadies :class:`agents.ddpg.DDPG`.

    The actor starts near 0, late, and is kept from saturating; the critics have layer normalisation against overestimation far from the
    data. SB3's actor starts anywhere and at once follows an untrained critic, which pushes it to a bound, often the lowest rate, where the
    tanh lets it learn no more.

    Args:
        *arguments: Of ``TD3Policy``.
        actor_starts: Updates of the actor that are left out until the critic is trained.
        saturation_penalty: Weight of the squared preactivations of the actor's tanh in its loss.
        **options: Of ``TD3Policy``.
    """

    def __init__(self, *arguments: Any, actor_starts: int = 250, saturation_penalty: float = 1e-3, **options: Any) -> None:
        self.actor_starts, self.saturation_penalty = actor_starts, saturation_penalty
        super().__init__(*arguments, **options)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> CalmTD3Actor:
        """The actor, or its target."""
        actor = CalmTD3Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)
        actor.start_calmly(actor.mu[-2], self.actor_starts, self.saturation_penalty)  # type: ignore[arg-type]
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics, or their targets."""
        self.critic_kwargs["activation_fn"] = NormalisedReLU
        return super().make_critic(features_extractor)


class CalmSACPolicy(SACPolicy):
    """SB3's policy of SAC with critics as those of :class:`CalmTD3Policy`, and an actor whose mean starts so and whose noise starts smaller.

    Args:
        *arguments: Of ``SACPolicy``.
        actor_starts: Updates of the actor's mean that are left out until the critic is trained.
        saturation_penalty: Weight of the squared mean before the tanh in the actor's loss.
        initial_log_std: Log of the standard deviation before the tanh at first; SB3's is near 0, nearly uniform actions.
        **options: Of ``SACPolicy``.
    """

    def __init__(
        self, *arguments: Any, actor_starts: int = 500, saturation_penalty: float = 1e-3, initial_log_std: float = -1.5, **options: Any
    ) -> None:
        self.actor_starts, self.saturation_penalty, self.initial_log_std = actor_starts, saturation_penalty, initial_log_std
        super().__init__(*arguments, **options)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> CalmSACActor:
        """The actor."""
        actor = CalmSACActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)
        actor.start_calmly(actor.mu, self.actor_starts, self.saturation_penalty)  # type: ignore[arg-type]
        nn.init.uniform_(actor.log_std.weight, -3e-3, 3e-3)  # type: ignore[attr-defined]
        nn.init.constant_(actor.log_std.bias, self.initial_log_std)  # type: ignore[attr-defined]
        return actor

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics, or their targets."""
        self.critic_kwargs["activation_fn"] = NormalisedReLU
        return super().make_critic(features_extractor)


def default_policy(algorithm: str) -> str | type[BasePolicy]:
    """First argument of an SB3 algorithm's constructor: ``"MlpPolicy"``, for off-policy algorithms with an actor a calm one.

    Raises:
        ValueError: If the algorithm is unknown.
    """
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    calm: Mapping[str, type[BasePolicy]] = {"ddpg": CalmTD3Policy, "sac": CalmSACPolicy, "td3": CalmTD3Policy}
    return calm.get(algorithm, "MlpPolicy")


def default_hyperparameters(algorithm: str, num_envs: int, decisions: int = 100, is_family: bool = False) -> dict[str, Any]:
    """Arguments of an SB3 algorithm's constructor, after :func:`default_policy` and ``env``, that suit many short trainings side by side.

    SB3's own defaults are for one environment: PPO's ``n_steps=2048`` would be 131,072 transitions a rollout with 64 members. Here a
    rollout of PPO is one training of each member, or 128 decisions of longer ones; off-policy algorithms learn after every step of all
    members. The discount is 1 − 1 / (10 · decisions): a smaller one prefers rates that are far too small (Wu et al. 2018).

    DDPG, TD3 and SAC differ from what their papers publish, and SB3 with them, beside the policy in: random actions for one whole training
    of each member at first; an update for every 16 members' decisions; returns of 5 decisions, as one hardly shows in the next loss;
    exploration that is correlated over decisions, for SAC beside its own; a rate of 5e-4, between those of TD3 and SAC; for TD3 an actor
    that follows at a quarter of the critic's pace, with targets as slow as published; for SAC a first weight of the entropy of 0.001, as
    rewards are small: at 1, or 0.01, a training's entropy counts as much as what it learns.

    Args:
        algorithm: ``"a2c"``, ``"ddpg"``, ``"dqn"`` (for ``action="discrete"``), ``"ppo"``, ``"sac"`` or ``"td3"``.
        num_envs: N; for 16 to 256.
        decisions: Decisions of one training, ``horizon / steps_per_action``; of a family, of the longest.
        is_family: Whether the trainings are a family's: millions of steps of many kinds of trainings, for which PPO explores less and
            makes fewer passes over a rollout.

    Raises:
        ValueError: If the algorithm is unknown or a number is no integer >= 1.
    """
    num_envs, decisions = positive_integer("num_envs", num_envs), positive_integer("decisions", decisions)
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    common = {"gamma": 1 - 1 / (10 * decisions), "device": "cpu"}
    hyperparameters = common | _HYPERPARAMETERS[algorithm](num_envs, decisions)
    if is_family and algorithm == "ppo":
        hyperparameters |= {"n_epochs": 4, "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.5}}
    return hyperparameters


def _ppo(num_envs: int, decisions: int) -> dict[str, Any]:
    n_steps = min(decisions, LONGEST_ROLLOUT)
    return {
        "n_steps": n_steps,
        "batch_size": max(2, num_envs * n_steps // 8),
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


def _ddpg(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {
        "learning_rate": 5e-4,
        "learning_starts": num_envs * min(decisions, LONGEST_ROLLOUT),
        "n_steps": 5,
        "action_noise": CorrelatedActionNoise(num_envs),
    }


def _sac(num_envs: int, decisions: int) -> dict[str, Any]:
    return _ddpg(num_envs, decisions) | {"ent_coef": "auto_0.001"}


def _td3(num_envs: int, decisions: int) -> dict[str, Any]:
    return _ddpg(num_envs, decisions) | {"policy_delay": 4, "tau": 0.02}


def _dqn(num_envs: int, decisions: int) -> dict[str, Any]:
    return _off_policy(num_envs, decisions) | {
        "target_update_interval": 50 * num_envs,
        "exploration_fraction": 0.2,
        "exploration_initial_eps": 0.2,
        "exploration_final_eps": 0.02,
    }


_HYPERPARAMETERS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "a2c": _a2c,
    "ddpg": _ddpg,
    "dqn": _dqn,
    "ppo": _ppo,
    "sac": _sac,
    "td3": _td3,
}


class SB3Agent:
    """A model of SB3 that is trained as :class:`agents.ddpg.DDPG` is: with a callback, and checkpoints that hold data only.

    A resumed training goes on as if it had never stopped, for all algorithms, on the CPU: networks, optimizers, replay memory, random
    generators and the environment's trainings are restored. What is not: SB3's running means in its log. DQN's exploration, and a learning rate
    that falls, follow the planned number of steps, so that they differ if another one is planned on resuming.

    Args:
        algorithm: ``"a2c"``, ``"ddpg"``, ``"dqn"``, ``"ppo"``, ``"sac"`` or ``"td3"``.
        environment: Made with ``autoreset_mode="SameStep"``.
        hyperparameters: Of the algorithm's constructor; None for :func:`default_hyperparameters` with the longest training. ``learning_rate``
            may be ``"lin_0.001"``, as in RL Zoo: down to 0 along a line over the planned number of steps.
        seed: Of networks, exploration, replay, and of the environment's trainings. SB3 seeds the global generators with it.
        tensorboard_log: Folder of SB3's TensorBoard logs.
        num_variants: Divides the rewards of so many variants by scales of their own, see :class:`VariantRewardScale`; None for not.

    Attributes:
        model: SB3's model.

    Raises:
        ValueError: If a name is unknown, a hyperparameter is refused, or the actions don't suit the algorithm.
    """

    def __init__(
        self,
        algorithm: str,
        environment: LearningRateVectorEnv,
        hyperparameters: Mapping[str, Any] | None = None,
        seed: int = 0,
        tensorboard_log: str | os.PathLike[str] | None = None,
        num_variants: int | None = None,
    ) -> None:
        if algorithm not in _HYPERPARAMETERS:
            raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
        _check_actions(algorithm, environment.single_action_space)
        if hyperparameters is None:
            decisions = -(-int(environment.episodes.horizons.max()) // environment.mdp.steps_per_action)
            hyperparameters = default_hyperparameters(algorithm, environment.num_envs, decisions)
        kind: type[BaseAlgorithm] = getattr(stable_baselines3, algorithm.upper())
        valid = set(inspect.signature(kind).parameters) - {"policy", "env", "seed", "tensorboard_log", "_init_setup_model"}
        for name in hyperparameters:
            if name not in valid:
                raise unknown_name(f"hyperparameter of {algorithm}", name, valid)
        self.algorithm, self.environment, self.seed = algorithm, environment, check_seed(seed)
        adapter = LearningRateVecEnv(environment)
        self._monitor = EpisodeMonitor(adapter)
        self._scale = None if num_variants is None else VariantRewardScale(self._monitor, num_variants, float(hyperparameters.get("gamma", 0.99)))
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        arguments = copy.deepcopy(dict(hyperparameters))
        if isinstance(rate := arguments.get("learning_rate"), str):
            arguments["learning_rate"] = _linear_schedule(rate)
        try:
            self.model = kind(default_policy(algorithm), self._scale or self._monitor, seed=self.seed, tensorboard_log=log, **arguments)
        except (AssertionError, TypeError, AttributeError) as error:
            raise ValueError(f"Stable-Baselines3 refuses the hyperparameters {dict(hyperparameters)}: {error}") from error
        adapter.set_seeds(role_seeds(self.seed, Role.TRAIN, environment.num_envs))

    @property
    def num_steps_taken(self) -> int:
        """Transitions of all members together so far."""
        return self.model.num_timesteps

    def learn(self, total_steps: int, callback: Callable[[SB3Agent], bool | None] | None = None) -> SB3Agent:
        """Trains until the agent has taken ``total_steps`` steps in all, and on to the end of a rollout.

        Args:
            total_steps: Transitions of all members together.
            callback: Called with the agent before each rollout but the first, after the updates of the last one, and at the end; training
                stops where it returns False.

        Returns:
            The agent.
        """
        missing = total_steps - self.num_steps_taken
        try:
            if missing > 0:
                self.model.learn(missing, _BetweenRollouts(self, callback), tb_log_name=self.algorithm, reset_num_timesteps=False)
                if callback is not None:
                    callback(self)
        except _StoppedError:
            pass
        return self

    def bind(self) -> BoundController:
        """The policy with the environment's decision process."""
        return export_policy(self.model, self.environment.mdp)

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that determines the rest of the training, for :meth:`restore`. Not within a rollout."""
        model = self.model
        generator = model.action_space.np_random
        tree = {
            "parameters": model.get_parameters(),
            "counters": {name: getattr(model, name) for name in _COUNTERS if hasattr(model, name)},
            "entropy": getattr(model, "log_ent_coef", None),
            "observations": model._last_obs,
            "starts": model._last_episode_starts,
            "memory": _memory_state(getattr(model, "replay_buffer", None)),
            "noise": getattr(model.action_noise, "values", None),
            "torch_generator": torch.get_rng_state(),
            "numpy_generator": np.random.get_state(),  # noqa: NPY002  (SB3 draws from the global generators)
            "action_generator": generator.bit_generator.state,
            "monitor": [self._monitor.episode_returns, self._monitor.episode_lengths],
            "reward_scale": None if self._scale is None else self._scale.get_state(),
            "environment": self.environment.get_state(),
        }
        tensors: dict[str, torch.Tensor] = {}
        state = pack(tree, tensors)
        write_file(path, CHECKPOINT_KIND, {"state": state, "algorithm": self.algorithm, "seed": self.seed}, tensors)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Puts back what :meth:`save_checkpoint` of an agent with the same arguments wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is damaged, foreign, or does not fit the agent.
        """
        metadata, tensors = read_file(path, CHECKPOINT_KIND)
        model = self.model
        try:
            if (metadata["algorithm"], metadata["seed"]) != (self.algorithm, self.seed):
                raise ValueError(f"it is of {metadata['algorithm']} with seed {metadata['seed']}")
            tree = unpack(metadata["state"], tensors)
            parameters: Any = {name: _with_indices(state) for name, state in tree["parameters"].items()}
            model.set_parameters(parameters)
            for name, value in tree["counters"].items():
                setattr(model, name, value)
            if tree["entropy"] is not None:
                model.log_ent_coef.data.copy_(tree["entropy"])  # type: ignore[attr-defined]
            model._last_obs, model._last_episode_starts = tree["observations"], tree["starts"]
            _restore_memory(getattr(model, "replay_buffer", None), tree["memory"])
            if isinstance(model.action_noise, CorrelatedActionNoise):
                model.action_noise.values = tree["noise"]
            self._monitor.episode_returns, self._monitor.episode_lengths = tree["monitor"]
            if self._scale is not None:
                self._scale.set_state(tree["reward_scale"])
            self.environment.set_state(tree["environment"])
            model.action_space.np_random.bit_generator.state = tree["action_generator"]
            np.random.set_state(tree["numpy_generator"])  # noqa: NPY002
            torch.set_rng_state(tree["torch_generator"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError, json.JSONDecodeError) as error:
            raise FileFormatError(f"The checkpoint {os.fspath(path)} does not fit this training, or is damaged: {error!r}.") from error


def _linear_schedule(text: str) -> LinearSchedule:
    """The schedule of a text such as "lin_0.001"."""
    with contextlib.suppress(ValueError):
        if text.startswith("lin_") and 0 < (start := float(text.removeprefix("lin_"))) < math.inf:
            return LinearSchedule(start, 0.0, 1.0)
    raise ValueError(f"learning_rate must be a number or a text such as 'lin_0.001', but {text!r} was given.")


class _StoppedError(Exception):
    """The callback wants no more."""


class _BetweenRollouts(BaseCallback):
    """Calls a callback where nothing is half done."""

    def __init__(self, agent: SB3Agent, callback: Callable[[SB3Agent], bool | None] | None) -> None:
        super().__init__()
        self._agent, self._callback, self._is_first = agent, callback, True

    def _on_rollout_start(self) -> None:
        if not self._is_first and self._callback is not None and self._callback(self._agent) is False:
            raise _StoppedError
        self._is_first = False

    def _on_step(self) -> bool:
        return True


_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "_current_progress_remaining", "exploration_rate")
_MEMORY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _memory_state(memory: ReplayBuffer | None) -> dict[str, Any] | None:
    """What a replay memory holds, without the room that is still free."""
    if memory is None:
        return None
    return {"pos": memory.pos, "full": memory.full} | {name: getattr(memory, name)[: memory.size()] for name in _MEMORY}


def _restore_memory(memory: ReplayBuffer | None, state: Mapping[str, Any] | None) -> None:
    if memory is None or state is None:
        return
    memory.pos, memory.full = state["pos"], state["full"]
    for name in _MEMORY:
        getattr(memory, name)[: memory.size()] = state[name]


def _with_indices(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state, whose keys were integers before they became JSON; a module's as it is."""
    if "param_groups" in state:
        state["state"] = {int(index): value for index, value in state["state"].items()}
    return state


def _check_actions(algorithm: str, space: gym.Space[Any]) -> None:
    """Refuses actions that the algorithm can't choose.

    Raises:
        ValueError: If they don't suit it.
    """
    is_discrete = isinstance(space, gym.spaces.Discrete)
    if is_discrete and algorithm not in ("a2c", "dqn", "ppo"):
        raise ValueError(f'{algorithm} needs continuous actions, but the space is {space}. Use action="relative", "absolute" or "residual".')
    if not is_discrete and algorithm == "dqn":
        raise ValueError(f'dqn needs discrete actions, but the space is {space}. Use action="discrete".')
    if not is_discrete and not _is_unit_box(space):
        raise ValueError(f'{algorithm} needs actions in [-1, 1], but the space is {space}. Use action="relative", "absolute" or "residual".')


def _is_unit_box(space: gym.Space[Any]) -> bool:
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and bool((space.low == -1).all() and (space.high == 1).all())


def export_policy(model: BaseAlgorithm, mdp: MDP) -> BoundController:
    """An MLP policy of SB3's PPO, A2C, SAC, TD3, DDPG or DQN as a network of its own, equal to the model's deterministic ``predict``.

    Args:
        model: Trained with ``"MlpPolicy"``.
        mdp: The decision process that it was trained in.

    Returns:
        A controller that :func:`lr_env.save_controller` can save; it shares nothing with the model.

    Raises:
        ValueError: If the policy is of another kind, was trained on normalised observations, or does not fit the decision process.
    """
    policy, normaliser = model.policy, model.get_vec_normalize_env()
    if normaliser is not None and normaliser.norm_obs:
        raise ValueError(
            "The model was trained on VecNormalize's observations, which a controller does not see; the environment's need no normalisation. "
            "Train with VecNormalize(norm_obs=False), or without it."
        )
    if model.use_sde:
        raise ValueError("A policy with state-dependent exploration (use_sde=True) can't be exported. Train with use_sde=False.")
    if type(policy) not in _PARTS:  # subclasses may compute anything
        kinds = ", ".join(sorted(kind.__name__ for kind in _PARTS))
        raise ValueError(f'Only SB3\'s MLP policies ({kinds}) can be exported, but {type(policy).__name__} was given. Train with "MlpPolicy".')
    extractor, modules, is_bounded = _PARTS[type(policy)](policy)
    if type(extractor) is not FlattenExtractor:
        raise ValueError(f"Only policies without a features extractor of their own can be exported, but this one has a {type(extractor).__name__}.")
    is_discrete = isinstance(model.action_space, gym.spaces.Discrete)
    if not is_discrete and not _is_unit_box(model.action_space):
        raise ValueError(f"Only policies with actions in [-1, 1] or choices can be exported, but this one's space is {model.action_space}.")
    network = _policy_network(modules, "argmax" if is_discrete else "tanh" if is_bounded else "clip")
    _check_spaces(model, mdp)
    return BoundController(network, mdp)


def _check_spaces(model: BaseAlgorithm, mdp: MDP) -> None:
    """Refuses a decision process whose spaces are not the model's; with several groups of rates only the task knows how many there are.

    Raises:
        ValueError: If they differ.
    """
    process = mdp.begin(1, 1, 0.0)
    found, expected = (model.observation_space, model.action_space), (process.observation_space, process.action_space)
    if mdp.lr_groups == "global" and found != expected:
        raise ValueError(f"The model's spaces {found} are not those of the decision process, {expected}. Give the one that it was trained in.")


def _policy_network(modules: Sequence[nn.Module], output: Output) -> PolicyNetwork:
    """A copy of linear layers with the same activation between all of them.

    Raises:
        ValueError: If they are anything else.
    """
    linear, between = modules[::2], modules[1::2]
    kinds = {type(activation) for activation in between} or {nn.ReLU}
    activations: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Tanh: "tanh"}
    if len(kinds) > 1 or not kinds <= set(activations) or any(type(layer) is not nn.Linear for layer in linear):
        raise ValueError(f"Only linear layers with ReLU or Tanh between them can be exported, but the policy is {nn.Sequential(*modules)}.")
    widths = [layer.in_features for layer in linear if isinstance(layer, nn.Linear)]
    network = PolicyNetwork(widths[0], linear[-1].out_features, widths[1:], activation=activations[kinds.pop()], output=output)  # type: ignore[arg-type]
    targets = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    for target, source in zip(targets, linear, strict=True):
        target.load_state_dict(source.state_dict())
    return network


def _actor_critic_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.pi_features_extractor, [*policy.mlp_extractor.policy_net, policy.action_net], False


def _sac_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.actor.features_extractor, [*policy.actor.latent_pi, policy.actor.mu], True


def _td3_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.actor.features_extractor, list(policy.actor.mu)[:-1], True  # all but the tanh


def _dqn_parts(policy: Any) -> tuple[nn.Module, list[nn.Module], bool]:
    return policy.q_net.features_extractor, list(policy.q_net.q_net), False


_PARTS: Mapping[type[Any], Callable[[Any], tuple[nn.Module, list[nn.Module], bool]]] = {
    ActorCriticPolicy: _actor_critic_parts,
    SACPolicy: _sac_parts,
    CalmSACPolicy: _sac_parts,
    TD3Policy: _td3_parts,
    CalmTD3Policy: _td3_parts,
    DQNPolicy: _dqn_parts,
}
"""Of a policy: its features extractor, its layers from observations to actions, and whether a tanh bounds them."""


def load_model(algorithm: str, path: str | os.PathLike[str]) -> BaseAlgorithm:
    """A model that SB3 saved. **Runs code from the file**: open only files that you trust.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the algorithm is unknown or the file holds another one's model.
    """
    if algorithm not in _HYPERPARAMETERS:
        raise unknown_name("algorithm", algorithm, _HYPERPARAMETERS)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)}.")
    kind: type[BaseAlgorithm] = getattr(stable_baselines3, algorithm.upper())
    try:
        return kind.load(Path(path), device="cpu", replay_buffer_class=None)  # else SB3 warns of the one that it chose itself for n_steps
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)} is no model of {algorithm} that SB3 saved: {error!r}.") from error
