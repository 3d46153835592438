"""Benchmarks for tests: suites of seconds, and an engine that trains nothing; run in processes of their own, to be killed."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from benchmarks.lr_bench.contestants import Contestant, enter
from benchmarks.lr_bench.engine import Benchmark, Work
from benchmarks.lr_bench.records import Cell, CellResult
from benchmarks.lr_bench.store import Store
from benchmarks.lr_bench.suites import SLOW_RIVALS, Suite, SuiteTask

LEFT_OUT = (*SLOW_RIVALS, "schedule-free", "prodigy", "normalised gradient", "random policy")


def tiny_suite(num_tasks: int = 2, **options: object) -> Suite:
    sources = ("breast-cancer-mlp", "wine-mlp", "diabetes-mlp")[:num_tasks]
    tasks = tuple(SuiteTask(name, name, 5, "short", 2, 3, 4, 2, side_by_side=400) for name in sources)
    values = {"tracks": ("momentum",), "other_optimizers": (), "leaves_out": LEFT_OUT, "examples": 64} | options
    return Suite("tiny", 1, "For tests.", tasks, **values)  # type: ignore[arg-type]


def fake_result(cell: Cell) -> CellResult:
    """Scores that depend on the cell alone, and are best at a value of 10^-1.5; curves of two steps."""
    generator = np.random.default_rng(int(cell.trainings[:12], 16))
    value = next((value for name, value in cell.point.items() if name in ("rate", "constant")), 1.0)
    count = len(cell.seeds)
    scores = (np.log10(value) + 1.5) ** 2 + generator.uniform(0, 0.1, count)
    return CellResult(scores, np.zeros(count, bool), scores, None, generator.uniform(size=(3, count)), np.full((2, count), value), 0.01)


class FakeEngine:
    """Computes results at once, without training, and notes which.

    Args:
        log: Where to; each training as one line.
        pause: Seconds that each piece of work takes.
    """

    slots = 1

    def __init__(self, log: Path | None = None, pause: float = 0.0) -> None:
        self.log, self.pause = log, pause
        self.computed: list[Cell] = []

    def submit(self, work: Work) -> Future[list[CellResult]]:
        time.sleep(self.pause)
        self.computed += work.cells
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("".join(f"{cell.trainings}\n" for cell in work.cells))
        future: Future[list[CellResult]] = Future()
        future.set_result([fake_result(cell) for cell in work.cells])
        return future

    def restart(self) -> None: ...

    def shutdown(self) -> None: ...


def small_populations(suite: Suite) -> Suite:
    """So that there are many pieces of work."""
    return dataclasses.replace(suite, tasks=tuple(dataclasses.replace(task, side_by_side=20) for task in suite.tasks))


def make_benchmark(store: Store, engine: FakeEngine, contestants: list[Contestant] | None = None, suite: Suite | None = None) -> Benchmark:
    suite = suite or small_populations(tiny_suite())
    return Benchmark(suite, enter([], suite) if contestants is None else contestants, store, engine)


def run_in_process(path: Path, pause: float) -> None:
    """A whole benchmark; for a process of its own."""
    with Store(path) as store:
        make_benchmark(store, FakeEngine(path.with_suffix(".log"), pause)).run()
    os._exit(0)  # without what torch does at the end
