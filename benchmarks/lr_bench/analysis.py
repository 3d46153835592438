"""From the cells of a benchmark to what it says: scores, intervals, rivals, controls, falsifiers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from benchmarks.lr_bench.contestants import GREEDY
from benchmarks.lr_bench.records import Cell, CellResult, CellRole, Point, joined
from benchmarks.lr_bench.suites import LOWER_METRICS, SPECIFICATIONS, Suite, SuiteTask, frozen_references
from benchmarks.lr_bench.summary import (
    DEFAULT,
    HINDSIGHT,
    POLYAK,
    POLYAK_RIVAL,
    POOL,
    RANDOM_POLICY,
    RIVAL,
    SHARED,
    Basis,
    Budget,
    Comparison,
    Curve,
    Equivalents,
    Falsifier,
    Kind,
    OptimizerRow,
    Problem,
    Profile,
    SearchCurve,
    Standing,
    Summary,
    TaskEntry,
    TaskReferences,
)
from benchmarks.statistics import (
    FEWEST_TASKS,
    HIGHEST_SCORE,
    LOWEST_SCORE,
    Interval,
    Statistic,
    expected_search_scores,
    hierarchical_bootstrap,
    holm,
    interquartile_mean,
    leaves_score,
    mean,
    median_interval,
    normalised_score,
    paired_difference,
    paired_p_value,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
    tuning_equivalents,
)

OPPONENTS = (RIVAL, POLYAK_RIVAL, HINDSIGHT, POLYAK, *SHARED, DEFAULT)
"""Whom entered controllers are compared with, one by one, beside the best of the shared schedules."""
SIGNIFICANT = 0.05
"""Adjusted p-value below which a comparison that is not the primary one is won or lost."""
SEARCHES = (1, 3, 10, 30, 100)
"""Runs of a random search that are reported wherever some pool is large enough."""
STANDARDISED, ANNEALED = "where inputs are standardised", "where rates must be annealed"
"""Tasks on which a gain may vanish."""
RATE_FREE = (POLYAK, POLYAK_RIVAL, "schedule-free", "prodigy")
"""What no claim survives being equalled by."""
ANNEALING_GAIN = 0.05
"""Decades by which the best decay beats the best constant where a task counts for claims about schedules."""
THRESHOLDS = np.linspace(-1, 2, 61)
CURVE_POINTS = 120
TARGET_WINDOWS = 20
"""Parts of a training, over one of which minibatch losses are averaged before they are held against a target."""


@dataclass
class _Runs:
    """Reported trainings of one contestant on one task; all arrays ``(J, S)``: controllers from J training seeds × S seeds."""

    training_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    results: list[CellResult]

    def stacked(self, name: str) -> np.ndarray:
        """One of the results' arrays."""
        return np.stack([getattr(result, name) for result in self.results])

    def on(self, seeds: Sequence[int]) -> _Runs:
        """Those of some seeds alone, without curves."""
        chosen = [self.seeds.index(seed) for seed in seeds]
        arrays = ("scores", "diverged", "test_losses")
        results = [
            replace(result, **{name: getattr(result, name)[chosen] for name in arrays}, losses=None, rates=None, extra_forward_passes=None)
            for result in self.results
        ]
        return _Runs(self.training_seeds, tuple(seeds), results)

    @cached_property
    def scores(self) -> np.ndarray:
        return self.stacked("scores")

    @cached_property
    def diverged(self) -> np.ndarray:
        return self.stacked("diverged").astype(bool)


@dataclass
class _Pool:
    """The random search on one task: mean scores on so many tuning seeds ``(P,)``, and scores on some of the reported seeds ``(P, S)``."""

    seeds: tuple[int, ...]
    tuning: np.ndarray
    reports: np.ndarray
    trainings: int


@dataclass
class _Track:
    """The cells of one track, sorted."""

    name: str
    tasks: tuple[SuiteTask, ...]
    runs: dict[str, dict[str, _Runs]] = field(default_factory=lambda: defaultdict(dict))  # by task and contestant
    tuning: dict[str, dict[str, list[tuple[Point, CellResult]]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    pools: dict[str, _Pool] = field(default_factory=dict)  # by task
    kinds: dict[str, Kind] = field(default_factory=dict)
    expected: dict[str, tuple[int, ...]] = field(default_factory=dict)  # training seeds by contestant
    learned: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of the reported trainings, by contestant
    trainings: Counter[str] = field(default_factory=Counter)
    extra_passes: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))  # and SGD steps, by contestant
    points: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # reported, by contestant

    def finished(self, *contestants: str, tasks: Iterable[str] | None = None) -> list[str]:
        """Tasks where all cells of these contestants are there."""
        names = [task.name for task in self.tasks] if tasks is None else tasks
        return [task for task in names if all(self.complete(task, contestant) for contestant in contestants)]

    def tasks_of(self, *contestants: str, tasks: Iterable[str] | None = None) -> list[str]:
        """Tasks that all of these contestants are meant to run on."""
        skips = GREEDY in contestants
        return [task.name for task in self.tasks if not (skips and task.is_costly) and (tasks is None or task.name in tasks)]

    def training_seeds(self, contestant: str) -> int:
        """Controllers, each from its own seed; 0 for what is not learned."""
        return len(self.expected[contestant]) if contestant in self.learned else 0

    def complete(self, task: str, contestant: str) -> bool:
        """Whether all controllers of the contestant have run on the task."""
        runs = self.runs[task].get(contestant)
        return runs is not None and runs.training_seeds == self.expected.get(contestant)

    def paired(self, task: str, first: str, second: str) -> tuple[_Runs, _Runs]:
        """Both contestants on the seeds that they share."""
        ours, theirs = self.runs[task][first], self.runs[task][second]
        shared = [seed for seed in ours.seeds if seed in theirs.seeds]
        return ours.on(shared), theirs.on(shared)

    def differences(self, task: str, first: str, second: str) -> np.ndarray:
        """Paired differences of scores on shared seeds, ``(J, S)``; where numbers of controllers differ, the second's are averaged."""
        ours, theirs = self.paired(task, first, second)
        same = ours.training_seeds == theirs.training_seeds
        differences: np.ndarray = ours.scores - (theirs.scores if same else theirs.scores.mean(0, keepdims=True))
        return differences


def summarise(
    cells: Iterable[tuple[Cell, CellResult]],
    suite: Suite,
    controllers: Sequence[str] | None = None,
    provenance: Mapping[str, str] | None = None,
    training_costs: Mapping[str, str] | None = None,
) -> Summary:
    """What the cells of a suite say; cells of other suites are passed over.

    A contestant that lacks cells on a task is not aggregated over others: its aggregates are None, and what is missing is listed.

    Args:
        cells: As the store gives them; of an unfinished run too.
        suite: Theirs.
        controllers: The contestants that the question is about, the one of the primary comparison first; None for all learned ones.
        provenance: Commands, versions and machine, by name.
        training_costs: What the training of learned controllers cost, in words.
    """
    ours = [(cell, result) for cell, result in cells if cell.suite == suite.key]
    failed = [_problem(cell, error) for cell, result in ours if (error := _error(cell, result)) is not None]
    good = [(cell, result) for cell, result in ours if _error(cell, result) is None]
    learned = dict.fromkeys(cell.contestant for cell, _ in good if "training_seed" in cell.point)
    entered = tuple(name for name in learned if not _is_control(name, learned)) if controllers is None else tuple(controllers)
    everything, missing = [], []
    for name in (*suite.tracks, *suite.other_optimizers):
        training_seeds = {(cell.contestant, cell.point["training_seed"]) for cell, _ in ours if cell.track == name and "training_seed" in cell.point}
        track, problems = _sort(name, suite, [(cell, result) for cell, result in good if cell.track == name], entered, training_seeds)
        everything.append(track)
        missing += problems
    tracks = everything[: len(suite.tracks)]
    references = {(row.track, row.task): row for track in tracks for row in _references(track, frozen_references(suite.key).get(track.name, {}))}
    best_shared = {track.name: best for track in tracks if (best := _best_shared(track)) is not None}
    comparisons = [
        row
        for track in tracks
        for name in entered
        for opponent in dict.fromkeys((*OPPONENTS, best_shared.get(track.name, DEFAULT)))
        if (row := _compare(track, name, opponent)) is not None
    ]
    standings = [row for track in tracks for row in _standings(track, references)]
    controls = [row for track in tracks for name in entered for row in _controls(track, name)]
    tests = [row for track in tracks for name in entered for row in _tests(track, name, references)]
    baselines = [row.against_rival for row in standings if row.kind == "baseline" and row.contestant != HINDSIGHT and row.against_rival is not None]
    adjusted = _adjusted((*comparisons, *controls, *tests, *baselines), (suite.tracks[0], *entered[:1], RIVAL, ""))
    return Summary(
        suite=suite.key,
        tracks=tuple(suite.tracks),
        controllers=entered,
        provenance=dict(provenance or {}),
        references=tuple(references.values()),
        entries=tuple(row for track in tracks for row in _entries(track, references)),
        standings=tuple(
            row if row.against_rival is None else replace(row, against_rival=adjusted.get(_key(row.against_rival), row.against_rival))
            for row in standings
        ),
        comparisons=tuple(adjusted[_key(row)] for row in comparisons),
        controls=tuple(adjusted[_key(row)] for row in controls),
        budgets=tuple(row for track in tracks for row in _budgets(track, training_costs or {})),
        equivalents=tuple(row for track in tracks for name in entered for row in _equivalents(track, name)),
        searches=tuple(search for track in tracks if (search := _search(track)) is not None),
        profiles=tuple(row for track in tracks for row in _profiles(track, references)),
        falsifiers=tuple(row for track in tracks for name in entered for row in _falsifiers(track, name, references, adjusted)),
        tests=tuple(adjusted[_key(row)] for row in tests),
        best_shared=best_shared,
        optimizers=tuple(_optimizers(everything)),
        failed=tuple(failed),
        missing=tuple(missing),
        curves=tuple(row for track in tracks for row in _curves(track, entered)),
    )


def _is_control(name: str, contestants: Iterable[str]) -> bool:
    return name == RANDOM_POLICY or any(name.startswith(f"{other}: ") for other in contestants)


def _problem(cell: Cell, problem: str) -> Problem:
    return Problem(cell.track, cell.task, cell.contestant, cell.role, _point(cell.point), problem)


def _error(cell: Cell, result: CellResult) -> str | None:
    if result.error is None and len(result.scores) < 2 and cell.role == "report" and cell.contestant != POOL:
        return "fewer than two trainings, of which nothing can be said"
    return (
        "a loss is not finite though its training did not diverge" if result.error is None and not np.isfinite(result.scores).all() else result.error
    )


def _point(point: Point) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items())


def _sort(
    name: str, suite: Suite, cells: Sequence[tuple[Cell, CellResult]], entered: Sequence[str], training_seeds: Collection[tuple[str, int]]
) -> tuple[_Track, list[Problem]]:
    """One track's cells in order, and what is missing there.

    Args:
        name: The track's.
        suite: Of the cells.
        cells: Those that have a result.
        entered: Names of the contestants that the question is about.
        training_seeds: Contestants and their training seeds, also those that have no result anywhere.
    """
    track, problems = _Track(name, tuple(suite.tasks)), []
    tasks = [task.name for task in track.tasks]
    horizons = {task.name: task.horizon for task in track.tasks}
    seeds = _common_seeds(cells)
    reported: dict[tuple[str, str], dict[int, CellResult]] = defaultdict(dict)
    pools: dict[str, dict[CellRole, dict[str, CellResult]]] = defaultdict(lambda: {"tune": {}, "report": {}})
    for cell, result in cells:
        if cell.role == "tune":
            track.tuning[cell.task][cell.contestant].append((cell.point, result))
        elif cell.seeds != seeds[cell.task, cell.contestant == POOL]:
            problems.append(_problem(cell, "ran on other seeds than the other contestants, and is left out"))
            continue
        if cell.contestant == POOL:
            pools[cell.task][cell.role][json.dumps(dict(cell.point), sort_keys=True)] = result
        elif cell.role == "report":
            reported[cell.task, cell.contestant][cell.point.get("training_seed", 0)] = result
            if "training_seed" in cell.point:
                track.learned.add(cell.contestant)
            track.points[cell.contestant].add(_point(cell.point))
            track.seconds[cell.contestant] += result.seconds
            track.trainings[cell.contestant] += len(cell.seeds)
            if result.extra_forward_passes is not None:  # of trainings that came to their end: curves, which tell the others', may not be at hand
                ended = ~result.diverged
                track.extra_passes[cell.contestant].append((float(result.extra_forward_passes[ended].sum()), horizons[cell.task] * int(ended.sum())))
    contestants = dict.fromkeys(contestant for _, contestant in reported)
    for contestant in contestants:
        found = {seed for (_, other), runs in reported.items() if other == contestant for seed in runs}
        track.expected[contestant] = tuple(sorted(found | {seed for other, seed in training_seeds if other == contestant}))
        track.kinds[contestant] = "entered" if contestant in entered else "control" if _is_control(contestant, contestants) else "baseline"
    for task, contestant in product(tasks, contestants):
        runs = reported.get((task, contestant), {})
        if runs:
            track.runs[task][contestant] = _Runs(tuple(sorted(runs)), seeds[task, False], [runs[seed] for seed in sorted(runs)])
        lacking = [seed for seed in track.expected[contestant] if seed not in runs and task in track.tasks_of(contestant)]
        several = len(track.expected[contestant]) > 1
        problems += [Problem(name, task, contestant, "report", f"training_seed {seed}" if several else "", "no result") for seed in lacking]
    if name in suite.tracks:
        absent = [contestant for contestant in (RIVAL, DEFAULT) if contestant not in contestants]
        problems += [Problem(name, task, contestant, "report", "", "no result") for task, contestant in product(tasks, absent)]
    for task, pool in pools.items():
        points = sorted(set(pool["tune"]) & set(pool["report"]))
        if not set(seeds.get((task, True), ())) <= set(seeds.get((task, False), seeds.get((task, True), ()))):
            problems.append(Problem(name, task, POOL, "report", "", "ran on other seeds than the other contestants, and is left out"))
        elif points:
            reports = [pool["report"][point] for point in points]
            tuned = [pool["tune"][point].scores for point in points]
            track.pools[task] = _Pool(
                seeds[task, True], np.array([scores.mean() for scores in tuned]), np.stack([result.scores for result in reports]), len(tuned[0])
            )
            if len(seeds[task, True]) > 1:
                best = min(reports, key=lambda result: float(result.scores.mean()))
                track.runs[task][HINDSIGHT] = _Runs((0,), seeds[task, True], [best])
                track.expected[HINDSIGHT], track.kinds[HINDSIGHT] = (0,), "baseline"
    return track, problems


def _common_seeds(cells: Iterable[tuple[Cell, CellResult]]) -> dict[tuple[str, bool], tuple[int, ...]]:
    """The reported seeds that most contestants share, by task and whether it is the random search's."""
    counts: dict[tuple[str, bool], Counter[tuple[int, ...]]] = defaultdict(Counter)
    for cell, _ in cells:
        if cell.role == "report":
            counts[cell.task, cell.contestant == POOL][cell.seeds] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def _references(track: _Track, frozen: Mapping[str, Mapping[str, Any]]) -> Iterator[TaskReferences]:
    """The suite's frozen numbers; where it has none, as it is new, those of the run itself."""
    for task in track.tasks:
        runs = track.runs[task.name]
        default, rival, hindsight = (runs[name].scores if track.complete(task.name, name) else None for name in (DEFAULT, RIVAL, HINDSIGHT))
        annealing, given = _annealing(track, task.name), frozen.get(task.name)
        scored = default is not None and rival is not None and not leaves_score(default[0], rival[0])
        yield TaskReferences(
            track=track.name,
            task=task.name,
            budget=task.budget,
            trainings=next(iter(runs.values())).scores.shape[1] if runs else 0,
            default=_mean(default) if given is None else given["default"],
            rival=_mean(rival) if given is None else given["rival"],
            hindsight=_mean(hindsight),
            scored=scored if given is None else given["scored"],
            frozen=given is not None,
            annealing=annealing,
            counts_for_schedules=None if annealing is None else annealing >= ANNEALING_GAIN,
            is_costly=task.is_costly,
        )


def _annealing(track: _Track, task: str) -> float | None:
    """Best constant − best decay on the tuning seeds, in decades."""
    means: dict[bool, list[float]] = {True: [], False: []}
    for contestant in (RIVAL, POOL):
        for point, result in track.tuning[task].get(contestant, ()):
            if "shape" in point:
                means[point["shape"] == "constant"].append(float(result.scores.mean()))
    return min(means[True]) - min(means[False]) if means[True] and means[False] else None


def _best_shared(track: _Track) -> str | None:
    """The shared schedule whose best point has the lowest mean on the tuning seeds, over the tasks that all of them were tuned on."""
    candidates = [name for name in track.kinds if name.endswith("(shared)")]
    tasks = [task for task in track.tasks_of() if candidates and all(track.tuning[task].get(name) for name in candidates)]

    def best(name: str) -> float:
        scores: dict[str, list[float]] = defaultdict(list)
        for task in tasks:
            for point, result in track.tuning[task][name]:
                scores[_point(point)].append(float(result.scores.mean()))
        return min((float(np.mean(means)) for means in scores.values() if len(means) == len(tasks)), default=float("inf"))

    return min(candidates, key=best) if tasks else None


def _mean(scores: np.ndarray | None) -> float | None:
    return None if scores is None else float(scores.mean())


def _entries(track: _Track, references: Mapping[tuple[str, str], TaskReferences]) -> Iterator[TaskEntry]:
    for task, contestant in product(track.tasks, track.kinds):
        if not track.complete(task.name, contestant):
            continue
        runs, kept = track.runs[task.name][contestant], references[track.name, task.name]
        fine = ~runs.diverged
        with np.errstate(invalid="ignore", divide="ignore"):
            test_losses = _decades(runs.stacked("test_losses"))[fine]
        has_metrics = all(result.test_metrics is not None for result in runs.results)
        opponents = OPPONENTS if track.kinds[contestant] == "entered" else (RIVAL,)
        yield TaskEntry(
            track=track.name,
            task=task.name,
            contestant=contestant,
            score=float(runs.scores.mean()),
            diverged=float(runs.diverged.mean()),
            test_loss=float(10 ** test_losses.mean()) if np.isfinite(test_losses).all() and len(test_losses) else None,
            test_metric=float(runs.stacked("test_metrics")[fine].mean()) if has_metrics and fine.any() else None,
            ratios={
                opponent: _paired(track.differences(task.name, contestant, opponent))
                for opponent in opponents
                if opponent != contestant and opponent in track.kinds and track.complete(task.name, opponent)
            },
            normalised=float(_normalised(runs, kept).mean()) if kept.scored else None,
            steps_to_target=None if kept.default is None else _median_steps_to_target(runs, 10**kept.default, task.horizon),
        )


def steps_to_target(losses: np.ndarray, target: float, horizon: int, steps_per_action: int = 1) -> np.ndarray:
    """SGD steps after which the mean of the last minibatch losses, a twentieth of the horizon, is first below a target, ``(S,)``; infinite if never.

    Args:
        losses: Before each decision and after the last, ``(T + 1, S)``; after a divergence, not a number.
        target: A loss.
        horizon: SGD steps of a whole training.
        steps_per_action: SGD steps of a decision.
    """
    window = max(horizon // TARGET_WINDOWS // steps_per_action, 1)
    if len(losses) < window:
        return np.full(losses.shape[1], np.inf)
    below = np.lib.stride_tricks.sliding_window_view(losses, window, axis=0).mean(-1, dtype=np.float64) < target
    return np.where(below.any(0), np.minimum((below.argmax(0) + window - 1) * steps_per_action, horizon), np.inf)


def _median_steps_to_target(runs: _Runs, target: float, horizon: int) -> float | None:
    """Over trainings; None where curves were not kept."""
    found = [steps_to_target(each.losses, target, horizon, each.steps_per_action) for each in runs.results if each.losses is not None]
    return float(np.median(np.concatenate(found))) if len(found) == len(runs.results) else None


def _paired(differences: np.ndarray) -> Interval:
    """Change in % over the trainings of one task, from paired differences ``(J, S)``."""
    means = differences.mean(0)
    paired = paired_difference(means, np.zeros_like(means))
    return _percent(Interval(paired.mean, paired.low, paired.high))


def _normalised(runs: _Runs, reference: TaskReferences) -> np.ndarray:
    """S of each training, ``(J, S)``, not clipped."""
    assert reference.default is not None and reference.rival is not None
    return normalised_score(runs.scores, reference.default, reference.rival, runs.diverged)


def _compare(track: _Track, first: str, second: str, tasks: Sequence[str] | None = None, scope: str = "") -> Comparison | None:
    """Two contestants on the tasks (all of them for None) that both finished; None where there is none."""
    if first == second or not {first, second} <= track.kinds.keys():
        return None
    finished = track.finished(first, second, tasks=tasks)
    if not finished:
        return None
    differences = [track.differences(task, first, second) for task in finished]
    means = np.array([each.mean() for each in differences])
    ratio, basis = _interval(differences, mean)
    # On these tasks each pair of trainings may change its sign; those of a task with more of them count less.
    sample = means if basis == "new tasks" else np.concatenate([each.mean(0) / each.shape[1] for each in differences])
    return Comparison(
        track=track.name,
        first=first,
        second=second,
        tasks=len(finished),
        expected=len(track.tasks_of(first, second, tasks=tasks)),
        wins=int((means < 0).sum()),
        ratio=_percent(ratio),
        basis=basis,
        verdict="beats" if ratio.high < 0 else "loses" if ratio.low > 0 else "ties",
        p_value=paired_p_value(sample, np.zeros_like(sample)),
        training_seeds=track.training_seeds(first),
        scope="" if tasks is None or len(tasks) == len(track.tasks) else scope,
    )


def _interval(values: Sequence[np.ndarray], statistic: Statistic) -> tuple[Interval, Basis]:
    """A statistic of tasks ``(J, S_k)``: on new tasks where there are enough of them, else on these, of the J controllers' average."""
    if len(values) >= FEWEST_TASKS:
        return hierarchical_bootstrap(values, statistic), "new tasks"
    return stratified_bootstrap([each.mean(0) for each in values], statistic), "these tasks"


def _percent(interval: Interval) -> Interval:
    """Differences of log10 losses as changes in %."""
    return Interval(*(float(100 * (10**value - 1)) for value in (interval.estimate, interval.low, interval.high)))


def _standings(track: _Track, references: Mapping[tuple[str, str], TaskReferences]) -> list[Standing]:
    scored = [task.name for task in track.tasks if references[track.name, task.name].scored]
    with_rival = track.finished(RIVAL) if RIVAL in track.kinds else []
    rows = []
    for contestant, kind in track.kinds.items():
        finished = track.finished(contestant)
        runs = [track.runs[task][contestant] for task in finished]
        interquartile = average = worst = lowest = None
        own = track.tasks_of(contestant, tasks=scored)
        basis: Basis = "new tasks" if len(own) >= FEWEST_TASKS else "these tasks"
        if own and set(own) <= set(finished):
            scores = [_normalised(track.runs[task][contestant], references[track.name, task]).clip(LOWEST_SCORE, HIGHEST_SCORE) for task in own]
            (interquartile, basis), (average, _) = _interval(scores, interquartile_mean), _interval(scores, mean)
            means = [float(each.mean()) for each in scores]
            worst, lowest = min(means), own[int(np.argmin(means))]
        shared = track.tasks_of(contestant, tasks=with_rival)
        comparable = contestant != RIVAL and bool(shared) and set(shared) <= set(finished)
        rows.append(
            Standing(
                track=track.name,
                contestant=contestant,
                kind=kind,
                finished=len(finished),
                expected=len(track.tasks_of(contestant)),
                scored=len(own),
                interquartile_mean=interquartile,
                mean=average,
                worst=worst,
                worst_task=lowest,
                improvement=_improvement(track, contestant, shared) if comparable else None,
                against_rival=_compare(track, contestant, RIVAL) if comparable else None,
                diverged=float(np.mean(np.concatenate([run.diverged.ravel() for run in runs]))) if runs else float("nan"),
                basis=basis,
                training_seeds=track.training_seeds(contestant),
            )
        )
    return sorted(rows, key=_rank)


def _rank(row: Standing) -> tuple[bool, float]:
    """Best first; those without an aggregate last."""
    if row.interquartile_mean is not None:
        return False, -row.interquartile_mean.estimate
    if row.contestant == RIVAL:
        return True, 0.0
    return True, row.against_rival.ratio.estimate if row.against_rival else np.inf


def _improvement(track: _Track, contestant: str, tasks: Sequence[str]) -> Interval:
    """Probability that a training of the contestant ends lower than one of the rival's."""
    ours, theirs = ([-track.runs[task][name].scores for task in tasks] for name in (contestant, RIVAL))
    return probability_of_improvement(ours, theirs)


_Key: TypeAlias = tuple[str, ...]


def _key(row: Comparison) -> _Key:
    return row.track, row.first, row.second, row.scope


def _adjusted(rows: Iterable[Comparison], primary: _Key) -> dict[_Key, Comparison]:
    """Each comparison once, after Holm's correction over all but the primary one, without which a win or loss is a tie."""
    found = {_key(row): row for row in rows}
    family = [key for key in found if key != primary]
    p_values = dict(zip(family, map(float, holm([found[key].p_value for key in family])), strict=True)) if family else {}
    for key in family:
        row, p_value = found[key], p_values[key]
        found[key] = replace(row, adjusted=p_value, verdict=row.verdict if p_value < SIGNIFICANT else "ties")
    if primary in found:
        found[primary] = replace(found[primary], adjusted=found[primary].p_value)
    return found


def _controls(track: _Track, controller: str) -> list[Comparison]:
    names = [name for name in track.kinds if name.startswith(f"{controller}: ") or name == RANDOM_POLICY]
    return [row for name in names if (row := _compare(track, controller, name)) is not None]


def _budgets(track: _Track, training_costs: Mapping[str, str]) -> Iterator[Budget]:
    for contestant, kind in track.kinds.items():
        if contestant == HINDSIGHT:
            continue
        tuned = [track.tuning[task.name].get(contestant, []) for task in track.tasks]
        learned = len(track.expected[contestant]) > 1 or contestant in training_costs
        points = track.points[contestant] if contestant not in track.learned else set()
        yield Budget(
            track=track.name,
            contestant=contestant,
            points=max(map(len, tuned)),
            chosen=next(iter(points)) if len(points) == 1 else "another one for each task" if any(tuned) else "",
            tuning_trainings=sum(len(result.scores) for cells in tuned for _, result in cells),
            tuning_seconds=sum(result.seconds for cells in tuned for _, result in cells),
            reporting_trainings=track.trainings[contestant],
            reporting_seconds=track.seconds[contestant],
            training_runs=len(track.expected[contestant]) if learned and kind == "entered" else 0,
            training_cost=training_costs.get(contestant),
            extra_forward_passes=_quotient(track.extra_passes[contestant]),
        )


def _quotient(parts: Sequence[tuple[float, int]]) -> float | None:
    """Of the sums of both; None where there is nothing to divide by."""
    numerator, denominator = sum(part for part, _ in parts), sum(part for _, part in parts)
    return numerator / denominator if denominator else None


def _equivalents(track: _Track, contestant: str) -> list[Equivalents]:
    rows = []
    for task, pool in track.pools.items():
        if contestant in track.kinds and track.complete(task, contestant):
            own, reports = track.runs[task][contestant].on(pool.seeds).scores.mean(0), pool.reports
            if len(own) == 1:  # then the interval speaks of the search's luck alone
                own, reports = own.repeat(2), reports.repeat(2, axis=1)
            runs = tuning_equivalents(own, pool.tuning, reports)
            rows.append(Equivalents(track.name, contestant, task, runs, len(reports), pool.trainings, "these tasks"))
    if rows:
        pool_size, trainings = max(row.pool for row in rows), max(row.trainings for row in rows)
        # Where a whole pool is worse the runs are more than its points, which may be fewer than another task's runs: so many then, at least.
        at_least = [row.runs.estimate if row.pool == pool_size else min(row.runs.estimate, row.pool) for row in rows]
        high = median_interval(np.array([row.runs.estimate for row in rows])).high
        median = replace(median_interval(np.array(at_least)), high=high)
        basis: Basis = "new tasks"
        if len(rows) < FEWEST_TASKS:  # then nothing is claimed about others
            median, basis = replace(median, low=0.0, high=np.inf), "these tasks"
        rows.insert(0, Equivalents(track.name, contestant, None, replace(median, low=max(median.low, 0.0)), pool_size, trainings, basis))
    return rows


def _search(track: _Track) -> SearchCurve | None:
    tasks = [task for task in track.pools if RIVAL in track.kinds and track.complete(task, RIVAL)]
    if not tasks:
        return None
    largest = max(len(track.pools[task].tuning) for task in tasks)
    counts = sorted({*np.geomspace(1, largest, 25).astype(int).tolist(), *(count for count in SEARCHES if count <= largest)})
    ratios: dict[int, list[float]] = defaultdict(list)
    for task in tasks:
        pool, rival = track.pools[task], track.runs[task][RIVAL]
        possible = [count for count in counts if count <= len(pool.tuning)]
        scores = expected_search_scores(pool.tuning, pool.reports, possible) - rival.on(pool.seeds).scores.mean()
        for count, score in zip(possible, scores, strict=True):
            ratios[count].append(float(score))
    means = tuple(float(100 * (10 ** np.mean(ratios[count]) - 1)) for count in counts)
    return SearchCurve(track.name, tuple(counts), means, tuple(len(ratios[count]) for count in counts))


def _profiles(track: _Track, references: Mapping[tuple[str, str], TaskReferences]) -> Iterator[Profile]:
    scored = [task.name for task in track.tasks if references[track.name, task.name].scored]
    for contestant, kind in track.kinds.items():
        if scored and kind != "control" and set(scored) <= set(track.finished(contestant)):
            scores = [_normalised(track.runs[task][contestant], references[track.name, task]) for task in scored]
            profile = performance_profile(scores, THRESHOLDS)
            values = (profile.thresholds, profile.fractions, profile.low, profile.high)
            yield Profile(track.name, contestant, *(tuple(map(float, each)) for each in values))


def _decades(losses: np.ndarray) -> np.ndarray:
    """log10, of a loss of 0 that of the least number that scores know."""
    logarithms: np.ndarray = np.log10(np.maximum(losses, 1e-38))
    return logarithms


def _optimizers(tracks: Sequence[_Track]) -> list[OptimizerRow]:
    shared = [task.name for task in tracks[0].tasks if all(track.runs[task.name] for track in tracks)] if tracks else []
    rows = []
    for track in tracks:
        for contestant, kind in track.kinds.items():
            if kind == "control" or contestant == HINDSIGHT or not shared or set(shared) - set(track.finished(contestant)):
                continue
            runs = [track.runs[task][contestant] for task in shared]
            tests = [float(_decades(run.stacked("test_losses")[~run.diverged]).mean()) if not run.diverged.all() else np.nan for run in runs]
            rows.append(
                OptimizerRow(
                    track=track.name,
                    contestant=contestant,
                    tasks=len(shared),
                    score=float(np.mean([run.scores.mean() for run in runs])),
                    ratio=0.0,
                    diverged=float(np.mean([run.diverged.mean() for run in runs])),
                    test_loss=float(10 ** np.mean(tests)) if np.isfinite(tests).all() else None,
                )
            )
    rows.sort(key=lambda row: row.score)
    return [replace(row, ratio=100 * (10 ** (row.score - rows[0].score) - 1)) for row in rows]


def _curves(track: _Track, entered: Sequence[str]) -> Iterator[Curve]:
    """Those of entered controllers and their main opponents."""
    for task in track.tasks:
        for contestant in (*entered, RIVAL, POLYAK, SHARED[1], DEFAULT):
            runs = track.runs[task.name].get(contestant)
            if runs is None or any(result.losses is None or result.rates is None for result in runs.results):
                continue
            losses = joined([result.losses for result in runs.results if result.losses is not None])
            rates = joined([result.rates for result in runs.results if result.rates is not None])
            rows = np.unique(np.linspace(0, len(rates) - 1, CURVE_POINTS).astype(int))
            steps = rows * runs.results[0].steps_per_action
            smooth = _smoothed(losses, max(len(rates) // 50, 1))
            yield Curve(track.name, task.name, contestant, tuple(map(int, steps)), _quartiles(smooth[rows]), _quartiles(rates[rows]))


def _smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """A trailing mean over each training's steps: one minibatch's loss is noisy."""
    padded = np.concatenate([np.repeat(losses[:1], window - 1, axis=0), losses])
    means: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).mean(-1)
    return means


def _quartiles(values: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Over trainings that still run; not a number where none does."""
    some = np.isfinite(values).any(1)
    quartiles = np.full((3, len(values)), np.nan)
    quartiles[:, some] = np.nanpercentile(np.where(np.isfinite(values), values, np.nan)[some], [25, 50, 75], axis=1)
    low, middle, high = (tuple(map(float, row)) for row in quartiles)
    return low, middle, high


def _rate_free(track: _Track, controller: str) -> list[str]:
    """What no claim about a controller survives being equalled by, whether it takes part or not."""
    return [name for name in RATE_FREE if name != controller and (name != POLYAK_RIVAL or name in track.kinds)]


def _scopes(track: _Track, references: Mapping[tuple[str, str], TaskReferences]) -> dict[str, list[str]]:
    """Tasks on which a gain may vanish, by what they are."""
    return {
        STANDARDISED: [task.name for task in track.tasks if not _scales_inputs(task)],
        ANNEALED: [task.name for task in track.tasks if references[track.name, task.name].counts_for_schedules],
    }


def _tests(track: _Track, controller: str, references: Mapping[tuple[str, str], TaskReferences]) -> Iterator[Comparison]:
    """What falsifiers need beside the comparisons with opponents and controls."""
    rows = [_compare(track, controller, name) for name in _rate_free(track, controller)]
    rows += [_compare(track, controller, RIVAL, tasks, scope) for scope, tasks in _scopes(track, references).items()]
    yield from (row for row in rows if row is not None)


def _falsifiers(
    track: _Track, controller: str, references: Mapping[tuple[str, str], TaskReferences], comparisons: Mapping[_Key, Comparison]
) -> Iterator[Falsifier]:
    """Written before any run: each is a way in which "it beats what people tune by hand, because of what it observes" could be wrong."""
    if controller not in track.kinds:
        return

    def falsifier(statement: str, fired: bool | None, reason: str) -> Falsifier:
        return Falsifier(track.name, controller, statement, "not tested" if fired is None else "fired" if fired else "not fired", reason)

    def equals(opponent: str, scope: str = "") -> tuple[bool | None, str]:
        row = comparisons.get((track.name, controller, opponent, scope))
        if row is None:
            return None, f"{opponent} and {controller} have not both finished such a task."
        ratio = f"{row.ratio.estimate:+.1f} % [{row.ratio.low:+.1f}, {row.ratio.high:+.1f}]".replace("-", "−")
        p_value = row.p_value if row.adjusted is None else row.adjusted
        chance = "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
        return row.verdict != "beats", f"Loss {ratio} against {opponent}, p {chance}, over {row.tasks} of {row.expected} tasks."

    yield falsifier("A replay of its own average rates equals it", *equals(f"{controller}: same-instance replay"))
    for contestant in _rate_free(track, controller):
        yield falsifier(f"{contestant} equals it", *equals(contestant))
    yield falsifier("Fewer than 4 of 5 training seeds win", *_training_seeds_that_win(track, controller))
    for scope, tasks in _scopes(track, references).items():
        yield falsifier(f"The gain vanishes {scope}", *equals(RIVAL, scope if len(tasks) < len(track.tasks) else ""))
    yield falsifier("Its test metric is worse than that of the schedule tuned per task", *_worse_test(track, controller))


def _training_seeds_that_win(track: _Track, controller: str) -> tuple[bool | None, str]:
    seeds = track.training_seeds(controller)
    tasks = track.finished(controller, RIVAL) if RIVAL in track.kinds else []
    if not tasks:
        return None, f"{RIVAL} and {controller} have not both finished a task."
    if seeds < 5:
        several = f"{seeds} controllers were" if seeds != 1 else "1 controller was"
        return None, f"{several} trained, each from its own seed, and 5 or more are needed." if seeds else "It has no training seeds."
    means = np.mean([track.differences(task, controller, RIVAL).mean(1) for task in tasks], 0)
    wins = int((means < 0).sum())
    return wins < 0.8 * seeds, f"{wins} of {seeds} have a lower mean loss than {RIVAL}, over {len(tasks)} of {len(track.tasks)} tasks."


def _worse_test(track: _Track, controller: str) -> tuple[bool | None, str]:
    """Chance of a better metric than the rival's; tasks' metrics have different units, and a training that diverged is worse than all others."""
    both = {task.name: task for task in track.tasks if RIVAL in track.kinds and task.name in track.finished(controller, RIVAL)}
    pairs = [pair for task in both.values() if (pair := _metrics(task, track.runs[task.name][controller], track.runs[task.name][RIVAL])) is not None]
    if not pairs:
        return None, "No test metrics of both."
    ours, theirs = zip(*pairs, strict=True)
    chance = probability_of_improvement(ours, theirs)
    about = "these tasks and new controllers" if len(ours[0]) > 1 else "these tasks"
    return chance.estimate < 0.5, (
        f"With a chance of {chance.estimate:.0%} [{chance.low:.0%}, {chance.high:.0%}] a training has a better metric than one of {RIVAL}, over "
        f"{len(pairs)} of {len(track.tasks)} tasks; the interval is on {about}."
    )


def _metrics(task: SuiteTask, *contestants: _Runs) -> list[np.ndarray] | None:
    """The task's metric of each contestant's trainings, test losses where it has none, ``(J, S)``; higher is better. None where nothing is there."""
    has_metrics = all(result.test_metrics is not None for runs in contestants for result in runs.results)
    sign = 1 if has_metrics and task.source not in LOWER_METRICS else -1
    values = [sign * runs.stacked("test_metrics" if has_metrics else "test_losses") for runs in contestants]
    fine = [np.isfinite(each) & ~runs.diverged for each, runs in zip(values, contestants, strict=True)]
    known = np.concatenate([each[mask] for each, mask in zip(values, fine, strict=True)])
    return [np.where(mask, each, known.min() - 1) for each, mask in zip(values, fine, strict=True)] if len(known) else None


def _scales_inputs(task: SuiteTask) -> bool:
    """Whether inputs are multiplied by a number that controllers are not told."""
    specification = SPECIFICATIONS.get(task.source)
    return task.source.endswith("-scaled") if specification is None else tuple(specification.input_scale_decades) != (0.0, 0.0)
