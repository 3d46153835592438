"""A ``torch.utils.data.Dataset`` as tensors: trainings draw their batches by index from data in memory."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate
from tqdm import tqdm

from lr_env.checks import positive_integer
from lr_env.seeding import preserved_global_generators, seed_global_generators

SECONDS_WITHOUT_BAR = 1.0
"""A progress bar is shown, on a terminal, where reading takes longer."""

_ADVICE = (
    "All data are held in memory. Give fewer examples (torch.utils.data.Subset), smaller ones (a transform that crops or scales), "
    "narrower ones (uint8 inputs, converted by the model)"
)


def materialise(dataset: Dataset[Any], *, max_bytes: int = 2**32, seed: int = 0, description: str = "dataset") -> tuple[Tensor, Tensor]:
    """All examples of a map-style data set, converted as ``DataLoader`` does, with a progress bar.

    Every example is read once, so that random transforms are drawn once and for all, from global generators that are seeded around the
    reading and left as they were found.

    Args:
        dataset: Its items are pairs (inputs, targets) of tensors, arrays or numbers, all of the same shapes and dtypes.
        max_bytes: Of the tensors; estimated from the first example before the others are read.
        seed: Of the global generators.
        description: What is read, for the bar and errors.

    Returns:
        Inputs ``(M, …)`` and targets ``(M, …)``, floating-point ones as float32.

    Raises:
        TypeError: If the data set is not map-style.
        ValueError: If it is empty or too large, an item cannot be read, is no pair, or differs from the first in shape or dtype.
    """
    num_examples, max_bytes = _length(dataset, description), positive_integer("max_bytes", max_bytes)
    with preserved_global_generators():
        seed_global_generators(np.random.SeedSequence(seed))
        first = _read(dataset, 0, description)
        num_bytes = num_examples * sum(part.numel() * part.element_size() for part in first)
        needed = f"The {description} needs {num_bytes:,} bytes for its {num_examples:,} examples of {_describe(first)}"
        if num_bytes > max_bytes:
            raise ValueError(f"{needed}, more than max_bytes={max_bytes:,}. {_ADVICE}, or a larger max_bytes if there is three times the memory.")
        try:
            parts = tuple(part.new_empty((num_examples, *part.shape)) for part in first)
        except RuntimeError as error:
            raise ValueError(f"{needed}, which there is no memory for. {_ADVICE}.") from error
        for index in tqdm(range(num_examples), desc=description, unit=" examples", delay=SECONDS_WITHOUT_BAR, disable=None):
            example = first if index == 0 else _read(dataset, index, description)
            for whole, part, expected in zip(parts, example, first, strict=True):
                if part.shape != expected.shape or part.dtype != expected.dtype:
                    raise ValueError(
                        f"All examples must have the same shapes and dtypes, but example {index} of the {description} has {_describe(example)}, "
                        f"example 0 {_describe(first)}. Pad, crop or convert them, in a transform or in a Dataset around this one."
                    )
                whole[index] = part
    return parts[0], parts[1]


def _length(dataset: Dataset[Any], description: str) -> int:
    advice = "Give a map-style torch.utils.data.Dataset, with __getitem__ and __len__"
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"The {description} is an IterableDataset ({type(dataset).__name__}), which has no examples by index. {advice}; or collect "
            "a finite number of examples for Task.from_tensors. Batches that never end are a lr_env.tasks.Sampler."
        )
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise TypeError(f"The {description} is a DataLoader. Give its data set, loader.dataset: lr-env draws the batches itself.")
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"The {description}, of type {type(dataset).__name__}, has no length or no examples by index. {advice}.")
    try:
        length = len(dataset)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(f"The {description}, of type {type(dataset).__name__}, has no length ({error}). {advice}.") from error
    if length == 0:
        raise ValueError(f"The {description} is empty: its length is 0.")
    return length


def _read(dataset: Dataset[Any], index: int, description: str) -> tuple[Tensor, Tensor]:
    """One example's inputs ``(…)`` and targets ``(…)``."""
    advice = "Give a Dataset whose __getitem__ returns (inputs, targets), each a tensor, an array or a number"
    try:
        item = dataset[index]
    except Exception as error:
        raise ValueError(f"Example {index} of the {description} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        what = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, (tuple, list, dict)) else "")
        raise ValueError(f"An example must be a pair (inputs, targets), but example {index} of the {description} is {what}. {advice}.")
    parts = []
    for name, value in zip(("inputs", "targets"), item, strict=True):
        try:
            batch = default_collate([value])
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"The {name} of example {index} of the {description} are of type {type(value).__name__}, which is no tensor. {advice}; "
                "images become tensors by torchvision.transforms.ToTensor()."
            ) from error
        if not isinstance(batch, Tensor):
            raise ValueError(
                f"The {name} of example {index} of the {description} must be one tensor, but {type(value).__name__} was given. {advice}."
            )
        part = batch[0].detach()
        parts.append(part.float() if part.is_floating_point() else part)
    return parts[0], parts[1]


def _describe(example: tuple[Tensor, Tensor]) -> str:
    return " and ".join(f"{name} {tuple(part.shape)} {part.dtype}" for name, part in zip(("inputs", "targets"), example, strict=True))
