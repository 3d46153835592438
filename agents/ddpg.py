"""Deep deterministic policy gradient (Lillicrap et al. 2015, arXiv 1509.02971) for vector environments.

An actor decides the action, a critic judges it, as in Xu et al. 2017; unlike that paper's online algorithm, this one learns off-policy from
a replay memory, with target networks, over many trainings.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from lr_env.controllers import BoundController, PolicyNetwork, save_controller
from lr_env.seeding import Role, check_seed, role_seeds
from torch import nn

from agents.checkpoints import opened_checkpoint, write_checkpoint
from agents.networks import CriticNetwork
from agents.replay import ReplayMemory

CHECKPOINT_KIND = "ddpg-checkpoint"


@dataclass(frozen=True)
class DDPGConfig:
    """Hyperparameters of :class:`DDPG`; a step is one transition of one member."""

    discount: float = 0.999
    """γ, within [0, 1]; near 1 − 1 / (10 · decisions of an episode)."""
    num_steps: int = 5
    """Decisions over which rewards are summed before the target critic takes over; 1 as Lillicrap et al."""
    actor_learning_rate: float = 3e-4
    """Adam's rate for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's rate for the critic."""
    target_rate: float = 0.005
    """τ: how far the target networks move towards the networks at each update, within (0, 1]."""
    batch_size: int = 256
    """Transitions in an update."""
    memory_size: int = 500_000
    """Transitions that the replay memory holds."""
    learning_starts: int = 5_000
    """Steps before the first update."""
    updates_per_decision: int = 2
    """Updates after each decision of all members."""
    actor_starts: int = 500
    """Updates of the critic before the first of the actor, which an untrained critic would push to a bound; the targets stand still till then."""
    saturation_penalty: float = 1e-3
    """Weight of the squared preactivations of the actor's tanh in its loss: keeps it from saturating, where it would learn no more."""
    exploration_noise: float = 0.2
    """Standard deviation of the noise on actions in [−1, 1]."""
    noise_correlation: float = 0.85
    """Correlation of successive noise, within [0, 1): an Ornstein-Uhlenbeck process as Lillicrap et al.'s; 0 for white noise."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    reward_scale: float = 1.0
    """Factor on rewards, > 0."""

    def __post_init__(self) -> None:
        ranges = {
            "discount": 0 <= self.discount <= 1,
            "target_rate": 0 < self.target_rate <= 1,
            "noise_correlation": 0 <= self.noise_correlation < 1,
            "exploration_noise": self.exploration_noise >= 0,
            "actor_learning_rate": self.actor_learning_rate > 0,
            "critic_learning_rate": self.critic_learning_rate > 0,
            "reward_scale": self.reward_scale > 0,
            "num_steps": self.num_steps >= 1,
            "batch_size": self.batch_size >= 1,
            "memory_size": self.memory_size >= 1,
            "learning_starts": self.learning_starts >= 0,
            "actor_starts": self.actor_starts >= 0,
            "saturation_penalty": self.saturation_penalty >= 0,
            "updates_per_decision": self.updates_per_decision >= 0,
        }
        for name, is_valid in ranges.items():
            if not is_valid:
                raise ValueError(f"{name} is out of range: {getattr(self, name)!r} was given. See the field's documentation in DDPGConfig.")


class DDPG:
    """A DDPG agent.

    Args:
        environment: A vector environment with continuous actions that resets in the same step:
            ``gym.make_vec("LearningRate-v0", num_envs=64, autoreset_mode="SameStep")``.
        config: Hyperparameters.
        seed: Seed of networks, exploration, replay, and of the environment's trainings.

    Attributes:
        num_steps_taken: Transitions so far.
        num_updates: Updates so far.
        actor: The policy; a controller.

    Raises:
        TypeError: If the environment is no vector environment or its actions are not continuous.
        ValueError: If it does not reset in the same step.
    """

    def __init__(self, environment: VectorEnv[Any, Any, Any], config: DDPGConfig | None = None, seed: int = 0) -> None:
        _check_environment(environment)
        self.environment, self.config, self.seed = environment, config or DDPGConfig(), check_seed(seed)
        space = environment.single_action_space
        assert isinstance(space, gym.spaces.Box)
        assert environment.single_observation_space.shape is not None
        num_features, num_actions = int(np.prod(environment.single_observation_space.shape)), int(np.prod(space.shape))
        self._action_center, self._action_radius = (space.high + space.low) / 2, (space.high - space.low) / 2
        actor_seed, critic_seed, exploration, replay = np.random.SeedSequence(self.seed).spawn(4)
        self.actor = PolicyNetwork(num_features, num_actions, self.config.hidden, _word(actor_seed))
        self.critic = CriticNetwork(num_features, num_actions, self.config.hidden, _word(critic_seed))
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), self.config.actor_learning_rate, fused=True)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), self.config.critic_learning_rate, fused=True)
        self.memory = ReplayMemory(self.config.memory_size, environment.num_envs, num_features, num_actions)
        self._exploration_generator, self._replay_generator = np.random.default_rng(exploration), np.random.default_rng(replay)
        self._noise = np.zeros((environment.num_envs, num_actions))
        self._observations: np.ndarray | None = None
        self.num_steps_taken = self.num_updates = 0
        self._returns = np.zeros(environment.num_envs)
        self.recent_returns: list[float] = []

    def learn(
        self,
        total_steps: int,
        callback: Callable[[DDPG], bool | None] | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_interval: int = 100_000,
    ) -> DDPG:
        """Trains until the agent has taken ``total_steps`` steps in all, so that a resumed agent does only what is missing.

        Args:
            total_steps: Transitions of all members together.
            callback: Called with the agent after each decision of all members; training stops where it returns False.
            checkpoint: File to which the state is written every ``checkpoint_interval`` steps and at the end; see :meth:`resume`.
            checkpoint_interval: Steps between checkpoints.

        Returns:
            The agent.
        """
        if self._observations is None:
            seeds = role_seeds(self.seed, Role.TRAIN, self.environment.num_envs)
            self._observations, _ = self.environment.reset(seed=seeds)  # type: ignore[arg-type]
        while self.num_steps_taken < total_steps:
            self._act_once()
            if self.num_steps_taken >= self.config.learning_starts:
                for _ in range(self.config.updates_per_decision):
                    self._update()
            before = self.num_steps_taken - self.environment.num_envs
            if checkpoint is not None and self.num_steps_taken // checkpoint_interval > before // checkpoint_interval:
                self.save_checkpoint(checkpoint)
            if callback is not None and callback(self) is False:
                break
        if checkpoint is not None:
            self.save_checkpoint(checkpoint)
        return self

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Actions ``(N, A)``, see :class:`lr_env.controllers.Controller`; without ``deterministic``, with white noise."""
        actions, state = self.actor.predict(observation, state, episode_start)
        if not deterministic:
            noise = self._exploration_generator.standard_normal(actions.shape) * self.config.exploration_noise
            actions = np.clip(actions + noise, -1, 1).astype(np.float32)
        return (self._action_center + self._action_radius * actions).astype(np.float32), state

    def bind(self) -> BoundController:
        """The actor with the environment's decision process.

        Raises:
            TypeError: If the environment is no ``LearningRate-v0``.
        """
        mdp = getattr(self.environment.unwrapped, "mdp", None)
        if mdp is None:
            raise TypeError(f"Only an agent of LearningRate-v0 controls a learning rate, but this one's environment is {self.environment}.")
        return BoundController(self.actor, mdp)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the trained controller as one ``.safetensors`` file; ``lr_env.load_controller`` reads it."""
        save_controller(path, self.bind())

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that determines the rest of the training, for :meth:`resume`.

        Raises:
            TypeError: If the environment has no ``get_state``.
        """
        get_state = getattr(self.environment.unwrapped, "get_state", None)
        if get_state is None:
            raise TypeError(f"{self.environment} has no get_state(), so that a training on it cannot be checkpointed.")
        tree = {
            **{name: dict(getattr(self, name).state_dict()) for name in _NETWORKS},
            **{name: _optimizer_state(getattr(self, name)) for name in _OPTIMIZERS},
            **{name: getattr(self, name).bit_generator.state for name in _GENERATORS},
            "memory": self.memory.get_state(),
            "environment": get_state(),
            "observations": self._observations,
            "noise": self._noise,
            "returns": self._returns,
            "recent_returns": self.recent_returns,
            "num_steps_taken": self.num_steps_taken,
            "num_updates": self.num_updates,
        }
        write_checkpoint(path, CHECKPOINT_KIND, {"config": dataclasses.asdict(self.config), "seed": self.seed}, tree)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], environment: VectorEnv[Any, Any, Any]) -> DDPG:
        """The agent of a checkpoint; ``learn`` goes on as if it had never stopped.

        Args:
            path: A file that ``learn`` or ``save_checkpoint`` wrote.
            environment: Made with the same arguments as the one that was trained on.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is damaged, foreign, or does not fit the environment.
        """
        with opened_checkpoint(path, CHECKPOINT_KIND) as (owner, tree):
            config = DDPGConfig(**{**owner["config"], "hidden": tuple(owner["config"]["hidden"])})
            agent = cls(environment, config, owner["seed"])
            for name in _NETWORKS:
                getattr(agent, name).load_state_dict(tree[name])
            for name in _OPTIMIZERS:
                _restore_optimizer(getattr(agent, name), tree[name])
            for name in _GENERATORS:
                getattr(agent, name).bit_generator.state = tree[name]
            agent.memory.set_state(tree["memory"])
            environment.unwrapped.set_state(tree["environment"])  # type: ignore[attr-defined]
            agent._observations, agent._noise, agent._returns = tree["observations"], tree["noise"], tree["returns"]
            agent.recent_returns = tree["recent_returns"]
            agent.num_steps_taken, agent.num_updates = tree["num_steps_taken"], tree["num_updates"]
        return agent

    def _act_once(self) -> None:
        """One decision of all members, with exploration, into the memory."""
        assert self._observations is not None
        correlation = self.config.noise_correlation
        # Stationary with unit variance, whatever the correlation.
        self._noise = correlation * self._noise + np.sqrt(1 - correlation**2) * self._exploration_generator.standard_normal(self._noise.shape)
        actions, _ = self.actor.predict(self._observations)
        actions = np.clip(actions + self.config.exploration_noise * self._noise, -1, 1).astype(np.float32)
        scaled = (self._action_center + self._action_radius * actions).astype(np.float32)
        observations, rewards, terminated, truncated, info = self.environment.step(scaled)
        ended = terminated | truncated
        next_observations = observations
        if ended.any():
            next_observations = observations.copy()
            for member in np.flatnonzero(ended):
                next_observations[member] = info["final_obs"][member]
        self.memory.add(self._observations, actions, rewards * self.config.reward_scale, next_observations, terminated, truncated)
        self._observations = observations
        self.num_steps_taken += self.environment.num_envs
        self._returns += rewards
        if ended.any():
            self.recent_returns = [*self.recent_returns, *self._returns[ended].tolist()][-self.environment.num_envs :]
            self._returns[ended] = 0.0
            self._noise[ended] = self._exploration_generator.standard_normal((int(ended.sum()), self._noise.shape[1]))

    def _update(self) -> None:
        """One update, in the order of algorithm 1 of Lillicrap et al."""
        config = self.config
        batch = self.memory.sample(self._replay_generator, config.batch_size, config.num_steps, config.discount)
        with torch.no_grad():
            next_values = self.target_critic(batch.next_observations, self.target_actor(batch.next_observations))
            targets = batch.returns + batch.discounts * next_values
        critic_loss = nn.functional.mse_loss(self.critic(batch.observations, batch.actions), targets)
        self._critic_optimizer.zero_grad()
        critic_loss.backward()
        self._critic_optimizer.step()

        self.num_updates += 1
        if self.num_updates <= config.actor_starts:
            return
        preactivations = self.actor.preactivations(batch.observations)
        actor_loss = -self.critic(batch.observations, preactivations.tanh()).mean() + config.saturation_penalty * preactivations.square().mean()
        self._actor_optimizer.zero_grad()
        actor_loss.backward()
        self._actor_optimizer.step()

        with torch.no_grad():
            for target, network in ((self.target_actor, self.actor), (self.target_critic, self.critic)):
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), config.target_rate)


_NETWORKS = ("actor", "critic", "target_actor", "target_critic")
_OPTIMIZERS = ("_actor_optimizer", "_critic_optimizer")
_GENERATORS = ("_exploration_generator", "_replay_generator")


def _check_environment(environment: VectorEnv[Any, Any, Any]) -> None:
    if not isinstance(environment, VectorEnv):
        raise TypeError(f"DDPG needs a vector environment, from gym.make_vec, but {type(environment).__name__} was given.")
    if not isinstance(environment.single_action_space, gym.spaces.Box) or not environment.single_action_space.is_bounded():
        raise TypeError(
            f"DDPG needs continuous bounded actions, but the space is {environment.single_action_space}. "
            'Use action="relative", "absolute" or "residual".'
        )
    if environment.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise ValueError('DDPG needs an environment that resets in the same step: pass autoreset_mode="SameStep" to gym.make_vec.')


def _word(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])


def _optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [dict(optimizer.state[parameter]) for parameter in optimizer.param_groups[0]["params"]]


def _restore_optimizer(optimizer: torch.optim.Optimizer, states: list[dict[str, Any]]) -> None:
    for parameter, state in zip(optimizer.param_groups[0]["params"], states, strict=True):
        if state:
            optimizer.state[parameter] = {name: value.clone() for name, value in state.items()}
