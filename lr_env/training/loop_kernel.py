"""The signals of a training loop in a kernel of our own: with ``compile=True`` one pass over gradients, weights and the optimizer's state."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lr_env.training.optimizers import SGD, Adam, AdamW, StackedOptimizer

SIGNALS = ("gradient_norm_squared", "gradient_dot_previous", "gradient_dot_direction", "direction_norm_squared", "weight_norm_squared")
"""What the kernel returns, in this order."""

ROWS = ("count", "rule", "group", "gradients", "weights", "before", "first", "second", "step")
"""Of the kernel's table: numbers, then addresses, or 0 for none."""

NUM_OPTIONS = 10
"""Numbers of the kernel's ``Rule``."""


class LoopKernel:
    """The products of all parameters, of float32 on a CPU.

    Args:
        sizes: Numbers of weights of the parameters.
        rule_of: Numbers of their optimizers' rules.
        group_of: Numbers of the groups in which their products are added.
        before: Where the last gradients of each are kept in bfloat16, which each call replaces; None for nowhere.

    Attributes:
        num_groups: G.
        call: For callers in C++: addresses of the function, and what it is called with before threads and totals.
    """

    def __init__(self, sizes: Sequence[int], rule_of: Sequence[int], group_of: Sequence[int], before: Sequence[Tensor] | None) -> None:
        from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

        # The header by which it sees that there are vectors comes first.
        source = "#include <ATen/cpu/vec/vec.h>\n" + resources.files(__package__).joinpath("loop_kernel.cpp").read_text()
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        measure = CppCodeCache.load(source).measure_loop
        measure.argtypes, measure.restype = [integer, pointer, pointer, ctypes.c_int, pointer], None
        self._measure = measure
        self._sizes, self._ones, self.num_groups = sizes, [1] * len(sizes), max(group_of) + 1
        self._seen: dict[str, tuple[Sequence[Tensor | None], list[int]]] = {}  # tensors and their addresses, by name
        self._options: list[Any] = []
        self._numbers = np.zeros((max(rule_of) + 1, NUM_OPTIONS))
        row = ctypes.c_int64 * len(sizes)  # takes a list in less time than NumPy
        self._table = (row * len(ROWS))()
        self._rows: dict[str, Any] = dict(zip(ROWS, self._table, strict=True))
        self._rows["count"][:], self._rows["rule"][:], self._rows["group"][:] = sizes, rule_of, group_of
        if before is not None:
            self._before = before  # kept alive
            self._rows["before"][:] = [tensor.data_ptr() for tensor in before]
        self.call = ctypes.cast(measure, pointer).value or 0, len(sizes), ctypes.addressof(self._table), self._numbers.ctypes.data

    def prepare(
        self,
        gradients: Sequence[Tensor],
        tensors: Mapping[str, Sequence[Tensor | None]],
        rules: Sequence[StackedOptimizer],
        ratios: Sequence[float],
        factor: float,
    ) -> bool:
        """Looks up what the next call reads; False where a tensor is of another kind than the kernel's.

        Args:
            gradients: Of each parameter, of its size and on its device, as torch sees to.
            tensors: Of each parameter its ``weights``, and what the optimizer keeps: as ``first`` the momentum, or None before its first step; or
                both moments as ``first`` and ``second``, and as ``step`` the number of steps made.
            rules: See :attr:`Directions.rules`; those for which :func:`is_known`.
            ratios: Factors on the directions under each rule.
            factor: On the gradients.
        """
        if not all([gradient.dtype is torch.float32 and gradient.is_contiguous() for gradient in gradients]):  # noqa: C419  (takes less time)
            return False
        self._rows["gradients"][:] = [gradient.data_ptr() for gradient in gradients]  # others at every step
        for name, of_parameters in tensors.items():
            try:
                addresses = [0 if tensor is None else tensor.data_ptr() for tensor in of_parameters]
            except RuntimeError:  # sparse ones have none
                return False
            seen, before = self._seen.get(name, ((), []))
            if addresses == before and all(map(operator.is_, of_parameters, seen)):
                continue
            if not _are_readable(of_parameters, self._ones if name == "step" else self._sizes):
                self._seen.pop(name, None)
                return False
            self._rows[name][:] = addresses
            self._seen[name] = of_parameters, addresses
        options = [*rules, *ratios, factor]
        if options != self._options:
            self._options = options
            numbers = [_numbers(rule, ratio, factor) for rule, ratio in zip(rules, ratios, strict=True)]
            self._numbers[:] = numbers[: len(self._numbers)]  # groups without parameters may follow
        return True

    def __call__(self) -> np.ndarray:
        """:data:`SIGNALS` of each group, ``(G, 5)``, of what was prepared; takes the gradients for those before the next."""
        totals = np.zeros((self.num_groups, len(SIGNALS)))
        _, *arguments = self.call
        self._measure(*arguments, torch.get_num_threads(), totals.ctypes.data)
        return totals


def is_known(rule: StackedOptimizer) -> bool:
    """Whether the kernel knows the directions."""
    return isinstance(rule, SGD) or type(rule) in (Adam, AdamW)


def _numbers(rule: StackedOptimizer, scale: float, factor: float) -> tuple[float, ...]:
    """Of the kernel's ``Rule``."""
    if isinstance(rule, Adam):
        coupled, decoupled = (0.0, rule.weight_decay) if rule.is_decoupled else (rule.weight_decay, 0.0)
        return 1.0, factor, coupled, decoupled, scale, 0.0, 0.0, rule.beta1, rule.beta2, rule.epsilon
    assert isinstance(rule, SGD)
    return 0.0, factor, rule.weight_decay, 0.0, scale, rule.momentum or 0.0, float(rule.nesterov), 0.0, 0.0, 0.0


def _are_readable(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> bool:
    """Whether the kernel can read all that there are."""
    return all(
        tensor is None or (tensor.dtype is torch.float32 and tensor.is_cpu and tensor.numel() == size and tensor.is_contiguous())
        for tensor, size in zip(tensors, sizes, strict=True)
    )
