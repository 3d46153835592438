"""Prints the registered tasks: ``python -m lr_env.tasks``. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.flop_counter import FlopCounterMode

from lr_env.seeding import preserved_global_generators
from lr_env.tasks.datasets import is_available
from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.registry import make_task, task_data_sets, task_names
from lr_env.tasks.task import SPLITS, Data, Task

HEADER = ("name", "data", "train / validation / test", "parameters", "MFLOPs / step", "batch", "horizon", "metric", "varies")


def row(name: str) -> tuple[str, ...]:
    """The row of a registered task, in the order of :data:`HEADER`; a short one where its data would have to be downloaded."""
    data_sets = task_data_sets(name)
    if not all(map(is_available, data_sets)):
        return name, ", ".join(data_sets), "not at hand: downloaded at the first use", *[""] * (len(HEADER) - 3)
    return name, ", ".join(data_sets), *describe(as_family(make_task(name)))


def describe(family: TaskFamily) -> tuple[str, ...]:
    """The columns from the splits on; spans from the least to the most where variants differ."""
    tasks = family.variants
    sizes = {_sizes(task) for task in tasks}
    num_parameters = [sum(parameter.numel() for parameter in task.initial_model(0).parameters()) for task in tasks]
    varies = [f"{family.num_variants} variants"] if family.num_variants > 1 else []
    scaled, noisy = ("" if fraction == 1 else f" in {fraction:.0%} of trainings" for fraction in (family.scaled_fraction, family.noisy_fraction))
    if family.varies_inputs:
        varies.append("inputs × 10^({:g} to {:g})".format(*family.input_scale_decades) + scaled)
    if family.varies_initialisation:
        varies.append("initial weights × 10^({:g} to {:g})".format(*family.initialisation_scale_decades) + scaled)
    if family.varies_labels:
        varies.append("label noise {:g} to {:g}".format(*family.label_noise) + noisy)
    return (
        sizes.pop() if len(sizes) == 1 else "by variant",
        _span(num_parameters, ",.0f"),
        _span([flops_per_step(task) / 1e6 for task in tasks], ",.2f"),
        _span([task.batch_size for task in tasks], "d"),
        _span([task.horizon for task in tasks], "d"),
        " or ".join(sorted({task.metric.name for task in tasks if task.metric is not None})),
        "; ".join(varies),
    )


def _sizes(task: Task) -> str:
    data = task.data
    return " / ".join(f"{len(getattr(data, split)):,}" for split in SPLITS) if isinstance(data, Data) else "fresh samples"


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def flops_per_step(task: Task) -> int:
    """Floating-point operations of a forward and a backward pass on one batch; matrix products and convolutions alone are counted."""
    inputs, targets = next(task.batches(0))
    model = task.initial_model(0)
    assert callable(task.loss)
    with preserved_global_generators(), FlopCounterMode(display=False) as counter:
        task.loss(model(inputs), targets).mean().backward()
    return int(counter.get_total_flops())


def main() -> None:
    """Prints the table."""
    table = [HEADER, *map(row, task_names())]
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, tuple("-" * width for width in widths))
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
