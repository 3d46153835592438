"""Suites: frozen, and as large as they say."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.contestants import enter
from benchmarks.suites import NOISE, QUICK, STANDARD, SUITES, Suite, SuiteTask, find_suite
from lr_env.tasks import Task
from lr_env.tasks.datasets import is_available
from lr_env.tasks.families import SMALL, SMALL_HELD_OUT

DIGESTS = {
    "smoke": "ce19c84066095b6eeebd2ef16de3ce168d472bb4161bcb6a2b5f6c9089cfb764",
    "quick": "23c1512c398cc6c8ed3a2c84a4ce7726bc55f2e6bd52dfb850dada4029d8f3fe",
    "standard": "f9e0bdfe4644a8f59f8e5d03e4e188dfd2cc3a3374933ab75b018efe501abbef",
    "full": "cbb0203197a82ccd84da94758237bc55b6bdd48b4e8caf36d56e3f24919c6f1b",
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
        assert task.reporting >= 2


def test_the_standard_suite_is_held_out_and_large_enough() -> None:
    assert len(STANDARD.tasks) >= 20
    assert {task.budget for task in STANDARD.tasks} == {"short", "medium", "noise"}
    assert STANDARD.tracks == ("momentum", "adamw")
    for specification in (SMALL_HELD_OUT, NOISE):
        assert not set(specification.activations) & set(SMALL.activations)


def test_the_quick_suite_needs_no_download() -> None:
    assert all(has_data(task) for task in QUICK.tasks)
    assert {"digits", "breast-cancer", "wine", "diabetes"} >= {name for task in QUICK.tasks for name in task.data_sets}


def test_missing_data_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suites.is_available", lambda name: name != "mnist")
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
    assert {task.reporting for task in QUICK.with_reporting(4).tasks} == {4}
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
