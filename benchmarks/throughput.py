"""How many SGD steps per second does an environment leave of what a bare PyTorch loop makes?

Run ``python -m benchmarks.throughput``. Three tasks: ``mlp`` is digits-mlp, ``cnn`` has 28×28 images and two convolutions, and
``transformer`` one layer over 32 characters. All rows of a task train the same model on batches of the same size, with one torch
thread unless they say otherwise, default features and one SGD step per action; whole episodes of 100 steps, resets and final
evaluations included. A row is measured between measurements of the bare loop and of a large matrix product, so that a machine whose
speed drifts slows all alike; ratios are medians over repeats. Two columns beside the speeds: peak memory per member is what a fresh
process grows by, what it keeps of the data set included; seconds to compile last from making the environment to its first step.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro
from rich.progress import Progress
from rich.table import Table

from benchmarks.terminal import make_console
from benchmarks.throughput_figure import Panel, draw
from benchmarks.throughput_rows import (
    HORIZON,
    Kind,
    Row,
    TaskName,
    Training,
    flops_per_step,
    make_task,
    make_training,
    matrix_product,
    peak_bytes_per_member,
    pure_seconds_per_step,
    rows,
)

MEMBERS: Mapping[TaskName, tuple[int, ...]] = {"mlp": (1, 4, 16, 64, 256, 1024), "cnn": (1, 4, 16, 64), "transformer": (1, 4, 16, 64)}
COMPARED = 64
"""Members at which environments in one process and in several are compared."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    tasks: tuple[TaskName, ...] = ("mlp", "cnn", "transformer")
    """What is trained."""
    members: tuple[int, ...] | None = None
    """Sizes of the native vector environment; None for 1, 4, 16, 64, and for the mlp 256 and 1024 too."""
    parallel_members: int = 8
    """Sizes of vectors of single environments; 0 leaves them out."""
    repeats: int = 7
    """Measurements per row; at least 7 for medians that hold."""
    seconds: float = 0.3
    """Shortest duration of a measurement; one whole episode at least, cut into slices of this duration."""
    longest: float = 30.0
    """Seconds after which a row is not measured again; long episodes need fewer repeats."""
    compiled: bool = True
    """Whether compiled environments are measured, too."""
    output: Path = Path("results/throughput.json")
    """Where the numbers go; the figure goes beside them, as a PNG."""


@dataclass(frozen=True)
class Repeat:
    """One measurement, all in SGD steps or floating-point operations per second."""

    speed: float
    bare_speed: float
    limit: float


@dataclass(frozen=True)
class Result:
    """What was measured of a row; without repeats where an optional package is missing."""

    row: Row
    flops: int
    repeats: list[Repeat] = field(default_factory=list)
    seconds_to_compile: float = 0.0
    bytes_per_member: float | None = None
    pure_seconds: float | None = None

    @property
    def speed(self) -> float:
        """SGD steps per second."""
        return float(np.median([repeat.speed for repeat in self.repeats]))

    @property
    def ratio(self) -> float:
        """To the bare loop."""
        return float(np.median([repeat.speed / repeat.bare_speed for repeat in self.repeats]))

    @property
    def share(self) -> float:
        """Of the limit."""
        return float(np.median([repeat.speed * self.flops / repeat.limit for repeat in self.repeats]))

    @property
    def overhead(self) -> float | None:
        """Seconds per SGD step that are not forward, backward or update."""
        return None if self.pure_seconds is None else 1 / self.speed - self.pure_seconds


@dataclass(frozen=True)
class Requirement:
    """A bound on a measured number."""

    text: str
    measured: float
    bound: float
    is_upper: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the number keeps to the bound."""
        return self.measured <= self.bound if self.is_upper else self.measured >= self.bound


Results = Mapping[TaskName, Sequence[Result]]


def measure(
    training: Training,
    bare: Training,
    limit: Callable[[], float],
    options: Options,
    advance: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
) -> list[Repeat]:
    """Measures a row ``options.repeats`` times, or until it took ``options.longest``; ``advance`` is called after each."""
    call_seconds, bare_seconds = (warm_up(warmed, options.seconds, clock) for warmed in (training, bare))
    num_calls = training.calls * max(1, round(options.seconds / (call_seconds * training.calls)))
    # Long measurements are cut into slices: all of them are near a measurement of the bare loop.
    num_slices = max(1, min(num_calls, round(num_calls * call_seconds / options.seconds)))
    slices = [len(part) for part in np.array_split(np.arange(num_calls), num_slices)]
    bare_calls = max(1, round(options.seconds / bare_seconds))
    repeats: list[Repeat] = []
    start = clock()
    for _ in range(options.repeats):
        if not repeats or clock() - start < options.longest:
            repeats.append(measure_once(training, bare, limit, slices, bare_calls, clock))
        advance()
    return repeats


def measure_once(
    training: Training, bare: Training, limit: Callable[[], float], slices: Sequence[int], bare_calls: int, clock: Clock = time.perf_counter
) -> Repeat:
    """Alternates between the bare loop and slices of a row's calls, beginning and ending with the bare loop."""
    limits, seconds, bare_seconds = [limit()], 0.0, _seconds(bare, bare_calls, clock)
    for num_calls in slices:
        seconds += _seconds(training, num_calls, clock)
        bare_seconds += _seconds(bare, bare_calls, clock)
        limits.append(limit())
    steps, bare_steps = (each.steps / each.calls for each in (training, bare))  # per call
    speed, bare_speed = sum(slices) * steps / seconds, (len(slices) + 1) * bare_calls * bare_steps / bare_seconds
    return Repeat(speed, bare_speed, float(np.median(limits)))


def warm_up(training: Training, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Calls for an episode and more, or for a few times ``seconds``; returns the median seconds of a call."""
    durations: list[float] = []
    while len(durations) < 3 or (len(durations) < 1.2 * training.calls and sum(durations) < 3 * seconds):
        durations.append(_seconds(training, 1, clock))
    return float(np.median(durations))


def _seconds(training: Training, num_calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(num_calls):
        training.step()
    return clock() - start


def measure_row(
    name: TaskName, row: Row, bare: Training, limit: Callable[[], float], options: Options, advance: Callable[[], object]
) -> Result:
    """Makes a row's environment, measures it and frees it."""
    flops = flops_per_step(make_task(name))
    if row.kind in ("dummy", "subproc", "sb3") and find_spec("stable_baselines3") is None:
        return Result(row, flops)
    start = time.perf_counter()
    training = make_training(name, row)
    training.step()
    seconds_to_ready = time.perf_counter() - start
    try:
        repeats = measure(training, bare, limit, options, advance)
        pure_seconds = pure_seconds_per_step(training.env)
    finally:
        training.close()
        del training
        gc.collect()
    is_alone = row.kind == "native" and row.threads == row.processes == 1
    memory = peak_bytes_per_member(name, row) if is_alone else None
    return Result(row, flops, repeats, seconds_to_ready if row.compiled else 0.0, memory, pure_seconds)


def task_rows(name: TaskName, options: Options) -> list[Row]:
    """The rows of one task."""
    members = options.members or MEMBERS[name]
    parallel = (options.parallel_members,) if options.parallel_members else ()
    if parallel and name == "mlp" and COMPARED in members:
        parallel += (COMPARED,)
    return rows(members, parallel, options.compiled)


def requirements(results: Results) -> list[Requirement]:
    """What the environments are to reach, as far as it was measured."""
    found: list[Requirement] = []
    for name, measured in results.items():
        found += _requirements_of_ratios(name, [result for result in measured if result.repeats])
        found += _requirements_of_pairs(name, [result for result in measured if result.repeats])
    return found


def _requirements_of_ratios(name: TaskName, results: Sequence[Result]) -> list[Requirement]:
    """Against the bare loop and the limit."""
    alone = [result for result in _select(results, "native") if result.row.threads == result.row.processes == 1]
    eager, compiled = ([result for result in alone if result.row.compiled == is_compiled] for is_compiled in (False, True))
    found = [Requirement(f"{name}: single, against the bare loop", result.ratio, _required(name, result.row) or 0) for result in _select(results, "single")]
    if name == "mlp":
        found += [Requirement("mlp: native N = 64, against the bare loop", result.ratio, 5) for result in eager if result.row.members == COMPARED]
    if name == "mlp" and compiled:
        best = max(compiled, key=lambda result: result.ratio)
        found.append(Requirement(f"mlp: compiled at its best, N = {best.row.members}, against the bare loop", best.ratio, 12))
        found.append(Requirement(f"mlp: compiled at its best, N = {best.row.members}, share of the limit", best.share, 0.35))
    if name == "cnn":
        worst, best = (pick(eager, key=lambda result: result.ratio) for pick in (min, max))
        found.append(Requirement(f"cnn: native at its worst, N = {worst.row.members}, against the bare loop", worst.ratio, 0.97))
        found.append(Requirement(f"cnn: native at its best, N = {best.row.members}, against the bare loop", best.ratio, 1.2))
    if name == "transformer" and compiled:
        best = max(compiled, key=lambda result: result.ratio)
        found.append(Requirement(f"transformer: compiled at its best, N = {best.row.members}, against the bare loop", best.ratio, 1.3))
    return found
