"""The analysis of a benchmark, against plain loops over its cells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import trim_mean

from benchmarks.lr_bench.analysis import steps_to_target, summarise
from benchmarks.lr_bench.contestants import GREEDY
from benchmarks.lr_bench.records import Cell, CellResult
from benchmarks.lr_bench.summary import POOL, Comparison, Summary
from benchmarks.statistics import expected_search_scores, tuning_equivalents
from tests.benchmark_cells import CONTROLLER, OFFSETS, make_cells, make_suite

Cells = list[tuple[Cell, CellResult]]
SUITE = make_suite()
FEW = {name: OFFSETS[name] for name in ("default rate", "tuned per task", "SPS", CONTROLLER, f"{CONTROLLER}: same-instance replay")}


@pytest.fixture(scope="module")
def cells() -> Cells:
    return list(make_cells(SUITE, num_points=12))


@pytest.fixture(scope="module")
def summary(cells: Cells) -> Summary:
    return summarise(cells, SUITE)


def scores(cells: Cells, track: str, task: str, contestant: str) -> np.ndarray:
    """``(J, S)``."""
    return np.array(
        [result.scores for cell, result in cells if (cell.track, cell.task, cell.contestant, cell.role) == (track, task, contestant, "report")]
    )


def find(rows: tuple[Comparison, ...], track: str, first: str, second: str) -> Comparison:
    return next(row for row in rows if (row.track, row.first, row.second) == (track, first, second))


def outcomes(summary: Summary) -> dict[str, str]:
    return {row.statement: row.outcome for row in summary.falsifiers if row.track == "momentum"}


def few(change: Callable[[Cell, CellResult], tuple[Cell, CellResult] | None] | None = None, offsets: dict[str, float] | None = None) -> Summary:
    """A small summary of cells some of which are changed or, for None, dropped."""
    suite = make_suite(tracks=("momentum",))
    made = make_cells(suite, FEW | (offsets or {}), num_points=0, curves=False)
    return summarise([kept for pair in made if (kept := change(*pair) if change else pair) is not None], suite)


def test_entries(cells: Cells, summary: Summary) -> None:
    assert {(row.track, row.task, row.contestant) for row in summary.entries if row.contestant != "best in hindsight"} == set(
        product(SUITE.tracks, [task.name for task in SUITE.tasks], OFFSETS)
    )
    for row in summary.entries:
        if row.contestant == "best in hindsight":
            continue
        found = [
            result for cell, result in cells if (cell.track, cell.task, cell.contestant, cell.role) == (row.track, row.task, row.contestant, "report")
        ]
        flat = [(result.scores[i], result.diverged[i], result.test_losses[i]) for result in found for i in range(10)]
        assert row.score == pytest.approx(np.mean([score for score, _, _ in flat]))
        assert row.diverged == pytest.approx(np.mean([diverged for _, diverged, _ in flat]))
        assert row.test_loss == pytest.approx(10 ** np.mean([np.log10(loss) for _, diverged, loss in flat if not diverged]))
        rival = scores(cells, row.track, row.task, "tuned per task")[0]
        if row.contestant != "tuned per task":
            ratio = row.ratios["tuned per task"]
            assert ratio.estimate == pytest.approx(100 * (10 ** np.mean([result.scores - rival for result in found]) - 1))
            assert ratio.low <= ratio.estimate <= ratio.high
        assert ("SPS" in row.ratios) == (row.contestant == CONTROLLER)


def test_scores_and_leaderboard(cells: Cells, summary: Summary) -> None:
    for row in summary.standings:
        if row.contestant == "best in hindsight":
            continue
        per_task = []
        for task in SUITE.tasks:
            default, rival = (scores(cells, row.track, task.name, name).mean() for name in ("default rate", "tuned per task"))
            found = [
                result
                for cell, result in cells
                if (cell.track, cell.task, cell.contestant) == (row.track, task.name, row.contestant) and cell.role == "report"
            ]
            values = [
                -1.0 if diverged else (default - score) / (default - rival)
                for result in found
                for score, diverged in zip(result.scores, result.diverged, strict=True)
            ]
            per_task.append(np.clip(values, -1, 3))
        assert row.mean is not None and row.interquartile_mean is not None and row.worst is not None
        assert row.mean.estimate == pytest.approx(np.mean(per_task))
        assert row.worst == pytest.approx(min(map(np.mean, per_task)))
        assert row.worst_task == SUITE.tasks[int(np.argmin([values.mean() for values in per_task]))].name
        if row.kind == "baseline":  # controllers' interquartile mean is over the average controller, see test_few_tasks_speak_of_these_tasks
            assert row.interquartile_mean.estimate == pytest.approx(trim_mean(np.concatenate(per_task), 0.25))
    order = [row.interquartile_mean.estimate for row in summary.standings if row.track == "momentum" and row.interquartile_mean]
    assert order == sorted(order, reverse=True)
    assert {row.contestant for row in summary.standings if row.kind == "control"} == {
        name for name in OFFSETS if ": " in name or name == "random policy"
    }


def test_comparisons(cells: Cells, summary: Summary) -> None:
    for track, opponent in product(SUITE.tracks, ("tuned per task", "SPS", "constant (shared)", "cosine (shared)", "default rate")):
        row = find(summary.comparisons, track, CONTROLLER, opponent)
        differences = [scores(cells, track, task.name, CONTROLLER) - scores(cells, track, task.name, opponent) for task in SUITE.tasks]
        assert row.ratio.estimate == pytest.approx(100 * (10 ** np.mean(differences) - 1))
        assert row.wins == sum(each.mean() < 0 for each in differences)
        assert (row.tasks, row.expected, row.basis) == (3, 3, "these tasks")
        assert row.verdict == "beats"
    improvement = next(row.improvement for row in summary.standings if (row.track, row.contestant) == ("adamw", "SPS"))
    wins = [
        np.mean(
            [
                [(own < other) + (own == other) / 2 for own in scores(cells, "adamw", task.name, "SPS")[0]]
                for other in scores(cells, "adamw", task.name, "tuned per task")[0]
            ]
        )
        for task in SUITE.tasks
    ]
    assert improvement is not None and improvement.estimate == pytest.approx(np.mean(wins))


def test_all_p_values_but_the_primary_ones_are_adjusted(summary: Summary) -> None:
    primary, *others = summary.comparisons
    assert (primary.track, primary.first, primary.second) == ("momentum", CONTROLLER, "tuned per task")
    assert primary.adjusted == primary.p_value
    against = [
        row.against_rival for row in summary.standings if row.kind == "baseline" and row.contestant != "best in hindsight" and row.against_rival
    ]
    rows = {(row.track, row.first, row.second, row.scope): row for row in (*others, *summary.controls, *summary.tests, *against)}
    assert {row.scope for row in summary.tests} == {"", "where inputs are standardised", "where rates must be annealed"}
    family = sorted(rows.values(), key=lambda row: row.p_value)
    highest = 0.0
    for i, row in enumerate(family):
        highest = max(highest, min(1.0, (len(family) - i) * row.p_value))
        assert row.adjusted == pytest.approx(highest)
        assert row.verdict == "ties" or row.adjusted < 0.05


def test_nothing_but_the_primary_comparison_is_won_without_an_adjusted_p_value() -> None:
    names = ("default rate", "tuned per task", CONTROLLER, f"{CONTROLLER}: same-instance replay")
    suite = make_suite(1, ("momentum",), reporting=5)  # 32 signs: no p-value below 1/16
    summary = summarise(make_cells(suite, {name: OFFSETS[name] for name in names}, 0, 1, curves=False), suite)
    primary, default = summary.comparisons
    assert (primary.verdict, default.second) == ("beats", "default rate")
    assert default.ratio.high < 0 and default.p_value == 1 / 16 and default.verdict == "ties"
    assert [row.verdict for row in summary.controls] == ["ties"]
    assert outcomes(summary)["A replay of its own average rates equals it"] == "fired"


def test_tuning_equivalents_and_hindsight(cells: Cells, summary: Summary) -> None:
    runs = []
    for task in SUITE.tasks:
        pool = {role: {} for role in ("tune", "report")}
        for cell, result in cells:
            if (cell.track, cell.task, cell.contestant) == ("adamw", task.name, "random search"):
                pool[cell.role][cell.point["index"]] = result.scores
        tuning, reports = np.array([pool["tune"][i].mean() for i in range(12)]), np.array([pool["report"][i] for i in range(12)])
        expected = tuning_equivalents(scores(cells, "adamw", task.name, CONTROLLER).mean(0), tuning, reports).estimate
        row = next(row for row in summary.equivalents if (row.track, row.task) == ("adamw", task.name))
        assert row.runs.estimate == expected and row.pool == 12
        runs.append(expected)
        reference = next(row for row in summary.references if (row.track, row.task) == ("adamw", task.name))
        assert reference.hindsight == pytest.approx(reports.mean(1).min())
        assert row.trainings == 4
    median = next(row for row in summary.equivalents if row.track == "adamw" and row.task is None)
    assert median.runs.estimate == sorted(runs)[1]
    assert (median.basis, median.runs.low, median.runs.high) == ("these tasks", 0, np.inf)  # three tasks say nothing of others
    assert len(summary.searches) == 2 and summary.searches[0].counts[0] == 1 and summary.searches[0].counts[-1] == 12


def test_exhausted_pools_of_other_sizes_are_lower_bounds_in_the_median() -> None:
    """The controller is better than all points: more than 5 runs on one task, more than 12 on the others."""

    def small(cell: Cell, result: CellResult) -> tuple[Cell, CellResult] | None:
        if cell.contestant == CONTROLLER:
            return cell, replace(result, scores=result.scores - 10)
        return None if cell.contestant == "random search" and cell.task == "task-0" and cell.point["index"] >= 5 else (cell, result)

    suite = make_suite(tracks=("momentum",))
    made = [kept for pair in make_cells(suite, FEW, num_points=12, curves=False) if (kept := small(*pair)) is not None]
    rows = {row.task: row for row in summarise(made, suite).equivalents if row.contestant == CONTROLLER}
    assert [rows[f"task-{i}"].runs.estimate for i in range(3)] == [np.inf] * 3
    assert rows[None].runs.estimate == np.inf and rows[None].pool == 12
    two = [pair for pair in made if pair[0].task != "task-2"]
    rows = {row.task: row for row in summarise(two, suite).equivalents if row.contestant == CONTROLLER}
    assert rows[None].runs.estimate == 5  # the lower of both


def test_references(cells: Cells, summary: Summary) -> None:
    for row in summary.references:
        assert row.default == pytest.approx(scores(cells, row.track, row.task, "default rate").mean())
        assert row.rival == pytest.approx(scores(cells, row.track, row.task, "tuned per task").mean())
        assert row.scored
        assert row.annealing == pytest.approx(0.01 if row.budget == "short" else 0.1)
        assert row.counts_for_schedules == (row.budget != "short")


def test_task_whose_default_is_as_good_as_tuning_leaves_the_score() -> None:
    def level(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        is_default = (cell.task, cell.contestant) == ("task-1", "default rate")
        return cell, replace(result, scores=result.scores - 0.45) if is_default else result

    summary = few(level)
    assert [row.scored for row in summary.references] == [True, False, True]
    assert {row.scored for row in summary.standings} == {2}
    assert all(row.normalised is None for row in summary.entries if row.task == "task-1")
    assert find(summary.comparisons, "momentum", CONTROLLER, "tuned per task").tasks == 3


def test_controls_and_falsifiers(summary: Summary) -> None:
    assert [row.second for row in summary.controls if row.track == "adamw"] == [name for name in OFFSETS if ": " in name or name == "random policy"]
    assert outcomes(summary) == {
        "A replay of its own average rates equals it": "not fired",
        "SPS equals it": "not fired",
        "schedule-free equals it": "not fired",
        "prodigy equals it": "not tested",
        "Fewer than 4 of 5 training seeds win": "not fired",
        "The gain vanishes where inputs are standardised": "fired",  # as the cells are made
        "The gain vanishes where rates must be annealed": "not fired",
        "Its test metric is worse than that of the schedule tuned per task": "not fired",
    }


def test_metrics_have_a_direction_and_diverged_trainings_are_the_worst() -> None:
    statement = "Its test metric is worse than that of the schedule tuned per task"

    def diverged(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        if (cell.contestant, cell.role) != (CONTROLLER, "report"):
            return cell, result
        lost = np.arange(10) < 9
        return cell, replace(result, diverged=lost, test_metrics=np.where(lost, np.nan, 9.0), scores=np.where(lost, 1.5, result.scores))

    def without_metric(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        return cell, replace(result, test_metrics=None)

    assert outcomes(few(diverged))[statement] == "fired"
    assert outcomes(few(without_metric))[statement] == "not fired"  # test losses in its place
    (row,) = [row for row in few().falsifiers if row.statement == statement]
    assert "better metric than one of tuned per task, over 3 of 3 tasks; the interval is on these tasks and new controllers" in row.reason
    suite = make_suite(tracks=("momentum",))
    suite = replace(suite, tasks=tuple(replace(task, source="mnist-autoencoder") for task in suite.tasks))  # the same metrics, but lower is better
    assert outcomes(summarise(make_cells(suite, FEW, 0, curves=False), suite))[statement] == "fired"


def test_all_seeds_of_tasks_with_more_of_them_count() -> None:
    suite = make_suite(4, ("momentum",))
    suite = replace(suite, tasks=tuple(replace(task, reporting=count, searching=3) for task, count in zip(suite.tasks, (5, 10, 7, 10), strict=True)))
    offsets = {name: OFFSETS[name] for name in ("default rate", "tuned per task", "SPS", CONTROLLER)}
    cells = list(make_cells(suite, offsets, 12, curves=False))
    summary = summarise(cells, suite)
    row = find(summary.comparisons, "momentum", CONTROLLER, "SPS")
    differences = [(scores(cells, "momentum", task.name, CONTROLLER) - scores(cells, "momentum", task.name, "SPS")).mean() for task in suite.tasks]
    assert row.ratio.estimate == pytest.approx(100 * (10 ** np.mean(differences) - 1))
    standing = next(row for row in summary.standings if row.contestant == CONTROLLER)
    assert standing.improvement is not None and standing.improvement_basis == "these tasks, new controllers"
    chances = []
    for task in suite.tasks:
        ours, theirs = (scores(cells, "momentum", task.name, name).ravel() for name in (CONTROLLER, "tuned per task"))
        chances.append(np.mean(ours[:, None] < theirs))
    assert standing.improvement.estimate == pytest.approx(np.mean(chances))


def test_a_rule_that_skips_costly_tasks_is_compared_on_the_others_and_lacks_nothing() -> None:
    suite = make_suite(4, ("momentum",))
    suite = replace(suite, tasks=tuple(replace(task, is_costly=i == 2) for i, task in enumerate(suite.tasks)))
    offsets = {"default rate": 0.5, "tuned per task": 0.0, GREEDY: -0.1}
    cells = [pair for pair in make_cells(suite, offsets, 0, curves=False) if (pair[0].contestant, pair[0].task) != (GREEDY, "task-2")]
    summary = summarise(cells, suite)
    assert summary.missing == ()
    row = next(row for row in summary.standings if row.contestant == GREEDY)
    assert (row.finished, row.expected, row.scored) == (3, 3, 3)
    assert row.interquartile_mean is not None and row.against_rival is not None and row.improvement is not None
    assert (row.against_rival.tasks, row.against_rival.expected, row.against_rival.verdict) == (3, 3, "beats")
    assert [row.is_costly for row in summary.references] == [False, False, True, False]
    unfinished = summarise([pair for pair in cells if (pair[0].contestant, pair[0].task) != (GREEDY, "task-0")], suite)
    assert [(row.task, row.contestant) for row in unfinished.missing] == [("task-0", GREEDY)]


def test_random_searches_are_averaged_over_the_tasks_whose_pools_are_large_enough() -> None:
    suite, offsets = make_suite(2, ("momentum",)), {name: OFFSETS[name] for name in ("default rate", "tuned per task")}
    cells = [pair for pair in make_cells(suite, offsets, 40, curves=False) if pair[0].task == "task-0" or pair[0].point.get("index", 0) < 10]
    (search,) = summarise(cells, suite).searches
    tasks = dict(zip(search.counts, search.tasks, strict=True))
    assert [tasks[count] for count in (1, 3, 10, 30, 40)] == [2, 2, 2, 1, 1]
    pool = {
        role: np.array([result.scores for cell, result in cells if cell.task == "task-0" and cell.role == role and "index" in cell.point])
        for role in ("tune", "report")
    }
    (expected,) = expected_search_scores(pool["tune"].mean(1), pool["report"], [30])
    rival = scores(cells, "momentum", "task-0", "tuned per task").mean()
    assert search.ratios[search.counts.index(30)] == pytest.approx(100 * (10 ** (expected - rival) - 1))


def test_the_best_shared_schedule_is_chosen_on_tuning_seeds_and_an_opponent() -> None:
    suite = make_suite(2, ("momentum",))
    offsets = {name: OFFSETS[name] for name in ("default rate", "tuned per task", "constant (shared)", "cosine (shared)", CONTROLLER)}
    offsets["step (shared)"] = 0.2  # better on tuning seeds alone
    cells = list(make_cells(suite, offsets, 0, curves=False))
    cells += [
        (replace(cell, contestant="step (shared)"), replace(result, scores=result.scores - 0.1))
        for cell, result in cells
        if (cell.contestant, cell.role) == ("cosine (shared)", "tune")
    ]
    summary = summarise(cells, suite)
    assert summary.best_shared == {"momentum": "step (shared)"}
    assert {"step (shared)", "cosine (shared)"} <= {row.second for row in summary.comparisons}


def test_falsifiers_fire() -> None:
    summary = few(offsets={CONTROLLER: 0.3})
    assert find(summary.comparisons, "momentum", CONTROLLER, "tuned per task").verdict == "loses"
    assert {outcome for statement, outcome in outcomes(summary).items() if statement[:5] not in ("schedu", "prodi")} >= {"fired"}
    assert outcomes(summary)["Fewer than 4 of 5 training seeds win"] == "fired"
    assert outcomes(summary)["Its test metric is worse than that of the schedule tuned per task"] == "fired"
    assert outcomes(summary)["A replay of its own average rates equals it"] == "fired"


def test_names_that_begin_like_a_rule_s_make_no_falsifiers() -> None:
    summary = few(offsets={CONTROLLER: -0.1, "SPS-mine": 0.0, "prodigy 2": 0.0})
    for name in ("SPS-mine", "prodigy 2"):
        assert f"{name} equals it" not in outcomes(summary)
    assert {"SPS equals it", "schedule-free equals it", "prodigy equals it"} <= set(outcomes(summary))


def test_a_search_on_other_seeds_than_all_others_is_left_out() -> None:
    suite = make_suite(tracks=("momentum",))
    cells = [
        (replace(cell, seeds=tuple(seed + 10_000 for seed in cell.seeds)), result)
        if (cell.contestant, cell.role, cell.task) == (POOL, "report", "task-0")
        else (cell, result)
        for cell, result in make_cells(suite, num_points=8, curves=False)
    ]
    summary = summarise(cells, suite)
    assert [row.task for row in summary.references if row.hindsight is None] == ["task-0"]
    assert [(row.task, row.contestant, row.problem[:8]) for row in summary.missing] == [("task-0", POOL, "ran on o")]


def test_equal_contestants_tie() -> None:
    def copied(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        noise = np.random.default_rng(cell.seeds[0] + cell.point.get("training_seed", 0)).normal(0, 0.05, len(result.scores))
        return (cell, replace(result, scores=-1 + noise)) if cell.contestant in (CONTROLLER, "tuned per task") else (cell, result)

    assert find(few(copied).comparisons, "momentum", CONTROLLER, "tuned per task").verdict == "ties"


def test_missing_cells_are_named_and_not_averaged_over() -> None:
    def dropped(cell: Cell, result: CellResult) -> tuple[Cell, CellResult] | None:
        is_controller = cell.contestant == CONTROLLER and cell.task == "task-1" and cell.point == {"training_seed": 3}
        return None if is_controller or (cell.task, cell.contestant, cell.role) == ("task-2", "SPS", "report") else (cell, result)

    summary = few(dropped)
    assert {(row.task, row.contestant, row.point) for row in summary.missing} == {("task-1", CONTROLLER, "training_seed 3"), ("task-2", "SPS", "")}
    standings = {row.contestant: row for row in summary.standings}
    for name in (CONTROLLER, "SPS"):
        assert (standings[name].finished, standings[name].interquartile_mean, standings[name].against_rival) == (2, None, None)
    assert standings["tuned per task"].finished == 3 and standings["tuned per task"].interquartile_mean is not None
    row = find(summary.comparisons, "momentum", CONTROLLER, "tuned per task")
    assert (row.tasks, row.expected) == (2, 3)
    assert not any((row.task, row.contestant) == ("task-1", CONTROLLER) for row in summary.entries)


def test_failed_cells_are_named() -> None:
    def broken(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        if (cell.task, cell.contestant) == ("task-0", "tuned per task"):
            empty = np.empty(0)
            return cell, CellResult(empty, empty, empty, None, None, None, 0.0, "it crashed")
        if (cell.task, cell.contestant) == ("task-1", "SPS") and cell.role == "report":
            return cell, replace(result, scores=np.full(10, np.nan))
        return cell, result

    summary = few(broken)
    assert ("task-0", "tuned per task", "it crashed") in {(row.task, row.contestant, row.problem) for row in summary.failed}
    assert any(row.contestant == "SPS" and "not finite" in row.problem for row in summary.failed)
    assert [row.scored for row in summary.references] == [False, True, True]
    assert find(summary.comparisons, "momentum", CONTROLLER, "tuned per task").tasks == 2


def test_a_training_seed_that_fails_everywhere_is_not_forgotten() -> None:
    def broken(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        empty = np.empty(0)
        is_one = cell.contestant == CONTROLLER and cell.point == {"training_seed": 3}
        return cell, CellResult(empty, empty, empty, None, None, None, 0.0, "it crashed") if is_one else result

    summary = few(broken)
    assert {row.task for row in summary.missing if row.contestant == CONTROLLER} == {"task-0", "task-1", "task-2"}
    standing = next(row for row in summary.standings if row.contestant == CONTROLLER)
    assert (standing.finished, standing.interquartile_mean) == (0, None)
    assert not any(row.first == CONTROLLER for row in summary.comparisons)


def test_curves_of_training_seeds_that_end_at_different_steps() -> None:
    def short(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        if cell.contestant == CONTROLLER and cell.point == {"training_seed": 3}:
            assert result.losses is not None and result.rates is not None
            return cell, replace(result, diverged=np.ones(len(cell.seeds), bool), losses=result.losses[:6], rates=result.rates[:5])
        return cell, result

    suite = make_suite(tracks=("momentum",))
    cells = [short(*pair) for pair in make_cells(suite, FEW, num_points=0, curves=True)]
    curves = {(row.task, row.contestant): row for row in summarise(cells, suite).curves}
    assert curves["task-0", CONTROLLER].steps == curves["task-0", "tuned per task"].steps


def test_other_seeds_are_left_out() -> None:
    def moved(cell: Cell, result: CellResult) -> tuple[Cell, CellResult]:
        is_moved = (cell.task, cell.contestant, cell.role) == ("task-0", "SPS", "report")
        return replace(cell, seeds=tuple(seed + 1 for seed in cell.seeds)) if is_moved else cell, result

    summary = few(moved)
    assert any(row.contestant == "SPS" and "other seeds" in row.problem for row in summary.missing)
    assert find(summary.comparisons, "momentum", CONTROLLER, "SPS").tasks == 2


def test_nothing_at_all() -> None:
    summary = summarise([], SUITE)
    assert summary.comparisons == summary.standings == summary.entries == ()
    assert len(summary.missing) == 2 * 2 * 3


def test_intervals_on_new_tasks_need_twenty() -> None:
    offsets = {name: OFFSETS[name] for name in ("default rate", "tuned per task", CONTROLLER)}
    for count, basis in ((19, "these tasks"), (20, "new tasks")):
        suite = make_suite(count, ("momentum",), reporting=3)
        summary = summarise(make_cells(suite, offsets, 0, training_seeds=2, curves=False), suite)
        (row,) = [row for row in summary.comparisons if row.second == "tuned per task"]
        assert (row.basis, row.tasks, row.training_seeds) == (basis, count, 2)
        bases = {(row.basis, row.training_seeds) for row in summary.standings}
        assert bases == {(basis, 2), (basis, 0)}


def test_results_of_other_suites_are_passed_over() -> None:
    suite = make_suite(2, ("momentum",))
    cells = list(make_cells(suite, {name: OFFSETS[name] for name in ("default rate", "tuned per task")}, 0, curves=False))
    strangers = [(replace(cell, suite="synthetic-2"), replace(result, scores=result.scores + 9)) for cell, result in cells]
    assert summarise(cells + strangers, suite).to_json() == summarise(cells, suite).to_json()


def test_json(summary: Summary) -> None:
    data = json.loads(summary.to_json())
    assert "curves" not in data
    assert data["comparisons"][0]["ratio"]["estimate"] == summary.comparisons[0].ratio.estimate
    assert len(data["standings"]) == len(summary.standings)


def test_budgets(summary: Summary) -> None:
    budgets = {(row.track, row.contestant): row for row in summary.budgets}
    row = budgets["momentum", "tuned per task"]
    assert (row.points, row.tuning_trainings, row.reporting_trainings, row.training_runs) == (6, 3 * 6 * 4, 30, 0)
    assert row.tuning_seconds == pytest.approx(3 * 6 * 1.5)
    ours = budgets["momentum", CONTROLLER]
    assert (ours.points, ours.reporting_trainings, ours.training_runs) == (0, 150, 5)


@pytest.mark.parametrize("is_published", [False, True])
def test_extra_forward_passes_are_for_each_step_of_trainings_that_ended(is_published: bool) -> None:
    suite = make_suite(2, ("momentum",), reporting=3)
    changed = []
    for cell, result in make_cells(suite, {name: OFFSETS[name] for name in ("default rate", "tuned per task", "SPS")}, 0):
        if cell.contestant == "SPS" and cell.role == "report" and cell.task == "task-0":
            result = replace(result, extra_forward_passes=np.array([70.0, 120.0, 120.0]), diverged=np.array([True, False, False]))  # 60 steps each
        changed.append((cell, replace(result, losses=None, rates=None) if is_published else result))
    passes = {row.contestant: row.extra_forward_passes for row in summarise(changed, suite).budgets}
    assert passes == {"SPS": 2.0, "default rate": None, "tuned per task": None}


def test_steps_to_target_by_hand() -> None:
    nan = np.nan
    losses = np.array([[9, 9, 9, 9], [7, 1, 9, 9], [5, 9, nan, 5], [3, 9, nan, 5], [1, 9, nan, 5]], float)
    # Means of two: 8, 6, 4, 2 and 5, 5, 9, 9 and 9, nan, nan, nan and 9, 7, 5, 5, after steps 1 to 4.
    for target, expected in ((5.0, [3, np.inf, np.inf, np.inf]), (5.1, [3, 1, np.inf, 3]), (100.0, [1, 1, 1, 1])):
        np.testing.assert_array_equal(steps_to_target(losses, target, 40), expected)
    np.testing.assert_array_equal(steps_to_target(losses, 5.0, 4), [3, 1, np.inf, np.inf])  # a window of one loss
    np.testing.assert_array_equal(steps_to_target(losses, 5.0, 200), [np.inf] * 4)  # all ended before a window was full
    np.testing.assert_array_equal(steps_to_target(losses, 5.0, 400, steps_per_action=10), [30, np.inf, np.inf, np.inf])
    np.testing.assert_array_equal(steps_to_target(losses, 5.0, 38, steps_per_action=10), [30, 10, np.inf, np.inf])
    assert steps_to_target(losses[:, :1], 2.0, 38, steps_per_action=10) == 38  # the last decision has fewer steps


def test_steps_to_target_are_medians_over_all_trainings(cells: Cells, summary: Summary) -> None:
    reference = {(row.track, row.task): row.default for row in summary.references}
    counts: Counter[str] = Counter()
    for row in summary.entries:
        if row.contestant == "best in hindsight":
            assert row.steps_to_target is None
            continue
        default = reference[row.track, row.task]
        assert default is not None
        found = []
        for cell, result in cells:
            if (cell.track, cell.task, cell.contestant, cell.role) == (row.track, row.task, row.contestant, "report"):
                assert result.losses is not None
                for curve in result.losses.T:
                    reached = [step for step in range(2, len(curve)) if np.mean(curve[step - 2 : step + 1]) < 10**default]
                    found.append(reached[0] if reached else np.inf)
        assert row.steps_to_target == np.median(found)
        counts["never" if np.isinf(np.median(found)) else "reached"] += 1
    assert counts["never"] and counts["reached"]


def test_curves(cells: Cells, summary: Summary) -> None:
    row = next(row for row in summary.curves if (row.track, row.task, row.contestant) == ("momentum", "task-0", CONTROLLER))
    rates = np.concatenate(
        [
            result.rates
            for cell, result in cells
            if (cell.track, cell.task, cell.contestant) == ("momentum", "task-0", CONTROLLER) and result.rates is not None
        ],
        1,
    )
    for quartile, expected in zip(row.rates, (25, 50, 75), strict=True):
        np.testing.assert_allclose(quartile, [np.percentile(rates[step], expected) for step in row.steps])


def test_optimizers_are_compared_on_shared_tasks(cells: Cells, summary: Summary) -> None:
    means = {
        (track, name): np.mean([scores(cells, track, task.name, name).mean() for task in SUITE.tasks])
        for track, name in product(SUITE.tracks, OFFSETS)
        if ": " not in name and name != "random policy"
    }
    assert {(row.track, row.contestant): row.score for row in summary.optimizers} == pytest.approx(means)
    assert [row.score for row in summary.optimizers] == sorted(means.values())
    assert summary.optimizers[-1].ratio == pytest.approx(100 * (10 ** (max(means.values()) - min(means.values())) - 1))
