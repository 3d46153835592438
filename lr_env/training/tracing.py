"""Functions of tensors as flat graphs, which run without Python's, autograd's and functorch's bookkeeping.

Arguments are tensors, dictionaries of tensors, or None. A graph holds for the shapes it was made with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Argument: TypeAlias = Tensor | dict[str, Tensor] | None


def flat_graph(function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Callable[..., Any]:
    """``function`` as the ATen operations it performs, gradients and ``vmap`` included.

    Raises:
        Exception: Whatever ``function`` or tracing raises, such as for control flow that depends on data.
    """
    graph = make_fx(_on_tensors(function, arguments))(*_tensors(arguments))
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.detach.default:  # nothing here has a gradient to be detached from
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    forward = graph.forward  # without the module's __call__
    return lambda *values: forward(*_tensors(values))


def interpreted(function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Callable[..., Any]:
    """``function``, made of plain operations without gradients, run by TorchScript's interpreter, which needs no Python.

    Where this PyTorch has no TorchScript any more, ``function`` itself. The successor, ``torch.compile``, needs a C++ compiler and
    takes a minute, which a training of seconds does not earn back.
    """
    example = [tensor.clone() for tensor in _tensors(arguments)]  # tracing runs the function, which may change its arguments
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # its deprecation, and constants that hold for these shapes
            graph = torch.jit.trace(_on_tensors(function, arguments), example, check_trace=False)
    except Exception:
        return torch.no_grad()(function)
    # Constants that require gradients cannot be traced, so that the graph needs no `no_grad`, which would take as long as ten operations.
    return lambda *values: graph(*_tensors(values))


def _tensors(arguments: tuple[Argument, ...]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, dict):
            tensors += argument.values()
        elif argument is not None:
            tensors.append(argument)
    return tensors


def _on_tensors(function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Callable[..., Any]:
    """``function`` with its dictionaries spread out and its Nones left out."""
    layout = [list(argument) if isinstance(argument, dict) else argument is not None for argument in arguments]

    def call(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        values: list[Argument] = []
        for part in layout:
            if isinstance(part, list):
                values.append({name: next(rest) for name in part})
            else:
                values.append(next(rest) if part else None)
        return function(*values)

    return call
