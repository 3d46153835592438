"""Families as plain data: which data sets, models, batch sizes, horizons and optimizers their variants have, and what trainings draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
from torch import nn

from lr_env.checks import number_range, unknown_name
from lr_env.tasks.datasets import DATASETS
from lr_env.tasks.family import TaskFamily, Variant, check_draws
from lr_env.tasks.models import cnn, mlp
from lr_env.tasks.registry import register_task
from lr_env.tasks.task import ACCURACY, R_SQUARED, SPLITS, Data, Split, Task

ARCHITECTURES = ("mlp", "cnn")

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
"""Activations by name."""

IMAGE_SHAPES: Mapping[str, tuple[int, int, int]] = {"digits": (1, 8, 8)}
"""Channels, height and width of images that their data set holds as vectors."""

KINDS = (
    "data_sets",
    "architectures",
    "activations",
    "depth",
    "width",
    "convolutions",
    "channels",
    "data_fraction",
    "batch_size",
    "horizon",
    "optimizers",
)
"""What a variant draws, each from a child of the variant's stream. New ones go to the end, so that they leave the others' draws as they are."""


_YOUNGER = ("initial_rate_decades", "noisy_fraction", "scaled_fraction")
"""Entries of a specification that earlier versions did not have."""


@dataclass(frozen=True)
class FamilySpecification:
    """A family as plain data: lists to choose from, each entry equally likely, and ranges ``[low, high]``, both ends included.

    A data set, then what fits it, is drawn for each variant: convolutions need images, a batch no more examples than there are. The
    defaults hold one training of the digits as they are.

    Attributes:
        name: A short name.
        data_sets: Names from :data:`lr_env.tasks.datasets.DATASETS`; an entry given twice is twice as likely.
        architectures: ``"mlp"`` (perceptrons) and ``"cnn"`` (3×3 convolutions, each with pooling, and one linear layer).
        activations: Names from :data:`ACTIVATIONS`.
        depth: Hidden layers of a perceptron; uniform.
        width: Of these; log-uniform.
        convolutions: Number of convolutions of a CNN; uniform.
        channels: Of the first one, doubled by each of the others; log-uniform.
        batch_size: Log-uniform.
        horizon: SGD steps; log-uniform.
        optimizers: Names or mappings that take the place of the MDP's, see :func:`lr_env.training.make_optimizer`; none for the MDP's.
        data_fraction: Share of the training examples that a training sees, see :class:`lr_env.tasks.Variant`; log-uniform.
        input_scale_decades: See :class:`lr_env.tasks.TaskFamily`, as all below.
        initialisation_scale_decades: See there.
        label_noise: See there.
        initial_rate_decades: See there.
        noisy_fraction: See there.
        scaled_fraction: See there.
        num_variants: See there.
        family_seed: See there.

    Raises:
        TypeError: If an entry is of another type.
        ValueError: If a name is unknown or a number is out of range.
    """

    name: str = "family"
    data_sets: Sequence[str] = ("digits",)
    architectures: Sequence[str] = ("mlp",)
    activations: Sequence[str] = ("relu",)
    depth: Sequence[int] = (1, 1)
    width: Sequence[int] = (32, 32)
    convolutions: Sequence[int] = (1, 1)
    channels: Sequence[int] = (8, 8)
    batch_size: Sequence[int] = (64, 64)
    horizon: Sequence[int] = (100, 100)
    optimizers: Sequence[str | Mapping[str, Any]] = ()
    data_fraction: Sequence[float] = (1.0, 1.0)
    input_scale_decades: Sequence[float] = (0.0, 0.0)
    initialisation_scale_decades: Sequence[float] = (0.0, 0.0)
    label_noise: Sequence[float] = (0.0, 0.0)
    num_variants: int = 1
    family_seed: int = 0
    initial_rate_decades: float = 0.0
    noisy_fraction: float = 1.0
    scaled_fraction: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if str(field.type).startswith("Sequence"):
                value = getattr(self, field.name)
                if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
                    raise TypeError(f"{field.name} must be a list, but {value!r} was given.")
                object.__setattr__(self, field.name, tuple(value))  # equal whether it came as a list or a tuple
        for kind, valid in (("data_sets", DATASETS), ("architectures", ARCHITECTURES), ("activations", ACTIVATIONS)):
            if not getattr(self, kind):
                raise ValueError(f"{kind} must hold at least one of {', '.join(sorted(valid))}.")
            for name in getattr(self, kind):
                if not isinstance(name, str) or name not in valid:
                    raise unknown_name(kind, name, valid)
        for kind in ("depth", "width", "convolutions", "channels", "batch_size", "horizon"):
            lowest, given = 0 if kind == "depth" else 1, getattr(self, kind)
            is_valid = len(given) == 2 and all(type(value) is int for value in given) and lowest <= given[0] <= given[1]
            if not is_valid:
                raise ValueError(f"{kind} must be [low, high], integers with {lowest} <= low <= high, but {list(given)} was given.")
        check_draws(vars(self))
        if not number_range("data_fraction", self.data_fraction, 0, 1)[0] > 0:
            raise ValueError(f"data_fraction must be [low, high] with 0 < low <= high <= 1, but {list(self.data_fraction)} was given.")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FamilySpecification:
        """The specification that :meth:`to_dict` described; what is missing has its default.

        Raises:
            TypeError: If a list or a range is none.
            ValueError: If an entry is unknown or out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in data:
            if name not in names:
                raise unknown_name("entry of a family specification", name, names)
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        data = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        for name in _YOUNGER:  # what was saved or digested without them stays as it is
            if data[name] == getattr(type(self), name):
                del data[name]
        data["optimizers"] = [dict(entry) if isinstance(entry, Mapping) else entry for entry in self.optimizers]
        return data

    def family(self) -> TaskFamily:
        """The family.

        Raises:
            ValueError: If a number is out of range. Variants that can't be are refused as soon as variants are drawn.
        """
        ranges = ((float(low), float(high)) for low, high in (self.input_scale_decades, self.initialisation_scale_decades, self.label_noise))
        inputs, initialisation, labels = ranges
        variants = self.draw, inputs, self.num_variants, self.family_seed
        return TaskFamily(self.name, *variants, initialisation, labels, self.initial_rate_decades, self.noisy_fraction, self.scaled_fraction)

    def draw(self, generator: np.random.Generator) -> Variant:
        """A variant.

        Raises:
            ValueError: If no variant can be of a data set that was drawn. The message says why.
        """
        streams = dict(zip(KINDS, generator.spawn(len(KINDS)), strict=True))
        data_set = _choose(streams, "data_sets", self.data_sets)
        shape = _image_shape(data_set)
        fitting = [kind for kind in self.architectures if kind != "cnn" or shape is not None]
        if not fitting:
            raise ValueError(f'Data set {data_set!r} holds no images, which "cnn" needs. Leave it out, or add "mlp" to the architectures.')
        architecture, activation = _choose(streams, "architectures", fitting), _choose(streams, "activations", self.activations)
        data = _images(data_set) if architecture == "cnn" else _vectors(data_set)
        fraction = float(np.exp(streams["data_fraction"].uniform(*np.log(self.data_fraction))))
        num_examples = round(min(fraction, 1.0) * len(data.train))
        low, high = self.batch_size
        if low > num_examples:
            raise ValueError(
                f"batch_size starts at {low}, but data_fraction {fraction:.3g} of data set {data_set!r} has {num_examples} training examples. "
                "Allow smaller batches or a larger fraction."
            )
        batch_size = _log_uniform(streams, "batch_size", (low, min(high, num_examples)))
        is_regression = data.train.targets.is_floating_point()
        num_outputs = data.train.targets[0].numel() if is_regression else int(max(part.targets.max() for part in _parts(data))) + 1
        if architecture == "cnn":
            assert shape is not None
            count = int(streams["convolutions"].integers(self.convolutions[0], self.convolutions[1] + 1))
            if 2**count > min(shape[1:]):
                raise ValueError(f"{count} convolutions halve the {shape[1]}×{shape[2]} images of data set {data_set!r} away. Allow fewer of them.")
            first = _log_uniform(streams, "channels", self.channels)
            channels = [first * 2**layer for layer in range(count)]
            model, shown = partial(cnn, shape, channels, num_outputs, ACTIVATIONS[activation], as_products=True), "-".join(map(str, channels))
        else:
            depth = int(streams["depth"].integers(self.depth[0], self.depth[1] + 1))
            hidden = [_log_uniform(streams, "width", self.width)] * depth
            num_inputs = data.train.inputs.shape[1]
            model, shown = partial(mlp, num_inputs, hidden, num_outputs, ACTIVATIONS[activation]), "-".join(map(str, hidden)) or "linear"
        task = Task(
            f"{data_set} {architecture} {shown} {activation}",
            model,
            "mean_squared_error" if is_regression else "cross_entropy",
            data,
            batch_size,
            _log_uniform(streams, "horizon", self.horizon),
            metric=None if num_outputs > 1 and is_regression else R_SQUARED if is_regression else ACCURACY,
        )
        return Variant(task, _choose(streams, "optimizers", self.optimizers) if self.optimizers else None, min(fraction, 1.0))


def _choose(streams: Mapping[str, np.random.Generator], kind: str, entries: Sequence[Any]) -> Any:
    return entries[int(streams[kind].integers(len(entries)))]


def _log_uniform(streams: Mapping[str, np.random.Generator], kind: str, bounds: Sequence[int]) -> int:
    """An integer whose logarithm is uniform, both bounds included."""
    low, high = bounds
    return min(high, int(math.exp(streams[kind].uniform(math.log(low), math.log(high + 1)))))


def _image_shape(data_set: str) -> tuple[int, int, int] | None:
    """Channels, height and width of the images of a data set that holds some."""
    inputs = DATASETS[data_set]().train.inputs
    if not inputs.is_floating_point():
        raise ValueError(f"The inputs of data set {data_set!r} are no floating-point numbers, which perceptrons and convolutions need. Leave it out.")
    if inputs.dim() == 4:
        return inputs.shape[1], inputs.shape[2], inputs.shape[3]
    return IMAGE_SHAPES.get(data_set)


@cache
def _images(data_set: str) -> Data:
    """The data set with inputs ``(M, channels, height, width)``; one object for all variants."""
    return Data(*(Split(part.inputs.view(-1, *(_image_shape(data_set) or ())), part.targets) for part in _parts(DATASETS[data_set]())))


@cache
def _vectors(data_set: str) -> Data:
    """The data set with inputs ``(M, D)``."""
    return Data(*(Split(part.inputs.flatten(1), part.targets) for part in _parts(DATASETS[data_set]())))


def _parts(data: Data) -> list[Split]:
    return [getattr(data, name) for name in SPLITS]


SMALL = FamilySpecification(
    name="small",
    data_sets=("digits", "digits", "breast-cancer", "wine"),
    architectures=("mlp", "cnn"),
    activations=("relu", "relu", "tanh", "elu"),
    depth=(0, 3),
    width=(8, 128),
    convolutions=(1, 2),
    channels=(2, 8),
    batch_size=(8, 64),
    horizon=(40, 1000),
    data_fraction=(0.5, 1.0),
    input_scale_decades=(-0.75, 0.75),
    initialisation_scale_decades=(-0.3, 0.3),
    label_noise=(0.0, 0.2),
    num_variants=24,
    family_seed=153,  # of some hundred, one whose variants cover data sets, models, batch sizes and horizons evenly
)
"""For training: small networks on scikit-learn's bundled data, fast on one core."""

SMALL_WIDE = replace(
    SMALL,
    name="small-wide",
    data_sets=("digits", "digits", "digits", "breast-cancer", "wine", "iris", "clusters", "clusters", "friedman", "friedman"),
    activations=("relu", "relu", "tanh", "elu", "softplus"),
    convolutions=(1, 3),
    batch_size=(8, 100),
    horizon=(40, 4000),
    data_fraction=(0.3, 1.0),
    label_noise=(0.0, 0.25),
    noisy_fraction=0.5,
    scaled_fraction=0.5,
    family_seed=1000,
)
"""For training too, more widely: regression among the tasks, half of the trainings without label noise, half with inputs and initial weights as
people have them, and longer ones."""

SMALL_HELD_OUT = FamilySpecification(
    name="small-heldout",
    data_sets=("diabetes", "digits", "digits"),
    architectures=("mlp", "cnn"),
    activations=("gelu", "silu", "leaky_relu"),
    depth=(1, 4),
    width=(16, 181),
    convolutions=(1, 3),
    channels=(3, 20),
    batch_size=(11, 181),
    horizon=(60, 1500),
    data_fraction=(0.5, 1.0),
    input_scale_decades=(-0.75, 0.75),
    initialisation_scale_decades=(-0.3, 0.3),
    label_noise=(0.0, 0.2),
    num_variants=12,
    family_seed=18,  # chosen in the same way
)
"""For evaluation, never trained on. No variant is one of the others: all have a hidden layer, and none has an activation of theirs."""

for _shipped in (SMALL, SMALL_WIDE, SMALL_HELD_OUT):
    register_task(_shipped.name, _shipped.family, tuple(sorted(set(_shipped.data_sets))))
