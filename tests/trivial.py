"""A trivial vector environment: the best action is half the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class HalfVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Reward −(a − o/2)² for an observation o that is uniform in [−1, 1]; episodes of 5 decisions, truncated."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, low: float = -1.0, high: float = 1.0) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.single_action_space = gym.spaces.Box(low, high, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = np.random.default_rng(0)
        self._step = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._generator = np.random.default_rng(seed)
        self._step = 0
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards = -np.square(actions[:, 0] - self._observations[:, 0] / 2).astype(np.float64)
        self._step += 1
        ended = np.full(self.num_envs, self._step % 5 == 0)
        final, info = self._observe(), {}
        if ended.any():
            info["final_obs"] = np.array([*final, None], object)[:-1]
            final = self._observe()
        return final, rewards, np.zeros(self.num_envs, bool), ended, info

    def _observe(self) -> np.ndarray:
        self._observations = self._generator.uniform(-1, 1, (self.num_envs, 1)).astype(np.float32)
        return self._observations.copy()
