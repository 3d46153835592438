"""Numbers and findings in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.statistics import Interval
from benchmarks.summary import RIVAL, Comparison, Summary

TRACKS = {"sgd": "SGD", "momentum": "SGD + momentum", "adam": "Adam", "adamw": "AdamW"}
"""Names of optimizers as people write them."""


def track_name(track: str) -> str:
    """The optimizer's name as people write it."""
    return TRACKS.get(track, track)


def number(value: float | None, digits: int = 3) -> str:
    """A number with its sign; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}g}".replace("-", "−")


def share(value: float | None) -> str:
    """A part of one in %."""
    return "–" if value is None or math.isnan(value) else f"{value:.0%}" if value == 0 or value >= 0.1 else f"{value:.1%}"


def percent(value: float) -> str:
    """A change in %; from ten times on, a factor."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "×∞"
    return f"×{1 + value / 100:,.0f}" if value >= 900 else f"{value:+.{1 if abs(value) < 99.95 else 0}f} %".replace("-", "−")


def runs(value: float) -> str:
    """A number of runs of a random search."""
    return "more than all" if math.isinf(value) else "less than 1" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def short_runs(value: float) -> str:
    """The same for narrow places."""
    return ">all" if math.isinf(value) else "<1" if value < 1 else runs(value)


def interval(value: Interval | None, form: object = percent) -> str:
    """An estimate with its bounds in brackets."""
    assert callable(form)
    return "–" if value is None else f"{form(value.estimate)} [{form(value.low)}, {form(value.high)}]"


def seconds(value: float) -> str:
    """A time in the largest unit that suits."""
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def probability(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def headline(summary: Summary) -> str:
    """The answer in a sentence or two."""
    if not summary.controllers:
        return "No controller was entered, so this page compares what people do by hand."
    controller = summary.controllers[0]
    against_rival = {row.track: row for row in summary.comparisons if row.first == controller and row.second == RIVAL}
    if not against_rival:
        return f"Not known yet: {controller} and the schedule {RIVAL} have not both finished a task."
    sentences = [_verdict(against_rival[track], track == next(iter(against_rival))) for track in summary.tracks if track in against_rival]
    return " ".join(sentences)


def findings(summary: Summary) -> Iterator[str]:
    """What follows the answer: the cost of tuning that is saved, whether the state matters, falsifiers."""
    for controller in summary.controllers:
        for row in summary.equivalents:
            if row.contestant == controller and row.task is None:
                yield (
                    f"Tuning that {controller} saves with {track_name(row.track)}: a random search needs {_run_words(row)} to match it on the median task"
                    f" ({len([other for other in summary.equivalents if (other.track, other.contestant) == (row.track, controller)]) - 1} tasks)."
                )
        for control in summary.controls:
            if control.first == controller and control.second.endswith("same-instance replay"):
                matters = control.verdict == "beats"
                yield (
                    f"With {track_name(control.track)}, what {controller} observes {'matters' if matters else 'does not matter, as far as can be told'}: "
                    f"its loss is {_change(control.ratio)} against a replay of its own average rates."
                )
        fired = [row for row in summary.falsifiers if row.contestant == controller and row.outcome == "fired"]
        tested = [row for row in summary.falsifiers if row.contestant == controller and row.outcome != "not tested"]
        yield (
            f"Of {len(tested)} falsifiers of {controller} that could be tested, {len(fired)} fired."
            if tested
            else f"No falsifier of {controller} could be tested."
        )
    rates = [row for row in summary.optimizers[:1]]
    yield from (f"Over all optimizers, the lowest loss on shared tasks is that of {row.contestant} with {track_name(row.track)}." for row in rates)


def _verdict(row: Comparison, first: bool) -> str:
    verb = {"beats": "beats", "ties": "ties with", "loses": "loses to"}[row.verdict]
    name = f"With {track_name(row.track)}, {row.first} {verb}" if first else f"With {track_name(row.track)} it {verb}"
    opponent = " the best schedule tuned for each task" if first else " it" if row.verdict != "ties" else " it"
    return f"{name}{opponent}: its final loss is {_change(row.ratio)} over {row.tasks} tasks."


def _change(ratio: Interval) -> str:
    words = f"{percent(abs(ratio.estimate)).lstrip('+')} {'lower' if ratio.estimate < 0 else 'higher'}"
    return f"{words} (95 % interval {percent(ratio.low)} to {percent(ratio.high)})"


def _run_words(row: object) -> str:
    value: Interval = row.runs  # type: ignore[attr-defined]
    return f"{runs(value.estimate)} {'runs' if value.estimate >= 1 else 'run'} [{short_runs(value.low)}, {short_runs(value.high)}]"
