"""How many SGD steps per second does an environment leave of what a bare PyTorch loop makes?

Run ``python -m benchmarks.throughput``. Three tasks: ``mlp`` is digits-mlp, ``cnn`` has 28×28 images and two convolutions, and
``transformer`` one layer over 32 characters. All rows of a task train the same model on batches of the same size, with one torch
thread unless they say otherwise, default features and one SGD step per action; whole episodes of 100 steps, resets and final
evaluations included. A row is measured between measurements of the bare loop and of a large matrix product, so that a machine whose
speed drifts slows all alike; ratios are medians over repeats. The limit is that matrix product's rate. Peak memory per member is
what a fresh process grows by, libraries and what is kept of the data set included; overhead is the part of an SGD step that is not
order and gather of the data, forward, backward or update, measured by turns with these alone; resets are a share of the episode, and the
adapter's cost is measured by turns with the environment under it; seconds to compile are those from making the
environment to the end of its first step, with an empty cache. Where the same kernels were made for an earlier row, they are few.
"""

from __future__ import annotations

import gc
import json
import operator
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress

from benchmarks.kept import kept, unfinished
from benchmarks.lr_bench.report.tables import Column, Table
from benchmarks.terminal import make_console, run_command
from benchmarks.throughput_figure import Panel, draw
from benchmarks.throughput_rows import (
    HORIZON,
    Device,
    Row,
    TaskName,
    Training,
    flops_per_step,
    make_pure_training,
    make_resets,
    make_task,
    make_training,
    matrix_product,
    peak_bytes_per_member,
    rows,
    rows_on_gpu,
    synchronise,
)

MEMBERS: Mapping[TaskName, tuple[int, ...]] = {"mlp": (1, 4, 16, 64, 256, 1024), "cnn": (1, 4, 16, 64), "transformer": (1, 4, 16, 64)}
MEMBERS_ON_GPU: Mapping[TaskName, tuple[int, ...]] = {
    "mlp": (1, 64, 1024, 4096, 16384),
    "cnn": (1, 16, 64, 256, 1024),
    "transformer": (1, 16, 64, 256, 1024),
}
LARGEST_VARIED: Mapping[TaskName, int] = {"mlp": 1024, "cnn": 16, "transformer": 4}
"""Members, at most, with other features, with the adapter, and on two cores: of larger models a repeat of many takes minutes."""

COMPARED = 64
"""Members at which environments in one process and in several are compared."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    tasks: tuple[TaskName, ...] = ("mlp", "cnn", "transformer")
    """What is trained."""
    device: Device = "cpu"
    """On a GPU, the bare loop runs there too, and single environments are not spread over processes."""
    members: tuple[int, ...] | None = None
    """Sizes of the native vector environment; None for 1, 4, 16, 64, and for the mlp 256 and 1024 too; more on a GPU."""
    parallel_members: int = 8
    """Sizes of vectors of single environments; 0 leaves them out."""
    repeats: int = 7
    """Measurements per row; at least 7 for medians that hold."""
    seconds: float = 0.3
    """Shortest duration of a measurement; one whole episode at least, cut into slices of this duration."""
    longest: float = 120.0
    """Seconds after which a row is not measured again: of long episodes there are fewer repeats, which the tables count."""
    compiled: bool = True
    """Whether compiled environments are measured, too."""
    output: Path = Path("results/throughput.json")
    """Where the numbers go; the figure and the tables go beside them, as .png and .md. Until the last row is measured, a folder beside it keeps the
    others, so that a run that was killed goes on where it stopped."""
    show: tuple[Path, ...] = ()
    """Numbers of earlier runs, each of other tasks: their tables and figure are made together, and nothing is measured."""


@dataclass(frozen=True)
class Repeat:
    """One measurement, all in SGD steps or floating-point operations per second; ``bare_speed`` is that of what it is compared with."""

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
    pure_ratio: float | None = None
    """To forward, backward and update alone, measured by turns with them."""
    resets_per_pure_step: float | None = None
    """Resets in the time of an SGD step of forward, backward and update alone, measured by turns with them."""
    native_ratio: float | None = None
    """Of Stable-Baselines3's adapter to the environment under it, and of one on two cores to the same on one, measured by turns."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The result that :func:`dataclasses.asdict` described."""
        known = {each.name: data[each.name] for each in fields(cls)}  # and not what was computed of it
        return cls(**{**known, "row": Row(**data["row"]), "repeats": [Repeat(**repeat) for repeat in data["repeats"]]})

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
    def reset_share(self) -> float | None:
        """Of an episode."""
        if self.pure_ratio is None or self.resets_per_pure_step is None:
            return None
        return self.pure_ratio / (self.resets_per_pure_step * HORIZON * self.row.members)

    @property
    def overhead_share(self) -> float | None:
        """Of a step, resets left out, what is not forward, backward or update."""
        return None if self.pure_ratio is None or self.reset_share is None else 1 - self.pure_ratio / (1 - self.reset_share)


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


def measure(training: Training, bare: Training, limit: Callable[[], float], options: Options, clock: Clock = time.perf_counter) -> list[Repeat]:
    """Measures a row ``options.repeats`` times, or until it took ``options.longest``."""
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
    synchronise()
    return clock() - start


def measure_row(name: TaskName, row: Row, bare: Training, limit: Callable[[], float], options: Options) -> Result:
    """Makes a row's environment, measures it and frees it."""
    flops = flops_per_step(make_task(name))
    if row.kind in ("dummy", "subproc", "sb3") and find_spec("stable_baselines3") is None:
        return Result(row, flops)
    start = time.perf_counter()
    training = make_training(name, row)
    training.step()
    seconds_to_ready = time.perf_counter() - start
    try:
        repeats = measure(training, bare, limit, options)
        pure_ratio = resets = native_ratio = None
        if row.is_plain or row.kind == "single":
            pure = make_pure_training(name, row)
            pure_ratio = _ratio(measure(training, pure, limit, options))
            resets = _ratio(measure(make_resets(training), pure, limit, options))
        elif row.kind == "sb3" or row.threads * row.processes > 1:
            native = make_training(name, replace(row, kind="native", threads=1, processes=1))
            native_ratio = _ratio(measure(training, native, limit, options))
            native.close()
    finally:
        training.close()
        del training
        gc.collect()
    memory = peak_bytes_per_member(name, row) if row.is_plain else None
    return Result(row, flops, repeats, seconds_to_ready if row.compiled else 0.0, memory, pure_ratio, resets, native_ratio)


def kept_row(folder: Path, name: TaskName, row: Row, bare: Training, limit: Callable[[], float], options: Options) -> Result:
    """A row that an unfinished run has measured, else measured now."""
    settings = {"machine": machine()} | {option: getattr(options, option) for option in ("device", "repeats", "seconds", "longest")}
    return Result.from_dict(kept(folder / f"{name}, {row.name}.json", settings, lambda: asdict(measure_row(name, row, bare, limit, options))))


def _ratio(repeats: Sequence[Repeat]) -> float:
    return float(np.median([repeat.speed / repeat.bare_speed for repeat in repeats]))


def task_rows(name: TaskName, options: Options) -> list[Row]:
    """The rows of one task."""
    if options.device == "cuda":
        return rows_on_gpu(options.members or MEMBERS_ON_GPU[name], options.compiled)
    members = options.members or MEMBERS[name]
    parallel: tuple[int, ...] = (options.parallel_members,) if options.parallel_members else ()
    if parallel and name == "mlp" and COMPARED in members:
        parallel += (COMPARED,)
    return rows(members, parallel, options.compiled, LARGEST_VARIED[name], with_dacbench=name != "transformer" and find_spec("dacbench") is not None)


def required_ratio(name: TaskName, row: Row) -> float | None:
    """The ratio to the bare loop that a row is to reach, on a CPU."""
    if row.device != "cpu":
        return None
    if row.kind == "single":
        return 0.92 if name == "mlp" else 0.97
    if row.is_plain and name == "cnn":
        return 0.97
    return 5.0 if row == Row("native", COMPARED) and name == "mlp" else None


def requirements(results: Results) -> list[Requirement]:
    """What the environments are to reach, as far as it was measured."""
    found: list[Requirement] = []
    for name, all_measured in results.items():
        measured = {result.row: result for result in all_measured if result.repeats and result.row.device == "cpu"}
        for row, result in measured.items():
            bound = required_ratio(name, row)
            if bound is not None:
                found.append(Requirement(f"{name}: {row.name}, against the bare loop", result.ratio, bound))
        for row, result in measured.items():
            if row.is_plain and row.members >= COMPARED and result.overhead_share is not None and result.reset_share is not None:
                found.append(Requirement(f"{name}: {row.name}, features, reward and packing, share of a step", result.overhead_share, 0.1, True))
                found.append(Requirement(f"{name}: {row.name}, resets, share of an episode", result.reset_share, 0.05, True))
        found += _requirements_at_the_best(name, measured)
        found += _requirements_of_pairs(name, measured)
    return found


def _requirements_at_the_best(name: TaskName, measured: Mapping[Row, Result]) -> list[Requirement]:
    """At the best number of members: compiled, but for the cnn."""
    candidates = [result for row, result in measured.items() if row.is_plain and (row.compiled or name == "cnn")]
    if not candidates:
        return []
    best, closest = (max(candidates, key=operator.attrgetter(measure)) for measure in ("ratio", "share"))
    bounds: Mapping[TaskName, float] = {"mlp": 12, "cnn": 1.2, "transformer": 1.3}
    found = [Requirement(f"{name}: at its best, {best.row.name}, against the bare loop", best.ratio, bounds[name])]
    if name == "mlp":
        found.append(Requirement(f"mlp: at its best, {closest.row.name}, share of the limit", closest.share, 0.35))
    return found


def _requirements_of_pairs(name: TaskName, measured: Mapping[Row, Result]) -> list[Requirement]:
    """Of one environment against another: where they were not measured by turns, through the bare loops beside both."""

    def against(row: Row, other: Row) -> float:
        return measured[row].ratio / measured[other].ratio

    found: list[Requirement] = []
    on_one = [row for row in measured if row.is_plain]
    on_two = [(each.ratio, each.native_ratio, row.name) for row, each in measured.items() if row.kind == "native" and each.native_ratio is not None]
    if on_two and name == "mlp":
        _, gain, best_on_two = max(on_two)
        found.append(Requirement(f"{name}: {best_on_two}, against the same on one core", gain, 1.7))
    for row in on_one:
        memory = measured[row].bytes_per_member
        if name == "mlp" and row.members == 1024 and memory is not None:
            found.append(Requirement(f"{name}: {row.name}, memory in GiB", 1024 * memory / 2**30, 1, is_upper=True))
    for row in measured:
        if row.kind == "sb3" and (ratio := measured[row].native_ratio) is not None:
            found.append(Requirement(f"{name}: {row.name}, on top of the environment", 1 / ratio - 1, 0.05, is_upper=True))
        if row.kind in ("async", "subproc") and row.members == COMPARED:
            natives = [other for other in measured if other.kind == "native" and other.members == COMPARED]
            best = max(natives, key=lambda other: measured[other].ratio, default=None)
            if best is not None:
                found.append(Requirement(f"{name}: {best.name}, against {row.name}", against(best, row), 8))
    return found


def make_table(name: TaskName, results: Sequence[Result]) -> Table:
    """One task's results for people."""
    forms: Mapping[str, Callable[[Any], str]] = {
        "SGD steps/s": "{:,.0f}".format,
        "ratio to bare": "{:.2f}".format,
        "GFLOP/s": "{:.1f}".format,
        "of limit": "{:.1%}".format,
        "overhead, µs": "{:.1f}".format,
        "resets": "{:.1%}".format,
        "MB per member": "{:.2f}".format,
        "s to compile": "{:.0f}".format,
        "repeats": "{:.0f}".format,
    }
    rows: list[tuple[Any, ...]] = []
    for result in results:
        if not result.repeats:
            rows.append((f"{result.row.name}, not installed", *[None] * len(forms)))
            continue
        speeds = result.speed, result.ratio, result.speed * result.flops / 1e9, result.share
        overhead = None if result.overhead_share is None else 1e6 * result.overhead_share / result.speed
        memory = None if result.bytes_per_member is None else result.bytes_per_member / 1e6
        compiling = result.seconds_to_compile if result.row.compiled else None
        rows.append((result.row.name, *speeds, overhead, result.reset_share, memory, compiling, len(result.repeats)))
    title = f"{name}, batch {make_task(name).batch_size}, horizon {HORIZON}, {results[0].flops / 1e6:.3g} MFLOP per SGD step"
    return Table(name, title, (Column("Row"), *(Column(head, form) for head, form in forms.items())), tuple(rows))


def make_requirements_table(found: Sequence[Requirement]) -> Table:
    """The requirements for people."""
    columns = Column("Requirement"), Column("measured", "{:.3g}".format), Column("required", str), Column("", str)
    rows = [(each.text, each.measured, f"{'≤' if each.is_upper else '≥'} {each.bound:g}", "met" if each.is_met else "missed") for each in found]
    return Table("requirements", "Requirements", columns, tuple(rows))


def make_tables(results: Results) -> list[Table]:
    """All that is shown."""
    found = requirements(results)
    return [*(make_table(name, measured) for name, measured in results.items()), *([make_requirements_table(found)] if found else [])]


def make_panel(name: TaskName, results: Sequence[Result]) -> Panel:
    """One task's results for the figure: ratios to the bare loop, times its speed beside all rows, so that a slower machine bends no line."""
    repeats = [repeat for result in results for repeat in result.repeats]
    bare_speed, limit = float(np.median([repeat.bare_speed for repeat in repeats])), float(np.median([repeat.limit for repeat in repeats]))
    lines: dict[str, dict[int, float]] = {"eager": {}, "compiled": {}}
    for result in results:
        if result.row.is_plain:
            lines["compiled" if result.row.compiled else "eager"][result.row.members] = result.ratio * bare_speed
    return Panel(name, {label: line for label, line in lines.items() if line}, bare_speed, limit / results[0].flops)


def as_json(results: Results, options: Options) -> dict[str, Any]:
    """Everything that was measured."""
    content = {
        name: [
            asdict(result)
            | {"name": result.row.name, "required": required_ratio(name, result.row)}
            | {"reset_share": result.reset_share if result.repeats else None, "overhead_share": result.overhead_share if result.repeats else None}
            | ({"speed": result.speed, "ratio": result.ratio, "share_of_limit": result.share} if result.repeats else {})
            for result in measured
        ]
        for name, measured in results.items()
    }
    found = [asdict(requirement) | {"is_met": requirement.is_met} for requirement in requirements(results)]
    settings = {name: value for name, value in asdict(options).items() if name not in ("output", "show")}  # what was measured, and not where it went
    return {"machine": machine(), "options": settings, "rows": content, "requirements": found}


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def empty_compiler_cache() -> Iterator[None]:
    """Compilation takes what it takes the first time."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        yield


def machine() -> dict[str, str | int | None]:
    """What the numbers hold for."""
    information = Path("/proc/cpuinfo")  # on Linux, the one system where `platform` does not know the processor
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{package: version(package) for package in ("torch", "numpy", "gymnasium")},
    }


def measure_all(options: Options, folder: Path) -> dict[TaskName, list[Result]]:
    """All rows of all tasks, one environment at a time; the folder keeps them."""
    chosen = {name: task_rows(name, options) for name in options.tasks}
    limit = matrix_product(options.device)
    results: dict[TaskName, list[Result]] = {}
    with one_thread(), empty_compiler_cache(), Progress(console=make_console(), transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, chosen.values())))
        for name, lines in chosen.items():
            bare = make_training(name, Row("bare", device=options.device))
            results[name] = []
            for row in lines:
                progress.update(bar, description=f"{name}: {row.name}")
                result = kept_row(folder, name, row, bare, limit, options)
                progress.advance(bar)
                results[name].append(result)
                if result.repeats:
                    progress.console.print(f"{name}: {row.name}: {result.speed:,.0f} SGD steps/s, {result.ratio:.2f} of the bare loop")
    return results


def read_results(paths: Sequence[Path]) -> dict[TaskName, list[Result]]:
    """What earlier runs wrote.

    Raises:
        ValueError: If a file is not one of this benchmark's, of an unknown task, or two are of the same task.
    """
    results: dict[TaskName, list[Result]] = {}
    for path in paths:
        try:
            tasks = {name: [Result.from_dict(row) for row in rows] for name, rows in json.loads(path.read_text())["rows"].items()}
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not hold the numbers of a run of this benchmark. Give files that its --output has written.") from error
        if unknown := tasks.keys() - set(get_args(TaskName)):
            raise ValueError(f"{path} is of {', '.join(sorted(unknown))}, but tasks are {', '.join(get_args(TaskName))}. Give files of these.")
        if twice := tasks.keys() & results.keys():
            raise ValueError(f"{path} is of {', '.join(sorted(twice))}, as another of the files is. Give one file for each task.")
        results |= tasks
    return results


def main(options: Options) -> None:
    """Measures, prints the tables, and writes the numbers, the tables and the figure; goes on where a run was killed."""
    console, path = make_console(), options.output
    if options.show:
        results = read_results(options.show)
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        with unfinished(path) as folder:
            results = measure_all(options, folder)
            path.write_text(json.dumps(as_json(results, options), indent=2, default=str) + "\n")
    tables, picture, text = make_tables(results), path.with_suffix(".png"), path.with_suffix(".md")
    draw([make_panel(name, measured) for name, measured in results.items()], picture)
    text.write_text("\n".join(f"{table.title}\n\n{table.to_markdown()}" for table in tables))
    for table in tables:
        shown = table.to_terminal()
        shown.columns[0].no_wrap, shown.box, shown.padding = True, SIMPLE_HEAD, (0, 1, 0, 0)
        for column in shown.columns[1:]:
            column.min_width = max(map(len, str(column.header).split()), default=0)  # heads wrap, between words
        console.print(shown)
    print(f"Written to {', '.join(str(each) for each in (picture, text, *([] if options.show else [path])))}.")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
