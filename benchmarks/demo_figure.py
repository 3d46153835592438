"""The demo's picture: losses and rates of the compared controllers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from benchmarks.runner import Result

# Okabe and Ito's palette, which colour-blind readers can tell apart; the learned controller comes last, in black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#000000")
SMOOTHING = 5
"""Steps of the moving average over a training's minibatch losses."""


def draw(results: Mapping[str, Result], path: Path) -> None:
    """Median loss and median rate against the step, with bands from the 25th to the 75th percentile.

    Args:
        results: By name; the last one is drawn on top.
        path: Of the PNG.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        loss_axes, rate_axes = figure.subplots(1, 2)
        for (name, result), colour in zip(results.items(), COLOURS, strict=True):
            width = 2.2 if colour == COLOURS[-1] else 1.4
            for axes, values in ((loss_axes, _smoothed(result.losses)), (rate_axes, result.rates)):
                low, median, high = np.nanpercentile(values, [25, 50, 75], axis=1)
                steps = np.arange(len(median))
                axes.plot(steps, median, color=colour, linewidth=width, label=name)
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        for axes, label in ((loss_axes, "Minibatch training loss"), (rate_axes, "Learning rate")):
            axes.set_yscale("log")
            axes.set_ylabel(label)
            axes.set_xlabel("SGD step")
            axes.set_xlim(0, len(result.rates))
            axes.grid(alpha=0.25, which="major")
        rate_axes.set_ylim(1e-3, 20)  # SPS's first step and the ends of decays go beyond
        loss_axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5]))
        loss_axes.yaxis.set_major_formatter(ScalarFormatter())
        loss_axes.yaxis.set_minor_locator(NullLocator())
        figure.legend(*loss_axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(results), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _smoothed(losses: np.ndarray) -> np.ndarray:
    """A trailing mean over each training's steps: one minibatch's loss is noisy."""
    padded = np.concatenate([np.repeat(losses[:1], SMOOTHING - 1, axis=0), losses])
    windows = np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING, axis=0)
    means: np.ndarray = windows.mean(-1)
    return means
