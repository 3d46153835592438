"""Does the online actor-critic of Xu et al. 2017 set the rate of the very training that it learns in better than people do?

Trains a small CNN on MNIST under it, several seeds side by side, each with an actor and a critic of its own, and under its ablations; on the same
trainings (same weights, same data order) under every constant rate of a grid, and under the stochastic Polyak step size and Adam, whose
constants were tuned on other trainings. It needs no training beforehand, and so has only one training's steps to learn from.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.table import Table
from tqdm import tqdm

import lr_env  # registers the environment
from agents.actor_critic import ONLINE_ENVIRONMENT, ActorCriticConfig, OnlineActorCritic
from benchmarks.baselines import GRID_STARTS, RunnerCache, polyak, rate_limits, schedule_shapes, tune
from benchmarks.online_figure import draw
from benchmarks.runner import DIVERGENCE_PENALTY, Result
from benchmarks.statistics import paired_difference
from benchmarks.terminal import make_console
from lr_env.controllers import BoundController
from lr_env.seeding import Role, role_seeds

ONLINE = "Online actor-critic"
BEST_CONSTANT, POLYAK, ADAM = "SGD, tuned constant", "SPS, tuned constant", "Adam, tuned constant"
RIVALS = (BEST_CONSTANT, POLYAK, ADAM)

VARIANTS: dict[str, tuple[dict[str, Any], float | None]] = {
    ONLINE: ({}, None),
    "… actor on the same minibatch": ({"actor_example": "same"}, None),
    "… log output": ({"output": "log"}, None),
    "… log output, same minibatch": ({"output": "log", "actor_example": "same"}, None),
    "… without exploration": ({"exploration": "none"}, None),
    "… log output, no exploration": ({"output": "log", "exploration": "none"}, None),
    "… discount 0": ({"discount": 0.0}, None),
    "… discount 0.99": ({"discount": 0.99}, None),
    "… first rate 0.01": ({}, 0.01),
    "… first rate 1": ({}, 1.0),
}
"""Name to changed choices of the agent, and the initial rate, None for SGD's default of 0.1, which the agent is told."""

BASELINES: dict[str, tuple[str, Callable[[float], BoundController], tuple[float, float]]] = {
    BEST_CONSTANT: ("sgd", schedule_shapes(1)["constant"], rate_limits("sgd")),
    POLYAK: ("sps", polyak, (1e-3, 1e3)),
    ADAM: ("adam", schedule_shapes(1, "adam")["constant"], rate_limits("adam")),
}
"""Name to grid, controller of a point, and limits of the points."""


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    task: str = "mnist-cnn"
    """Name of the task."""
    horizon: int = 400
    """SGD steps of each training."""
    trainings: int = 8
    """Reported trainings, at least 2, side by side."""
    tuning_trainings: int = 3
    """Other trainings, on which the baselines' constants are tuned."""
    num_examples: int = 4_096
    """Examples of each split over which final losses and accuracies are taken."""
    seed: int = 0
    """Seed of the whole run."""
    processes: int = 2
    """Jobs at the same time, each on one core."""
    output: Path = Path("results/online")
    """Folder of the results."""


def main(options: Options) -> None:
    """Runs what ``results.json`` does not hold already, and prints the table."""
    file = options.output / "results.json"
    settings = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("processes", "output")}
    done: dict[str, Any] = {}
    if file.exists():
        previous = json.loads(file.read_text())
        if previous["options"] != settings:
            raise SystemExit(f"{file} is from a run with other options; remove it, or choose another --output.")
        done = previous["rows"]
    options.output.mkdir(parents=True, exist_ok=True)
    jobs = [name for name in (*BASELINES, *VARIANTS) if name not in done]
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _one_thread) as pool:
        pending = {pool.submit(run_job, name, options): name for name in jobs}
        for future in tqdm(as_completed(pending), total=len(jobs), desc="Training", unit=" jobs", dynamic_ncols=True):
            done[pending[future]] = future.result()
            _write(file, settings, done, [])
    rows = summarise(done)
    _write(file, settings, done, rows)
    draw({name: done[name] for name in (*RIVALS, "… log output", ONLINE)}, options.output / "online.png")
    console = make_console()
    console.print(render_table(rows, options))
    for sentence in verdicts(rows):
        console.print(sentence)
    console.print(f"Written to {options.output}/: results.json, online.png")


def run_job(name: str, options: Options) -> dict[str, Any]:
    """One variant of the agent, or one baseline: tuned, and run on the reported trainings."""
    start = time.perf_counter()
    reported = role_seeds(options.seed, Role.REPORT, options.trainings)
    if name in VARIANTS:
        changes, initial_rate = VARIANTS[name]
        row = as_row(run_online(ActorCriticConfig(**changes), options, reported, initial_rate))
        return row | {"seconds": time.perf_counter() - start}
    grid, make, limits = BASELINES[name]
    make_runners = partial(RunnerCache, options.task, horizon=options.horizon, num_examples=options.num_examples)
    tuned = tune(make_runners(role_seeds(options.seed, Role.TUNE, options.tuning_trainings), tests=False), make, GRID_STARTS[grid], limits)
    report = make_runners(reported)
    row = as_row(report.run(make(tuned.best))) | {"best": tuned.best, "tuning_scores": sorted(tuned.scores.items())}
    if name == BEST_CONSTANT:
        row["grid"] = [[rate, as_row(report.run(make(rate)))] for rate in sorted(tuned.scores)]
    return row | {"seconds": time.perf_counter() - start}


def run_online(config: ActorCriticConfig, options: Options, seeds: list[int], initial_rate: float | None = None) -> Result:
    """The agent on one training per seed."""
    environment = gym.make_vec(
        "LearningRate-v0", num_envs=len(seeds), task=options.task, horizon=options.horizon, initial_rate=initial_rate, **ONLINE_ENVIRONMENT
    )
    episodes = environment.unwrapped.episodes  # type: ignore[attr-defined]
    environment.reset(seed=seeds)  # type: ignore[arg-type]
    initial = np.log10(episodes.evaluate("train", options.num_examples).losses)
    record = OnlineActorCritic(config, options.seed).run(environment, seeds)
    final, test = (episodes.evaluate(split, options.num_examples) for split in ("train", "test"))
    with np.errstate(invalid="ignore"):
        scores = np.where(record.diverged, initial + DIVERGENCE_PENALTY, np.log10(final.losses))
    return Result(scores, record.diverged, test.losses, test.metrics, record.losses, record.rates)


def as_row(result: Result) -> dict[str, Any]:
    """A result as plain data: numbers ``(N,)`` of the trainings, and the curves' means over those that go on, of logarithms."""
    assert result.test_metrics is not None
    with np.errstate(divide="ignore"):
        losses, rates = np.log10(result.losses), np.log10(result.rates)
    alive = ~result.diverged
    curves = {
        name: np.nanmean(values[:, alive], axis=1).round(4).tolist() if alive.any() else None for name, values in (("loss", losses), ("rate", rates))
    }
    return {
        "scores": result.scores.tolist(),
        "curve_means": np.where(result.diverged, np.nanmax(losses), np.nanmean(losses, axis=0)).tolist(),
        "diverged": result.diverged.tolist(),
        "test_accuracies": np.where(result.diverged, 0.1, result.test_metrics).tolist(),
        "final_rates": [float(rate) for rate in result.rates[-1][alive]],
        "curves": curves,
    }


def summarise(done: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per controller, constants of the grid among them, with the paired difference of the agent's final log10 loss to it."""
    online = np.array(done[ONLINE]["scores"])
    named = {f"SGD, constant {rate:.3g}": row for rate, row in done[BEST_CONSTANT]["grid"]}
    named |= {f"{name} {done[name]['best']:.3g}": done[name] for name in BASELINES}
    named |= {name: done[name] for name in VARIANTS}
    table = []
    for name, row in named.items():
        difference = None if name == ONLINE else dataclasses.asdict(paired_difference(online, np.array(row["scores"])))
        means = {key: float(np.mean(row[key])) for key in ("scores", "curve_means", "test_accuracies", "diverged")}
        table.append({"name": name, **means, "final_rates": row["final_rates"], "difference": difference})
    return table


def render_table(table: list[dict[str, Any]], options: Options) -> Table:
    """The table for the terminal."""
    rendered = Table(
        title=f"{options.task}, {options.horizon} steps, {options.trainings} trainings (mean log10 training loss; lower is better)",
        caption="All steps: minibatch losses; final: fixed examples. Agent − other: paired, final, bootstrap; below 0, the agent is better.",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("Controller", "all steps", "final", "agent − other [95 %]", "last rates", "diverged", "accuracy"):
        rendered.add_column(column, justify="left" if column == "Controller" else "right", no_wrap=True)
    for row in table:
        difference, rates = row["difference"], row["final_rates"]
        interval = "" if difference is None else f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        span = f"{min(rates):.2g} – {max(rates):.2g}" if rates else ""
        numbers = [f"{row['curve_means']:+.3f}", f"{row['scores']:+.3f}", interval, span, f"{row['diverged']:.0%}", f"{row['test_accuracies']:.1%}"]
        rendered.add_row(row["name"], *numbers, style="bold" if row["name"] == ONLINE else None)
        if row["name"].startswith(ADAM):
            rendered.add_section()
    return rendered


def verdicts(table: list[dict[str, Any]]) -> list[str]:
    """In words, which of the paper's claims the intervals support."""
    sentences = []
    claims = {rival: f"It converges better than {rival}" for rival in RIVALS}
    claims["… actor on the same minibatch"] = "An actor that learns on another minibatch is better than one on the same"
    for prefix, claim in claims.items():
        difference = next(row["difference"] for row in table if row["name"].startswith(prefix))
        low, high = difference["low"], difference["high"]
        answer = "held" if high < 0 else "did not hold, the reverse did" if low > 0 else "undecided"
        sentences.append(f"{claim}: {answer} ({difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]).")
    return sentences


def _write(file: Path, settings: dict[str, Any], done: dict[str, Any], table: list[dict[str, Any]]) -> None:
    versions = {"lr_env": lr_env.__version__, "torch": torch.__version__, "gymnasium": gym.__version__, "numpy": np.__version__}
    agent = dataclasses.asdict(ActorCriticConfig())
    data = {"options": settings, "agent": agent, "table": table, "verdicts": verdicts(table) if table else [], "rows": done, "versions": versions}
    file.write_text(json.dumps(data, indent=1) + "\n")


def _one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
