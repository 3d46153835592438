"""The online actor-critic over many trainings: what ``lr-train --algorithm actor-critic`` trains.

In the paper actor and critic learn during one training and end with it. Here they go on to the next: a training begins with an empty LSTM, and
with the networks, and Adam's averages, of the one before. With one training at a time, the default, each of them runs Algorithm 1 as it is written
in :mod:`agents.actor_critic`; several side by side share one actor and one critic, which follow the mean of their gradients. What comes out is the
actor, frozen: a recurrent controller, which no longer learns where it is used.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from lr_env import LearningRateVectorEnv
from lr_env.controllers import BoundController
from lr_env.seeding import Role, check_seed, role_seeds

from agents.actor_critic import ActorCriticConfig, OnlineLearner, check_process, knows_same_state, same_states
from agents.checkpoints import opened_checkpoint, write_checkpoint

CHECKPOINT_KIND = "actor-critic-checkpoint"


class OnlineTraining:
    """One actor and one critic that learn in training after training.

    Args:
        environment: Made with ``autoreset_mode="SameStep"`` and ``**ONLINE_ENVIRONMENT``, or at least ``action="rate"``.
        config: Choices.
        seed: Of networks, exploration and trainings.

    Attributes:
        learner: Actor and critic.
        num_steps_taken: Transitions so far.

    Raises:
        ValueError: If the environment resets at another time, or its action is not the rate.
    """

    def __init__(self, environment: LearningRateVectorEnv, config: ActorCriticConfig | None = None, seed: int = 0) -> None:
        if environment.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError('The online actor-critic trains in an environment made with autoreset_mode="SameStep".')
        mdp = check_process(environment.mdp)
        self.environment, self.config, self.seed = environment, config or ActorCriticConfig(), check_seed(seed)
        num_features = environment.single_observation_space.shape[0]  # type: ignore[index]
        self.learner = OnlineLearner(num_features, mdp.rate_range(), self.config, np.random.SeedSequence([self.seed]))
        self.num_steps_taken = 0
        self._knows_same = knows_same_state(mdp)
        self._observations: np.ndarray | None = None
        self._losses, self._starts = np.zeros(environment.num_envs), np.ones(environment.num_envs, bool)

    def learn(self, total_steps: int, callback: Callable[[OnlineTraining], bool | None] | None = None) -> OnlineTraining:
        """Trains until the agent has taken ``total_steps`` steps in all.

        Args:
            total_steps: Transitions of all members together.
            callback: Called with the agent after each step of all members; training stops where it returns False.

        Returns:
            The agent.
        """
        if self._observations is None:
            seeds = role_seeds(self.seed, Role.TRAIN, self.environment.num_envs)
            self._observations, info = self.environment.reset(seed=seeds)
            self._losses = np.array(info["loss"])
        while self.num_steps_taken < total_steps:
            self._step()
            if callback is not None and callback(self) is False:
                break
        return self

    def bind(self) -> BoundController:
        """The present actor, frozen, with the environment's decision process."""
        return BoundController(copy.deepcopy(self.learner.actor), self.environment.mdp)

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that determines the rest of the training, for :meth:`restore`."""
        tree = {
            "learner": self.learner.get_state(),
            "environment": self.environment.get_state(),
            "observations": self._observations,
            "losses": self._losses,
            "starts": self._starts,
            "num_steps_taken": self.num_steps_taken,
        }
        write_checkpoint(path, CHECKPOINT_KIND, self._owner(), tree)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Puts back what :meth:`save_checkpoint` of an agent with the same arguments wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is damaged, foreign, or does not fit the agent.
        """
        with opened_checkpoint(path, CHECKPOINT_KIND, self._owner()) as (_, tree):
            self.learner.set_state(tree["learner"])
            self.environment.set_state(tree["environment"])
            self._observations, self._losses, self._starts = tree["observations"], tree["losses"], tree["starts"]
            self.num_steps_taken = tree["num_steps_taken"]

    def _owner(self) -> dict[str, Any]:
        return {"config": dataclasses.asdict(self.config), "seed": self.seed}

    def _step(self) -> None:
        """One SGD step of all members, and what is learnt from it."""
        assert self._observations is not None
        rates = self.learner.act_all(self._observations, self._starts)
        observations, rewards, terminated, truncated, info = self.environment.step(rates[:, None])
        ended = terminated | truncated
        same = same_states(self._losses, rewards) if self._knows_same else observations
        self.learner.learn_all(rewards, same, observations, ~ended)
        # Of members that have ended these are the next training's.
        self._observations, self._losses, self._starts = observations, np.array(info["loss"]), ended
        self.num_steps_taken += self.environment.num_envs
