"""Seeds and random streams.

Every training owns separate streams, so that the same seed gives the same weights and the same data order under another MDP
or another optimizer, and episode ``e`` of a seed is the same whatever happened in the episodes before it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, SupportsIndex

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
    """The independent random streams of one episode of one training, each made where it is used.

    Attributes:
        seed: What the user gave.
        episode: Number of the episode since ``reset(seed=seed)``, from 0.
    """

    seed: int
    episode: int = 0

    @property
    def weights(self) -> np.random.SeedSequence:
        """Initial weights, and layers that draw while they train (dropout)."""
        return self._stream(0)

    @property
    def order(self) -> np.random.SeedSequence:
        """Order of the data, or fresh samples."""
        return self._stream(1)

    @property
    def family(self) -> np.random.SeedSequence:
        """Draws of the task family, such as the input scale."""
        return self._stream(2)

    @property
    def noise(self) -> np.random.SeedSequence:
        """Draws of the MDP, such as the initial rate."""
        return self._stream(3)

    @property
    def exploration(self) -> np.random.SeedSequence:
        """Left to the controller."""
        return self._stream(4)

    def _stream(self, number: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self.seed, spawn_key=(self.episode, number))


def first_words(streams: Sequence[Streams], purpose: Literal["weights", "order"], count: int) -> np.ndarray:
    """What ``stream.weights.generate_state(count)`` gives, or ``order``'s, for many streams ``(K,)`` at once: ``(K, count)``, uint32.

    A ``numpy.random.SeedSequence`` for each would take half of a reset.
    """
    seeds, episodes = ([getattr(stream, name) for stream in streams] for name in ("seed", "episode"))
    if not streams or max(*seeds, *episodes) >= 2**32:  # several words each
        return np.array([getattr(stream, purpose).generate_state(count) for stream in streams], np.uint32).reshape(-1, count)
    pool = np.zeros((4, len(streams)), np.uint32)
    pool[0] = seeds
    pool = _hashed(pool, _MIXING[0:4])
    for source, others in enumerate(_OTHERS):
        pool[others] = _mixed(pool[others], _hashed(pool[source], _MIXING[4 + 3 * source : 7 + 3 * source]))
    for number, word in enumerate((np.array(episodes, np.uint32), np.full(len(streams), PURPOSES.index(purpose), np.uint32))):
        pool = _mixed(pool, _hashed(word, _MIXING[16 + 4 * number : 20 + 4 * number]))
    words: np.ndarray = _hashed(pool[np.arange(count) % 4], _constants(0x8B51F9DD, 0x58F38DED, count)).T
    return words


PURPOSES = ("weights", "order", "family", "noise", "exploration")
"""The numbers of the streams."""


def _constants(first: int, factor: int, count: int) -> np.ndarray:
    powers = [first * pow(factor, power, 2**32) % 2**32 for power in range(count + 1)]
    return np.array(list(itertools.pairwise(powers)), np.uint32)


_MIXING = _constants(0x43B0D7E5, 0x931E8875, 24)
"""Of NumPy's ``SeedSequence``, which promises that its words never change."""

_OTHERS = [[target for target in range(4) if target != source] for source in range(4)]


def _hashed(words: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Words ``(K,)`` or ``(C, K)`` hashed with constants ``(C, 2)``: ``(C, K)``."""
    before, after = constants.T[:, :, None]
    values: np.ndarray = (words ^ before) * after
    values ^= values >> np.uint32(16)
    return values


def _mixed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.uint32(0xCA01F9DD) * left - np.uint32(0x4973F715) * right
    values ^= values >> np.uint32(16)
    return values


def torch_generator(seed: np.random.SeedSequence) -> torch.Generator:
    """A generator of PyTorch (CPU) with this seed."""
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]))


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


@contextmanager
def drawing_from(generator: torch.Generator, advances: bool = True) -> Iterator[None]:
    """What draws from PyTorch's global generator (CPU) draws from this one, and leaves the global generators as they were found."""
    with preserved_global_generators():
        torch.set_rng_state(generator.get_state())
        yield
        if advances:
            generator.set_state(torch.get_rng_state())


def seed_global_generators(seed: np.random.SeedSequence) -> None:
    """Seeds all three global generators; call it within :func:`preserved_global_generators` only."""
    words = [int(word) for word in seed.generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])
