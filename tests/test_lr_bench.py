"""The command lr-bench, as people type it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command

ROOT = Path(__file__).parent.parent

TEN_LINES = """
import numpy as np
from lr_env import MDP

class Careful:
    mdp = MDP(features=["loss_trend"], action="relative")

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.where(observation > 0, -1.0, 0.1), state
"""


def lr_bench(*arguments: str, folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    line = [sys.executable, "-m", "benchmarks", *arguments]
    finished = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
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
