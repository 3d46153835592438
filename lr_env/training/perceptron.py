"""Perceptrons in a kernel of our own: with ``compile=True`` a member's whole step is made while all that belongs to it is in the nearest cache.

Compilers for tensors work through a population operation by operation, and each passes over all members; for small models most of the time is
then memory's. The kernel, ``perceptron.cpp``, works through it member by member.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from lr_env.tasks.family import TaskFamily
from lr_env.tasks.task import ACCURACY, LOSSES, Data, Metric
from lr_env.training.gradients import GradientFunction
from lr_env.training.signals import Groups

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Identity: "IDENTITY", nn.ReLU: "RELU", nn.Tanh: "TANH", nn.Sigmoid: "SIGMOID"}
"""Those that the kernel knows."""

LARGEST_SIZE = 2**18
"""Parameters of a model, at most: where a layer is large, the libraries' products are faster."""

SIGNALS = ("gradient_norm_squared", "gradient_dot_previous", "weight_norm_squared")
"""What the kernel returns, in this order."""


@dataclass(frozen=True)
class Perceptron:
    """Linear layers with activations in between.

    Attributes:
        widths: Inputs, hidden units of each layer, outputs.
        biases: Whether each layer has one.
        activations: After each layer, by the kernel's names; of the last layer the identity.
    """

    widths: tuple[int, ...]
    biases: tuple[bool, ...]
    activations: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Perceptron | None:
        """What a model is, if it is made of ``nn.Sequential``, ``nn.Flatten``, ``nn.Linear`` and :data:`ACTIVATIONS` alone."""
        widths: list[int] = []
        biases: list[bool] = []
        activations: list[str] = []
        for module in _parts(model):
            if type(module) is nn.Linear:
                if widths and module.in_features != widths[-1]:
                    return None
                widths += [module.out_features] if widths else [module.in_features, module.out_features]
                biases.append(module.bias is not None)
                activations.append("IDENTITY")
            elif type(module) in ACTIVATIONS and widths and activations[-1] == "IDENTITY":
                activations[-1] = ACTIVATIONS[type(module)]
            elif not (type(module) is nn.Flatten and not widths and (module.start_dim, module.end_dim) == (1, -1)):
                return None
        is_known = bool(widths) and activations[-1] == "IDENTITY" and not any(_hooks(module) for module in model.modules())
        return cls(tuple(widths), tuple(biases), tuple(activations)) if is_known else None

    @property
    def size(self) -> int:
        """Number of parameters."""
        pairs = zip(self.widths, self.widths[1:], self.biases, strict=False)
        return sum(fan_out * (fan_in + has_bias) for fan_in, fan_out, has_bias in pairs)


class Members(ctypes.Structure):
    """Of the same name in ``perceptron.cpp``: where what the kernel reads and changes lies."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "size")),
        *((name, ctypes.c_void_p) for name in ("weights", "directions", "gradients", "inputs", "targets")),
        ("target_step", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
    ]


class PerceptronKernel:
    """Steps of a population of perceptrons, in place.

    Args:
        perceptron: The model.
        batch_size: Examples of a minibatch.
        is_classification: Whether the loss is the cross-entropy with classes as targets; else it is the mean squared error.
        groups: The parameter groups.
        dtype: Of all floating-point tensors.
    """

    def __init__(self, perceptron: Perceptron, batch_size: int, is_classification: bool, groups: Groups, dtype: torch.dtype) -> None:
        of_layers = iter(groups.of_tensors)
        group_of_weight, group_of_bias = [], []
        for has_bias in perceptron.biases:
            group_of_weight.append(next(of_layers))
            group_of_bias.append(next(of_layers) if has_bias else 0)
        declarations = (
            f"using Number = {'double' if dtype == torch.float64 else 'float'}",
            f"constexpr int BATCH = {batch_size}, LAYERS = {len(perceptron.biases)}, GROUPS = {len(groups)}",
            f"constexpr int WIDTHS[LAYERS + 1] = {_list(perceptron.widths)}",
            f"constexpr bool HAS_BIAS[LAYERS] = {_list(map(int, perceptron.biases))}",
            f"constexpr int GROUP_OF_WEIGHT[LAYERS] = {_list(group_of_weight)}, GROUP_OF_BIAS[LAYERS] = {_list(group_of_bias)}",
            f"constexpr bool IS_CLASSIFICATION = {int(is_classification)}",
            f"enum Activation {_list(ACTIVATIONS.values())}",
            f"constexpr Activation ACTIVATIONS[LAYERS] = {_list(perceptron.activations)}",
        )
        source = "".join(f"{declaration};\n" for declaration in declarations) + resources.files(__package__).joinpath("perceptron.cpp").read_text()
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        # The header by which it sees that there are vectors comes first.
        library = CppCodeCache.load("#include <ATen/cpu/vec/vec.h>\n" + source)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._step, self._evaluate = library.step_perceptrons, library.evaluate_perceptrons
        self._step.argtypes = [ctypes.POINTER(Members), ctypes.c_int, *[pointer] * 4]
        self._evaluate.argtypes = [integer, integer, ctypes.c_int, *[pointer] * 4, integer, pointer, ctypes.c_int, pointer]
        self._step.restype = self._evaluate.restype = None
        self._size, self._num_groups, self._is_classification = perceptron.size, len(groups), is_classification

    def can_measure(self, metric: Metric | None) -> bool:
        """Whether :meth:`sums` give this metric."""
        return metric is None or (metric is ACCURACY and self._is_classification)

    def sums(self, parameters: Tensor, inputs: Tensor, targets: Tensor, scales: Tensor | None, with_metric: bool = True) -> Tensor:
        """Sums over examples that all see: losses and, of classes, how many are right; ``(N, 2)``, float64.

        Args:
            parameters: ``(N, P)``.
            inputs: ``(M, …)``.
            targets: ``(M, …)``.
            scales: Of the inputs, ``(N,)``, or None.
            with_metric: Whether those that are right are counted; else they are 0.
        """
        sums, indices = torch.empty(len(parameters), 2, dtype=torch.float64), torch.arange(len(inputs))
        first = len(parameters), self._size, torch.get_num_threads()
        tensors = (each.data_ptr() for each in (parameters, inputs, targets, indices))
        self._evaluate(*first, *tensors, len(inputs), None if scales is None else scales.data_ptr(), with_metric, sums.data_ptr())
        return sums

    @property
    def address(self) -> int:
        """Of ``step_perceptrons``, for callers in C++."""
        return ctypes.cast(self._step, ctypes.c_void_p).value or 0

    def place(self, weights: Tensor, inputs: Tensor, targets: Tensor, scales: Tensor | None, own_targets: int = 0) -> Members:
        """Where a population's tensors lie, all of them contiguous; it must not outlive them. Directions and gradients are added for each step.

        Args:
            weights: ``(N, P)``.
            inputs: ``(M, …)``.
            targets: ``(M,)`` or ``(M, …)``.
            scales: Of the inputs, ``(N,)``, or None.
            own_targets: Number of targets that belong to one member, ``targets`` being ``(N · M, …)``; 0 if all share theirs.
        """
        target_step = own_targets * targets[0].numel() * targets.element_size()
        data = inputs.data_ptr(), targets.data_ptr(), target_step, None if scales is None else scales.data_ptr()
        return Members(len(weights), self._size, weights.data_ptr(), None, None, *data)

    def __call__(self, members: Members, rates: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """``w ← w − rate · u``, and gradients on the next minibatches, in place.

        Args:
            members: Where all lies; the directions may be the gradients, which are the last ones.
            rates: ``(N, G)``, contiguous.
            indices: Of the minibatches' examples, ``(N · B,)``, contiguous.

        Returns:
            Losses ``(N,)``, and :data:`SIGNALS` ``(3, G, N)``.
        """
        count = len(rates)
        losses, signals = rates.new_empty(count), rates.new_empty(3, self._num_groups, count)
        pointers = (each.data_ptr() for each in (rates, indices, losses, signals))
        self._step(members, torch.get_num_threads(), *pointers)
        return losses, signals


def make_kernel(family: TaskFamily, gradient_function: GradientFunction, groups: Groups, check: tuple[Any, ...]) -> PerceptronKernel | None:
    """A kernel for the family's task, if it is one of small perceptrons.

    Args:
        family: Of one variant.
        gradient_function: What the kernel stands in for.
        groups: The parameter groups.
        check: Parameters ``(N, P)``, buffers, inputs ``(N, B, …)`` and targets ``(N, B, …)`` on which it must give the same numbers.
    """
    task, (parameters, _, inputs, targets) = family.variants[0], check
    perceptron = Perceptron.of(gradient_function.model)
    if perceptron is None or perceptron.size != parameters.shape[1] or perceptron.size > LARGEST_SIZE:
        return None
    # The classes of a data set are checked when a task is made; those of a sampler might lie outside, where the kernel would read.
    has_classes = isinstance(task.data, Data) and targets.dim() == 2 and targets.dtype == torch.int64
    is_classification = task.loss is LOSSES["cross_entropy"] and has_classes
    is_regression = task.loss is LOSSES["mean_squared_error"] and math.prod(targets.shape[2:]) == perceptron.widths[-1]
    has_vectors = math.prod(inputs.shape[2:]) == perceptron.widths[0] and inputs.dtype == parameters.dtype
    if task.observed_loss is not None or not has_vectors or not (is_classification or (is_regression and targets.dtype == parameters.dtype)):
        return None
    kernel = PerceptronKernel(perceptron, task.batch_size, is_classification, groups, parameters.dtype)

    def last_member(parameters: Tensor, _: Any, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        own, gradient = parameters[-1:].clone(), torch.zeros_like(parameters[-1:])
        members = kernel.place(own, inputs[-1], targets[-1], None)
        members.directions = members.gradients = gradient.data_ptr()
        losses, _ = kernel(members, own.new_zeros(1, len(groups)), torch.arange(task.batch_size))
        return gradient[0], losses[0]

    return kernel if gradient_function.agrees(last_member, check) else None


def _parts(model: nn.Module) -> list[nn.Module]:
    """The modules of nested ``nn.Sequential`` in their order."""
    return [part for child in model for part in _parts(child)] if type(model) is nn.Sequential else [model]


def _hooks(module: nn.Module) -> bool:
    return any(getattr(module, f"_{kind}_hooks") for kind in ("forward", "forward_pre", "backward"))


def _list(values: Any) -> str:
    return "{" + ", ".join(map(str, values)) + "}"
