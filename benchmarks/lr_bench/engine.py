"""Runs the cells of a benchmark: tunes the rivals, then reports everyone, each training once.

Cells of one task under one decision process train side by side in one population: a grid of 45 schedules costs little more than one. What a
cell gives does not depend on its neighbours: minibatch losses and rates bit for bit, the final evaluations up to the order of their sums.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from agents.rules import AttachedRule
from benchmarks.baselines import SideBySide
from benchmarks.lr_bench.contestants import GREEDY, RATE_FREE, Contestant, ControlMaker, Maker, comparable, execution, in_words, trainings_of_control
from benchmarks.lr_bench.records import Cell, CellResult, CellRole, Point, joined
from benchmarks.lr_bench.store import Store, StoreError
from benchmarks.lr_bench.suites import Suite, SuiteTask
from benchmarks.memory import release_memory
from benchmarks.runner import Result, Runner
from lr_env.checks import positive_integer
from lr_env.controllers import BoundController, Controller, OnlineController
from lr_env.seeding import Role, role_seeds

POLL = 0.5
"""Seconds between looks at what another process computes."""
ATTEMPTS = 3
"""How often work is begun whose process dies."""
LOOPED_MICROSECONDS, DECISION_MICROSECONDS, CELL_SECONDS, GREEDY_STEPS = 350.0, 40.0, 0.02, 8.0
"""About, as the suites' numbers: of a step in a loop over members, of a controller's decision, of a cell's share of making a population; SGD steps
that one of greedy branching costs as much as."""
UNDONE = object()


@dataclass(frozen=True)
class Work:
    """What one process computes at a time: cells of one task that train side by side. Can be pickled.

    Attributes:
        task: Of all cells.
        examples: See :class:`benchmarks.lr_bench.suites.Suite`.
        cells: Of the same role and number of seeds, each with other trainings.
        makers: Their controllers' makers.
    """

    task: SuiteTask
    examples: int
    cells: tuple[Cell, ...]
    makers: tuple[Maker, ...]

    @property
    def cost(self) -> float:
        """Seconds of one core, estimated."""
        return sum(cell_cost(self.task, cell) for cell in self.cells)


class Engine(Protocol):
    """Where work is computed: an executor of :mod:`concurrent.futures`, and how many pieces of work it takes at once."""

    slots: int

    def submit(self, work: Work) -> Future[list[CellResult]]:
        """Begins; the future gives what :func:`compute` returns."""
        ...

    def restart(self) -> None:
        """Makes the engine work again after a future has failed with ``BrokenExecutor``."""
        ...

    def shutdown(self) -> None:
        """Ends all processes."""
        ...


class LocalEngine:
    """This machine: other processes, or this one where there is one worker.

    Args:
        workers: Processes.
    """

    def __init__(self, workers: int = 1) -> None:
        self.slots = positive_integer("workers", workers)
        self._pool: Executor | None = None

    def submit(self, work: Work) -> Future[list[CellResult]]:
        """See :class:`Engine`."""
        if self.slots == 1:
            future: Future[list[CellResult]] = Future()
            future.set_result(compute(work))
            return future
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.slots, multiprocessing.get_context("spawn"), _begin_worker)
        return self._pool.submit(compute, work)

    def restart(self) -> None:
        """See :class:`Engine`."""
        self.shutdown()

    def shutdown(self) -> None:
        """See :class:`Engine`."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None


def _begin_worker() -> None:
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()  # a killed parent doesn't end its pool


def compute(work: Work) -> list[CellResult]:
    """The results of all cells. A cell whose controller fails has an error in its result, and the others have none."""
    torch.set_num_threads(1)
    try:
        return _train(work)
    except (Exception, SystemExit) as error:  # a contestant's code may raise anything
        if len(work.cells) == 1:
            return [failed(in_words(error))]
    parts = zip(work.cells, work.makers, strict=True)
    return [compute(dataclasses.replace(work, cells=(cell,), makers=(maker,)))[0] for cell, maker in parts]


def failed(problem: str) -> CellResult:
    """The result of a cell that has none."""
    nothing = np.zeros(0)
    return CellResult(nothing, nothing.astype(bool), nothing, None, None, None, 0.0, problem)


def _train(work: Work) -> list[CellResult]:
    """Trains all cells in one population, or the seeds of a single one in several that fit side by side."""
    start, task, first = time.process_time(), work.task, work.cells[0]
    num_parts = -(-len(first.seeds) // task.side_by_side) if len(work.cells) == 1 else 1
    results = []
    for part in np.array_split(first.seeds, num_parts):
        seeds = part.tolist()
        bounds = [maker(cell.track, task, seeds, cell.point) for cell, maker in zip(work.cells, work.makers, strict=True)]
        mdp = comparable(bounds[0])
        members = [seed for _ in bounds for seed in seeds]
        runner = Runner(task.family(), mdp, members, task.horizon, work.examples, first.role == "report", execution(mdp))
        results.append(runner.run(_together(bounds, len(seeds))))
        del runner
        release_memory()
    seconds = (time.process_time() - start) / len(work.cells)
    return [_part(results, index, len(work.cells), seconds) for index in range(len(work.cells))]


def _together(bounds: Sequence[BoundController], num_seeds: int) -> Controller:
    first = bounds[0].controller
    if len(bounds) == 1:
        return first
    if isinstance(first, AttachedRule):  # it looks at the whole population: one rule with a constant for each member
        together: Any = copy.copy(first)
        together.constant = np.repeat([bound.controller.constant for bound in bounds], num_seeds)  # type: ignore[attr-defined]
        return together  # type: ignore[no-any-return]
    return SideBySide([bound.controller for bound in bounds])


def _part(results: Sequence[Result], index: int, count: int, seconds: float) -> CellResult:
    """What belongs to one of so many cells."""

    def take(name: str) -> np.ndarray:
        return np.split(joined([getattr(result, name) for result in results]), count, -1)[index].copy()

    losses, rates = take("losses"), take("rates")
    ran = np.isfinite(rates).any(1)  # neighbours may have trained longer
    steps = int(ran.nonzero()[0].max()) + 1 if ran.any() else 0
    metrics = None if results[0].test_metrics is None else take("test_metrics")
    passes = None if results[0].extra_forward_passes is None else take("extra_forward_passes")
    own = take("scores"), take("diverged"), take("test_losses"), metrics, losses[: steps + 1], rates[:steps], seconds
    return CellResult(*own, extra_forward_passes=passes, steps_per_action=results[0].steps_per_action)


def cell_cost(task: SuiteTask, cell: Cell) -> float:
    """Seconds of one core, estimated: SGD steps, evaluations, and what a cell costs however many trainings it has."""
    microseconds = task.microseconds * (GREEDY_STEPS if cell.contestant == GREEDY else 1.0)
    microseconds += LOOPED_MICROSECONDS if cell.contestant in RATE_FREE else 0.0
    evaluations = 2 if cell.role == "report" else 1
    steps = (len(cell.seeds) + trainings_of_control(cell.contestant.rpartition(": ")[2], len(cell.seeds))) * task.horizon
    of_trainings = steps * microseconds * 1e-6 + len(cell.seeds) * evaluations * task.evaluation * 1e-3
    return of_trainings + task.horizon * DECISION_MICROSECONDS * 1e-6 + CELL_SECONDS


def keeps_curves(cell: Cell) -> bool:
    """Curves of what is reported are kept, but not those of a random search's hundreds of points."""
    return cell.role == "report" and cell.contestant != "random search"


@dataclass
class _Batch:
    """Work, and the cells that have the same trainings as each of its cells, these included."""

    work: Work
    equal: tuple[tuple[Cell, ...], ...]
    attempts: int = 0

    def cells_of(self, index: int) -> tuple[Cell, ...]:
        """All cells of the trainings of this index."""
        return self.equal[index]

    def part(self, indices: Sequence[int]) -> _Batch:
        """The trainings of these indices alone."""
        cells, makers = tuple(self.work.cells[i] for i in indices), tuple(self.work.makers[i] for i in indices)
        return _Batch(dataclasses.replace(self.work, cells=cells, makers=makers), tuple(self.equal[i] for i in indices), self.attempts)

    def retried(self) -> list[_Batch]:
        """What is computed after a process has died: the same again, then each training alone, so that the guilty one is found."""
        parts = [self] if self.attempts == 0 else [self.part([i]) for i in range(len(self.equal))]
        return [dataclasses.replace(part, attempts=self.attempts + 1) for part in parts]


@dataclass
class _Search:
    """The tuning of one contestant on one track, on the tasks that share a choice; its grid grows.

    Attributes:
        contestant: Who is tuned.
        track: The optimizer's name.
        tasks: One, or those that share the point.
        choices: See :class:`benchmarks.lr_bench.contestants.Grid`.
    """

    contestant: Contestant
    track: str
    tasks: tuple[SuiteTask, ...]
    choices: tuple[Point, ...]

    def __post_init__(self) -> None:
        self.grid = self.contestant.grid[self.track]
        self.indices: list[list[int]] = [self.grid.indices(self.tasks) for _ in self.choices]

    @property
    def is_shared(self) -> bool:
        """Whether all tasks have the same point."""
        return self.contestant.tuning == "shared"

    def points(self) -> list[Point]:
        """All that are tried."""
        return [self.grid.point(choice, index) for choice, indices in zip(self.choices, self.indices, strict=True) for index in indices]

    def grow(self, score: Callable[[Point], float]) -> bool:
        """Extends the grid where the best point of a choice lies on the edge; whether it has grown.

        Args:
            score: Mean score of a point on all tasks.
        """
        grown = False
        for choice, indices in zip(self.choices, self.indices, strict=True):
            beyond = self.grid.beyond({index: score(self.grid.point(choice, index)) for index in indices})
            indices += beyond
            grown |= bool(beyond)
        return grown


_Steps: TypeAlias = Iterator[tuple[list[Cell], bool]]
"""See :meth:`Benchmark._strand`."""


@dataclass
class _Strand:
    """A course of work, each list of cells after the one before, beside which others run."""

    steps: _Steps
    queue: list[_Batch] = field(default_factory=list)
    num_running: int = 0
    is_done: bool = False


class Benchmark:
    """Contestants on a suite.

    Args:
        suite: What they are run on.
        contestants: Rivals and controllers, see :func:`benchmarks.lr_bench.contestants.enter`.
        store: Where results are kept.
        engine: Where they are computed.
        show: Called with what was done, its estimated cost, in seconds of one core, and what further cost has become known.

    Attributes:
        problems: What went wrong so far, in words.
        results: Of this run's cells by key, without curves; also those that could not be stored.
    """

    def __init__(
        self,
        suite: Suite,
        contestants: Sequence[Contestant],
        store: Store,
        engine: Engine,
        show: Callable[[str, float, float], None] = lambda what, done, known: None,
    ) -> None:
        self.suite, self.contestants, self.store, self.engine, self.show = suite, contestants, store, engine, show
        self.problems: list[str] = []
        self.results: dict[str, CellResult] = {}
        self._unsaved: list[tuple[Cell, CellResult]] = []
        self._makers = {contestant.name: contestant.make for contestant in contestants}
        self._tasks = {task.name: task for task in suite.tasks}
        self._seeds: dict[tuple[str, CellRole], tuple[int, ...]] = {}
        for task in suite.tasks:
            self._seeds[task.name, "tune"] = tuple(role_seeds(suite.seed, Role.TUNE, task.tuning))
            self._seeds[task.name, "report"] = tuple(role_seeds(suite.seed, Role.REPORT, task.reporting))
        self._searches = [search for contestant in contestants for track in contestant.grid for search in self._begin_searches(contestant, track)]

    def run(self) -> list[Cell]:
        """Tunes and reports all; returns the cells that the benchmark is about. What the store holds is not computed again.

        Task after task is finished, then what is tuned on all of them: an interrupted run has whole tasks.
        """
        shared = [search for search in self._searches if search.is_shared]
        optimizers = (*self.suite.tracks, *self.suite.other_optimizers)
        self._run_strands(self._strand_of_task(task, track) for task in self.suite.tasks for track in optimizers)
        self._run_strands(self._strand([search for search in shared if search.track == track]) for track in optimizers)
        cells = self._tuning_cells(self._searches) + self._untuned_cells(self.suite.tasks, optimizers) + self._report_cells(self._searches)
        self._save([])
        if self._unsaved:
            self.problems.append(f"{len(self._unsaved)} results are not stored, but are part of the tables. Run again when there is room.")
        self.problems += self.store.damaged
        failures = [(cell, self.results[cell.key].error) for cell in cells]
        self.problems += [f"{cell.track}, {cell.task}, {cell.contestant}, {describe(cell.point)}: {error}" for cell, error in failures if error]
        return cells

    def cost(self) -> float:
        """Seconds of one core that all takes, estimated, without what grids grow by."""
        optimizers = (*self.suite.tracks, *self.suite.other_optimizers)
        reports = self._untuned_cells(self.suite.tasks, optimizers) + self._report_cells(self._searches, is_tuned=False)
        cells = {cell.trainings: cell for cell in self._tuning_cells(self._searches) + reports}
        return sum(cell_cost(self._tasks[cell.task], cell) for cell in cells.values())

    def score(self, search: _Search, point: Point) -> float:
        """Mean score of a point over a search's tasks; infinite where one has none."""
        results = [self.results[self._cell(search.contestant, search.track, task, "tune", point).key] for task in search.tasks]
        return float(np.mean([np.inf if result.error is not None else self.mean_score(result) for result in results]))

    def mean_score(self, result: CellResult) -> float:
        """What the points of a grid are chosen by, lower is better."""
        return float(result.scores.mean())

    def _strand_of_task(self, task: SuiteTask, track: str) -> _Steps:
        """All that one task's own results decide; and what is tuned on it and others."""
        searches = [search for search in self._searches if search.track == track and task in search.tasks]
        shared = [search for search in searches if search.is_shared]
        further = [cell for cell in self._tuning_cells(shared) if cell.task == task.name]
        return self._strand([search for search in searches if not search.is_shared], self._untuned_cells([task], [track]), further)

    def _strand(self, searches: Sequence[_Search], untuned: Sequence[Cell] = (), further: Sequence[Cell] = ()) -> _Steps:
        """The cells of some searches, in lists that each need the results of the one before; and whether their cost was not known.

        Args:
            searches: Whose points are tuned and reported.
            untuned: Reported cells that need no tuning.
            further: Cells that are computed here as their trainings fit in.
        """
        tuning = self._tuning_cells(searches)
        yield [*tuning, *further], False
        while sum(search.grow(partial(self.score, search)) for search in searches if search.contestant.tuning != "pool") > 0:  # each is looked at
            tuning = self._tuning_cells(searches)
            yield tuning, True
        reports = [*untuned, *self._report_cells(searches)]
        yield reports, False
        self._attempt(lambda: self.store.record([*tuning, *reports]))

    def _run_strands(self, strands: Iterable[_Steps]) -> None:
        """Computes what the store lacks and keeps it, the first strands first; other processes may do the same. Then :attr:`results` has all."""
        waiting = [_Strand(steps) for steps in strands]
        running: dict[Future[list[CellResult]], tuple[_Strand, _Batch]] = {}
        try:
            while waiting:
                for strand in list(waiting):
                    if len(running) >= self.engine.slots:
                        break
                    self._advance(strand, running)
                    if strand.is_done:
                        waiting.remove(strand)
                if running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        strand, batch = running.pop(future)
                        strand.num_running -= 1
                        strand.queue += self._take(future, batch)
                elif waiting:
                    time.sleep(POLL)  # another process computes the rest
        except BaseException:
            self.engine.shutdown()
            raise

    def _advance(self, strand: _Strand, running: dict[Future[list[CellResult]], tuple[_Strand, _Batch]]) -> None:
        """Begins what can be begun of a strand, as far as there is room."""
        while not strand.is_done:
            for batch in list(strand.queue):
                if len(running) >= self.engine.slots:
                    return
                begun = self._begin_batch(batch)
                if begun is not None:
                    strand.queue.remove(batch)
                    running |= {future: (strand, part) for future, part in begun}
                    strand.num_running += len(begun)
            if strand.queue or strand.num_running:
                return
            cells, is_new = next(strand.steps, (None, False))
            if cells is None:
                strand.is_done = True
                return
            strand.queue = self._plan(cells)
            if is_new:
                self.show("", 0.0, sum(batch.work.cost for batch in strand.queue))

    def _begin_batch(self, batch: _Batch) -> tuple[tuple[Future[list[CellResult]], _Batch], ...] | None:
        """Begins what is missing of a batch, which may be nothing; None where another process computes it."""
        missing = self._missing(batch)
        if missing:
            if self._attempt(lambda: self.store.claim([cell for index in missing for cell in batch.cells_of(index)])) is False:
                return None
            missing = self._missing(batch)  # another process may have finished just before
        if not missing:
            self._done(batch)
            return ()
        part = batch.part(missing)
        try:
            return ((self.engine.submit(part.work), part),)
        except BrokenExecutor:
            self.engine.restart()
            return ((self.engine.submit(part.work), part),)

    def _take(self, future: Future[list[CellResult]], batch: _Batch) -> list[_Batch]:
        """Keeps what has been computed; returns what is to be computed again, as its process died."""
        try:
            results = future.result()
        except BrokenExecutor:
            self.engine.restart()
            if batch.attempts < ATTEMPTS - 1:
                return batch.retried()
            results = [failed("The process that computed it died, perhaps as memory ran out.")] * len(batch.work.cells)
        # What was known stays as it was: it may be published, without the curves for which its trainings were run again.
        lacking = ((cell, result) for index, result in enumerate(results) for cell in batch.cells_of(index) if cell.key not in self.results)
        self._save(list(lacking))
        self._done(batch)
        return []

    def _missing(self, batch: _Batch) -> list[int]:
        """Which of its cells' trainings are to be computed; the others' results are looked up, and kept for all their cells."""
        missing = []
        for index, cell in enumerate(batch.work.cells):
            cells = [equal for equal in batch.cells_of(index) if equal.key not in self.results]
            looked_up = {each.key: self._attempt(partial(self.store.find, each)) for each in cells}
            found = {key: result for key, result in looked_up.items() if isinstance(result, CellResult) and result.error is None}
            for key, result in found.items():
                self.results[key] = without_curves(result)
            lacking = [each for each in cells if each.key not in found]
            if lacking:
                equal = self._attempt(partial(self.store.find_equal, cell, any(map(keeps_curves, lacking))))
                if isinstance(equal, CellResult):
                    self._save([(each, equal) for each in lacking])
                else:
                    missing.append(index)
        return missing

    def _save(self, results: Sequence[tuple[Cell, CellResult]]) -> None:
        """Keeps results, those of a population all at once or none, so that a resumed run trains the same populations."""
        for cell, result in results:
            self.results[cell.key] = without_curves(result)
            self._unsaved.append((cell, result if keeps_curves(cell) else without_curves(result)))
        if self._unsaved and self._attempt(lambda: self.store.save_all(self._unsaved)) is not UNDONE:
            self._unsaved = []

    def _attempt(self, ask: Callable[[], Any]) -> Any:
        """What the store answers; where it can't, the benchmark goes on, says so once, and tries again with the next results."""
        try:
            return ask()
        except StoreError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return UNDONE

    def _done(self, batch: _Batch) -> None:
        cell = batch.work.cells[-1]
        self.show(f"{cell.track}, {cell.task}, {cell.role}: {cell.contestant}", batch.work.cost, 0.0)

    def _plan(self, cells: Sequence[Cell]) -> list[_Batch]:
        """What is not known yet, each training once, in populations that a resumed run makes in the same way."""
        equal: dict[str, list[Cell]] = {}
        for cell in {cell.key: cell for cell in cells if cell.key not in self.results}.values():
            equal.setdefault(cell.trainings, []).append(cell)
        populations: dict[tuple[Any, ...], list[Cell]] = {}
        for same in equal.values():
            cell = same[0]
            populations.setdefault((cell.track, cell.task, cell.role, len(cell.seeds), self._population(cell)), []).append(cell)
        batches = []
        for members in populations.values():
            task = self._tasks[members[0].task]
            count = max(1, task.side_by_side // len(members[0].seeds))
            for i in range(0, len(members), count):
                part = tuple(members[i : i + count])
                work = Work(task, self.suite.examples_of(task), part, tuple(self._makers[cell.contestant] for cell in part))
                batches.append(_Batch(work, tuple(tuple(equal[cell.trainings]) for cell in part)))
        order = {task.name: index for index, task in enumerate(self.suite.tasks)}
        return sorted(batches, key=lambda batch: (order[batch.work.task.name], batch.work.cells[0].track))

    def _population(self, cell: Cell) -> str:
        """Cells for which this is equal may train side by side."""
        make = self._makers[cell.contestant]
        if isinstance(make, ControlMaker):  # it trains before it decides
            return cell.key
        try:
            bound = make(cell.track, self._tasks[cell.task], cell.seeds, cell.point)
            key = repr(comparable(bound))
        except Exception:  # whatever it is, it comes again where the cell is computed, and is reported there
            return cell.key
        if isinstance(bound.controller, OnlineController):  # it is told more than controllers side by side are
            return cell.key
        rule = bound.controller
        own = {name: value for name, value in vars(rule).items() if name != "constant"} if isinstance(rule, AttachedRule) else None
        return f"{key} {type(rule).__name__} {own}" if own is not None else key

    def _begin_searches(self, contestant: Contestant, track: str) -> list[_Search]:
        grid = contestant.grid[track]
        tried = [(task, grid.choices_on(task)) for task in self.suite.tasks if grid.choices_on(task)]
        if contestant.tuning != "shared":
            return [_Search(contestant, track, (task,), choices) for task, choices in tried]
        return [_Search(contestant, track, tuple(task for task, _ in tried), grid.choices)] if tried else []

    def _tuning_cells(self, searches: Iterable[_Search]) -> list[Cell]:
        return [
            self._cell(search.contestant, search.track, task, "tune", point)
            for search in searches
            for task in search.tasks
            for point in (search.contestant.pool(search.track, task, self.suite.seed) if search.contestant.tuning == "pool" else search.points())
        ]

    def _untuned_cells(self, tasks: Sequence[SuiteTask], tracks: Sequence[str]) -> list[Cell]:
        """What is reported of those that nothing is tuned of."""
        return [
            self._cell(contestant, track, task, "report", point)
            for contestant in self.contestants
            for track in tracks
            for task in tasks
            if not (contestant.skips_costly and task.is_costly)
            for point in contestant.points.get(track, ())
        ]

    def _report_cells(self, searches: Iterable[_Search], is_tuned: bool = True) -> list[Cell]:
        """What is reported of those that are tuned; before they are with any points."""
        cells = []
        for search in searches:
            contestant, track = search.contestant, search.track
            if contestant.tuning == "pool":
                points = contestant.pool(track, search.tasks[0], self.suite.seed)
                cells += [self._cell(contestant, track, search.tasks[0], "report", point) for point in points]
                continue
            best = min(search.points(), key=partial(self.score, search)) if is_tuned else search.points()[0]
            tasks = self.suite.tasks if search.is_shared else search.tasks
            cells += [self._cell(contestant, track, task, "report", best) for task in tasks]
        return cells

    def _cell(self, contestant: Contestant, track: str, task: SuiteTask, role: CellRole, point: Point) -> Cell:
        setting = task.setting | {"examples": self.suite.examples_of(task)}
        seeds = self._seeds[task.name, role]
        if contestant.tuning == "pool" and role == "report":
            seeds = seeds[: task.searching]
        return Cell(self.suite.key, track, task.name, setting, contestant.name, contestant.make.identity(point), role, point, seeds)


def describe(point: Point) -> str:
    """A point in words."""
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in point.items()) or "not tuned"


def without_curves(result: CellResult) -> CellResult:
    """The same result, for which less memory is needed."""
    return dataclasses.replace(result, losses=None, rates=None)
