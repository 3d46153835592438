"""Does the online actor-critic of Xu et al. 2017 set the rate of the very training that it learns in better than people do?

Trains a small CNN on MNIST under it, several seeds side by side, each with an actor and a critic of its own, and under its ablations; on the same
trainings (same weights, same data order) under every constant rate of a grid, and under the stochastic Polyak step size and Adam, whose
constants were tuned on other trainings. It needs no training beforehand, and so has only one training's steps to learn from.

Every controller's trainings are a cell of their own, kept in a file: a killed run goes on where it stopped, and several runs may share a folder.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from filelock import Timeout
from rich.table import Table
from tqdm import tqdm

import lr_env  # registers the environment
from agents.actor_critic import ActorCriticConfig, OnlineActorCritic
from benchmarks.baselines import GRID_STARTS, Tuned, extended_search, grid, polyak, rate_limits, schedule_shapes
from benchmarks.kept import kept
from benchmarks.online_figure import draw
from benchmarks.runner import Result, Runner, require_accuracy
from benchmarks.statistics import check_sample, paired_difference
from benchmarks.terminal import make_console, run_command
from lr_env.controllers import BoundController
from lr_env.episodes import Execution
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
    horizon: int = 1_500
    """SGD steps of each training."""
    trainings: int = 6
    """Reported trainings, at least 2, side by side."""
    tuning_trainings: int = 2
    """Other trainings, on which the baselines' constants are tuned."""
    num_examples: int = 4_096
    """Examples of each split over which final losses and accuracies are taken."""
    seed: int = 0
    """Seed of the whole run."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are trained; the agents stay on the CPU."""
    processes: int = 2
    """Cells at the same time, each on one core."""
    output: Path = Path("results/online")
    """Folder of the results."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on; on the device only by rounding."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("device", "processes", "output")}


@dataclass(frozen=True)
class Cell:
    """The trainings of one controller.

    Attributes:
        name: Of a variant or a baseline.
        point: A baseline's constant; None for the agent.
        tunes: Whether on the trainings that constants are tuned on.
    """

    name: str
    point: float | None = None
    tunes: bool = False

    @property
    def path(self) -> Path:
        """Its file, within the output."""
        words = [self.name] if self.point is None else [self.name, f"{self.point:.4g}", "tuning" if self.tunes else "report"]
        return Path("cells") / f"{re.sub(r'[^a-zA-Z0-9.]+', '-', ' '.join(words)).strip('-')}.json"


def main(options: Options) -> None:
    """Runs what the output does not hold already, and prints the table."""
    check_sample("trainings", options.trainings)
    require_accuracy(options.task)
    done = run_cells(options)
    rows = collect(done)
    table = summarise(rows)
    _write(options, table, rows, done)
    grid = {name: row for name, row in rows.items() if name.startswith("SGD, constant")}
    draw({name: rows[name] for name in (*RIVALS, "… log output", ONLINE)}, grid, options.output / "online.png")
    console = make_console()
    console.print(render_table(table, options))
    for sentence in verdicts(table):
        console.print(sentence)
    seconds = sum(row["seconds"] for row in done.values())
    console.print(f"{seconds:,.0f} CPU seconds in all. Written to {options.output}/: results.json, online.png")


def run_cells(options: Options) -> dict[Cell, dict[str, Any]]:
    """All cells; those that other processes compute are waited for."""
    done: dict[Cell, dict[str, Any]] = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _one_thread) as pool, tqdm(desc="Training", unit=" cells") as bar:
        pending: dict[Future[dict[str, Any] | None], Cell] = {}
        while True:
            wanted = [cell for cell in wanted_cells(done) if cell not in done]
            bar.total = len(done) + len(wanted)
            pending |= {pool.submit(find_cell, cell, options): cell for cell in wanted if cell not in pending.values()}
            if not pending:
                return done
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                cell, row = pending.pop(future), future.result()
                if row is not None:
                    done[cell] = row
                    bar.update()


def wanted_cells(done: Mapping[Cell, Mapping[str, Any]]) -> list[Cell]:
    """What is needed as far as it is known: a baseline's best constant is, once its grid has been tried.

    Args:
        done: Cells that are known.
    """
    cells = [Cell(name) for name in VARIANTS]
    for name, (start, _, _) in BASELINES.items():
        cells += [Cell(name, point, tunes=True) for point in grid(GRID_STARTS[start])]
    cells += [Cell(BEST_CONSTANT, point) for point in grid(GRID_STARTS[BASELINES[BEST_CONSTANT][0]])]
    for name in BASELINES:
        try:
            tuned = tune(name, done)
        except KeyError as missing:
            if missing.args[0] not in cells:
                cells.append(missing.args[0])
        else:
            cells += [Cell(name, point) for point in (tuned.scores if name == BEST_CONSTANT else [tuned.best])]
    return list(dict.fromkeys(cells))


def tune(name: str, done: Mapping[Cell, Mapping[str, Any]]) -> Tuned:
    """The best constant of a baseline.

    Raises:
        KeyError: With the cell that is missing.
    """
    start, _, limits = BASELINES[name]
    return extended_search(lambda point: float(np.mean(done[Cell(name, point, tunes=True)]["scores"])), grid(GRID_STARTS[start]), *limits)


def find_cell(cell: Cell, options: Options) -> dict[str, Any] | None:
    """A cell's row, computed where its file does not hold it; None, after a second, where another process computes it."""
    try:
        return kept(options.output / cell.path, options.settings, partial(run_cell, cell, options), patience=1.0)
    except Timeout:
        return None


def run_cell(cell: Cell, options: Options) -> dict[str, Any]:
    """Trains one controller on the reported or the tuning trainings."""
    start = time.process_time()
    if cell.point is None:
        changes, initial_rate = VARIANTS[cell.name]
        bound = OnlineActorCritic(ActorCriticConfig(**changes), options.seed).bind()
        bound = dataclasses.replace(bound, mdp=dataclasses.replace(bound.mdp, initial_rate=initial_rate))
    else:
        bound = BASELINES[cell.name][1](cell.point)
    role, trainings = (Role.TUNE, options.tuning_trainings) if cell.tunes else (Role.REPORT, options.trainings)
    seeds, execution = role_seeds(options.seed, role, trainings), Execution(device=options.device)
    runner = Runner(options.task, bound.mdp, seeds, options.horizon, options.num_examples, tests=not cell.tunes, execution=execution)
    result = runner.run(bound.controller)
    row = {"scores": result.scores.tolist()} if cell.tunes else as_row(result)
    return row | {"seconds": time.process_time() - start}


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


def collect(done: Mapping[Cell, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of reported trainings by name: constants of the grid, baselines at their best constant, the agent and its ablations."""
    tuned = {name: tune(name, done) for name in BASELINES}
    rows = {f"SGD, constant {rate:.3g}": done[Cell(BEST_CONSTANT, rate)] for rate in sorted(tuned[BEST_CONSTANT].scores)}
    for name, found in tuned.items():
        rows[name] = done[Cell(name, found.best)] | {"best": found.best, "tuning_scores": sorted(found.scores.items())}
    return rows | {name: done[Cell(name)] for name in VARIANTS}


def summarise(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per controller, with the paired difference of the agent's final log10 loss to it."""
    online = np.array(rows[ONLINE]["scores"])
    table = []
    for name, row in rows.items():
        difference = None if name == ONLINE else dataclasses.asdict(paired_difference(online, np.array(row["scores"])))
        means = {key: float(np.mean(row[key])) for key in ("scores", "curve_means", "test_accuracies", "diverged")}
        shown = f"{name} {row['best']:.3g}" if "best" in row else name
        table.append({"name": shown, **means, "final_rates": row["final_rates"], "difference": difference})
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


def _write(options: Options, table: list[dict[str, Any]], rows: Mapping[str, Any], done: Mapping[Cell, Mapping[str, Any]]) -> None:
    versions = {"lr_env": lr_env.__version__, "torch": torch.__version__, "gymnasium": gym.__version__, "numpy": np.__version__}
    data = {"options": options.settings, "agent": dataclasses.asdict(ActorCriticConfig()), "table": table, "verdicts": verdicts(table)}
    seconds = sum(row["seconds"] for row in done.values())
    (options.output / "results.json").write_text(json.dumps(data | {"rows": rows, "seconds": seconds, "versions": versions}, indent=1) + "\n")


def _one_thread() -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
