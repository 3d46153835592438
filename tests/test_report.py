"""The report of a benchmark: the page, its figures, its tables."""

from __future__ import annotations

import csv
import html
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.lr_bench.analysis import summarise
from benchmarks.lr_bench.report import print_tables, words, write
from benchmarks.lr_bench.report.figures import COLOURS, _slug, all_figures
from benchmarks.lr_bench.report.tables import all_tables
from benchmarks.lr_bench.summary import Problem, Summary
from benchmarks.statistics import Interval
from tests.benchmark_cells import CONTROLLER, OFFSETS, make_cells, make_suite

HOSTILE = '<script>alert("1")</script> $x_1$ & {b}'
"""A contestant's name."""


@pytest.fixture(scope="module")
def summary() -> Summary:
    suite = make_suite(2, ("momentum",))
    names = ("default rate", "tuned per task", "SPS", CONTROLLER, f"{CONTROLLER}: same-instance replay")
    cells = make_cells(suite, {name.replace(CONTROLLER, HOSTILE): OFFSETS[name] for name in names}, num_points=8)
    cells = ((replace(cell, point={"training_seed": 0}) if cell.contestant.startswith(HOSTILE) else cell, result) for cell, result in cells)
    return summarise(cells, suite, [HOSTILE], {"command": "lr-bench report <folder>"})


@pytest.fixture(scope="module")
def folder(summary: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(summary, tmp_path_factory.mktemp("report")).parent


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.identifiers: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.identifiers.append(str(value))
            elif name in ("href", "src", "srcset", "xlink:href", "action", "poster"):
                self.references.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_loads_nothing(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "://" not in text and "@import" not in text
    assert all(reference.startswith("#") or reference == "data:," for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.identifiers)
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    assert [name for name, count in Counter(page.identifiers).items() if count > 1] == []
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.identifiers)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_answers_about_many_controllers_unfold(tmp_path: Path) -> None:
    suite = make_suite(2, ("momentum",))
    names = ("default rate", "tuned per task", "SPS", *(f"agent {i}" for i in range(5)))
    cells = list(make_cells(suite, {name: OFFSETS.get(name, 0.1) for name in names}, num_points=4, curves=False))
    folded = []
    for count in (3, 5):
        summary = summarise(cells, suite, names[3 : 3 + count])
        text = write(summary, tmp_path).read_text()
        folded.append(re.findall(r"<details><summary>(agent \d)</summary>", text))
        assert text.count('<table class="answer">') == count
        assert all(text.count(line) == 1 for line in map(html.escape, words.findings(summary, summary.controllers)))
    assert folded == [[], ["agent 3", "agent 4"] * 2]


def test_names_are_escaped(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "<script" not in text
    assert HOSTILE in "".join(Page(text).words)
    latex = (folder / "tables" / "leaderboard-momentum.tex").read_text()
    assert r"$<$script$>$alert(" in latex and r"\$x\_1\$ \& \{b\}" in latex


def test_every_figure_is_on_the_page_and_beside_it(summary: Summary, folder: Path) -> None:
    figures = list(all_figures(summary))
    assert {figure.section for figure in figures} == {"equivalents", "scores", "profiles", "curves", "controls"}
    page = Page((folder / "report.html").read_text())
    assert page.tags["svg"] == page.tags["figure"] == len(figures)
    for figure in figures:
        assert figure.name in page.identifiers
        assert (folder / "figures" / f"{figure.name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{figure.name}.svg").read_text()
    assert len(list((folder / "figures").iterdir())) == 2 * len(figures)
    assert (folder / "summary.json").read_text() == summary.to_json()


def test_figures_on_the_page_take_its_colours(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not any(colour in drawn for colour in COLOURS.values())
    assert "#ffffff" not in drawn and "#000000" not in drawn
    for name, colour in COLOURS.items():
        assert f"--{name}: {colour};" in text
    assert set(re.findall(r"var\(--([a-z0-9-]*)\)", text)) <= set(re.findall(r"--([a-z0-9-]*):", text))


def test_every_table_is_written(summary: Summary, folder: Path) -> None:
    tables = all_tables(summary)
    assert {path.name for path in (folder / "tables").iterdir()} == {f"{table.name}.{kind}" for table in tables for kind in ("csv", "tex", "md")}
    shown = "".join(Page((folder / "report.html").read_text()).words)
    for table in tables:
        latex = (folder / "tables" / f"{table.name}.tex").read_text()
        assert latex.count(r"\\") == len(table.rows) + 1
        for row in table.texts():
            assert len(row) == len(table.columns)
            assert all(part in shown for text in row for part in text.split(" ["))


def test_files_of_names_that_are_nearly_one_are_several() -> None:
    names = ("ppo", "PPO", "ppo+", "ppo 1", "ppo-1", "α", "β")
    slugs = [_slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slugs[:2] == ["ppo", "PPO"]
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", slug) for slug in slugs)


def test_a_problem_of_several_lines_is_one_row(summary: Summary) -> None:
    problem = Problem("momentum", "task-0", CONTROLLER, "report", "", "it said\n  no\nand no")
    [table] = [table for table in all_tables(replace(summary, failed=(problem,))) if table.name == "failed"]
    assert len(table.to_markdown().splitlines()) == 3


def test_csv_round_trips(summary: Summary) -> None:
    for table in all_tables(summary):
        rows = list(csv.DictReader(StringIO(table.to_csv())))
        assert len(rows) == len(table.rows)
        for read, row in zip(rows, table.rows, strict=True):
            for column, value in zip(table.columns, row, strict=True):
                if isinstance(value, Interval):
                    assert [float(read[f"{column.name}{end}"]) for end in ("", " low", " high")] == [value.estimate, value.low, value.high]
                elif isinstance(value, float):
                    assert float(read[column.name]) == value
                else:
                    assert read[column.name] == ("" if value is None else str(value))


@pytest.mark.parametrize(("verdict", "words_expected"), [("beats", "beats the best"), ("ties", "ties with the best"), ("loses", "loses to the best")])
def test_headline_says_who_wins(summary: Summary, verdict: str, words_expected: str) -> None:
    rows = tuple(replace(row, verdict=verdict) for row in summary.comparisons)  # type: ignore[arg-type]
    assert words_expected in words.headline(replace(summary, comparisons=rows))


def test_headline_of_two_tracks(summary: Summary) -> None:
    first = summary.comparisons[0]
    rows = (replace(first, verdict="beats", track="momentum"), replace(first, verdict="loses", track="adamw"))
    assert words.headline(replace(summary, comparisons=rows)).endswith(
        "beats the best schedule tuned per task with SGD + momentum, but loses to it with AdamW"
    )


def test_unfinished_and_empty_runs_have_a_page(tmp_path: Path) -> None:
    suite = make_suite(2, ("momentum",))
    cells = [
        pair
        for pair in make_cells(suite, {name: OFFSETS[name] for name in ("default rate", "tuned per task", CONTROLLER)}, 0, curves=False)
        if (pair[0].task, pair[0].contestant) != ("task-1", "tuned per task")
    ]
    text = write(summarise(cells, suite), tmp_path).read_text()
    assert "Unfinished" in text and "1 of 2 tasks are missing" in text
    text = write(summarise([], suite), tmp_path).read_text()
    assert "No controller was entered" in text and "Unfinished" in text
    assert list((tmp_path / "figures").iterdir()) == []  # those of the run before are gone


def test_intervals_say_what_they_speak_of(summary: Summary, folder: Path) -> None:
    assert words.basis("new tasks", 0) == "new tasks"
    assert words.basis("new tasks", 1) == "new tasks, 1 training seed"
    assert words.basis("these tasks, new controllers", 3) == "these tasks, new controllers, 3 training seeds"
    assert words.basis("these tasks", 3) == "these tasks"  # of the average of these controllers
    assert words.bases([("a", "new tasks"), ("b", "new tasks"), ("c", "these tasks")]) == "new tasks (c: these tasks)"
    shown = "".join(Page((folder / "report.html").read_text()).words)
    assert f"{HOSTILE} was trained with SGD + momentum from 1 seed, fewer than 5, so intervals say nothing of training it anew." in shown
    rows = tuple(replace(row, basis="new tasks", training_seeds=1) for row in summary.comparisons)
    assert any("on new tasks, 1 training seed)" in line for line in words.numbers(replace(summary, comparisons=rows)))


def test_costly_tasks_are_named(summary: Summary) -> None:
    assert words.costly(summary) is None
    first, *others = summary.references
    sentence = words.costly(replace(summary, references=(replace(first, is_costly=True), *others)))
    assert sentence is not None
    assert sentence.startswith("On the 1 task that is costly, task-0, fewer points are tried: 3 of 9 shapes of schedules (constant, cosine, ")


def test_untested_falsifiers_are_named(summary: Summary) -> None:
    (line,) = [line for line in words.findings(summary, summary.controllers) if "falsifiers" in line]
    untested = [row.statement for row in summary.falsifiers if row.outcome == "not tested"]
    assert untested and all(f"“{statement}” with SGD + momentum" in line for statement in untested)


def test_terminal(summary: Summary) -> None:
    text = StringIO()
    print_tables(summary, Console(file=text, width=200))
    for expected in ("Leaderboard, SGD + momentum", "beats", "Falsifiers", HOSTILE, "SPS"):
        assert expected in text.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(-12.34, "−12.3 %"), (0.0, "+0.0 %"), (99.99, "+100 %"), (250.4, "+250 %"), (1900.0, "×20"), (float("inf"), "×∞"), (float("nan"), "–")],
)
def test_changes_in_words(value: float, text: str) -> None:
    assert words.percent(value).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(("value", "text"), [(12.0, "12"), (1234.5, "1,234"), (float("inf"), "never"), (None, "–")])
def test_steps_in_words(value: float | None, text: str) -> None:
    assert words.steps(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "less than 1"), (1.0, "1.0"), (12.4, "12"), (float("inf"), "more than all")])
def test_runs_in_words(value: float, text: str) -> None:
    assert words.runs(value) == text
