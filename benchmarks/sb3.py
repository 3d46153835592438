"""Do Stable-Baselines3's agents learn through the adapter, with the published defaults?

Trains each algorithm on ``digits-mlp-scaled`` and compares it, paired and on fresh trainings, with the best shared constant rate, which was
chosen on other trainings.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
import tyro
from rich.table import Table

from agents.sb3 import default_hyperparameters, make_sb3_env
from benchmarks.baselines import GRID_STARTS, RunnerCache, rate_limits, schedule_shapes, tune
from benchmarks.statistics import paired_difference
from benchmarks.terminal import make_console
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.seeding import Role, role_seeds

TASK = "digits-mlp-scaled"
NUM_ENVS = 64


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    algorithms: tuple[str, ...] = ("ppo",)
    """Of ``ppo``, ``a2c``, ``sac``, ``td3``, ``ddpg``."""
    steps: int = 300_000
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the training runs."""
    trainings: int = 128
    """Fresh trainings for tuning the constant, and as many others for the report."""
    output: Path = Path("results/sb3.json")
    """Where the numbers go."""


def main(options: Options) -> None:
    """Trains all algorithms with all seeds and prints the table."""
    torch.set_num_threads(1)
    table = Table(title=f"SB3 on {TASK}, {options.steps:,} steps, {NUM_ENVS} trainings at once", title_justify="left")
    for column in ("Algorithm", "seed", "log10 loss", "best shared constant", "difference", "95 % interval", "diverged", "seconds"):
        table.add_column(column, justify="left" if column == "Algorithm" else "right")
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        report = RunnerCache(TASK, role_seeds(seed, Role.REPORT, options.trainings))
        constant = best_constant(seed, options.trainings, report)
        for algorithm in options.algorithms:
            start = time.perf_counter()
            result = report.run(train(algorithm, options.steps, seed))
            row = {"algorithm": algorithm, "seed": seed, "score": float(result.scores.mean()), "constant": float(constant.mean())}
            row |= {"difference": asdict(paired_difference(result.scores, constant)), "diverged": float(result.diverged.mean())}
            rows.append(row | {"seconds": time.perf_counter() - start})
            difference, row = rows[-1]["difference"], rows[-1]
            interval = f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"
            cells = [f"{row['score']:+.3f}", f"{row['constant']:+.3f}", f"{difference['mean']:+.3f}", interval]
            table.add_row(algorithm, str(seed), *cells, f"{row['diverged']:.1%}", f"{row['seconds']:.0f}")
    make_console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def train(algorithm: str, steps: int, seed: int) -> BoundController:
    """A model of SB3, trained with the published defaults, as a controller."""
    kind = getattr(stable_baselines3, algorithm.upper())
    model = kind("MlpPolicy", make_sb3_env(NUM_ENVS, task=TASK), seed=seed, **default_hyperparameters(algorithm, NUM_ENVS)).learn(steps)
    return BoundController(model, MDP())


def best_constant(seed: int, trainings: int, report: RunnerCache) -> np.ndarray:
    """Scores ``(N,)`` on the reported trainings of the constant rate that was best on the tuning trainings."""
    tuning = RunnerCache(TASK, role_seeds(seed, Role.TUNE, trainings))
    make = schedule_shapes(100)["constant"]
    return report.run(make(tune(tuning, make, GRID_STARTS["sgd"], rate_limits("sgd")).best)).scores


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
