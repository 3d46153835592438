"""The results of the suite `standard` that the repository publishes: whole, and of the present rivals and controllers."""

from __future__ import annotations

import json
import lzma
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.lr_bench.contestants import enter, rivals
from benchmarks.lr_bench.suites import STANDARD

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "standard"
PUBLISHED = RESULTS / "results.sqlite.xz"


def controllers() -> list[str]:
    """What was entered, in the order of training seeds; the first one is the one that the package brings."""
    files: dict[str, list[Path]] = {"PPO": [], "PPO (5 seeds)": [], "DDPG": []}
    for optimizer in STANDARD.tracks:
        pretrained = ROOT / "lr_env" / "pretrained" / f"{optimizer}.safetensors"
        files["PPO"].append(pretrained)
        files["PPO (5 seeds)"] += [pretrained, *(RESULTS / "controllers" / f"{optimizer}-{seed}.safetensors" for seed in range(1, 5))]
        files["DDPG"].append(RESULTS / "controllers" / f"ddpg-{optimizer}.safetensors")
    return [f"{name}={','.join(map(str, paths))}" for name, paths in files.items()]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("published") / "results.sqlite"
    with lzma.open(PUBLISHED) as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    connection = sqlite3.connect(path)
    yield connection
    connection.close()


def test_a_run_that_starts_from_them_computes_no_rival_again(published: sqlite3.Connection) -> None:
    query = """SELECT DISTINCT json_extract(cell, '$.contestant'), json_extract(cell, '$.point'), json_extract(cell, '$.identity')
        FROM cells WHERE suite = ?"""
    known = {(name, point): identity for name, point, identity in published.execute(query, (STANDARD.key,))}
    entered = enter(controllers(), STANDARD)
    makers = {contestant.name: contestant.make for contestant in entered}
    assert {contestant.name for contestant in rivals(STANDARD)} <= {name for name, _ in known} <= set(makers)
    for (name, point), identity in known.items():
        assert makers[name].identity(json.loads(point)) == identity, f"{name} has other code than what is published: run it again"


def test_they_are_whole(published: sqlite3.Connection) -> None:
    assert published.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert published.execute("SELECT count(*) FROM cells WHERE error IS NOT NULL").fetchone() == (0,)
    seeds: dict[tuple[str, str], int] = {}
    for contestant, task, keys in published.execute("SELECT contestant, task, keys FROM entries WHERE suite = ?", (STANDARD.key,)):
        rows = [published.execute("SELECT cell FROM cells WHERE key = ?", (key,)).fetchone() for key in json.loads(keys)]
        assert all(rows), f"{contestant} lacks cells on {task}"
        cells = [json.loads(cell) for (cell,) in rows]
        seeds[contestant, task] = max(len(cell["seeds"]) for cell in cells if cell["role"] == "report")
    wanted = {task.name: task.reporting for task in STANDARD.tasks}
    tested = {(contestant, task): count for (contestant, task), count in seeds.items() if contestant != "random search"}
    assert {task for _, task in tested} == set(wanted)
    assert all(count == wanted[task] for (_, task), count in tested.items())
