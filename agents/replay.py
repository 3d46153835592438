"""A replay memory for vector environments."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Transitions(NamedTuple):
    """A batch of transitions over up to ``n`` decisions."""

    observations: Tensor  # (B, F)
    actions: Tensor  # (B, A)
    returns: Tensor  # (B,): discounted rewards
    next_observations: Tensor  # (B, F)
    discounts: Tensor  # (B,): of the value of the next observation; 0 after a termination, not after a truncation


class ReplayMemory:
    """The last transitions of N members, in a ring. Termination is kept apart from truncation: only the first ends the future.

    Args:
        capacity: Transitions in all; rounded up to a multiple of N.
        num_members: N.
        num_features: F.
        num_actions: A.
    """

    def __init__(self, capacity: int, num_members: int, num_features: int, num_actions: int) -> None:
        self.num_rows = max(1, -(-capacity // num_members))
        self.num_members = num_members
        shape = (self.num_rows, num_members)
        self._observations, self._next_observations = np.zeros((*shape, num_features), np.float32), np.zeros((*shape, num_features), np.float32)
        self._actions, self._rewards = np.zeros((*shape, num_actions), np.float32), np.zeros(shape, np.float32)
        self._terminated, self._truncated = np.zeros(shape, bool), np.zeros(shape, bool)
        self._position = self._filled = 0

    def __len__(self) -> int:
        """Transitions held."""
        return self._filled * self.num_members

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        next_observations: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """Takes one transition of every member; ``next_observations`` are those before any automatic reset."""
        row = self._position
        for array, values in zip(self._arrays().values(), (observations, actions, rewards, next_observations, terminated, truncated), strict=True):
            array[row] = values
        self._position = (row + 1) % self.num_rows
        self._filled = min(self._filled + 1, self.num_rows)

    def sample(self, generator: np.random.Generator, batch_size: int, num_steps: int, discount: float) -> Transitions:
        """Transitions at random, each over ``num_steps`` decisions or up to an end, or to the newest decision held."""
        age = generator.integers(self._filled, size=batch_size)  # 0: the newest
        members = generator.integers(self.num_members, size=batch_size)
        rows = (self._position - 1 - age) % self.num_rows
        observations, actions = self._observations[rows, members], self._actions[rows, members]
        returns, discounts = self._rewards[rows, members].astype(np.float64), np.full(batch_size, discount)
        ended = self._terminated[rows, members] | self._truncated[rows, members]
        for step in range(1, num_steps):
            goes_on = ~ended & (age >= step)
            rows = np.where(goes_on, (rows + 1) % self.num_rows, rows)
            returns += np.where(goes_on, discounts * self._rewards[rows, members], 0.0)
            discounts = np.where(goes_on, discounts * discount, discounts)
            ended |= goes_on & (self._terminated[rows, members] | self._truncated[rows, members])
        discounts = np.where(self._terminated[rows, members], 0.0, discounts)
        return Transitions(
            torch.from_numpy(observations),
            torch.from_numpy(actions),
            torch.from_numpy(returns.astype(np.float32)),
            torch.from_numpy(self._next_observations[rows, members]),
            torch.from_numpy(discounts.astype(np.float32)),
        )

    def get_state(self) -> dict[str, Any]:
        """Everything held."""
        return {"position": self._position, "filled": self._filled, **{name: array[: self._filled] for name, array in self._arrays().items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` returned."""
        self._position, self._filled = state["position"], state["filled"]
        for name, array in self._arrays().items():
            array[: self._filled] = state[name]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "observations": self._observations,
            "actions": self._actions,
            "rewards": self._rewards,
            "next_observations": self._next_observations,
            "terminated": self._terminated,
            "truncated": self._truncated,
        }
