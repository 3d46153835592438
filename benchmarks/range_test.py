"""About which rate does a task's grid belong? A range test: the rate rises from the lowest that controllers may choose to the highest.

Writes ``benchmarks/lr_bench/centres.json``, which is part of the suites: run it for new suites alone. The centre of a grid is half a decade below the
rate at which the smoothed loss is lowest, as at that rate itself the loss rises already (Smith 2017, arXiv 1506.01186, reads it off a plot alike).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import ExponentialLR
from tqdm import tqdm

from agents.schedules import Schedule
from benchmarks.baselines import GRID_STEP, rate_limits
from benchmarks.lr_bench import suites
from benchmarks.lr_bench.contestants import comparable, execution
from benchmarks.lr_bench.suites import SuiteTask, find_suite
from benchmarks.runner import Runner
from benchmarks.terminal import make_console, run_command
from lr_env.seeding import Role, role_seeds

CENTRES = Path(suites.__file__).with_name("centres.json")
TRAININGS = 4
"""Over whose rates the median is taken; none of those that are reported."""
LONGEST = 200
"""SGD steps of a test; fewer on tasks with a shorter horizon."""
SMOOTHING = 0.05
"""Of the steps: the window over which losses are averaged."""
MARGIN = 0.5
"""Decades below the rate of the lowest loss."""
WITH_CENTRES = ("quick", "standard")


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Attributes:
        suites: Their tasks are tested.
        output: The file.
    """

    suites: tuple[str, ...] = WITH_CENTRES
    output: Path = CENTRES


def centre(losses: np.ndarray, rates: np.ndarray) -> float:
    """log10 of the rate that a grid has in its middle: a multiple of a third of a decade.

    Args:
        losses: Before each step and after the last ``(T + 1, N)``, not a number after a divergence.
        rates: Of each step, ``(T, N)``.
    """
    window = max(round(SMOOTHING * len(rates)), 1)
    after = np.lib.stride_tricks.sliding_window_view(losses[1:], window, axis=0).mean(-1)  # (T - window + 1, N): not a number where one is
    logarithms = np.log10(np.where(np.isfinite(rates), rates, 1.0))
    middles = np.lib.stride_tricks.sliding_window_view(logarithms, window, axis=0).mean(-1)
    lowest = np.where(np.isfinite(after), after, np.inf).argmin(0)
    found = float(np.median(middles[lowest, np.arange(losses.shape[1])])) - MARGIN
    return round(round(found / GRID_STEP) * GRID_STEP, 6)


def find_centre(task: SuiteTask, optimizer: str, seeds: Sequence[int]) -> float:
    """The centre of a task's grid for an optimizer."""
    lowest, highest = rate_limits(optimizer)
    horizon = min(task.horizon, LONGEST)
    bound = Schedule(partial(ExponentialLR, gamma=(highest / lowest) ** (1 / (horizon - 1))), lowest).bind(optimizer)
    mdp = comparable(bound)
    result = Runner(task.family(), mdp, seeds, horizon, 1, False, execution(mdp)).run(bound.controller)
    return centre(result.losses, result.rates)


def main(options: Options) -> None:
    """Tests all tasks of some suites with all their optimizers."""
    torch.set_num_threads(1)
    centres = json.loads(options.output.read_text()) if options.output.exists() else {}
    tests = [
        (suite, task, optimizer)
        for suite in map(find_suite, options.suites)
        for task in suite.tasks
        for optimizer in (*suite.tracks, *suite.other_optimizers)
    ]
    for suite in options.suites:
        centres[suite] = {}
    for suite, task, optimizer in tqdm(tests):
        found = find_centre(task, optimizer, role_seeds(suite.seed, Role.TUNE, TRAININGS))
        centres[suite.name].setdefault(task.name, {})[optimizer] = found
    options.output.write_text(json.dumps(centres, indent=1) + "\n")
    make_console().print(f"Written to {options.output}")


if __name__ == "__main__":
    run_command(main, Options, __doc__)
