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
from lr_env.training.optimizers import SGD, Adam, AdamW, StackedOptimizer
from lr_env.training.signals import Groups

ACTIVATIONS: dict[type[nn.Module], str] = {nn.Identity: "IDENTITY", nn.ReLU: "RELU", nn.Tanh: "TANH", nn.Sigmoid: "SIGMOID"}
"""Those that the kernel knows."""

LARGEST_SIZE = 2**18
"""Parameters of a model, at most: where a layer is large, the libraries' products are faster."""

SIGNALS = ("gradient_norm_squared", "gradient_dot_previous", "weight_norm_squared", "gradient_dot_direction", "direction_norm_squared")
"""What the kernel returns, in this order; the last two only where it makes directions that are not the gradients."""


@dataclass(frozen=True)
class Rule:
    """How the kernel makes directions.

    Attributes:
        name: Of ``Rule`` in ``perceptron.cpp``.
        state: What the optimizer keeps, by its names in a population's state.
        options: The kernel's constants.
    """

    name: str = "ELSEWHERE"
    state: tuple[str, ...] = ()
    is_nesterov: bool = False
    is_decoupled: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    epsilon: float = 0.0

    @classmethod
    def of(cls, optimizer: object) -> Rule:
        """That of an optimizer; where the kernel does not know it, of one whose directions are made elsewhere."""
        if not isinstance(optimizer, StackedOptimizer) or optimizer.clip_norm is not None:
            return cls()
        if type(optimizer) is SGD:
            if optimizer.momentum is None:
                return cls("SGD", (), weight_decay=optimizer.weight_decay)
            return cls("MOMENTUM", ("momentum",), optimizer.nesterov, False, optimizer.weight_decay, optimizer.momentum)
        if type(optimizer) in (Adam, AdamW):
            assert isinstance(optimizer, Adam)
            moments, numbers = ("first_moment", "second_moment"), (optimizer.beta1, optimizer.beta2, optimizer.epsilon)
            return cls("ADAM", moments, False, optimizer.is_decoupled, optimizer.weight_decay, *numbers)
        return cls()

    @property
    def has_directions(self) -> bool:
        """Whether it makes directions that are not the gradients."""
        return self.name in ("MOMENTUM", "ADAM") or (self.name == "SGD" and self.weight_decay != 0)

    @property
    def shares_directions(self) -> bool:
        """Whether the momentum is the direction."""
        return self.name == "MOMENTUM" and not self.is_nesterov


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
        *((name, ctypes.c_void_p) for name in ("weights", "directions", "gradients", "first", "second", "steps", "inputs", "targets")),
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
        rule: Of the directions.

    Attributes:
        rule: The same.
    """

    def __init__(self, perceptron: Perceptron, batch_size: int, is_classification: bool, groups: Groups, dtype: torch.dtype, rule: Rule) -> None:
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
            "enum Rule {ELSEWHERE, SGD, MOMENTUM, ADAM}",
            f"constexpr Rule RULE = {rule.name}",
            f"constexpr bool IS_NESTEROV = {int(rule.is_nesterov)}, IS_DECOUPLED = {int(rule.is_decoupled)}",
            f"constexpr double WEIGHT_DECAY = {rule.weight_decay!r}, BETA1 = {rule.beta1!r}, BETA2 = {rule.beta2!r}, EPSILON = {rule.epsilon!r}",
        )
        source = "".join(f"{declaration};\n" for declaration in declarations) + resources.files(__package__).joinpath("perceptron.cpp").read_text()
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        # The header by which it sees that there are vectors comes first.
        library = CppCodeCache.load("#include <ATen/cpu/vec/vec.h>\n" + source)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._step, self._evaluate = library.step_perceptrons, library.evaluate_perceptrons
        self._step.argtypes = [ctypes.POINTER(Members), ctypes.c_int, pointer, pointer, integer, pointer, pointer]
        self._evaluate.argtypes = [integer, integer, ctypes.c_int, *[pointer] * 4, integer, pointer, ctypes.c_int, pointer]
        self._step.restype = self._evaluate.restype = None
        self._size, self._num_groups, self._is_classification, self.rule = perceptron.size, len(groups), is_classification, rule

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
        """Where a population's tensors lie, all of them contiguous; it must not outlive them.

        For each step directions and gradients are added, and what the optimizer keeps.

        Args:
            weights: ``(N, P)``.
            inputs: ``(M, …)``.
            targets: ``(M,)`` or ``(M, …)``.
            scales: Of the inputs, ``(N,)``, or None.
            own_targets: Number of targets that belong to one member, ``targets`` being ``(N · M, …)``; 0 if all share theirs.
        """
        target_step = own_targets * targets[0].numel() * targets.element_size()
        data = inputs.data_ptr(), targets.data_ptr(), target_step, None if scales is None else scales.data_ptr()
        return Members(len(weights), self._size, weights.data_ptr(), None, None, None, None, None, *data)

    def __call__(self, members: Members, rates: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """``w ← w − rate · u``, and gradients on the next minibatches, in place.

        Args:
            members: Where all lies; the directions may be the gradients, which are the last ones.
            rates: ``(N, G)``, contiguous.
            indices: Of the minibatches' examples, ``(N · B,)``, contiguous.

        Returns:
            Losses ``(N,)``, and :data:`SIGNALS` ``(R, G, N)``, of which there are :attr:`num_signals`.
        """
        count = len(rates)
        losses, signals = rates.new_empty(count), rates.new_empty(self.num_signals, self._num_groups, count)
        self._step(members, torch.get_num_threads(), rates.data_ptr(), indices.data_ptr(), 0, losses.data_ptr(), signals.data_ptr())
        return losses, signals

    @property
    def num_signals(self) -> int:
        """How many of :data:`SIGNALS` it returns."""
        return len(SIGNALS) if self.rule.has_directions else 3


def make_kernel(
    family: TaskFamily, gradient_function: GradientFunction, groups: Groups, rule: Rule, check: tuple[Any, ...]
) -> PerceptronKernel | None:
    """A kernel for the family's task, if it is one of small perceptrons.

    Args:
        family: Of one variant.
        gradient_function: What the kernel stands in for.
        groups: The parameter groups.
        rule: Of the directions.
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
    kernel = PerceptronKernel(perceptron, task.batch_size, is_classification, groups, parameters.dtype, rule)

    def last_member(parameters: Tensor, _: Any, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        own, gradient = parameters[-1:].clone(), torch.zeros_like(parameters[-1:])
        members = kernel.place(own, inputs[-1], targets[-1], None)
        members.directions = members.gradients = gradient.data_ptr()
        nothing = torch.zeros_like(own), torch.zeros_like(own), torch.zeros_like(own)
        members.first, members.second = (each.data_ptr() for each in nothing[:2])
        if rule.has_directions:
            members.directions = nothing[2].data_ptr()
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
