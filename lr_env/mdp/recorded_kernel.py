"""A recording of NumPy's operations as one function in C++: on small arrays the calls cost more than the numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

TYPES = {np.dtype(np.float64): "double", np.dtype(np.float32): "float", np.dtype(np.bool_): "bool", np.dtype(np.int64): "int64_t"}

FORMULAS: Mapping[Any, str] = {
    np.add: "{0} + {1}",
    np.subtract: "{0} - {1}",
    np.multiply: "{0} * {1}",
    np.true_divide: "{0} / {1}",
    np.negative: "-{0}",
    np.absolute: "std::fabs({0})",
    np.square: "{0} * {0}",
    np.sqrt: "std::sqrt({0})",
    np.log10: "std::log10({0})",
    np.cos: "std::cos({0})",
    np.power: "std::pow({0}, {1})",
    # As NumPy's, of numbers that are none: the first two return them, the others the other one.
    np.maximum: "({0} >= {1} || {0} != {0}) ? {0} : {1}",
    np.minimum: "({0} <= {1} || {0} != {0}) ? {0} : {1}",
    np.fmax: "({0} >= {1} || {1} != {1}) ? {0} : {1}",
    np.fmin: "({0} <= {1} || {1} != {1}) ? {0} : {1}",
    np.less_equal: "{0} <= {1}",
    np.less: "{0} < {1}",
    np.greater_equal: "{0} >= {1}",
    np.greater: "{0} > {1}",
    np.equal: "{0} == {1}",
    np.invert: "!{0}",
    np.bitwise_and: "{0} & {1}",
    np.bitwise_or: "{0} | {1}",
    np.where: "{0} ? {1} : {2}",
    None: "{0}",
}
"""By NumPy's functions, of numbers; None copies."""


@dataclass(frozen=True)
class Call:
    """``result[...] = function(*inputs)``.

    Attributes:
        function: None for the input itself.
        inputs: Arrays and numbers.
        result: A view of a table, or an array that is kept for this result.
        takes_out: Whether the function writes into what it is given as ``out=``.
    """

    function: Callable[..., Any] | None
    inputs: tuple[Any, ...]
    result: np.ndarray
    takes_out: bool = False

    def source(self, name: Callable[[Any], str]) -> str:
        """As a statement, with names of its parts."""
        result, inputs = name(self.result), ", ".join(map(name, self.inputs))
        if self.takes_out:
            return f"{name(self.function)}({inputs}, out={result})"
        return f"{result}[...] = {inputs if self.function is None else f'{name(self.function)}({inputs})'}"


def compile_calls(calls: Sequence[Call]) -> RecordedKernel | None:
    """A function that makes these calls; None where there is no formula for one of them, or no compiler works.

    What it computes rounds as NumPy does, but for logarithms, powers and sums.
    """
    from torch._inductor.codecache import CppCodeCache  # here, as it takes a second to import

    arrays: list[np.ndarray] = []
    try:
        body = "".join(_statement(call, arrays) for call in calls)
        run = CppCodeCache.load(f'#include <cmath>\n#include <cstdint>\nextern "C" void repeat(char** at) {{\n{body}}}\n').repeat
    except (_NoFormulaError, RuntimeError):
        return None
    run.argtypes, run.restype = [ctypes.c_void_p], None
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    return RecordedKernel(run, addresses, arrays)


class _NoFormulaError(Exception):
    """There is none."""


class RecordedKernel:
    """The function, and what it reads and writes, which must outlive it.

    Attributes:
        addresses: Of the function, for callers in C++, and of what it is called with.
    """

    __slots__ = ("_kept", "_run", "addresses")

    def __init__(self, run: Any, places: np.ndarray, arrays: list[np.ndarray]) -> None:
        self._run, self._kept = run, (places, arrays)
        self.addresses: tuple[int, int] = ctypes.cast(run, ctypes.c_void_p).value or 0, places.ctypes.data

    def __call__(self) -> None:
        """Makes the calls."""
        self._run(self.addresses[1])


def _statement(call: Call, arrays: list[np.ndarray]) -> str:
    """A call as a loop over its result; what it reads and writes is appended to the arrays."""
    function, inputs, result = call.function, call.inputs, call.result
    if isinstance(function, partial):
        if isinstance(source := getattr(function.func, "__self__", None), np.ndarray) and inputs[1] == 0:  # source.take(indices, axis=0)
            return _copies([source[index] for index in inputs[0].flat], result, arrays)
        if function.func == np.add.reduce and function.keywords == {"axis": 0}:
            return _sums(inputs[0], result, arrays)
        function = function.func if not function.keywords else None
        if function is np.tile and len(inputs[1]) == inputs[0].ndim == 1:
            return _copies([inputs[0]] * inputs[1][0], result, arrays)
    if function not in FORMULAS or (function is None and call.function is not None):
        raise _NoFormulaError(function)
    spread = [np.broadcast_to(value, result.shape) for value in inputs]
    for own in spread:
        if own.dtype not in TYPES or (np.may_share_memory(own, result) and not _is_read_in_time(own, result)):
            raise _NoFormulaError(f"{function} of {own.dtype}, or in places that overlap")
    numbers = [_place(own, arrays) for own in spread]
    return _loops(result.shape, f"{_place(result, arrays)} = {FORMULAS[function].format(*numbers)};")


def _is_read_in_time(own: np.ndarray, result: np.ndarray) -> bool:
    """Whether a loop over the result reads each number of an input before it writes over it: where both are one, or the input lies ahead."""
    (start, strides), (start_of_result, strides_of_result) = _layout(own), _layout(result)
    is_ahead = start > start_of_result and own.flags.c_contiguous and result.flags.c_contiguous
    return strides == strides_of_result and (start == start_of_result or is_ahead)


def _layout(array: np.ndarray) -> tuple[int, list[int]]:
    """Where it lies."""
    return array.ctypes.data, [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]


def _copies(parts: Sequence[np.ndarray], result: np.ndarray, arrays: list[np.ndarray]) -> str:
    """Parts that a result is put together of, along its first dimension."""
    places = result.reshape(len(parts), *parts[0].shape)
    if not np.may_share_memory(places, result) or {part.dtype for part in parts} != {result.dtype} or result.dtype not in TYPES:
        raise _NoFormulaError("parts of another kind than the whole")
    return "".join(_loops(part.shape, f"{_place(place, arrays)} = {_place(part, arrays)};") for place, part in zip(places, parts, strict=True))


def _sums(rows: np.ndarray, result: np.ndarray, arrays: list[np.ndarray]) -> str:
    """Sums of an array along its first dimension."""
    if rows.dtype != result.dtype or result.dtype not in TYPES or np.may_share_memory(rows, result):
        raise _NoFormulaError("a sum of another type, or in a place that overlaps")
    target = _place(result, arrays)
    return "".join(_loops(row.shape, f"{target} {'+=' if k else '='} {_place(row, arrays)};") for k, row in enumerate(rows))


def _place(array: np.ndarray, arrays: list[np.ndarray]) -> str:
    """An array's number at the loops' indices."""
    arrays.append(array)
    name = TYPES[array.dtype]
    terms = [f"i{axis} * {stride // array.itemsize}" for axis, stride in enumerate(array.strides) if stride and array.shape[axis] > 1]
    return f"reinterpret_cast<{name}*>(at[{len(arrays) - 1}])[{' + '.join(terms) or 0}]"


def _loops(shape: tuple[int, ...], statement: str) -> str:
    loops = [f"for (int64_t i{axis} = 0; i{axis} < {size}; ++i{axis}) " for axis, size in enumerate(shape) if size > 1]
    return f"  {''.join(loops)}{statement}\n"
