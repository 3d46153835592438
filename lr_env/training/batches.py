"""The minibatches of a population: every member walks through its own order of the same data, or through fresh samples.

A member may see only a part of the data, and have labels of its own; see :class:`lr_env.tasks.TaskFamily`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lr_env.seeding import Streams
from lr_env.tasks.family import TaskFamily
from lr_env.tasks.task import Data, epoch_order
from lr_env.training.draws import LARGEST_SET, DrawKernel, Generators

SAMPLES_AHEAD = 64
"""Batches that a sampler draws at once."""


class Batches:
    """The current minibatch of each of N members.

    Args:
        family: Where batches come from; of one variant.
        num_members: N.
        dtype: Floating-point type of inputs and floating-point targets.
        device: Where the data lie.
        kernel: Draws the orders of many members at once; None for one after the other.
    """

    def __init__(self, family: TaskFamily, num_members: int, dtype: torch.dtype, device: torch.device, kernel: DrawKernel | None = None) -> None:
        self._family, self._task = family, family.variants[0]
        task = self._task
        self._num_members, self._dtype, self._device = num_members, dtype, device
        self._generators = Generators(num_members, kernel)
        self._samplers: list[Any] = [None] * num_members  # NumPy's generators, where batches are fresh samples
        self._cursor = np.zeros(num_members, np.int64)
        self._shared_cursor: int | None = 0  # where all members are at the same batch, their indices lie side by side
        self._steps_until_epoch = 0  # a lower bound over all members, so that most steps need no look at each
        self.input_scales = torch.ones(num_members, dtype=dtype, device=device) if family.varies_inputs else None
        if isinstance(task.data, Data):
            self._inputs, self._targets = self.cast(task.data.train.inputs), self.cast(task.data.train.targets)
            if family.varies_labels:
                self._targets = self._targets.repeat(num_members, *[1] * (self._targets.dim() - 1))  # (N · M, …), one member after the other
            self._num_examples = family.num_examples
            self._num_batches = self._num_examples // task.batch_size
            self._order = torch.zeros(self._num_batches, num_members, task.batch_size, dtype=torch.int64, device=device)
        else:
            example_inputs, example_targets = task.data.sample(np.random.default_rng(0), 1)
            self._num_batches = SAMPLES_AHEAD
            shape = (SAMPLES_AHEAD, num_members, task.batch_size)
            self._inputs = self.cast(torch.zeros((*shape, *example_inputs.shape[1:]), dtype=example_inputs.dtype))
            self._targets = self.cast(torch.zeros((*shape, *example_targets.shape[1:]), dtype=example_targets.dtype))
            # A member's samples stand at the same places as a member's indices would.
            self._order = torch.arange(SAMPLES_AHEAD * num_members * task.batch_size, device=device).view(shape)
        self._rows = list(self._order.flatten(1))  # views, made once
        # (N, M'): which examples a member sees
        self._examples = torch.zeros(num_members, family.num_examples, dtype=torch.int64) if family.varies_examples else None

    def cast(self, values: Tensor) -> Tensor:
        """Values on the population's device, contiguous; floating-point ones in its type, others as they are."""
        return values.to(self._device, self._dtype if values.is_floating_point() else values.dtype).contiguous()

    @property
    def num_own_targets(self) -> int:
        """M where every member has targets of its own, 0 where all share theirs."""
        return len(self._inputs) if self._family.varies_labels else 0

    def restart(self, members: np.ndarray, streams: Sequence[Streams]) -> None:
        """Puts members ``(K,)`` at the first batch of a new order, and makes the family's draws, from their streams ``(K,)``."""
        is_finite = isinstance(self._task.data, Data)
        if is_finite:
            words = self._generators.first_words(streams, "order", 2).astype(np.uint64)
            self._generators.seed(members, words[:, 0] | words[:, 1] << np.uint64(32))  # as torch_generator does
        family, rows = self._family, torch.from_numpy(members).to(self._device)
        if self.input_scales is not None:
            self.input_scales[rows] = torch.tensor([family.draw_input_scale(stream.family) for stream in streams], dtype=torch.float64).to(
                self.input_scales
            )
        if family.varies_labels:
            self._own_targets()[rows] = torch.stack([family.draw_labels(stream.family) for stream in streams]).to(self._targets)
        if self._examples is not None:
            self._examples[torch.from_numpy(members)] = torch.stack([family.draw_examples(stream.family) for stream in streams])
        if not is_finite:
            for member, stream in zip(members.tolist(), streams, strict=True):
                self._samplers[member] = np.random.default_rng(stream.order)
        self._begin_epochs(members)
        self._cursor[members] = 0
        self._look_at_cursors()

    @property
    def num_following(self) -> int:
        """How many batches of all members lie behind the present ones side by side, one after the other."""
        return 0 if self._shared_cursor is None else self._steps_until_epoch - 1

    def advance(self, members: np.ndarray | None = None, count: int = 1) -> None:
        """Moves members ``(K,)`` to their next batch; or all, by up to :attr:`num_following` batches, or one."""
        if members is None:
            self._cursor += count
            if self._shared_cursor is not None:
                self._shared_cursor += count
        else:
            self._cursor[members] += 1
            self._shared_cursor = None
        self._steps_until_epoch -= count
        if self._steps_until_epoch == 0 or self._shared_cursor is None:
            finished = self._cursor == self._num_batches
            self._begin_epochs(np.flatnonzero(finished))
            self._cursor[finished] = 0
            self._look_at_cursors()

    def references(self) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`gather` takes: the data, and where the current batches lie in them, ``(N · B,)``."""
        if self._shared_cursor is not None:
            indices = self._rows[self._shared_cursor]
        else:
            indices = self._order[torch.from_numpy(self._cursor), torch.arange(self._num_members)].view(-1)
        if isinstance(self._task.data, Data):
            return self._inputs, self._targets, indices
        return self._inputs.flatten(0, 2), self._targets.flatten(0, 2), indices

    def gather(self, inputs: Tensor, targets: Tensor, indices: Tensor, input_scales: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batches at ``indices (K · B,)`` of K members: inputs ``(K, B, …)`` and targets ``(K, B, …)``; see :meth:`of_members`."""
        shape = (len(indices) // self._task.batch_size, self._task.batch_size)
        batch_inputs = inputs.index_select(0, indices).unflatten(0, shape)
        if input_scales is not None:
            batch_inputs = batch_inputs * input_scales.view(-1, *[1] * (batch_inputs.dim() - 1))
        if self._family.varies_labels:
            indices = (indices.view(shape) + torch.arange(0, len(targets), len(inputs), device=indices.device).unsqueeze(1)).view(-1)
        return batch_inputs, targets.index_select(0, indices).unflatten(0, shape)

    def of_members(self, members: slice, targets: Tensor, indices: Tensor, input_scales: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of what :meth:`gather` takes beside the inputs, the parts of some successive members."""
        first, stop, batch_size = members.start, members.stop, self._task.batch_size
        own = targets[first * self.num_own_targets : stop * self.num_own_targets] if self._family.varies_labels else targets
        return own, indices[first * batch_size : stop * batch_size], None if input_scales is None else input_scales[members]

    def current(self) -> tuple[Tensor, Tensor]:
        """The current minibatches: inputs ``(N, B, …)`` and targets ``(N, B, …)``."""
        inputs, targets, indices = self.references()
        return self.gather(inputs, targets, indices, self.input_scales)

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Plain data from which :meth:`set_state` restores these members."""
        rows = torch.from_numpy(members)
        state: dict[str, Any] = {"cursor": self._cursor[members]}
        if isinstance(self._task.data, Data):
            state["order"] = self._order[:, rows]
            state["generators"] = [self._generators.state(member) for member in members]
        else:
            state["samples"] = (self._inputs[:, rows], self._targets[:, rows])
            state["generators"] = [self._samplers[member].bit_generator.state for member in members]
        if self.input_scales is not None:
            state["input_scales"] = self.input_scales[rows]
        if self._family.varies_labels:
            state["targets"] = self._own_targets()[rows]
        if self._examples is not None:
            state["examples"] = self._examples[rows]
        return state

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        rows = torch.from_numpy(members)
        self._cursor[members] = state["cursor"]
        self._look_at_cursors()
        for member, generator_state in zip(members, state["generators"], strict=True):
            if isinstance(self._task.data, Data):
                self._generators.set_state(member, generator_state)
            else:
                self._samplers[member] = np.random.default_rng()
                self._samplers[member].bit_generator.state = generator_state
        if "order" in state:
            self._order[:, rows] = state["order"]
        else:
            self._inputs[:, rows], self._targets[:, rows] = state["samples"]
        if self.input_scales is not None:
            self.input_scales[rows] = state["input_scales"]
        if self._family.varies_labels:
            self._own_targets()[rows] = state["targets"]
        if self._examples is not None:
            self._examples[rows] = state["examples"]

    def _own_targets(self) -> Tensor:
        """The members' own targets, ``(N, M, …)``: a view."""
        own: Tensor = self._targets.unflatten(0, (self._num_members, -1))
        return own

    def _look_at_cursors(self) -> None:
        first, last = int(self._cursor.min()), int(self._cursor.max())
        self._shared_cursor = first if first == last else None
        self._steps_until_epoch = self._num_batches - last

    def _begin_epochs(self, members: np.ndarray) -> None:
        """Gives members ``(K,)`` a new order, or fresh samples."""
        if not isinstance(self._task.data, Data):
            for member in members.tolist():
                inputs, targets = self._task.data.sample(self._samplers[member], SAMPLES_AHEAD * self._task.batch_size)
                shape = (SAMPLES_AHEAD, self._task.batch_size)
                self._inputs[:, member] = inputs.unflatten(0, shape).to(self._inputs)
                self._targets[:, member] = targets.unflatten(0, shape).to(self._targets)
            return
        if not len(members):
            return
        order, columns = self._order, members
        if order.device.type != "cpu":  # one transfer for all
            order, columns = torch.empty(len(order), len(members), order.shape[2], dtype=order.dtype), np.arange(len(members))
        kernel, num_examples = self._generators.kernel, self._num_examples
        if kernel is not None and num_examples < LARGEST_SET:
            kernel.orders(self._generators.packed, members, columns, num_examples, self._examples, order)
        else:
            for member, column in zip(members.tolist(), columns.tolist(), strict=True):
                own = epoch_order(self._generators[member], num_examples, self._task.batch_size)
                order[:, column] = own if self._examples is None else self._examples[member][own]
        if order is not self._order:
            self._order[:, torch.from_numpy(members).to(self._device)] = order.to(self._device)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = list(self._order.flatten(1))
