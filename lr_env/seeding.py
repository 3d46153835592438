"""Seeds and random streams.

Every training owns separate streams, so that the same seed gives the same weights and the same data order under another MDP
or another optimizer, and episode ``e`` of a seed is the same whatever happened in the episodes before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import SupportsIndex

import numpy as np
import torch


class Role(IntEnum):
    """What a run's seeds are for. Seeds of different roles never coincide."""

    TRAIN = 0
    TUNE = 1
    EVALUATE = 2
    REPORT = 3


def role_seeds(seed: int, role: Role, count: int) -> list[int]:
    """``count`` seeds below 2**31 for one role of a run, distinct within the role.

    Args:
        seed: Seed of the whole run.
        role: Training, tuning, evaluation or reporting.
        count: Number of seeds.
    """
    generator = np.random.default_rng(np.random.SeedSequence([check_seed(seed), int(role)]))
    # A role owns one quarter of the range, so that two roles cannot share a seed.
    return [int(s) * len(Role) + int(role) for s in generator.choice(2**31 // len(Role), size=count, replace=False)]


def check_seed(seed: object) -> int:
    """The seed as an ``int``.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is negative.
    """
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, SupportsIndex):
        raise TypeError(f"A seed must be an integer >= 0, but {seed!r} ({type(seed).__name__}) was given.")
    value = seed.__index__()
    if value < 0:
        raise ValueError(f"A seed must be an integer >= 0, but {value} was given.")
    return value


@dataclass(frozen=True)
class Streams:
    """The independent random streams of one episode of one training.

    Attributes:
        weights: Initial weights, and layers that draw while they train (dropout).
        order: Order of the data, or fresh samples.
        family: Draws of the task family, such as the input scale.
        noise: Draws of the MDP, such as the initial rate.
        exploration: Left to the controller.
    """

    weights: np.random.SeedSequence
    order: np.random.SeedSequence
    family: np.random.SeedSequence
    noise: np.random.SeedSequence
    exploration: np.random.SeedSequence

    @classmethod
    def of(cls, seed: int, episode: int = 0) -> Streams:
        """The streams of the ``episode``-th episode (from 0) after ``reset(seed=seed)``."""
        return cls(*(np.random.SeedSequence(seed, spawn_key=(episode, stream)) for stream in range(5)))


@contextmanager
def preserved_global_generators() -> Iterator[None]:
    """Leaves the global generators of ``random``, NumPy and PyTorch (CPU) as they were found."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def seed_global_generators(seed: np.random.SeedSequence) -> None:
    """Seeds all three global generators; call it within :func:`preserved_global_generators` only."""
    words = [int(word) for word in seed.generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
