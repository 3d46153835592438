"""Computations on NumPy's arrays that are recorded once and then repeated without what Python does between their operations.

On small arrays an operation of NumPy takes less time than what surrounds it: names that are looked up, views and results that are made anew. A
recording keeps its results and views in memory from one time to the next; what is left are the operations themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from lr_env.mdp.recorded_kernel import Call, compile_calls


class Recording:
    """What a function does with arrays, to be repeated with others of the same shapes and types; made by doing it once.

    Args:
        function: Of an array that it may change in place and of inputs, all of them :class:`Recorded`; returns a sequence of these or None.
        table: The array, which stays where it is.
        inputs: Arrays that are others each time; None where there is none.
        is_compiled: Whether it is repeated by a function in C++, where the operations can be.

    Attributes:
        results: Arrays or None, written over the next time.
        kernel: The function in C++, or None.
    """

    def __init__(
        self, function: Callable[..., Sequence[Recorded | None]], table: np.ndarray, *inputs: np.ndarray | None, is_compiled: bool = False
    ) -> None:
        calls: list[Call] = []
        self._inputs = [None if each is None else np.array(each, order="C") for each in inputs]
        arrays = (None if each is None else Recorded(each, calls) for each in (table, *self._inputs))
        before = table.copy() if is_compiled else table
        self.results: Sequence[Any] = [None if result is None else result.array for result in function(*arrays)]
        calls = list(_without_copies(calls, [result for result in self.results if result is not None]))
        self.kernel = compile_calls(calls) if is_compiled else None
        self._repeat = self.kernel or _written_out(calls)
        if self.kernel is not None:  # whose logarithms may end in another bit: the first time shall give what any other does
            table[...] = before
            self.kernel()

    def __call__(self, *inputs: np.ndarray | None) -> Sequence[Any]:
        """Repeats it with other inputs, and returns :attr:`results`."""
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None:
                own[...] = given
        self._repeat()
        return self.results

    def input(self, number: int) -> np.ndarray:
        """The array that holds one of the inputs when it is repeated."""
        array = self._inputs[number]
        assert array is not None
        return array


class Recorder:
    """Functions of a table, each recorded when it is first called with these of its inputs there, and repeated from then on.

    Args:
        table: The array, which stays where it is.
        is_compiled: Whether they are repeated by functions in C++, where they can be, but for those that take masks: not worth a compiler's time.
    """

    def __init__(self, table: np.ndarray, is_compiled: bool = False) -> None:
        self._table, self._is_compiled = table, is_compiled
        self._recordings: dict[tuple[Any, ...], Recording] = {}

    def __call__(self, function: Callable[..., Any], *inputs: np.ndarray | None) -> Sequence[Any]:
        """What a function of the table and of inputs returns: arrays or None, written over the next time."""
        key = _key(function, inputs)
        recording = self._recordings.get(key)
        if recording is not None:
            return recording(*inputs)
        has_masks = any(each is not None and each.dtype == np.bool_ for each in inputs)
        recording = self._recordings[key] = Recording(function, self._table, *inputs, is_compiled=self._is_compiled and not has_masks)
        return recording.results

    def find(self, function: Callable[..., Any], *inputs: np.ndarray | None) -> Recording | None:
        """The recording of a function for inputs like these, if it was called with some."""
        return self._recordings.get(_key(function, inputs))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recordings": {}}  # made anew


def _key(function: Callable[..., Any], inputs: Sequence[np.ndarray | None]) -> tuple[Any, ...]:
    return function.__name__, *[each is None for each in inputs]


class Recorded(NDArrayOperatorsMixin):
    """An array whose operations are carried out and recorded. What it has no method for raises an error: nothing is done unrecorded."""

    def __init__(self, array: np.ndarray, calls: list[Call]) -> None:
        self.array, self._calls = array, calls

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Recorded] | None = None, **options: Any) -> Recorded:
        if method != "__call__" or options:
            raise NotImplementedError(f"{ufunc.__name__}.{method} with options {sorted(options)} is not recorded.")
        arrays = tuple(map(_array, inputs))
        result = ufunc(*arrays) if out is None else ufunc(*arrays, out=out[0].array)
        # A constant that lies beside each number it meets saves NumPy its conversion, and longer strides.
        spread = (
            value.array if isinstance(value, Recorded) else np.broadcast_to(np.asarray(value, np.float64), result.shape).copy() for value in inputs
        )
        return self._recorded(Call(ufunc, tuple(spread), result, takes_out=True))

    def __pow__(self, exponent: float) -> Recorded:
        assert exponent == 2, "Of other powers NumPy's operator may take another way than its function."
        squares: Recorded = np.square(self)
        return squares

    def __array_function__(self, function: Callable[..., Any], types: Any, arguments: Any, options: Any) -> Recorded:
        return self._apply(partial(function, **options), *arguments)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """As of the array."""
        return self.array.ndim

    @property
    def T(self) -> Recorded:  # noqa: N802  (NumPy's name)
        """As of the array."""
        return Recorded(self.array.T, self._calls)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Recorded:
        return self._apply(operator.itemgetter(key), self)

    def __setitem__(self, key: Any, values: Any) -> None:
        view = self.array[key]
        assert view.base is not None, "Only views can be written to."
        view[...] = _array(values)
        self._recorded(Call(None, (_array(values),), view))

    def reshape(self, *shape: int) -> Recorded:
        """As of the array."""
        result = self.array.reshape(*shape)
        if not np.may_share_memory(result, self.array):
            self._calls.append(Call(None, (self.array,), result.reshape(self.array.shape)))
        return Recorded(result, self._calls)

    def mean(self, axis: int) -> Recorded:
        """As of the array."""
        add = partial(np.add.reduce, axis=axis)  # as NumPy's mean does
        mean: Recorded = self._recorded(Call(add, (self.array,), add(self.array), takes_out=True)) / self.array.shape[axis]
        return mean

    def astype(self, dtype: Any, order: Any) -> Recorded:
        """As of the array."""
        return self._recorded(Call(None, (self.array,), self.array.astype(dtype, order)))

    def take(self, indices: np.ndarray, axis: int) -> Recorded:
        """As of the array."""
        # With this mode NumPy writes into the result at once; that the indices are valid is known by then.
        return self._recorded(Call(partial(self.array.take, mode="clip"), (indices, axis), self.array.take(indices, axis), takes_out=True))

    def _apply(self, function: Callable[..., Any], *inputs: Any) -> Recorded:
        arrays = tuple(map(_array, inputs))
        result = function(*arrays)
        if any(np.may_share_memory(result, array) for array in arrays if isinstance(array, np.ndarray)):  # a view, which shows what changes
            return Recorded(result, self._calls)
        return self._recorded(Call(function, arrays, result))

    def _recorded(self, call: Call) -> Recorded:
        self._calls.append(call)
        return Recorded(call.result, self._calls)


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Recorded) else value


def _without_copies(calls: Sequence[Call], results: Sequence[np.ndarray]) -> Iterator[Call]:
    """The same calls, where what is computed only to be copied to another place is written there at once."""
    last: Call | None = None
    for position, call in enumerate(calls):
        if last is not None and call.function is None and call.inputs[0] is last.result:
            later = [*results, *(value for following in calls[position + 1 :] for value in following.inputs)]
            is_used = any(np.may_share_memory(last.result, each) for each in later if isinstance(each, np.ndarray))
            if not is_used and (call.result.shape, call.result.dtype) == (last.result.shape, last.result.dtype):
                last = replace(last, result=call.result)
                continue
        if last is not None:
            yield last
        last = call
    if last is not None:
        yield last


def _written_out(calls: Sequence[Call]) -> Callable[[], None]:
    """A function that makes these calls, written out as source: a loop over them would take as long as some of them."""
    scope: dict[str, Any] = {}
    known: dict[int, str] = {}

    def name(value: Any) -> str:
        if id(value) not in known:
            known[id(value)] = f"value_{len(known)}"
            scope[known[id(value)]] = value
        return known[id(value)]

    statements = [call.source(name) for call in calls]
    exec("def repeat():\n    " + "\n    ".join(["pass", *statements]), scope)
    repeat: Callable[[], None] = scope["repeat"]
    return repeat
