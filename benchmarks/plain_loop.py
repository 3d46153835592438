"""What does a controller do in a plain training loop of PyTorch, started at rates that are right, too low and too high?

Trains a small CNN on MNIST by SGD with momentum, once at each constant rate and once under ``ControllerLR`` from the same first rate: same
weights, same minibatches. Prints a table and draws losses and rates.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import lr_env
from benchmarks.runner import require_accuracy
from benchmarks.terminal import make_console, run_command
from lr_env import ControllerLR
from lr_env.seeding import Role, preserved_global_generators, role_seeds
from lr_env.tasks import make_task
from lr_env.tasks.task import Data, Split, Task

COLOURS = ("#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00")
SMOOTHING = 25
"""Steps of the trailing mean over a curve: one minibatch's loss is noisy."""


@dataclass(frozen=True)
class Options:
    """Options of the comparison."""

    controller: str = "pretrained"
    """The controller: ``pretrained`` or a file."""
    task: str = "mnist-cnn"
    """Name of the task."""
    rates: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """First rates, at most six."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    steps: int = 1_000
    """SGD steps of each training."""
    trainings: int = 3
    """Trainings from each first rate."""
    seed: int = 0
    """Seed of weights and minibatches."""
    output: Path = Path("results/plain_loop")
    """Folder of the results."""


@dataclass
class Run:
    """One training.

    Attributes:
        rate: The first one.
        controlled: Whether the controller set the others.
        losses: Of the minibatches, ``(T,)``.
        rates: ``(T,)``.
        test_loss: After the last step, over the test split.
        test_accuracy: The same.
    """

    rate: float
    controlled: bool
    losses: list[float]
    rates: list[float]
    test_loss: float
    test_accuracy: float


def main(options: Options) -> None:
    """Trains, prints the table and draws the picture."""
    if not 0 < len(options.rates) <= len(COLOURS):
        raise SystemExit(f"rates must hold one to {len(COLOURS)} rates, but {len(options.rates)} were given.")
    torch.set_num_threads(1)
    task = make_task(options.task)
    if not isinstance(task, Task) or not isinstance(task.data, Data):
        raise SystemExit(f"{options.task} is no task with a data set. Name one.")
    require_accuracy(options.task)
    settings = [
        (rate, controlled, seed)
        for rate in options.rates
        for controlled in (False, True)
        for seed in role_seeds(options.seed, Role.REPORT, options.trainings)
    ]
    runs = [train(task, task.data, options, *setting) for setting in tqdm(settings, desc="Training", unit=" trainings", dynamic_ncols=True)]
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"options": {**asdict(options), "output": str(options.output)}, "runs": [asdict(run) for run in runs]}
    record["versions"] = {"lr_env": lr_env.__version__, "torch": torch.__version__}
    (options.output / "results.json").write_text(json.dumps(record) + "\n")
    draw(runs, options.output / "plain_loop.png")
    console = make_console()
    console.print(render_table(runs, options))
    console.print(f"Written to {os.fspath(options.output)}/: results.json, plain_loop.png")


def train(task: Task, data: Data, options: Options, rate: float, controlled: bool, seed: int) -> Run:
    """One training, as anybody would write it."""
    with preserved_global_generators():
        torch.manual_seed(seed)
        model = task.model()
        criterion = nn.CrossEntropyLoss()
        generator = torch.Generator().manual_seed(seed)
        examples = TensorDataset(data.train.inputs, data.train.targets)
        loader = DataLoader(examples, task.batch_size, shuffle=True, drop_last=True, generator=generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=options.momentum)
        controller = ControllerLR(optimizer, options.controller, total_steps=options.steps) if controlled else None
        losses: list[float] = []
        rates: list[float] = []
        while len(losses) < options.steps:
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = criterion(model(inputs), targets)
                loss.backward()
                if controller is not None:
                    controller.step(loss)
                optimizer.step()
                losses.append(loss.item())
                rates.append(float(optimizer.param_groups[0]["lr"]))
                if len(losses) == options.steps:
                    break
    return Run(rate, controlled, losses, rates, *evaluate(model, data.test))


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over a split."""
    outputs = torch.cat([model.eval()(inputs) for inputs in split.inputs.split(1_024)])
    return float(nn.functional.cross_entropy(outputs, split.targets)), float((outputs.argmax(1) == split.targets).float().mean())


def render_table(runs: list[Run], options: Options) -> Table:
    """Medians over the trainings from each first rate."""
    rendered = Table(
        title=f"{options.task}, {options.steps:,} steps of SGD with momentum {options.momentum:g}: medians of {options.trainings} trainings",
        title_justify="left",
    )
    for column in ("First rate", "constant: test loss", "accuracy", "controller: test loss", "accuracy", "rate: median", "last"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for rate in options.rates:
        cells = []
        for controlled in (False, True):
            own = [run for run in runs if run.rate == rate and run.controlled == controlled]
            cells += [f"{np.median([run.test_loss for run in own]):.3f}", f"{np.median([run.test_accuracy for run in own]):.1%}"]
        medians = np.median([[np.median(run.rates), run.rates[-1]] for run in runs if run.rate == rate and run.controlled], axis=0)
        rendered.add_row(f"{rate:g}", *cells, *(f"{value:.2g}" for value in medians))
    return rendered


def draw(runs: list[Run], path: Path) -> None:
    """Medians over the trainings from each first rate: losses, and the controller's rates."""
    first_rates = list(dict.fromkeys(run.rate for run in runs))
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 3.8), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        constant_axes, controlled_axes, rate_axes = figure.subplots(1, 3)
        controlled_axes.sharey(constant_axes)
        for rate, colour in zip(first_rates, COLOURS, strict=False):
            for controlled, axes in ((False, constant_axes), (True, controlled_axes)):
                own = [run for run in runs if run.rate == rate and run.controlled == controlled]
                axes.plot(_smooth(np.median([run.losses for run in own], axis=0)), color=colour, linewidth=1.6, label=f"{rate:g}")
                if controlled:
                    rate_axes.plot(_smooth(np.median([run.rates for run in own], axis=0)), color=colour, linewidth=1.6)
        for axes, title in ((constant_axes, "Loss at a constant rate"), (controlled_axes, "Loss under the controller"), (rate_axes, "Its rate")):
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_yscale("log")
            axes.set_xlabel("SGD step")
            axes.grid(alpha=0.25, which="major")
        handles, labels = constant_axes.get_legend_handles_labels()
        figure.legend(handles, [f"first rate {label}" for label in labels], loc="outside upper center", ncols=len(labels), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _smooth(values: Any) -> np.ndarray:
    """Trailing geometric means."""
    logarithms = np.log10(np.maximum(np.nan_to_num(values, nan=np.inf, posinf=1e6), 1e-12))
    padded = np.concatenate([np.full(SMOOTHING - 1, logarithms[0]), logarithms])
    means: np.ndarray = 10 ** np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING).mean(-1)
    return means


if __name__ == "__main__":
    run_command(main, Options, __doc__)
