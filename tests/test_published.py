"""The results of the suite `standard` that the repository publishes: whole, and of the present rivals and controllers."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import leaderboard
from benchmarks.lr_bench.contestants import enter, rivals
from benchmarks.lr_bench.store import Store
from benchmarks.lr_bench.suites import STANDARD
from benchmarks.throughput import make_tables, read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "standard"
PUBLISHED = RESULTS / "results.sqlite.xz"


OTHER_AGENTS = ("DDPG", "TD3", "SAC", "A2C", "DQN")


def controllers() -> list[str]:
    """What was entered, in the order of training seeds."""
    own = RESULTS / "controllers"
    files: dict[str, list[Path]] = {name: [] for name in ("DPI", "PPO", "PPO (5 seeds)", *OTHER_AGENTS)}
    for optimizer in STANDARD.tracks:
        files["DPI"].append(ROOT / "lr_env" / "pretrained" / f"{optimizer}.safetensors")
        files["PPO"].append(own / f"{optimizer}-0.safetensors")
        files["PPO (5 seeds)"] += [own / f"{optimizer}-{seed}.safetensors" for seed in range(5)]
        for name in OTHER_AGENTS:
            files[name].append(own / f"{name.lower()}-{optimizer}.safetensors")
    from_files = [f"{name}={','.join(map(str, paths))}" for name, paths in files.items()]
    return [*from_files, "online actor-critic=agents.actor_critic:OnlineActorCritic", f"schedule alone={own / 'base.py'}:schedule"]


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


def test_the_readme_shows_the_published_tables(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    leaderboard(RESULTS, readme)
    assert readme.read_text() == (ROOT / "README.md").read_text(), "run `lr-bench leaderboard`"


def test_the_published_tables_are_those_of_the_published_results(published: sqlite3.Connection) -> None:
    """Losses and verdicts: what takes no bootstrap over all contestants."""
    path = Path(published.execute("PRAGMA database_list").fetchone()[2])
    with Store(path) as store:
        scores: dict[tuple[str, str, str], list[float]] = {}
        for cell, result in store.cells(STANDARD.key):
            if cell.role == "report":
                scores.setdefault((cell.track, cell.task, cell.contestant), []).append(float(result.scores.mean()))
    with (RESULTS / "tables" / "answer.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["Opponent"] != "best in hindsight"]
    assert {row["Controller"] for row in rows} == {given.partition("=")[0] for given in controllers()}
    for row in rows:
        track = {"SGD + momentum": "momentum", "AdamW": "adamw"}[row["Optimizer"]]
        differences = [
            np.mean(scores[track, task.name, row["Controller"]]) - np.mean(scores[track, task.name, row["Opponent"]]) for task in STANDARD.tasks
        ]
        assert 100 * (10 ** np.mean(differences) - 1) == pytest.approx(float(row["Loss against it"]), abs=1e-6), row
        assert row["Tasks won"] == f"{sum(np.array(differences) < 0)} / {len(STANDARD.tasks)}"


THROUGHPUT_SHOWN = {
    "PyTorch loop with `DataLoader`": "PyTorch loop with DataLoader",
    "DACBench's `SGDEnv`": "DACBench's SGDEnv",
    "`gym.make`": "single, gym.make",
    "`gym.make`, `compile=True`": "single, gym.make, compiled",
    "Gymnasium's `AsyncVectorEnv` of 64, two cores": "AsyncVectorEnv N = 64",
    "Stable-Baselines3's `SubprocVecEnv` of 64, two cores": "SB3 SubprocVecEnv N = 64",
    "`gym.make_vec`, 64 members": "native N = 64",
    "`gym.make_vec`, 64 members, `compile=True`": "native N = 64, compiled",
    "`gym.make_vec`, 1,024 members, `compile=True`": "native N = 1024, compiled",
    "`agents.sb3.make_sb3_env`, 64 members, `compile=True`": "SB3 adapter N = 64, compiled",
    "`gym.make_vec`, 1,024 members, `compile=True, num_threads=2`, two cores": "native N = 1024, compiled, 2 threads",
}


def test_throughput_is_what_its_files_hold() -> None:
    results = read_results([ROOT / "benchmarks" / "results" / "throughput" / f"{name}.json" for name in ("mlp", "cnn", "transformer")])
    page, readme = ((ROOT / path).read_text() for path in ("benchmarks/README.md", "README.md"))
    for table in make_tables(results):
        assert table.to_markdown() in page
    measured = {result.row.name: result for result in results["mlp"]}
    for text, name in THROUGHPUT_SHOWN.items():
        assert f"| {text} | {measured[name].speed:,.0f} | {measured[name].ratio:.2f} |" in readme
