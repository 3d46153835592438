"""Prints the registered tasks: ``python -m lr_env.tasks``."""

from __future__ import annotations

import numpy as np

from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.registry import make_task, task_names
from lr_env.tasks.task import SPLITS, Data

HEADER = ("name", "train / validation / test", "parameters", "batch", "horizon", "metric", "varies")


def describe(task: TaskFamily) -> tuple[str, ...]:
    """One row of the table, in the order of :data:`HEADER`; of a family with several variants, the first one."""
    trained = task.variants[0]
    sizes = "fresh samples"
    if isinstance(trained.data, Data):
        sizes = " / ".join(f"{len(getattr(trained.data, split)):,}" for split in SPLITS)
    num_parameters = sum(parameter.numel() for parameter in trained.make_model(np.random.SeedSequence(0)).parameters())
    low, high = task.input_scale_decades
    varies = [f"{task.num_variants} variants"] if task.num_variants > 1 else []
    if task.varies_inputs:
        varies.append(f"inputs × 10^u, u from {low:g} to {high:g}")
    metric = "" if trained.metric is None else trained.metric.name
    return task.name, sizes, f"{num_parameters:,}", str(trained.batch_size), str(trained.horizon), metric, "; ".join(varies)


def main() -> None:
    """Prints the table."""
    table = [HEADER, *(describe(as_family(make_task(name))) for name in task_names())]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, tuple("-" * width for width in widths))
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
