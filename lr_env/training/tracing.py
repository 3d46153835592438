"""Functions of tensors as flat graphs, which run without Python's, autograd's and functorch's bookkeeping.

Arguments are tensors, dictionaries of tensors, or None; results are a tensor or a tuple of tensors and dictionaries of tensors. A graph
holds for the shapes it was made with. A backend makes one: :func:`plain` none at all, :func:`interpreted` in a moment,
:func:`compiled` in seconds, but the fastest; :func:`captured` what another one makes as a CUDA graph.
"""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lr_env.training.simplification import script_normalisations, simplify

Argument: TypeAlias = Tensor | dict[str, Tensor] | None
Function: TypeAlias = Callable[..., Any]
Backend: TypeAlias = Callable[[Function, tuple[Argument, ...]], Function]

NUM_WARM_UPS = 3
"""Calls before a CUDA graph is captured, in which libraries choose their kernels and get their memory."""


def flat_graph(function: Function, arguments: tuple[Argument, ...]) -> Function:
    """``function`` as the ATen operations it performs, gradients and ``vmap`` included.

    Raises:
        Exception: Whatever ``function`` or tracing raises, such as for control flow that depends on data.
    """
    flat, graph = _scriptable(function, arguments)
    run = flat.bound(graph.forward)  # without the module's __call__
    run.traced = flat, graph  # type: ignore[attr-defined]  # so that it need not be traced again
    return run


def plain(function: Function, arguments: tuple[Argument, ...]) -> Function:
    """``function`` itself, without gradients: for what cannot be traced."""
    return torch.no_grad()(function)


def interpreted(function: Function, arguments: tuple[Argument, ...]) -> Function:
    """``function``, made of plain operations without gradients, run by TorchScript's interpreter, which needs no Python.

    Where this PyTorch has no TorchScript any more, ``function`` itself.
    """
    example = [tensor.clone() for tensor in _tensors(arguments)]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # its deprecation, and constants that hold for these shapes
            flat, simple = getattr(function, "traced", None) or _scriptable(function, arguments)
            graph = torch.jit.trace(lambda *tensors: simple.forward(*tensors), example, check_trace=False)
    except Exception:
        return plain(function, arguments)
    # Constants that require gradients cannot be traced, so that the graph needs no `no_grad`, which would take as long as ten operations.
    return flat.bound(graph)


def compiled(function: Function, arguments: tuple[Argument, ...]) -> Function:
    """``function``, made of plain operations without gradients, as kernels that TorchInductor writes and a C++ compiler builds.

    The kernels use as many threads as PyTorch does when they are made.
    """
    flat = _Flat(function, arguments)
    # On a CPU a wrapper in C++ calls the kernels without Python in between.
    options = {"cpp_wrapper": not any(tensor.is_cuda for tensor in _tensors(arguments)), "size_asserts": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch's own, at the import and while it compiles
        from torch._inductor import compile  # noqa: A004  (here, as it takes a second to import)

        graph = _graph(flat, arguments)
        kernels = compile(graph, _tensors(arguments), options=options)  # type: ignore[arg-type]  # a list is invariant
        kernels(*_tensors(arguments))  # the wrapper is built at the first call
    return flat.bound(kernels)


def captured(backend: Backend) -> Backend:
    """A backend whose functions run on a GPU as CUDA graphs: a call launches all kernels at once, where each would take as long as a small one runs.

    Results lie where the next call will write its own: they are to be copied, or handed on to that call. Tensors of the arguments that it is
    made with may be written over, unless they are parts of larger ones. What waits for the GPU can't be captured: the function stays as it is.
    """

    def capture(function: Function, arguments: tuple[Argument, ...]) -> Function:
        run = backend(function, arguments)
        flat = _Flat(run, arguments)
        try:
            return flat.bound(_CapturedGraph(flat, _tensors(arguments)))
        except RuntimeError:
            torch.cuda.synchronize()
            return run

    return capture


class _CapturedGraph:
    """A function of tensors on a GPU, to be replayed on others of the same shapes."""

    def __init__(self, function: Function, tensors: list[Tensor]) -> None:
        is_part = [tensor.untyped_storage().nbytes() != tensor.nbytes for tensor in tensors]
        self._inputs = [tensor.clone() if part else tensor for tensor, part in zip(tensors, is_part, strict=True)]
        self._addresses = [tensor.data_ptr() for tensor in self._inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(NUM_WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._results: tuple[Tensor, ...] = function(*self._inputs)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self._inputs, self._addresses, tensors, strict=True)
        moved = [(own, given) for own, address, given in pairs if given.data_ptr() != address]
        if moved:
            torch._foreach_copy_([own for own, _ in moved], [given for _, given in moved])
        self._graph.replay()
        return self._results


def require_compiler() -> None:
    """Raises where :func:`compiled` cannot work.

    Raises:
        RuntimeError: If there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except InvalidCxxCompiler:
        compiler = ""
    if shutil.which(compiler) is None:
        raise RuntimeError(
            "compile=True needs a C++ compiler, but none was found. "
            "Install one (Debian, Ubuntu: apt install g++), name it in $CXX, or leave compile out."
        )


class _Flat:
    """``function`` of a flat list of tensors, returning a flat tuple of tensors."""

    def __init__(self, function: Function, arguments: tuple[Argument, ...]) -> None:
        self._function = function
        self._layout = [list(argument) if isinstance(argument, dict) else argument is not None for argument in arguments]
        self._results: list[list[str] | None] | None = None  # names of each dictionary; None for a lone tensor

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        values: list[Argument] = []
        for part in self._layout:
            if isinstance(part, list):
                values.append({name: next(rest) for name in part})
            else:
                values.append(next(rest) if part else None)
        results = self._function(*values)
        if isinstance(results, Tensor):
            return (results,)
        self._results = [list(result) if isinstance(result, dict) else None for result in results]
        return tuple(_tensors(results))

    def bound(self, graph: Function) -> Function:
        """What this function does, by a graph of it that takes and returns flat tensors; to be called once this was.

        It is written out as source, as dataclasses are: loops over arguments would take as long as ten operations.
        """
        names = [f"value_{number}" for number in range(len(self._layout))]
        tensors: list[str] = []
        for name, part in zip(names, self._layout, strict=True):
            # By name: a dictionary that was returned may be in another order than the one that was given.
            tensors += [f"{name}[{key!r}]" for key in part] if isinstance(part, list) else [name] if part else []
        results = (f"tensors[{number}]" for number in itertools.count())
        if self._results is None:
            returned = next(results)
        else:
            parts = (next(results) if keys is None else "{" + ", ".join(f"{key!r}: {next(results)}" for key in keys) + "}" for keys in self._results)
            returned = f"({', '.join(parts)},)"
        scope: dict[str, Any] = {"graph": graph, "__name__": __name__}
        exec(f"def run({', '.join(names)}):\n    tensors = graph({', '.join(tensors)})\n    return {returned}\n", scope)
        run: Function = scope["run"]
        return run


def _graph(flat: _Flat, arguments: tuple[Argument, ...]) -> torch.fx.GraphModule:
    # Fake tensors: on real ones tracing computes, too, and takes up to twice as long.
    graph: torch.fx.GraphModule = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*_tensors(arguments))
    simplify(graph)
    return graph


def _scriptable(function: Function, arguments: tuple[Argument, ...]) -> tuple[_Flat, torch.fx.GraphModule]:
    """A graph that TorchScript can run, and what it is the graph of."""
    flat = _Flat(function, arguments)
    graph = _graph(flat, arguments)
    script_normalisations(graph)
    return flat, graph


def _tensors(arguments: Sequence[Argument]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, dict):
            tensors += argument.values()
        elif argument is not None:
            tensors.append(argument)
    return tensors
