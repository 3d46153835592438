"""Whole decisions of all members in one call of C++: with ``compile=True`` rates are chosen, steps made and learnt from without Python in between.

Between its parts Python costs more than they do, and what it reads the models have driven out of the caches. The parts are functions that are there
already: the recorded decision process, and the kernel that steps the members.
"""

from __future__ import annotations

import ctypes
from importlib import resources
from typing import Any

import numpy as np
import torch

from lr_env.mdp.arrays import Record
from lr_env.mdp.recording import Recording
from lr_env.training import Population


class _Decision(ctypes.Structure):
    """Of the same name in ``decision_kernel.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("choose", "of_choosing", "learn", "of_learning", "step", "members")),
        *((name, ctypes.c_int64) for name in ("count", "groups", "threads", "batch")),
        *((name, ctypes.c_void_p) for name in ("rates", "own_rates", "measured")),
        ("num_signals", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sources", "signals", "rewards", "diverged", "earned")),
    ]


class DecisionKernel:
    """Decisions of all members of a population.

    Args:
        choose: Recording of what is done with the actions before a step, made to be repeated in C++.
        learn: Recording of what is done with the signals after it, so too.
        record: Of the process, in the table of both.
        population: Whose :attr:`~lr_env.training.Population.kernel_sources` say what its kernel's numbers are.

    Attributes:
        results: Of ``learn``; written over the next time.
    """

    def __init__(self, choose: Recording, learn: Recording, record: Record, population: Population) -> None:
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        number, dtype = ("double", np.float64) if population.dtype == torch.float64 else ("float", np.float32)
        source = f"using Number = {number};\n" + resources.files(__package__).joinpath("decision_kernel.cpp").read_text()
        self._decide = CppCodeCache.load(source).decide
        self._decide.argtypes = [ctypes.POINTER(_Decision), ctypes.c_int, ctypes.c_void_p, ctypes.c_int64]
        self._decide.restype = ctypes.c_int64
        self._choose, self._population, self.results = choose, population, learn.results
        self._kept: list[Any] = [record, learn]  # what is pointed at
        count, groups, sources = population.num_members, len(population.groups), population.kernel_sources
        assert sources is not None and choose.kernel is not None and learn.kernel is not None

        def kept(array: np.ndarray) -> int:
            self._kept.append(array)
            return array.ctypes.data

        self._own = _Decision(*choose.kernel.addresses, *learn.kernel.addresses, population.kernel_address)
        self._own.count, self._own.groups, self._own.batch = count, groups, count * population.task.batch_size
        self._own.num_signals, self._own.sources = len(sources), kept(np.array(sources, np.int64))
        self._own.rates, self._own.rewards, self._own.diverged = (record[name].ctypes.data for name in ("rates", "reward", "diverged"))
        measured = np.zeros((1 + population.num_products, groups, count), dtype)
        self._own.own_rates, self._own.measured = kept(np.zeros((count, groups), dtype)), kept(measured)
        self._own.earned, self._own.signals = kept(np.zeros((groups, count))), learn.input(0).ctypes.data

    def __call__(self, actions: np.ndarray | None, most: int) -> int:
        """Makes one SGD step of all members, and more until ``most`` are made or a training diverges; rewards are added up.

        Args:
            actions: ``(A, N)``, or None to keep the rates.
            most: Steps whose batches follow each other in the members' present orders; the first one's are the present ones.

        Returns:
            How many were made. What they led to is in the table and in :attr:`results`.
        """
        if actions is not None:
            self._choose.input(0)[...] = actions
        self._own.members = ctypes.addressof(self._population.members_of_kernel())
        self._own.threads = torch.get_num_threads()
        indices = self._population.batches.references()[2]
        made: int = self._decide(self._own, actions is not None, indices.data_ptr(), most)
        return made
