"""What is trained: a model, a loss and where its batches come from. A task knows nothing of rates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lr_env.checks import positive_integer, unknown_name
from lr_env.seeding import Streams, check_seed, preserved_global_generators, seed_global_generators, torch_generator

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
    return (outputs - targets.view_as(outputs)).square().flatten(1).mean(1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).to(outputs.dtype)


LOSSES: Mapping[str, ExampleFunction] = {"cross_entropy": _cross_entropy, "mean_squared_error": _squared_error}
"""Losses known by name: nats per example, of outputs ``(B, C, …)`` and class indices ``(B, …)`` or probabilities ``(B, C, …)``, averaged
over an example's positions; squared error, averaged over an example's outputs."""


@dataclass(frozen=True)
class Metric:
    """A number for people beside the loss, averaged over examples.

    Attributes:
        name: Such as ``"accuracy"``.
        function: ``(outputs, targets) -> values (B,)``.
    """

    name: str
    function: ExampleFunction


ACCURACY = Metric("accuracy", _accuracy)


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs ``(M, …)`` and targets ``(M, …)`` of one split."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"Inputs and targets must have the same length, but {len(self.inputs)} and {len(self.targets)} were given.")
        if self.inputs.is_floating_point() and not bool(torch.isfinite(self.inputs).all()):
            raise ValueError("The inputs hold NaN or infinity. Remove or impute these examples first.")

    def __len__(self) -> int:
        return len(self.inputs)

    def divide(self, validation_fraction: float = 0.15, test_fraction: float = 0.15, seed: int = 0) -> Data:
        """These examples divided at random into training, validation and test data.

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
    """

    train: Split
    validation: Split
    test: Split

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
        observed_loss: Per-example loss that observations and rewards use in place of ``loss`` (a noise-free one); None for the same.

    Raises:
        ValueError: If model, data and loss do not fit each other, or data are empty. The message says what to do.
    """

    name: str
    model: Callable[[], nn.Module] | nn.Module
    loss: ExampleFunction | str
    data: Data | Sampler
    batch_size: int
    horizon: int = 100
    loss_lower_bound: float = 0.0
    metric: Metric | None = None
    observed_loss: ExampleFunction | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loss, str):
            if self.loss not in LOSSES:
                raise unknown_name("loss", self.loss, LOSSES)
            object.__setattr__(self, "loss", LOSSES[self.loss])
        for attribute in ("batch_size", "horizon"):
            positive_integer(attribute, getattr(self, attribute))
        if isinstance(self.data, Data):
            if len(self.data.train) == 0:
                raise ValueError(f"Task {self.name!r} has no training data.")
            if self.batch_size > len(self.data.train):
                raise ValueError(
                    f"batch_size {self.batch_size} exceeds the {len(self.data.train)} training examples of task {self.name!r}; choose a smaller one."
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
            targets: ``(M, …)``; class indices for ``"cross_entropy"``.
            loss: See :class:`Task`.
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
        all_inputs, all_targets = _tensor(inputs), _tensor(targets)
        everything = Split(all_inputs, all_targets)
        if len(everything) == 0:
            raise ValueError(f"Task {name!r} has no data: inputs of shape {tuple(all_inputs.shape)} were given.")
        data = everything.divide(validation_fraction, test_fraction, split_seed)
        if metric is None and loss == "cross_entropy":
            metric = ACCURACY
        return cls(name, model, loss, data, batch_size, horizon, loss_lower_bound, metric)

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

    def _try_model(self) -> None:
        """One forward pass on the first batch, to fail early and in words."""
        model = self.make_model(np.random.SeedSequence(0))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"The model of task {self.name!r} has no trainable parameters.")
        inputs, targets = next(self.batches(0))
        context = f"inputs {tuple(inputs.shape)} {inputs.dtype}, targets {tuple(targets.shape)} {targets.dtype}"
        with preserved_global_generators():
            try:
                outputs = model(inputs)
            except Exception as error:
                raise ValueError(f"The model of task {self.name!r} does not accept its data ({context}): {error}") from error
            try:
                assert callable(self.loss)
                losses = self.loss(outputs, targets)
            except Exception as error:
                raise ValueError(
                    f"The loss of task {self.name!r} does not accept outputs {_shape(outputs)} with {context}: {error}. "
                    "Classification wants one output per class and class indices from 0 as targets."
                ) from error
        if not isinstance(losses, Tensor) or losses.shape != (len(inputs),):
            raise ValueError(
                f"The loss of task {self.name!r} must return one value per example, shape ({len(inputs)},), but returned {_shape(losses)}. "
                'Use reduction="none" and average over all but the first dimension.'
            )
        if not losses.requires_grad:
            raise ValueError(f"The loss of task {self.name!r} does not depend on the parameters of its model.")
        if self.loss is _cross_entropy and isinstance(self.data, Data) and not targets.is_floating_point():
            self._check_classes(outputs.shape[1])

    def _check_classes(self, num_classes: int) -> None:
        assert isinstance(self.data, Data)
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


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    tensor = values.detach().clone() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def _shape(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
