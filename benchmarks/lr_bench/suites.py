"""What is benchmarked: frozen, versioned lists of tasks with their budgets.

A suite never changes: another task, horizon or number of trainings is another version, and another version's results are other results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lr_env.checks import unknown_name
from lr_env.episodes import find_family
from lr_env.tasks import FamilySpecification, TaskFamily, Variant, task_data_sets
from lr_env.tasks.datasets import is_available
from lr_env.tasks.families import SMALL_HELD_OUT

Budget: TypeAlias = Literal["short", "medium", "noise"]
"""Fewer than 300 SGD steps; more; noise-dominated: at least 5,000 steps, or batches of at most 16."""

TRACKS = ("momentum", "adamw")
"""Optimizers within which contestants are compared."""

OTHER_OPTIMIZERS = ("adagrad", "rmsprop", "nadamw")
"""Beside the tracks in the table that compares optimizers."""

NOISE = FamilySpecification(
    name="small-noise",
    data_sets=("diabetes", "digits", "digits"),
    architectures=("mlp",),
    activations=("gelu", "silu", "leaky_relu"),
    depth=(1, 2),
    width=(16, 64),
    batch_size=(4, 16),
    horizon=(2000, 5000),
    data_fraction=(0.5, 1.0),
    input_scale_decades=(-0.5, 0.5),
    label_noise=(0.1, 0.3),
    num_variants=4,
    family_seed=7,
)
"""Perceptrons whose minibatches say little: small ones, with wrong labels. Held out as ``small-heldout`` is."""

SPECIFICATIONS: Mapping[str, FamilySpecification] = {specification.name: specification for specification in (SMALL_HELD_OUT, NOISE)}
"""Families whose whole specification is part of a suite."""


LOWER_METRICS = ("mnist-autoencoder", "shakespeare-transformer")
"""Sources whose metric for people is better where it is lower: a squared error, a perplexity."""


@dataclass(frozen=True)
class SuiteTask:
    """A task, and how much is trained on it.

    Attributes:
        name: What tables show.
        source: Name of a registered task, or of a family of :data:`SPECIFICATIONS`.
        horizon: SGD steps of a training.
        budget: See :data:`Budget`.
        tuning: Trainings that each point of a grid is tuned on.
        reporting: Trainings that are reported.
        pool: Points of the random search.
        searching: Reported trainings that each of these runs on, the first ones.
        variant: Of the family; None for a task.
        batch_size: In place of the task's own; None for that.
        examples: Of each split, that final losses and metrics are taken over; None for the suite's number. A sequence makes many predictions.
        is_costly: Whether only the commonest schedules and SPS are tuned on it; see :mod:`benchmarks.lr_bench.contestants`.
        side_by_side: Trainings at once, which bounds the memory.
        microseconds: Of one core, for one SGD step of one training, about, as the next; only the remaining time is estimated with them.
        evaluation: Milliseconds of one core, for one evaluation of one training.
        centres: log10 of the rate that grids have in their middle, by optimizer, as :mod:`benchmarks.range_test` found it; where an
            optimizer has none, its grid begins one decade above the lowest rate that controllers may choose.
    """

    name: str
    source: str
    horizon: int
    budget: Budget
    tuning: int
    reporting: int
    pool: int
    searching: int
    variant: int | None = None
    batch_size: int | None = None
    is_costly: bool = False
    side_by_side: int = 128
    microseconds: float = 50.0
    evaluation: float = 0.5
    centres: Mapping[str, float] = field(default_factory=dict)
    examples: int | None = None

    def family(self) -> TaskFamily:
        """What is trained; the same object in each call."""
        return _family(self.source, self.variant, self.batch_size)

    @property
    def setting(self) -> dict[str, Any]:
        """All that one training depends on beside its seed, JSON-ready."""
        specification = SPECIFICATIONS.get(self.source)
        source = self.source if specification is None else specification.to_dict()
        return {"source": source, "variant": self.variant, "batch_size": self.batch_size, "horizon": self.horizon}

    @property
    def data_sets(self) -> tuple[str, ...]:
        """Names of the data sets that it loads."""
        specification = SPECIFICATIONS.get(self.source)
        return tuple(sorted(set(specification.data_sets))) if specification is not None else task_data_sets(self.source)


@dataclass(frozen=True)
class Suite:
    """Tasks, and the optimizers that train on them.

    Attributes:
        name: Short.
        version: Counts its changes.
        question: What it is for.
        tasks: At least one.
        tracks: Optimizers within which contestants are compared.
        other_optimizers: See :data:`OTHER_OPTIMIZERS`.
        examples: Of each split, that final losses and metrics are taken over, the same for all trainings; tasks may have their own number.
        leaves_out: Names of rivals that don't take part.
        seed: Of all trainings.
    """

    name: str
    version: int
    question: str
    tasks: tuple[SuiteTask, ...]
    tracks: tuple[str, ...] = TRACKS
    other_optimizers: tuple[str, ...] = OTHER_OPTIMIZERS
    examples: int = 4096
    leaves_out: tuple[str, ...] = ()
    seed: int = 0

    @property
    def key(self) -> str:
        """Name and version, ``"standard-1"``."""
        return f"{self.name}-{self.version}"

    @property
    def digest(self) -> str:
        """Of everything that its results depend on."""
        data = asdict(self) | {"settings": [task.setting for task in self.tasks]}
        for task in data["tasks"]:
            del task["microseconds"], task["evaluation"], task["side_by_side"]
        del data["question"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def with_reporting(self, trainings: int | None) -> Suite:
        """The suite with so many reported trainings of every task; None for its own.

        Raises:
            ValueError: If they are fewer than two.
        """
        if trainings is None:
            return self
        if trainings < 2:
            raise ValueError(f"At least 2 seeds are needed, so that there are intervals, but {trainings} was given.")
        tasks = (dataclasses.replace(task, reporting=trainings, searching=min(task.searching, trainings)) for task in self.tasks)
        return dataclasses.replace(self, tasks=tuple(tasks))

    def examples_of(self, task: SuiteTask) -> int:
        """Of each split of a task, that final losses and metrics are taken over."""
        return self.examples if task.examples is None else task.examples

    def check_data(self) -> None:
        """Refuses to begin without the data.

        Raises:
            ValueError: If some are not at hand.
        """
        missing = sorted({name for task in self.tasks for name in task.data_sets if not is_available(name)})
        if missing:
            raise ValueError(
                f"Suite {self.name!r} needs data that are not at hand: {', '.join(missing)}. Set LR_ENV_DATA to their folder, or download them by "
                "`python -m benchmarks.tasks --download`; suite 'quick' needs none."
            )


@cache
def _family(source: str, variant: int | None, batch_size: int | None) -> TaskFamily:
    specification = SPECIFICATIONS.get(source)
    family = find_family(source) if specification is None else _whole(source)
    if variant is not None:
        family = family.variant(variant)
    if batch_size is not None:
        if isinstance(family.task, Variant):
            task: Any = dataclasses.replace(family.task, task=dataclasses.replace(family.task.task, batch_size=batch_size))
        else:
            task = dataclasses.replace(family.variants[0], batch_size=batch_size)
        family = dataclasses.replace(family, task=task)
    return family


@cache
def _whole(name: str) -> TaskFamily:
    return SPECIFICATIONS[name].family()


CENTRES: Mapping[str, Mapping[str, Mapping[str, float]]] = json.loads(Path(__file__).with_name("centres.json").read_text())
"""By suite, task and optimizer; see :attr:`SuiteTask.centres`."""


REFERENCES = Path(__file__).with_name("references.json")
"""What scores are measured by, by suite, track and task: the means of log10 of the loss at the default rate and of the rival that is tuned per task
(``"default"`` and ``"rival"``), and whether they differ enough for a score (``"scored"``). `lr-bench freeze` writes it, once for each version."""


def frozen_references(suite: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Those of a suite, such as ``"standard-2"``; empty where nothing is frozen yet. See :data:`REFERENCES`."""
    found: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads(REFERENCES.read_text()).get(suite, {})
    return found


def _held_out(variant: int, horizon: int, budget: Budget, microseconds: float, **options: Any) -> SuiteTask:
    counts = {"tuning": 2, "reporting": 10, "pool": 100, "searching": 3} | options
    return SuiteTask(f"small-heldout/{variant}", "small-heldout", horizon, budget, variant=variant, microseconds=microseconds, **counts)


def _noise(variant: int, horizon: int, microseconds: float) -> SuiteTask:
    return SuiteTask(f"small-noise/{variant}", "small-noise", horizon, "noise", 2, 10, 100, 3, variant, microseconds=microseconds)


def _centred(name: str, tasks: Sequence[SuiteTask]) -> tuple[SuiteTask, ...]:
    return tuple(dataclasses.replace(task, centres=CENTRES.get(name, {}).get(task.name, {})) for task in tasks)


SLOW_RIVALS = (
    "Armijo line search",
    "hypergradient, additive",
    "hypergradient, multiplicative",
    "D-adaptation",
    "DoG",
    "DoG, averaged",
    "greedy, one step ahead",
)

SMOKE = Suite(
    "smoke",
    2,
    "Does everything work? Seconds; its numbers mean nothing.",
    (
        SuiteTask("breast-cancer-mlp", "breast-cancer-mlp", 8, "short", 2, 3, 5, 2, side_by_side=512, microseconds=12),
        SuiteTask("wine-mlp", "wine-mlp", 10, "noise", 2, 3, 5, 2, side_by_side=512, microseconds=10),
    ),
    tracks=("momentum",),
    other_optimizers=(),
    examples=64,
    leaves_out=(*SLOW_RIVALS, "normalised gradient", "schedule-free", "prodigy"),
)

QUICK = Suite(
    "quick",
    2,
    "A first answer in about two minutes on 2 cores, without a download.",
    _centred(
        "quick",
        (
            SuiteTask("digits-mlp", "digits-mlp", 100, "short", 2, 10, 30, 4, side_by_side=256, microseconds=30),
            SuiteTask("breast-cancer-mlp", "breast-cancer-mlp", 100, "short", 2, 10, 30, 4, side_by_side=512, microseconds=12),
            SuiteTask("diabetes-mlp", "diabetes-mlp", 300, "medium", 2, 10, 30, 4, side_by_side=512, microseconds=9),
            SuiteTask("digits-logreg-16", "digits-logreg", 300, "noise", 2, 10, 30, 4, batch_size=16, side_by_side=256, microseconds=15),
        ),
    ),
    other_optimizers=("rmsprop",),
    leaves_out=SLOW_RIVALS,
)

STANDARD = Suite(
    "standard",
    3,
    "What is published: 24 held-out tasks, in at most four hours on 2 cores.",
    _centred(
        "standard",
        (
            _held_out(0, 816, "medium", 190),
            _held_out(1, 315, "medium", 350),
            _held_out(2, 67, "short", 1200, side_by_side=32, evaluation=20),
            _held_out(3, 870, "medium", 180),
            _held_out(4, 381, "noise", 220, side_by_side=64, evaluation=10),
            _held_out(5, 228, "short", 760, side_by_side=32, evaluation=4),
            _held_out(6, 1471, "noise", 300, side_by_side=64, is_costly=True, pool=30, evaluation=10),
            _held_out(7, 136, "short", 2600, side_by_side=64, evaluation=4),
            _held_out(8, 259, "short", 120),
            _held_out(9, 212, "short", 92),
            _held_out(10, 83, "short", 280, evaluation=2),
            _held_out(11, 241, "short", 990, side_by_side=32, is_costly=True, pool=30, evaluation=20),
            _noise(0, 5000, 15),
            _noise(1, 5000, 17),
            _noise(2, 5000, 19),
            _noise(3, 5000, 82),
            SuiteTask("diabetes-mlp", "diabetes-mlp", 1000, "medium", 2, 10, 100, 3, side_by_side=512, microseconds=15),
            SuiteTask("digits-logreg", "digits-logreg", 100, "short", 2, 10, 100, 3, side_by_side=256, microseconds=27),
            SuiteTask("mnist-mlp", "mnist-mlp", 500, "medium", 1, 10, 30, 3, None, None, True, 32, 1400, 14),
            SuiteTask("fashion-mlp", "fashion-mlp", 1000, "noise", 1, 10, 30, 3, None, 16, True, 32, 920, 12),
            SuiteTask("mnist-autoencoder", "mnist-autoencoder", 300, "medium", 1, 10, 30, 3, None, None, True, 32, 2900, 35),
            SuiteTask("mnist-cnn", "mnist-cnn", 100, "short", 1, 10, 10, 3, None, None, True, 4, 11000, 680),
            SuiteTask("fashion-cnn", "fashion-cnn", 200, "noise", 1, 10, 10, 3, None, 16, True, 4, 2800, 330),
            SuiteTask(
                "shakespeare-transformer", "shakespeare-transformer", 100, "short", 1, 10, 10, 3, None, None, True, 3, 34000, 700, examples=1024
            ),
        ),
    ),
)


FULL = dataclasses.replace(
    STANDARD,
    name="full",
    question="The same with three times the seeds, and everything tuned on every task.",
    tasks=tuple(dataclasses.replace(task, tuning=4 * task.tuning, reporting=30, pool=100, searching=10, is_costly=False) for task in STANDARD.tasks),
)

SUITES: Mapping[str, Suite] = {suite.name: suite for suite in (SMOKE, QUICK, STANDARD, FULL)}


def find_suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return SUITES[name]
