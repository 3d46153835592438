"""Direct policy iteration from paired rollouts: a policy is improved by what corrections of its rate turn out to be worth in whole trainings.

Trainings differ far more from one another than a rate changes one of them, so that what a training earns says little about the actions it was
given. Here the very same training, with the same weights, batches and draws, is made several times side by side, each with another action that is
held from the first step to the last. What each earns over the one with the action 0, the schedule or rule that a residual action corrects, is what
that action is worth in this training, and nothing else. A network then learns, from what was observed on the way in any of them, the action that is
worth most: it recognises the training by how it goes, for which it should see the action that is held too (``previous_action``). That is one step
of direct policy iteration (Lazaric, Ghavamzadeh, Munos 2010, "Analysis of a classification-based policy iteration algorithm"), from the policy that
always acts 0, with an action's worth interpolated between those that were tried.

What an action is worth from the first step on stands for what it is worth from the present one: they are the same early in a training, where most
is decided, and part later.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lr_env import LearningRateVectorEnv
from lr_env.controllers import BoundController, PolicyNetwork
from lr_env.mdp.actions import AbsoluteAction, ResidualAction
from lr_env.seeding import Role, check_seed, role_seeds
from torch import Tensor

from agents.checkpoints import opened_checkpoint, write_checkpoint
from agents.evaluation import run_to_the_end

CHECKPOINT_KIND = "policy-iteration-checkpoint"


@dataclass(frozen=True)
class PolicyIterationConfig:
    """Hyperparameters of :class:`DirectPolicyIteration`."""

    actions: tuple[float, ...] = (-1.0, -0.67, -0.4, -0.2, 0.0, 0.2, 0.4, 0.67, 1.0)
    """Actions that are held, in [−1, 1] and increasing, with 0 among them: each training is made once with each."""
    moments: tuple[float, ...] = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
    """Fractions of a training, within [0, 1), at which observations are taken to learn from."""
    largest_gain: float = 1.5
    """Bound on what an action is worth either way, in the reward's units, so that divergences don't drown the rest."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the network's hidden layers."""
    averages: bool = True
    """Whether the network is also given the mean of all observations so far."""
    updates: int = 3000
    """Updates of the network on all that was observed."""
    batch_size: int = 1024
    """Observations in an update."""
    learning_rate: float = 2e-3
    """AdamW's first rate, which falls to 0 along a line."""
    weight_decay: float = 0.3
    """Of AdamW."""
    observation_noise: float = 0.2
    """Standard deviation of noise on what the network is given, in units of its own over all observations: keeps it from learning by heart."""
    action_noise: float = 0.13
    """Standard deviation of noise on its actions, so that it keeps away from where a little more would spoil a training."""

    def __post_init__(self) -> None:
        increasing = all(first < second for first, second in zip(self.actions, self.actions[1:], strict=False))
        ranges = {
            "actions": increasing and 0 in self.actions and len(self.actions) >= 2 and self.actions[0] >= -1 and self.actions[-1] <= 1,
            "moments": len(self.moments) >= 1 and all(0 <= moment < 1 for moment in self.moments),
            "largest_gain": self.largest_gain > 0,
            "updates": self.updates >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": self.learning_rate > 0,
            "weight_decay": self.weight_decay >= 0,
            "observation_noise": self.observation_noise >= 0,
            "action_noise": self.action_noise >= 0,
        }
        for name, is_valid in ranges.items():
            if not is_valid:
                given = getattr(self, name)
                raise ValueError(f"{name} is out of range: {given!r} was given. See the field's documentation in PolicyIterationConfig.")


class DirectPolicyIteration:
    """A policy that learns from rounds of trainings, each made once with every action.

    Args:
        environment: With one continuous action, absolute or residual. Its members are a multiple of the actions times the family's variants.
        config: Hyperparameters.
        seed: Of the trainings and the network.
        next_environment: Makes the environment of a round, 1, 2, …, such as one with other variants; None for the same again.
        progress: Told the transitions so far, those of an unfinished round among them, after each decision.

    Attributes:
        num_steps_taken: Transitions so far, of each training with all of its actions.
        num_rounds: Rounds so far.

    Raises:
        ValueError: If the actions are others, or the number of members does not fit.
    """

    def __init__(
        self,
        environment: LearningRateVectorEnv,
        config: PolicyIterationConfig | None = None,
        seed: int = 0,
        next_environment: Callable[[int], LearningRateVectorEnv] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.environment, self.config, self.seed = environment, config or PolicyIterationConfig(), check_seed(seed)
        process = environment.mdp.begin(1, 1, 0.0)
        if not isinstance(process.action, AbsoluteAction | ResidualAction) or environment.single_action_space.shape != (1,):
            raise ValueError(
                "Direct policy iteration holds one action throughout a training, which must be absolute or residual, but "
                f"action={environment.mdp.action!r} in {environment.single_action_space} was given. "
                'Use action="residual" and lr_groups="global".'
            )
        unit = len(self.config.actions) * int(environment.episodes.variants.max() + 1)
        if environment.num_envs % unit:
            raise ValueError(f"num_envs must be a multiple of actions times variants, {unit}, but {environment.num_envs} was given.")
        self.num_trainings = environment.num_envs // len(self.config.actions)
        self.num_steps_taken = self.num_rounds = 0
        self._next_environment, self._progress = next_environment, progress
        self._inputs: list[np.ndarray] = []
        self._gains: list[np.ndarray] = []
        self._network = self._new_network()
        self._num_rounds_learnt = 0

    def learn(self, total_steps: int, callback: Callable[[DirectPolicyIteration], bool | None] | None = None) -> DirectPolicyIteration:
        """Makes rounds of trainings until they have taken ``total_steps`` steps in all.

        Args:
            total_steps: Transitions of all trainings together.
            callback: Called with the agent after each round; training stops where it returns False.

        Returns:
            The agent.
        """
        while self.num_steps_taken < total_steps:
            self._make_round()
            if callback is not None and callback(self) is False:
                break
        return self

    def bind(self) -> BoundController:
        """What is learnt from all rounds so far, with the environment's decision process."""
        if self._num_rounds_learnt < self.num_rounds:
            self._network, self._num_rounds_learnt = self._fit(), self.num_rounds
        return BoundController(self._network, self.environment.mdp)

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that determines the rest of the training, for :meth:`restore`."""
        tree = {"inputs": self._inputs, "gains": self._gains, "num_steps_taken": self.num_steps_taken, "num_rounds": self.num_rounds}
        write_checkpoint(path, CHECKPOINT_KIND, self._owner(), tree)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Puts back what :meth:`save_checkpoint` of an agent with the same arguments wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            FileFormatError: If it is damaged, foreign, or does not fit the agent.
        """
        with opened_checkpoint(path, CHECKPOINT_KIND, self._owner()) as (_, tree):
            self._inputs, self._gains = tree["inputs"], tree["gains"]
            self.num_steps_taken, self.num_rounds = tree["num_steps_taken"], tree["num_rounds"]
            self._num_rounds_learnt = 0

    def _make_round(self) -> None:
        """Makes each of some new trainings once with every action, and keeps what was observed and what the actions were worth."""
        environment = self.environment
        if self.num_rounds and self._next_environment is not None:
            environment = self._next_environment(self.num_rounds)
        config, episodes, members = self.config, environment.episodes, np.arange(environment.num_envs)
        seeds = role_seeds(self._seed_of_round(self.num_rounds), Role.TRAIN, self.num_trainings)
        held = _HeldActions(np.repeat(config.actions, self.num_trainings), self._network, self._moments(episodes.horizons))
        episodes.restart(members, seeds * len(config.actions))
        progress, before = self._progress, self.num_steps_taken
        show = None if progress is None else lambda count: progress(before + count)
        ends = run_to_the_end(episodes, held, episodes.begin(members), show)
        if environment is not self.environment:
            environment.close()
        returns = ends.returns.reshape(-1, self.num_trainings)  # (K, T)
        gains = np.clip(returns - returns[config.actions.index(0)], -config.largest_gain, config.largest_gain)
        was_going = held.moments < ends.num_decisions  # (M, N)
        training = np.broadcast_to(np.arange(len(members)) % self.num_trainings, was_going.shape)
        self._inputs.append(held.inputs[was_going])
        self._gains.append(gains.T[training[was_going]].astype(np.float32))
        self.num_steps_taken += int(ends.num_decisions.sum())
        self.num_rounds += 1

    def _moments(self, horizons: np.ndarray) -> np.ndarray:
        """Decisions of each member at which its observations are taken, ``(M, N)``; not the first, when nothing has moved yet."""
        decisions = -(-horizons // self.environment.mdp.steps_per_action)
        moments: np.ndarray = np.maximum(np.multiply.outer(self.config.moments, decisions).astype(int), 1)
        return moments

    def _fit(self) -> PolicyNetwork:
        """A new network that was fitted to all rounds."""
        config, network = self.config, self._new_network()
        generator = torch.Generator().manual_seed(self._seed_of_round(-1))
        inputs, gains = (torch.from_numpy(np.concatenate(parts)) for parts in (self._inputs, self._gains))
        centers, scales = inputs.mean(0), inputs.std(0).clamp(min=1e-3)
        inputs = (inputs - centers) / scales
        actions = torch.tensor(config.actions, dtype=torch.float32)
        optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.updates)
        for _ in range(config.updates):
            rows = torch.randint(len(inputs), (config.batch_size,), generator=generator)
            noise = config.observation_noise * torch.randn(len(rows), inputs.shape[1], generator=generator)
            chosen = network.preactivations(inputs[rows] + noise)[:, 0]
            worth = interpolated(gains[rows], actions, chosen + config.action_noise * torch.randn(len(rows), generator=generator))
            # What is beyond the actions that were tried is not known to be worth more: the network shall come back.
            beyond = (chosen - chosen.clamp(config.actions[0], config.actions[-1])).square()
            loss = (_WEIGHT_BEYOND * beyond - worth).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        first = network.layers[0]
        assert isinstance(first, torch.nn.Linear)
        with torch.no_grad():  # for inputs as they are
            first.weight.div_(scales)
            first.bias.sub_(first.weight @ centers)
        return network

    def _new_network(self) -> PolicyNetwork:
        shape = self.environment.single_observation_space.shape
        assert shape is not None
        return PolicyNetwork(shape[0], 1, self.config.hidden, self._seed_of_round(-1), "tanh", "clip", self.config.averages)

    def _seed_of_round(self, number: int) -> int:
        """A seed for a round; −1 stands for the network."""
        return int(np.random.SeedSequence([self.seed, number + 1]).generate_state(1)[0])

    def _owner(self) -> dict[str, Any]:
        return {"config": dataclasses.asdict(self.config), "seed": self.seed}


_WEIGHT_BEYOND = 0.05
"""Weight of what draws the network back to the actions that were tried."""


class _HeldActions:
    """Holds an action for each member, and keeps what a network would be given at some of the decisions.

    Args:
        actions: ``(N,)``.
        network: The network.
        moments: Decisions ``(M, N)``.
    """

    def __init__(self, actions: np.ndarray, network: PolicyNetwork, moments: np.ndarray) -> None:
        self.moments = moments
        self.inputs = np.zeros((*moments.shape, (1 + network.averages) * network.num_features), np.float32)
        self._actions, self._network, self._decision = actions.astype(np.float32)[:, None], network, 0

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`."""
        inputs, state = self._network.inputs(observation, state, episode_start)
        moment, member = np.nonzero(self.moments == self._decision)
        self.inputs[moment, member] = inputs[member]
        self._decision += 1
        return self._actions, state


def interpolated(gains: Tensor, actions: Tensor, chosen: Tensor) -> Tensor:
    """What chosen actions ``(B,)`` are worth, along lines between those ``(K,)`` that were tried, which were worth ``(B, K)``."""
    within = chosen.clamp(actions[0], actions[-1])
    upper = torch.searchsorted(actions, within.detach().contiguous()).clamp(1, len(actions) - 1)
    share = (within - actions[upper - 1]) / (actions[upper] - actions[upper - 1])
    below, above = (gains.gather(1, index[:, None])[:, 0] for index in (upper - 1, upper))
    return torch.lerp(below, above, share)
