"""Small tasks and rollouts that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from lr_env import LearningRateEnv, Task
from lr_env.seeding import Streams
from lr_env.tasks.models import mlp
from lr_env.training import Population, make_optimizer

RUINOUS_RATE = 1e30
"""Turns weights into numbers so large that the next loss is not finite."""


TINY_MODEL = partial(mlp, 4, (8,), 3)


def tiny_task(model: Callable[[], nn.Module] = TINY_MODEL, loss: Any = "cross_entropy", **options: Any) -> Task:
    """A classification task of 144 examples, 100 of them for training: 6 batches an epoch and 4 examples dropped."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(144, 4))
    targets = (inputs @ generator.normal(size=(4, 3))).argmax(1)
    return Task.from_tensors("tiny", model, inputs, targets, loss=loss, **{"batch_size": 16, "horizon": 8, **options})


@dataclass
class Rollout:
    """What an environment returned, step by step; the first observation belongs to the reset."""

    observations: list[np.ndarray] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)
    terminated: list[Any] = field(default_factory=list)
    truncated: list[Any] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)

    def add(self, observation: np.ndarray, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        self.observations.append(observation)
        self.rewards.append(reward)
        self.terminated.append(terminated)
        self.truncated.append(truncated)
        self.infos.append(info)

    def values(self, name: str) -> np.ndarray:
        """One entry of the information at every step."""
        return np.array([info[name] for info in self.infos])


def roll_out(env: Any, actions: Sequence[Any], seed: int | None = 0) -> Rollout:
    """Resets and takes all actions, or as many as a single environment's episode lasts."""
    rollout = Rollout()
    observation, info = env.reset(seed=seed)
    rollout.observations.append(observation)
    rollout.infos.append(info)
    continue_with(env, actions, rollout)
    return rollout


def continue_with(env: Any, actions: Sequence[Any], rollout: Rollout) -> None:
    """Takes actions; stops at the end of a single environment's episode."""
    for action in actions:
        rollout.add(*env.step(action))
        if isinstance(env.unwrapped, LearningRateEnv) and (rollout.terminated[-1] or rollout.truncated[-1]):
            break


def assert_same_bits(first: Rollout, second: Rollout) -> None:
    """Two rollouts agree bit for bit."""
    for name in ("observations", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(np.array(getattr(first, name)), np.array(getattr(second, name)), strict=True)
    assert len(first.infos) == len(second.infos)
    for name in ("loss", "learning_rate", "step", "diverged"):
        np.testing.assert_array_equal(first.values(name), second.values(name), strict=True)


def start(task: Task, seeds: Sequence[int], optimizer: str = "sgd", **options: Any) -> Population:
    """A population whose members have just been given these seeds."""
    population = Population(task, len(seeds), make_optimizer(optimizer)[0], **{"dtype": "float64", **options})
    population.restart(np.arange(len(seeds)), [Streams(seed) for seed in seeds])
    return population


def advance(population: Population, rates: np.ndarray) -> np.ndarray:
    """Takes the steps of rates ``(T, N)``; losses ``(T + 1, N)``."""
    first = population.begin() if (population.steps == 0).all() else population.train(np.zeros((rates.shape[1], 1)))
    return np.array([first[0, 0], *(population.step(row[:, None])[0, 0] for row in rates)])


def fingerprint(task: str, optimizer: str, num_envs: int) -> str:
    """Every bit that 30 steps return; of a single environment where ``num_envs`` is 0."""
    torch.set_num_threads(1)
    options = {"task": task, "optimizer": optimizer}
    env = gym.make_vec("LearningRate-v0", num_envs=num_envs, **options) if num_envs else gym.make("LearningRate-v0", **options)
    env.action_space.seed(1)
    rollout = roll_out(env, [env.action_space.sample() for _ in range(30)], seed=7)
    return b"".join(np.asarray(part).tobytes() for part in (*rollout.observations, *rollout.rewards)).hex()
