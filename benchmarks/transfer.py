"""Do controllers that were trained on a family of small tasks work, untouched, on tasks that they have never seen?

Each controller runs on trainings of every task, paired (same weights, same data order) with three rivals that were tuned on other trainings:

- the best shared constant rate: one for all tasks of the table;
- tuned per task: the best of constant rate, cosine and step decay, with the best rate of the grid; what somebody gets who tunes each task;
- SPS, the stochastic Polyak step size, with one constant for all tasks.

Losses and metrics are taken over fixed examples of each split (``--examples``, drawn once, the same for all trainings), as whole splits of
55,000 images would cost more than the trainings. The loss is that of the training split.

All runs are kept in the output, one file for each task: a killed benchmark goes on where it stopped, and another controller or task costs its
own runs alone. Several processes may share an output if their tasks differ (``--tasks mnist-cnn``, ``--tasks small-heldout/3``), and files of
outputs with the same setting may be copied together: a last run of all tasks needs only what the rivals that tasks share add. It
prints the tables and writes them as ``tables.md``. After a change of the code choose another output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn
from tqdm import tqdm

from benchmarks.baselines import GRID_STARTS, GRID_STEP, RunnerCache, extended_search, grid, polyak, rate_limits, schedule_shapes
from benchmarks.lr_bench.report.tables import Column as ReadmeColumn
from benchmarks.lr_bench.report.tables import Table as ReadmeTable
from benchmarks.memory import release_memory
from benchmarks.statistics import Difference, check_sample, paired_difference
from benchmarks.terminal import make_console, run_command
from lr_env import __version__
from lr_env.checks import positive_integer, unknown_name
from lr_env.controllers import BoundController, load_controller
from lr_env.episodes import find_family
from lr_env.seeding import Role, check_seed, role_seeds
from lr_env.tasks import Task, TaskFamily, task_data_sets, task_names
from lr_env.tasks.datasets import is_available
from lr_env.training import make_optimizer

FAMILY = "small-heldout"
TASKS = (FAMILY, "mnist-mlp", "fashion-mlp", "mnist-cnn", "fashion-cnn", "shakespeare-transformer")

CONSTANT, POLYAK = "constant", "SPS"
POLYAK_LIMITS = (2e-4, 5e3)
SHARED, TUNED, SHARED_POLYAK = "shared constant", "tuned per task", "SPS, shared constant"
RIVALS = (SHARED, TUNED, SHARED_POLYAK)

SIDE_BY_SIDE, COSTLY_SIDE_BY_SIDE, SEQUENCES_SIDE_BY_SIDE = 16, 2, 1
"""Trainings at once, of perceptrons, of other models, and of those that predict sequences: a benchmark shall need at most 2 GB."""

START_FACTORS = (0.01, 100.0)
NEAR = range(-1, 3)
"""Steps of the grid, from the task's best constant rate, where the search for the peak of a falling schedule begins."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    controllers: tuple[str, ...] = ()
    """Controllers as NAME=PATH, files that ``python -m agents.train`` writes; without any, the rivals alone are run."""
    optimizer: str = "momentum"
    """Name of the optimizer of all trainings."""
    replace_optimizer: bool = False
    """Run controllers of other optimizers too, with this one in place of their own."""
    tasks: tuple[str, ...] = TASKS
    """Names of tasks and families; of a family, each variant is a task, of which FAMILY/INDEX is one."""
    horizons: tuple[str, ...] = ("mnist-cnn=200", "fashion-cnn=400", "shakespeare-transformer=200")
    """SGD steps as NAME=STEPS; other tasks have their own horizons."""
    trainings: int = 16
    """Trainings of each perceptron that are reported."""
    costly_trainings: int = 4
    """The same for models that are more than perceptrons."""
    tuning_trainings: int = 8
    """Trainings of each perceptron that rivals are tuned on."""
    costly_tuning_trainings: int = 2
    """The same for models that are more than perceptrons."""
    examples: int = 4096
    """Examples of each split that are evaluated."""
    full_grid: bool = False
    """Try all rates of the grid with cosine and step decay too, not those near the task's best constant rate alone."""
    starts_on: tuple[str, ...] = (FAMILY,)
    """Those of the tasks where controllers also start 100 times below and above their initial rate."""
    seed: int = 0
    """Seed of all trainings."""
    output: Path = Path("results/transfer")
    """Folder of the results."""


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        name: The task's, or ``family/variant``.
        group: Name of the option that it comes from.
        family: Of one variant.
        horizon: SGD steps.
        reporting: Trainings that are reported.
        tuning: Trainings that rivals are tuned on.
        side_by_side: Trainings at once, which bounds the memory.
    """

    name: str
    group: str
    family: TaskFamily
    horizon: int
    reporting: int
    tuning: int
    side_by_side: int


@dataclass(frozen=True)
class Contestant:
    """A controller from a file.

    Attributes:
        name: What the table calls it.
        path: Its file.
        digest: Of the file's contents.
        bound: The controller.
    """

    name: str
    path: Path
    digest: str
    bound: BoundController

    def started(self, factor: float) -> BoundController:
        """The controller in trainings that start at its initial rate times a factor, within its range.

        Rewards mean nothing to it; all have the same ones, and with them the same rule of divergence.
        """
        rates = self.bound.mdp.rate_range()
        initial = min(max(rates.initial * factor, rates.lowest), rates.highest)
        mdp = dataclasses.replace(self.bound.mdp, initial_rate=initial, initial_rate_decades=0.0, reward="log_loss", reward_on="next_batch")
        return BoundController(self.bound.controller, mdp)


class Records:
    """All runs so far, in a file for each task.

    Args:
        folder: Where the files are; what they hold is taken over.
        setting: What all runs depend on, JSON-ready.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any]) -> None:
        self.folder, self.setting = folder, dict(setting)
        self._records: dict[str, dict[str, Any]] = {}

    def of(self, subject: Subject) -> dict[str, Any]:
        """What is known of a task: ``tuning``, ``{shape: {point: …}}``, and ``reports``, ``{run: …}``.

        Raises:
            ValueError: If its file holds runs of another setting.
        """
        if subject.name not in self._records:
            record = {"setting": self.setting, "tuning": {}, "reports": {}, "seconds": 0.0}
            if (path := self._path(subject)).exists():
                record = json.loads(path.read_text())
                different = [name for name in self.setting if record["setting"].get(name) != self.setting[name]]
                if different:
                    listing = ", ".join(f"{name}={record['setting'].get(name)!r}" for name in different)
                    raise ValueError(f"{path} was begun with {listing}. Go on with the same, or choose another --output.")
            self._records[subject.name] = record
        return self._records[subject.name]

    def save(self, subject: Subject) -> None:
        """Writes what is known of a task."""
        write_json(self._path(subject), self.of(subject))

    def _path(self, subject: Subject) -> Path:
        return self.folder / f"{subject.name.replace('/', '-')}.json"


class Transfer:
    """The benchmark. What can be wrong with the options is found here, before anything is trained.

    Args:
        options: See :class:`Options`.

    Raises:
        ValueError: If an option is wrong, data are missing, or the output holds runs of another setting.
        FileNotFoundError: If a controller's file is missing.
    """

    def __init__(self, options: Options) -> None:
        for name in ("examples", "tuning_trainings", "costly_tuning_trainings"):
            positive_integer(name, getattr(options, name))
        for name in ("trainings", "costly_trainings"):
            check_sample(name, getattr(options, name))
        check_seed(options.seed)
        self.options = options
        self._limits = rate_limits(options.optimizer)
        for name in options.starts_on:
            if name not in task_names():
                raise unknown_name("task of starts_on", name, task_names())
        self.contestants = load_contestants(options)
        self.subjects = find_subjects(options)
        setting = {name: getattr(options, name) for name in ("optimizer", "seed", "examples")}
        for name in ("trainings", "costly_trainings", "tuning_trainings", "costly_tuning_trainings", "full_grid"):
            setting[name] = getattr(options, name)
        setting |= {"horizons": list(options.horizons), "versions": {"lr_env": __version__, "torch": torch.__version__}}
        self.records = Records(options.output / "tasks", setting)
        for subject in self.subjects:
            self.records.of(subject)
        self._tuning: tuple[str, list[RunnerCache]] | None = None
        self._bar: tqdm[Any] | None = None

    def run(self) -> dict[str, Any]:
        """Tunes, runs and summarises, with a progress bar; returns the summary."""
        with tqdm(total=2 * len(self.subjects), desc="Transfer", unit=" stages", dynamic_ncols=True) as self._bar:
            tuned = {}
            for subject in self.subjects:
                tuned[subject.name] = self.tune(subject)
                self._bar.update()
            shared, shared_polyak = self._tune_shared(CONSTANT), self._tune_shared(POLYAK)
            choices = {name: {SHARED: (CONSTANT, shared), TUNED: own, SHARED_POLYAK: (POLYAK, shared_polyak)} for name, own in tuned.items()}
            self._tuning = None
            for subject in self.subjects:
                self._report_all(subject, choices[subject.name])
                self._bar.update()
        summary = self.summarise(choices)
        write_json(self.path, {"setting": self.records.setting, **summary})
        self.path.with_name("tables.md").write_text(make_markdown(summary))
        return summary

    def tune(self, subject: Subject) -> tuple[str, float]:
        """The schedule's shape, and its peak rate, that are best on a task's tuning trainings; SPS is tried on its grid too."""
        score = partial(self.score, subject)
        extended_search(partial(score, POLYAK), grid(GRID_STARTS["sps"]), *POLYAK_LIMITS)
        best = {CONSTANT: extended_search(partial(score, CONSTANT), self._rates, *self._limits)}
        near = [best[CONSTANT].best * 10 ** (GRID_STEP * i) for i in NEAR]
        for shape in schedule_shapes(subject.horizon):
            if shape != CONSTANT:
                best[shape] = extended_search(partial(score, shape), self._rates if self.options.full_grid else near, *self._limits)
        shape = min(best, key=lambda name: best[name].scores[best[name].best])
        return shape, best[shape].best

    def score(self, subject: Subject, shape: str, point: float) -> float:
        """Mean score on a task's tuning trainings of a schedule with this peak rate, or of SPS with this constant."""
        record = self.records.of(subject)
        known = record["tuning"].setdefault(shape, {})
        if repr(point) not in known:
            start = time.process_time()
            self._show(subject, f"{shape} {point:.2g}")
            if self._tuning is None or self._tuning[0] != subject.name:  # one task's at a time, for the memory
                self._tuning = subject.name, self._runners(subject, Role.TUNE)
            result = _run(self._tuning[1], self._make(subject, shape, point))
            known[repr(point)] = {"score": float(np.mean(result["scores"])), "diverged": float(np.mean(result["diverged"]))}
            record["seconds"] += time.process_time() - start
            self.records.save(subject)
        return float(known[repr(point)]["score"])

    def summarise(self, choices: Mapping[str, Mapping[str, tuple[str, float]]]) -> dict[str, Any]:
        """What the tables hold, JSON-ready, from the reports of all tasks.

        Args:
            choices: Of each task, the shape and the point of each rival.
        """
        rows: dict[str, Any] = {}
        for subject in self.subjects:
            reports, chosen = self.records.of(subject)["reports"], choices[subject.name]
            rivals = {rival: reports[_rival_key(*choice)] for rival, choice in chosen.items()}
            row: dict[str, Any] = {
                "group": subject.group,
                "horizon": subject.horizon,
                "trainings": subject.reporting,
                "metric": _metric_name(subject),
            }
            row["rivals"] = {rival: {"choice": list(chosen[rival]), **_means(report)} for rival, report in rivals.items()}
            row["controllers"] = {}
            for contestant in self.contestants:
                own = reports[_controller_key(contestant, 1.0)]
                starts = {f"{factor:g}": reports[_controller_key(contestant, factor)] for factor in self._factors(subject)}
                row["controllers"][contestant.name] = {
                    **_means(own),
                    "differences": {rival: dataclasses.asdict(_difference(own, report)) for rival, report in rivals.items()},
                    "starts": {factor: dataclasses.asdict(_difference(report, own)) for factor, report in starts.items()},
                }
            rows[subject.name] = row
        names = {contestant.name: {"path": str(contestant.path), "digest": contestant.digest} for contestant in self.contestants}
        return {"controllers": names, "tasks": rows, "means": self._means_over_tasks(rows)}

    def _means_over_tasks(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Mean differences over all tasks, over the variants of each family, and over the tasks that are none; intervals over tasks."""
        families = [group for group in dict.fromkeys(row["group"] for row in rows.values()) if group not in rows]
        groups = {"all tasks": list(rows)} | {group: [name for name in rows if rows[name]["group"] == group] for group in families}
        groups["other tasks"] = [name for name in rows if rows[name]["group"] not in families]
        means: dict[str, Any] = {}
        for group, names in groups.items():
            if len(names) < 2 or (group != "all tasks" and len(names) == len(rows)):
                continue
            means[group] = {}
            for contestant in self.contestants:
                own = np.array([rows[name]["controllers"][contestant.name]["score"] for name in names])
                others = {rival: np.array([rows[name]["rivals"][rival]["score"] for name in names]) for rival in RIVALS}
                diverged = float(np.mean([rows[name]["controllers"][contestant.name]["diverged"] for name in names]))
                differences = {rival: dataclasses.asdict(paired_difference(own, scores)) for rival, scores in others.items()}
                means[group][contestant.name] = {"score": float(own.mean()), "diverged": diverged, "differences": differences}
        return means

    def _report_all(self, subject: Subject, choices: Mapping[str, tuple[str, float]]) -> None:
        """The runs of rivals and controllers that are reported, as far as they are not known."""
        runs: dict[str, tuple[str, Callable[[], BoundController]]] = {}
        for rival, choice in choices.items():
            runs[_rival_key(*choice)] = rival, partial(self._make, subject, *choice)
        for contestant in self.contestants:
            for factor in (1.0, *self._factors(subject)):
                runs[_controller_key(contestant, factor)] = f"{contestant.name} × {factor:g}", partial(contestant.started, factor)
        record, runners, mdp = self.records.of(subject), self._runners(subject, Role.REPORT), None
        for key, (shown, make) in runs.items():
            if key in record["reports"]:
                continue
            start, bound = time.process_time(), make()
            self._show(subject, shown)
            if bound.mdp != mdp:  # one decision process at a time, for the memory
                runners, mdp = self._runners(subject, Role.REPORT), bound.mdp
            record["reports"][key] = _run(runners, bound)
            record["seconds"] += time.process_time() - start
            self.records.save(subject)

    def _tune_shared(self, shape: str) -> float:
        """The one point that is best on average over all tasks; the grid is extended on all of them."""

        def mean_score(point: float) -> float:
            return float(np.mean([self.score(subject, shape, point) for subject in self.subjects]))

        points, limits = (grid(GRID_STARTS["sps"]), POLYAK_LIMITS) if shape == POLYAK else (self._rates, self._limits)
        return extended_search(mean_score, points, *limits).best

    def _make(self, subject: Subject, shape: str, point: float) -> BoundController:
        optimizer = self.options.optimizer
        return polyak(point, optimizer) if shape == POLYAK else schedule_shapes(subject.horizon, optimizer)[shape](point)

    def _runners(self, subject: Subject, role: Role) -> list[RunnerCache]:
        """Of the trainings of a role, as many at once as the memory allows; tests are of no use to those that rivals are tuned on."""
        seeds = role_seeds(self.options.seed, role, subject.tuning if role == Role.TUNE else subject.reporting)
        options = {"horizon": subject.horizon, "num_examples": self.options.examples, "tests": role == Role.REPORT}
        parts = (seeds[start : start + subject.side_by_side] for start in range(0, len(seeds), subject.side_by_side))
        return [RunnerCache(subject.family, part, **options) for part in parts]

    @property
    def path(self) -> Path:
        """Of the results."""
        return self.options.output / "results.json"

    @property
    def seconds(self) -> float:
        """CPU seconds that the runs of all tasks took."""
        return sum(float(self.records.of(subject)["seconds"]) for subject in self.subjects)

    @property
    def _rates(self) -> list[float]:
        """The grid of rates, from one decade above the lowest."""
        return grid(math.log10(self._limits[0]) + 1)

    def _factors(self, subject: Subject) -> tuple[float, ...]:
        return START_FACTORS if subject.group in self.options.starts_on else ()

    def _show(self, subject: Subject, what: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"{subject.name}: {what}")


def load_contestants(options: Options) -> list[Contestant]:
    """The controllers of the options.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is not given as NAME=PATH, a name is given twice, or a controller was made for another optimizer.
    """
    contestants: list[Contestant] = []
    for name, given in _assignments("controllers", options.controllers, "ppo=results/train/controller.safetensors"):
        path = Path(given)
        bound, optimizer = load_controller(path), make_optimizer(options.optimizer)[0]
        if make_optimizer(bound.mdp.optimizer)[0] != optimizer:
            if not options.replace_optimizer:
                raise ValueError(
                    f"Controller {name!r} was made for optimizer {bound.mdp.optimizer!r}, but optimizer {options.optimizer!r} was given. "
                    f"Pass that one, or --replace-optimizer to run the controller with {options.optimizer!r} all the same."
                )
            bound = BoundController(bound.controller, dataclasses.replace(bound.mdp, optimizer=options.optimizer))
        contestants.append(Contestant(name, path, hashlib.sha256(path.read_bytes()).hexdigest(), bound))
    return contestants


def find_subjects(options: Options) -> list[Subject]:
    """The tasks of the options, each variant of a family as one.

    Raises:
        ValueError: If a name is unknown, data are missing, or a variant has an optimizer of its own.
    """
    names = dict.fromkeys(name.partition("/")[0] for name in options.tasks)
    missing = sorted({data_set for name in names for data_set in task_data_sets(name) if not is_available(data_set)})
    if missing:
        raise ValueError(
            f"The data of some tasks are not at hand: {', '.join(missing)}. Set LR_ENV_DATA to their folder, download them by "
            "`python -m benchmarks.tasks --download`, or leave these tasks out of --tasks."
        )
    if not options.tasks:
        raise ValueError("At least one task is needed. Leave --tasks out for all.")
    horizons: dict[str, int] = {}
    for name, steps in _assignments("horizons", options.horizons, "mnist-cnn=200"):
        if not steps.isdecimal() or int(steps) < 1:
            raise ValueError(f"The horizon of {name} must be an integer >= 1, but {steps!r} was given.")
        horizons[name] = int(steps)
    subjects = []
    for group in names:
        whole = find_family(group)
        variants = [group] if whole.num_variants == 1 else [f"{group}/{index}" for index in range(whole.num_variants)]
        for name in options.tasks:
            if name.startswith(f"{group}/") and name not in variants:
                raise ValueError(
                    f"{group} has {whole.num_variants} variants, but {name!r} was given. Pass one of {', '.join(variants)}, or {group} for all."
                )
        for index, (name, task) in enumerate(zip(variants, whole.variants, strict=True)):
            if group not in options.tasks and name not in options.tasks:
                continue
            if whole.optimizers[index] is not None:
                raise ValueError(f"{name} has an optimizer of its own, {whole.optimizers[index]!r}. Leave it out of --tasks.")
            counts = (options.trainings, options.tuning_trainings, SIDE_BY_SIDE)
            if not _is_perceptron(task):
                is_sequence = task.data.split("train").targets[0].numel() > 1
                side_by_side = SEQUENCES_SIDE_BY_SIDE if is_sequence else COSTLY_SIDE_BY_SIDE
                counts = (options.costly_trainings, options.costly_tuning_trainings, side_by_side)
            subjects.append(Subject(name, group, whole.variant(index), horizons.get(group, task.horizon), *counts))
    return subjects


def make_tables(summary: Mapping[str, Any]) -> list[Table]:
    """The tables for the terminal: each controller against its rivals, the rivals, test metrics, and starts."""
    tasks = summary["tasks"]
    tables = []
    for name in summary["controllers"]:
        title = f"{name}, untouched: mean log10 of the final loss; mean difference to rivals [95 % interval], below 0 the controller is better"
        table = _new_table(title, ("Task", "log10 loss", *(f"− {rival}" for rival in ("constant", "tuned", "SPS")), "diverged"))
        for task, row in tasks.items():
            table.add_row(task, *_cells(row["controllers"][name]))
        table.add_section()
        for group, means in summary["means"].items():
            table.add_row(f"Mean: {group}", *_cells(means[name]))
        tables.append(table)
    rivals = _new_table("Rivals: mean log10 of the final loss, and diverged", ("Task", "steps", "trainings", *RIVALS, "what was tuned"))
    for task, row in tasks.items():
        shape, point = row["rivals"][TUNED]["choice"]
        cells = [f"{each['score']:+.3f}, {each['diverged']:.0%}" for each in row["rivals"].values()]
        rivals.add_row(task, f"{row['horizon']:,}", str(row["trainings"]), *cells, f"{shape} {point:.2g}")
    first = next(iter(tasks.values()))["rivals"]
    rivals.caption = f"Shared constant rate {first[SHARED]['choice'][1]:.2g}; constant of SPS {first[SHARED_POLYAK]['choice'][1]:.2g}."
    metrics = _new_table("Metric over the test split, of trainings that did not diverge", ("Task", "metric", *RIVALS, *summary["controllers"]))
    for task, row in tasks.items():
        values = [each["metric"] for each in (*row["rivals"].values(), *row["controllers"].values())]
        metrics.add_row(task, row["metric"] or "–", *("–" if value is None else f"{value:.3f}" for value in values))
    tables += [rivals, metrics]
    started = {task: row for task, row in tasks.items() if any(each["starts"] for each in row["controllers"].values())}
    if started:
        columns = [f"{name} × {factor:g}" for name in summary["controllers"] for factor in START_FACTORS]
        starts = _new_table("Starts off the initial rate: mean change of log10 of the final loss [95 % interval]", ("Task", *columns))
        for task, row in started.items():
            starts.add_row(task, *(_interval(change) for each in row["controllers"].values() for change in each["starts"].values()))
        tables.append(starts)
    return tables


def make_markdown(summary: Mapping[str, Any]) -> str:
    """Two tables for a README: mean scores of rivals and controllers, and mean differences over tasks."""
    names = tuple(summary["controllers"])
    columns = tuple(ReadmeColumn(name) for name in ("Task", "steps", *RIVALS, *names))
    rows = [
        (task, f"{row['horizon']:,}", *(_score(each) for each in (*row["rivals"].values(), *row["controllers"].values())))
        for task, row in summary["tasks"].items()
    ]
    scores = ReadmeTable("scores", "", columns, tuple(rows))
    columns = tuple(ReadmeColumn(name) for name in ("Mean over tasks of controller − rival [95 % interval over tasks]", *RIVALS))
    rows = [
        (f"{name}; {group}", *(_interval(means[name]["differences"][rival]) for rival in RIVALS))
        for name in names
        for group, means in summary["means"].items()
    ]
    return "\n".join(table.to_markdown() for table in (scores, ReadmeTable("means", "", columns, tuple(rows))))


def main(options: Options) -> None:
    """Runs the benchmark, prints the tables and writes the results."""
    torch.set_num_threads(1)
    transfer = Transfer(options)
    summary = transfer.run()
    console = make_console()
    for table in make_tables(summary):
        console.print(table)
    console.print(f"{transfer.seconds:,.0f} CPU seconds in all. Written to {transfer.path}")


def write_json(path: Path, data: Any) -> None:
    """Writes a file, beside and then moved, so that a kill leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    beside.write_text(json.dumps(data, indent=1) + "\n")
    beside.replace(path)


def _rival_key(shape: str, point: float) -> str:
    return f"{shape} {point!r}"


def _controller_key(contestant: Contestant, factor: float) -> str:
    return f"controller {contestant.digest} × {factor:g}"


def _run(runners: Sequence[RunnerCache], bound: BoundController) -> dict[str, Any]:
    """Scores, divergences and metrics (or None) of all trainings, JSON-ready."""
    results = []
    for runner in runners:
        results.append(runner.run(bound))
        release_memory()
    metrics: list[float | None] | None = None
    if all(result.test_metrics is not None for result in results):
        values = np.concatenate([result.test_metrics for result in results if result.test_metrics is not None]).tolist()
        metrics = [value if math.isfinite(value) else None for value in values]
    scores, diverged = (np.concatenate([getattr(result, name) for result in results]).tolist() for name in ("scores", "diverged"))
    return {"scores": scores, "diverged": diverged, "metrics": metrics}


def _means(report: Mapping[str, Any]) -> dict[str, Any]:
    """Mean score, diverged share, and mean metric of the trainings that did not diverge, or None."""
    metric = None
    if report["metrics"] is not None:
        values = [value for value, diverged in zip(report["metrics"], report["diverged"], strict=True) if value is not None and not diverged]
        metric = float(np.mean(values)) if values else None
    return {"score": float(np.mean(report["scores"])), "diverged": float(np.mean(report["diverged"])), "metric": metric}


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    return paired_difference(np.array(first["scores"]), np.array(second["scores"]))


def _metric_name(subject: Subject) -> str | None:
    metric = subject.family.variants[0].metric
    return None if metric is None else metric.name


def _is_perceptron(task: Task) -> bool:
    """Whether linear layers alone have parameters."""
    modules = task.make_model(np.random.SeedSequence(0)).modules()
    return all(isinstance(module, nn.Linear) for module in modules if next(module.parameters(recurse=False), None) is not None)


def _assignments(what: str, given: Sequence[str], example: str) -> list[tuple[str, str]]:
    """Names and values of ``NAME=VALUE``."""
    pairs: list[tuple[str, str]] = []
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ValueError(f"{what} must be given as NAME=VALUE, such as {example}, but {text!r} was given.")
        if name in dict(pairs):
            raise ValueError(f"{what} must have different names, but {name!r} was given twice.")
        pairs.append((name, value))
    return pairs


def _new_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", padding=(0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "Task" else "right", no_wrap=column == "Task")
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [f"{entry['score']:+.3f}", *(_interval(entry["differences"][rival]) for rival in RIVALS), f"{entry['diverged']:.0%}"]


def _score(entry: Mapping[str, Any]) -> str:
    return f"{entry['score']:+.3f}" + (f" ({entry['diverged']:.0%} diverged)" if entry["diverged"] else "")


def _interval(difference: Mapping[str, float]) -> str:
    return f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


if __name__ == "__main__":
    run_command(main, Options, __doc__)
