"""Initial weights of many members, with the bits of the model's own initialisation but without a module for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from lr_env.tasks.task import Task
from lr_env.training.draws import DrawKernel, Generators
from lr_env.training.gradients import ParameterLayout

DRAWS = ("uniform_", "normal_")
CHANGES = ("zero_", "fill_", "mul_", "div_", "add_", "sub_")
"""What may follow a draw: operations that round alike wherever a tensor lies in memory."""

Step: TypeAlias = tuple[int, int, str, tuple[float, ...]]
"""Start and stop in a flat vector, method and arguments of an in-place operation."""


class Initialiser:
    """Initial weights of many members, with the very bits of the model's own initialisation but without building a module for each.

    Making a module costs far more than its random numbers. So one initialisation is recorded, as the draws and scalar operations that
    it performs in place, and replayed for each member with a generator of its own. The recording is used only after it gave the same
    bits as the module on other seeds; else, modules are built.

    Args:
        task: Whose model is initialised. The model is made three times here: for the recording and its check.
        layout: Where each parameter lies.
        dtype: What parameters are converted to, as by ``model.to(dtype)``.
        kernel: Draws for all members at once where a recording is of uniform numbers alone; None for one member after the other.

    Attributes:
        is_recorded: Whether a recording is used.
        is_drawn_at_once: Whether the kernel is.
    """

    def __init__(self, task: Task, layout: ParameterLayout, dtype: torch.dtype, kernel: DrawKernel | None = None) -> None:
        self._task, self._layout, self._dtype, self._kernel = task, layout, dtype, kernel
        self.is_drawn_at_once = False
        self._steps: list[Step] = []
        self._constants = torch.zeros(0)  # (P + S,): what no step writes, and room for draws that are no part of the model
        self._is_all_drawn = False  # whether there is nothing of the former
        self._buffers: dict[str, Tensor] = {}  # one member's
        try:
            self.is_recorded = self._record() and self._agrees(self._replay)
            draws_uniformly = kernel is not None and all(method == "uniform_" and len(arguments) == 2 for _, _, method, arguments in self._steps)
            self.is_drawn_at_once = self.is_recorded and draws_uniformly and self._agrees(self._draw_at_once)
        except Exception:  # whatever a model does that cannot be recorded
            self.is_recorded = False

    def __call__(
        self,
        parameters: Tensor,
        buffers: dict[str, Tensor],
        members: np.ndarray,
        streams: Sequence[Streams],
        generators: Generators,
        rows: np.ndarray,
    ) -> None:
        """Writes initial weights of members ``(K,)``, from their streams. Global generators are left as they were found.

        Args:
            parameters: ``(R, P)``.
            buffers: Each ``(R, …)``.
            members: ``(K,)``.
            streams: ``(K,)``.
            generators: Of all members; those of ``members`` are left as the initialisation leaves them.
            rows: Which rows of parameters and buffers are written, ``(K,)``.
        """
        initialise = self._draw_at_once if self.is_drawn_at_once else self._replay if self.is_recorded else self._build
        initialise(parameters, buffers, members, streams, generators, rows)

    def _build(
        self,
        parameters: Tensor,
        buffers: dict[str, Tensor],
        members: np.ndarray,
        streams: Sequence[Streams],
        generators: Generators,
        rows: np.ndarray,
    ) -> None:
        """The reference: a module for each member."""
        with preserved_global_generators(), torch.no_grad():
            for member, row, stream in zip(members.tolist(), rows.tolist(), streams, strict=True):
                seed_global_generators(stream.weights)
                model = self._task.initialise().to(self._dtype)
                generators.set_state(member, torch.get_rng_state())
                parameters[row] = self._layout.flatten(dict(model.named_parameters()))
                for name, buffer in model.named_buffers():
                    buffers[name][row] = buffer

    def _replay(
        self,
        parameters: Tensor,
        buffers: dict[str, Tensor],
        members: np.ndarray,
        streams: Sequence[Streams],
        generators: Generators,
        rows: np.ndarray,
    ) -> None:
        """The same from the recording."""
        for name, buffer in self._buffers.items():
            buffers[name][torch.from_numpy(rows)] = buffer
        vector = self._constants.clone()  # in float32, as the module draws
        steps = [(getattr(vector[start:stop], method), arguments, method in DRAWS) for start, stop, method, arguments in self._steps]
        row, written = vector[: self._layout.size].numpy(), parameters.numpy()  # views; NumPy converts, and copies a row in less time
        generators.seed(members, _seeds(generators, streams))
        for member, own_row in zip(members.tolist(), rows.tolist(), strict=True):
            generator = generators[member]
            for method, arguments, draws in steps:
                if draws:
                    method(*arguments, generator=generator)
                else:
                    method(*arguments)
            written[own_row] = row

    def _draw_at_once(
        self,
        parameters: Tensor,
        buffers: dict[str, Tensor],
        members: np.ndarray,
        streams: Sequence[Streams],
        generators: Generators,
        rows: np.ndarray,
    ) -> None:
        """The same by the kernel."""
        assert self._kernel is not None
        for name, buffer in self._buffers.items():
            buffers[name][torch.from_numpy(rows)] = buffer
        generators.seed(members, _seeds(generators, streams))
        size = self._layout.size
        is_whole = len(rows) == len(parameters) and parameters.dtype == torch.float32 and bool((rows == np.arange(len(rows))).all())
        vectors = parameters if is_whole else torch.empty(len(rows), size)
        if not self._is_all_drawn:
            vectors[:] = self._constants[:size]
        steps = [(start, stop, *arguments) for start, stop, _, arguments in self._steps]
        self._kernel.uniform(generators.packed, members, steps, vectors)  # type: ignore[arg-type]  # two arguments each
        if not is_whole:
            parameters[torch.from_numpy(rows)] = vectors.to(parameters.dtype)

    def _record(self) -> bool:
        """Records the initialisation of one seed; whether all that it does could be recorded."""
        with preserved_global_generators(), torch.no_grad():
            seed_global_generators(np.random.SeedSequence(0))
            before = _other_generators()
            with _Recorder() as recorder:
                model = self._task.initialise()
            if not recorder.is_complete or _other_generators() != before:
                return False
            parameters = dict(model.named_parameters())
            starts, size = {}, 0
            for name, shape in self._layout.shapes.items():
                storage = parameters[name].untyped_storage()
                if parameters[name].is_contiguous() and storage.nbytes() == 4 * shape.numel():  # else the check will fail
                    starts[storage.data_ptr()] = size
                size += shape.numel()
            stop = size
            for tensor, method, arguments in recorder.steps:
                # What is no part of the model is drawn for the generator's sake, behind the parameters.
                start = starts.get(_address(tensor), size) + int(tensor.storage_offset())
                self._steps.append((start, start + tensor.numel(), method, arguments))
                stop = max(stop, start + tensor.numel())
            is_drawn = torch.zeros(size, dtype=torch.bool)
            for start, stop_of_step, method, _ in self._steps:
                is_drawn[start:stop_of_step] |= method in DRAWS
            self._is_all_drawn = bool(is_drawn.all())
            self._constants = torch.cat([self._layout.flatten(parameters).float(), torch.zeros(stop - size)])
            self._buffers = {name: buffer.clone() for name, buffer in model.to(self._dtype).named_buffers()}
        return True

    def _agrees(self, replay: Callable[..., None]) -> bool:
        """Whether the recording gives the bits of the module's own initialisation, on seeds that it has not seen."""
        streams, members, results = [Streams(seed) for seed in (1, 2)], np.arange(2), []
        for initialise in (self._build, replay):
            parameters = torch.zeros(len(streams), self._layout.size, dtype=self._dtype)
            buffers = {name: buffer.new_zeros(len(streams), *buffer.shape) for name, buffer in self._buffers.items()}
            generators = Generators(len(streams), self._kernel)
            initialise(parameters, buffers, members, streams, generators, members)
            results.append([parameters, *buffers.values(), *map(generators.state, members.tolist())])
        return all(torch.equal(built, replayed) for built, replayed in zip(*results, strict=True))


def _seeds(generators: Generators, streams: Sequence[Streams]) -> np.ndarray:
    """Of PyTorch's generators, ``(K,)``, as :func:`lr_env.seeding.seed_global_generators` takes them."""
    return generators.first_words(streams, "weights", 3)[:, 2].astype(np.uint64)


class _Recorder(TorchDispatchMode):
    """Records draws into contiguous tensors, and scalar operations on these tensors.

    Any other use of a drawn number makes the recording incomplete: what follows might depend on its value, as when numbers out of
    bounds are drawn again, and a check on two seeds might not show it. A draw of another kind leaves the generator in another state,
    which the check always shows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self.steps: list[tuple[Tensor, str, tuple[float, ...]]] = []  # keeps the tensors, so that no other gets their address
        self.is_complete = True
        self._drawn: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        inputs = {_address(leaf) for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)}
        method = function.overloadpacket.__name__
        if method in DRAWS or (method in CHANGES and inputs & self._drawn):
            target, *rest = arguments
            is_scalar = all(isinstance(value, (int, float)) for value in rest) and not any((keywords or {}).values())
            if is_scalar and target.dtype == torch.float32 and target.is_contiguous():
                self.steps.append((target, method, tuple(rest)))
                self._drawn |= inputs
                return result
        is_view = not function._schema.is_mutable and all(isinstance(leaf, Tensor) and _address(leaf) in inputs for leaf in tree_leaves(result))
        self.is_complete &= is_view or not inputs & self._drawn
        return result


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _other_generators() -> tuple[Any, ...]:
    """The states of Python's and NumPy's global generators, to be compared."""
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is meant
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]
