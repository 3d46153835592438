"""N independent trainings of one task, advanced together.

All parameters lie in one tensor ``(N, P)``. A step is split where a controller decides, in the paper's order (Xu et al. 2017):
:meth:`Population.compute_gradients` takes the minibatch loss and gradient at ``w_t``; :meth:`Population.update` applies a rate
to that very gradient; :meth:`Population.advance` moves on to the next minibatch. One forward and one backward pass a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lr_env.checks import unknown_name
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.task import Split, SplitName, Task
from lr_env.training.batches import Batches
from lr_env.training.gradients import Engine, EvaluationFunction, GradientFunction
from lr_env.training.optimizers import Optimizer
from lr_env.training.tracing import Argument, interpreted

SIGNALS = ("gradient_norm_squared", "gradient_dot_previous", "gradient_dot_direction", "direction_norm_squared", "weight_norm_squared")
"""Names of the signals beside the loss."""

Pass: TypeAlias = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""Gradients, directions and signals of all members."""

EXAMPLES_PER_PASS = 2**16
"""Bounds the memory of an evaluation: members times examples in one pass."""


@dataclass(frozen=True)
class Signals:
    """What a controller may see of N trainings.

    Attributes:
        values: ``(R, N)``, float64, with the rows that :func:`signal_rows` names: the losses ``ℓ(B_t; w_t)``, then the named signals,
            summed over parameter groups.
    """

    values: np.ndarray


def signal_rows(names: frozenset[str]) -> list[str]:
    """The rows of :class:`Signals` that hold these signals: the loss first, then the others in the order of :data:`SIGNALS`."""
    return ["loss", *(name for name in SIGNALS if name in names)]


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
        signals: Names from :data:`SIGNALS` that :meth:`compute_gradients` returns beside the loss.
        gradients: ``"auto"``, ``"batched"`` or ``"looped"``; see :mod:`lr_env.training.gradients`.
        dtype: ``"float32"`` or ``"float64"``.

    Raises:
        ValueError: If an argument is out of range, or ``gradients="batched"`` does not work for the model.
    """

    _evaluation: EvaluationFunction | None
    _pass: Pass | None

    def __init__(
        self,
        task: Task | TaskFamily,
        num_members: int,
        optimizer: Optimizer,
        *,
        signals: frozenset[str] = frozenset(),
        gradients: Engine = "auto",
        dtype: str = "float32",
    ) -> None:
        if num_members < 1:
            raise ValueError(f"A population has at least 1 member, but {num_members} was given.")
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        if dtype not in dtypes:
            raise unknown_name("dtype", dtype, dtypes)
        self.family = as_family(task)
        self.task = self.family.task
        self.num_members = num_members
        self.optimizer = optimizer
        self.dtype, self._numpy_dtype = dtypes[dtype], np.dtype(dtype)
        self._signals, self._engine = signals, gradients
        self._build_functions()
        layout = self._gradient_function.layout
        self.parameters = torch.zeros(num_members, layout.size, dtype=self.dtype)
        self.buffers = {name: buffer.new_zeros((num_members, *buffer.shape)) for name, buffer in self._template.named_buffers()}
        self.optimizer_state = optimizer.initial_state(self.parameters)
        self.batches = Batches(self.family, num_members, self.dtype)
        self._steps = torch.zeros(num_members, 1, dtype=torch.int64)
        self.steps = self._steps.numpy()[:, 0]  # a view
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
        self.directions[rows] = 0  # a diverged one times a rate of 0 would spoil the new weights
        self.steps[members] = 0
        scales = np.array([self.family.draw_input_scale(stream.family) for stream in streams]) if self.family.varies else None
        self.batches.restart(members, [stream.order for stream in streams], scales)

    def compute_gradients(self, members: np.ndarray | None = None) -> Signals:
        """Loss, gradient and update direction of members ``(K,)``, or all, at their weights on their current batch.

        All N members are computed in any case, so that a member's bits do not depend on which others are asked for. Signals of the
        others are not meaningful.
        """
        compute = self._pass or self._choose_pass()
        if members is None:
            self.previous_gradients = self.gradients
            self.gradients, self.directions, signals = compute(*self._pass_arguments())
        else:
            rows = torch.from_numpy(members)
            changed = self._changing_tensors()
            before = {name: tensor.clone() for name, tensor in changed.items()}
            generator_states = list(self._generator_states)
            gradients, directions, signals = compute(*self._pass_arguments())
            for name, tensor in changed.items():  # the others are as if nothing had happened
                before[name][rows] = tensor[rows]
                tensor.copy_(before[name])
            for member in members:
                generator_states[member] = self._generator_states[member]
            self._generator_states[:] = generator_states
            # New tensors: the old ones may share their memory.
            self.previous_gradients = self.previous_gradients.index_copy(0, rows, self.gradients[rows])
            self.directions = self.directions.index_copy(0, rows, directions[rows])
            self.gradients = self.gradients.index_copy(0, rows, gradients[rows])
        return Signals(signals.numpy().astype(np.float64))

    def update(self, rates: np.ndarray, members: np.ndarray | None = None) -> None:
        """``w ← w − rate · u`` with rates ``(N, G)``, for members ``(K,)``, or all."""
        if members is None:
            self.steps += 1
        else:
            active = np.zeros((self.num_members, 1), bool)
            active[members] = True
            rates = np.where(active, rates, 0.0)
            self.steps[members] += 1
        self.parameters.addcmul_(self.directions, torch.from_numpy(rates.astype(self._numpy_dtype)), value=-1)

    def advance(self, members: np.ndarray | None = None) -> None:
        """Moves members ``(K,)``, or all, to their next minibatch."""
        self.batches.advance(members)

    def current_batch_losses(self) -> np.ndarray:
        """Losses ``(N,)`` of all members at their present weights on their current minibatch, in training mode: one more forward pass."""
        inputs, targets = self.batches.current()
        sums = self._evaluation_function()(self.parameters, self.buffers, inputs, targets, None, self._generator_states, shared=False, training=True)
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
            examples = inputs[part], targets[part], self.batches.input_scales
            sums += self._evaluation_function()(self.parameters, self.buffers, *examples, self._generator_states, shared=True, training=False)
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
            if name in ("gradients", "previous_gradients", "directions"):
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
            "gradients": self.gradients,
            "previous_gradients": self.previous_gradients,
            "directions": self.directions,
            **self._changing_tensors(),
        }

    def _changing_tensors(self) -> dict[str, Tensor]:
        """What a pass changes in place."""
        return {
            **{f"buffer.{name}": tensor for name, tensor in self.buffers.items()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizer_state.items()},
        }

    def _compute(
        self,
        parameters: Tensor,
        buffers: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        steps: Tensor,
        previous_gradients: Tensor,
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor,
        input_scales: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients ``(N, P)``, directions ``(N, P)`` and signals ``(R, N)``; buffers and optimizer state change in place."""
        inputs, targets = self.batches.gather(inputs, targets, indices, input_scales)
        gradients, losses = self._gradient_function(parameters, buffers, inputs, targets, self._generator_states)
        directions = self.optimizer.directions(gradients, optimizer_state, steps + 1)
        factors = {
            "gradient_norm_squared": (gradients, gradients),
            "gradient_dot_previous": (gradients, previous_gradients),
            "gradient_dot_direction": (gradients, directions),
            "direction_norm_squared": (directions, directions),
            "weight_norm_squared": (parameters, parameters),
        }
        rows, computed = [losses], {}
        for name in signal_rows(self._signals)[1:]:
            left, right = factors[name]
            key = (id(left), id(right))  # for SGD the direction is the gradient: the same product is taken once
            if key not in computed:
                computed[key] = torch.linalg.vecdot(left, right)
            rows.append(computed[key])
        return gradients, directions, torch.stack(rows)

    def _pass_arguments(self) -> tuple[Argument, ...]:
        references = self.batches.references()
        return (self.parameters, self.buffers, self.optimizer_state, self._steps, self.gradients, *references, self.batches.input_scales)

    def _choose_pass(self) -> Pass:
        """Chooses the engine, and fuses the whole pass into one graph where the engine allows it."""
        gradients = self._gradient_function
        gradients.choose(self.parameters, self.buffers, *self.batches.current())
        self._evaluation = EvaluationFunction(self.task, self._template, gradients.layout, gradients.engine == "batched")
        self._pass = interpreted(self._compute, self._pass_arguments()) if gradients.is_plain else torch.no_grad()(self._compute)
        return self._pass

    def _evaluation_function(self) -> EvaluationFunction:
        """It follows the engine of the gradients."""
        if self._evaluation is None:
            self._choose_pass()
        assert self._evaluation is not None
        return self._evaluation

    def _split(self, name: SplitName) -> tuple[Tensor, Tensor]:
        if name not in self._splits:
            split: Split = self.task.data.split(name)
            self._splits[name] = (self.batches.cast(split.inputs), self.batches.cast(split.targets))
        return self._splits[name]

    def _build_functions(self) -> None:
        self._template = self.task.make_model(np.random.SeedSequence(0)).to(self.dtype)
        self._gradient_function = GradientFunction(self.task, self._template, self.num_members, self._engine)
        self._evaluation = None
        self._pass = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_template", "_gradient_function", "_evaluation", "_pass", "_steps"):  # traced graphs: built anew
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._steps = torch.from_numpy(self.steps).unsqueeze(1)
        self._build_functions()
        self._choose_pass()
