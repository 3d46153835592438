"""What is trained: a model, a loss and where its batches come from. A task knows nothing of rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from lr_env.checks import number, positive_integer, unknown_name
from lr_env.isolation import isolated
from lr_env.seeding import Streams, check_seed, preserved_global_generators, seed_global_generators, torch_generator
from lr_env.tasks.materialisation import materialise

ExampleFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(outputs (B, …), targets (B, …)) -> values (B,)``: one value per example."""

SplitName: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """``F.cross_entropy`` of outputs ``(B, C, …)``, averaged over the trailing dimensions."""
    if targets.is_floating_point():
        losses = F.cross_entropy(outputs, targets, reduction="none")
    else:
        # PyTorch's softmax over a short last dimension, as classes are, is far slower than over any other; so classes go first.
        scores = outputs.t() if outputs.dim() == 2 else outputs.movedim(1, 0)  # (C, B, …)
        losses = -torch.log_softmax(scores, 0).gather(0, targets.unsqueeze(0)).squeeze(0)
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.view_as(outputs)).square().reshape(len(outputs), -1).mean(1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of outputs ``(B, C, …)``, averaged over the trailing dimensions; of targets that are probabilities the likeliest class counts."""
    hits = (outputs.argmax(1) == (targets.argmax(1) if targets.is_floating_point() else targets)).to(outputs.dtype)
    return hits.flatten(1).mean(1) if hits.dim() > 1 else hits


def _r_squared_columns(outputs: Tensor, targets: Tensor) -> Tensor:
    """``(B, 3)``: squared errors, targets and squared targets; their means give the number."""
    count = len(outputs)
    predictions, values = outputs.view(count), targets.view(count).double()  # a variance is a small difference of large numbers
    return torch.stack([(values - predictions).square(), values, values.square()], dim=1)


def _r_squared(means: Tensor) -> Tensor:
    squared_error, mean, mean_square = means.unbind(1)
    return 1 - squared_error / (mean_square - mean.square())


def _perplexity(means: Tensor) -> Tensor:
    return means[:, 0].exp()


LOSSES: Mapping[str, ExampleFunction] = {"cross_entropy": _cross_entropy, "mean_squared_error": _squared_error}
"""Losses known by name: nats per example, of outputs ``(B, C, …)`` and class indices ``(B, …)`` or probabilities ``(B, C, …)``, averaged
over an example's positions; squared error, averaged over an example's outputs."""

MEAN_LOSSES: Mapping[ExampleFunction, ExampleFunction] = {
    _cross_entropy: F.cross_entropy,
    _squared_error: lambda outputs, targets: F.mse_loss(outputs, targets.view_as(outputs)),
}
"""Their means over a minibatch as PyTorch has them: what a plain loop takes, to the last bit."""


@dataclass(frozen=True)
class Metric:
    """A number for people beside the loss.

    Attributes:
        name: Such as ``"accuracy"``.
        function: ``(outputs, targets) -> values (B,)`` or ``(B, K)``, which are averaged over examples.
        summary: ``means (N, K) -> numbers (N,)`` of N models, where the number is more than an average; None for an average.
    """

    name: str
    function: ExampleFunction
    summary: Callable[[Tensor], Tensor] | None = None


ACCURACY = Metric("accuracy", _accuracy)
PERPLEXITY = Metric("perplexity", _cross_entropy, _perplexity)
R_SQUARED = Metric("R²", _r_squared_columns, _r_squared)
"""``1 − Σ(y − ŷ)² / Σ(y − ȳ)²`` of one value per example, with ȳ the mean target of the examples evaluated."""
SQUARED_ERROR = Metric("squared error", _squared_error)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``(M, …)`` and targets ``(M, …)`` of one split.

    Raises:
        TypeError: If they are no tensors.
        ValueError: If they are not dense, real, finite and on the CPU, or differ in length.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for name, values in (("inputs", self.inputs), ("targets", self.targets)):
            _check_values(name, values)
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"Inputs and targets must have the same length, but {len(self.inputs)} and {len(self.targets)} were given.")

    def __len__(self) -> int:
        return len(self.inputs)

    def copy(self) -> Split:
        """The same in memory of its own."""
        return Split(self.inputs.clone(), self.targets.clone())

    def divide(self, validation_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0) -> Data:
        """Copies of these examples, divided at random into training, validation and test data.

        Raises:
            ValueError: If a fraction is not in [0, 1), or both together reach 1.
        """
        if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
            raise ValueError(
                f"validation_fraction and test_fraction must be in [0, 1) and sum to less than 1, "
                f"but {validation_fraction} and {test_fraction} were given."
            )
        order = torch.from_numpy(np.random.default_rng(check_seed(seed)).permutation(len(self)))
        num_validation, num_test = (int(fraction * len(self)) for fraction in (validation_fraction, test_fraction))
        parts = order.split([len(order) - num_validation - num_test, num_validation, num_test])
        return Data(*(Split(self.inputs[part], self.targets[part]) for part in parts))


@dataclass(frozen=True, eq=False)
class Data:
    """A finite data set.

    A batch is drawn without replacement within an epoch and an epoch's last incomplete batch is dropped, as
    ``DataLoader(shuffle=True, drop_last=True)`` does.

    Attributes:
        train: What gradients are taken on.
        validation: For the validation reward; may be empty.
        test: For benchmarks only; may be empty.

    Raises:
        ValueError: If the examples of two splits differ in shape or dtype.
    """

    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in SPLITS[1:]:
            split: Split = getattr(self, name)
            for part in ("inputs", "targets"):
                given, expected = getattr(split, part), getattr(self.train, part)
                if len(split) and len(self.train) and (given.shape[1:], given.dtype) != (expected.shape[1:], expected.dtype):
                    raise ValueError(
                        f"The examples of all splits must be alike, but the {name} {part} are {_shape(given)}, "
                        f"the training {part} {_shape(expected)}."
                    )

    def split(self, name: SplitName) -> Split:
        """The split of this name.

        Raises:
            ValueError: If the name is unknown or the split is empty.
        """
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        chosen: Split = getattr(self, name)
        if len(chosen) == 0:
            raise ValueError(f"The task has no {name} data. Give {name} examples when you make it.")
        return chosen


@dataclass(frozen=True, eq=False)
class Sampler:
    """Fresh independent batches instead of a finite data set.

    Attributes:
        sample: ``(generator, count) -> (inputs (count, …), targets (count, …))``, ``count`` independent examples. Drawing 2 and
            then 3 must give the same examples as drawing 5 at once.
        reference: Examples on which the noise-free loss is evaluated.
    """

    sample: Callable[[np.random.Generator, int], tuple[Tensor, Tensor]]
    reference: Split

    def split(self, name: SplitName) -> Split:
        """The reference examples, whatever the split: fresh samples have no finite splits."""
        if name not in SPLITS:
            raise unknown_name("split", name, SPLITS)
        return self.reference


@dataclass(frozen=True, eq=False)
class Task:
    """A training problem.

    Attributes:
        name: A short name.
        model: Makes a freshly initialised model, drawing from the global generators as ``torch.nn`` does; these are seeded
            around the call and left as they were found. A module is accepted too: it is copied and its ``reset_parameters`` called.
        loss: ``(outputs, targets) -> losses (B,)``, or the name of one of :data:`LOSSES`.
        data: A finite data set or a sampler.
        batch_size: Examples per SGD step.
        horizon: Default number of SGD steps of a training.
        loss_lower_bound: No loss is below this bound.
        metric: A number for people, or None.
        observed_loss: Per-example loss, or its name, that observations and rewards use in place of ``loss`` (a noise-free one); None for the same.

    Raises:
        TypeError: If the data are neither a data set nor a sampler, a loss is no function, the bound no number or the metric no :class:`Metric`.
        ValueError: If model, data and loss do not fit each other, or data are empty. The message says what to do.
            :func:`lr_env.testing.check_task` finds what shows only in training.
    """

    name: str
    model: Callable[[], nn.Module] | nn.Module
    loss: ExampleFunction | str
    data: Data | Sampler
    batch_size: int
    horizon: int = 100
    loss_lower_bound: float = 0.0
    metric: Metric | None = None
    observed_loss: ExampleFunction | str | None = None

    def __post_init__(self) -> None:
        for attribute in ("loss", "observed_loss"):
            given = getattr(self, attribute)
            if isinstance(given, str):
                if given not in LOSSES:
                    raise unknown_name(attribute, given, LOSSES)
                object.__setattr__(self, attribute, LOSSES[given])
            elif not callable(given) and (attribute == "loss" or given is not None):
                raise TypeError(
                    f"The {attribute} of task {self.name!r} must be one of {', '.join(LOSSES)}, or a function (outputs, targets) -> losses (B,), "
                    f"but {type(given).__name__} was given."
                )
        if self.metric is not None and not isinstance(self.metric, Metric):
            raise TypeError(
                f"The metric of task {self.name!r} must be a lr_env.tasks.Metric, such as Metric(name, function), or None, "
                f"but {self.metric!r} was given."
            )
        if not math.isfinite(number("loss_lower_bound", self.loss_lower_bound)):
            raise ValueError(f"loss_lower_bound must be a finite number, but {self.loss_lower_bound!r} was given. Take a bound that is low enough.")
        for attribute in ("batch_size", "horizon"):
            positive_integer(attribute, getattr(self, attribute))
        if isinstance(self.data, Data):
            if len(self.data.train) == 0:
                raise ValueError(f"Task {self.name!r} has no training data.")
            if self.batch_size > len(self.data.train):
                raise ValueError(
                    f"batch_size {self.batch_size} exceeds the {len(self.data.train)} training examples of task {self.name!r}; choose a smaller one."
                )
        elif not isinstance(self.data, Sampler):
            raise TypeError(
                f"The data of task {self.name!r} must be lr_env.tasks.Data or Sampler, but {type(self.data).__name__} was given. "
                "Task.from_tensors takes arrays and tensors, Task.from_dataset a torch.utils.data.Dataset."
            )
        self._try_model()

    @classmethod
    def from_tensors(
        cls,
        name: str,
        model: Callable[[], nn.Module] | nn.Module,
        inputs: ArrayLike | Tensor,
        targets: ArrayLike | Tensor,
        *,
        loss: ExampleFunction | str = "cross_entropy",
        validation: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
        test: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
        batch_size: int = 64,
        horizon: int = 100,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        loss_lower_bound: float = 0.0,
        metric: Metric | None = None,
    ) -> Task:
        """A task from one's own module and arrays, split at random into training, validation and test data.

        Args:
            name: A short name.
            model: A function without arguments that makes the module (``lambda: nn.Linear(4, 3)``), or a module.
            inputs: ``(M, …)``. Floating-point arrays become float32.
            targets: ``(M, …)``; class indices for ``"cross_entropy"``. Integers become int64.
            loss: See :class:`Task`.
            validation: Inputs and targets of their own; None to set ``validation_fraction`` of the others aside.
            test: Inputs and targets of their own; None to set ``test_fraction`` of the others aside.
            batch_size: Examples per SGD step.
            horizon: Default number of SGD steps of a training.
            validation_fraction: Share of the examples, in [0, 1).
            test_fraction: Share of the examples, in [0, 1).
            split_seed: Seed of the split.
            loss_lower_bound: No loss is below this bound.
            metric: A number for people; accuracy where None is given with ``"cross_entropy"``.

        Raises:
            ValueError: If the data are empty or do not fit the model or the loss.
        """
        examples = _split(inputs, targets)
        if len(examples) == 0:
            raise ValueError(f"Task {name!r} has no data: inputs of shape {tuple(examples.inputs.shape)} were given.")
        given = ("validation", validation), ("test", test)
        own = {split: _split(*_pair(split, pair)).copy() for split, pair in given if pair is not None}
        fractions = 0.0 if "validation" in own else validation_fraction, 0.0 if "test" in own else test_fraction
        data = replace(examples.divide(*fractions, split_seed), **own)
        if metric is None and loss == "cross_entropy":
            metric = ACCURACY
        return cls(name, model, loss, data, batch_size, horizon, loss_lower_bound, metric)

    @classmethod
    def from_dataset(
        cls,
        name: str,
        model: Callable[[], nn.Module] | nn.Module,
        dataset: Dataset[Any],
        *,
        validation: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        split_seed: int = 0,
        max_bytes: int = 2**32,
        **options: Any,
    ) -> Task:
        """A task from one's own module and data set, which is read into memory, see :mod:`lr_env.tasks.materialisation`.

        Args:
            name: A short name.
            model: See :meth:`from_tensors`.
            dataset: A map-style data set of pairs (inputs, targets). Each example is read once: random transforms are drawn once.
            validation: A data set of its own; None to set ``validation_fraction`` of the other aside.
            test: A data set of its own; None to set ``test_fraction`` of the other aside.
            split_seed: Seed of the split, and of random transforms.
            max_bytes: Of each data set's tensors; 4 GiB by default.
            **options: ``loss``, ``batch_size`` and the others of :meth:`from_tensors`.

        Raises:
            TypeError: If a data set is not map-style.
            ValueError: If a data set is empty, needs more than ``max_bytes`` or its examples are not alike, or as :meth:`from_tensors`.
        """
        given = {"training": dataset, "validation": validation, "test": test}
        parts = {
            split: materialise(part, max_bytes=max_bytes, seed=split_seed, description=f"{split} data set of task {name!r}")
            for split, part in given.items()
            if part is not None
        }
        inputs, targets = parts["training"]
        return cls.from_tensors(
            name, model, inputs, targets, validation=parts.get("validation"), test=parts.get("test"), split_seed=split_seed, **options
        )

    @isolated()
    def make_model(self, seed: np.random.SeedSequence) -> nn.Module:
        """A model with the initial weights of this seed, in training mode. Global generators are left as they were found."""
        with preserved_global_generators():
            seed_global_generators(seed)
            return self.initialise()

    def initialise(self) -> nn.Module:
        """A model initialised from the global generators as they are, in training mode.

        Raises:
            ValueError: If ``model`` is a module that cannot be initialised anew, or returns no module.
        """
        if isinstance(self.model, nn.Module):
            module = copy.deepcopy(self.model)
            for part in module.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()  # type: ignore[operator]  # checked by hasattr
                elif next(part.parameters(recurse=False), None) is not None:
                    raise ValueError(
                        f"The module given to task {self.name!r} holds a {type(part).__name__} with parameters "
                        "but without reset_parameters(), so that it cannot be initialised anew. "
                        "Pass a function that makes the module instead, such as `lambda: MyModule()`."
                    )
        else:
            module = self.model()
        if not isinstance(module, nn.Module):
            raise ValueError(f"The model of task {self.name!r} must be, or return, a torch.nn.Module, but {type(module).__name__} was given.")
        return module.train()

    def batches(self, seed: int, episode: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The endless batches that a training with this seed sees: ``(inputs (B, …), targets (B, …))`` each."""
        stream = Streams(check_seed(seed), episode).order
        if isinstance(self.data, Data):
            order = torch_generator(stream)
            while True:
                for indices in epoch_order(order, len(self.data.train), self.batch_size):
                    yield self.data.train.inputs[indices], self.data.train.targets[indices]
        else:
            generator = np.random.default_rng(stream)
            while True:
                yield self.data.sample(generator, self.batch_size)

    def initial_model(self, seed: int, episode: int = 0) -> nn.Module:
        """The model with which a training with this seed starts."""
        return self.make_model(Streams(check_seed(seed), episode).weights)

    @isolated()
    def _try_model(self) -> None:
        """One forward pass on the first batch, to fail early and in words."""
        try:
            model = self.make_model(np.random.SeedSequence(0))
        except TypeError as error:  # a class that wants arguments, or no function at all
            raise ValueError(
                f"Making the model of task {self.name!r} failed: {error}. Give a function without arguments, such as `lambda: MyModule(32)`."
            ) from error
        except Exception as error:
            own = isinstance(error, ValueError) and repr(self.name) in str(error)
            raise error if own else ValueError(f"Making the model of task {self.name!r} failed: {type(error).__name__}: {error}") from error
        self._check_parameters(model)
        inputs, targets = next(self.batches(0))
        context = f"inputs {_shape(inputs)}, targets {_shape(targets)}"
        with preserved_global_generators():
            try:
                outputs = model(inputs)
            except Exception as error:
                hint = "" if inputs.is_floating_point() else " Most layers want floating-point inputs: convert them, inputs.float()."
                raise ValueError(f"The model of task {self.name!r} does not accept its data ({context}): {error}.{hint}") from error
            if isinstance(outputs, Tensor) and outputs.dim() > 1:
                self._check_classes(targets, outputs.shape[1])
            for attribute in ("loss", "observed_loss"):
                function = getattr(self, attribute)
                if function is not None:
                    self._try_loss(attribute, function, outputs, targets, context)

    def _try_loss(self, attribute: str, function: ExampleFunction, outputs: Any, targets: Tensor, context: str) -> None:
        where = f"The {attribute} of task {self.name!r}"
        try:
            losses = function(outputs, targets)
        except Exception as error:
            raise ValueError(f"{where} does not accept outputs {_shape(outputs)} with {context}: {error}. {self._advice()}") from error
        if not isinstance(losses, Tensor) or losses.shape != (len(targets),):
            raise ValueError(
                f"{where} must return one value per example, shape ({len(targets)},), but returned {_shape(losses)}. "
                'Use reduction="none" and average over all but the first dimension.'
            )
        if attribute == "loss" and not losses.requires_grad:
            raise ValueError(f"{where} does not depend on the parameters of its model.")
        if losses.is_complex():
            raise ValueError(f"{where} must return real numbers, but returned {losses.dtype}. Take the absolute value.")

    def _check_parameters(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise ValueError(f"The model of task {self.name!r} has no trainable parameters.")
        for name, parameter in parameters.items():
            if is_lazy(parameter):
                raise ValueError(f"The shape of parameter {name!r} of task {self.name!r} is unknown. Use nn.Linear, not nn.LazyLinear, and so on.")
            if not parameter.requires_grad:
                raise ValueError(
                    f"Parameter {name!r} of task {self.name!r} is frozen (requires_grad=False), but all parameters are trained. "
                    "Register what is not to be trained as a buffer: self.register_buffer(name, tensor)."
                )

    def _advice(self) -> str:
        """What the loss wants."""
        if self.loss is _cross_entropy:
            return "Classification wants one output per class and integer class indices from 0 as targets."
        if self.loss is _squared_error:
            return "Regression wants as many target numbers as outputs for each example."
        return "It is called as loss(outputs, targets) with whole minibatches."

    def _check_classes(self, targets: Tensor, num_classes: int) -> None:
        if self.loss is not _cross_entropy or not isinstance(self.data, Data) or targets.dtype == torch.bool:
            return
        if num_classes == 1:
            raise ValueError(
                f"The model of task {self.name!r} has one output, but cross-entropy over one class is always 0. For regression give "
                'loss="mean_squared_error", for two classes give the model two outputs.'
            )
        if targets.is_floating_point():
            return
        for name in SPLITS:
            labels = getattr(self.data, name).targets
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise ValueError(
                    f"The {name} targets of task {self.name!r} run from {int(labels.min())} to {int(labels.max())}, but its model has "
                    f"{num_classes} outputs: classes from 0 to {num_classes - 1}. Number the classes from 0, or give the model more outputs."
                )


def epoch_order(generator: torch.Generator, num_examples: int, batch_size: int) -> Tensor:
    """One epoch's batches, ``(num_examples // batch_size, batch_size)`` indices without repetition."""
    num_batches = num_examples // batch_size
    return torch.randperm(num_examples, generator=generator)[: num_batches * batch_size].view(num_batches, batch_size)


def _split(inputs: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> Split:
    """Tensors with dtypes that models and losses take; of tensors they may share the memory."""
    labels = _tensor("targets", targets)
    is_integer = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    return Split(_tensor("inputs", inputs), labels.long() if is_integer else labels)


def _pair(name: str, given: object) -> tuple[Any, Any]:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ValueError(f"{name} must be a pair (inputs, targets), but {type(given).__name__} was given.")
    return given[0], given[1]


def _tensor(name: str, values: ArrayLike | Tensor) -> Tensor:
    try:
        tensor = values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:  # text, objects, or rows of different lengths
        raise ValueError(f"The {name} must be an array of numbers: {error}") from error
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_values(name: str, values: Tensor) -> None:
    """Raises for inputs or targets that cannot be trained on."""
    if not isinstance(values, Tensor):
        raise TypeError(f"The {name} must be a tensor, but {type(values).__name__} was given. Task.from_tensors takes arrays and lists too.")
    if values.device.type != "cpu":
        raise ValueError(f"The {name} lie on device {str(values.device)!r}. Give {name}.cpu(): an environment on a GPU moves them itself.")
    if values.layout != torch.strided:
        raise ValueError(f"The {name} are not dense ({values.layout}). Give {name}.to_dense().")
    if values.dim() == 0:
        raise ValueError(f"The {name} are a single number. Their first dimension must count the examples.")
    if values.is_complex():
        raise ValueError(f"The {name} are complex numbers ({values.dtype}). Give real ones, such as torch.view_as_real({name}).")
    if values.is_floating_point():
        is_finite = torch.isfinite(values).flatten(1).all(1) if values.dim() > 1 else torch.isfinite(values)
        if not bool(is_finite.all()):
            first = int(is_finite.logical_not().nonzero()[0])
            raise ValueError(f"The {name} hold NaN or infinity, first in example {first}. Remove or impute these examples first.")


def _shape(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
