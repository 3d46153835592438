"""Families of tasks: variants that are fixed when the family is made, and variations that every training draws at its reset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lr_env.checks import number, number_range, number_within, positive_integer
from lr_env.seeding import check_seed
from lr_env.tasks.task import Data, Task

INITIALISATION, LABELS, EXAMPLES, SCALES = range(4)
"""Children of a training's family stream, by what they draw; the input scale is drawn from the stream itself. New ones go to the end,
so that they leave the others' draws as they are."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A task, and what a family fixes beside it.

    Attributes:
        task: What is trained.
        optimizer: Name or mapping that takes the place of the MDP's, see :func:`lr_env.training.make_optimizer`; None for the MDP's.
        data_fraction: Share of the training examples that a training sees, in (0, 1]; which ones, each training draws at its reset.

    Raises:
        TypeError: If the task is none, or the fraction no number.
        ValueError: If the fraction is out of range or leaves less than one batch.
    """

    task: Task
    optimizer: str | Mapping[str, Any] | None = None
    data_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise TypeError(f"A variant needs a Task, but {type(self.task).__name__} was given.")
        if not 0 < number("data_fraction", self.data_fraction) <= 1:
            raise ValueError(f"data_fraction must be in (0, 1], but {self.data_fraction!r} was given.")
        if self.data_fraction == 1:
            return
        if not isinstance(self.task.data, Data):
            raise ValueError(f"Task {self.task.name!r} draws fresh samples, so that data_fraction must be 1, but {self.data_fraction} was given.")
        if self.num_examples < self.task.batch_size:
            raise ValueError(
                f"data_fraction {self.data_fraction} leaves {self.num_examples} of the {len(self.task.data.train)} training examples of task "
                f"{self.task.name!r}, fewer than its batch_size {self.task.batch_size}. Choose a larger fraction or smaller batches."
            )

    @property
    def num_examples(self) -> int:
        """Training examples that a training sees."""
        assert isinstance(self.task.data, Data)
        return round(self.data_fraction * len(self.task.data.train))


def check_draws(values: Mapping[str, Any]) -> None:
    """Whether the ranges that a family's trainings draw from can be, by the names of :class:`TaskFamily`'s attributes.

    Raises:
        TypeError: If one is no pair of numbers, or no number.
        ValueError: If one is out of range.
    """
    for name, lowest, highest in (("input_scale_decades", -10, 10), ("initialisation_scale_decades", -10, 10), ("label_noise", 0, 1)):
        number_range(name, values[name], lowest, highest)
    number_within("initial_rate_decades", values["initial_rate_decades"], 0, 4)
    for name in ("noisy_fraction", "scaled_fraction"):
        number_within(name, values[name], 0, 1)


@dataclass(frozen=True, eq=False)
class TaskFamily:
    """Trainings that differ from each other.

    What changes shapes (model, batch size, data set, horizon, optimizer) is drawn once, into a frozen list of variants: member i of a
    vector environment has variant i mod ``num_variants`` for life, a single environment takes ``variant=j``. What leaves shapes alone is
    drawn by every training at its reset, from its own stream, each kind from a child stream of its own.

    Attributes:
        name: A short name.
        task: The one task that is varied; or a function that draws a variant from a generator of its own,
            ``lambda generator: Task(...)``. In place of a task, a :class:`Variant` says more.
        input_scale_decades: Range of ``u``, uniform; all inputs of a training are multiplied by ``10**u``.
        num_variants: Number of variants that are drawn; 1 for a single task.
        family_seed: Seed of the variants: variant j depends on it and on j alone.
        initialisation_scale_decades: Range of ``u``, uniform; initial parameters of two or more dimensions are multiplied by ``10**u``.
        label_noise: Range of ``p``, uniform, in [0, 1]: this share of a training's labels is replaced, once for the whole training, by
            classes drawn uniformly from all (the true one among them); numbers by those of examples drawn at random. Minibatches
            hold these labels; evaluations, the reference subset among them, the true ones.
        initial_rate_decades: In place of the MDP's, where it is not 0: each training starts ``10**u`` off the initial rate, u uniform in
            ± this number; in [0, 4].
        noisy_fraction: Probability that a training has label noise at all, in [0, 1].
        scaled_fraction: Probability that a training's inputs and initial parameters are scaled at all, in [0, 1].

    Raises:
        TypeError: If ``task`` is no task and draws none, the seed is no integer, or a range no pair of numbers.
        ValueError: If a number is out of range, or a variant is no valid task.
    """

    name: str
    task: Task | Variant | Callable[[np.random.Generator], Task | Variant]
    input_scale_decades: tuple[float, float] = (0.0, 0.0)
    num_variants: int = 1
    family_seed: int = 0
    initialisation_scale_decades: tuple[float, float] = (0.0, 0.0)
    label_noise: tuple[float, float] = (0.0, 0.0)
    initial_rate_decades: float = 0.0
    noisy_fraction: float = 1.0
    scaled_fraction: float = 1.0

    def __post_init__(self) -> None:
        positive_integer("num_variants", self.num_variants)
        check_seed(self.family_seed)
        if isinstance(self.task, (Task, Variant)) and self.num_variants > 1:
            raise ValueError(
                f"Family {self.name!r} has one task, but {self.num_variants} variants. Give a function that draws tasks: lambda generator: Task(...)."
            )
        check_draws(vars(self))
        if self.varies_inputs:
            for task in self.variants:
                if not task.data.split("train").inputs.is_floating_point():
                    raise ValueError(f"Family {self.name!r} scales its inputs, but those of task {task.name!r} are no floating-point numbers.")
        if self.varies_labels:
            for task in self.variants:
                if not isinstance(task.data, Data):
                    raise ValueError(f"Family {self.name!r} has label noise, but task {task.name!r} draws fresh samples. Give it a finite data set.")

    @cached_property
    def variants(self) -> tuple[Task, ...]:
        """The tasks, ``(num_variants,)``."""
        return tuple(variant.task for variant in self._variants)

    @property
    def optimizers(self) -> tuple[str | Mapping[str, Any] | None, ...]:
        """What takes the place of the MDP's optimizer, ``(num_variants,)``; None where nothing does."""
        return tuple(variant.optimizer for variant in self._variants)

    def variant(self, index: int) -> TaskFamily:
        """The family of one variant only.

        Raises:
            ValueError: If there is no such variant.
        """
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < self.num_variants:
            raise ValueError(f"variant must be an integer from 0 to {self.num_variants - 1} for task {self.name!r}, but {index!r} was given.")
        return replace(self, task=self._variants[index], num_variants=1)

    @property
    def varies_inputs(self) -> bool:
        """Whether trainings of one variant differ in the scale of their inputs."""
        return tuple(self.input_scale_decades) != (0.0, 0.0)

    @property
    def varies_initialisation(self) -> bool:
        """Whether they differ in the scale of their initial weights."""
        return tuple(self.initialisation_scale_decades) != (0.0, 0.0)

    @property
    def varies_labels(self) -> bool:
        """Whether they differ in their labels."""
        return tuple(self.label_noise) != (0.0, 0.0)

    @property
    def varies_examples(self) -> bool:
        """Whether trainings of the first variant differ in the examples that they see."""
        return self._variants[0].data_fraction < 1

    @property
    def num_examples(self) -> int:
        """Training examples that a training of the first variant sees."""
        return self._variants[0].num_examples

    def draw_input_scale(self, seed: np.random.SeedSequence) -> float:
        """The factor on the inputs of the training with this stream."""
        return float(10.0 ** np.random.default_rng(seed).uniform(*self.input_scale_decades)) if self._is_scaled(seed) else 1.0

    def draw_initialisation_scale(self, seed: np.random.SeedSequence) -> float:
        """The factor on its initial parameters of two or more dimensions."""
        return float(10.0 ** _generator(seed, INITIALISATION).uniform(*self.initialisation_scale_decades)) if self._is_scaled(seed) else 1.0

    def draw_labels(self, seed: np.random.SeedSequence) -> Tensor:
        """Its training targets, of the first variant, with noise: ``(M, …)``."""
        generator = _generator(seed, LABELS)
        data = self.variants[0].data
        assert isinstance(data, Data)
        labels = data.train.targets.clone()
        if self.noisy_fraction < 1 and generator.random() >= self.noisy_fraction:
            return labels
        count = round(generator.uniform(*self.label_noise) * len(labels))
        chosen = torch.from_numpy(generator.permutation(len(labels))[:count])
        if labels.is_floating_point():
            labels[chosen] = data.train.targets[torch.from_numpy(generator.integers(len(labels), size=count))]
        else:
            labels[chosen] = torch.from_numpy(generator.integers(int(labels.max()) + 1, size=labels[chosen].shape)).to(labels.dtype)
        return labels

    def draw_examples(self, seed: np.random.SeedSequence) -> Tensor:
        """Which training examples of the first variant it sees: indices ``(num_examples,)``."""
        data = self.variants[0].data
        assert isinstance(data, Data)
        return torch.from_numpy(_generator(seed, EXAMPLES).permutation(len(data.train))[: self.num_examples])

    def _is_scaled(self, seed: np.random.SeedSequence) -> bool:
        return self.scaled_fraction == 1 or _generator(seed, SCALES).random() < self.scaled_fraction

    @cached_property
    def _variants(self) -> tuple[Variant, ...]:
        if isinstance(self.task, (Task, Variant)):
            return (_as_variant(self.task),)
        return tuple(self._draw(index) for index in range(self.num_variants))

    def _draw(self, index: int) -> Variant:
        assert not isinstance(self.task, (Task, Variant))
        source = f"variant {index} of family {self.name!r} (family_seed={self.family_seed})"
        try:
            drawn = self.task(np.random.default_rng(np.random.SeedSequence([self.family_seed, index])))
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"Drawing {source} failed: {kind}{error}") from error
        if not isinstance(drawn, (Task, Variant)):
            raise TypeError(f"A family draws Tasks, but {source} is of type {type(drawn).__name__}.")
        return _as_variant(drawn)


def as_family(task: Task | TaskFamily) -> TaskFamily:
    """The task as a family whose trainings differ by their seeds only."""
    return task if isinstance(task, TaskFamily) else TaskFamily(task.name, task)


def _as_variant(task: Task | Variant) -> Variant:
    return task if isinstance(task, Variant) else Variant(task)


def _generator(seed: np.random.SeedSequence, child: int) -> np.random.Generator:
    """The generator of a child stream; unlike ``seed.spawn``, it leaves the stream as it is."""
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, child), pool_size=seed.pool_size))
