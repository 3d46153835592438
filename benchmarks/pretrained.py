"""Do the pretrained controllers, untouched, do as well as what people tune on tasks that they have never seen?

Runs them with SGD with momentum and with AdamW on held-out tasks, paired (same weights, same data order) with rivals that were tuned on other
trainings: the best constant and the best cosine that all tasks share, SPS with a shared constant, the best schedule of each task, and a random
search, which says how many runs of tuning they are worth. They start at their usual rate, and 100 times below and above it.

Losses below 0.001 count as 0.001, here and where rivals are tuned: such a training is solved, and the logarithm of what is left, 10⁻²⁰ perhaps, says
nothing but outweighs all other tasks.

The machinery is that of ``lr-bench``: finished trainings are kept, a killed run goes on where it stopped, several runs may share a folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.__main__ import STORE, provenance, run_benchmark, show_problems, stored, typed_command
from benchmarks.lr_bench.analysis import summarise
from benchmarks.lr_bench.contestants import Contestant, FileMaker, rivals
from benchmarks.lr_bench.engine import Benchmark, LocalEngine
from benchmarks.lr_bench.records import Cell, CellResult, Point
from benchmarks.lr_bench.report import write
from benchmarks.lr_bench.store import Store
from benchmarks.lr_bench.suites import Suite, SuiteTask
from benchmarks.lr_bench.summary import POLYAK, POOL, RIVAL, SHARED, Summary, TaskEntry
from benchmarks.statistics import Interval, check_sample, paired_difference
from benchmarks.terminal import make_console, run_command
from lr_env import pretrained
from lr_env.controllers import BoundController

NAME = "pretrained"
START_FACTORS = (0.01, 100.0)
FILES = {"momentum": "momentum.safetensors", "adamw": "adamw.safetensors"}
"""Name of the controller's file, by optimizer."""

RIVALS = (*SHARED, RIVAL, POLYAK)
TOLERANCE = 10.0
"""By which the loss may change where the first rate is off, in %."""
SOLVED = -3.0
"""log10 of the loss that lower ones count as."""
LOWER_IS_BETTER = ("perplexity", "squared error")
"""Metrics; of the others higher values are better."""


def _task(source: str, horizon: int, microseconds: float, **options: Any) -> SuiteTask:
    budget = "noise" if horizon >= 5000 or source == "wine-mlp" else "medium" if horizon >= 300 else "short"
    settings: dict[str, Any] = {"name": f"{source}, {horizon:,} steps", "source": source, "horizon": horizon, "microseconds": microseconds}
    return SuiteTask(**(settings | {"budget": budget, "tuning": 2, "reporting": 10, "pool": 30, "searching": 5, "is_costly": True} | options))


def _held_out(variant: int, horizon: int, budget: str, microseconds: float, **options: Any) -> SuiteTask:
    return _task("small-heldout", horizon, microseconds, name=f"small-heldout/{variant}", variant=variant, budget=budget, **options)


SUITE = Suite(
    "pretrained",
    1,
    "Do the pretrained controllers work on tasks that they have never seen?",
    (
        _task("shakespeare-transformer", 100, 16000, tuning=1, pool=15, searching=3, side_by_side=3, examples=1024, evaluation=700),
        _task("mnist-cnn", 200, 8000, tuning=1, pool=15, searching=3, side_by_side=4, evaluation=400),
        _task("fashion-cnn", 200, 8000, tuning=1, pool=15, searching=3, side_by_side=4, evaluation=400),
        _task("small-noise", 10_000, 40, name="small-noise/0, 10,000 steps", variant=0, side_by_side=64),
        _task("small-noise", 10_000, 40, name="small-noise/3, 10,000 steps", variant=3, side_by_side=64),
        _held_out(6, 1471, "noise", 350, side_by_side=64, tuning=1, pool=20, evaluation=90),
        _held_out(11, 241, "short", 1500, side_by_side=32, tuning=1, pool=20, evaluation=170),
        _held_out(0, 816, "medium", 300, tuning=1, pool=20),
        _held_out(7, 136, "short", 1200, side_by_side=64, evaluation=50),
        _held_out(5, 228, "short", 800, side_by_side=32, evaluation=40),
        _held_out(2, 67, "short", 1200, side_by_side=32, tuning=1, pool=20, evaluation=60),
        _held_out(4, 381, "noise", 350, side_by_side=64, tuning=1, pool=20, evaluation=20),
        _task("mnist-mlp", 500, 700, tuning=1, pool=20, side_by_side=32, evaluation=20),
        _task("fashion-mlp", 500, 700, tuning=1, pool=20, side_by_side=32, evaluation=20),
        _held_out(3, 870, "medium", 120),
        _held_out(1, 315, "medium", 200),
        _held_out(8, 259, "short", 100),
        _held_out(9, 212, "short", 80),
        _held_out(10, 83, "short", 200),
        _task("diabetes-mlp", 10_000, 10),
        _task("wine-mlp", 10_000, 10),
        _task("diabetes-mlp", 1_000, 10, is_costly=False, side_by_side=512),
        _task("wine-mlp", 100, 10, is_costly=False, side_by_side=512),
    ),
    other_optimizers=(),
)
"""Digits, breast cancer and wine are the training family's data sets too, in other models, batches and horizons; all other data are new."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    folder: Path = Path(pretrained.__file__).parent
    """Where the controllers lie: momentum.safetensors and adamw.safetensors."""
    tasks: tuple[str, ...] = ()
    """Beginnings of the names of those tasks that are run; all by default. Shared rates are those of the tasks that are run."""
    seeds: int = 10
    """Reported trainings of each task."""
    workers: int = 2
    """Processes, one core each."""
    output: Path = Path("results/pretrained")
    """Folder of the results."""


class SolvedBenchmark(Benchmark):
    """A benchmark in which losses below :data:`SOLVED` are all as good."""

    def mean_score(self, result: CellResult) -> float:
        """See :meth:`benchmarks.lr_bench.engine.Benchmark.mean_score`."""
        return super().mean_score(floored(result))


def floored(result: CellResult) -> CellResult:
    """The result with no loss below :data:`SOLVED`."""
    return dataclasses.replace(result, scores=np.maximum(result.scores, SOLVED))


@dataclass(frozen=True)
class StartedMaker(FileMaker):
    """A controller whose trainings start at a multiple of its initial rate, within its range.

    Attributes:
        factor: The multiple.
    """

    factor: float = 1.0

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Sequence[int], point: Point) -> BoundController:
        """See :class:`benchmarks.lr_bench.contestants.Maker`."""
        bound = super().__call__(optimizer, task, seeds, point)
        rates = bound.mdp.rate_range()
        initial = min(max(rates.initial * self.factor, rates.lowest), rates.highest)
        return BoundController(bound.controller, dataclasses.replace(bound.mdp, initial_rate=initial))

    def identity(self, point: Point) -> str:
        """See :class:`benchmarks.lr_bench.contestants.Maker`."""
        return f"{super().identity(point)} × {self.factor:g}"


def started(factor: float) -> str:
    """The contestant's name."""
    return NAME if factor == 1 else f"{NAME}, first rate × {factor:g}"


def contestants(suite: Suite, folder: Path) -> list[Contestant]:
    """Rivals, and the controllers of a folder from each first rate.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    chosen = [contestant for contestant in rivals(suite) if contestant.name in (*RIVALS, POOL)]
    makers = {track: folder / file for track, file in FILES.items()}
    for path in makers.values():
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. The folder must hold {' and '.join(FILES.values())}.")
    # One contestant in both tracks, with another file in each.
    points: dict[str, tuple[Point, ...]] = {track: ({"training_seed": index},) for index, track in enumerate(makers)}
    for factor in (1.0, *START_FACTORS):
        maker = StartedMaker(tuple(path.resolve() for path in makers.values()), factor=factor)
        chosen.append(Contestant(started(factor), maker, points=points, is_entered=factor == 1))
    return chosen


def main(options: Options) -> None:
    """Runs what the output does not hold already, prints the tables and what they say."""
    check_sample("seeds", options.seeds)
    suite = chosen_suite(options)
    suite.check_data()
    console = make_console()
    with Store(options.output / STORE) as store:
        store.record_run(suite.key, typed_command("python -m benchmarks.pretrained"), (NAME,))
        benchmark, cells = run_benchmark(suite, contestants(suite, options.folder), store, LocalEngine(options.workers), SolvedBenchmark)
        show_problems(benchmark.problems, console)
        results = [(cell, floored(result)) for cell, result in stored(store, cells, benchmark)]
        summary = summarise(results, suite, (NAME,), provenance(store, suite))
    reported = {(cell.track, cell.task, cell.contestant): result for cell, result in results if cell.role == "report" and cell.contestant != POOL}
    tables = {track: rows(summary, reported, suite, track) for track in suite.tracks}
    for track, table in tables.items():
        for rendered in render(table, track):
            console.print(rendered)
    statements = [sentence for track, table in tables.items() for sentence in verdicts(summary, table, track)]
    for sentence in statements:
        console.print(sentence)
    seconds = sum(result.seconds for _, result in unique(results))
    console.print(f"{seconds:,.0f} CPU seconds in all.")
    (options.output / "pretrained.json").write_text(
        json.dumps({"tables": tables, "verdicts": statements, "seconds": seconds}, indent=1, ensure_ascii=False) + "\n"
    )
    console.print(f"Written: {options.output / 'pretrained.json'}, {write(summary, options.output / 'report')}")


def chosen_suite(options: Options) -> Suite:
    """The tasks of the options.

    Raises:
        ValueError: If a name is of no task.
    """
    for name in options.tasks:
        if not any(task.name.startswith(name) for task in SUITE.tasks):
            raise ValueError(f"No task is called {name!r}. There are: {'; '.join(task.name for task in SUITE.tasks)}.")
    tasks = [task for task in SUITE.tasks if not options.tasks or task.name.startswith(options.tasks)]
    return dataclasses.replace(SUITE, tasks=tuple(tasks)).with_reporting(options.seeds)


def unique(results: Sequence[tuple[Cell, CellResult]]) -> list[tuple[Cell, CellResult]]:
    """Each training once."""
    return list({cell.trainings: (cell, result) for cell, result in results}.values())


def rows(summary: Summary, reported: Mapping[tuple[str, str, str], CellResult], suite: Suite, track: str) -> list[dict[str, Any]]:
    """What is said of each task, JSON-ready: differences in % of the loss, intervals as ``[estimate, low, high]``."""
    entries = {(entry.task, entry.contestant): entry for entry in summary.entries if entry.track == track}
    equivalents = {row.task: row for row in summary.equivalents if row.track == track and row.contestant == NAME}
    table = []
    for task in suite.tasks:
        own, runs = entries[task.name, NAME], reported[track, task.name, NAME]
        starts = {factor: reported[track, task.name, started(factor)] for factor in START_FACTORS}
        search = equivalents[task.name]
        table.append(
            {
                "task": task.name,
                "horizon": task.horizon,
                "score": own.score,
                "scores": {name: entries[task.name, name].score for name in RIVALS},
                "against": {name: _numbers(own.ratios[name]) for name in RIVALS},
                "starts": {f"{factor:g}": _percent(runs_of, runs) for factor, runs_of in starts.items()},
                "diverged": max(float(result.diverged.mean()) for result in (runs, *starts.values())),
                "equivalents": [*_numbers(search.runs), search.pool],
                "metric": _metric(task, own, entries[task.name, RIVAL], runs, reported[track, task.name, RIVAL]),
            }
        )
    return table


def _metric(task: SuiteTask, own: TaskEntry, rival: TaskEntry, runs: CellResult, others: CellResult) -> dict[str, Any] | None:
    """The test metric of the controller and of the schedule tuned per task, and the difference of trainings that neither diverged in."""
    [variant] = task.family().variants
    fine = ~(runs.diverged | others.diverged)
    if variant.metric is None or runs.test_metrics is None or others.test_metrics is None or fine.sum() < 2:
        return None
    difference = paired_difference(runs.test_metrics[fine], others.test_metrics[fine])
    low, high = difference.low, difference.high
    is_worse = low > 0 if variant.metric.name in LOWER_IS_BETTER else high < 0
    values = {"own": own.test_metric, "tuned": rival.test_metric, "difference": [difference.mean, low, high]}
    return {"name": variant.metric.name, **values, "is_worse": is_worse}


def _percent(first: CellResult, second: CellResult) -> list[float]:
    """Change of the geometric mean of the final loss, paired."""
    difference = paired_difference(first.scores, second.scores)
    return [100 * (10**value - 1) for value in (difference.mean, difference.low, difference.high)]


def _numbers(interval: Interval) -> list[float]:
    return [interval.estimate, interval.low, interval.high]


def render(table: Sequence[Mapping[str, Any]], track: str) -> list[Table]:
    """The tables for the terminal."""
    losses = Table(title=f"{track}: final training loss of the pretrained controller against rivals, in % of theirs [95 %]; below 0 it is better")
    for column in ("Task", "log10 loss", *RIVALS, "random search, runs"):
        losses.add_column(column, justify="left" if column == "Task" else "right")
    others = Table(title=f"{track}: first rates off by 100, trainings that diverged, and the test metric")
    for column in ("Task", *(f"first rate × {factor:g}" for factor in START_FACTORS), "diverged", "metric", NAME, RIVAL, "difference [95 %]"):
        others.add_column(column, justify="left" if column in ("Task", "metric") else "right")
    for row in table:
        differences = [f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]" for mean, low, high in row["against"].values()]
        runs, fewest, most, pool = row["equivalents"]
        losses.add_row(row["task"], f"{row['score']:+.3f}", *differences, f"{_runs(runs, pool)} [{_runs(fewest, pool)}, {_runs(most, pool)}]")
        metric, cells = row["metric"], ["–"] * 4
        if metric is not None:
            mean, low, high = metric["difference"]
            cells = [metric["name"], f"{metric['own']:.4g}", f"{metric['tuned']:.4g}", f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"]
        others.add_row(row["task"], *(f"{change:+.1f} %" for change, _, _ in row["starts"].values()), f"{row['diverged']:.0%}", *cells)
    return [losses, others]


def _runs(value: float, pool: int) -> str:
    return "< 1" if value == 0 else f"> {pool}" if value == float("inf") else f"{value:.1f}"


def verdicts(summary: Summary, table: Sequence[Mapping[str, Any]], track: str) -> list[str]:
    """In words, what is asked of the controllers, and whether it holds."""
    sentences = []

    def say(what: str, holds: bool | None, numbers: str) -> None:
        sentences.append(f"{track}: {what}: {'undecided' if holds is None else 'met' if holds else 'missed'} ({numbers}).")

    for rival in SHARED:
        below = [row for row in table if row["against"][rival][0] < 0]
        sure = [row for row in below if row["against"][rival][2] < 0]
        say(f"below {rival} on each task", len(below) == len(table), f"{len(below)} of {len(table)}, {len(sure)} with their interval")
    comparisons = {row.second: row for row in summary.comparisons if row.track == track and row.first == NAME}
    ratio = comparisons[RIVAL].ratio
    numbers = f"{ratio.estimate:+.1f} % [{ratio.low:+.1f}, {ratio.high:+.1f}] over {comparisons[RIVAL].tasks} tasks"
    say("loss not above the schedule tuned per task, mean over tasks", None if ratio.low <= 0 < ratio.high else ratio.high <= 0, numbers)
    ratio = comparisons[POLYAK].ratio
    say("loss below SPS, mean over tasks", ratio.high < 0, f"{ratio.estimate:+.1f} % [{ratio.low:+.1f}, {ratio.high:+.1f}]")
    worse = [row["task"] for row in table if row["metric"] and row["metric"]["is_worse"]]
    say(
        "test metric not worse than that of the schedule tuned per task",
        not worse,
        f"worse on {len(worse)}" + ("" if not worse else ": ") + "; ".join(worse),
    )
    changes = [abs(change) for row in table for change, _, _ in row["starts"].values()]
    say(f"first rates off by 100 change the loss by less than {TOLERANCE:g} %", max(changes) < TOLERANCE, f"at most {max(changes):.2g} %")
    diverged = [row["task"] for row in table if row["diverged"]]
    say("no training diverges", not diverged, f"some on {len(diverged)} tasks" + ("" if not diverged else ": ") + "; ".join(diverged))
    median = next(row.runs for row in summary.equivalents if row.track == track and row.contestant == NAME and row.task is None)
    median_runs = ", ".join(_runs(value, max(row["equivalents"][3] for row in table)) for value in _numbers(median))
    sentences.append(f"{track}: runs of a random search that match it, median over tasks and its interval: {median_runs}.")
    return sentences


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_command(main, Options, __doc__)
