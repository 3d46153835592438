"""The engine: populations, tuning, resumption, processes that die or share a store, contestants that fail."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.lr_bench import engine
from benchmarks.lr_bench.contestants import GREEDY, Contestant, RuleMaker, ScheduleMaker, enter
from benchmarks.lr_bench.engine import Benchmark, LocalEngine, Work, compute
from benchmarks.lr_bench.records import Cell, CellResult, Point
from benchmarks.lr_bench.store import Store, StoreError
from benchmarks.lr_bench.suites import SuiteTask
from benchmarks.runner import Runner
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from tests.benchmark_runs import LEFT_OUT, FakeEngine, fake_result, make_benchmark, run_in_process, small_populations, tiny_suite

KILLS = int(os.environ.get("LR_BENCH_KILLS", "3"))
"""How often a benchmark is killed: `LR_BENCH_KILLS=20 pytest tests/test_engine.py`."""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "results.sqlite") as store:
        yield store


def cells_of(points: list[Point], seeds: tuple[int, ...], role: Any = "report") -> Work:
    task = tiny_suite(1).tasks[0]
    cells = tuple(Cell("tiny-1", "momentum", task.name, task.setting, "any", "", role, point, seeds) for point in points)
    return Work(task, 64, cells, (ScheduleMaker(),) * len(cells))


def table(store: Store) -> dict[str, list[float]]:
    return {cell.key: result.scores.tolist() for cell, result in store.cells("tiny-1")}


def test_a_cell_is_the_same_alone_within_a_grid_and_in_the_runner() -> None:
    shapes = [("constant", 0.01), ("cosine", 0.1), ("reduce on plateau", 0.03), ("constant", 1e6)]
    points = [{"shape": shape, "rate": rate} for shape, rate in shapes]
    together = compute(cells_of(points, (5, 6, 7)))
    assert together[3].diverged.all() or together[3].losses is not None
    for point, result in zip(points, together, strict=True):
        [alone] = compute(cells_of([point], (5, 6, 7)))
        task = tiny_suite(1).tasks[0]
        naive = Runner(task.source, ScheduleMaker()("momentum", task, (), point).mdp, [5, 6, 7], 5, 64).run(
            ScheduleMaker()("momentum", task, (), point).controller
        )
        for other in (alone, naive):
            np.testing.assert_array_equal(result.losses, other.losses)  # bit for bit
            np.testing.assert_array_equal(result.rates, other.rates)
            np.testing.assert_array_equal(result.diverged, other.diverged)
            # Evaluations run over chunks of examples whose size depends on the number of members.
            np.testing.assert_allclose(result.scores, other.scores, rtol=0, atol=1e-6)
            np.testing.assert_allclose(result.test_losses, other.test_losses, rtol=1e-5)
        np.testing.assert_array_equal(result.test_metrics, alone.test_metrics)


def test_one_training_alone_has_the_bits_that_it_has_among_others() -> None:
    point = {"shape": "cosine", "rate": 0.1}
    [two], [one] = compute(cells_of([point], (5, 6))), compute(cells_of([point], (6,)))
    assert two.losses is not None
    np.testing.assert_array_equal(two.losses[:, 1:], one.losses)


def test_trainings_that_do_not_fit_side_by_side_run_after_each_other() -> None:
    work = cells_of([{"shape": "cosine", "rate": 0.1}], (5, 6, 7))
    [together] = compute(work)
    [apart] = compute(dataclasses.replace(work, task=dataclasses.replace(work.task, side_by_side=2)))
    np.testing.assert_array_equal(together.losses, apart.losses)
    np.testing.assert_allclose(together.scores, apart.scores, atol=1e-6)


def test_controllers_that_learn_online_train_alone(store: Store, tmp_path: Path) -> None:
    code = """
from agents import ActorCriticConfig, OnlineActorCritic

def first(): return OnlineActorCritic(ActorCriticConfig(actor_starts=0))

def second(): return OnlineActorCritic(ActorCriticConfig(actor_starts=0, exploration="none"))
"""
    (tmp_path / "online.py").write_text(code)
    suite = tiny_suite(1)
    entered = [each for each in enter([f"{tmp_path}/online.py:first,{tmp_path}/online.py:second"], suite, has_controls=False) if each.is_entered]
    assert Benchmark(suite, entered, store, LocalEngine()).run()
    for cell, result in store.cells(suite.key):
        bound = next(each for each in entered if each.name == cell.contestant).make(cell.track, suite.tasks[0], (), {})
        expected = Runner(suite.tasks[0].family(), bound.mdp, cell.seeds, suite.tasks[0].horizon, execution=engine.execution(bound.mdp))
        assert result.rates is not None
        np.testing.assert_array_equal(result.rates, np.float32(expected.run(bound.controller).rates))  # as curves are stored


def test_rules_that_look_at_the_population_have_one_constant_for_each_member() -> None:
    from agents.rules import HypergradientDescent

    work = cells_of([{"constant": 1e-3}, {"constant": 0.1}], (5, 6))
    work = dataclasses.replace(work, makers=(RuleMaker(HypergradientDescent),) * 2)
    together = compute(work)
    assert together[0].rates is not None
    for i, result in enumerate(together):
        [alone] = compute(dataclasses.replace(work, cells=work.cells[i : i + 1], makers=work.makers[:1]))
        np.testing.assert_array_equal(result.losses, alone.losses)
        np.testing.assert_array_equal(result.rates, alone.rates)


def test_extra_forward_passes_are_those_of_each_cell() -> None:
    from agents.rules import ArmijoLineSearch

    work = cells_of([{"constant": 1e-3}, {"constant": 0.1}], (5, 6))
    work = dataclasses.replace(work, makers=(RuleMaker(ArmijoLineSearch),) * 2)
    together = compute(work)
    for i, result in enumerate(together):
        [alone] = compute(dataclasses.replace(work, cells=work.cells[i : i + 1], makers=work.makers[:1]))
        assert result.extra_forward_passes is not None
        assert (result.extra_forward_passes >= 5).all()  # at least one for each of the five steps
        np.testing.assert_array_equal(result.extra_forward_passes, alone.extra_forward_passes)
    [schedule] = compute(cells_of([{"shape": "cosine", "rate": 0.1}], (5, 6)))
    assert schedule.extra_forward_passes is None


class Crashing:
    """Crashes in trainings whose point says so."""

    def __call__(self, optimizer: str, task: SuiteTask, seeds: Any, point: Point) -> BoundController:
        bound = ScheduleMaker()(optimizer, task, seeds, {"shape": "constant", "rate": 0.01})
        return BoundController(_Crash() if point["crashes"] else bound.controller, bound.mdp)

    def identity(self, point: Point) -> str:
        return "crashing"


class _Crash:
    def predict(self, *arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("in the middle of it")


def test_a_contestant_that_crashes_leaves_its_neighbours_alone() -> None:
    work = cells_of([{"crashes": False}, {"crashes": True}], (5, 6))
    fine, crashed = compute(dataclasses.replace(work, makers=(Crashing(), Crashing())))
    assert fine.error is None
    assert len(fine.scores) == 2
    assert crashed.error is not None
    assert crashed.error.startswith("ZeroDivisionError: in the middle of it (")
    assert "test_engine.py, line" in crashed.error


@pytest.mark.parametrize(
    ("predict", "problem"),
    [(lambda *_, **__: sys.exit(3), "SystemExit: 3"), (lambda observation, *_, **__: np.zeros((len(observation), 1)), "must return a pair")],
    ids=["exits", "no pair"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_what_a_contestant_does_wrong_is_its_result(predict: Any, problem: str, count: int) -> None:
    class Maker:
        def __call__(self, optimizer: str, task: SuiteTask, seeds: Any, point: Point) -> BoundController:
            return BoundController(SimpleNamespace(predict=predict), MDP(optimizer=optimizer))  # type: ignore[arg-type]

        def identity(self, point: Point) -> str:
            return "wrong"

    work = cells_of([{}] * count, (5, 6))
    results = compute(dataclasses.replace(work, makers=(Maker(),) * count))
    assert all(result.error is not None and problem in result.error for result in results)


def test_a_diverging_contestant_is_a_result() -> None:
    [result] = compute(cells_of([{"shape": "constant", "rate": 9.0}], (5, 6), "report"))
    [wild] = compute(dataclasses.replace(cells_of([{}], (5, 6)), makers=(_Wild(),)))
    assert result.error is None
    assert wild.error is None
    assert wild.diverged.all()
    assert np.isfinite(wild.scores).all()


class _Wild:
    def __call__(self, optimizer: str, task: SuiteTask, seeds: Any, point: Point) -> BoundController:
        return BoundController(_Wild._Rate(), MDP(optimizer=optimizer, features=["log_loss"], action="rate", lr_max=1e12))

    class _Rate:
        def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            return np.full((len(observation), 1), 1e9), None

    def identity(self, point: Point) -> str:
        return "wild"


def test_each_training_is_computed_once_and_kept_for_all_its_cells(store: Store) -> None:
    fake = FakeEngine()
    benchmark = make_benchmark(store, fake)
    cells = benchmark.run()
    computed = [cell.trainings for cell in fake.computed]
    assert len(computed) == len(set(computed))
    assert set(computed) == {cell.trainings for cell in cells} | {cell.trainings for cell, _ in store.cells()}
    assert len({cell.key for cell in cells}) > len(set(computed))
    for cell in cells:
        found = store.find(cell)
        assert found is not None
        np.testing.assert_array_equal(found.scores, fake_result(cell).scores)
        assert (found.losses is None) == (cell.role == "tune" or cell.contestant == "random search")
    assert benchmark.problems == []


def test_choices_are_the_best_of_their_grids_on_tuning_trainings_alone(store: Store) -> None:
    cells = make_benchmark(store, FakeEngine()).run()
    chosen = {(cell.contestant, cell.task): cell for cell in cells if cell.role == "report" and cell.contestant != "random search"}

    def mean(cells: list[Cell]) -> dict[str, float]:
        by_point: dict[str, list[float]] = {}
        for cell in cells:
            by_point.setdefault(repr(dict(cell.point)), []).append(float(fake_result(cell).scores.mean()))
        return {point: float(np.mean(scores)) for point, scores in by_point.items()}

    for (contestant, task), cell in chosen.items():
        if contestant == "default rate":
            assert cell.point == {"shape": "constant", "rate": 1e-3}
            continue
        is_shared = contestant != "tuned per task"
        tried = mean([each for each in cells if each.role == "tune" and each.contestant == contestant and (is_shared or each.task == task)])
        assert repr(dict(cell.point)) == min(tried, key=lambda point: tried[point])
        assert len(tried) == (9 * 15 if contestant == "tuned per task" else 15)
    tuning, reporting = ({seed for cell in cells if cell.role == role for seed in cell.seeds} for role in ("tune", "report"))
    assert not tuning & reporting
    pool = [cell for cell in cells if cell.contestant == "random search" and cell.task == "wine-mlp"]
    assert len(pool) == 2 * 4
    assert {repr(dict(cell.point)) for cell in pool if cell.role == "tune"} == {repr(dict(cell.point)) for cell in pool if cell.role == "report"}


def test_tasks_are_finished_one_after_another_and_kept_as_they_are(store: Store) -> None:
    class Stops(FakeEngine):
        def submit(self, work: Work) -> Future[list[CellResult]]:
            if work.task.name == "wine-mlp":
                raise KeyboardInterrupt
            return super().submit(work)

    with pytest.raises(KeyboardInterrupt):
        make_benchmark(store, Stops()).run()
    kept = [cell for cell, _ in store.cells("tiny-1")]
    assert {cell.task for cell in kept} == {"breast-cancer-mlp"}
    assert {cell.contestant for cell in kept if cell.role == "report"} == {"tuned per task", "SPS, tuned per task", "random search", "default rate"}
    make_benchmark(store, FakeEngine()).run()
    assert {cell.task for cell, _ in store.cells("tiny-1")} == {"breast-cancer-mlp", "wine-mlp"}


def test_a_search_is_reported_on_its_own_number_of_trainings(store: Store) -> None:
    cells = make_benchmark(store, FakeEngine()).run()
    counts = {(cell.contestant == "random search", len(cell.seeds)) for cell in cells if cell.role == "report"}
    assert counts == {(True, 2), (False, 3)}
    by_task = {(cell.task, cell.contestant == "random search"): cell.seeds for cell in cells if cell.role == "report"}
    assert all(by_task[task, True] == by_task[task, False][:2] for task, _ in by_task)


def test_what_is_too_costly_is_left_out(store: Store) -> None:
    suite = small_populations(tiny_suite(leaves_out=tuple(name for name in LEFT_OUT if name != GREEDY)))
    suite = dataclasses.replace(suite, tasks=(suite.tasks[0], dataclasses.replace(suite.tasks[1], is_costly=True)))
    cells = make_benchmark(store, FakeEngine(), suite=suite).run()
    assert {cell.task for cell in cells if cell.contestant == GREEDY} == {suite.tasks[0].name}


def test_a_grid_grows_while_its_best_point_lies_on_the_edge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def falling(cell: Cell) -> CellResult:
        rate = cell.point.get("rate", cell.point.get("constant"))
        return dataclasses.replace(fake_result(cell), scores=np.full(len(cell.seeds), -np.log10(rate)))

    monkeypatch.setattr("tests.benchmark_runs.fake_result", falling)
    cells = make_benchmark(store, FakeEngine()).run()
    reported = {cell.contestant: cell.point for cell in cells if cell.role == "report"}
    assert reported["constant (shared)"]["rate"] == pytest.approx(10.0)  # the limit of all controllers
    assert reported["SPS"]["constant"] == pytest.approx(4641.59)


def test_a_second_run_computes_nothing_and_a_new_contestant_itself_alone(store: Store) -> None:
    first = make_benchmark(store, FakeEngine()).run()
    again = FakeEngine()
    assert make_benchmark(store, again).run() == first
    assert again.computed == []
    suite = small_populations(tiny_suite())
    added = Contestant("mine", RuleMaker(engine.AttachedRule), points={"momentum": ({},)})
    make_benchmark(store, again, [*enter([], suite), added]).run()
    assert {cell.contestant for cell in again.computed} == {"mine"}
    assert len(table(store)) == len({cell.key for cell in first}) + 2


def test_results_without_curves_stay_as_they_are_when_another_name_has_the_same_trainings(store: Store, tmp_path: Path) -> None:
    suite = small_populations(tiny_suite())
    mine, other = (Contestant(name, RuleMaker(engine.AttachedRule), points={"momentum": ({},)}) for name in ("mine", "other"))
    make_benchmark(store, FakeEngine(), [mine], suite).run()
    store.export(tmp_path / "published.sqlite")
    again = FakeEngine()
    with Store(tmp_path / "new.sqlite") as new:
        new.take_over(tmp_path / "published.sqlite")
        make_benchmark(new, again, [mine, other], suite).run()
        found = {(cell.contestant, cell.task): result for cell, result in new.cells(suite.key)}
    assert len(again.computed) == len(suite.tasks)
    assert {name: result.losses is None for (name, _), result in found.items()} == {"mine": True, "other": False}


def test_a_changed_suite_computes_its_own(store: Store) -> None:
    make_benchmark(store, FakeEngine()).run()
    before = table(store)
    suite = small_populations(tiny_suite())
    tasks = tuple(dataclasses.replace(task, horizon=6) for task in suite.tasks)
    fake = FakeEngine()
    make_benchmark(store, fake, suite=dataclasses.replace(suite, version=2, tasks=tasks)).run()
    assert len(fake.computed) > 100
    assert table(store) == before


def test_a_killed_benchmark_goes_on_to_the_same_tables(tmp_path: Path) -> None:
    with Store(tmp_path / "reference.sqlite") as store:
        make_benchmark(store, FakeEngine()).run()
        reference = table(store)
    path, moments, context = tmp_path / "results.sqlite", random.Random(0), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmark_runs"])
    killed = 0
    for _ in range(KILLS):
        process = context.Process(target=run_in_process, args=(path, 0.02))
        process.start()
        deadline, log = time.monotonic() + 300, path.with_suffix(".log")
        count = len(log.read_text()) if log.exists() else 0
        while process.is_alive() and time.monotonic() < deadline and (len(log.read_text()) if log.exists() else 0) == count:
            time.sleep(0.005)  # until it computes
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed > 0
    with Store(path) as store:
        rest = FakeEngine()
        make_benchmark(store, rest).run()
        assert table(store) == reference


def test_two_processes_share_a_store_without_computing_anything_twice(tmp_path: Path) -> None:
    path, context = tmp_path / "results.sqlite", multiprocessing.get_context("forkserver")
    processes = [context.Process(target=run_in_process, args=(path, 0.01)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    computed = path.with_suffix(".log").read_text().split()
    assert len(computed) == len(set(computed))
    with Store(path) as store, Store(tmp_path / "reference.sqlite") as other:
        make_benchmark(other, FakeEngine()).run()
        assert table(store) == table(other)


def test_a_full_disk_is_said_and_the_tables_are_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all, calls = store.save_all, []

    def fails(results: Any) -> None:
        calls.append(1)
        if 5 < len(calls) < 9:
            raise StoreError("results.sqlite can't be written: database or disk is full. Make room.")
        save_all(results)

    monkeypatch.setattr(store, "save_all", fails)
    benchmark = make_benchmark(store, FakeEngine())
    cells = benchmark.run()
    assert benchmark.problems == ["results.sqlite can't be written: database or disk is full. Make room."]
    assert all(store.find(cell) is not None for cell in cells)  # kept later
    monkeypatch.setattr(store, "save_all", lambda results: (_ for _ in ()).throw(StoreError("full")))
    suite = dataclasses.replace(small_populations(tiny_suite()), version=2)
    benchmark = make_benchmark(store, FakeEngine(), suite=suite)
    cells = benchmark.run()
    assert "results are not stored" in " ".join(benchmark.problems)
    assert all(cell.key in benchmark.results for cell in cells)


def test_what_the_store_can_t_look_up_is_computed_and_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make_benchmark(store, FakeEngine()).run()
    again, find = FakeEngine(), Store.find

    def fails(self: Store, cell: Cell) -> CellResult | None:
        if cell.contestant == "SPS":
            raise StoreError("results.sqlite is damaged: database disk image is malformed. Move it away.")
        return find(self, cell)

    monkeypatch.setattr(Store, "find", fails)
    monkeypatch.setattr(Store, "find_equal", lambda self, cell, with_curves=False: fails(self, cell))
    benchmark = make_benchmark(store, again)
    assert benchmark.run() == expected
    assert {cell.contestant for cell in again.computed} == {"SPS"}
    assert benchmark.problems == ["results.sqlite is damaged: database disk image is malformed. Move it away."]


def test_errors_are_reported_per_cell_and_tried_again_by_the_next_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(cell: Cell) -> CellResult:
        return engine.failed("ValueError: no luck") if cell.point.get("shape") == "one-cycle" else fake_result(cell)

    with monkeypatch.context() as patched:
        patched.setattr("tests.benchmark_runs.fake_result", result)
        benchmark = make_benchmark(store, FakeEngine())
        cells = benchmark.run()
    failed = [cell for cell in cells if cell.point.get("shape") == "one-cycle"]
    assert len(benchmark.problems) == len(failed)
    assert all("no luck" in problem and "one-cycle" in problem for problem in benchmark.problems)
    assert not any(cell.point.get("shape") == "one-cycle" for cell in cells if cell.contestant == "tuned per task" and cell.role == "report")
    again = FakeEngine()
    benchmark = make_benchmark(store, again)
    benchmark.run()
    assert benchmark.problems == []
    assert {cell.point["shape"] for cell in again.computed} == {"one-cycle"}


class DyingEngine(FakeEngine):
    """Whose process dies of one cell."""

    def submit(self, work: Work) -> Future[list[CellResult]]:
        if not any(cell.contestant == "SPS, tuned per task" and cell.role == "report" and cell.task == "wine-mlp" for cell in work.cells):
            return super().submit(work)
        future: Future[list[CellResult]] = Future()
        future.set_exception(BrokenExecutor("died"))
        return future


def test_a_process_that_dies_costs_the_guilty_cell_alone(store: Store) -> None:
    benchmark = make_benchmark(store, DyingEngine(), suite=tiny_suite())
    benchmark.run()
    [problem] = benchmark.problems
    assert problem.startswith("momentum, wine-mlp, SPS, tuned per task, constant")
    assert "died" in problem


def test_workers_are_processes_that_give_the_same(tmp_path: Path) -> None:
    suite = dataclasses.replace(tiny_suite(1), leaves_out=("random search",), tracks=("momentum",))
    contestants = [Contestant("cosine", ScheduleMaker(), points={"momentum": tuple({"shape": "cosine", "rate": 10.0**-i} for i in range(1, 4))})]
    suite = dataclasses.replace(suite, tasks=(dataclasses.replace(suite.tasks[0], side_by_side=3),))
    tables = []
    for workers in (1, 2):
        local = LocalEngine(workers)
        with Store(tmp_path / f"{workers}.sqlite") as store:
            Benchmark(suite, contestants, store, local).run()
            tables.append(table(store))
        local.shutdown()
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3
