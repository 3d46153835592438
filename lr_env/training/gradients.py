"""Losses and gradients of N models at once.

Two engines compute the same: ``looped`` calls autograd once per member and reads like the formula; ``batched`` maps one gradient
function over all members with ``torch.func.vmap``. Both are traced into a flat graph where that succeeds; a graph is used only after
it gave the same numbers as plain autograd on other data and other weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from lr_env.checks import unknown_name
from lr_env.seeding import drawing_from, preserved_global_generators
from lr_env.tasks.task import MEAN_LOSSES, Data, ExampleFunction, Task
from lr_env.training.draws import Generators
from lr_env.training.tracing import Argument, Backend, flat_graph, interpreted

Engine: TypeAlias = Literal["auto", "batched", "looped"]
Buffers: TypeAlias = dict[str, Tensor]
ENGINES: tuple[Engine, ...] = ("auto", "batched", "looped")

LARGEST_KEPT = 2**20
"""Bytes that one member's forward pass keeps for its backward pass. Where they are more, as in a transformer's, all members' would pass through
memory at every operation, and one member after another is faster on a CPU."""

LARGEST_AT_ONCE = 2**23
"""Bytes of weights, gradients, minibatches and what is kept of the members that are batched together on a CPU: so much stays in the caches."""

LARGEST_EVALUATED_SIDE_BY_SIDE = 2**14
"""Parameters of a model. A large one, and convolutions, see many examples at once in an evaluation; on a CPU, member by member is faster then."""


class ParameterLayout:
    """Where each parameter of a model lies in a flat vector."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views ``(…)`` into ``flat (P,)`` by parameter name."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """One vector ``(P,)`` of all parameters."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])


def _mean(function: ExampleFunction | str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over a minibatch."""
    assert callable(function)
    return function(outputs, targets).mean()


class GradientFunction:
    """Mean minibatch losses and gradients, for a population of fixed size and batches of fixed shape.

    Args:
        task: What is trained.
        model: Template whose structure is used; its parameters are not.
        num_members: N.
        engine: ``"auto"`` takes ``"batched"`` for N > 1 where it works and is faster, ``"looped"`` elsewhere: on a CPU for convolutions, and for
            models that keep more than :data:`LARGEST_KEPT`. Chosen on the first batch.
        backend: What runs the graph of one member, where members are looped over.

    Attributes:
        is_stochastic: Whether the model draws random numbers while it trains, as dropout does.
        is_plain: Whether the function is made of plain operations, so that it can be part of a larger graph.
        num_at_once: Members that a call is given, K: a divisor of N, where they are batched on a CPU, so that they are at most
            :data:`LARGEST_AT_ONCE`; else N.
        layout: Where each parameter lies.
        model: The template.
    """

    def __init__(self, task: Task, model: nn.Module, num_members: int, engine: Engine = "auto", backend: Backend = interpreted) -> None:
        if engine not in ENGINES:
            raise unknown_name("gradients", engine, ENGINES)
        self.layout = ParameterLayout(model)
        self.engine: Engine = "looped" if engine == "auto" and num_members == 1 else engine
        self.is_stochastic = self.is_plain = False
        self._task, self.model, self._num_members, self._backend = task, model, num_members, backend
        self.num_at_once = num_members
        self._function: Callable[..., tuple[Tensor, Tensor]] = self._single

    def __call__(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """Gradients ``(K, P)`` and the losses ``(K,)`` that observations and rewards use.

        Args:
            parameters: ``(K, P)``.
            buffers: Each ``(K, …)``; updated in place, as in a forward pass in training mode.
            inputs: ``(K, B, …)``.
            targets: ``(K, B, …)``.
            generators: The members' own ``(K,)``, for models that draw while they train; advanced.
        """
        if self.engine == "batched":
            gradients, losses = self._function(parameters, buffers, inputs, targets)
            return gradients, losses
        results = []
        for i in range(self._num_members):
            own_buffers = {name: buffer[i] for name, buffer in buffers.items()}
            if self.is_stochastic:
                with drawing_from(generators[i]):
                    results.append(self._function(parameters[i], own_buffers, inputs[i], targets[i]))
            else:
                results.append(self._function(parameters[i], own_buffers, inputs[i], targets[i]))
        if len(results) == 1:
            return results[0][0].unsqueeze(0), results[0][1].unsqueeze(0)
        return torch.stack([gradient for gradient, _ in results]), torch.stack([loss for _, loss in results])

    @property
    def evaluates_side_by_side(self) -> bool:
        """Whether evaluations of all members are one batched computation; the same for any number of members."""
        shapes = self.layout.shapes.values()  # weights of convolutions have more than two dimensions
        is_small = self.layout.size <= LARGEST_EVALUATED_SIDE_BY_SIDE and all(len(shape) <= 2 for shape in shapes)
        return self.engine == "batched" and (is_small or next(self.model.parameters()).is_cuda)

    def losses(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, generators: Generators) -> Tensor:
        """The losses ``(N,)`` alone, in training mode; arguments as above, but buffers and generators stay as they are."""
        if self.engine == "batched":
            result: Tensor = vmap(self._forward)(parameters, _clone(buffers), inputs, targets)
            return result
        observed = partial(self._forward, mean=self._mean_as_in_a_loop)  # as the losses that came with the gradients
        losses = []
        for i in range(self._num_members):
            arguments = (parameters[i], _clone(buffers, i), inputs[i], targets[i])
            if self.is_stochastic:
                with drawing_from(generators[i], advances=False):
                    losses.append(observed(*arguments))
            else:
                losses.append(observed(*arguments))
        return torch.stack(losses)

    def examples(
        self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, reduce: Callable[[Tensor, Tensor], Tensor], by: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The losses of all examples ``(N, B)``, and what ``reduce`` makes of their gradients ``(B, P)`` and a row of ``by (N, …)``.

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; not changed.
            inputs: ``(N, B, …)``.
            targets: ``(N, B, …)``.
            reduce: ``(gradients (B, P), row) -> (B, …)``.
            by: What it is given beside the gradients.
        """

        def loss(flat: Tensor, own_buffers: Buffers, example: Tensor, target: Tensor) -> Tensor:
            return self._losses(self.layout.views(flat), own_buffers, example.unsqueeze(0), target.unsqueeze(0))[0]

        def of_member(flat: Tensor, own_buffers: Buffers, own_inputs: Tensor, own_targets: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            gradients, losses = vmap(grad_and_value(loss), (None, None, 0, 0))(flat, own_buffers, own_inputs, own_targets)
            return losses, reduce(gradients, row)

        if self.engine == "batched":
            losses, reduced = vmap(of_member)(parameters, buffers, inputs, targets, by)
            return losses, reduced
        results = [
            of_member(parameters[i], {name: buffer[i] for name, buffer in buffers.items()}, inputs[i], targets[i], by[i])
            for i in range(self._num_members)
        ]
        return torch.stack([losses for losses, _ in results]), torch.stack([reduced for _, reduced in results])

    def predictions(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, scales: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean losses ``(N,)`` and outputs ``(N, M)`` on examples that all see, in evaluation mode.

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; not changed.
            inputs: ``(E, …)``.
            targets: ``(E, …)``.
            scales: Factors ``(N,)`` on the inputs, or None.
        """

        def predict(flat: Tensor, own_buffers: Buffers, scale: Tensor | None) -> tuple[Tensor, Tensor]:
            scaled = inputs if scale is None else inputs * scale
            outputs = functional_call(self.model, {**self.layout.views(flat), **own_buffers}, (scaled,))
            observed = self._task.loss if self._task.observed_loss is None else self._task.observed_loss
            return _mean(observed, outputs, targets), outputs.flatten()

        self.model.eval()
        try:
            if self.engine == "batched":
                losses, outputs = vmap(predict, (0, 0, None if scales is None else 0))(parameters, buffers, scales)
                return losses, outputs
            members = range(self._num_members)
            results = [predict(parameters[i], _clone(buffers, i), None if scales is None else scales[i]) for i in members]
            return torch.stack([loss for loss, _ in results]), torch.stack([outputs for _, outputs in results])
        finally:
            self.model.train()

    def require_examples(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> None:
        """Checks on a first batch that the examples' gradients exist and average to the batch's.

        Raises:
            ValueError: If not, as for models with batch normalisation or dropout.
        """
        name, advice = self._task.name, "Leave out the features that are made of per-example gradients, those of 'daniel2016'."
        if self.is_stochastic:
            raise ValueError(
                f"The model of task {name!r} draws random numbers while it trains: its examples have no gradients of their own. {advice}"
            )
        expected = self._single(parameters[0], _clone(buffers, 0), inputs[0], targets[0])[0]
        try:
            _, gradients = self.examples(parameters, _clone(buffers), inputs, targets, lambda gradients, row: gradients, parameters)
        except Exception as error:
            raise ValueError(
                f"The gradients of single examples can't be taken for task {name!r}: {type(error).__name__}: {error}. {advice}"
            ) from error
        if not torch.allclose(gradients[0].mean(0), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            raise ValueError(
                f"The gradients of single examples of task {name!r} don't average to the minibatch's, "
                f"as its model or loss looks at the whole minibatch (batch normalisation does). {advice}"
            )

    def choose(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, takes_examples: bool = False) -> None:
        """Probes the engines on a first batch and keeps the fastest one that agrees with plain autograd.

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; not changed.
            inputs: ``(N, B, …)``.
            targets: ``(N, B, …)``.
            takes_examples: Whether :meth:`examples` is called at each step.

        Raises:
            ValueError: If ``"batched"`` was asked for and does not work; the message says why. If the model draws on a GPU.
        """
        with preserved_global_generators():
            before = torch.get_rng_state()
            before_on_device = torch.cuda.get_rng_state(parameters.device) if parameters.is_cuda else before
            self._single(parameters[0], _clone(buffers, 0), inputs[0], targets[0])
            self.is_stochastic = not torch.equal(before, torch.get_rng_state())
            if parameters.is_cuda and not torch.equal(before_on_device, torch.cuda.get_rng_state(parameters.device)):
                torch.cuda.set_rng_state(before_on_device, parameters.device)
                name = self._task.name
                raise ValueError(f'The model of task {name!r} draws random numbers while it trains, as dropout does; use device="cpu" for it.')
            check = self.unseen(parameters, buffers, inputs, targets)
            kept = 0 if self.engine == "looped" else self._kept_bytes(parameters, buffers, inputs, targets)
            is_faster = parameters.is_cuda or not (_has_convolutions(self.model) or kept > LARGEST_KEPT)
            if self.engine == "batched" or (self.engine == "auto" and is_faster):
                kept += 4 * parameters[0].nbytes + inputs[0].nbytes + targets[0].nbytes  # weights, two gradients, a direction
                self._choose_num_at_once(kept + takes_examples * inputs.shape[1] * parameters[0].nbytes)
                reason = self._try_batched(*_of(slice(self.num_at_once), parameters, buffers, inputs, targets), check)
                if not reason:
                    return
                if self.engine == "batched":
                    raise ValueError(f'gradients="batched" does not work for task {self._task.name!r}: {reason}. Use "auto" or "looped".')
            self.engine, self.num_at_once = "looped", self._num_members
            if self.is_stochastic:
                return
            example = (parameters[0], _clone(buffers, 0), inputs[0], targets[0])
            try:
                graph = flat_graph(self._single, example)
            except Exception:  # whatever the model does that cannot be traced: plain autograd runs it
                return
            if self.agrees(lambda p, b, x, y: graph(p[-1], {name: buffer[-1] for name, buffer in b.items()}, x[-1], y[-1]), check):
                # PyTorch's own convolutions and pooling are faster on a CPU than those that a compiler makes.
                backend = interpreted if _has_convolutions(self.model) and not parameters.is_cuda else self._backend
                self.is_plain = self._num_members == 1 and backend is self._backend
                self._function = graph if self.is_plain else backend(graph, example)

    def _try_batched(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, check: tuple[Any, ...]) -> str:
        """Empty if the batched engine works and was taken; else why not."""
        if self.is_stochastic:
            return "the model draws random numbers while it trains, and each member must draw from its own generator"
        mapped = vmap(self._mapped)
        try:
            with torch.no_grad():  # evaluations; they may meet operations that a gradient is not made of, as those of recurrent cells
                vmap(self._forward)(parameters, _clone(buffers), inputs, targets)
            with warnings.catch_warnings():
                # An operation without a batching rule runs in a loop: slower than the looped engine, so an error here.
                warnings.filterwarnings("error", message=".*performance drop.*")
                graph = flat_graph(mapped, (parameters, _clone(buffers), inputs, targets))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        last = slice(-len(parameters), None)
        if not self.agrees(lambda *arguments: tuple(part[-1] for part in graph(*_of(last, *arguments))), check):
            return "its gradients disagree with plain autograd"
        self.engine, self._function, self.is_plain = "batched", graph, True
        return ""

    def agrees(self, last_member: Callable[..., tuple[Tensor, ...]], check: tuple[Tensor, Buffers, Tensor, Tensor]) -> bool:
        """Whether a function of what :meth:`choose` takes gives the last member's gradient ``(P,)``, loss and buffers as plain autograd does."""
        parameters, buffers, inputs, targets = check
        expected_buffers, actual_buffers = _clone(buffers, -1), _clone(buffers)
        expected = self._single(parameters[-1], expected_buffers, inputs[-1], targets[-1])
        try:
            with torch.no_grad():
                actual = last_member(parameters, actual_buffers, inputs, targets)
        except Exception:  # some operations can be traced, but their trace cannot be run
            return False
        tolerance = 1e-9 if parameters.dtype == torch.float64 else 1e-4
        pairs = [*zip(actual, expected, strict=True), *((actual_buffers[name][-1], buffer) for name, buffer in expected_buffers.items())]
        # Components near zero carry the rounding of the largest one.
        scales = (float(e.abs().nan_to_num(0, 0, 0).max()) if e.numel() else 0.0 for _, e in pairs)
        return all(torch.allclose(a, e, rtol=tolerance, atol=tolerance * scale, equal_nan=True) for (a, e), scale in zip(pairs, scales, strict=True))

    def unseen(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Buffers, Tensor, Tensor]:
        """Other weights and data than these, to check on what was made with these; last comes a member whose gradient is finite, if there is one."""
        parameters, inputs, targets = parameters * 0.9, inputs.roll(1, dims=1), targets.roll(1, dims=1)
        for last in reversed(range(len(parameters))):
            gradient, loss = self._single(parameters[last], _clone(buffers, last), inputs[last], targets[last])
            if gradient.isfinite().all() and loss.isfinite():
                shift = len(parameters) - 1 - last
                parameters, inputs, targets = (values.roll(shift, dims=0) for values in (parameters, inputs, targets))
                return parameters, {name: buffer.roll(shift, dims=0) for name, buffer in buffers.items()}, inputs, targets
        return parameters, buffers, inputs, targets

    def _kept_bytes(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> int:
        """What one member's forward pass keeps for its backward pass, beside what it is given."""
        given = {tensor.untyped_storage().data_ptr() for tensor in (parameters, inputs, targets)}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with suppress(RuntimeError), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):  # torch.func in a model has none
            self._single(parameters[0], _clone(buffers, 0), inputs[0], targets[0])
        return sum(size for address, size in kept.items() if address not in given)

    def _choose_num_at_once(self, num_bytes: int) -> None:
        """For members of so many bytes each."""
        if not next(self.model.parameters()).is_cuda:
            self.num_at_once = equal_part(self._num_members, LARGEST_AT_ONCE // num_bytes)

    def _single(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The reference: gradient ``(P,)`` and loss of one member by plain autograd."""
        leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(parameters).items()}
        with torch.enable_grad():
            loss, observed = self._losses(leaves, buffers, inputs, targets, self._mean_as_in_a_loop)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return self.layout.flatten(dict(zip(leaves, gradients, strict=True))), observed.detach()

    def _mapped(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one member, written so that it can be mapped over members."""
        function = grad_and_value(self._losses, has_aux=True)
        gradients, (_, observed) = function(self.layout.views(parameters), buffers, inputs, targets)
        return self.layout.flatten(gradients), observed

    def _forward(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, mean: Callable[..., Tensor] = _mean) -> Tensor:
        """The observed loss of one member."""
        return self._losses(self.layout.views(parameters), buffers, inputs, targets, mean)[1]

    def _losses(
        self, parameters: Mapping[str, Tensor], buffers: Buffers, inputs: Tensor, targets: Tensor, mean: Callable[..., Tensor] = _mean
    ) -> tuple[Tensor, Tensor]:
        outputs = functional_call(self.model, {**parameters, **buffers}, (inputs,))
        loss = mean(self._task.loss, outputs, targets)
        observed = loss if self._task.observed_loss is None else mean(self._task.observed_loss, outputs, targets)
        return loss, observed

    def _mean_as_in_a_loop(self, function: ExampleFunction | str, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same, with the bits of a plain loop that takes the mean as PyTorch has it; not fast where members are batched."""
        # Classes of a sampler might be negative, which PyTorch's cross-entropy would leave out.
        known = MEAN_LOSSES.get(function) if isinstance(self._task.data, Data) and callable(function) else None
        return _mean(function, outputs, targets) if known is None else known(outputs, targets)


class EvaluationFunction:
    """Sums of losses and metrics of N models over examples that all see, in evaluation mode and without gradients.

    Attributes:
        is_batched: Whether all models are one batched computation.
    """

    def __init__(self, task: Task, model: nn.Module, layout: ParameterLayout, is_batched: bool, backend: Backend) -> None:
        self._task, self._model, self._layout, self.is_batched, self._backend = task, model, layout, is_batched, backend
        self._graphs: dict[tuple[Any, ...], Callable[..., Tensor] | None] = {}  # None for what cannot be traced

    def __call__(
        self, parameters: Tensor, buffers: Buffers, input_scales: Tensor | None, inputs: Tensor, targets: Tensor, with_metric: bool = True
    ) -> Tensor:
        """Sums over examples, ``(N, 1 + K)``: observed loss and the metric's values (one 0 where the task has none).

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; not changed.
            input_scales: Factors ``(N,)`` on the inputs, or None.
            inputs: ``(M, …)``.
            targets: ``(M, …)``.
            with_metric: Whether the metric is taken; else it is 0.
        """
        with_metric = with_metric and self._task.metric is not None
        sums = partial(self._sums, with_metric=with_metric)
        if self.is_batched:
            function = vmap(sums, in_dims=(0, 0, None, None, None if input_scales is None else 0))
            return self._run(function, (parameters, _clone(buffers), inputs, targets, input_scales), with_metric)
        rows = []
        for i in range(len(parameters)):
            scale = None if input_scales is None else input_scales[i]
            rows.append(self._run(sums, (parameters[i], _clone(buffers, i), inputs, targets, scale), with_metric))
        return torch.stack(rows)

    def _run(self, function: Callable[..., Tensor], arguments: tuple[Argument, ...], with_metric: bool) -> Tensor:
        key = (with_metric, *(argument.shape if isinstance(argument, Tensor) else None for argument in arguments))
        with torch.no_grad():
            known = self._graphs.get(key)
            if known is not None:
                return known(*arguments)
            self._model.eval()
            try:
                with preserved_global_generators():  # a model may draw even here
                    if key not in self._graphs:
                        before = torch.get_rng_state()
                        function(*arguments)
                        draws = not torch.equal(before, torch.get_rng_state())
                        self._graphs[key] = None if draws else self._try_trace(function, arguments)
                    graph = self._graphs[key]
                    return function(*arguments) if graph is None else graph(*arguments)
            finally:
                self._model.train()

    def _try_trace(self, function: Callable[..., Tensor], arguments: tuple[Argument, ...]) -> Callable[..., Tensor] | None:
        try:
            return self._backend(flat_graph(function, arguments), arguments)
        except Exception:  # control flow that depends on data: the model is run as it is, every time
            return None

    def _sums(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, input_scale: Tensor | None, with_metric: bool) -> Tensor:
        if input_scale is not None:
            inputs = inputs * input_scale
        outputs = functional_call(self._model, {**self._layout.views(parameters), **buffers}, (inputs,))
        loss = self._task.loss if self._task.observed_loss is None else self._task.observed_loss
        assert callable(loss)
        sums = loss(outputs, targets).sum()
        metric = torch.zeros_like(sums)
        if with_metric:
            assert self._task.metric is not None
            metric = self._task.metric.function(outputs, targets).sum(0)
        return torch.cat([sums.view(1), metric.view(-1)])


def equal_part(count: int, most: int) -> int:
    """The largest divisor of a count that is at most ``most``; the count itself where it has none nearby."""
    return count if most >= count else next((part for part in range(most, most // 4, -1) if count % part == 0), count)


def _has_convolutions(model: nn.Module) -> bool:
    kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    return any(isinstance(module, kinds) for module in model.modules())


def _of(members: slice, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Buffers, Tensor, Tensor]:
    """The parts of some successive members."""
    return parameters[members], {name: buffer[members] for name, buffer in buffers.items()}, inputs[members], targets[members]


def _clone(buffers: Buffers, member: int | None = None) -> Buffers:
    return {name: (buffer if member is None else buffer[member]).clone() for name, buffer in buffers.items()}
