"""The store of results: what is kept, claims, damage, full disks."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from benchmarks.records import Cell, CellResult
from benchmarks.store import Store, StoreError
from tests.benchmark_runs import fake_result

CELL = Cell("tiny-1", "momentum", "wine-mlp", {"horizon": 5}, "SPS", "abc", "report", {"constant": 0.1}, (3, 7))
OTHER = dataclasses.replace(CELL, contestant="other", identity="def")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as store:
        yield store


def assert_equal(first: CellResult | None, second: CellResult) -> None:
    assert first is not None
    for name, value in vars(second).items():
        np.testing.assert_allclose(getattr(first, name), value, rtol=1e-7) if isinstance(value, np.ndarray) else None
        assert isinstance(value, np.ndarray) or getattr(first, name) == value


def test_a_result_comes_back_as_it_was(path: Path, store: Store) -> None:
    result = dataclasses.replace(fake_result(CELL), test_metrics=np.array([0.5, np.nan]), diverged=np.array([True, False]))
    store.save(CELL, result)
    store.close()
    with Store(path) as reopened:
        assert_equal(reopened.find(CELL), result)
        [(cell, again)] = reopened.cells()
    assert cell == CELL
    assert_equal(again, result)
    np.testing.assert_array_equal(again.scores, result.scores)  # to the last bit


@pytest.mark.parametrize(
    "change", [{"suite": "tiny-2"}, {"identity": "x"}, {"setting": {"horizon": 6}}, {"seeds": (3, 8)}, {"point": {"constant": 0.2}}, {"role": "tune"}]
)
def test_whatever_changes_is_another_result(store: Store, change: dict[str, object]) -> None:
    store.save(CELL, fake_result(CELL))
    changed = dataclasses.replace(CELL, **change)  # type: ignore[arg-type]
    assert changed.key != CELL.key
    assert store.find(changed) is None
    if "suite" not in change:
        assert changed.trainings != CELL.trainings
        assert store.find_equal(changed) is None


def test_the_same_trainings_are_found_under_another_name(store: Store) -> None:
    renamed = dataclasses.replace(CELL, contestant="tuned per task", suite="other-1", task="same")
    store.save(CELL, dataclasses.replace(fake_result(CELL), losses=None, rates=None))
    assert store.find(renamed) is None
    assert_equal(store.find_equal(renamed), dataclasses.replace(fake_result(CELL), losses=None, rates=None))
    assert store.find_equal(renamed, with_curves=True) is None
    store.save(OTHER, dataclasses.replace(fake_result(CELL), error="crashed"))
    assert store.find_equal(OTHER) is None


def test_a_later_result_takes_the_place_of_an_error(store: Store) -> None:
    store.save(CELL, dataclasses.replace(fake_result(CELL), error="crashed"))
    found = store.find(CELL)
    assert found is not None
    assert found.error == "crashed"
    store.save(CELL, fake_result(CELL))
    assert_equal(store.find(CELL), fake_result(CELL))
    assert len(list(store.cells())) == 1


def test_a_suite_holds_what_the_last_run_of_each_contestant_was_about(store: Store) -> None:
    tuned = dataclasses.replace(CELL, point={"constant": 0.2})
    store.save_all([(cell, fake_result(cell)) for cell in (CELL, OTHER, tuned)])
    store.record([CELL, OTHER])
    store.record([tuned])
    assert {cell.key for cell, _ in store.cells("tiny-1")} == {tuned.key, OTHER.key}
    assert list(store.cells("tiny-2")) == []
    assert store.suites() == ["tiny-1"]


def test_all_results_of_a_population_are_kept_or_none(store: Store) -> None:
    broken = dataclasses.replace(fake_result(OTHER), seconds=None)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.save_all([(CELL, fake_result(CELL)), (OTHER, broken)])
    assert store.find(CELL) is None


def test_a_claim_keeps_others_away_until_its_owner_has_gone(path: Path, store: Store) -> None:
    with Store(path) as other:
        assert other.claim([CELL, OTHER])
        assert not store.claim([OTHER])
        assert store.claim([dataclasses.replace(CELL, seeds=(1,))])
        other.save(OTHER, fake_result(OTHER))
        assert store.claim([OTHER])
        assert not store.claim([CELL])
    assert store.claim([CELL])


def claim_and_wait(path: Path, ready: Event) -> None:
    store = Store(path)
    assert store.claim([CELL])
    ready.set()
    time.sleep(600)


def test_the_claims_of_a_killed_process_are_void(path: Path, store: Store) -> None:
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=claim_and_wait, args=(path, ready))
    process.start()
    assert ready.wait(300)
    assert not store.claim([CELL])
    process.kill()
    process.join()
    assert store.claim([CELL])


def test_a_damaged_result_is_said_and_left_out(path: Path, store: Store) -> None:
    store.save_all([(CELL, fake_result(CELL)), (OTHER, fake_result(OTHER))])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE cells SET result = zeroblob(10) WHERE key = ?", (CELL.key,))
    connection.close()
    assert store.find(CELL) is None
    assert "SPS" in store.damaged[0]
    assert [cell for cell, _ in store.cells()] == [OTHER]
    store.save(CELL, fake_result(CELL))
    assert_equal(store.find(CELL), fake_result(CELL))


def test_a_damaged_file_is_refused_in_words(path: Path, store: Store) -> None:
    store.save_all([(dataclasses.replace(CELL, seeds=(seed, 1)), fake_result(CELL)) for seed in range(30)])
    store.close()
    content = bytearray(path.read_bytes())
    path.write_bytes(b"no store " + content[9:])
    with pytest.raises(StoreError, match=r"damaged or no store.*recover"):
        Store(path)
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged or no store.*recover"):
        Store(path)


def test_a_store_of_another_version_is_refused(path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreError, match="version 9"):
        Store(path)


def test_a_full_disk_is_said_and_leaves_what_is_stored(store: Store) -> None:
    store.save(CELL, fake_result(CELL))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk
    large = dataclasses.replace(fake_result(OTHER), losses=np.random.default_rng(0).uniform(size=(10_000, 2)))
    with pytest.raises(StoreError, match=r"can't be written: .*full.*Make room"):
        store.save(OTHER, large)
    assert_equal(store.find(CELL), fake_result(CELL))
    assert store.find(OTHER) is None
