"""The command lr-bench, as people type it."""

from __future__ import annotations

import csv
import dataclasses
import html
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.lr_bench import engine
from benchmarks.lr_bench.records import Cell
from benchmarks.lr_bench.store import Store
from benchmarks.lr_bench.suites import find_suite
from tests.benchmark_runs import fake_result

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("LR_BENCH_KILLS", "2"))
KILLED_SUITE = os.environ.get("LR_BENCH_KILLED_SUITE", "smoke")
"""How often a real run is killed, and of what suite: `LR_BENCH_KILLS=20 LR_BENCH_KILLED_SUITE=quick pytest tests/test_lr_bench.py -k killed -s`."""

SECTION = (ROOT / "README.md").read_text().partition("\n## Is my controller better")[2].partition("\n## ")[0]
"""Of the README: what its reader types into a file `mine.py`, and into a terminal."""
[MINE] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
COMMANDS = [
    shlex.split(line.replace("quick", "smoke"), comments=True)  # takes seconds
    for block in re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("lr-bench ")
]
OUTPUT = "results/bench/smoke"
RUN = ("run", "--suite", "smoke", "--controllers", "mine.py:Careful", "--workers", "1")

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def lr_bench(*arguments: str, folder: Path) -> str:
    line = [sys.executable, "-m", "benchmarks", *arguments]
    finished = subprocess.run(line, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside of the repository, after all that the README says has been typed there, on a smaller suite."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.py").write_text(MINE)
    shown = {typed[1]: lr_bench(*typed[1:], folder=folder) for typed in COMMANDS}
    assert list(shown) == ["run", "report", "compare"]
    assert "Careful" in shown["run"]
    assert "Careful − tuned per task" in shown["compare"]
    return folder


def run_here(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lr-bench", *arguments])
    command.main()


def test_the_readmes_controller_is_benchmarked_by_its_commands_from_anywhere(folder: Path) -> None:
    assert len(list(filter(str.strip, MINE.splitlines()))) <= 10
    names = {typed[index + 1] for typed in COMMANDS for index, word in enumerate(typed) if word == "--controllers"}
    assert names == {"mine.py:Careful"}
    page = (folder / OUTPUT / "report" / "report.html").read_text()
    for typed in COMMANDS[:-1]:  # the comparison is no part of it
        assert html.escape(shlex.join(typed)) in page
    assert "Does the state matter?" in page and "Careful: same-instance replay" in page


def test_a_second_run_takes_what_is_there_and_ends_with_the_same_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.lr_bench.engine.compute", lambda work: pytest.fail("computed again"))
    run_here(monkeypatch, folder, *RUN)
    shown = capsys.readouterr().out
    assert "Careful" in shown
    assert "tuned per task" in shown
    assert "problems" not in shown


def test_a_run_in_which_a_controller_never_works_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def predict(self, *given, **options):\n        raise RuntimeError('out of ideas')")
    with pytest.raises(SystemExit, match="no training of Mine has a result"):
        run_here(monkeypatch, tmp_path, "run", "--suite", "smoke", "--controllers", "mine.py:Mine", "--workers", "1", "--no-controls")
    shown = capsys.readouterr().out
    assert "out of ideas" in shown
    assert "tuned per task" in shown


def test_a_report_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(monkeypatch, folder, "report", OUTPUT)
    page = (folder / OUTPUT / "report" / "report.html").read_text()
    assert "Careful" in page
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_an_exported_store_is_reported_and_run_further(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    run_here(monkeypatch, folder, "export", OUTPUT, str(copy / "results.sqlite"))
    assert "MB" in capsys.readouterr().out
    run_here(monkeypatch, folder, "report", str(copy), "--suite", "smoke")
    whole, part = (json.loads((place / "report" / "summary.json").read_text()) for place in (folder / OUTPUT, copy))
    for entry in whole["entries"]:
        entry["steps_to_target"] = None  # needs curves
    for table in ("standings", "comparisons", "entries"):
        assert part[table] == whole[table]
    monkeypatch.setattr("benchmarks.lr_bench.engine.compute", lambda work: pytest.fail("computed again"))
    run_here(monkeypatch, folder, *RUN, "--output", str(copy))
    with pytest.raises(SystemExit, match="exists already"):
        run_here(monkeypatch, folder, "export", OUTPUT, str(copy / "results.sqlite"))


def test_a_run_starts_from_published_results(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, output = str(tmp_path / "published.sqlite.xz"), str(tmp_path / "mine")
    run_here(monkeypatch, folder, "export", OUTPUT, published)
    (folder / "grace.py").write_text(MINE.replace("Careful", "Grace").replace("-1.0", "-0.8"))
    computed: list[str] = []
    compute = engine.compute
    monkeypatch.setattr(engine, "compute", lambda work: computed.extend(cell.contestant for cell in work.cells) or compute(work))
    start = ("run", "--suite", "smoke", "--controllers", "grace.py:Grace", "--no-controls", "--workers", "1", "--output", output)
    run_here(monkeypatch, folder, *start, "--start-from", published)
    assert set(computed) == {"Grace"}
    run_here(monkeypatch, folder, "report", output)
    summary = json.loads((tmp_path / "mine" / "report" / "summary.json").read_text())
    assert summary["controllers"] == ["Grace", "Careful"]
    assert {"Grace", "Careful", "tuned per task"} <= {row["contestant"] for row in summary["standings"]}
    with pytest.raises(SystemExit, match="taken over"):
        run_here(monkeypatch, folder, *start, "--start-from", "missing.sqlite.xz")


def test_what_was_run_by_what_stands_on_the_page_and_who_was_entered_first_stays_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(folder / OUTPUT / "results.sqlite", copy)
    (folder / "ada.py").write_text(MINE.replace("Careful", "Ada").replace("-1.0", "-0.9"))
    connection = sqlite3.connect(copy / "results.sqlite")
    with connection:
        connection.execute("UPDATE machines SET description = json_set(description, '$.torch', '0.1')")
    connection.close()
    second = ("run", "--suite", "smoke", "--controllers", "ada.py:Ada", "--no-controls", "--workers", "1", "--output", str(copy))
    run_here(monkeypatch, folder, *second)
    versions = f"Results of 2 versions stand side by side: torch 0.1; torch {torch.__version__}."
    assert versions in capsys.readouterr().out.replace("\n", " ")
    report = ("report", str(copy), "--suite", "smoke")
    run_here(monkeypatch, folder, *report)
    assert versions in capsys.readouterr().out.replace("\n", " ")
    summary = json.loads((copy / "report" / "summary.json").read_text())
    assert summary["controllers"] == ["Careful", "Ada"]
    origins = summary["provenance"]
    runs = [text for name, text in origins.items() if name.startswith("run ")]
    assert list(origins) == [*(f"run {number}" for number in range(1, len(runs) + 1)), "report", "machine 1", "machine 2", "versions"]
    assert runs[:2] == [shlex.join(typed) for typed in COMMANDS[:2]]
    assert runs[-1] == shlex.join(["lr-bench", *second])
    assert origins["report"] == shlex.join(["lr-bench", *report])
    assert origins["versions"] == versions
    run_here(monkeypatch, folder, *report, "--controllers", "Ada,Careful")
    assert json.loads((copy / "report" / "summary.json").read_text())["controllers"] == ["Ada", "Careful"]


def test_two_contestants_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(monkeypatch, folder, "compare", "Careful", "SPS", "--output", OUTPUT)
    shown = capsys.readouterr().out
    assert "Careful − SPS" in shown
    assert "wine-mlp" in shown
    with pytest.raises(SystemExit, match=r"Unknown contestant 'Carefull'\. Did you mean 'Careful'"):
        run_here(monkeypatch, folder, "compare", "Carefull", "SPS", "--output", OUTPUT)
    with pytest.raises(SystemExit, match="Two different contestants are compared, but 'Careful' was given twice"):
        run_here(monkeypatch, folder, "compare", "Careful", "Careful", "--output", OUTPUT)


def test_a_report_about_nobody_known_is_refused_and_leaves_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = folder / OUTPUT / "report" / "report.html"
    before = page.stat().st_mtime_ns
    with pytest.raises(SystemExit, match=r"Unknown contestant 'Carefull'\. Did you mean 'Careful'"):
        run_here(monkeypatch, folder, "report", OUTPUT, "--controllers", "Careful,Carefull")
    assert page.stat().st_mtime_ns == before


def test_numbers_that_scores_are_measured_by_are_frozen_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "references.json"
    path.write_text("{}")
    for module in ("benchmarks.lr_bench.suites", "benchmarks.__main__"):
        monkeypatch.setattr(f"{module}.REFERENCES", path)
    few = (*RUN[:3], "--seeds", "2", "--no-controls", "--workers", "1", "--output", str(tmp_path / "few"))
    run_here(monkeypatch, folder, *few)
    with pytest.raises(SystemExit, match="another number of reported trainings than smoke-2, on breast-cancer-mlp, wine-mlp"):
        run_here(monkeypatch, folder, "freeze", str(tmp_path / "few"))
    run_here(monkeypatch, folder, "freeze", OUTPUT)
    [(suite, tracks)] = json.loads(path.read_text()).items()
    assert (suite, set(tracks["momentum"])) == ("smoke-2", {"breast-cancer-mlp", "wine-mlp"})
    tracks["momentum"]["wine-mlp"] = {"default": 0.5, "rival": -0.5, "scored": True}
    path.write_text(json.dumps({suite: tracks}))
    run_here(monkeypatch, folder, "report", OUTPUT)
    rows = list(csv.DictReader((folder / OUTPUT / "report" / "tables" / "tasks.csv").read_text().splitlines()))
    [row] = [row for row in rows if row["Task"] == "wine-mlp"]
    assert (row["D: default rate"], row["R: tuned per task"], row["Scored"]) == ("0.5", "-0.5", "yes")
    with pytest.raises(SystemExit, match="smoke-2 has frozen numbers"):
        run_here(monkeypatch, folder, "freeze", OUTPUT)


def test_a_report_where_packages_of_rivals_are_missing_is_about_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        suite = find_suite("quick")
        cell = Cell(suite.key, "momentum", "digits-mlp", {}, "prodigy", "abc", "report", {}, (1, 2))
        mine = dataclasses.replace(cell, contestant="Careful", identity="def")
        store.save_all([(each, fake_result(each)) for each in (cell, mine)])
        store.record([cell, mine])
        store.record_run(suite.key, "lr-bench run", ["Careful"])
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert command.entered_names(store, suite) == ("Careful",)


def test_what_training_cost_stands_in_the_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch, folder, *RUN, "--training-costs", "Careful=an afternoon, of a person")
    run_here(monkeypatch, folder, "report", OUTPUT)
    table = (folder / OUTPUT / "report" / "tables" / "budgets.csv").read_text()
    assert '"an afternoon, of a person"' in table
    for wrong, message in (("Careful", "NAME=in words"), ("Carefull=much", "Did you mean 'Careful'")):
        with pytest.raises(SystemExit, match=message):
            run_here(monkeypatch, folder, *RUN, "--training-costs", wrong)


def test_leaderboards_are_put_into_a_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_here(monkeypatch, folder, "report", OUTPUT)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\nafter\n")
    for _ in range(2):  # the second changes nothing
        run_here(monkeypatch, folder, "leaderboard", f"{OUTPUT}/report", "--readme", str(readme))
        text = readme.read_text()
        assert text.startswith("before\n<!-- leaderboard -->\nDoes it beat")
        assert text.endswith("<!-- /leaderboard -->\nafter\n")
        assert text.count("<details><summary>Leaderboard, SGD + momentum</summary>") == 1
        assert "**Careful**" in text
        assert "old" not in text
        assert "other controllers" not in text
    answer = folder / OUTPUT / "report" / "tables" / "answer.md"
    table, rows = answer.read_text(), re.findall(r"^\| Careful .*\n", answer.read_text(), re.MULTILINE)
    answer.write_text(table.replace(rows[-1], rows[-1] + "".join(row.replace("Careful", "Careless") for row in rows)))
    run_here(monkeypatch, folder, "leaderboard", f"{OUTPUT}/report", "--readme", str(readme))
    first, folded = readme.read_text().split("<details><summary>And the other controllers?</summary>")
    assert (first.count("| Careful |"), first.count("| Careless |")) == (len(rows), 0)
    assert folded.partition("</details>")[0].count("| Careless |") == len(rows) > 1
    answer.write_text(table)
    readme.write_text("no place")
    with pytest.raises(SystemExit, match="has no lines <!-- leaderboard -->"):
        run_here(monkeypatch, folder, "leaderboard", f"{OUTPUT}/report", "--readme", str(readme))
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
        (("run", "--suite", "smoke", "--controllers", "wrong.py"), r"wrong\.py is a file: name one of its classes"),
        (("run", "--suite", "smoke", "--controllers", "wrong.py:A"), r"wrong\.py can't be imported: ZeroDivisionError"),
        (("run", "--suite", "smoke", "--output", "wrong.py"), r"wrong\.py/results\.sqlite can't be written: Not a directory"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("1 / 0")
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


STANDARD = find_suite("standard").key


@pytest.mark.parametrize(
    ("stored", "name", "chosen"),
    [
        (["standard-1", STANDARD], None, STANDARD),
        ([find_suite("quick").key, "standard-1", STANDARD], "standard", STANDARD),
        ([find_suite("quick").key, STANDARD], None, "Choose one with --suite"),
        ([find_suite("quick").key], "standard", "Choose one with --suite"),
        (["standard-1"], "standard", "this version has"),
    ],
)
def test_the_present_version_of_a_suite_is_reported(
    stored: list[str], name: str | None, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "suites", lambda store: stored)
    store = Store(tmp_path / "results.sqlite")
    if chosen == STANDARD:
        assert command.stored_suite(store, name).key == chosen
    else:
        with pytest.raises(ValueError, match=chosen):
            command.stored_suite(store, name)
