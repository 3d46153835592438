"""The report's figures, one column wide: two stand side by side on a screen, and one fits a phone."""

from __future__ import annotations

import hashlib
import html
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO, StringIO
from itertools import groupby, product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter, NullLocator

from benchmarks.lr_bench.report.words import bases, basis, number, percent, short_runs, track_name
from benchmarks.lr_bench.summary import DEFAULT, POLYAK, POOL, RIVAL, SHARED, Comparison, Curve, Equivalents, Profile, SearchCurve, Summary
from benchmarks.statistics import Interval

COLOURS = {
    "series-0": "#d55e00", "series-1": "#0072b2", "series-2": "#009e73", "series-3": "#a65c8a", "series-4": "#8a6a00", "series-5": "#5f6b7a",
    "ink": "#1b2330", "muted": "#66707f", "line": "#dfe3e9",
}  # fmt: skip
"""Okabe and Ito's palette, a little darker where thin lines need it; on the page each is a CSS variable, which dark mode brightens."""

STYLE: dict[Any, Any] = {
    "font.size": 9, "font.family": "sans-serif", "text.parse_math": False, "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8.5, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True, "axes.grid.which": "major",
    "axes.axisbelow": True, "grid.color": COLOURS["line"], "grid.linewidth": 0.7, "xtick.color": COLOURS["line"], "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"], "ytick.labelcolor": COLOURS["ink"], "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "ytick.major.size": 0,
    "xtick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False, "legend.fontsize": 8.5, "svg.fonttype": "none",
    "svg.hashsalt": "lr-bench", "figure.dpi": 72,
}  # fmt: skip

WIDTH = 4.6
"""Inches."""
ROW = 0.2
"""Inches that a row of a list takes."""

RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1, 1.02, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100, 300, 1000)
COUNTS = (1, 3, 10, 30, 100, 300, 1000)
FURTHEST = 10.0
"""Ratio of losses at which axes end; what lies beyond is drawn at the edge, with its number beside it."""


@dataclass(frozen=True)
class Figure:
    """A drawing, made when it is wanted.

    Attributes:
        name: Stem of its files.
        section: Of the page.
        caption: What it shows, for people and for screen readers.
        draw: Makes it.
    """

    name: str
    section: str
    caption: str
    draw: Callable[[], Drawing]

    def files(self) -> tuple[bytes, str]:
        """PNG and SVG."""
        # A font that lacks a character of a contestant's name is no error.
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            drawing = self.draw()
            FigureCanvasAgg(drawing)
            png, svg = BytesIO(), StringIO()
            drawing.savefig(png, format="png", dpi=200)
            drawing.savefig(svg, format="svg", metadata={"Date": None})
        return png.getvalue(), svg.getvalue()

    def inline(self, svg: str) -> str:
        """The SVG for a page: no addresses, identifiers of its own, the page's font and colours."""
        head = svg[svg.index("<svg") : svg.index(">", svg.index("<svg"))]
        box = re.findall(r'viewBox="[^"]*"', head)[0]
        body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") + len(head) + 1 :], flags=re.DOTALL)
        body = re.sub(r'(?<= id=")|(?<=xlink:href="#)|(?<=url\(#)', f"{self.name}-", body)
        body = re.sub(r"font: ([^'\"]*?px)[^;\"]*", r"font: \1 var(--sans)", body)
        for name, colour in COLOURS.items():
            body = body.replace(colour, f"var(--{name})")
        return f'<svg {box} role="img" aria-label="{html.escape(self.caption)}">{body.replace("fill: #ffffff", "fill: none")}'


MOST_SHOWN = 3
"""Controllers that have figures of their own, and whose answers and falsifiers are seen at once: the tables hold all."""


def all_figures(summary: Summary) -> Iterator[Figure]:
    """Every figure that has something to show, in the page's order."""
    yield from _equivalents(summary)
    yield from _searches(summary)
    yield from _against_rival(summary)
    yield from _scores(summary)
    yield from _profiles(summary)
    yield from _controls(summary)
    yield from _curves(summary)


def contestants_drawn(summary: Summary, track: str) -> dict[str, str]:
    """The few contestants whose curves are drawn, with their colours: the same ones everywhere."""
    there = [row.contestant for row in summary.standings if row.track == track]
    wanted = [*summary.controllers[:2], RIVAL, POLYAK, SHARED[1], DEFAULT]
    palette = {name: COLOURS[f"series-{i}"] for name, i in zip((RIVAL, POLYAK, SHARED[1], DEFAULT), (1, 2, 3, 5), strict=True)}
    palette.update(zip(summary.controllers[:2], (COLOURS["series-0"], COLOURS["series-4"]), strict=False))
    return {name: palette[name] for name in wanted if name in there}


@dataclass(frozen=True)
class _Row:
    label: str
    interval: Interval
    text: str
    colour: str
    strong: bool = False


def _slug(text: str) -> str:
    """For names of files; a text that is changed much gets a digest, so that no two are one."""
    digest = "" if re.fullmatch(r"[A-Za-z0-9]+([-/][A-Za-z0-9]+)*", text) else f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") + digest


def _figure(height: float) -> tuple[Drawing, Axes]:
    drawing = Drawing(figsize=(WIDTH, height), layout="constrained")
    return drawing, drawing.subplots()


def _forest(rows: Sequence[_Row], label: str, title: str, ratios: bool) -> Drawing:
    """Intervals below one another, with their numbers at the right; ``ratios`` for changes in %, drawn on a logarithmic axis."""
    drawing, axes = _figure(0.75 + ROW * len(rows))
    reference = 1.0  # the rival's S, and the ratio of equal losses
    axes.axvline(reference, color=COLOURS["muted"], linewidth=1)
    bounds = [value for row in rows for value in (row.interval.low, row.interval.high, row.interval.estimate) if math.isfinite(value)]
    lowest, highest = min([*bounds, reference]), max([*bounds, reference])
    if ratios:
        lowest, highest = max(lowest, 1 / FURTHEST), min(highest, FURTHEST)
        axes.set_xscale("log")
        margin = max((highest / lowest) ** 0.06, 1.02)
        axes.set_xlim(lowest / margin, highest * margin)
        _ratio_ticks(axes.xaxis, lowest / margin, highest * margin)
    else:
        margin = max(0.05 * (highest - lowest), 0.02)
        axes.set_xlim(lowest - margin, highest + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for i, row in enumerate(rows):
        low, middle, high = np.clip([row.interval.low, row.interval.estimate, row.interval.high], lowest, highest)
        axes.plot([low, high], [i, i], color=row.colour, linewidth=2.4 if row.strong else 1.6, solid_capstyle="round", alpha=0.55)
        axes.plot([middle], [i], "o", color=row.colour, markersize=5.5 if row.strong else 4)
        axes.annotate(row.text, (1, i), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8.5, color=COLOURS["ink"],
                      fontweight="bold" if row.strong else "normal")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set(fontweight="bold" if row.strong else "normal", color=row.colour if row.strong else COLOURS["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)
    _title(drawing, title)
    return drawing


def _title(drawing: Drawing, title: str) -> None:
    drawing.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")


def _ratio_ticks(axis: Axis, low: float, high: float, most: int = 6) -> None:
    """At most so many round changes, evenly spread as far as can be; 0 is one of them."""
    inside = [ratio for ratio in RATIOS if low <= ratio <= high]
    gap = math.log(high / low) / most
    chosen = [1.0]
    for ratio in sorted(inside, key=lambda ratio: abs(math.log(ratio))):
        if all(abs(math.log(ratio / other)) >= gap for other in chosen):
            chosen.append(ratio)
    axis.set_major_locator(FixedLocator(sorted(chosen)))
    axis.set_major_formatter(FuncFormatter(lambda ratio, _: "0" if ratio == 1 else _short_percent(100 * ratio - 100)))
    axis.set_minor_locator(NullLocator())


def _short_percent(value: float) -> str:
    return percent(round(value, 1)).replace(".0", "")


def _ratio(interval: Interval) -> Interval:
    return Interval(*(1 + value / 100 for value in (interval.estimate, interval.low, interval.high)))


def _comparison_rows(rows: Sequence[Comparison], label: Callable[[Comparison], str], summary: Summary) -> list[_Row]:
    ours = summary.controllers
    return [
        _Row(
            label(row),
            _ratio(row.ratio),
            percent(row.ratio.estimate),
            COLOURS["series-0"] if row.first in ours else COLOURS["series-5"],
            row.first in ours,
        )
        for row in sorted(rows, key=lambda row: row.ratio.estimate)
    ]


def _against_rival(summary: Summary) -> Iterator[Figure]:
    for track in summary.tracks:
        comparisons = [row.against_rival for row in summary.standings if row.track == track and row.against_rival and row.kind != "control"]
        if comparisons:
            rows = _comparison_rows(comparisons, lambda row: row.first, summary)
            about = bases((row.first, basis(row.basis, row.training_seeds)) for row in comparisons)
            caption = f"Final training loss against the schedule {RIVAL}, {track_name(track)}; 95 % intervals, on {about}."
            draw = partial(_forest, rows, "left is better", f"Loss against {RIVAL}, {track_name(track)}", True)
            yield Figure(f"ratios-{_slug(track)}", "scores", caption, draw)


def _scores(summary: Summary) -> Iterator[Figure]:
    for track in summary.tracks:
        standings = [row for row in summary.standings if row.track == track and row.kind != "control" and row.interquartile_mean is not None]
        most = max((row.scored for row in standings), default=0)
        rows = [
            _Row(
                row.contestant if row.scored == most else f"{row.contestant} ({row.scored} of {most} tasks)",
                row.interquartile_mean,
                number(row.interquartile_mean.estimate, 2),
                *_emphasis(row.kind == "entered"),
            )
            for row in standings
            if row.interquartile_mean is not None
        ]
        if rows:
            about = bases((row.contestant, basis(row.basis, row.training_seeds)) for row in standings)
            caption = f"Interquartile mean of the normalised score S, {track_name(track)}; 95 % intervals, on {about}."
            draw = partial(_forest, rows, f"0: {DEFAULT}, 1: {RIVAL}\nright is better", f"Score S, {track_name(track)}", False)
            yield Figure(f"scores-{_slug(track)}", "scores", caption, draw)


def _controls(summary: Summary) -> Iterator[Figure]:
    shown = [row for row in summary.controls if row.first in summary.controllers[:MOST_SHOWN]]
    for (track, controller), group in groupby(shown, lambda row: (row.track, row.first)):
        rows = [replace(row, strong=False) for row in _comparison_rows(list(group), partial(_control_name, controller), summary)]
        caption = f"Loss of {controller} against its controls, {track_name(track)}; 95 % intervals. Left of 0 it is better."
        draw = partial(_forest, rows, "left is better: then the state matters", f"Loss of {controller} against …, {track_name(track)}", True)
        yield Figure(f"controls-{_slug(track)}-{_slug(controller)}", "controls", caption, draw)


def _control_name(controller: str, row: Comparison) -> str:
    return row.second.removeprefix(f"{controller}: ")


def _emphasis(strong: bool) -> tuple[str, bool]:
    return COLOURS["series-0" if strong else "series-5"], strong


def _equivalents(summary: Summary) -> Iterator[Figure]:
    for track, controller in product(summary.tracks, summary.controllers[:MOST_SHOWN]):
        rows = [row for row in summary.equivalents if (row.track, row.contestant) == (track, controller)]
        if rows:
            caption = (
                f"Runs of a random search that match {controller} on each task, {track_name(track)}; line and band: median over tasks, 95 % interval."
            )
            yield Figure(f"equivalents-{_slug(track)}-{_slug(controller)}", "equivalents", caption, partial(_draw_equivalents, rows))


def _draw_equivalents(rows: Sequence[Equivalents]) -> Drawing:
    tasks = sorted((row for row in rows if row.task is not None), key=lambda row: (row.runs.estimate, row.runs.high), reverse=True)
    drawing, axes = _figure(0.75 + ROW * len(tasks))
    pool = max(row.pool for row in rows)
    low, high = 0.6, pool * 1.8

    def place(value: float) -> float:
        return high if math.isinf(value) else max(value, low)

    axes.set_xscale("log")
    for median in (row.runs for row in rows if row.task is None):
        if median.low > 0 or math.isfinite(median.high):  # else there are too few tasks for an interval
            axes.axvspan(place(median.low), place(median.high), color=COLOURS["series-0"], alpha=0.15, linewidth=0)
        axes.axvline(place(median.estimate), color=COLOURS["series-0"], linewidth=1.4)
        axes.annotate(f"median {short_runs(median.estimate)}", (place(median.estimate), 1), (0, 3), ("data", "axes fraction"), "offset points",
                      ha="center", va="bottom", fontsize=8.5, fontweight="bold", color=COLOURS["series-0"])  # fmt: skip
    for i, row in enumerate(tasks):
        axes.plot([place(row.runs.low), place(row.runs.high)], [i, i], color=COLOURS["series-1"], linewidth=1.6, alpha=0.55, solid_capstyle="round")
        axes.plot([place(row.runs.estimate)], [i], "o", color=COLOURS["series-1"], markersize=4)
        axes.annotate(short_runs(row.runs.estimate), (1, i), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=8.5)
    ticks = [count for count in COUNTS if count <= pool]
    axes.xaxis.set_major_locator(FixedLocator([low, *ticks, high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "<1" if value == low else "all" if value == high else f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.set_yticks(range(len(tasks)), [str(row.task) for row in tasks])
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("runs of a random search that match it; right is better")
    _title(drawing, f"{rows[0].contestant}, {track_name(rows[0].track)}")
    return drawing


def _searches(summary: Summary) -> Iterator[Figure]:
    for search in summary.searches:
        caption = (
            f"What more runs of a {POOL} on each task buy, {track_name(search.track)}; level lines: controllers, which were not tuned at all. "
            "Where the curve breaks, fewer tasks have a pool as large."
        )
        yield Figure(f"search-{_slug(search.track)}", "equivalents", caption, partial(_draw_search, search, summary))


def _draw_search(search: SearchCurve, summary: Summary) -> Drawing:
    drawing, axes = _figure(2.7)
    counts, ratios, colour = np.array(search.counts), 1 + np.array(search.ratios) / 100, COLOURS["series-1"]
    shown = summary.controllers[:MOST_SHOWN]
    controllers = [row for row in summary.comparisons if row.track == search.track and row.second == RIVAL and row.first in shown]
    ends = [("R", 1.0, COLOURS["muted"])]
    ends += [
        (row.first, 1 + row.ratio.estimate / 100, COLOURS["series-0" if row.first == summary.controllers[0] else "series-4"]) for row in controllers
    ]
    for _, ratio, line in ends:
        axes.axhline(ratio, color=line, linewidth=1 if ratio == 1 else 2)
    tasks = np.array(search.tasks)
    for number_of_tasks in dict.fromkeys(search.tasks):  # means over other tasks are other curves
        part = tasks == number_of_tasks
        axes.plot(counts[part], ratios[part], color=colour, linewidth=2, marker="o" if part.sum() == 1 else None, markersize=4)
        if len(set(search.tasks)) > 1:
            place = (float(counts[part][0]), float(ratios[part][0]))
            axes.annotate(f"{number_of_tasks} tasks", place, (3, -9), textcoords="offset points", fontsize=7.5, color=colour)
    axes.annotate("random search, best of n", (counts[1], ratios[1]), (8, 2), textcoords="offset points", fontsize=8.5, color=colour)
    values = [*ratios, *(ratio for _, ratio, _ in ends)]
    margin = max((max(values) / min(values)) ** 0.08, 1.02)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(values) / margin, max(values) * margin)
    axes.set_xlim(counts[0], counts[-1])
    _ratio_ticks(axes.yaxis, *axes.get_ylim())
    axes.xaxis.set_major_locator(FixedLocator([count for count in COUNTS if counts[0] <= count <= counts[-1]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("runs of the random search, on each task")
    _end_labels(axes, ends, 130)
    _title(drawing, f"Loss against {RIVAL} (R), {track_name(search.track)}")
    return drawing


def _profiles(summary: Summary) -> Iterator[Figure]:
    for track in summary.tracks:
        colours = contestants_drawn(summary, track)
        profiles = [row for row in summary.profiles if row.track == track and row.contestant in colours]
        if profiles:
            caption = f"Performance profiles, {track_name(track)}; bands: 95 % intervals on these tasks, of new controllers where they are learned."
            yield Figure(f"profiles-{_slug(track)}", "profiles", caption, partial(_draw_profiles, profiles, colours, summary.controllers))


def _draw_profiles(profiles: Sequence[Profile], colours: Mapping[str, str], controllers: Sequence[str]) -> Drawing:
    drawing, axes = _figure(3.0)
    drawn = sorted(profiles, key=lambda row: list(colours).index(row.contestant))
    lines: list[Any] = []
    for row in drawn:
        colour, is_ours = colours[row.contestant], row.contestant in controllers
        lines += axes.plot(row.thresholds, row.fractions, color=colour, linewidth=2.2 if is_ours else 1.5, zorder=3 if is_ours else 2)
        axes.fill_between(row.thresholds, row.low, row.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlim(profiles[0].thresholds[0], profiles[0].thresholds[-1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.tick_params(axis="y", labelcolor=COLOURS["muted"])
    axes.set_xlabel(f"S; 0: {DEFAULT}, 1: {RIVAL}")
    names = [row.contestant for row in drawn]  # given, as matplotlib shows none that begin with an underscore
    drawing.legend(lines, names, loc="outside lower left", ncols=3, handlelength=1.4, columnspacing=1.2)
    _title(drawing, f"Trainings that score more than S, {track_name(profiles[0].track)}")
    return drawing


def _curves(summary: Summary) -> Iterator[Figure]:
    for (track, task), group in groupby(summary.curves, lambda row: (row.track, row.task)):
        colours = contestants_drawn(summary, track)
        curves = [row for row in group if row.contestant in colours]
        if curves:
            caption = (
                f"Minibatch loss and rate on {task}, {track_name(track)}: medians over trainings, with bands from the 25th to the 75th percentile."
            )
            yield Figure(f"curves-{_slug(track)}-{_slug(task)}", "curves", caption, partial(_draw_curves, curves, colours, summary.controllers))


def _draw_curves(curves: Sequence[Curve], colours: dict[str, str], controllers: Sequence[str]) -> Drawing:
    drawing = Drawing(figsize=(WIDTH, 3.4), layout="constrained")
    loss_axes, rate_axes = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    order = sorted(curves, key=lambda row: (row.contestant in controllers, -list(colours).index(row.contestant)))
    for axes, kind in ((loss_axes, "losses"), (rate_axes, "rates")):
        ends = []
        for row in order:
            low, median, high = (np.array(values, float) for values in getattr(row, kind))
            colour, steps = colours[row.contestant], np.array(row.steps)[: len(median)]
            axes.plot(steps, median, color=colour, linewidth=2 if row.contestant in controllers else 1.3)
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            seen = median[np.isfinite(median)]
            if len(seen):
                ends.append((row.contestant, float(seen[-1]), colour))
        medians = np.concatenate([np.array(getattr(row, kind)[1], float) for row in curves])
        positive = medians[np.isfinite(medians) & (medians > 0)]
        if kind == "rates" or (len(positive) == np.isfinite(medians).sum() and len(positive)):  # losses of some tasks are negative
            axes.set_yscale("log")
            if kind == "rates" and len(positive):
                top = positive.max()
                axes.set_ylim(max(positive.min(), top * 1e-4) / 1.5, top * 2)  # decays end at 0
            _log_ticks(axes)
        if axes is loss_axes:
            _end_labels(axes, ends, 100)
        axes.set_ylabel("loss" if kind == "losses" else "rate")
        axes.tick_params(axis="y", labelcolor=COLOURS["muted"])
    rate_axes.set_xlim(0, max(row.steps[-1] for row in curves))
    rate_axes.xaxis.set_major_locator(MaxNLocator(4))
    rate_axes.set_xlabel("step")
    _title(drawing, f"{curves[0].task}, {track_name(curves[0].track)}")
    return drawing


def _log_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    decades = math.log10(high / low) if low > 0 else 9
    subs = (1, 2, 5) if decades < 1.6 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain if low >= 1e-4 and high <= 1e4 else LogFormatterSciNotation())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _end_labels(axes: Axes, ends: Sequence[tuple[str, float, str]], height: float, gap: float = 10.0) -> None:
    """Names at the right end of lines, ``gap`` points apart at least, beside axes that are ``height`` points high or a little more."""
    transform = axes.transData + axes.transAxes.inverted()
    places = [(float(np.clip(transform.transform((1, end[1]))[1], 0, 1)) * height, end) for end in ends]
    places.sort(key=lambda place: place[0])
    positions = [place for place, _ in places]
    for _ in range(100):  # neighbours push one another apart
        for i in range(len(positions) - 1):
            lacking = gap - (positions[i + 1] - positions[i])
            if lacking > 0.01:
                positions[i] -= lacking / 2
                positions[i + 1] += lacking / 2
    for position, (_, (name, _, colour)) in zip(positions, places, strict=True):
        axes.annotate(name, (1, position / height), (5, 0), "axes fraction", "offset points", va="center", fontsize=8.5, color=colour)
