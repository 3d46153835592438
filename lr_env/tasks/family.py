"""Families of tasks: variants that are fixed when the family is made, and variations that every training draws at its reset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lr_env.checks import positive_integer
from lr_env.seeding import check_seed
from lr_env.tasks.task import Task


@dataclass(frozen=True, eq=False)
class TaskFamily:
    """Trainings that differ from each other.

    What changes shapes (model, batch size, data set, horizon) is drawn once, into a frozen list of variants: member i of a vector
    environment has variant i mod ``num_variants`` for life, a single environment takes ``variant=j``. What leaves shapes alone is
    drawn by every training at its reset, from its own stream.

    Attributes:
        name: A short name.
        task: The one task that is varied; or a function that draws a variant from a generator of its own,
            ``lambda generator: Task(...)``.
        input_scale_decades: Range of ``u``, uniform; all inputs of a training are multiplied by ``10**u``.
        num_variants: Number of variants that are drawn; 1 for a single task.
        family_seed: Seed of the variants: variant j depends on it and on j alone.

    Raises:
        TypeError: If ``task`` is no task and draws none, or the seed is no integer.
        ValueError: If a number is out of range, or a variant is no valid task.
    """

    name: str
    task: Task | Callable[[np.random.Generator], Task]
    input_scale_decades: tuple[float, float] = (0.0, 0.0)
    num_variants: int = 1
    family_seed: int = 0

    def __post_init__(self) -> None:
        positive_integer("num_variants", self.num_variants)
        check_seed(self.family_seed)
        if isinstance(self.task, Task) and self.num_variants > 1:
            raise ValueError(
                f"Family {self.name!r} has one task, but {self.num_variants} variants. Give a function that draws tasks: lambda generator: Task(...)."
            )
        low, high = self.input_scale_decades
        if not -10 <= low <= high <= 10:
            raise ValueError(f"input_scale_decades must be (low, high) with -10 <= low <= high <= 10, but {self.input_scale_decades} was given.")
        if self.varies_inputs:
            for task in self.variants:
                if not task.data.split("train").inputs.is_floating_point():
                    raise ValueError(f"Family {self.name!r} scales its inputs, but those of task {task.name!r} are no floating-point numbers.")

    @cached_property
    def variants(self) -> tuple[Task, ...]:
        """The tasks, ``(num_variants,)``."""
        return (self.task,) if isinstance(self.task, Task) else tuple(self._draw(index) for index in range(self.num_variants))

    def variant(self, index: int) -> TaskFamily:
        """The family of one variant only.

        Raises:
            ValueError: If there is no such variant.
        """
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < self.num_variants:
            raise ValueError(f"variant must be an integer from 0 to {self.num_variants - 1} for task {self.name!r}, but {index!r} was given.")
        return TaskFamily(self.name, self.variants[index], self.input_scale_decades)

    @property
    def varies_inputs(self) -> bool:
        """Whether trainings of one variant differ in their inputs."""
        return self.input_scale_decades != (0.0, 0.0)

    def draw_input_scale(self, seed: np.random.SeedSequence) -> float:
        """The factor on the inputs of the training with this stream."""
        return float(10.0 ** np.random.default_rng(seed).uniform(*self.input_scale_decades))

    def _draw(self, index: int) -> Task:
        assert not isinstance(self.task, Task)
        source = f"variant {index} of family {self.name!r} (family_seed={self.family_seed})"
        try:
            task = self.task(np.random.default_rng(np.random.SeedSequence([self.family_seed, index])))
        except ValueError as error:
            raise ValueError(f"Drawing {source} failed: {error}") from error
        if not isinstance(task, Task):
            raise TypeError(f"A family draws Tasks, but {source} is of type {type(task).__name__}.")
        return task


def as_family(task: Task | TaskFamily) -> TaskFamily:
    """The task as a family whose trainings differ by their seeds only."""
    return task if isinstance(task, TaskFamily) else TaskFamily(task.name, task)
