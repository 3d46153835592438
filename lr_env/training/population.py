"""N independent trainings of one task, advanced together.

All parameters lie in one tensor ``(N, P)``. A step is split where a controller decides, in the paper's order (Xu et al. 2017):
:meth:`Population.compute_gradients` takes the minibatch loss and gradient at ``w_t``; :meth:`Population.update` applies a rate
to that very gradient and moves on to the next minibatch. One forward and one backward pass a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lr_env.naming import unknown_name
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.task import Split, SplitName, Task
from lr_env.training.batches import Batches
from lr_env.training.gradients import Engine, EvaluationFunction, GradientFunction
from lr_env.training.optimizers import Optimizer

SIGNALS = ("gradient_norm_squared", "gradient_dot_previous", "gradient_dot_direction", "direction_norm_squared", "weight_norm_squared")
"""Names of the signals beside the loss; each ``(N, G)``."""

EXAMPLES_PER_PASS = 2**16
"""Bounds the memory of an evaluation: members times examples in one pass."""


@dataclass(frozen=True)
class Signals:
    """What a controller may see of N trainings, float64.

    Attributes:
        losses: ``ℓ(B_t; w_t)``, ``(N,)``.
        values: Signal name to ``(N, G)``; those that were asked for.
    """

    losses: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss ``(N,)`` and metric ``(N,)`` (None where the task has none) over one split, in evaluation mode."""

    losses: np.ndarray
    metrics: np.ndarray | None


class Population:
    """N trainings side by side. A member depends on its own seed alone, whatever its neighbours do.

    Args:
        task: What is trained.
        num_members: N, at least 1.
        optimizer: Update directions, from :func:`lr_env.training.make_optimizer`.
        gradients: ``"auto"``, ``"batched"`` or ``"looped"``; see :mod:`lr_env.training.gradients`.
        dtype: ``"float32"`` or ``"float64"``.

    Raises:
        ValueError: If an argument is out of range, or ``gradients="batched"`` does not work for the model.
    """

    def __init__(self, task: Task | TaskFamily, num_members: int, optimizer: Optimizer, *, gradients: Engine = "auto", dtype: str = "float32") -> None:
        if num_members < 1:
            raise ValueError(f"A population has at least 1 member, but {num_members} was given.")
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        if dtype not in dtypes:
            raise unknown_name("dtype", dtype, dtypes)
        self.family = as_family(task)
        self.task = self.family.task
        self.num_members = num_members
        self.num_groups = 1
        self.optimizer = optimizer
        self.dtype = dtypes[dtype]
        self._engine: Engine = gradients
        self._build_functions()
        layout = self._gradient_function.layout
        self.parameters = torch.zeros(num_members, layout.size, dtype=self.dtype)
        self.buffers = {name: buffer.new_zeros((num_members, *buffer.shape)) for name, buffer in self._template.named_buffers()}
        self.optimizer_state = optimizer.initial_state(self.parameters)
        self.batches = Batches(self.family, num_members, self.dtype)
        self.steps = np.zeros(num_members, np.int64)
        self.losses = torch.zeros(num_members, dtype=self.dtype)
        self.gradients = torch.zeros_like(self.parameters)
        self.previous_gradients = torch.zeros_like(self.parameters)
        self.directions = self.gradients
        self._generator_states: list[Tensor] = [torch.get_rng_state()] * num_members
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def engine(self) -> Engine:
        """The engine in use: ``"auto"`` until the first gradient."""
        return self._gradient_function.engine

    def restart(self, members: np.ndarray, streams: list[Streams]) -> None:
        """Gives members ``(K,)`` new weights, a new data order and new draws of the family, from their streams ``(K,)``."""
        rows = torch.from_numpy(members)
        layout = self._gradient_function.layout
        with preserved_global_generators(), torch.no_grad():
            for member, stream in zip(members, streams, strict=True):
                seed_global_generators(stream.weights)
                model = self.task.initialise().to(self.dtype)
                self.parameters[member] = layout.flatten(dict(model.named_parameters()))
                for name, buffer in model.named_buffers():
                    self.buffers[name][member] = buffer
                self._generator_states[member] = torch.get_rng_state()
        for state in self.optimizer_state.values():
            state[rows] = 0
        self.gradients[rows] = 0
        self.steps[members] = 0
        scales = np.array([self.family.draw_input_scale(stream.family) for stream in streams])
        self.batches.restart(members, [stream.order for stream in streams], scales)

    def compute_gradients(self, members: np.ndarray | None = None) -> None:
        """Loss, gradient and update direction of members ``(K,)``, or all, at their weights on their current batch.

        All N members are computed in any case, so that a member's bits do not depend on which others are asked for.
        """
        inputs, targets = self.batches.current()
        if members is None:
            self.previous_gradients = self.gradients
            self.gradients, self.losses = self._gradient_function(self.parameters, self.buffers, inputs, targets, self._generator_states)
            self.directions = self.optimizer.directions(self.gradients, self.optimizer_state, self.steps + 1)
            return
        rows = torch.from_numpy(members)
        buffers, generator_states = {name: buffer.clone() for name, buffer in self.buffers.items()}, list(self._generator_states)
        gradients, losses = self._gradient_function(self.parameters, buffers, inputs, targets, generator_states)
        for name, buffer in self.buffers.items():
            buffer[rows] = buffers[name][rows]
        for member in members:
            self._generator_states[member] = generator_states[member]
        state = {name: tensor[rows] for name, tensor in self.optimizer_state.items()}
        directions = self.optimizer.directions(gradients[rows], state, self.steps[members] + 1)
        for name, tensor in self.optimizer_state.items():
            tensor[rows] = state[name]
        # New tensors: the old ones may be shared with the previous gradients or with the directions.
        self.previous_gradients = self.previous_gradients.index_copy(0, rows, self.gradients[rows])
        self.directions = self.directions.index_copy(0, rows, directions)
        self.gradients = self.gradients.index_copy(0, rows, gradients[rows])
        self.losses = self.losses.index_copy(0, rows, losses[rows])

    def signals(self, names: frozenset[str]) -> Signals:
        """The loss and the named signals of all members, in one transfer."""
        columns = [self.losses]
        order = [name for name in SIGNALS if name in names]
        computed: dict[tuple[int, int], Tensor] = {}
        for name in order:
            left, right = self._factors(name)
            key = (id(left), id(right))  # for SGD the direction is the gradient: the same product is taken once
            if key not in computed:
                computed[key] = torch.linalg.vecdot(left, right)
            columns.append(computed[key])
        values = torch.stack(columns).numpy().astype(np.float64)  # (1 + S, N)
        return Signals(values[0], {name: values[i + 1, :, None] for i, name in enumerate(order)})

    def update(self, rates: np.ndarray, members: np.ndarray | None = None) -> None:
        """``w ← w − rate · u`` with rates ``(N, G)``, for members ``(K,)``, or all."""
        if members is None:
            self.steps += 1
        else:
            active = np.zeros((self.num_members, 1), bool)
            active[members] = True
            rates = np.where(active, rates, 0.0)
            self.steps[members] += 1
        self.parameters.addcmul_(self.directions, torch.from_numpy(rates).to(self.dtype), value=-1)

    def advance(self, members: np.ndarray | None = None) -> None:
        """Moves members ``(K,)``, or all, to their next minibatch."""
        self.batches.advance(members)

    def current_batch_losses(self) -> np.ndarray:
        """Losses ``(N,)`` of all members at their present weights on their current minibatch, in training mode: one more forward pass."""
        inputs, targets = self.batches.current()
        sums = self._evaluation_function(self.parameters, self.buffers, inputs, targets, shared=False, training=True)
        return (sums[:, 0] / targets.shape[1]).numpy().astype(np.float64)

    def evaluate(self, split: SplitName, subset: np.ndarray | None = None) -> Evaluation:
        """Mean loss and metric of all members over a split, in evaluation mode.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            subset: Indices of the examples to use; None for all.

        Raises:
            ValueError: If the split is unknown or empty.
        """
        inputs, targets = self._split(split)
        if subset is not None:
            rows = torch.from_numpy(subset)
            inputs, targets = inputs[rows], targets[rows]
        chunk = max(1, EXAMPLES_PER_PASS // self.num_members)
        sums = torch.zeros(self.num_members, 2, dtype=torch.float64)
        for start in range(0, len(inputs), chunk):
            part = slice(start, start + chunk)
            sums += self._evaluation_function(
                self.parameters, self.buffers, inputs[part], targets[part], self.batches.input_scales, shared=True, training=False
            )
        means = (sums / len(inputs)).numpy()
        return Evaluation(means[:, 0], None if self.task.metric is None else means[:, 1])

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Everything that determines the future of members ``(K,)``: tensors, arrays and plain data."""
        rows = torch.from_numpy(members)
        return {
            "tensors": {name: tensor[rows] for name, tensor in self._member_tensors().items()},
            "steps": self.steps[members],
            "generators": torch.stack([self._generator_states[member] for member in members]),
            "batches": self.batches.get_state(members),
        }

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        rows = torch.from_numpy(members)
        for name, tensor in self._member_tensors().items():
            if name in ("losses", "gradients", "previous_gradients", "directions"):
                setattr(self, name, tensor.index_copy(0, rows, state["tensors"][name]))  # these may share their memory
            else:
                tensor[rows] = state["tensors"][name]
        self.steps[members] = state["steps"]
        for member, generator_state in zip(members, state["generators"], strict=True):
            self._generator_states[member] = generator_state.clone()
        self.batches.set_state(state["batches"], members)

    def _member_tensors(self) -> dict[str, Tensor]:
        return {
            "parameters": self.parameters,
            "losses": self.losses,
            "gradients": self.gradients,
            "previous_gradients": self.previous_gradients,
            "directions": self.directions,
            **{f"buffer.{name}": tensor for name, tensor in self.buffers.items()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizer_state.items()},
        }

    def _factors(self, signal: str) -> tuple[Tensor, Tensor]:
        match signal:
            case "gradient_norm_squared":
                return self.gradients, self.gradients
            case "gradient_dot_previous":
                return self.gradients, self.previous_gradients
            case "gradient_dot_direction":
                return self.gradients, self.directions
            case "direction_norm_squared":
                return self.directions, self.directions
            case _:
                return self.parameters, self.parameters

    def _split(self, name: SplitName) -> tuple[Tensor, Tensor]:
        if name not in self._splits:
            split: Split = self.task.data.split(name)
            self._splits[name] = (self.batches.cast(split.inputs), self.batches.cast(split.targets))
        return self._splits[name]

    def _build_functions(self) -> None:
        self._template = self.task.make_model(np.random.SeedSequence(0)).to(self.dtype)
        self._gradient_function = GradientFunction(self.task, self._template, self.num_members, self._engine)
        # The evaluation follows the engine that the gradients chose, which is known after the first batch.
        self._evaluations: dict[bool, EvaluationFunction] = {}

    @property
    def _evaluation_function(self) -> EvaluationFunction:
        batched = self.engine == "batched"
        if batched not in self._evaluations:
            self._evaluations[batched] = EvaluationFunction(self.task, self._template, self._gradient_function.layout, batched)
        return self._evaluations[batched]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_template", "_gradient_function", "_evaluations"):  # traced graphs: built anew
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_functions()
