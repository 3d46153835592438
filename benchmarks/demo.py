"""Can a controller that is trained in minutes beat every schedule that people tune by hand, on real data?

Trains DDPG on small networks that learn handwritten digits whose scale differs from training to training, so that no single rate suits
all. Then compares it, on fresh trainings and paired, with schedules and rules that were tuned on other trainings.
"""

from __future__ import annotations

import dataclasses
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

import lr_env  # registers the environment
from agents.ddpg import DDPG, DDPGConfig
from benchmarks.baselines import GRID_STARTS, RunnerCache, Tuned, polyak, random_policy, rate_limits, schedule_shapes, tune
from benchmarks.demo_figure import draw
from benchmarks.runner import Result
from benchmarks.statistics import check_sample, paired_difference
from benchmarks.terminal import make_console, run_command
from lr_env.controllers import BoundController
from lr_env.seeding import Role, role_seeds
from lr_env.tasks import as_family, make_task

TASK = "digits-mlp-scaled"
TORCH_DEFAULT_RATE = 1e-3
"""Of ``torch.optim.SGD``."""

LEARNED = "DDPG (learned)"
HINDSIGHT = "Best schedule per training, in hindsight"
BETTER_OPTIMIZER = "A better optimizer: "
DRAWN = ("Best shared constant", "Best shared cosine", "Best shared step", "SPS, tuned constant", LEARNED)

# The agent corrects the Polyak step size by up to 1.5 decades. The free default reward, on next minibatches, learns more slowly: its noise is
# that of a minibatch.
DDPG_ENVIRONMENT: dict[str, Any] = {"action": "residual", "reward_on": "reference"}
DDPG_CONFIG = DDPGConfig()


@dataclass(frozen=True)
class Options:
    """Options of the demo."""

    seed: int = 0
    """Seed of the whole run: training, tuning, and the trainings that are reported."""
    steps: int = 200_000
    """Environment steps that DDPG trains for."""
    num_envs: int = 64
    """Trainings that DDPG controls side by side."""
    evaluations: int = 10
    """How often the controller is evaluated during training; the best one on the tuning seeds is kept."""
    trainings: int = 128
    """Fresh trainings for tuning, and as many others for the report."""
    output: Path = Path("results/demo")
    """Folder of the results."""


@dataclass(frozen=True)
class Baselines:
    """Results of all baselines on the reported trainings, by row; and how they were tuned."""

    results: dict[str, Result]
    tuned: dict[str, Tuned]
    hindsight: np.ndarray
    seconds: float


def main(options: Options) -> None:
    """Runs the demo and writes its results."""
    check_sample("trainings", options.trainings)
    torch.set_num_threads(1)  # one thread a process is fastest for networks of this size
    console = make_console()
    console.print(f"Task [bold]{TASK}[/bold]: {options.num_envs} networks (64-32-10) at once, SGD, batch 64, 100 steps each. Seed {options.seed}.")
    with ProcessPoolExecutor(1, get_context("spawn"), _one_thread) as pool:
        # The baselines need no agent: the second core works on them while the agent trains.
        pending = pool.submit(evaluate_baselines, options.seed, options.trainings)
        bound, seconds = train(options)
        with console.status("Waiting for the baselines"):
            baselines = pending.result()
    report = RunnerCache(TASK, role_seeds(options.seed, Role.REPORT, options.trainings))
    results = {"Random actions": report.run(random_policy(bound.mdp, options.seed)), **baselines.results, LEARNED: report.run(bound)}
    table = summarise(results, baselines.hindsight)
    console.print(render_table(table, seconds, baselines, options))
    write_results(options, table, baselines, seconds, bound, results)
    draw({name: results[name] for name in DRAWN}, options.output / "demo.png")
    checkpoint, best_file, seconds_file = training_files(options)
    checkpoint.unlink()
    seconds_file.unlink()
    best_file.replace(options.output / "controller.safetensors")
    console.print(f"Written to {options.output}/: results.json, controller.safetensors, demo.png")


def training_files(options: Options) -> tuple[Path, Path, Path]:
    """Where this seed's checkpoint, its best controller and its seconds so far lie until the end: runs of other seeds may share the folder."""
    names = "checkpoint-seed{}.safetensors", "best-seed{}.safetensors", "seconds-seed{}.json"
    return tuple(options.output / name.format(options.seed) for name in names)  # type: ignore[return-value]


def train(options: Options) -> tuple[BoundController, float]:
    """Trains DDPG, with a progress bar; keeps the controller that was best on the tuning trainings. Resumes a killed run."""
    environment = gym.make_vec("LearningRate-v0", num_envs=options.num_envs, task=TASK, autoreset_mode="SameStep", **DDPG_ENVIRONMENT)
    tuning = RunnerCache(TASK, role_seeds(options.seed, Role.TUNE, options.trainings))
    checkpoint, best_file, seconds_file = training_files(options)
    agent, best_score, before = DDPG(environment, DDPG_CONFIG, seed=options.seed), np.inf, 0.0
    if checkpoint.exists():
        agent = DDPG.resume(checkpoint, environment)
        if agent.config != DDPG_CONFIG or agent.seed != options.seed:
            raise SystemExit(f"{checkpoint} is from a run with other settings; remove it, or choose another --output.")
        best_score = float(tuning.run(lr_env.load_controller(best_file)).scores.mean())
        before = float(json.loads(seconds_file.read_text()))
    start = time.perf_counter() - before
    with tqdm(total=options.steps, initial=agent.num_steps_taken, desc="Training DDPG", unit=" steps", unit_scale=True, dynamic_ncols=True) as bar:
        for target in np.linspace(0, options.steps, options.evaluations + 1)[1:].astype(int):
            if agent.num_steps_taken >= target:
                continue
            agent.learn(int(target), partial(_show, bar))
            score = float(tuning.run(agent.bind()).scores.mean())
            if score < best_score:
                best_score = score
                agent.save(best_file)
            seconds_file.write_text(json.dumps(time.perf_counter() - start))
            agent.save_checkpoint(checkpoint)
            bar.set_postfix_str(f"log10 loss {score:+.3f}, best {best_score:+.3f}")
    return lr_env.load_controller(best_file), time.perf_counter() - start


def evaluate_baselines(seed: int, trainings: int) -> Baselines:
    """Tunes every baseline on the tuning trainings and runs it on the reported ones."""
    start = time.perf_counter()
    tuning, report = (RunnerCache(TASK, role_seeds(seed, role, trainings)) for role in (Role.TUNE, Role.REPORT))
    horizon = as_family(make_task(TASK)).variants[0].horizon
    results: dict[str, Result] = {}
    tuned: dict[str, Tuned] = {}
    shapes = schedule_shapes(horizon)
    results["SGD, torch's default rate"] = report.run(shapes["constant"](TORCH_DEFAULT_RATE))
    grid_scores = []
    for name, make in shapes.items():
        tuned[name] = tune(tuning, make, GRID_STARTS["sgd"], rate_limits("sgd"))
        by_rate = {rate: report.run(make(rate)) for rate in tuned[name].scores}
        results[f"Best shared {name}"] = by_rate[tuned[name].best]
        grid_scores += [result.scores for result in by_rate.values()]
    tuned["SPS"] = tune(tuning, polyak, GRID_STARTS["sps"], (1e-6, 1e3))
    results["SPS, tuned constant"] = report.run(polyak(tuned["SPS"].best))
    for optimizer, label in (("momentum", "SGD with momentum"), ("adam", "Adam")):
        make = schedule_shapes(horizon, optimizer)["constant"]
        tuned[optimizer] = tune(tuning, make, GRID_STARTS[optimizer], rate_limits(optimizer))
        results[f"{BETTER_OPTIMIZER}{label}, best shared constant"] = report.run(make(tuned[optimizer].best))
    return Baselines(results, tuned, np.min(grid_scores, axis=0), time.perf_counter() - start)


def summarise(results: dict[str, Result], hindsight: np.ndarray) -> list[dict[str, Any]]:
    """One row per controller: mean score, diverged fraction, and the paired difference of DDPG to it."""
    learned = results[LEARNED].scores
    rows = {name: _row(name, result.scores, result, learned) for name, result in results.items()}
    better = [name for name in rows if name.startswith(BETTER_OPTIMIZER)]
    order = [name for name in rows if name not in better]
    return [*(rows[name] for name in order), _row(HINDSIGHT, hindsight, None, learned), *(rows[name] for name in better)]


def _row(name: str, scores: np.ndarray, result: Result | None, learned: np.ndarray) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "score": float(scores.mean()), "diverged": None, "test_accuracy": None, "difference": None}
    if result is not None:
        row["diverged"] = float(result.diverged.mean())
        assert result.test_metrics is not None
        if not result.diverged.all():
            row["test_accuracy"] = float(result.test_metrics[~result.diverged].mean())
    if name != LEARNED:
        row["difference"] = dataclasses.asdict(paired_difference(learned, scores))
    return row


def render_table(table: list[dict[str, Any]], seconds: float, baselines: Baselines, options: Options) -> Table:
    """The table for the terminal."""
    rendered = Table(
        title=f"Final training loss of {options.trainings} fresh trainings (mean log10; lower is better)",
        caption=f"DDPG − other: mean paired difference with its 95 % bootstrap interval; below 0, DDPG is better.\n"
        f"DDPG trained for {options.steps:,} steps in {seconds:.0f} s; the baselines took {baselines.seconds:.0f} s.",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("Controller", "log10 loss", "DDPG − other", "95 % interval", "Diverged", "Test accuracy"):
        rendered.add_column(column, justify="left" if column == "Controller" else "right", no_wrap=True)
    is_better_section = False
    for row in table:
        if row["name"].startswith(BETTER_OPTIMIZER) and not is_better_section:
            is_better_section = True
            rendered.add_section()
            rendered.add_row(BETTER_OPTIMIZER.rstrip(": "), style="italic")
        difference = row["difference"]
        cells = ["", ""] if difference is None else [f"{difference['mean']:+.3f}", f"[{difference['low']:+.3f}, {difference['high']:+.3f}]"]
        shares = ["" if row[key] is None else f"{row[key]:.1%}" for key in ("diverged", "test_accuracy")]
        name = row["name"].removeprefix(BETTER_OPTIMIZER)
        rendered.add_row(name, f"{row['score']:+.3f}", *cells, *shares, style="bold" if name == LEARNED else None)
    return rendered


def write_results(
    options: Options, table: list[dict[str, Any]], baselines: Baselines, seconds: float, bound: BoundController, results: dict[str, Result]
) -> None:
    """Everything behind the table, as ``results.json``."""
    data = {
        "options": {**dataclasses.asdict(options), "output": str(options.output)},
        "agent": dataclasses.asdict(DDPG_CONFIG),
        "mdp": bound.mdp.to_dict(),
        "seconds": {"training": seconds, "baselines": baselines.seconds},
        "table": table,
        "tuned": {name: {"best": tuned.best, "scores": list(tuned.scores.items())} for name, tuned in baselines.tuned.items()},
        "scores": {name: result.scores.tolist() for name, result in results.items()},
        "versions": {"lr_env": lr_env.__version__, "torch": torch.__version__, "gymnasium": gym.__version__, "numpy": np.__version__},
    }
    (options.output / "results.json").write_text(json.dumps(data, indent=1) + "\n")


def _show(bar: tqdm[Any], agent: DDPG) -> None:
    bar.update(agent.num_steps_taken - bar.n)


def _one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
