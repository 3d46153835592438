"""The report's tables: for a page, a terminal, a spreadsheet, a paper."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table as RichTable

from benchmarks.lr_bench.analysis import SEARCHES
from benchmarks.lr_bench.contestants import RATE_FREE
from benchmarks.lr_bench.report.words import (
    bases,
    basis,
    interval,
    number,
    percent,
    plain,
    probability,
    runs,
    seconds,
    share,
    short_runs,
    steps,
    track_name,
)
from benchmarks.lr_bench.summary import RIVAL, Standing, Summary
from benchmarks.statistics import Interval

NAMED_TASKS = 4
"""Tasks that a row names, at most; of more it gives the number."""

LATEX_ESCAPES = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "−": "$-$", "×": r"$\times$", "∞": r"$\infty$", "–": "--", "<": "$<$", ">": "$>$", "²": r"$^2$",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
})  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its head.
        form: How people read its values; None for text.
        key: Whether it stays where a narrow terminal leaves columns out.
    """

    name: str
    form: Callable[[Any], str] | None = None
    key: bool = True


@dataclass(frozen=True)
class Table:
    """A table of raw values; ``rows`` are ``(rows, columns)``, ``marked`` the rows of entered controllers."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    marked: frozenset[int] = frozenset()
    note: str = ""

    def texts(self) -> list[list[str]]:
        """What people read, row by row."""
        return [[_text(column, value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_csv(self) -> str:
        """Raw values; an interval takes three columns, a value that is not there is empty."""
        wide = [any(isinstance(row[i], Interval) for row in self.rows) for i in range(len(self.columns))]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [column.name for column in self.columns]
        writer.writerow([name for i, base in enumerate(names) for name in ([base, f"{base} low", f"{base} high"] if wide[i] else [base])])
        for row in self.rows:
            writer.writerow([value for i, cell in enumerate(row) for value in (_bounds(cell) if wide[i] else [cell])])
        return text.getvalue()

    def to_latex(self) -> str:
        """A ``tabular`` in the style of the package ``booktabs``."""
        lines = [[text.translate(LATEX_ESCAPES) for text in row] for row in [[column.name for column in self.columns], *self.texts()]]
        alignment = "".join("l" if column.form is None else "r" for column in self.columns)
        head, *body = (" & ".join(line) + r" \\" for line in lines)
        return "\n".join([rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])

    def to_markdown(self) -> str:
        """A table for a README, without the columns that a narrow place leaves out; rows of entered controllers are bold."""
        shown = [i for i, column in enumerate(self.columns) if column.key]
        texts = [[f"**{text}**" if index in self.marked else text for text in row] for index, row in enumerate(self.texts())]
        rows = [[column.name for column in self.columns], *texts]
        lines = [[" ".join(row[i].replace("|", r"\|").split()) for i in shown] for row in rows]
        lines.insert(1, ["---" if self.columns[i].form is None else "---:" for i in shown])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def to_terminal(self) -> RichTable:
        """A table for a terminal."""
        table = RichTable(title=escape_markup(self.title), title_justify="left", caption=escape_markup(self.note), caption_justify="left")
        shown = [i for i, column in enumerate(self.columns) if column.key]
        for i in shown:
            column = self.columns[i]
            table.add_column(column.name, justify="left" if column.form is None else "right", overflow="fold" if column.form is None else "ellipsis")
        for index, row in enumerate(self.texts()):
            table.add_row(*(escape_markup(row[i]) for i in shown), style="bold" if index in self.marked else None)
        return table


def print_tables(summary: Summary, console: Console) -> None:
    """The answer, the leaderboards, falsifiers and what is missing."""
    for table in all_tables(summary):
        if table.rows and table.name.split("-")[0] in ("answer", "leaderboard", "falsifiers", "failed", "missing"):
            console.print(table.to_terminal())


def all_tables(summary: Summary) -> list[Table]:
    """Every table of the report; those that have nothing to say have no rows."""
    return [
        answer(summary),
        *(leaderboard(summary, track) for track in summary.tracks),
        equivalents(summary),
        searches(summary),
        controls(summary),
        falsifiers(summary),
        optimizers(summary),
        budgets(summary),
        references(summary),
        *(entries(summary, track) for track in summary.tracks),
        failed(summary),
        missing(summary),
    ]


def answer(summary: Summary) -> Table:
    """Entered controllers against each opponent, per track."""
    columns = (
        Column("Controller"),
        Column("Opponent"),
        Column("Optimizer"),
        Column("Verdict"),
        Column("Loss against it", _percents),
        Column("Tasks won", str),
        Column("p", probability),
        Column("p (Holm)", probability),
        Column("Interval on", key=False),
    )
    rows = [
        (
            row.first,
            row.second,
            track_name(row.track),
            row.verdict,
            row.ratio,
            f"{row.wins} / {row.tasks}",
            row.p_value,
            row.adjusted,
            basis(row.basis, row.training_seeds),
        )
        for row in summary.comparisons
    ]
    shared = "; ".join(f"{name} with {track_name(track)}" for track, name in summary.best_shared.items())
    note = (
        "Final training loss relative to the opponent's: geometric mean over tasks, paired, with a 95 % interval. Below 0 is better. One "
        f"comparison is the primary one: of the first controller with {RIVAL} on the first optimizer. All others, those with controls and of "
        "falsifiers among them, are won or lost only where the p-value is below 0.05 after Holm's correction too, and ties else."
    ) + (f" The best schedule that all tasks share, chosen on tuning seeds, is {shared}." if shared else "")
    return _table("answer", "Does it beat what people do by hand?", columns, rows, summary, note)


def leaderboard(summary: Summary, track: str) -> Table:
    """All contestants of a track, best first."""
    columns = (
        Column("Contestant"),
        Column("IQM of S", _scores),
        Column("Mean S", _estimate, key=False),
        Column("Worst task", _two_digits),
        Column("On", key=False),
        Column(f"Loss against {RIVAL}", _percents),
        Column("P(better)", _shares, key=False),
        Column("p (Holm)", probability),
        Column("Diverged", share),
        Column("Tasks", str),
    )
    standings = [row for row in summary.standings if row.track == track and row.kind != "control"]
    rows = [
        (
            row.contestant,
            row.interquartile_mean,
            row.mean,
            row.worst,
            row.worst_task or "–",
            row.against_rival.ratio if row.against_rival else None,
            row.improvement,
            row.against_rival.adjusted if row.against_rival else None,
            row.diverged,
            f"{row.finished} / {row.expected}",
        )
        for row in standings
    ]
    scored, expected = (max((getattr(row, name) for row in standings), default=0) for name in ("scored", "expected"))
    of_scores = bases((row.contestant, basis(row.basis, row.training_seeds)) for row in standings if row.interquartile_mean)
    compared = [row.against_rival for row in standings if row.against_rival]
    of_losses = bases((row.first, basis(row.basis, row.training_seeds)) for row in compared)
    of_chances = bases((row.contestant, basis(row.improvement_basis, row.training_seeds)) for row in standings if row.improvement)
    few = "".join(
        f" {row.contestant} runs on {row.expected} of {expected} tasks alone: its aggregates are of these, and no others' equals."
        for row in standings
        if row.expected < expected
    )
    note = (
        f"S is 0 for torch's default rate and 1 for the schedule {RIVAL}; clipped to [−1, 3]; over {scored} tasks where the two differ enough. "
        f"95 % intervals: of the interquartile mean on {of_scores}; of the loss on {of_losses}; of P(better), the chance to end lower than "
        f"the rival, which the page and the CSV have, on {of_chances}. Contestants with missing cells have no aggregates.{few}{_untouched(standings)}"
    )
    return _table(f"leaderboard-{track}", f"Leaderboard, {track_name(track)}", columns, rows, summary, note)


def _untouched(standings: Sequence[Standing]) -> str:
    """What those that find their rate themselves are, where some take part."""
    there = [name for name in RATE_FREE if any(row.contestant == name for row in standings)]
    same = [name for name in there if len(set(RATE_FREE[name].values())) == 1]
    if not there:
        return ""
    own = "takes its own steps" if len(same) == 1 else "take their own steps"
    whatever = f"; {_listed(same)} {own}, the same in all tracks, in place of the track's optimizer's" if same else ""
    return f" Not tuned, as they find the rate themselves, at their defaults: {_listed(there)}{whatever}."


def _listed(names: Sequence[str]) -> str:
    """Of names that may hold commas."""
    return ", ".join(f"“{name}”" for name in names)


def equivalents(summary: Summary) -> Table:
    """Tuning equivalents per task, medians first."""
    columns = (
        Column("Contestant"),
        Column("Optimizer"),
        Column("Task"),
        Column("Runs of random search", _runs),
        Column("Pool", str),
        Column("Trainings per run", str),
        Column("Interval on"),
    )
    trained = {(row.track, row.contestant): row.training_seeds for row in summary.standings}
    ordered = sorted(summary.equivalents, key=lambda row: row.task is not None)
    rows = [
        (
            row.contestant,
            track_name(row.track),
            row.task or "median",
            row.runs,
            row.pool,
            row.trainings,
            basis(row.basis, trained.get((row.track, row.contestant), 0)),
        )
        for row in ordered
    ]
    note = (
        "Runs of a random search over schedules and rates, on this very task, that match the contestant; of several controllers, their average. A "
        "run tries one point, which takes the given number of trainings. “more than all”: the whole pool is worse. Of fewer than 20 tasks the median "
        "has no interval."
    )
    return _table("equivalents", "Tuning equivalents", columns, rows, summary, note)


def searches(summary: Summary) -> Table:
    """What random searches of a few sizes reach."""
    columns = (Column("Runs", str), Column("Optimizer"), Column(f"Loss against {RIVAL}", _percent), Column("Tasks", str))
    rows = [
        (count, track_name(search.track), ratio, tasks)
        for search in summary.searches
        for count, ratio, tasks in zip(search.counts, search.ratios, search.tasks, strict=True)
        if count in SEARCHES
    ]
    note = "Geometric mean over the tasks whose pool has so many points, which are fewer where runs are many: rows of other tasks do not compare."
    return _table("searches", "Random search", columns, rows, summary, note, contestant=None)


def controls(summary: Summary) -> Table:
    """Entered controllers against their controls."""
    columns = (
        Column("Control"),
        Column("Optimizer"),
        Column("Controller"),
        Column("Loss against it", _percents),
        Column("Verdict"),
        Column("p", probability),
        Column("p (Holm)", probability),
        Column("Interval on", key=False),
    )
    rows = [
        (
            row.second.removeprefix(f"{row.first}: "),
            track_name(row.track),
            row.first,
            row.ratio,
            row.verdict,
            row.p_value,
            row.adjusted,
            basis(row.basis, row.training_seeds),
        )
        for row in summary.controls
    ]
    note = (
        "What the controller observes matters only if it beats the replay of its own rates, averaged over other seeds of the same task. Random "
        "policies act relative to the rate in force, whatever the controller's own action is."
    )
    return _table("controls", "Does the state matter?", columns, rows, summary, note, contestant=None)


def falsifiers(summary: Summary) -> Table:
    """What would show that a claim is wrong."""
    columns = (Column("Optimizer"), Column("Controller"), Column("Falsifier"), Column("Outcome"), Column("Because"))
    rows = [(track_name(row.track), row.contestant, row.statement, row.outcome, row.reason) for row in summary.falsifiers]
    return _table("falsifiers", "Falsifiers", columns, rows, summary, contestant=None)


def optimizers(summary: Summary) -> Table:
    """All tracks on shared tasks."""
    columns = (
        Column("Contestant"),
        Column("Optimizer"),
        Column("Loss against the best", _percent),
        Column("log10 loss", number),
        Column("Test loss", plain),
        Column("Diverged", share),
        Column("Tasks", str),
    )
    rows = [(row.contestant, track_name(row.track), row.ratio, row.score, row.test_loss, row.diverged, row.tasks) for row in summary.optimizers]
    note = "All optimizers on the tasks that they share: a better optimizer may be worth more than a better rate."
    return _table("optimizers", "Across optimizers", columns, rows, summary, note)


def budgets(summary: Summary) -> Table:
    """What tuning and training cost."""
    columns = (
        Column("Contestant"),
        Column("Optimizer"),
        Column("Points per task", str),
        Column("Chosen"),
        Column("Tuning trainings", "{:,}".format),
        Column("Tuning time", seconds),
        Column("Reported trainings", "{:,}".format),
        Column("Reporting time", seconds),
        Column("Extra forward passes", plain),
        Column("Training of the controller"),
    )
    rows = [
        (
            row.contestant,
            track_name(row.track),
            row.points,
            row.chosen or "–",
            row.tuning_trainings,
            row.tuning_seconds,
            row.reporting_trainings,
            row.reporting_seconds,
            row.extra_forward_passes,
            row.training_cost or (f"{row.training_runs} runs, cost not stated" if row.training_runs else "–"),
        )
        for row in summary.budgets
    ]
    return _table(
        "budgets", "Tuning budgets", columns, rows, summary, "Times are of one core. Extra forward passes are for each SGD step, beyond its own."
    )


def references(summary: Summary) -> Table:
    """What scores are measured by."""
    columns = (
        Column("Task"),
        Column("Optimizer"),
        Column("Budget"),
        Column("Trainings", str),
        Column("D: default rate", number),
        Column(f"R: {RIVAL}", number),
        Column("Best in hindsight", number),
        Column("Scored"),
        Column("Decay's gain", number),
        Column("For schedules"),
        Column("Costly"),
    )
    rows = [
        (
            row.task,
            track_name(row.track),
            row.budget,
            row.trainings,
            row.default,
            row.rival,
            row.hindsight,
            "yes" if row.scored else "no",
            row.annealing,
            "unknown" if row.counts_for_schedules is None else "yes" if row.counts_for_schedules else "no",
            "yes" if row.is_costly else "no",
        )
        for row in summary.references
    ]
    whose = "the suite's frozen numbers" if all(row.frozen for row in summary.references) else "those of this run, as the suite has no frozen ones"
    note = (
        f"log10 of the final loss; D and R are {whose}. A task is scored where D − R is at least 0.1 and 3 standard errors; "
        "it counts for schedules where decay gains 0.05."
    )
    return _table("tasks", "Tasks", columns, rows, summary, note, contestant=None)


def entries(summary: Summary, track: str) -> Table:
    """Every contestant on every task of a track."""
    ours = [row for row in summary.entries if row.track == track]
    opponents = list(dict.fromkeys(name for row in ours for name in row.ratios))
    columns = (
        Column("Task"),
        Column("Contestant"),
        Column("log10 loss", number),
        Column("Diverged", share),
        Column("Test loss", plain),
        Column("Test metric", plain),
        Column("S", _two_digits),
        Column("Steps to target", steps),
        *(Column(f"Loss against {name}", _percents) for name in opponents),
    )
    rows = [
        (
            row.task,
            row.contestant,
            row.score,
            row.diverged,
            row.test_loss,
            row.test_metric,
            row.normalised,
            row.steps_to_target,
            *(row.ratios.get(name) for name in opponents),
        )
        for row in ours
    ]
    note = (
        "S is not clipped here. Steps to target: SGD steps until minibatch losses, averaged over a twentieth of the training, are below the final "
        "training loss at the default rate; median over trainings."
    )
    return _table(f"entries-{track}", f"Every task, {track_name(track)}", columns, rows, summary, note, contestant=1)


def failed(summary: Summary) -> Table:
    """The cells whose result is an error."""
    columns = (Column("Optimizer"), Column("Task"), Column("Contestant"), Column("Role"), Column("Point"), Column("What"))
    rows = tuple((track_name(row.track), row.task, row.contestant, row.role, row.point, row.problem) for row in summary.failed)
    return Table("failed", "Cells that failed", columns, rows)


def missing(summary: Summary) -> Table:
    """The cells without a result, those of a contestant in one row."""
    tasks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in summary.missing:
        tasks[track_name(row.track), row.contestant, row.role, row.point, row.problem].append(row.task)
    columns = (Column("Optimizer"), Column("Contestant"), Column("Role"), Column("Point"), Column("What"), Column("Tasks"))
    rows = tuple((*key, ", ".join(names) if len(names) <= NAMED_TASKS else f"{len(names)} tasks") for key, names in tasks.items())
    return Table("missing", "Cells that are not there yet", columns, rows)


def _table(
    name: str, title: str, columns: tuple[Column, ...], rows: list[tuple[Any, ...]], summary: Summary, note: str = "", contestant: int | None = 0
) -> Table:
    marked = frozenset(i for i, row in enumerate(rows) if contestant is not None and row[contestant] in summary.controllers)
    return Table(name, title, columns, tuple(rows), marked if len(marked) < len(rows) else frozenset(), note)


def _text(column: Column, value: Any) -> str:
    return "–" if value is None else str(value) if column.form is None else column.form(value)


def _bounds(value: Interval | None) -> Iterator[float | None]:
    yield from (None, None, None) if value is None else (value.estimate, value.low, value.high)


def _two_digits(value: float | None) -> str:
    return number(value, 2)


def _percent(value: float) -> str:
    return percent(value)


def _percents(value: Interval) -> str:
    return interval(value)


def _scores(value: Interval) -> str:
    return interval(value, _two_digits)


def _estimate(value: Interval) -> str:
    return _two_digits(value.estimate)


def _shares(value: Interval) -> str:
    return interval(value, share)


def _runs(value: Interval) -> str:
    return f"{runs(value.estimate)} [{short_runs(value.low)}, {short_runs(value.high)}]"
