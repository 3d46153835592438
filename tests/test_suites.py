"""Suites: frozen, and as large as they say."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.lr_bench.contestants import enter
from benchmarks.lr_bench.suites import LOWER_METRICS, NOISE, QUICK, STANDARD, SUITES, Suite, SuiteTask, find_suite
from lr_env.tasks import PERPLEXITY, SQUARED_ERROR, Task
from lr_env.tasks.datasets import is_available
from lr_env.tasks.families import SMALL, SMALL_HELD_OUT

DIGESTS = {
    "smoke": "d9bd0a10d287df1df60b4915e756e2b28d94124ee5e1d02d5f0fb89a99b85162",
    "quick": "49388d882522c4da750b9fe3cec2c2178f6a015f8285818c587f6c0c53b1f32e",
    "standard": "cfb8c6680e45c6157a323db28d96c093f750e894232bed1eb95f3ab6f3cfbf12",
    "full": "ce8f06a48bc0e672f4a76dbbd36c97cc0c759c6cac4648c9fe66efd78dbb988c",
}
"""A suite never changes: what would change one is a new version, with a new digest beside the old one's results."""


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_frozen(name: str) -> None:
    assert SUITES[name].digest == DIGESTS[name]


def has_data(task: SuiteTask) -> bool:
    return all(is_available(name) for name in task.data_sets)


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_tasks_are_what_they_are_called(suite: Suite) -> None:
    assert len({task.name for task in suite.tasks}) == len(suite.tasks)
    for task in filter(has_data, suite.tasks):
        family = task.family()
        assert family is task.family()
        [variant] = family.variants
        assert isinstance(variant, Task)
        batch_size = task.batch_size or variant.batch_size
        assert variant.batch_size == batch_size
        is_noisy = batch_size <= 16 or task.horizon >= 5000
        assert task.budget == ("noise" if is_noisy else "short" if task.horizon < 300 else "medium"), task.name
        assert family.optimizers == (None,)
        assert task.tuning >= 1
        assert 2 <= task.searching <= task.reporting


def test_the_standard_suite_is_held_out_and_large_enough() -> None:
    assert len(STANDARD.tasks) >= 20
    assert {task.budget for task in STANDARD.tasks} == {"short", "medium", "noise"}
    assert STANDARD.tracks == ("momentum", "adamw")
    for specification in (SMALL_HELD_OUT, NOISE):
        assert not set(specification.activations) & set(SMALL.activations)


def test_every_task_of_what_is_published_has_ten_reported_trainings() -> None:
    assert all(task.reporting >= 10 for suite in (STANDARD, SUITES["full"]) for task in suite.tasks)


def test_it_is_known_which_metrics_are_better_where_they_are_lower() -> None:
    for task in filter(has_data, {task.source: task for suite in SUITES.values() for task in suite.tasks}.values()):
        variant = task.family().variants[0]
        assert isinstance(variant, Task)
        lower = variant.metric is not None and variant.metric in (PERPLEXITY, SQUARED_ERROR)
        assert lower == (task.source in LOWER_METRICS), task.source


def test_the_quick_suite_needs_no_download() -> None:
    assert all(has_data(task) for task in QUICK.tasks)
    assert {"digits", "breast-cancer", "wine", "diabetes"} >= {name for task in QUICK.tasks for name in task.data_sets}


def test_missing_data_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.lr_bench.suites.is_available", lambda name: name != "mnist")
    QUICK.check_data()
    with pytest.raises(ValueError, match=r"mnist\. Set LR_ENV_DATA"):
        STANDARD.check_data()


def test_what_matters_changes_the_digest_and_what_does_not_leaves_it() -> None:
    faster = dataclasses.replace(QUICK.tasks[0], microseconds=1.0, side_by_side=2)
    longer = dataclasses.replace(QUICK.tasks[0], horizon=101)
    assert dataclasses.replace(QUICK, tasks=(faster, *QUICK.tasks[1:])).digest == QUICK.digest
    assert dataclasses.replace(QUICK, tasks=(longer, *QUICK.tasks[1:])).digest != QUICK.digest
    assert dataclasses.replace(QUICK, leaves_out=()).digest != QUICK.digest


def test_numbers_of_reported_trainings_can_be_chosen() -> None:
    assert {(task.reporting, task.searching) for task in QUICK.with_reporting(3).tasks} == {(3, 3)}
    assert QUICK.with_reporting(None) is QUICK
    with pytest.raises(ValueError, match="At least 2 seeds"):
        QUICK.with_reporting(1)


def test_an_unknown_suite_is_said() -> None:
    with pytest.raises(ValueError, match=r"Unknown suite 'standart'\. Did you mean 'standard'"):
        find_suite("standart")


def test_every_suite_has_the_rivals_that_scores_need() -> None:
    for suite in SUITES.values():
        names = {contestant.name for contestant in enter([], suite)}
        assert names >= {"constant (shared)", "cosine (shared)", "tuned per task", "SPS", "default rate", "random search", "random policy"}


def test_grids_are_centred_where_a_range_test_was_made() -> None:
    for suite in (QUICK, STANDARD):
        for task in suite.tasks:
            assert set(task.centres) == {*suite.tracks, *suite.other_optimizers}
    moved = dataclasses.replace(QUICK.tasks[0], centres={"momentum": 0.0})
    assert dataclasses.replace(QUICK, tasks=(moved, *QUICK.tasks[1:])).digest != QUICK.digest


def test_a_task_may_have_its_own_number_of_examples() -> None:
    assert {STANDARD.examples_of(task) for task in STANDARD.tasks} == {4096, 1024}
    assert [task.name for task in STANDARD.tasks if STANDARD.examples_of(task) == 1024] == ["shakespeare-transformer"]
