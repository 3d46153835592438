"""The command lr-bench, as people type it."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.store import Store
from benchmarks.suites import find_suite

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("LR_BENCH_KILLS", "2"))
KILLED_SUITE = os.environ.get("LR_BENCH_KILLED_SUITE", "smoke")
"""How often a real run is killed, and of what suite: `LR_BENCH_KILLS=20 LR_BENCH_KILLED_SUITE=quick pytest tests/test_lr_bench.py -k killed -s`."""

TEN_LINES = """
import numpy as np
from lr_env import MDP

class Careful:
    mdp = MDP(features=["loss_trend"], action="relative")

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation > 0, -1.0, 0.1), state
"""


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def lr_bench(*arguments: str, folder: Path) -> str:
    line = [sys.executable, "-m", "benchmarks", *arguments]
    finished = subprocess.run(line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside of the repository, with a controller of ten lines that has been benchmarked."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.py").write_text(TEN_LINES)
    lr_bench("run", "--suite", "smoke", "--controllers", "mine.py:Careful", "--no-controls", "--workers", "1", "--output", "out", folder=folder)
    return folder


def run_here(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lr-bench", *arguments])
    command.main()


def test_a_controller_of_ten_lines_is_benchmarked_from_anywhere(folder: Path) -> None:
    assert (folder / "out" / "results.sqlite").is_file()


def test_a_second_run_takes_what_is_there_and_ends_with_the_same_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.engine.compute", lambda work: pytest.fail("computed again"))
    arguments = ("run", "--suite", "smoke", "--controllers", "mine.py:Careful", "--no-controls", "--workers", "1", "--output", "out")
    run_here(monkeypatch, folder, *arguments)
    shown = capsys.readouterr().out
    assert "Careful" in shown
    assert "tuned per task" in shown
    assert "problems" not in shown


def test_a_report_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(monkeypatch, folder, "report", "out")
    page = (folder / "out" / "report" / "report.html").read_text()
    assert "Careful" in page
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_two_contestants_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(monkeypatch, folder, "compare", "Careful", "SPS", "--output", "out")
    shown = capsys.readouterr().out
    assert "Careful − SPS" in shown
    assert "wine-mlp" in shown
    with pytest.raises(SystemExit, match=r"Unknown contestant 'Carefull'\. Did you mean 'Careful'"):
        run_here(monkeypatch, folder, "compare", "Carefull", "SPS", "--output", "out")


def test_numbers_that_scores_are_measured_by_are_frozen_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "references.json"
    path.write_text("{}")
    for module in ("benchmarks.suites", "benchmarks.__main__"):
        monkeypatch.setattr(f"{module}.REFERENCES", path)
    run_here(monkeypatch, folder, "freeze", "out")
    [(suite, tracks)] = json.loads(path.read_text()).items()
    assert (suite, set(tracks["momentum"])) == ("smoke-2", {"breast-cancer-mlp", "wine-mlp"})
    tracks["momentum"]["wine-mlp"] = {"default": 0.5, "rival": -0.5, "scored": True}
    path.write_text(json.dumps({suite: tracks}))
    run_here(monkeypatch, folder, "report", "out")
    rows = list(csv.DictReader((folder / "out" / "report" / "tables" / "tasks.csv").read_text().splitlines()))
    [row] = [row for row in rows if row["Task"] == "wine-mlp"]
    assert (row["D: default rate"], row["R: tuned per task"], row["Scored"]) == ("0.5", "-0.5", "yes")
    with pytest.raises(SystemExit, match="smoke-2 has frozen numbers"):
        run_here(monkeypatch, folder, "freeze", "out")


def test_what_training_cost_stands_in_the_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("run", "--suite", "smoke", "--controllers", "mine.py:Careful", "--no-controls", "--workers", "1", "--output", "out")
    run_here(monkeypatch, folder, *arguments, "--training-costs", "Careful=an afternoon, of a person")
    run_here(monkeypatch, folder, "report", "out")
    table = (folder / "out" / "report" / "tables" / "budgets.csv").read_text()
    assert '"an afternoon, of a person"' in table
    for wrong, message in (("Careful", "NAME=in words"), ("Carefull=much", "Did you mean 'Careful'")):
        with pytest.raises(SystemExit, match=message):
            run_here(monkeypatch, folder, *arguments, "--training-costs", wrong)


def test_leaderboards_are_put_into_a_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_here(monkeypatch, folder, "report", "out")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\nafter\n")
    for _ in range(2):  # the second changes nothing
        run_here(monkeypatch, folder, "leaderboard", "out/report", "--readme", str(readme))
        text = readme.read_text()
        assert text.startswith("before\n<!-- leaderboard -->\nDoes it beat")
        assert text.endswith("<!-- /leaderboard -->\nafter\n")
        assert text.count("Leaderboard, SGD + momentum") == 1
        assert "**Careful**" in text
        assert "old" not in text
    readme.write_text("no place")
    with pytest.raises(SystemExit, match="has no lines <!-- leaderboard -->"):
        run_here(monkeypatch, folder, "leaderboard", "out/report", "--readme", str(readme))
    with pytest.raises(SystemExit, match="lr-bench report"):
        run_here(monkeypatch, folder, "leaderboard", "nowhere", "--readme", str(readme))


def test_suites_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_here(monkeypatch, tmp_path, "list", "--suite", "quick")
    shown = capsys.readouterr().out
    assert "digits-mlp" in shown
    assert "tuned per task" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--suite", "quik"), "Unknown suite 'quik'"),
        (("run", "--suite", "smoke", "--seeds", "1"), "At least 2 seeds"),
        (("run", "--suite", "smoke", "--workers", "0"), "workers must be an integer >= 1"),
        (("report", "nowhere"), "There are no results in nowhere"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        run_here(monkeypatch, tmp_path, *arguments)


def results(path: Path) -> dict[str, list[bytes]]:
    """All that tables and curves are made from, bit for bit."""
    with Store(path) as store:
        return {
            cell.key: [value.tobytes() for value in vars(result).values() if isinstance(value, np.ndarray)]
            for cell, result in store.cells(find_suite(KILLED_SUITE).key)
        }


def begin(arguments: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    """A run whose progress bar is there."""
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "benchmarks", *arguments], cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file)
    deadline = time.monotonic() + 600
    while process.poll() is None and not log.stat().st_size and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_results(tmp_path: Path) -> None:
    run, moments = ("run", "--suite", KILLED_SUITE, "--workers", "1", "--output"), random.Random(0)
    whole = begin((*run, "whole"), tmp_path)
    start = time.monotonic()
    assert whole.wait() == 0
    duration, left = time.monotonic() - start, []
    while len(left) < KILLS:
        process = begin((*run, "pieces"), tmp_path)
        time.sleep(moments.uniform(0, duration / max(2, KILLS / 2)))
        process.kill()
        if process.wait() == 0:
            break
        with Store(tmp_path / "pieces" / "results.sqlite") as store:
            left.append(len(list(store.cells())))
    assert left
    print(f"killed {len(left)} times; results in the store after each: {left}")  # noqa: T201
    lr_bench(*run, "pieces", folder=tmp_path)
    assert results(tmp_path / "pieces" / "results.sqlite") == results(tmp_path / "whole" / "results.sqlite")
