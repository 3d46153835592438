"""The store of results: what is kept, claims, damage, full disks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lr_bench import store as store_module
from benchmarks.lr_bench.records import Cell, CellResult
from benchmarks.lr_bench.store import Store, StoreError
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
    result = dataclasses.replace(result, extra_forward_passes=np.array([3.0, 4.5]))
    store.save(CELL, result)
    store.close()
    with Store(path) as reopened:
        assert_equal(reopened.find(CELL), result)
        [(cell, again)] = reopened.cells()
    assert cell == CELL
    assert_equal(again, result)
    np.testing.assert_array_equal(again.scores, result.scores)  # to the last bit


def test_an_exported_store_lacks_nothing_but_curves(path: Path, store: Store, tmp_path: Path) -> None:
    long = dataclasses.replace(fake_result(CELL), losses=np.random.default_rng(0).normal(size=(2000, 2)), rates=np.ones((1999, 2)))
    store.save(CELL, long)
    store.save(OTHER, dataclasses.replace(fake_result(OTHER), error="crashed"))
    store.record([CELL, OTHER])
    store.record_run(CELL.suite, "lr-bench run", ["other"])
    store.claim([dataclasses.replace(CELL, seeds=(1, 2))])
    copied = tmp_path / "published.sqlite"
    store.export(copied)
    assert copied.stat().st_size < path.stat().st_size
    with Store(copied) as other:
        assert_equal(other.find(CELL), dataclasses.replace(long, losses=None, rates=None))
        assert [cell for cell, _ in other.cells(CELL.suite)] == [cell for cell, _ in store.cells(CELL.suite)]
        assert other.entered(CELL.suite) == ["other"]
        assert other.machines() == store.machines()
        assert other.find_equal(CELL, with_curves=True) is None
        assert other.claim([dataclasses.replace(CELL, seeds=(1, 2))])
        assert not other.damaged
    assert_equal(store.find(CELL), long)
    with pytest.raises(StoreError, match="exists already"):
        store.export(copied)
    with pytest.raises(StoreError, match="can't be written"):
        store.export(copied / "published.sqlite")


@pytest.mark.parametrize("name", ["published.sqlite", "published.sqlite.xz"])
def test_results_are_taken_over_where_there_are_none(store: Store, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = dataclasses.replace(CELL, seeds=(1, 2))
    mine = dataclasses.replace(fake_result(CELL), seconds=77.0)
    with monkeypatch.context() as elsewhere, Store(tmp_path / "theirs" / "results.sqlite") as theirs:
        elsewhere.setattr(store_module, "_machine", lambda: '{"node": "elsewhere"}')
        theirs.save_all([(CELL, fake_result(CELL)), (OTHER, fake_result(OTHER)), (failed, dataclasses.replace(fake_result(failed), error="crashed"))])
        theirs.record([CELL, OTHER])
        theirs.record_run(CELL.suite, "lr-bench run", ["other"])
        theirs.record_training_costs({"other": "an hour"})
        theirs.export(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"SQLite" if name.endswith("sqlite") else b"\xfd7zXZ")
    store.save(CELL, mine)
    store.record_run(CELL.suite, "lr-bench run --controllers mine", ["mine"])
    for _ in range(2):  # as a run that goes on does
        store.take_over(tmp_path / name)
    assert_equal(store.find(CELL), mine)
    assert_equal(store.find(OTHER), dataclasses.replace(fake_result(OTHER), losses=None, rates=None))
    assert store.find(failed) is None
    assert [cell for cell, _ in store.cells(CELL.suite)] == [CELL, OTHER]
    assert store.entered(CELL.suite) == ["mine", "other"]
    assert store.training_costs() == {"other": "an hour"}
    assert [machine["node"] for machine in store.machines()][1:] == ["elsewhere"]
    connection = sqlite3.connect(store.path)
    query = "SELECT description FROM cells JOIN machines ON machine = id WHERE cells.key = ?"
    assert connection.execute(query, (OTHER.key,)).fetchone() == ('{"node": "elsewhere"}',)
    connection.close()
    assert (tmp_path / name).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "results.sqlite", "results.sqlite.owners", "theirs"])


def test_what_can_t_be_taken_over_is_said_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    store.save(CELL, fake_result(CELL))
    with Store(tmp_path / "theirs.sqlite") as theirs:
        theirs.save(OTHER, fake_result(OTHER))
        theirs.export(tmp_path / "whole.xz")
        theirs.export(tmp_path / "old.sqlite")
    (tmp_path / "cut.xz").write_bytes((tmp_path / "whole.xz").read_bytes()[:-100])
    (tmp_path / "words.xz").write_text("words")
    (tmp_path / "words.sqlite").write_text("words" * 1000)
    old = sqlite3.connect(tmp_path / "old.sqlite")
    old.execute("PRAGMA user_version = 1")
    old.close()
    for name, message in (
        ("missing.xz", "No such file"),
        ("cut.xz", "ended before"),
        ("words.xz", "not supported"),
        ("words.sqlite", "not a database"),
        ("old.sqlite", "version 1, but 2"),
    ):
        with pytest.raises(StoreError, match=f"taken over from .*{name}: .*{message}"):
            store.take_over(tmp_path / name)
    assert [cell for cell, _ in store.cells()] == [CELL]
    store.take_over(tmp_path / "whole.xz")
    assert len(list(store.cells())) == 2


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


def test_what_was_said_of_other_code_is_forgotten(store: Store) -> None:
    elsewhere = dataclasses.replace(OTHER, task="digits-mlp")
    changed = dataclasses.replace(OTHER, identity="changed")
    store.save_all([(cell, fake_result(cell)) for cell in (CELL, OTHER, elsewhere, changed)])
    store.record([CELL, OTHER, elsewhere])
    store.forget("tiny-1", {"other": {"def"}})
    assert {cell.key for cell, _ in store.cells("tiny-1")} == {CELL.key, OTHER.key, elsewhere.key}
    store.forget("tiny-1", {"other": {"changed"}})
    store.record([changed])  # and then it is interrupted
    assert {cell.key for cell, _ in store.cells("tiny-1")} == {CELL.key, changed.key}
    assert store.find(OTHER) is not None


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


OLD_SCHEMA = """
CREATE TABLE machines (id INTEGER PRIMARY KEY, description TEXT NOT NULL UNIQUE);
CREATE TABLE cells (
    key TEXT PRIMARY KEY, trainings TEXT NOT NULL, suite TEXT NOT NULL, cell TEXT NOT NULL, result BLOB NOT NULL, checksum TEXT NOT NULL,
    has_curves INTEGER NOT NULL, error TEXT, seconds REAL NOT NULL, finished REAL NOT NULL, machine INTEGER NOT NULL REFERENCES machines(id)
);
CREATE INDEX cells_of_trainings ON cells (trainings);
CREATE TABLE claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE entries (
    suite TEXT NOT NULL, track TEXT NOT NULL, contestant TEXT NOT NULL, task TEXT NOT NULL, keys TEXT NOT NULL,
    PRIMARY KEY (suite, track, contestant, task)
);
CREATE TABLE training_costs (contestant TEXT PRIMARY KEY, cost TEXT NOT NULL);
PRAGMA user_version = 2;
"""
"""Of stores that were written before runs, commits and extra forward passes were recorded."""


def old_row(cell: Cell, result: CellResult) -> tuple[object, ...]:
    buffer = io.BytesIO()
    values = {name: value for name, value in vars(result).items() if value is not None and name != "extra_forward_passes"}
    np.savez_compressed(buffer, allow_pickle=False, **values)
    content = buffer.getvalue()
    own = cell.key, cell.trainings, cell.suite, json.dumps(cell.to_dict()), content, hashlib.sha256(content).hexdigest()
    return (*own, True, None, result.seconds, 0.0, 1)


def test_an_older_store_is_taken_over_where_it_lies_and_its_writers_can_go_on(path: Path) -> None:
    insert = "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    result = dataclasses.replace(fake_result(CELL), losses=None, rates=None)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(OLD_SCHEMA)
    connection.execute("INSERT INTO machines VALUES (1, ?)", (json.dumps({"lr_env": "0.1.0", "torch": "2.12.0", "numpy": "2.4.6"}),))
    connection.execute(insert, old_row(CELL, result))
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (CELL.suite, CELL.track, CELL.contestant, CELL.task, json.dumps([CELL.key])))
    with Store(path) as store:
        assert_equal(store.find(CELL), result)
        assert [cell for cell, _ in store.cells("tiny-1")] == [CELL]
        assert (store.commands("tiny-1"), store.entered("tiny-1"), store.contestants("tiny-1")) == ([], [], ["SPS"])
        store.record_run("tiny-1", "lr-bench run --suite tiny", ["SPS"])
        store.save(OTHER, fake_result(OTHER))
        connection.execute(insert, old_row(dataclasses.replace(CELL, seeds=(9, 8)), result))  # a process of the old version, at the same time
        assert len(list(store.cells())) == 3
        assert store.versions()[0] == {"lr_env": "0.1.0", "torch": "2.12.0", "numpy": "2.4.6", "commit": None}
        assert len(store.versions()) == 2
    connection.close()
    with Store(path) as again:
        assert again.commands("tiny-1") == ["lr-bench run --suite tiny"]


def test_runs_are_recorded_each_once_with_who_was_entered_in_their_order(store: Store) -> None:
    first, second = ("lr-bench run --controllers z.py:Zed,a.py:Ada", ["Zed", "Ada"]), ("lr-bench run --controllers a.py:Ada,b.py:Bea", ["Ada", "Bea"])
    for command, entered in (first, second, first):
        store.record_run("tiny-1", command, entered)
    store.record_run("other-1", "lr-bench run", [])
    assert store.commands("tiny-1") == [first[0], second[0]]
    assert store.entered("tiny-1") == ["Zed", "Ada", "Bea"]
    assert (store.commands("other-1"), store.entered("other-1")) == (["lr-bench run"], [])


def test_results_of_another_commit_are_of_another_version(path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(CELL, fake_result(CELL))
    assert store.versions() == store.versions_with_this()
    description = json.loads(store_module._machine())
    assert description.get("commit") == store_module._commit()
    monkeypatch.setattr(store_module, "_machine", lambda: json.dumps(description | {"commit": "another"}))
    assert len(store.versions()) == 1
    assert len(store.versions_with_this()) == 2
    store.save(OTHER, fake_result(OTHER))
    assert [versions["commit"] for versions in store.versions()] == [description.get("commit"), "another"]
    monkeypatch.setattr(store_module, "_machine", lambda: json.dumps(description | {"commit": "another", "node": "elsewhere"}))
    store.save(OTHER, fake_result(OTHER))
    assert len(store.versions()) == 2


def test_the_commit_is_that_of_the_checkout_that_holds_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        line = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    file = tmp_path / "store.py"
    file.write_text("first")
    monkeypatch.setattr(store_module, "__file__", str(file))
    assert store_module._commit() is None
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "of somebody else's project")
    assert store_module._commit() is None
    git("add", "store.py")
    git("commit", "--quiet", "--message", "first")
    assert store_module._commit() == git("rev-parse", "HEAD")
    file.write_text("changed")
    assert store_module._commit() == f"{git('rev-parse', 'HEAD')}-dirty"


def test_a_folder_that_is_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    with pytest.raises(StoreError, match=r"mine\.py/results\.sqlite can't be written: Not a directory\. Choose another --output"):
        Store(tmp_path / "mine.py" / "results.sqlite")


def test_a_full_disk_is_said_and_leaves_what_is_stored(store: Store) -> None:
    store.save(CELL, fake_result(CELL))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says on a full disk
    large = dataclasses.replace(fake_result(OTHER), losses=np.random.default_rng(0).uniform(size=(10_000, 2)))
    with pytest.raises(StoreError, match=r"can't be written: .*full.*Make room"):
        store.save(OTHER, large)
    assert_equal(store.find(CELL), fake_result(CELL))
    assert store.find(OTHER) is None
