"""A model of Stable-Baselines3 that is trained, stopped, saved and resumed as the package's own agents are."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from lr_env import LearningRateVectorEnv
from lr_env.checks import unknown_name
from lr_env.controllers import BoundController
from lr_env.seeding import Role, check_seed, role_seeds
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from agents.checkpoints import opened_checkpoint, write_checkpoint
from agents.sb3.environments import EpisodeMonitor, LearningRateVecEnv, PairedVecEnv, VariantRewardScale
from agents.sb3.export import export_policy, is_unit_box
from agents.sb3.hyperparameters import ALGORITHMS, default_hyperparameters, default_policy
from agents.sb3.policies import CorrelatedActionNoise

CHECKPOINT_KIND = "sb3-checkpoint"


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
        paired: Whether the second half of the environment's trainings are twins, see :class:`PairedVecEnv`.

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
        paired: bool = False,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise unknown_name("algorithm", algorithm, ALGORITHMS)
        _check_actions(algorithm, environment.single_action_space)
        if hyperparameters is None:
            decisions = -(-int(environment.episodes.horizons.max()) // environment.mdp.steps_per_action)
            hyperparameters = default_hyperparameters(algorithm, environment.num_envs // (2 if paired else 1), decisions)
        kind: type[BaseAlgorithm] = getattr(stable_baselines3, algorithm.upper())
        valid = set(inspect.signature(kind).parameters) - {"policy", "env", "seed", "tensorboard_log", "_init_setup_model"}
        for name in hyperparameters:
            if name not in valid:
                raise unknown_name(f"hyperparameter of {algorithm}", name, valid)
        self.algorithm, self.environment, self.seed = algorithm, environment, check_seed(seed)
        adapter = LearningRateVecEnv(environment)
        self._pairs = PairedVecEnv(adapter) if paired else None
        trainings = self._pairs or adapter
        self._monitor = EpisodeMonitor(trainings)
        self._scale = None if num_variants is None else VariantRewardScale(self._monitor, num_variants, float(hyperparameters.get("gamma", 0.99)))
        log = None if tensorboard_log is None else os.fspath(tensorboard_log)
        arguments = copy.deepcopy(dict(hyperparameters))
        if isinstance(rate := arguments.get("learning_rate"), str):
            arguments["learning_rate"] = _linear_schedule(rate)
        try:
            self.model = kind(default_policy(algorithm), self._scale or self._monitor, seed=self.seed, tensorboard_log=log, **arguments)
        except (AssertionError, TypeError, AttributeError) as error:
            raise ValueError(f"Stable-Baselines3 refuses the hyperparameters {dict(hyperparameters)}: {error}") from error
        trainings.set_seeds(role_seeds(self.seed, Role.TRAIN, trainings.num_envs))

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
            "pairs": None if self._pairs is None else self._pairs.is_over,
            "environment": self.environment.get_state(),
        }
        write_checkpoint(path, CHECKPOINT_KIND, {"algorithm": self.algorithm, "seed": self.seed}, tree)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Puts back what :meth:`save_checkpoint` of an agent with the same arguments wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is damaged, foreign, or does not fit the agent.
        """
        model, owner = self.model, {"algorithm": self.algorithm, "seed": self.seed}
        with opened_checkpoint(path, CHECKPOINT_KIND, owner) as (_, tree):
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
            if self._pairs is not None:
                self._pairs.is_over = tree["pairs"]
            self.environment.set_state(tree["environment"])
            model.action_space.np_random.bit_generator.state = tree["action_generator"]
            np.random.set_state(tree["numpy_generator"])  # noqa: NPY002
            torch.set_rng_state(tree["torch_generator"])


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
    if not is_discrete and not is_unit_box(space):
        raise ValueError(f'{algorithm} needs actions in [-1, 1], but the space is {space}. Use action="relative", "absolute" or "residual".')
