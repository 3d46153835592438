"""Does DDPG find the best schedule where it is known?

On the noisy quadratic the expected loss of every schedule has a closed form, so that the best one is found by optimisation. It is open-loop;
an agent that sees the loss can do better. Reports each agent's mean final loss over fresh trainings, divided by the best schedule's expected one.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table

from agents.ddpg import DDPG, DDPGConfig
from agents.schedules import constant
from benchmarks.runner import Runner
from benchmarks.terminal import make_console, run_command
from lr_env.seeding import Role, role_seeds
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC

TASK = "noisy-quadratic"

ENVIRONMENT: dict[str, Any] = {"features": ["log_loss", "log_rate", "progress"], "action": "relative", "lr_min": 0.01, "lr_max": 3.0}
CONFIG = DDPGConfig(discount=1.0, updates_per_decision=4)


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    steps: int = 150_000
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the training runs."""
    trainings: int = 4_096
    """Fresh trainings on which a controller is scored."""
    output: Path = Path("results/noisy_quadratic.json")
    """Where the numbers go."""


def main(options: Options) -> None:
    """Trains one agent per seed and prints the table."""
    torch.set_num_threads(1)
    quadratic = SHIPPED_QUADRATIC
    best = float(quadratic.expected_losses(quadratic.best_schedule())[-1])
    best_constant = quadratic.best_constant()
    exact = {
        "best schedule (closed form)": best,
        "greedy rates (closed form)": float(quadratic.expected_losses(quadratic.greedy_rates())[-1]),
        "best constant (closed form)": float(quadratic.expected_losses(np.full(quadratic.horizon, best_constant))[-1]),
    }
    rows = {name: (loss, 0.0, 0.0) for name, loss in exact.items()}
    bound = constant(best_constant).bind()
    rows["best constant (simulated)"] = mean_loss(Runner(TASK, bound.mdp, role_seeds(0, Role.REPORT, options.trainings)), bound.controller)
    for seed in options.seeds:
        start = time.perf_counter()
        agent = train(options.steps, seed)
        seconds = time.perf_counter() - start
        runner = Runner(TASK, agent.bind().mdp, role_seeds(seed, Role.REPORT, options.trainings))
        rows[f"DDPG, seed {seed}"] = (*mean_loss(runner, agent.actor)[:2], seconds)
    table = Table(title=f"Noisy quadratic: mean final loss over {options.trainings:,} trainings", title_justify="left")
    for column in ("Controller", "loss", "standard error", "ratio to the best schedule", "seconds"):
        table.add_column(column, justify="left" if column == "Controller" else "right")
    for name, (loss, error, seconds) in rows.items():
        table.add_row(name, f"{loss:.4f}", f"{error:.4f}" if error else "", f"{loss / best:.3f}", f"{seconds:.0f}" if seconds else "")
    make_console().print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"options": {**asdict(options), "output": str(options.output)}, "rows": rows}, indent=1) + "\n")


def train(steps: int, seed: int) -> DDPG:
    """An agent trained on the noisy quadratic."""
    environment = gym.make_vec("LearningRate-v0", num_envs=256, task=TASK, autoreset_mode="SameStep", **ENVIRONMENT)
    return DDPG(environment, CONFIG, seed).learn(steps)


def mean_loss(runner: Runner, controller: Any) -> tuple[float, float, float]:
    """Mean final loss, its standard error, and 0 for the seconds."""
    losses = 10.0 ** runner.run(controller).scores
    return float(losses.mean()), float(losses.std() / np.sqrt(len(losses))), 0.0


if __name__ == "__main__":
    run_command(main, Options, __doc__)
