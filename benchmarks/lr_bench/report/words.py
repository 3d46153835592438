"""Numbers and findings in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from benchmarks.lr_bench.contestants import COSTLY_SHAPES, GREEDY, SHAPES
from benchmarks.lr_bench.summary import POLYAK, POLYAK_RIVAL, RIVAL, Basis, Comparison, Summary
from benchmarks.statistics import Interval

TRACKS = {"sgd": "SGD", "momentum": "SGD + momentum", "adam": "Adam", "adamw": "AdamW"}
"""Names of optimizers as people write them."""
FEWEST_TRAINING_SEEDS = 5
"""Controllers without which little is said of training one anew."""
NARROW = "\N{NARROW NO-BREAK SPACE}"


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
    return f"×{1 + value / 100:,.0f}" if value >= 900 else f"{value:+.{1 if abs(value) < 99.95 else 0}f}{NARROW}%".replace("-", "−")


def runs(value: float) -> str:
    """A number of runs of a random search."""
    return "more than all" if math.isinf(value) else "less than 1" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def short_runs(value: float) -> str:
    """The same for narrow places."""
    return ">all" if math.isinf(value) else "<1" if value < 1 else runs(value)


def interval(value: Interval | None, form: Callable[[float], str] = percent) -> str:
    """An estimate with its bounds in brackets, these without their unit."""
    return "–" if value is None else f"{form(value.estimate)} {_bounds(value, form)}"


def _bounds(value: Interval, form: Callable[[float], str]) -> str:
    low, high = (form(bound).removesuffix("%").removesuffix(NARROW) for bound in (value.low, value.high))
    return f"[{low}, {high}]"


def seconds(value: float) -> str:
    """A time in the largest unit that suits."""
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def steps(value: float | None) -> str:
    """A number of SGD steps."""
    return "–" if value is None else "never" if math.isinf(value) else f"{value:,.0f}"


def probability(value: float | None) -> str:
    """A p-value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def basis(kind: Basis, training_seeds: int) -> str:
    """What an interval speaks of; where it speaks of newly trained controllers, how many it knows."""
    return kind if kind == "these tasks" or not training_seeds else f"{kind}, {_count(training_seeds, 'training seed')}"


def bases(contestants: Iterable[tuple[str, str]]) -> str:
    """What a column's intervals speak of, and whose speak of something else.

    Args:
        contestants: Names with what the interval of each speaks of.
    """
    given = list(contestants)
    if not given:
        return "these tasks"
    most = Counter(text for _, text in given).most_common(1)[0][0]
    others = [f"{name}: {text}" for name, text in given if text != most]
    return most + (f" ({'; '.join(others)})" if others else "")


def costly(summary: Summary) -> str | None:
    """On which tasks less is tuned, and what; None where there is no such task."""
    tasks = list(dict.fromkeys(row.task for row in summary.references if row.is_costly))
    if not tasks:
        return None
    return (
        f"On {_tasks_that_are(len(tasks))} costly, {', '.join(tasks)}, fewer points are tried: {len(COSTLY_SHAPES)} of {len(SHAPES)} shapes of "
        f"schedules ({', '.join(COSTLY_SHAPES)}), and of the state-feedback rules {POLYAK} and {POLYAK_RIVAL} alone; other rules have "
        f"there the constant that suits the other tasks, and {GREEDY} does not run. Other shapes that all tasks share, and the schedules of other "
        "optimizers than the tracks', are chosen on the other tasks alone and reported on all."
    )


def headline(summary: Summary) -> str:
    """The answer in a sentence."""
    if not summary.controllers:
        return "No controller was entered: this page compares what people do by hand"
    rows = _primary(summary)
    if not rows:
        return f"Not known yet: {summary.controllers[0]} and the best schedule tuned per task have not both finished a task"
    by_verdict = {
        verdict: [track_name(row.track) for row in rows if row.verdict == verdict] for verdict in dict.fromkeys(row.verdict for row in rows)
    }
    clauses = [
        f"{VERBS[verdict]} {'it' if i else 'the best schedule tuned per task'} with {' and with '.join(tracks)}"
        for i, (verdict, tracks) in enumerate(by_verdict.items())
    ]
    return f"{rows[0].first} {', but '.join(clauses)}"


def numbers(summary: Summary) -> Iterator[str]:
    """The numbers behind the answer, per track."""
    for row in _primary(summary):
        so_far = "" if row.tasks == row.expected else f" So far: {row.expected - row.tasks} of {_tasks(row.expected)} are missing."
        over = f"over {_tasks(row.tasks)}, lower on {row.wins} (95{NARROW}% interval, on {basis(row.basis, row.training_seeds)})"
        yield f"{track_name(row.track)}: final training loss {_change(row.ratio)}, a geometric mean {over}.{so_far}"


def findings(summary: Summary, controllers: Iterable[str]) -> Iterator[str]:
    """What follows the answer about some controllers: the tuning that is saved, whether the state matters, falsifiers."""
    for controller in controllers:
        for row in summary.equivalents:
            if row.contestant == controller and row.task is None:
                needed = f"a random search needs {runs(row.runs.estimate)} run{'' if row.runs.estimate <= 1 else 's'}"
                search = f"even the whole search of {row.pool} runs is worse" if math.isinf(row.runs.estimate) else needed
                is_bounded = row.runs.low > 0 or math.isfinite(row.runs.high)
                bounds = f"[{short_runs(row.runs.low)} to {short_runs(row.runs.high)}]" if is_bounded else "(too few tasks for an interval)"
                yield f"To match {controller} on the median task with {track_name(row.track)}, {search} {bounds}."
        for control in summary.controls:
            if control.first == controller and control.second.endswith("same-instance replay"):
                matters = "matters" if control.verdict == "beats" else "does not matter, as far as this run can tell"
                yield (
                    f"What {controller} observes {matters} with {track_name(control.track)}: its loss is {_change(control.ratio)} "
                    "than that of a replay of its own average rates."
                )
        ours = [row for row in summary.falsifiers if row.contestant == controller]
        fired = [row for row in ours if row.outcome == "fired"]
        if ours:
            untested = [f"“{row.statement}” with {track_name(row.track)}" for row in ours if row.outcome == "not tested"]
            still_open = f" could not be tested: {'; '.join(untested)}" if untested else " could not be tested"
            yield f"Of {len(ours)} falsifiers of {controller}, {len(fired)} fired and {len(untested)}{still_open}."
        for standing in summary.standings:
            if standing.contestant == controller and 0 < standing.training_seeds < FEWEST_TRAINING_SEEDS:
                once = "say nothing of training it anew" if standing.training_seeds == 1 else "about training it anew are too narrow"
                yield (
                    f"{controller} was trained with {track_name(standing.track)} from {_count(standing.training_seeds, 'seed')}, fewer than "
                    f"{FEWEST_TRAINING_SEEDS}, so intervals {once}."
                )


def across(summary: Summary) -> Iterator[str]:
    """What follows about optimizers."""
    if summary.optimizers:
        best = summary.optimizers[0]
        yield f"Across optimizers, the lowest mean loss is that of {best.contestant} with {track_name(best.track)}."


VERBS = {"beats": "beats", "ties": "ties with", "loses": "loses to"}


def _primary(summary: Summary) -> list[Comparison]:
    return [row for row in summary.comparisons if row.first in summary.controllers[:1] and row.second == RIVAL]


def _tasks(count: int) -> str:
    return _count(count, "task")


def _tasks_that_are(count: int) -> str:
    return f"the {_tasks(count)} that {'is' if count == 1 else 'are'}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _change(ratio: Interval) -> str:
    words = f"{percent(abs(ratio.estimate)).lstrip('+')} {'lower' if ratio.estimate < 0 else 'higher'}"
    return f"{words} {_bounds(ratio, percent)}"
