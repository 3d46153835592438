"""Where results are kept: one SQLite file, which processes may share and which survives their death at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import lzma
import os
import platform
import shutil
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from benchmarks.lr_bench.records import Cell, CellResult
from lr_env import __version__

FORMAT_VERSION = 2
PATIENCE = 60.0
"""Seconds that a process waits for another's transaction."""

VERSIONS = ("lr_env", "torch", "numpy", "commit")
"""Of what computes results, as machines' descriptions hold them."""

_SCHEMA = """
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
"""

_ADDITIONS = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, suite TEXT NOT NULL, command TEXT NOT NULL, entered TEXT NOT NULL, UNIQUE (suite, command, entered)
);
"""
"""What older stores of this version lack; what they were written by can still use them with it."""

_TAKING_OVER = """
INSERT OR IGNORE INTO machines (description) SELECT description FROM given.machines ORDER BY id;
INSERT OR IGNORE INTO cells
    SELECT key, trainings, suite, cell, result, checksum, has_curves, error, seconds, finished, machines.id
    FROM given.cells JOIN given.machines AS theirs ON theirs.id = machine JOIN machines USING (description)
    WHERE error IS NULL;
INSERT OR IGNORE INTO entries SELECT suite, track, contestant, task, keys FROM given.entries;
INSERT OR IGNORE INTO training_costs SELECT contestant, cost FROM given.training_costs;
INSERT OR IGNORE INTO runs (suite, command, entered) SELECT suite, command, entered FROM given.runs ORDER BY id;
"""


class StoreError(RuntimeError):
    """The file is damaged or foreign, or nothing can be written."""


class Store:
    """Results of cells, in a file.

    Whoever computes a cell claims it before; the claims of a process that has died are void. A process proves that it lives by the lock on a
    file of its own beside the store, which the system lets go of when the process ends, however it does.

    Args:
        path: The file; made where there is none.

    Raises:
        StoreError: If it is damaged, or no store of this version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damaged: list[str] = []
        self._owners = self.path.with_name(f"{self.path.name}.owners")
        try:
            self._owners.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} can't be written: {error.strerror}. Choose another --output.") from error
        try:
            self._connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            with self._transaction():
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0 and not self._connection.execute("SELECT name FROM sqlite_master").fetchall():
                    self._execute_all(_SCHEMA)
                    version = FORMAT_VERSION
                    self._connection.execute(f"PRAGMA user_version = {version}")
                if version == FORMAT_VERSION:
                    self._execute_all(_ADDITIONS)
            problem = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise StoreError(self._advice(str(error))) from error
        if problem != "ok":
            raise StoreError(self._advice(problem))
        if version != FORMAT_VERSION:
            raise StoreError(f"{self.path} is of version {version}, but {FORMAT_VERSION} is needed. Choose another --output.")
        self._owner = uuid.uuid4().hex
        self._lock = FileLock(self._owners / self._owner)
        self._lock.acquire()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives up all claims."""
        if self._lock.is_locked:
            try:
                with self._transaction():
                    self._connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
            except StoreError:
                pass  # the claims are void without their owner
            self._lock.release()
            (self._owners / self._owner).unlink(missing_ok=True)
            self._connection.close()

    def save(self, cell: Cell, result: CellResult) -> None:
        """Keeps a result; see :meth:`save_all`."""
        self.save_all([(cell, result)])

    def save_all(self, results: Iterable[tuple[Cell, CellResult]]) -> None:
        """Keeps results, all of them or none, in place of older ones of their cells; their claims end.

        Raises:
            StoreError: If nothing can be written, such as on a full disk.
        """
        rows = []
        for cell, result in results:
            content = _pack(result)
            checksum = hashlib.sha256(content).hexdigest()
            own = cell.key, cell.trainings, cell.suite, json.dumps(cell.to_dict()), content, checksum
            rows.append((*own, result.losses is not None, result.error, result.seconds, time.time()))
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO machines (description) VALUES (?)", (_machine(),))
            (machine,) = self._connection.execute("SELECT id FROM machines WHERE description = ?", (_machine(),)).fetchone()
            self._connection.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [(*row, machine) for row in rows])
            self._connection.executemany("DELETE FROM claims WHERE key = ?", [row[:1] for row in rows])

    def find(self, cell: Cell) -> CellResult | None:
        """The result of a cell; None where there is none, or where what is kept is damaged, which :attr:`damaged` then says."""
        row = self._first("SELECT result, checksum FROM cells WHERE key = ?", (cell.key,))
        return None if row is None else self._unpacked(cell, *row)

    def find_equal(self, cell: Cell, with_curves: bool = False) -> CellResult | None:
        """The result of any cell without an error that has the same trainings, or None."""
        condition = "error IS NULL AND has_curves >= ?"
        row = self._first(f"SELECT result, checksum FROM cells WHERE trainings = ? AND {condition}", (cell.trainings, with_curves))
        return None if row is None else self._unpacked(cell, *row)

    def cells(self, suite: str | None = None) -> Iterator[tuple[Cell, CellResult]]:
        """All that is kept, or of one suite (``"standard-2"``) what the last run of each contestant was about on each task; not what is damaged."""
        keys = None
        if suite is not None:
            entries = self._execute("SELECT keys FROM entries WHERE suite = ? ORDER BY track, contestant, task", (suite,)).fetchall()
            keys = [key for (entry,) in entries for key in json.loads(entry)]
        query = "SELECT cell, result, checksum FROM cells"
        if keys is None:
            rows: Iterable[Any] = self._execute(f"{query} ORDER BY key", ())
        else:
            rows = (self._execute(f"{query} WHERE key = ?", (key,)).fetchone() for key in keys)
        for row in filter(None, rows):
            data = json.loads(row[0])
            cell = Cell(**{**data, "seeds": tuple(data["seeds"])})
            result = self._unpacked(cell, *row[1:])
            if result is not None:
                yield cell, result

    def contestants(self, suite: str) -> list[str]:
        """Those that a suite (``"standard-2"``) holds something of, in the order of their names."""
        return [name for (name,) in self._execute("SELECT DISTINCT contestant FROM entries WHERE suite = ? ORDER BY contestant", (suite,))]

    def suites(self) -> list[str]:
        """Names and versions of the suites that were run."""
        return [suite for (suite,) in self._execute("SELECT DISTINCT suite FROM entries ORDER BY suite", ())]

    def record(self, cells: Sequence[Cell]) -> None:
        """Says what the run of some contestants is about on some tasks: these cells, and no others of theirs there.

        Raises:
            StoreError: If nothing can be written.
        """
        keys: dict[tuple[str, str, str, str], list[str]] = {}
        for cell in cells:
            keys.setdefault((cell.suite, cell.track, cell.contestant, cell.task), []).append(cell.key)
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", [(*entry, json.dumps(found)) for entry, found in keys.items()]
            )

    def forget(self, suite: str, identities: Mapping[str, Collection[str]]) -> None:
        """Takes back what runs said of contestants that have had other code or files, so that no table mixes the two; the results are kept.

        Args:
            suite: Its name and version.
            identities: What each contestant is at present, see :attr:`Cell.identity`.

        Raises:
            StoreError: If nothing can be written.
        """
        with self._transaction():
            rows = self._connection.execute("SELECT track, contestant, task, keys FROM entries WHERE suite = ?", (suite,)).fetchall()
            for track, contestant, task, keys in rows:
                if contestant not in identities:
                    continue
                cells = [self._connection.execute("SELECT cell FROM cells WHERE key = ?", (key,)).fetchone() for key in json.loads(keys)]
                if any(json.loads(cell)["identity"] not in identities[contestant] for (cell,) in filter(None, cells)):
                    entry = suite, track, contestant, task
                    self._connection.execute("DELETE FROM entries WHERE suite = ? AND track = ? AND contestant = ? AND task = ?", entry)

    def claim(self, cells: Sequence[Cell]) -> bool:
        """Takes all of these cells for this process, or none, where another living process has claimed one of them.

        Raises:
            StoreError: If nothing can be written.
        """
        with self._transaction():
            for cell in cells:
                row = self._connection.execute("SELECT owner FROM claims WHERE key = ?", (cell.key,)).fetchone()
                if row is not None and row[0] != self._owner and self._is_alive(row[0]):
                    return False
            self._connection.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", [(cell.key, self._owner) for cell in cells])
        return True

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes a copy without curves, a small part of the size: a store like this one, which :meth:`take_over` reads.

        Args:
            path: The file; compressed where its name ends in ``.xz``.

        Raises:
            StoreError: If the file exists or nothing can be written.
        """
        target = Path(path)
        if target.exists():
            raise StoreError(f"{target} exists already. Choose another file, or move it away.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
                copy = Path(folder, "results.sqlite")
                self._write_without_curves(copy)
                if target.suffix == ".xz":
                    packed = copy.with_name("results.sqlite.xz")
                    with copy.open("rb") as source, lzma.open(packed, "wb", preset=9) as file:
                        shutil.copyfileobj(source, file)
                    copy = packed
                copy.replace(target)
        except (sqlite3.DatabaseError, OSError) as error:
            raise StoreError(f"{target} can't be written: {error}. Make room or choose another file.") from error

    def _write_without_curves(self, path: Path) -> None:
        self._connection.execute("VACUUM INTO ?", (os.fspath(path),))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            copy.execute("BEGIN")
            copy.execute("DELETE FROM claims")
            for key, content, checksum in copy.execute("SELECT key, result, checksum FROM cells WHERE has_curves").fetchall():
                if hashlib.sha256(content).hexdigest() != checksum:
                    continue  # damaged, and found to be so in the copy too
                short = _pack(dataclasses.replace(_unpack(content), losses=None, rates=None))
                row = short, hashlib.sha256(short).hexdigest(), key
                copy.execute("UPDATE cells SET result = ?, checksum = ?, has_curves = 0 WHERE key = ?", row)
            copy.execute("COMMIT")
            copy.execute("VACUUM")

    def take_over(self, path: str | os.PathLike[str]) -> None:
        """Takes results, and what runs were about, from a file of :meth:`export`, where this store has none; failed cells are not taken.

        Args:
            path: The file, which is left as it is.

        Raises:
            StoreError: If it is missing, damaged or no store of this version, or nothing can be written.
        """
        given = Path(path)
        with TemporaryDirectory() as folder:
            copy = Path(folder, "results.sqlite")
            try:
                with lzma.open(given) if given.suffix == ".xz" else given.open("rb") as source, copy.open("wb") as file:
                    shutil.copyfileobj(source, file)
                with contextlib.closing(sqlite3.connect(copy)) as connection:
                    version = connection.execute("PRAGMA user_version").fetchone()[0]
                    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if version != FORMAT_VERSION:
                    problem = f"it is of version {version}, but {FORMAT_VERSION} is needed"
            except (sqlite3.DatabaseError, lzma.LZMAError, EOFError, OSError) as error:
                problem = str(error)
            if problem != "ok":
                raise StoreError(f"Results can't be taken over from {given}: {problem}. `lr-bench export FOLDER FILE` writes what is needed.")
            self._connection.execute("ATTACH ? AS given", (os.fspath(copy),))
            try:
                with self._transaction():
                    self._execute_all(_TAKING_OVER)
            finally:
                self._connection.execute("DETACH given")

    def record_training_costs(self, costs: Mapping[str, str]) -> None:
        """Says what the training of learned contestants cost, in words, by name.

        Raises:
            StoreError: If nothing can be written.
        """
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO training_costs VALUES (?, ?)", list(costs.items()))

    def training_costs(self) -> dict[str, str]:
        """See :meth:`record_training_costs`."""
        return dict(self._execute("SELECT contestant, cost FROM training_costs ORDER BY contestant", ()).fetchall())

    def record_run(self, suite: str, command: str, entered: Sequence[str]) -> None:
        """Says how a suite is run, before it is: a run that is repeated, or goes on where it stopped, is one.

        Args:
            suite: Its name and version.
            command: As it was typed.
            entered: Contestants that the run is about, in the order in which they were given.

        Raises:
            StoreError: If nothing can be written.
        """
        with self._transaction():
            self._connection.execute(
                "INSERT OR IGNORE INTO runs (suite, command, entered) VALUES (?, ?, ?)", (suite, command, json.dumps(list(entered)))
            )

    def commands(self, suite: str) -> list[str]:
        """Of the runs of a suite, the first one first; runs of versions that did not record them are not among them."""
        return list(dict.fromkeys(command for (command,) in self._execute("SELECT command FROM runs WHERE suite = ? ORDER BY id", (suite,))))

    def entered(self, suite: str) -> list[str]:
        """Contestants that the runs of a suite are about, in the order in which they were first given."""
        rows = self._execute("SELECT entered FROM runs WHERE suite = ? ORDER BY id", (suite,))
        return list(dict.fromkeys(name for (names,) in rows for name in json.loads(names)))

    def machines(self) -> list[dict[str, Any]]:
        """Machines and versions that results come from."""
        return [json.loads(text) for (text,) in self._execute("SELECT description FROM machines ORDER BY id", ())]

    def versions(self) -> list[dict[str, Any]]:
        """Different versions of the code, by the names of :data:`VERSIONS`, that results come from; the commit is None where it is not known."""
        return _different_versions(self.machines())

    def versions_with_this(self) -> list[dict[str, Any]]:
        """The same, with those of this process."""
        return _different_versions([*self.machines(), json.loads(_machine())])

    def _is_alive(self, owner: str) -> bool:
        lock = FileLock(self._owners / owner)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        (self._owners / owner).unlink(missing_ok=True)
        return False

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction, which a process that dies leaves undone."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self._roll_back()
            raise StoreError(self._advice(str(error))) from error
        except BaseException:
            self._roll_back()
            raise

    def _execute_all(self, statements: str) -> None:
        for statement in filter(str.strip, statements.split(";")):
            self._connection.execute(statement)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _execute(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise StoreError(self._advice(str(error))) from error

    def _first(self, statement: str, values: tuple[Any, ...]) -> Any:
        try:
            return self._execute(statement, values).fetchone()
        except sqlite3.DatabaseError as error:  # what is damaged may be found only now
            raise StoreError(self._advice(str(error))) from error

    def _unpacked(self, cell: Cell, content: bytes, checksum: str) -> CellResult | None:
        if hashlib.sha256(content).hexdigest() == checksum:
            return _unpack(content)
        self.damaged.append(f"{cell.track}, {cell.task}, {cell.contestant} {dict(cell.point)}: what is stored is damaged")
        return None

    def _advice(self, problem: str) -> str:
        problem = " ".join(problem.split())
        if "full" in problem or "readonly" in problem or "unable to open" in problem or "locked" in problem:
            return f"{self.path} can't be written: {problem}. Make room or choose another --output; what is missing is computed in the next run."
        return (
            f"{self.path} is damaged or no store of results: {problem}. Move it away, or choose another --output; "
            f"`sqlite3 {self.path} .recover` may save what it holds."
        )


def _pack(result: CellResult) -> bytes:
    """As a compressed ``.npz``."""
    buffer = io.BytesIO()
    values = {name: value for name, value in vars(result).items() if value is not None}
    for name in ("losses", "rates"):
        if name in values:
            values[name] = values[name].astype(np.float32)
    np.savez_compressed(buffer, allow_pickle=False, **values)
    return buffer.getvalue()


def _unpack(content: bytes) -> CellResult:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        values: dict[str, Any] = {field.name: file.get(field.name) for field in fields(CellResult)}
    for name in ("seconds", "error"):
        values[name] = None if values[name] is None else values[name].item()
    values["steps_per_action"] = 1 if values["steps_per_action"] is None else int(values["steps_per_action"])  # older results lack it
    return CellResult(**values)


@cache
def _machine() -> str:
    """Machine and versions, as JSON."""
    description = {
        "node": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "lr_env": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    commit = _commit()
    return json.dumps(description if commit is None else description | {"commit": commit}, sort_keys=True)


def _processor() -> str:
    """The processor's name, where the system tells it, else its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that this code is of, with ``-dirty`` where files differ from it; None where it is no checkout of git."""
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed package may lie in somebody's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _different_versions(machines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for machine in machines:
        versions = {name: machine.get(name) for name in VERSIONS}
        if versions not in found:
            found.append(versions)
    return found
