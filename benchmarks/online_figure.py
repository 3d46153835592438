"""The picture of the online comparison: losses and rates of the agent and its rivals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.demo_figure import COLOURS

SMOOTHING = 10
"""Steps of the trailing mean over a curve: one minibatch's loss is noisy."""


def draw(rows: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Geometric means of minibatch loss and of the rate against the step, of the trainings that did not diverge.

    Args:
        rows: By name, at most five; the last one is drawn on top, in black.
        grid: Constant rates, drawn thin and grey behind them.
        path: Of the PNG.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        loss_axes, rate_axes = figure.subplots(1, 2)
        for index, row in enumerate(grid.values()):
            _plot(loss_axes, rate_axes, row, color="#BBBBBB", linewidth=0.8, label="SGD, constants of a grid" if index == 0 else None)
        for (name, row), colour in zip(rows.items(), COLOURS[-len(rows) :], strict=True):
            label = "… with log output" if name == "… log output" else name
            _plot(loss_axes, rate_axes, row, color=colour, linewidth=2.2 if colour == COLOURS[-1] else 1.4, label=label)
        for axes, label in ((loss_axes, "Minibatch training loss"), (rate_axes, "Learning rate")):
            axes.set_yscale("log")
            axes.set_ylabel(label)
            axes.set_xlabel("SGD step")
            axes.grid(alpha=0.25, which="major")
        figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _plot(loss_axes: Axes, rate_axes: Axes, row: Mapping[str, Any], **style: Any) -> None:
    """A row's curves, if any of its trainings did not diverge."""
    if row["curves"]["loss"] is not None:
        losses = np.array(row["curves"]["loss"])
        padded = np.concatenate([np.full(SMOOTHING - 1, losses[0]), losses])
        loss_axes.plot(10 ** np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING).mean(-1), **style)
        rate_axes.plot(10 ** np.array(row["curves"]["rate"]), **style)
