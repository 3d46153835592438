"""The throughput's picture: SGD steps per second against the number of members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# Of Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS: Mapping[str, str] = {"eager": "#0072B2", "compiled": "#D55E00"}
MARKERS: Mapping[str, str] = {"eager": "o", "compiled": "s"}


@dataclass(frozen=True)
class Panel:
    """One task's speeds, in SGD steps per second.

    Attributes:
        title: The task's name.
        lines: By ``"eager"`` or ``"compiled"``: speeds by number of members.
        bare: Of the bare PyTorch loop.
        limit: That one thread could do at the rate of a large matrix product.
    """

    title: str
    lines: Mapping[str, Mapping[int, float]]
    bare: float
    limit: float


def draw(panels: Sequence[Panel], path: Path) -> None:
    """One panel per task.

    Args:
        panels: From left to right.
        path: Of the PNG.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(4.0, 10 / 3 * len(panels)), 3.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, panel)
        figure.axes[0].set_ylabel("SGD steps per second")
        handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=4 if len(panels) > 1 else 2, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.axhline(panel.limit, color="0.35", linewidth=1.2, linestyle=":", label="limit: matrix products")
    axes.axhline(panel.bare, color="black", linewidth=1.2, linestyle="--", label="bare PyTorch loop")
    for label, line in panel.lines.items():
        axes.plot(list(line), list(line.values()), color=COLOURS[label], marker=MARKERS[label], markersize=4.5, linewidth=1.8, label=label)
    members = sorted({n for line in panel.lines.values() for n in line})
    speeds = [panel.bare, panel.limit, *(speed for line in panel.lines.values() for speed in line.values())]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(speeds) / 1.6, max(speeds) * 1.6)
    axes.set_title(panel.title)
    axes.set_xlabel("Members N")
    axes.xaxis.set_major_locator(FixedLocator(members))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25, which="major")
