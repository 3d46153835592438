"""What does ControllerLR add to a training step?

Run ``python -m benchmarks.overhead``. Square layers with biases, of about so many parameters in all, with the default features: the time
of ``controller.step(loss)``, beside that of ``optimizer.step()`` and of one pass over the gradients (the norm of one flat vector of
them), each the median of repeats by turns; the bound is 150 µs and three passes. Memory is what a fresh process grows by at its peak, on
top of what the optimizer's own step has taken. The last rows are a small convolutional network with its forward and backward pass; there
the share of the step counts. Times are the thread's own on its processor: other programs share caches and memory with it, but their turns
do not count.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.kept import kept, unfinished
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.terminal import make_console, run_command
from lr_env import MDP, BoundController, ControllerLR, PolicyNetwork

OptimizerName = Literal["sgd", "momentum", "adamw"]

LAYERS = {10_000: 3, 1_000_000: 10, 25_000_000: 53}
"""Layers by the number of parameters."""

BOUND_SECONDS, BOUND_PASSES, BOUND_SHARE = 150e-6, 3, 0.01
"""Of a step of the controller; the share is of the whole training step, where that takes 10 ms or more."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    parameters: tuple[int, ...] = tuple(LAYERS)
    """Sizes of the models."""
    optimizers: tuple[OptimizerName, ...] = ("sgd", "momentum", "adamw")
    """What the controller steers."""
    compiles: tuple[bool, ...] = (False, True)
    """Whether the controller's kernel measures; see ControllerLR."""
    seconds: float = 5.0
    """Duration of the measurements of a row; 5 repeats at least."""
    output: Path = Path("results/overhead.json")
    """Where the numbers go. Until the last row is measured, a folder beside it keeps the others, so that a run that was killed goes on where it
    stopped."""


@dataclass(frozen=True)
class Result:
    """One row, medians in seconds."""

    model: str
    optimizer: OptimizerName
    parameters: int
    controller: float
    update: float
    gradient_pass: float
    bytes_of_memory: int | None
    compiles: bool = False
    training_step: float | None = None
    """Forward, backward, controller and update."""

    @property
    def passes(self) -> float:
        """What the controller takes beyond :data:`BOUND_SECONDS`, in passes over the gradients."""
        return max(self.controller - BOUND_SECONDS, 0.0) / self.gradient_pass

    @property
    def bound(self) -> float:
        """Seconds that the controller may take."""
        if self.training_step is not None and self.training_step >= 0.01:
            return BOUND_SHARE * self.training_step
        return BOUND_SECONDS + BOUND_PASSES * self.gradient_pass


def make_optimizer(name: OptimizerName, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """With torch's defaults and a small rate."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, 1e-3)
    return torch.optim.SGD(parameters, 1e-3, momentum=0.9 if name == "momentum" else 0.0)


def make_controller(name: OptimizerName, optimizer: torch.optim.Optimizer, compiles: bool = False) -> ControllerLR:
    """A network of the default size; what it decides takes no matter."""
    mdp = MDP(optimizer=name, lr_max=1e-3, initial_rate=1e-3)
    num_features = mdp.begin(1, 1, 0.0).observation_space.shape
    assert num_features is not None
    return ControllerLR(optimizer, BoundController(PolicyNetwork(num_features[0], 1), mdp), total_steps=10**6, compile=compiles)


def measure_layers(name: OptimizerName, size: int, seconds: float, compiles: bool = False) -> Result:
    """A row of square layers."""
    torch.set_num_threads(1)
    layers = LAYERS.get(size, 10)
    width = round((size / layers) ** 0.5)
    parameters = [nn.Parameter(0.01 * torch.randn(shape)) for _ in range(layers) for shape in ((width, width), (width,))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return _measure("layers", name, parameters, lambda: torch.ones(()), seconds, compiles)


def measure_network(name: OptimizerName, seconds: float, compiles: bool = False) -> Result:
    """The row of the convolutional network, on 128 images of 28 × 28."""
    torch.set_num_threads(1)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 10)
    )
    images, targets = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))

    def backward() -> Tensor:
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(images), targets)
        loss.backward()
        return loss

    return _measure("cnn", name, list(network.parameters()), backward, seconds, compiles, whole=True)


def _measure(
    model: str,
    name: OptimizerName,
    parameters: Sequence[nn.Parameter],
    backward: Callable[[], Tensor],
    seconds: float,
    compiles: bool,
    whole: bool = False,
) -> Result:
    optimizer = make_optimizer(name, parameters)
    for _ in range(2):
        loss = backward()
        optimizer.step()
    before = reset_peak()
    controller = make_controller(name, optimizer, compiles)
    for _ in range(2):
        controller.step(loss)
    memory = None if before is None else peak_bytes() - before
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    rows: list[list[float]] = []
    start = time.perf_counter()
    while len(rows) < 5 or time.perf_counter() - start < seconds:
        times = [time.thread_time()]
        loss = backward()
        times.append(time.thread_time())
        controller.step(loss)
        times.append(time.thread_time())
        optimizer.step()
        times.append(time.thread_time())
        torch.linalg.vector_norm(flat)
        times.append(time.thread_time())
        rows.append(np.diff(times).tolist())
    passes, controlling, updating, norm = np.median(rows, axis=0).tolist()
    training_step = passes + controlling + updating if whole else None
    return Result(model, name, len(flat), controlling, updating, norm, memory, compiles, training_step)


def make_table(results: Sequence[Result]) -> Table:
    """For people."""
    table = Table(title="ControllerLR: what a step costs, µs of one thread")
    for column in (
        "model",
        "optimizer",
        "compiled",
        "parameters",
        "controller",
        "bound",
        "update",
        "pass",
        "passes",
        "MB more",
        "of a step",
    ):
        table.add_column(column, justify="left" if column in ("model", "optimizer", "compiled") else "right")
    for result in results:
        times = (f"{1e6 * value:,.0f}" for value in (result.controller, result.bound, result.update, result.gradient_pass))
        share = "" if result.training_step is None else f"{result.controller / result.training_step:.1%} of {1e3 * result.training_step:.0f} ms"
        table.add_row(
            result.model,
            result.optimizer,
            "yes" if result.compiles else "",
            f"{result.parameters:,}",
            *times,
            f"{result.passes:.1f}",
            "–" if result.bytes_of_memory is None else f"{result.bytes_of_memory / 1e6:.1f}",
            share,
        )
    return table


def kept_row(folder: Path, seconds: float, size: int | None, name: OptimizerName, compiles: bool) -> Result:
    """A row that an unfinished run has measured, else measured in a process of its own.

    Args:
        folder: Where the run keeps its rows.
        seconds: See :class:`Options`.
        size: Parameters of square layers; None for the convolutional network.
        name: Of the optimizer.
        compiles: Whether the controller's kernel measures.
    """

    def measured() -> dict[str, Any]:
        measure = partial(measure_network, name) if size is None else partial(measure_layers, name, size)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return asdict(pool.submit(measure, seconds, compiles).result())

    return Result(**kept(folder / f"{size or 'cnn'}, {name}{', compiled' * compiles}.json", {"seconds": seconds}, measured))


def main(options: Options) -> None:
    """Measures all rows and prints a table; goes on where a run was killed."""
    rows = list(itertools.product((*options.parameters, None), options.optimizers, options.compiles))
    with unfinished(options.output) as folder:
        results = [kept_row(folder, options.seconds, *row) for row in tqdm(rows, desc="Measuring", unit=" rows")]
        options.output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    make_console().print(make_table(results))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
