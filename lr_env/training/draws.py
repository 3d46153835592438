"""The random generators of many members, and a kernel of our own that draws from all of them at once, with the bits of PyTorch's.

A call of PyTorch for each draw of each member takes longer than the drawing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lr_env.seeding import PURPOSES, Streams, first_words

WORDS = 624
"""Of a Mersenne twister's state."""

_STATE = np.dtype(
    [("seed", "<u8"), ("left", "<i4"), ("seeded", "<i4"), ("next", "<u8"), ("words", "<u8", WORDS), ("normal", "u1", 40)]
)  # what `torch.Generator.get_state` returns
LARGEST_SET = 2**32 // 20
"""Examples, from which on PyTorch draws orders otherwise."""


class DrawKernel:
    """Draws from many generators with ``torch.get_num_threads()`` threads.

    Generators lie in arrays ``(N, 625)``, uint32: the words of each, and how many are used up, one more than there are where it was just seeded.
    """

    def __init__(self) -> None:
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        library = CppCodeCache.load(resources.files(__package__).joinpath("draws.cpp").read_text())
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._seed, self._uniform, self._orders = library.seed_generators, library.draw_uniform, library.draw_orders
        self._seed.argtypes = [integer, ctypes.c_int, *[pointer] * 3]
        self._uniform.argtypes = [integer, ctypes.c_int, *[pointer] * 2, integer, *[pointer] * 4, integer, pointer]
        self._orders.argtypes = [integer, ctypes.c_int, *[pointer] * 3, *[integer] * 4, *[pointer] * 2]
        self._hash = library.hash_streams
        self._hash.argtypes = [integer, pointer, pointer, ctypes.c_uint32, integer, pointer]
        for function in (self._seed, self._uniform, self._orders, self._hash):
            function.restype = None

    def first_words(self, streams: Sequence[Streams], purpose: Literal["weights", "order"], count: int) -> np.ndarray:
        """See :func:`lr_env.seeding.first_words`."""
        seeds, episodes = [stream.seed for stream in streams], [stream.episode for stream in streams]
        if not streams or max(*seeds, *episodes) >= 2**32:
            return first_words(streams, purpose, count)
        words = np.empty((len(streams), count), np.uint32)
        given = np.array([seeds, episodes], np.uint32)
        self._hash(len(streams), given[0].ctypes.data, given[1].ctypes.data, PURPOSES.index(purpose), count, words.ctypes.data)
        return words

    def seed(self, generators: np.ndarray, rows: np.ndarray, seeds: np.ndarray) -> None:
        """Seeds the generators in ``rows (K,)`` with ``seeds (K,)``, uint64, as ``torch.Generator.manual_seed`` does."""
        rows, seeds = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(seeds, np.uint64)
        self._seed(len(rows), torch.get_num_threads(), rows.ctypes.data, seeds.ctypes.data, generators.ctypes.data)

    def uniform(self, generators: np.ndarray, rows: np.ndarray, steps: Sequence[tuple[int, int, float, float]], vectors: Tensor) -> None:
        """Draws into vectors ``(K, P)``, float32, from the generators in ``rows (K,)``.

        Args:
            generators: Advanced.
            rows: ``(K,)``.
            steps: Start and stop in a vector, lowest and highest value; what is drawn for beyond P is not kept.
            vectors: Contiguous; written where the steps say.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        starts, stops = (np.array([step[i] for step in steps], np.int64) for i in (0, 1))
        lows, highs = (np.array([step[i] for step in steps], np.float32) for i in (2, 3))
        arrays = (each.ctypes.data for each in (starts, stops, lows, highs))
        first = len(rows), torch.get_num_threads(), rows.ctypes.data, generators.ctypes.data
        self._uniform(*first, len(steps), *arrays, vectors.shape[1], vectors.data_ptr())

    def orders(self, generators: np.ndarray, rows: np.ndarray, columns: np.ndarray, num_examples: int, known: Tensor | None, orders: Tensor) -> None:
        """Draws an epoch for each generator in ``rows (K,)``, as :func:`lr_env.tasks.task.epoch_order` does.

        Args:
            generators: Advanced.
            rows: ``(K,)``.
            columns: Where they are written, ``(K,)``.
            num_examples: M.
            known: Examples ``(N, M)`` that a generator's row draws from; None for 0 to M − 1.
            orders: ``(num_batches, W, B)``, int64, contiguous.
        """
        rows, columns = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(columns, np.int64)
        arrays = (each.ctypes.data for each in (rows, columns, generators))
        num_batches, width, batch_size = orders.shape
        pointer = None if known is None else known.data_ptr()
        self._orders(len(rows), torch.get_num_threads(), *arrays, num_examples, num_batches, batch_size, width, pointer, orders.data_ptr())


@cache
def draw_kernel() -> DrawKernel | None:
    """The kernel; None where it can't be built, or does not give the bits of this PyTorch."""
    try:
        kernel = DrawKernel()
    except Exception:  # no compiler, or one that fails
        return None
    packed, rows, seeds = np.zeros((2, WORDS + 1), np.uint32), np.arange(2), np.array([3, 2**63 + 5], np.uint64)
    streams = [Streams(5), Streams(2**32 - 1, 7)]
    if any((kernel.first_words(streams, purpose, 5) != first_words(streams, purpose, 5)).any() for purpose in ("weights", "order")):
        return None
    kernel.seed(packed, rows, seeds)
    vectors, orders, narrow = torch.zeros(2, 1000), torch.zeros(7, 2, 97, dtype=torch.int64), 2 + 2.0**-20
    kernel.uniform(packed, rows, [(0, 900, -0.3, 0.7), (900, 950, 2.0, narrow), (950, 1300, 0.0, 1e-3)], vectors)
    kernel.orders(packed, rows, rows, 700, None, orders)
    for row, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        ranges = (900, -0.3, 0.7), (50, 2.0, narrow), (350, 0.0, 1e-3)
        expected = torch.cat([torch.zeros(count).uniform_(low, high, generator=generator) for count, low, high in ranges])
        order = torch.randperm(700, generator=generator)[:679].view(7, 97)
        state = _torch_state(packed[row], seed)
        if not (torch.equal(vectors[row], expected[:1000]) and torch.equal(orders[:, row], order) and torch.equal(state, generator.get_state())):
            return None
    return kernel


class Generators:
    """A generator of PyTorch's (CPU) for each of N members.

    Args:
        count: N.
        kernel: What draws from many at once; None for one after the other.
    """

    def __init__(self, count: int, kernel: DrawKernel | None = None) -> None:
        self.kernel = kernel
        self.packed = np.zeros((count if kernel else 0, WORDS + 1), np.uint32)
        """For the kernel: ``(N, 625)``. A member's generator lies here until it is asked for; from then on it is an object."""
        self._seeds = np.zeros(count, np.uint64)
        self._objects: list[torch.Generator | None] = [None if kernel else torch.Generator() for _ in range(count)]

    def __getitem__(self, member: int) -> torch.Generator:
        """A member's generator."""
        generator = self._objects[member]
        if generator is None:
            generator = self._objects[member] = torch.Generator().set_state(self.state(member))
        return generator

    def first_words(self, streams: Sequence[Streams], purpose: Literal["weights", "order"], count: int) -> np.ndarray:
        """See :func:`lr_env.seeding.first_words`."""
        hashed = first_words if self.kernel is None else self.kernel.first_words
        return hashed(streams, purpose, count)

    def seed(self, members: np.ndarray, seeds: np.ndarray) -> None:
        """Gives members ``(K,)`` generators with seeds ``(K,)``, uint64."""
        if self.kernel is None:
            for member, seed in zip(members.tolist(), seeds.tolist(), strict=True):
                self._objects[member].manual_seed(seed)
            return
        self._seeds[members] = seeds
        for member in members.tolist():
            self._objects[member] = None
        self.kernel.seed(self.packed, members, seeds)

    def state(self, member: int) -> Tensor:
        """What ``torch.Generator.get_state`` gives."""
        generator = self._objects[member]
        return generator.get_state() if generator is not None else _torch_state(self.packed[member], int(self._seeds[member]))

    def set_state(self, member: int, state: Tensor) -> None:
        """Restores what :meth:`state` returned."""
        fields = state.numpy().view(_STATE)[0]
        if self.kernel is None or fields["normal"].any():  # numbers that wait to be drawn
            self._objects[member] = torch.Generator().set_state(state)
            return
        self._objects[member], self._seeds[member] = None, fields["seed"]
        self.packed[member, :WORDS] = fields["words"]
        self.packed[member, WORDS] = WORDS + 1 if fields["next"] == 0 else fields["next"]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kernel": self.kernel is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.kernel = draw_kernel() if state["kernel"] else None


def _torch_state(packed: np.ndarray, seed: int) -> Tensor:
    """A packed generator as PyTorch writes one."""
    fields = np.zeros(1, _STATE)
    used = int(packed[WORDS])
    fields["seed"], fields["seeded"], fields["words"] = seed, 1, packed[:WORDS]
    fields["left"], fields["next"] = max(1, WORDS + 1 - used), used if used <= WORDS else 0
    return torch.from_numpy(fields.view(np.uint8))
