"""Do the built-in tasks learn? Trains each one with a constant rate and evaluates the trained model on its test split."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from benchmarks.terminal import make_console, run_command
from lr_env.checks import unknown_name
from lr_env.seeding import Streams
from lr_env.tasks import make_task, task_data_sets
from lr_env.tasks.datasets import is_available
from lr_env.training import Population, make_optimizer


@dataclass(frozen=True)
class Budget:
    """How a task is trained, and what the trained model must reach.

    Attributes:
        optimizer: Its name.
        rate: Learning rate of every step.
        steps: SGD steps.
        least_metric: The metric on the test split must be at least this; None for any.
        largest_loss: The loss on the test split must be below this; None for any.
    """

    optimizer: str
    rate: float
    steps: int
    least_metric: float | None = None
    largest_loss: float | None = None

    @property
    def required(self) -> str:
        """What must be reached, in words."""
        metric = "" if self.least_metric is None else f"metric ≥ {self.least_metric:g}"
        return metric if self.largest_loss is None else f"loss < {self.largest_loss:g}"


BUDGETS: Mapping[str, Budget] = {
    "breast-cancer-mlp": Budget("momentum", 0.05, 300),
    "cifar10-cnn": Budget("momentum", 0.03, 3000),
    "cifar10-resnet": Budget("momentum", 0.05, 1500),
    "diabetes-mlp": Budget("momentum", 0.003, 200),
    "digits-logreg": Budget("momentum", 0.1, 600),
    "digits-mlp": Budget("momentum", 0.1, 600, least_metric=0.95),
    "digits-mlp-scaled": Budget("momentum", 0.03, 600),
    "fashion-cnn": Budget("momentum", 0.05, 2500, least_metric=0.84),
    "fashion-mlp": Budget("momentum", 0.02, 2500),
    "mnist-autoencoder": Budget("adam", 0.002, 2500),
    "mnist-cnn": Budget("momentum", 0.05, 1500, least_metric=0.97),
    "mnist-mlp": Budget("momentum", 0.05, 2500, least_metric=0.95),
    "noisy-quadratic": Budget("sgd", 0.1, 40),
    "rosenbrock": Budget("momentum", 0.03, 1000),
    "shakespeare-transformer": Budget("adam", 0.003, 1000, largest_loss=2.2),
    "wine-mlp": Budget("momentum", 0.01, 100),
}
"""By task."""


@dataclass(frozen=True)
class Options:
    """Options of the check."""

    tasks: tuple[str, ...] = tuple(BUDGETS)
    """Names of tasks."""
    seed: int = 0
    """Seed of the trainings."""
    download: bool = False
    """Whether data that are not at hand are downloaded; else their tasks are reported as missing."""
    output: Path = Path("results/tasks.json")
    """Where the numbers go."""


@dataclass(frozen=True)
class Outcome:
    """What a training gave; numbers are None where the data are missing.

    Attributes:
        task: Its name.
        budget: See :class:`Budget`.
        missing: Data sets that are not at hand.
        loss: Over the test split; of tasks without one, the noise-free loss.
        metric: The same of the task's metric, or None.
        metric_name: Such as ``"accuracy"``, or None.
        seconds: Of one core, for the training and its evaluation.
    """

    task: str
    budget: Budget
    missing: tuple[str, ...] = ()
    loss: float | None = None
    metric: float | None = None
    metric_name: str | None = None
    seconds: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the requirement was met; None where there is none or it is not known."""
        if self.loss is None or not self.budget.required:
            return None
        enough = self.budget.least_metric is None or (self.metric is not None and self.metric >= self.budget.least_metric)
        return enough and (self.budget.largest_loss is None or self.loss < self.budget.largest_loss)


def main(options: Options) -> None:
    """Trains all tasks and prints the table.

    Raises:
        SystemExit: With status 1 if a requirement was not met.
        ValueError: If a task has no budget.
    """
    torch.set_num_threads(1)
    for name in options.tasks:
        if name not in BUDGETS:
            raise unknown_name("task with a budget", name, BUDGETS)
    outcomes = [check(name, BUDGETS[name], options) for name in tqdm(options.tasks, desc="Training", unit=" tasks")]
    make_console().print(make_table(outcomes))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(outcome) | {"reached": outcome.reached} for outcome in outcomes], indent=1) + "\n")
    failed = [outcome.task for outcome in outcomes if outcome.reached is False]
    if failed:
        raise SystemExit(f"Not reached: {', '.join(failed)}.")


def check(name: str, budget: Budget, options: Options) -> Outcome:
    """The outcome of one task; data are loaded before the clock starts."""
    missing = tuple(data_set for data_set in task_data_sets(name) if not is_available(data_set))
    if missing and not options.download:
        return Outcome(name, budget, missing)
    task = make_task(name)
    start = time.process_time()
    population = Population(task, 1, make_optimizer(budget.optimizer)[0])
    population.restart(np.arange(1), [Streams(options.seed)])
    population.begin()
    rates = np.full((1, 1), budget.rate)
    for _ in range(budget.steps):
        population.step(rates)
    evaluation, metric = population.evaluate("test"), population.task.metric
    seconds = time.process_time() - start
    number = None if evaluation.metrics is None else float(evaluation.metrics[0])
    return Outcome(name, budget, (), float(evaluation.losses[0]), number, None if metric is None else metric.name, seconds)


def make_table(outcomes: list[Outcome]) -> Table:
    """One row per outcome."""
    table = Table(title="Built-in tasks at a constant rate, on the test split", title_justify="left")
    for column in ("Task", "Optimizer", "rate", "steps", "loss", "metric", "required", "met", "CPU s"):
        table.add_column(column, justify="left" if column in ("Task", "Optimizer") else "right")
    for outcome in outcomes:
        budget = outcome.budget
        plan = (outcome.task, budget.optimizer, f"{budget.rate:g}", f"{budget.steps:,}")
        reached = {None: "", True: "yes", False: "NO"}[outcome.reached]
        if outcome.loss is None or outcome.seconds is None:
            table.add_row(*plan, "–", f"no {', '.join(outcome.missing)} data", budget.required, reached, "–")
        else:
            metric = "" if outcome.metric is None else f"{outcome.metric:.4g} {outcome.metric_name}"
            table.add_row(*plan, f"{outcome.loss:.4g}", metric, budget.required, reached, f"{outcome.seconds:.1f}")
    return table


if __name__ == "__main__":
    run_command(main, Options, __doc__)
