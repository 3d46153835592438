"""Which features, reward and discount should be the defaults?

Trains DDPG on ``digits-mlp-scaled`` with the defaults and with one choice changed at a time, three seeds each, and scores the trained
controllers on trainings that neither the agents nor the demo's report see.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from agents.ddpg import DDPG, DDPGConfig
from benchmarks.runner import run
from benchmarks.terminal import make_console, run_command
from lr_env.seeding import Role, role_seeds

TASK = "digits-mlp-scaled"

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "features: absolute": ({"features": "absolute"}, {}),
    "action: residual on SPS": ({"action": "residual"}, {}),
    "reward: loss": ({"reward": "loss"}, {}),
    "reward_on: reference": ({"reward_on": "reference"}, {}),
    "discount: 0.9": ({}, {"discount": 0.9}),
    "discount: 0.99": ({}, {"discount": 0.99}),
    "discount: 1": ({}, {"discount": 1.0}),
}
"""Name to changed arguments of the environment and of the agent."""


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    steps: int = 100_000
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds of the training runs; other than the demo's."""
    trainings: int = 128
    """Fresh trainings on which a controller is scored."""
    processes: int = 2
    """Runs at the same time."""
    output: Path = Path("results/defaults.json")
    """Where the scores go."""


@dataclass(frozen=True)
class Job:
    """One training run."""

    variant: str
    seed: int
    steps: int
    trainings: int


def main(options: Options) -> None:
    """Runs the comparison and prints a table; runs that ``output`` holds already are not repeated."""
    jobs = [Job(variant, seed, options.steps, options.trainings) for seed in options.seeds for variant in VARIANTS]
    done: dict[str, list[float]] = json.loads(options.output.read_text()) if options.output.exists() else {}
    missing = [job for job in jobs if _key(job) not in done]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for job, scores in tqdm(zip(missing, pool.map(score, missing), strict=True), total=len(missing), desc="Training", unit=" runs"):
            done[_key(job)] = scores
            options.output.write_text(json.dumps(done, indent=1) + "\n")
    table = Table(title=f"Final training loss after {options.steps:,} steps of DDPG (mean log10; lower is better)", title_justify="left")
    for column in ("Variant", *(f"seed {seed}" for seed in options.seeds), "median", "diverged", "seconds"):
        table.add_column(column, justify="left" if column == "Variant" else "right")
    for variant in VARIANTS:
        rows = np.array([done[_key(replace(jobs[0], variant=variant, seed=seed))] for seed in options.seeds])  # (S, 3)
        means = [f"{value:+.3f}" for value in rows[:, 0]]
        table.add_row(variant, *means, f"{np.median(rows[:, 0]):+.3f}", f"{rows[:, 1].mean():.1%}", f"{np.median(rows[:, 2]):.0f}")
    make_console().print(table)


def score(job: Job) -> list[float]:
    """Mean score, diverged fraction and seconds of one training run."""
    torch.set_num_threads(1)
    environment_changes, agent_changes = VARIANTS[job.variant]
    start = time.perf_counter()
    environment = gym.make_vec("LearningRate-v0", num_envs=64, task=TASK, autoreset_mode="SameStep", **environment_changes)
    agent = DDPG(environment, replace(DDPGConfig(), **agent_changes), seed=job.seed).learn(job.steps)
    seconds = time.perf_counter() - start
    result = run(agent.bind(), TASK, role_seeds(job.seed, Role.EVALUATE, job.trainings))
    return [float(result.scores.mean()), float(result.diverged.mean()), seconds]


def _key(job: Job) -> str:
    return f"{job.variant} | seed {job.seed} | {job.steps} steps | {job.trainings} trainings"


if __name__ == "__main__":
    run_command(main, Options, __doc__)
