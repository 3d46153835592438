"""The picture of the online comparison: losses and rates of the agent and its rivals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.demo_figure import COLOURS

SMOOTHING = 10
"""Steps of the trailing mean over a curve: one minibatch's loss is noisy."""


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Geometric means of minibatch loss and of the rate against the step, of the trainings that did not diverge.

    Args:
        rows: By name, at most five; the last one is drawn on top, in black.
        path: Of the PNG.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        loss_axes, rate_axes = figure.subplots(1, 2)
        for (name, row), colour in zip(rows.items(), COLOURS[-len(rows) :], strict=True):
            width = 2.2 if colour == COLOURS[-1] else 1.4
            label = "… with log output" if name == "… log output" else name
            for axes, curve in ((loss_axes, row["curves"]["loss"]), (rate_axes, row["curves"]["rate"])):
                if curve is not None:  # else all diverged
                    values = np.array(curve)
                    padded = np.concatenate([np.full(SMOOTHING - 1, values[0]), values])
                    means = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING).mean(-1)
                    axes.plot(10 ** (means if axes is loss_axes else values), color=colour, linewidth=width, label=label)
        for axes, label in ((loss_axes, "Minibatch training loss"), (rate_axes, "Learning rate")):
            axes.set_yscale("log")
            axes.set_ylabel(label)
            axes.set_xlabel("SGD step")
            axes.grid(alpha=0.25, which="major")
        figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
