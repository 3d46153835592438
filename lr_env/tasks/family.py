"""Families of tasks: a task of which every training draws its own variation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lr_env.tasks.task import Task


@dataclass(frozen=True, eq=False)
class TaskFamily:
    """Trainings of one task that differ by what each draws at its reset.

    Attributes:
        name: A short name.
        task: The task that is varied.
        input_scale_decades: Range of ``u``, uniform; all inputs of a training are multiplied by ``10**u``.
    """

    name: str
    task: Task
    input_scale_decades: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        low, high = self.input_scale_decades
        if not -10 <= low <= high <= 10:
            raise ValueError(f"input_scale_decades must be (low, high) with -10 <= low <= high <= 10, but {self.input_scale_decades} was given.")
        if self.varies and not self.task.data.split("train").inputs.is_floating_point():
            raise ValueError(f"Family {self.name!r} scales its inputs, but those of task {self.task.name!r} are no floating-point numbers.")

    @property
    def varies(self) -> bool:
        """Whether trainings differ in their inputs."""
        return self.input_scale_decades != (0.0, 0.0)

    def draw_input_scale(self, seed: np.random.SeedSequence) -> float:
        """The factor on the inputs of the training with this stream."""
        return float(10.0 ** np.random.default_rng(seed).uniform(*self.input_scale_decades))


def as_family(task: Task | TaskFamily) -> TaskFamily:
    """The task as a family whose trainings differ by their seeds only."""
    return task if isinstance(task, TaskFamily) else TaskFamily(task.name, task)
