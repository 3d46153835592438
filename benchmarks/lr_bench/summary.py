"""What a benchmark found, in numbers: the analysis makes it, the report shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from benchmarks.lr_bench.records import CellRole
from benchmarks.statistics import Interval

RIVAL = "tuned per task"
"""The honest opponent: the best schedule of each task, tuned on other seeds than those reported. Claims are made against it."""
DEFAULT = "default rate"
POOL = "random search"
HINDSIGHT = "best in hindsight"
"""The best point of the random search on reported trainings: biased in its own favour, and no bound of what is tuned by a whole grid."""
SHARED = ("constant (shared)", "cosine (shared)")
POLYAK = "SPS"
POLYAK_RIVAL = "SPS, tuned per task"
RANDOM_POLICY = "random policy"

Verdict: TypeAlias = Literal["beats", "ties", "loses"]
Kind: TypeAlias = Literal["entered", "baseline", "control"]
Basis: TypeAlias = Literal["new tasks", "these tasks", "these tasks, new controllers"]
"""What an interval speaks of: tasks like these and newly trained controllers, where tasks, training seeds and evaluation seeds are resampled; these
tasks and the average of these controllers, where only evaluation seeds are; or these tasks, where both kinds of seeds are."""


@dataclass(frozen=True)
class TaskReferences:
    """What the scores of one task are measured by, in log10 of the loss.

    Attributes:
        track: The optimizer's name.
        task: The suite's name of the task.
        budget: "short", "medium" or "noise".
        trainings: Seeds that are reported.
        default: Mean of the optimizer at its default rate (D); None where it has not run.
        rival: Mean of the rival that is tuned per task (R); None where it has not run.
        hindsight: Mean of the best point of the random search on the reported seeds; None where it has not run.
        scored: Whether D − R is large enough for a normalised score.
        frozen: Whether D, R and that are the suite's own numbers; else, before they are frozen, they are this run's.
        annealing: Best constant − best decay on the tuning seeds; None where they have not run.
        counts_for_schedules: Whether that is at least 0.05; None where unknown.
        is_costly: Whether fewer schedules and rules are tuned on it.
    """

    track: str
    task: str
    budget: str
    trainings: int
    default: float | None
    rival: float | None
    hindsight: float | None
    scored: bool
    frozen: bool
    annealing: float | None
    counts_for_schedules: bool | None
    is_costly: bool


@dataclass(frozen=True)
class TaskEntry:
    """One contestant on one task.

    Attributes:
        track: The optimizer's name.
        task: The suite's name of the task.
        contestant: Its name.
        score: Mean of log10 of the final training loss.
        diverged: Share of the trainings.
        test_loss: Geometric mean over the trainings that did not diverge; None where all did or none was evaluated.
        test_metric: Mean over the trainings that did not diverge; None where the task has none.
        ratios: Loss relative to each opponent's that has run, in %, paired, over the trainings; all opponents for an entered controller, the
            rival alone for others.
        normalised: Mean normalised score S, not clipped; None where the task is not scored.
        steps_to_target: SGD steps until minibatch losses, averaged over a twentieth of the horizon, are below the geometric mean of the final
            training loss at the default rate; median over trainings, infinite for never. None where that has not run or curves were not kept.
    """

    track: str
    task: str
    contestant: str
    score: float
    diverged: float
    test_loss: float | None
    test_metric: float | None
    ratios: Mapping[str, Interval]
    normalised: float | None
    steps_to_target: float | None


@dataclass(frozen=True)
class Comparison:
    """Two contestants on all tasks of a track, paired.

    Attributes:
        track: The optimizer's name.
        first: A contestant.
        second: Its opponent.
        tasks: Tasks that both finished.
        expected: Tasks of the suite that it is about.
        wins: Tasks where the first one's mean loss is lower.
        ratio: Geometric mean over tasks of the first one's loss relative to the second's, in %: −10 is a loss lower by 10 %.
        basis: What the interval speaks of.
        verdict: "ties" where the interval contains 0, and where ``adjusted`` is 0.05 or more.
        p_value: Of no difference: a sign-flip test of tasks' means on new tasks, else of all paired trainings.
        training_seeds: Controllers of the first, each from its own seed; 0 for what is not learned.
        scope: Which of the suite's tasks it is about, in words; empty for all.
        adjusted: After Holm's correction over all comparisons but the primary one, those with controls and those of falsifiers included; the primary
            one's is ``p_value``. None outside that family.
    """

    track: str
    first: str
    second: str
    tasks: int
    expected: int
    wins: int
    ratio: Interval
    basis: Basis
    verdict: Verdict
    p_value: float
    training_seeds: int
    scope: str = ""
    adjusted: float | None = None


@dataclass(frozen=True)
class Standing:
    """One contestant's row in a track's leaderboard; aggregates are None where cells are missing.

    Attributes:
        track: The optimizer's name.
        contestant: Its name.
        kind: Entered by the user, a baseline, or a control.
        finished: Tasks with all cells.
        expected: Tasks of the suite that it runs on.
        scored: Tasks that the normalised scores are taken over.
        interquartile_mean: Of S over tasks and trainings, clipped to [−1, 3].
        mean: Of S, clipped.
        worst: Lowest mean S of a task, clipped; the lowest of several means, it is biased downwards, and no interval of it would cover.
        worst_task: That task.
        improvement: Probability that a training ends lower than the rival's, mean over tasks.
        against_rival: None for the rival itself.
        diverged: Share of all trainings.
        basis: What the intervals of the aggregates of S speak of; ``against_rival`` has its own.
        training_seeds: Controllers, each from its own seed; 0 for what is not learned.
    """

    track: str
    contestant: str
    kind: Kind
    finished: int
    expected: int
    scored: int
    interquartile_mean: Interval | None
    mean: Interval | None
    worst: float | None
    worst_task: str | None
    improvement: Interval | None
    against_rival: Comparison | None
    diverged: float
    basis: Basis
    training_seeds: int

    @property
    def improvement_basis(self) -> Basis:
        """What the interval of ``improvement`` speaks of."""
        return "these tasks, new controllers" if self.training_seeds > 1 else "these tasks"


@dataclass(frozen=True)
class Budget:
    """What a contestant cost.

    Attributes:
        track: The optimizer's name.
        contestant: Its name.
        points: Points tried per task, at most.
        chosen: The point that is reported, in words.
        tuning_trainings: On all tasks together.
        tuning_seconds: Of one core.
        reporting_trainings: On all tasks together.
        reporting_seconds: Of one core.
        training_runs: Controllers trained, each from its own seed; 0 for what is not learned.
        training_cost: In words; None where nothing says.
        extra_forward_passes: For each SGD step of the reported trainings, beyond its own; None for what decides without, or did not say.
    """

    track: str
    contestant: str
    points: int
    chosen: str
    tuning_trainings: int
    tuning_seconds: float
    reporting_trainings: int
    reporting_seconds: float
    training_runs: int
    training_cost: str | None
    extra_forward_passes: float | None


@dataclass(frozen=True)
class Equivalents:
    """How many runs of a random search match a contestant; a run tries one point.

    Attributes:
        track: The optimizer's name.
        contestant: Its name.
        task: None for the median over tasks.
        runs: 0 for less than one, infinite where the whole pool is worse.
        pool: Points of the random search.
        trainings: That each of its points is tuned on; for the median the most.
        basis: What the interval speaks of.
    """

    track: str
    contestant: str
    task: str | None
    runs: Interval
    pool: int
    trainings: int
    basis: Basis


@dataclass(frozen=True)
class SearchCurve:
    """Loss of the best of so many runs of a random search relative to the rival's, in %; all ``(n,)``.

    Attributes:
        track: The optimizer's name.
        counts: Runs, of one point each.
        ratios: Geometric mean over the tasks whose pool has so many points.
        tasks: How many these are.
    """

    track: str
    counts: tuple[int, ...]
    ratios: tuple[float, ...]
    tasks: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Share of trainings whose normalised score exceeds each threshold, with its band, on these tasks and of new controllers; all ``(n,)``."""

    track: str
    contestant: str
    thresholds: tuple[float, ...]
    fractions: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Falsifier:
    """What would show that a claim is wrong, stated beforehand, and whether it did."""

    track: str
    contestant: str
    statement: str
    outcome: Literal["fired", "not fired", "not tested"]
    reason: str


@dataclass(frozen=True)
class OptimizerRow:
    """One contestant on the tasks that all tracks share.

    Attributes:
        track: The optimizer's name.
        contestant: Its name.
        tasks: Tasks.
        score: Mean over tasks of log10 of the final training loss.
        ratio: Loss relative to the best row's, in %.
        diverged: Share of the trainings.
        test_loss: Geometric mean.
    """

    track: str
    contestant: str
    tasks: int
    score: float
    ratio: float
    diverged: float
    test_loss: float | None


@dataclass(frozen=True)
class Curve:
    """Quartiles over trainings of smoothed minibatch losses and of rates, at some steps; all ``(n,)``, not a number where all have diverged."""

    track: str
    task: str
    contestant: str
    steps: tuple[int, ...]
    losses: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    rates: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Problem:
    """A cell that is not there, or failed."""

    track: str
    task: str
    contestant: str
    role: CellRole
    point: str
    problem: str


@dataclass(frozen=True)
class Summary:
    """All that the report shows.

    Attributes:
        suite: Name and version.
        tracks: The optimizers' names.
        controllers: The contestants that the question is about; the first one's comparison with the rival on the first track is the primary one.
        provenance: Commands, versions and machine, by name.
        references: Per track and task.
        entries: Per track, task and contestant.
        standings: Per track and contestant, best first.
        comparisons: Of the entered controllers with each opponent, per track.
        controls: Of the entered controllers with their controls, per track.
        budgets: Per track and contestant.
        equivalents: Per track, contestant and task, and their medians.
        searches: Per track.
        profiles: Per track and contestant.
        falsifiers: Per track and entered controller.
        tests: Comparisons that falsifiers rest on beside ``comparisons`` and ``controls``.
        best_shared: The best of the shared schedules by track, chosen on tuning seeds.
        optimizers: Rows of all tracks on shared tasks, best first.
        failed: Cells that failed.
        missing: Cells that are not there.
        curves: Per track, task and contestant; left out of what is kept.
    """

    suite: str
    tracks: tuple[str, ...]
    controllers: tuple[str, ...]
    provenance: Mapping[str, str]
    references: tuple[TaskReferences, ...]
    entries: tuple[TaskEntry, ...]
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    controls: tuple[Comparison, ...]
    budgets: tuple[Budget, ...]
    equivalents: tuple[Equivalents, ...]
    searches: tuple[SearchCurve, ...]
    profiles: tuple[Profile, ...]
    falsifiers: tuple[Falsifier, ...]
    tests: tuple[Comparison, ...]
    best_shared: Mapping[str, str]
    optimizers: tuple[OptimizerRow, ...]
    failed: tuple[Problem, ...]
    missing: tuple[Problem, ...]
    curves: tuple[Curve, ...] = field(repr=False)

    def to_json(self) -> str:
        """Everything but the curves; numbers that are not finite become the words "inf", "-inf" and "nan"."""
        content = asdict(self)
        del content["curves"]
        return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
