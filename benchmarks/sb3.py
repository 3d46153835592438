"""Does each algorithm of ``lr-train`` beat what people tune by hand, with its defaults?

Trains each as ``lr-train --task digits-mlp-scaled --algorithm … --seed …`` does, and compares its controller, paired and on fresh trainings,
with the best shared constant rate and with SPS, both of which were tuned on other trainings. DDPG and DPI are this package's, the others are
Stable-Baselines3's. What is finished is kept in the output folder: a killed run goes on where it was, and several runs may share the folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from agents.train import Training
from agents.training_options import Algorithm, TrainingOptions
from benchmarks.baselines import GRID_STARTS, RunnerCache, polyak, rate_limits, schedule_shapes, tune
from benchmarks.kept import kept
from benchmarks.statistics import paired_difference
from benchmarks.terminal import make_console, run_command
from lr_env.controllers import load_controller
from lr_env.seeding import Role, role_seeds
from lr_env.tasks import as_family, make_task

TASK = "digits-mlp-scaled"
RIVALS = ("constant", "SPS")


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    algorithms: tuple[Algorithm, ...] = ("ppo", "sac", "td3", "ddpg", "dpi", "a2c", "dqn")
    """What is trained."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training, tuning and report."""
    steps: int | None = None
    """Environment steps of each training; by default those of ``lr-train``."""
    trainings: int = 128
    """Fresh trainings for tuning the rivals, and as many others for the report."""
    output: Path = Path("results/sb3")
    """Folder of the results."""


def main(options: Options) -> None:
    """Trains all algorithms with all seeds and prints the table."""
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    settings = {"steps": options.steps, "trainings": options.trainings}
    for seed in options.seeds:
        report = RunnerCache(TASK, role_seeds(seed, Role.REPORT, options.trainings))
        rivals = kept(options.output / f"rivals-seed{seed}.json", settings, partial(run_rivals, seed, report))
        for algorithm in options.algorithms:
            path = options.output / f"{algorithm}-seed{seed}.json"
            rows.append(summarise(kept(path, settings, partial(run_algorithm, algorithm, seed, report, options)), rivals))
    rows.sort(key=lambda row: options.algorithms.index(row["algorithm"]))
    make_console().print(render_table(rows))
    (options.output / "table.json").write_text(json.dumps(rows, indent=1) + "\n")


def run_algorithm(algorithm: Algorithm, seed: int, report: RunnerCache, options: Options) -> dict[str, Any]:
    """Trains, or goes on, as ``lr-train --resume`` does; scores ``(N,)`` on the reported trainings, and times."""
    folder = options.output / f"{algorithm}-seed{seed}"
    training = Training(TrainingOptions(algorithm=algorithm, task=TASK, seed=seed, steps=options.steps, output=folder, resume=True))
    training.run()
    times = {"steps": training.agent.num_steps_taken, "seconds": training.record["seconds"], "cpu_seconds": training.record["cpu_seconds"]}
    result = report.run(load_controller(training.controller_path))
    training.checkpoint_path.unlink()
    return {"algorithm": algorithm, "seed": seed, "scores": result.scores.tolist(), "diverged": float(result.diverged.mean())} | times


def run_rivals(seed: int, report: RunnerCache) -> dict[str, Any]:
    """Scores ``(N,)`` on the reported trainings of the constants that were best on the tuning trainings."""
    tuning = RunnerCache(TASK, role_seeds(seed, Role.TUNE, len(report.seeds)))
    constant = schedule_shapes(as_family(make_task(TASK)).variants[0].horizon)["constant"]
    tuned = {
        "constant": constant(tune(tuning, constant, GRID_STARTS["sgd"], rate_limits("sgd")).best),
        "SPS": polyak(tune(tuning, polyak, GRID_STARTS["sps"], (1e-6, 1e3)).best),
    }
    return {name: report.run(bound).scores.tolist() for name, bound in tuned.items()}


def summarise(result: dict[str, Any], rivals: dict[str, Any]) -> dict[str, Any]:
    """A row: mean scores, and paired differences to the rivals."""
    scores = np.array(result["scores"])
    row = {name: value for name, value in result.items() if name != "scores"} | {"score": float(scores.mean())}
    for name in RIVALS:
        row[name] = {"score": float(np.mean(rivals[name])), "difference": asdict(paired_difference(scores, np.array(rivals[name])))}
    return row


def render_table(rows: list[dict[str, Any]]) -> Table:
    """The table for the terminal."""
    table = Table(
        title=f"lr-train on {TASK}: mean log10 of the final loss; differences − rival with 95 % intervals, below 0 lr-train is better",
        title_justify="left",
    )
    for column in ("Algorithm", "seed", "log10 loss", *(f"{name}: difference" for name in RIVALS), "diverged", "seconds", "CPU s"):
        table.add_column(column, justify="left" if column == "Algorithm" else "right")
    for row in rows:
        differences = []
        for name in RIVALS:
            score, difference = row[name]["score"], row[name]["difference"]
            differences.append(f"{score:+.3f}: {difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]")
        cells = [f"{row['score']:+.3f}", *differences, f"{row['diverged']:.1%}", f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}"]
        table.add_row(row["algorithm"], str(row["seed"]), *cells)
    return table


if __name__ == "__main__":
    run_command(main, Options, __doc__)
