"""Keeps the caller's PyTorch settings away from what we compute, and ours from the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch


def full_precision(device_type: str = "cpu") -> AbstractContextManager[object]:
    """No autocast inside."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


@contextmanager
def isolated(device_type: str = "cpu") -> Iterator[None]:
    """Inside, there is no autocast and no inference mode, and new tensors are of float32 and on the CPU unless told otherwise."""
    with ExitStack() as stack:
        for each in {"cpu", device_type}:
            stack.enter_context(full_precision(each))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def computing(device_type: str, num_threads: int) -> AbstractContextManager[None]:
    """:func:`isolated`, with so many threads; costs some microseconds where there is nothing to undo.

    On a GPU, convolutions have the precision of their numbers, and the same bits again.
    """
    is_changed = torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device_type) or torch.get_default_dtype() is not torch.float32
    is_usual = not is_changed and torch.empty(0).is_cpu  # tells the default device in a fraction of the time that asking for it takes
    return _Threads(num_threads) if is_usual and device_type == "cpu" else _prepared(device_type, num_threads, is_usual)


class _Threads:
    """So many threads of PyTorch inside; costs less than a microsecond."""

    __slots__ = ("_before", "_inside")

    def __init__(self, count: int) -> None:
        self._inside = count

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before != self._inside:
            torch.set_num_threads(self._inside)

    def __exit__(self, *exception: object) -> None:
        if self._before != self._inside:
            torch.set_num_threads(self._before)


@contextmanager
def _prepared(device_type: str, num_threads: int, is_usual: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_Threads(num_threads))
        if device_type != "cpu":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
        if not is_usual:
            stack.enter_context(isolated(device_type))
        yield
