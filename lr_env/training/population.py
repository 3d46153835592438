"""N independent trainings of one task, advanced together.

All parameters lie in one tensor ``(N, P)``. A step follows the paper's order (Xu et al. 2017): the minibatch loss and gradient at
``w_t`` are computed, a controller sees them, and its rate is applied to that very gradient. One pass thus begins by applying the last
rate and ends with the next gradient: one forward and one backward pass a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lr_env.checks import positive_integer, unknown_name
from lr_env.seeding import Streams
from lr_env.tasks.family import TaskFamily, as_family
from lr_env.tasks.task import Split, SplitName, Task
from lr_env.training.batches import Batches
from lr_env.training.draws import Generators, draw_kernel
from lr_env.training.gradients import Engine, EvaluationFunction, GradientFunction, equal_part
from lr_env.training.initialisation import Initialiser
from lr_env.training.optimizers import Adam, AdamW, Optimizer
from lr_env.training.parameter_groups import Grouping
from lr_env.training.perceptron import SIGNALS as PRODUCTS
from lr_env.training.perceptron import Members, PerceptronKernel, Rule, make_kernel
from lr_env.training.signals import DIRECTION_SIGNALS, EXAMPLE_SIGNALS, VALIDATION_SIGNALS, Groups, Step, measure, signal_rows
from lr_env.training.torch_optimizers import MemberOptimizers, TorchOptimizer
from lr_env.training.tracing import Argument, Backend, captured, compiled, flat_graph, interpreted, plain, require_compiler

_MADE_ANEW = (
    *("_steps_view", "_rates_view", "_template", "_gradient_function", "_initialiser"),
    *("_backend", "_part_backend", "_draws", "_evaluation", "_kernel", "_members", "_steps_in_place"),
)
"""What is not pickled."""

State: TypeAlias = dict[str, Tensor]
"""What changes from step to step, each ``(N, …)``: ``parameters``, ``gradients``, ``directions``, ``optimizer.*``, ``buffer.*``;
``predictions`` on the validation examples where signals need them; and of Adam with ``gradients="looped"`` ``counts``, the step ``(N, 1)`` that
the directions were taken for."""

SUBSET_SEED = 0
"""Seed of the reference and validation subsets: the same for all trainings of a task."""

SUBSET_BATCHES = 4
"""Minibatches whose number of examples these subsets have by default."""

EXAMPLES_PER_PASS = 2**16
"""Bounds the memory of an evaluation: members times examples in one pass."""

EXAMPLES_PER_PASS_ON_GPU = 2**18

EXAMPLES_SIDE_BY_SIDE = 2**13
"""The same of members that are one batched computation on a CPU: what is computed of so many takes no memory that is new to the process."""

BATCHES_PER_PASS = 32
"""Bounds it too: examples in one pass, in batches of the task."""


SOURCES = {"loss": 0} | {name: row for row, name in enumerate(PRODUCTS, 1)}
"""Which of loss and the kernel's products each signal is."""

SOURCES_OF_SGD = SOURCES | {"gradient_dot_direction": 1, "direction_norm_squared": 1}
"""The same where the direction is the gradient."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss ``(N,)`` and metric ``(N,)`` (None where the task has none) over one split, in evaluation mode."""

    losses: np.ndarray
    metrics: np.ndarray | None


class Population:
    """N trainings side by side. A member depends on its own seed alone, whatever its neighbours do.

    Args:
        task: What is trained: a task, or a family of one variant.
        num_members: N, at least 1.
        optimizer: From :func:`lr_env.training.make_optimizer`. One made by a function runs in a loop over members.
        signals: Names from :data:`lr_env.training.SIGNALS` that a step returns beside the loss.
        lr_groups: Parameter groups with rates of their own; see :func:`lr_env.training.parameter_groups`.
        controls_momentum: Whether each step is given the optimizer's momentum too.
        gradients: ``"auto"``, ``"batched"`` or ``"looped"``; see :mod:`lr_env.training.gradients`. With ``"looped"`` Adam and AdamW too step to
            the last bit as torch's in float32 on a CPU; SGD and momentum always do.
        dtype: ``"float32"`` or ``"float64"``.
        compile: Whether ``torch.compile``'s backend makes one kernel of many operations; takes seconds, at the first step.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU where there is one.

    Attributes:
        state: See :data:`State`.
        steps: SGD steps made, ``(N,)``.
        groups: The parameter groups.

    Raises:
        RuntimeError: If ``compile`` is asked for and no C++ compiler is found, or ``device="cuda"`` and there is no GPU.
        ValueError: If an argument is out of range; with the first gradient, if ``gradients="batched"`` does not work for the model.
    """

    _evaluation: EvaluationFunction | None
    _kernel: PerceptronKernel | None
    _members: Members | None
    _take_step: Callable[..., Any] | None
    _take_losses: Callable[..., Any] | None

    def __init__(
        self,
        task: Task | TaskFamily,
        num_members: int,
        optimizer: Optimizer | TorchOptimizer,
        *,
        signals: frozenset[str] = frozenset(),
        lr_groups: Grouping = "global",
        controls_momentum: bool = False,
        gradients: Engine = "auto",
        dtype: str = "float32",
        compile: bool = False,  # noqa: A002  (torch's word)
        device: str = "cpu",
    ) -> None:
        dtypes = {"float32": torch.float32, "float64": torch.float64}
        if dtype not in dtypes:
            raise unknown_name("dtype", dtype, dtypes)
        self.family = as_family(task)
        self.task = self.family.variants[0]
        self.num_members = positive_integer("num_members", num_members)
        self.optimizer = optimizer
        self.dtype, self.device = dtypes[dtype], resolve_device(device)
        self._is_on_cpu = self.device.type == "cpu"
        if isinstance(optimizer, TorchOptimizer) and (compile or gradients == "batched" or not self._is_on_cpu):
            raise ValueError(
                'An optimizer that is made by a function runs in a loop on the CPU: leave compile and device out, and use gradients="auto" or '
                '"looped"; or use an optimizer by name.'
            )
        if compile:
            require_compiler()
        self._signals, self._compile, self._controls_momentum = signals, compile, controls_momentum
        overwritten = {"direction_agreement", *EXAMPLE_SIGNALS, *VALIDATION_SIGNALS}  # signals of what is written over in place
        self._may_step_in_place = compile and self._is_on_cpu and not controls_momentum and signals.isdisjoint(overwritten)
        names = signal_rows(signals)
        self._rule = Rule.of(optimizer) if SOURCES.keys() >= set(names) else Rule()
        sources = SOURCES if self._rule.has_directions else SOURCES_OF_SGD
        self._sources = None if self._rule == Rule() else [sources[name] for name in names]
        self._engine: Engine = "looped" if isinstance(optimizer, TorchOptimizer) else gradients
        self._build_functions()
        self.groups = Groups(lr_groups, self._gradient_function.layout, self.device)
        parameters = torch.zeros(num_members, self._gradient_function.layout.size, dtype=self.dtype, device=self.device)
        self.state: State = {"parameters": parameters, "gradients": torch.zeros_like(parameters), "directions": torch.zeros_like(parameters)}
        self.state |= {f"optimizer.{name}": value for name, value in optimizer.initial_state(parameters).items()}
        self._member_optimizers: MemberOptimizers | None = None
        if type(optimizer) in (Adam, AdamW) and self._engine == "looped":
            self.state["counts"] = torch.zeros(num_members, 1, dtype=torch.int64, device=self.device)
        if isinstance(optimizer, TorchOptimizer):
            self._member_optimizers = MemberOptimizers(optimizer, self._gradient_function.layout, self.groups.names, parameters)
        for name, buffer in self._template.named_buffers():
            self.state[f"buffer.{name}"] = buffer.new_zeros((num_members, *buffer.shape))
        self.batches = Batches(self.family, num_members, self.dtype, self.device, self._draws)
        self.steps = np.zeros(num_members, np.int64)
        self._rates = torch.zeros(num_members, len(self.groups), dtype=torch.float64)
        self._make_views()
        self._generators = Generators(num_members, self._draws if self._initialiser.is_drawn_at_once else None)
        self._splits: dict[tuple[str, bytes | None], tuple[Tensor, Tensor]] = {}
        self._validation: tuple[Tensor, ...] = ()
        if not signals.isdisjoint(VALIDATION_SIGNALS):
            self._validation = self._examples("validation", draw_subset(self.task, "validation", None))
            self.state["predictions"] = self._first_predictions()

    @property
    def engine(self) -> Engine:
        """The engine in use: ``"auto"`` until the first gradient."""
        return self._gradient_function.engine

    @property
    def parameters(self) -> Tensor:
        """The weights, ``(N, P)``; the next step may write over them, as over gradients and directions."""
        return self.state["parameters"]

    @property
    def gradients(self) -> Tensor:
        """At the weights on the present minibatches, ``(N, P)``."""
        return self.state["gradients"]

    @property
    def directions(self) -> Tensor:
        """The optimizer's, at unit rate, ``(N, P)``."""
        return self.state["directions"]

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The models' buffers by name, each ``(N, …)``."""
        return _part(self.state, "buffer.")

    def restart(self, members: np.ndarray, streams: list[Streams]) -> None:
        """Gives members ``(K,)`` new weights, a new data order and new draws of the family, from their streams ``(K,)``."""
        rows = torch.from_numpy(members).to(self.device)
        weights = {name: value for name, value in self.state.items() if name.startswith(("parameters", "buffer."))}
        host, host_rows = weights, members
        if not self._is_on_cpu:
            host = {name: torch.zeros((len(members), *value.shape[1:]), dtype=value.dtype) for name, value in weights.items()}
            host_rows = np.arange(len(members))
        self._initialiser(host["parameters"], _part(host, "buffer."), members, streams, self._generators, host_rows)
        if self.family.varies_initialisation:
            for row, stream in zip(host_rows.tolist(), streams, strict=True):
                scale = self.family.draw_initialisation_scale(stream.family)
                for weight in self._gradient_function.layout.views(host["parameters"][row]).values():
                    if weight.dim() >= 2:
                        weight.mul_(scale)
        if not self._is_on_cpu:
            for name, value in weights.items():
                value[rows] = host[name].to(self.device)
        rest = {id(value): value for name, value in self.state.items() if name not in weights}  # SGD's direction is the gradient
        for value in rest.values():  # a diverged direction, times a rate of 0, would spoil the new weights
            if len(members) == self.num_members:
                value.zero_()
            else:
                value.index_fill_(0, rows, 0)
        if self._member_optimizers is not None:
            self._member_optimizers.restart(members, self.state["parameters"])
        self.steps[members] = 0
        self.batches.restart(members, streams)

    def begin(self, members: np.ndarray | None = None) -> np.ndarray:
        """The first gradient of restarted members ``(K,)``, or all; signals as :meth:`step`."""
        with self.others_kept(members):
            return self.train(np.zeros((self.num_members, len(self.groups))))

    def step(self, rates: np.ndarray, members: np.ndarray | None = None, momenta: np.ndarray | None = None) -> np.ndarray:
        """Applies rates to the gradients at hand, moves on to the next minibatch and takes its gradients.

        Args:
            rates: ``(N, G)``.
            members: Members ``(K,)`` that take the step; None for all.
            momenta: The optimizer's momentum or β₁ in this step, ``(N, G)``, of a population that ``controls_momentum``.

        Returns:
            Signals ``(R, G, N)``, float64, with the rows that :func:`lr_env.training.signal_rows` names: the losses ``ℓ(B_t; w_t)``, then
            the signals. Those of members that took no step are not meaningful.
        """
        self.move_on(members)
        with self.others_kept(members):
            return self.train(rates, momenta)

    def train(self, rates: np.ndarray, momenta: np.ndarray | None = None) -> np.ndarray:
        """Applies rates ``(N, G)`` and takes the gradients on the present minibatches; arguments and signals as of :meth:`step`."""
        self._rates_view[:] = rates
        if self.steps_in_place:
            return self._train_in_place()
        rates_tensor = self._rates if self._is_on_cpu else self._rates.to(self.device)
        momenta_tensor = None
        if self._controls_momentum:
            chosen = np.zeros_like(self._rates_view) if momenta is None else np.ascontiguousarray(momenta)
            momenta_tensor = torch.from_numpy(chosen).to(self.device)
        if self._gradient_function.num_at_once < self.num_members:
            return self._train_in_parts(rates_tensor, momenta_tensor)
        arguments = (self.state, self.steps_tensor, rates_tensor, momenta_tensor, *self.batch())
        if self._take_step is None:
            self._take_step = self.fused(self.transition, arguments)
        self.state, signals = self._take_step(*arguments)
        result: np.ndarray = signals.cpu().numpy()
        return result

    def _train_in_parts(self, rates: Tensor, momenta: Tensor | None) -> np.ndarray:
        """:meth:`transition` in place, of some members after the others: what it makes of all of them would not stay in the caches."""
        state, steps, (inputs, targets, indices, scales, *validation) = self.state, self.steps_tensor, self.batch()
        assert targets is not None and indices is not None
        num_at_once, signals = self._gradient_function.num_at_once, []
        for start in range(0, self.num_members, num_at_once):
            part = slice(start, start + num_at_once)
            own = {name: value[part] for name, value in state.items()}
            batch = inputs, *self.batches.of_members(part, targets, indices, scales), *validation
            arguments = (own, steps[part], rates[part], None if momenta is None else momenta[part], *batch)
            if self._take_step is None:
                self._take_step = self.fused(self.transition, arguments)
            following, signals_of_part = self._take_step(*arguments)
            if following["directions"] is following["gradients"]:  # of SGD: written once
                state["directions"] = state["gradients"]
                del following["directions"]
            for name, value in following.items():
                own[name].copy_(value)
            signals.append(signals_of_part.numpy())
        return np.concatenate(signals, axis=-1)

    @property
    def steps_in_place(self) -> bool:
        """Whether :meth:`step_in_place` and :meth:`conclude` take the place of :meth:`transition`: where a compiler's gradients are not the fastest.

        The first call must follow the first :meth:`restart`.
        """
        self._choose_engine()
        return self._steps_in_place

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel of our own takes the gradients."""
        return self._kernel is not None

    @property
    def kernel_sources(self) -> list[int] | None:
        """Where the kernel gives all signals: of each, 0 for the losses, else one more than its row in the kernel's."""
        return self._sources if self._kernel is not None else None

    @property
    def num_products(self) -> int:
        """Of the kernel, for each group of a member."""
        assert self._kernel is not None
        return self._kernel.num_signals

    @property
    def kernel_address(self) -> int:
        """Of the kernel's step, for callers in C++."""
        assert self._kernel is not None
        return self._kernel.address

    def step_in_place(self, rates: Tensor) -> tuple[Tensor, Tensor]:
        """``w ← w − rate · u``, then loss and gradient at the new weights, for rates ``(N, G)`` of the population's type.

        Returns:
            Losses ``(N,)`` and products ``(R, G, N)``: the first three of the kernel's, for :meth:`conclude`, or all that it gives.
        """
        if self._kernel is not None:
            return self._kernel(self.members_of_kernel(), rates, self.batches.references()[2])
        parameters, directions, gradients = (self.state[name] for name in ("parameters", "directions", "gradients"))
        inputs, targets, indices, scales = self.batch()[:4]
        assert inputs is not None and targets is not None and indices is not None
        parameters.addcmul_(directions, self.groups.expand(rates), value=-1)
        batch = self.batches.gather(inputs, targets, indices, scales)
        with torch.no_grad():
            fresh, losses = self._gradient_function(parameters, {}, *batch, self._generators)
        pairs = (fresh, fresh), (fresh, gradients), (parameters, parameters)  # as PRODUCTS
        products = torch.stack([self.groups.products(*pair).view(self.num_members, -1).t() for pair in pairs])
        gradients.copy_(fresh)
        return losses, products

    def members_of_kernel(self) -> Members:
        """For a population that :attr:`has_kernel`: where the kernel finds everything at present."""
        assert self._kernel is not None
        state = self.state
        if self._members is None or self._members.weights != state["parameters"].data_ptr():
            inputs, targets, _ = self.batches.references()
            self._members = self._kernel.place(state["parameters"], inputs, targets, self.batches.input_scales, self.batches.num_own_targets)
        self._share_directions()
        rule, members = self._kernel.rule, self._members
        members.directions, members.gradients = state["directions"].data_ptr(), state["gradients"].data_ptr()
        if rule.state:
            moments = [state[f"optimizer.{name}"].data_ptr() for name in rule.state]
            members.first, members.second, members.steps = moments[0], moments[-1], self.steps.ctypes.data
        return members

    def _share_directions(self) -> None:
        """Where the directions are the gradients or the momentum: one tensor for both, so that a step in place writes it once."""
        if self._rule.shares_directions:
            self.state["directions"] = self.state[f"optimizer.{self._rule.state[0]}"]
        elif self._rule.name == "SGD" and not self._rule.has_directions:
            self.state["directions"] = self.state["gradients"]

    def conclude(self, state: State, steps: Tensor, losses: Tensor, products: Tensor) -> tuple[State, Tensor]:
        """Directions and signals after :meth:`step_in_place`, whose results are given: a pure function, to be part of a graph.

        Returns:
            What changes of the state, for :meth:`follow`, and signals ``(R, G, N)``, float64.
        """
        assert not isinstance(self.optimizer, TorchOptimizer)
        parameters, gradients = state["parameters"], state["gradients"]
        directions, optimizer_state = self.optimizer.directions(gradients, parameters, _part(state, "optimizer."), steps + 1)
        changes = {f"optimizer.{name}": value for name, value in optimizer_state.items()}
        if directions is not gradients:
            changes["directions"] = directions
        rows = dict(zip(PRODUCTS, products.unbind(), strict=False))  # none of directions
        known = {name: row[0] if len(self.groups) == 1 else row.t() for name, row in rows.items()}
        step = Step(losses, parameters, gradients, directions, None, None, self._output_weights(parameters), known=known)
        return changes, measure(step, self._signals, self.groups)

    def follow(self, changes: State) -> None:
        """Makes the changes that :meth:`conclude` returned."""
        self.state |= {"directions": self.state["gradients"]} | changes

    def _train_in_place(self) -> np.ndarray:
        losses, products = self.step_in_place(self._rates.to(self.dtype))
        if self._sources is not None and (self._kernel is not None or not self._rule.has_directions):  # a graph would take longer
            self._share_directions()
            values = np.empty((1 + len(products), len(self.groups), self.num_members))
            values[0], values[1:] = losses.numpy(), products.numpy()
            return values.take(self._sources, axis=0)
        arguments = (self.state, self.steps_tensor, losses, products)
        if self._take_step is None:
            self._take_step = self.graph(self.conclude, arguments)
        changes, signals = self._take_step(*arguments)
        self.follow(changes)
        result: np.ndarray = signals.numpy()
        return result

    def move_on(self, members: np.ndarray | None = None, count: int = 1) -> None:
        """Members ``(K,)``, or all, count one more step and go to their next minibatch, for :meth:`transition`; or all several."""
        if members is None:
            self.steps += count
        else:
            self.steps[members] += 1
        self.batches.advance(members, count)

    def transition(self, state: State, steps: Tensor, rates: Tensor, momenta: Tensor | None, *batch: Tensor | None) -> tuple[State, Tensor]:
        """``w ← w − rate · u``, then loss, gradient and direction at the new weights: a pure function, to be part of a graph.

        Where the momentum is chosen, ``u`` is known only then: the optimizer's state stays that of the step before, and the direction at
        the new weights is the one that the momentum in force would give.

        Args:
            state: See :data:`State`.
            steps: SGD steps made, this one included, ``(N, 1)``.
            rates: ``(N, G)``.
            momenta: ``(N, G)``, or None.
            *batch: See :meth:`batch`.

        Returns:
            The next state, and signals ``(R, G, N)``, float64.
        """
        optimizer_state, momentum = _part(state, "optimizer."), None
        if self._member_optimizers is not None:
            parameters = self._member_optimizers.apply(state["parameters"], state["gradients"], rates, steps, self._generators)
        else:
            applied = state["directions"]
            if momenta is not None:
                assert not isinstance(self.optimizer, TorchOptimizer)
                momentum = self.groups.expand(momenta)
                weights = state["parameters"]
                applied, after = self.optimizer.directions(state["gradients"], weights, optimizer_state, steps.clamp(min=1), momentum)
                optimizer_state = {name: torch.where(steps > 0, value, optimizer_state[name]) for name, value in after.items()}
            if "counts" in state:
                assert isinstance(self.optimizer, Adam)
                counts = state["counts"] if momenta is None else steps
                parameters = self.optimizer.stepped(state["parameters"], self.groups.expand(rates), optimizer_state, counts, momentum)
            else:
                # addcmul rounds as `torch.optim.SGD` does.
                parameters = torch.addcmul(state["parameters"], applied, self.groups.expand(rates.to(self.dtype)), value=-1)
        buffers = {name: value.clone() for name, value in _part(state, "buffer.").items()}  # a forward pass changes them in place
        inputs, targets = self.batches.gather(*batch[:4])  # type: ignore[arg-type]  # only the scales may be None
        gradients, losses = self._gradient_function(parameters, buffers, inputs, targets, self._generators)
        if isinstance(self.optimizer, TorchOptimizer):
            assert self._member_optimizers is not None
            is_seen = not self._signals.isdisjoint(DIRECTION_SIGNALS)
            directions = self._member_optimizers.directions(parameters, gradients, self._generators) if is_seen else torch.zeros_like(gradients)
        else:
            directions, advanced_state = self.optimizer.directions(gradients, parameters, optimizer_state, steps + 1, momentum)
            if momenta is None:
                optimizer_state = advanced_state
        following = {"parameters": parameters, "gradients": gradients, "directions": directions}
        following |= {f"optimizer.{name}": value for name, value in optimizer_state.items()}
        following |= {f"buffer.{name}": value for name, value in buffers.items()}
        if "counts" in state:
            following["counts"] = steps + 1
        predictions = None
        if self._validation:
            validation_losses, outputs = self._gradient_function.predictions(parameters, buffers, batch[4], batch[5], batch[3])  # type: ignore[arg-type]
            predictions = validation_losses, outputs, torch.where(steps == 0, 0, outputs - state["predictions"])
            following["predictions"] = outputs

        def examples() -> tuple[Tensor, Tensor]:
            before = _part(state, "buffer.")
            return self._gradient_function.examples(parameters, before, inputs, targets, lambda g, u: self.groups.sums(g * u), directions)

        step = Step(
            losses,
            parameters,
            gradients,
            directions,
            state["gradients"],
            state["directions"],
            self._output_weights(parameters),
            examples,
            predictions,
        )
        return following, measure(step, self._signals, self.groups)

    def batch(self) -> tuple[Tensor | None, ...]:
        """What :meth:`transition` takes: the data, where the current minibatches lie in them, scales of the inputs; validation examples."""
        return (*self.batches.references(), self.batches.input_scales, *self._validation)

    def graph(self, function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Callable[..., Any]:
        """A function of plain operations as one graph, for arguments of these shapes."""
        return self._backend(function, arguments)

    def fused(self, function: Callable[..., Any], arguments: tuple[Argument, ...]) -> Callable[..., Any]:
        """The same of a function that calls :meth:`transition`, where the model allows it.

        The first call must follow the first :meth:`restart`, as the engine of the gradients is chosen on the first batch.
        """
        self._choose_engine()
        is_plain = self._gradient_function.is_plain and self._member_optimizers is None
        return self.graph(function, arguments) if is_plain else plain(function, arguments)

    @contextmanager
    def others_kept(self, members: np.ndarray | None) -> Iterator[None]:
        """Whatever happens inside, all but members ``(K,)`` are afterwards as they were.

        All members are computed in any case, so that a member's bits don't depend on which others are.
        """
        if members is None or len(members) == self.num_members:
            yield
            return
        is_other = np.ones(self.num_members, bool)
        is_other[members] = False
        rows = torch.from_numpy(np.flatnonzero(is_other))
        others = rows.tolist()
        before = {name: value[rows] for name, value in self.state.items()}
        self._choose_engine()  # which finds out whether the model draws
        is_drawing = self._gradient_function.is_stochastic or (isinstance(self.optimizer, TorchOptimizer) and self.optimizer.draws)
        generators = [self._generators.state(member) for member in others] if is_drawing else []
        if self._member_optimizers is not None:
            self._member_optimizers.resting = frozenset(others)
        try:
            yield
        finally:
            if self._member_optimizers is not None:
                self._member_optimizers.resting = frozenset()
            for name, value in self.state.items():
                value[rows] = before[name]
            for member, generator_state in zip(others, generators, strict=False):
                self._generators.set_state(member, generator_state)

    def losses_on(self, inputs: Tensor, targets: Tensor) -> np.ndarray:
        """Losses ``(N,)``, float64, of the present weights on given minibatches ``(N, B, …)``, in training mode: one forward pass."""
        arguments = (self.state["parameters"], self.state, inputs, targets)
        if self._take_losses is None:
            self._take_losses = self.fused(self.losses_after, arguments)
        losses: np.ndarray = self._take_losses(*arguments).cpu().numpy()
        return losses

    def losses_after(self, parameters: Tensor, state: State, inputs: Tensor, targets: Tensor) -> Tensor:
        """The same for parameters ``(N, P)`` and the buffers of a state: a pure function, to be part of a graph."""
        return self._gradient_function.losses(parameters, _part(state, "buffer."), inputs, targets, self._generators).double()

    def evaluate(self, split: SplitName, subset: np.ndarray | None = None, with_metric: bool = True) -> Evaluation:
        """Mean loss and metric of all members over a split, in evaluation mode.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            subset: Indices of the examples to use; None for all.
            with_metric: Whether the metric is taken, which costs a little; else it is None.

        Raises:
            ValueError: If the split is unknown or empty.
        """
        inputs, targets = self._examples(split, subset)
        evaluation = self._choose_engine()
        parameters, buffers, scales = self.state["parameters"], _part(self.state, "buffer."), self.batches.input_scales
        if self._kernel is not None and self._kernel.can_measure(self.task.metric):
            sums = self._kernel.sums(parameters, inputs, targets, scales, with_metric)
        else:
            if self._member_optimizers is not None:
                parameters = self._member_optimizers.evaluated(parameters)
            num_at_once, chunk = self._size_of_pass(len(inputs), evaluation.is_batched)
            members = [slice(start, start + num_at_once) for start in range(0, self.num_members, num_at_once)]
            examples = [slice(start, start + chunk) for start in range(0, len(inputs), chunk)]
            parts = []
            for own in members:
                of_members = parameters[own], {name: buffer[own] for name, buffer in buffers.items()}, None if scales is None else scales[own]
                parts.append(torch.stack([evaluation(*of_members, inputs[part], targets[part], with_metric).double() for part in examples]).sum(0))
            sums = torch.cat(parts)
        means = (sums / len(inputs)).cpu()
        metric = self.task.metric
        if metric is None or not with_metric:
            return Evaluation(means[:, 0].numpy(), None)
        summarised = means[:, 1] if metric.summary is None else metric.summary(means[:, 1:])
        return Evaluation(means[:, 0].numpy(), summarised.numpy())

    def get_state(self, members: np.ndarray) -> dict[str, Any]:
        """Everything that determines the future of members ``(K,)``: tensors, arrays and plain data."""
        rows = torch.from_numpy(members)
        return {
            "tensors": {name: value[rows] for name, value in self.state.items()},
            "optimizers": None if self._member_optimizers is None else self._member_optimizers.get_state(members),
            "steps": self.steps[members],
            "generators": [self._generators.state(member) for member in members],
            "batches": self.batches.get_state(members),
        }

    def set_state(self, state: dict[str, Any], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        rows = torch.from_numpy(members)
        for name, value in self.state.items():
            # Two of them may share their memory, the direction and the gradient of SGD; then both hold the same values.
            value[rows] = state["tensors"][name]
        if self._member_optimizers is not None:
            self._member_optimizers.set_state(state["optimizers"], members)
        self.steps[members] = state["steps"]
        for member, generator_state in zip(members, state["generators"], strict=True):
            self._generators.set_state(member, generator_state)
        self.batches.set_state(state["batches"], members)

    @property
    def steps_tensor(self) -> Tensor:
        """:attr:`steps` as ``(N, 1)``."""
        return self._steps_view if self._is_on_cpu else self._steps_view.to(self.device)

    def _make_views(self) -> None:
        """Tensors and arrays that share their memory: made once, since making one takes as long as three operations."""
        self._steps_view, self._rates_view = torch.from_numpy(self.steps).unsqueeze(1), self._rates.numpy()

    def _choose_engine(self) -> EvaluationFunction:
        """Chooses the engine of the gradients on the first batch; evaluations follow it."""
        if self._evaluation is None:
            gradients = self._gradient_function
            first = (self.state["parameters"], _part(self.state, "buffer."), *self.batches.current())
            gradients.choose(*first, takes_examples=not self._signals.isdisjoint(EXAMPLE_SIGNALS))
            if self._may_step_in_place and gradients.engine != "looped":
                self._kernel = make_kernel(self.family, gradients, self.groups, self._rule, gradients.unseen(*first))
            is_looped = self._may_step_in_place and not (gradients.engine == "batched" or gradients.is_plain or gradients.is_stochastic)
            self._steps_in_place = self.has_kernel or (is_looped and not any(name.startswith("buffer.") for name in self.state))
            if not self._signals.isdisjoint(EXAMPLE_SIGNALS):
                gradients.require_examples(*first)
            self._evaluation = EvaluationFunction(self.task, self._template, gradients.layout, gradients.evaluates_side_by_side, self._part_backend)
        return self._evaluation

    def _examples(self, name: SplitName, subset: np.ndarray | None) -> tuple[Tensor, Tensor]:
        key = (name, None if subset is None else subset.tobytes())
        if key not in self._splits:
            split: Split = self.task.data.split(name)
            chosen = slice(None) if subset is None else torch.from_numpy(subset)
            self._splits[key] = (self.batches.cast(split.inputs[chosen]), self.batches.cast(split.targets[chosen]))
        return self._splits[key]

    def _size_of_pass(self, num_examples: int, is_batched: bool) -> tuple[int, int]:
        """Members and examples that are evaluated at once; see :data:`EXAMPLES_PER_PASS`."""
        examples = min(num_examples, BATCHES_PER_PASS * self.task.batch_size)
        if not self._is_on_cpu:
            return self.num_members, max(1, min(examples, EXAMPLES_PER_PASS_ON_GPU // self.num_members))
        if not is_batched:
            return self.num_members, max(1, min(examples, EXAMPLES_PER_PASS // self.num_members))
        members = equal_part(self.num_members, EXAMPLES_SIDE_BY_SIDE // examples)
        return members, max(1, min(examples, EXAMPLES_SIDE_BY_SIDE // members))

    def _first_predictions(self) -> Tensor:
        with torch.no_grad():
            outputs = self._template.eval()(self._validation[0])
        self._template.train()
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"The signals {', '.join(VALIDATION_SIGNALS)} need a model whose output is one tensor, but that of task {self.task.name!r} gives "
                f"{type(outputs).__name__}. Leave out the features that are made of them, those of 'xu2019'."
            )
        predictions: Tensor = outputs.new_zeros((self.num_members, outputs.numel()))
        return predictions

    def _output_weights(self, parameters: Tensor) -> Tensor:
        """The last parameter with several dimensions, or the last of all, ``(N, K)``."""
        views = self._gradient_function.layout.shapes
        last = [name for name, shape in views.items() if len(shape) > 1] or list(views)
        start = 0
        for name, shape in views.items():
            if name == last[-1]:
                return parameters[:, start : start + shape.numel()]
            start += shape.numel()
        raise AssertionError("A model has parameters.")

    def _build_functions(self) -> None:
        self._template = self.task.make_model(np.random.SeedSequence(0)).to(self.device, self.dtype)
        if self._is_on_cpu:
            self._backend: Backend = compiled if self._compile else interpreted
            self._part_backend = self._backend
        else:  # a captured graph's results would not outlast the next member's, or the next part of an evaluation
            self._backend, self._part_backend = captured(compiled if self._compile else flat_graph), plain
        self._gradient_function = GradientFunction(self.task, self._template, self.num_members, self._engine, self._part_backend)
        # On a GPU the time of many small calls counts most: there, drawing at once is for all who have a compiler.
        self._draws = draw_kernel() if self._compile or not self._is_on_cpu else None
        self._initialiser = Initialiser(self.task, self._gradient_function.layout, self.dtype, self._draws)
        self._evaluation = self._kernel = self._members = None
        self._steps_in_place = False
        self._take_step = self._take_losses = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in _MADE_ANEW:
            del state[name]
        state["_take_step"] = state["_take_losses"] = None  # graphs: built anew
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()
        self._build_functions()


def draw_subset(task: Task, split: SplitName, size: int | None) -> np.ndarray:
    """The examples of a split that stand for all of it: a fixed choice of four minibatches, or of another size, or all if there are no more.

    Args:
        task: Whose split it is.
        split: Its name.
        size: Number of examples; None for four minibatches.

    Raises:
        ValueError: If the split is unknown or empty.
    """
    available, wanted = len(task.data.split(split)), size or SUBSET_BATCHES * task.batch_size
    return np.arange(available) if wanted >= available else np.sort(np.random.default_rng(SUBSET_SEED).choice(available, wanted, replace=False))


def resolve_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        RuntimeError: If it is ``"cuda"`` and there is no GPU.
        ValueError: If the name is unknown.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise unknown_name("device", name, ("cpu", "cuda", "auto"))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device="cuda" was given, but PyTorch finds no GPU; use device="auto" or "cpu".')
    return torch.device(name)


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
