"""How many seconds of training until a learned controller beats what people tune by hand?

DDPG (as in the demo) and Stable-Baselines3's PPO train on ``digits-mlp-scaled``, 64 trainings at once, with the environment eager and
compiled. Training stops now and then for an evaluation on fresh trainings, whose time does not count, until the controller's mean
score is below that of the best shared constant rate and of the Polyak step size (SPS), both tuned on other trainings: 0 seconds where it is
before any training. Compilation has a column of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table
from stable_baselines3 import PPO
from tqdm import tqdm

import lr_env  # noqa: F401  (registers the environment)
from agents.ddpg import DDPG
from agents.sb3 import default_hyperparameters, make_sb3_env
from benchmarks.baselines import GRID_STARTS, RunnerCache, polyak, rate_limits, schedule_shapes, tune
from benchmarks.demo import DDPG_CONFIG, DDPG_ENVIRONMENT
from benchmarks.terminal import make_console, run_command
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.seeding import Role, role_seeds

TASK, NUM_ENVS, HORIZON = "digits-mlp-scaled", 64, 100


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the training runs."""
    steps: int = 400_000
    """Environment steps after which a run gives up."""
    interval: int = 12_800
    """Environment steps between evaluations."""
    trainings: int = 64
    """Fresh trainings for tuning, and as many others for the evaluations."""
    output: Path = Path("results/time_to_result.json")
    """Where the numbers go."""


@dataclass
class Run:
    """One training run; seconds are None where a bar was not reached."""

    algorithm: str
    compiled: bool
    seed: int
    seconds_to_start: float
    seconds_to_constant: float | None = None
    seconds_to_polyak: float | None = None
    steps: int = 0


class Watch:
    """Evaluates a controller before and while it trains, on a stopped clock.

    Args:
        run: Filled in.
        bars: Mean scores of the constant and of SPS on the evaluated trainings.
        evaluate: The controller's mean score at present.
        interval: Steps between evaluations.
    """

    def __init__(self, run: Run, bars: tuple[float, float], evaluate: Callable[[], float], interval: int) -> None:
        self._run, self._bars, self._evaluate, self._interval = run, bars, evaluate, interval
        self._training = 0.0
        self._look()
        self._resumed = time.perf_counter()

    def __call__(self, num_steps: int) -> bool:
        """Whether to go on after so many steps."""
        if num_steps - self._run.steps < self._interval:
            return True
        self._training += time.perf_counter() - self._resumed
        self._run.steps = num_steps
        self._look()
        self._resumed = time.perf_counter()
        return self._run.seconds_to_constant is None or self._run.seconds_to_polyak is None

    def _look(self) -> None:
        score = self._evaluate()
        if score < self._bars[0] and self._run.seconds_to_constant is None:
            self._run.seconds_to_constant = self._training
        if score < self._bars[1] and self._run.seconds_to_polyak is None:
            self._run.seconds_to_polyak = self._training


def main(options: Options) -> None:
    """Makes all runs and prints the table; runs that ``output`` holds already are not repeated."""
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"steps": options.steps, "interval": options.interval, "trainings": options.trainings}
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"settings": settings, "runs": []}
    if found["settings"] != settings:
        raise SystemExit(f"{options.output} is from a run with {found['settings']}, not {settings}. Remove it, or choose another --output.")
    runs = [Run(**row) for row in found["runs"]]
    done = {(run.algorithm, run.compiled, run.seed) for run in runs}
    jobs = [(name, compiled, seed) for seed in options.seeds for name in TRAINERS for compiled in (False, True)]
    caches: dict[int, tuple[RunnerCache, tuple[float, float]]] = {}
    for name, compiled, seed in tqdm([job for job in jobs if job not in done], desc="Training", unit=" runs"):
        if seed not in caches:
            caches[seed] = make_bars(seed, options.trainings)
        runs.append(TRAINERS[name](compiled, seed, *caches[seed], options))
        options.output.write_text(json.dumps({"settings": settings, "runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    make_console().print(make_table(runs))


def make_bars(seed: int, trainings: int) -> tuple[RunnerCache, tuple[float, float]]:
    """The evaluated trainings, and on them the mean scores of the best shared constant and of SPS, tuned on others."""
    tuning, evaluated = (RunnerCache(TASK, role_seeds(seed, role, trainings)) for role in (Role.TUNE, Role.EVALUATE))
    limits, constant = rate_limits("sgd"), schedule_shapes(HORIZON)["constant"]
    best = constant(tune(tuning, constant, GRID_STARTS["sgd"], limits).best), polyak(tune(tuning, polyak, GRID_STARTS["sps"], limits).best)
    low, high = (float(evaluated.run(bound).scores.mean()) for bound in best)
    return evaluated, (low, high)


def train_ddpg(compiled: bool, seed: int, evaluated: RunnerCache, bars: tuple[float, float], options: Options) -> Run:
    """The demo's agent."""
    start = time.perf_counter()
    arguments = {"task": TASK, "autoreset_mode": "SameStep", "compile": compiled, **DDPG_ENVIRONMENT}
    env = gym.make_vec("LearningRate-v0", num_envs=NUM_ENVS, **arguments)
    env.reset(seed=seed)
    env.step(np.zeros((NUM_ENVS, 1), np.float32))  # builds the graphs, and the kernels of the decision process
    agent = DDPG(env, DDPG_CONFIG, seed=seed)
    run = Run("DDPG", compiled, seed, time.perf_counter() - start)
    watch = Watch(run, bars, lambda: float(evaluated.run(agent.bind()).scores.mean()), options.interval)
    agent.learn(options.steps, lambda agent: watch(agent.num_steps_taken))
    return run


def train_ppo(compiled: bool, seed: int, evaluated: RunnerCache, bars: tuple[float, float], options: Options) -> Run:
    """Stable-Baselines3's, with this package's defaults."""
    start = time.perf_counter()
    env = make_sb3_env(NUM_ENVS, task=TASK, compile=compiled)
    env.reset()
    env.step(np.zeros((NUM_ENVS, 1), np.float32))  # builds the graphs, and the kernels of the decision process
    model = PPO("MlpPolicy", env, seed=seed, **default_hyperparameters("ppo", NUM_ENVS))
    run = Run("PPO", compiled, seed, time.perf_counter() - start)
    watch = Watch(run, bars, lambda: float(evaluated.run(BoundController(model, MDP())).scores.mean()), options.interval)

    def callback(values: dict[str, Any], _: dict[str, Any]) -> bool:
        return watch(values["self"].num_timesteps)

    model.learn(options.steps, callback)
    return run


TRAINERS: dict[str, Callable[[bool, int, RunnerCache, tuple[float, float], Options], Run]] = {"DDPG": train_ddpg, "PPO": train_ppo}


def make_table(runs: list[Run]) -> Table:
    """The runs for people, and medians over seeds."""
    table = Table(title=f"Seconds of training on {TASK} until better than the best shared constant, and than SPS", title_justify="left")
    for column in ("Algorithm", "environment", "seed", "to the constant", "to SPS", "steps", "to start"):
        table.add_column(column, justify="left" if column in ("Algorithm", "environment") else "right")
    for name in TRAINERS:
        for compiled in (False, True):
            rows = [run for run in runs if (run.algorithm, run.compiled) == (name, compiled)]
            for run in sorted(rows, key=lambda run: run.seed):
                numbers = [_seconds(run.seconds_to_constant), _seconds(run.seconds_to_polyak), f"{run.steps:,}", _seconds(run.seconds_to_start)]
                table.add_row(name, "compiled" if compiled else "eager", str(run.seed), *numbers)
            columns = ([run.seconds_to_constant for run in rows], [run.seconds_to_polyak for run in rows])
            medians = [float(np.median([np.inf if value is None else value for value in column])) for column in columns if rows]
            table.add_row(name, "compiled" if compiled else "eager", "median", *map(_seconds, medians), "", "", style="bold", end_section=True)
    return table


def _seconds(value: float | None) -> str:
    return "never" if value is None or value == np.inf else f"{value:.1f}"


if __name__ == "__main__":
    run_command(main, Options, __doc__)
