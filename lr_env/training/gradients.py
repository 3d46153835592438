"""Losses and gradients of N models at once.

Two engines compute the same: ``looped`` calls autograd once per member and reads like the formula; ``batched`` maps one
gradient function over all members with ``torch.func.vmap``. Both are traced once into a flat graph of ATen operations where
that succeeds, which removes Python's and autograd's bookkeeping from every step (1.2 to 3 times faster on small models).
A traced graph is used only after it gave the same numbers as plain autograd on other data and other weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from lr_env.naming import unknown_name
from lr_env.seeding import preserved_global_generators
from lr_env.tasks.task import ExampleFunction, Task

Engine: TypeAlias = Literal["auto", "batched", "looped"]
Buffers: TypeAlias = dict[str, Tensor]
ENGINES: tuple[Engine, ...] = ("auto", "batched", "looped")


class LossAndGradient(NamedTuple):
    """Result of one pass."""

    gradients: Tensor  # (N, P)
    losses: Tensor  # (N,): what observations and rewards use


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


class GradientFunction:
    """Mean minibatch loss and its gradient, for a population of fixed size and batches of fixed shape.

    Args:
        task: What is trained.
        model: Template whose structure is used; its parameters are not.
        num_members: N.
        engine: ``"auto"`` takes ``"batched"`` for N > 1 where it works, ``"looped"`` elsewhere.

    Raises:
        ValueError: If ``"batched"`` is asked for and does not work; the message says why.
    """

    def __init__(self, task: Task, model: nn.Module, num_members: int, engine: Engine = "auto") -> None:
        if engine not in ENGINES:
            raise unknown_name("gradients", engine, ENGINES)
        self.layout = ParameterLayout(model)
        self.engine: Engine = "looped" if engine == "auto" and num_members == 1 else engine
        self.is_stochastic = False
        self.is_traced = False
        self._task, self._model, self._num_members = task, model, num_members
        self._function: Callable[[Tensor, Buffers, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, generator_states: list[Tensor]) -> LossAndGradient:
        """Losses and gradients.

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; updated in place, as in a forward pass in training mode.
            inputs: ``(N, B, …)``.
            targets: ``(N, B, …)``.
            generator_states: States ``(N,)`` of the members' own generators, for models that draw while they train; updated.
        """
        if self._function is None:
            self._choose(parameters, buffers, inputs, targets)
        assert self._function is not None
        if self.engine == "batched":
            with torch.no_grad():
                return LossAndGradient(*self._function(parameters, buffers, inputs, targets))
        if self._num_members == 1 and not self.is_stochastic:
            own_buffers = {name: buffer[0] for name, buffer in buffers.items()}
            gradient, loss = self._call_single(parameters[0], own_buffers, inputs[0], targets[0])
            return LossAndGradient(gradient.unsqueeze(0), loss.unsqueeze(0))
        results = []
        with preserved_global_generators():
            for i in range(self._num_members):
                if self.is_stochastic:
                    torch.set_rng_state(generator_states[i])
                results.append(self._call_single(parameters[i], {name: buffer[i] for name, buffer in buffers.items()}, inputs[i], targets[i]))
                if self.is_stochastic:
                    generator_states[i] = torch.get_rng_state()
        return LossAndGradient(torch.stack([gradient for gradient, _ in results]), torch.stack([loss for _, loss in results]))

    def _call_single(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        assert self._function is not None
        if not self.is_traced:
            return self._function(parameters, buffers, inputs, targets)
        with torch.no_grad():
            return self._function(parameters, buffers, inputs, targets)

    def _single(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The reference: one member by plain autograd."""
        leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(parameters).items()}
        with torch.enable_grad():
            loss, observed = self._losses(leaves, buffers, inputs, targets)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return self.layout.flatten(dict(zip(leaves, gradients, strict=True))), observed.detach()

    def _mapped(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One member, written so that it can be mapped over members."""
        function = grad_and_value(self._losses, has_aux=True)
        gradients, (_, observed) = function(self.layout.views(parameters), buffers, inputs, targets)
        return self.layout.flatten(gradients), observed

    def _losses(self, parameters: Mapping[str, Tensor], buffers: Buffers, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(self._model, {**parameters, **buffers}, (inputs,))
        loss = _mean(self._task.loss, outputs, targets)
        observed = loss if self._task.observed_loss is None else _mean(self._task.observed_loss, outputs, targets)
        return loss, observed

    def _choose(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor) -> None:
        """Probes the engines on the first batch and keeps the fastest one that agrees with plain autograd."""
        # The check is made on weights and data that the trace has not seen.
        check_arguments = (parameters * 0.9, inputs.roll(1, dims=1), targets.roll(1, dims=1))
        with preserved_global_generators():
            before = torch.get_rng_state()
            self._single(parameters[0], _clone(buffers, 0), inputs[0], targets[0])
            self.is_stochastic = not torch.equal(before, torch.get_rng_state())
            reason = "the model draws random numbers while it trains, and each member must draw from its own generator"
            if self.engine != "looped" and not self.is_stochastic:
                try:
                    mapped = vmap(self._mapped)
                    self._function, self.is_traced = self._traced(mapped, (parameters, _clone(buffers), inputs, targets)), True
                    reason = self._disagreement(check_arguments, buffers)
                    if reason:  # perhaps only the trace is wrong, for a model with control flow that depends on data
                        self._function, self.is_traced = mapped, False
                        reason = self._disagreement(check_arguments, buffers)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                if not reason:
                    self.engine = "batched"
                    return
            if self.engine == "batched":
                raise ValueError(f'gradients="batched" does not work for task {self._task.name!r}: {reason}. Use "auto" or "looped".')
            self.engine, self._function, self.is_traced = "looped", self._single, False
            if not self.is_stochastic:
                self._trace_single(parameters, buffers, inputs, targets, check_arguments)

    def _trace_single(
        self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, check_arguments: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        try:
            self._function = self._traced(self._single, (parameters[0], _clone(buffers, 0), inputs[0], targets[0]))
            self.is_traced = True
            if self._disagreement(check_arguments, buffers):
                raise ValueError("the trace disagrees with plain autograd")
        except Exception:  # whatever the model does that cannot be traced: plain autograd runs it
            self._function, self.is_traced = self._single, False

    @staticmethod
    def _traced(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """``function`` as a flat graph for arguments of these shapes."""
        with warnings.catch_warnings():
            # An operation without a batching rule runs in a loop: slower than the looped engine, so an error here.
            warnings.filterwarnings("error", message=".*performance drop.*")
            graph = _trace(function, arguments)
        return graph

    def _disagreement(self, arguments: tuple[Tensor, Tensor, Tensor], buffers: Buffers) -> str:
        """Empty where the chosen function agrees with plain autograd; else what differs."""
        assert self._function is not None
        parameters, inputs, targets = arguments
        last = 0 if self.engine == "looped" else self._num_members - 1
        expected_buffers, buffers = _clone(buffers, last), _clone(buffers)
        expected = self._single(parameters[last], expected_buffers, inputs[last], targets[last])
        with torch.no_grad():
            if self.engine == "looped":
                buffers = _clone(buffers, last)
                actual: tuple[Tensor, ...] = self._function(parameters[last], buffers, inputs[last], targets[last])
            else:
                actual = tuple(part[last] for part in self._function(parameters, buffers, inputs, targets))
                buffers = _clone(buffers, last)
        tolerance = 1e-9 if parameters.dtype == torch.float64 else 1e-4
        pairs = [*zip(actual, expected, strict=True), *((buffers[name], expected_buffers[name]) for name in buffers)]
        # Components near zero carry the rounding of the largest one.
        if all(torch.allclose(a, e, rtol=tolerance, atol=tolerance * float(e.abs().max()), equal_nan=True) for a, e in pairs):
            return ""
        return "its gradients disagree with plain autograd"


class EvaluationFunction:
    """Sums of losses and metrics of N models over examples, without gradients."""

    def __init__(self, task: Task, model: nn.Module, layout: ParameterLayout, batched: bool) -> None:
        self._task, self._model, self._layout, self._batched = task, model, layout, batched
        self._traces: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, input_scales: Tensor | None = None, *, shared: bool, training: bool
    ) -> Tensor:
        """Sums over examples, ``(N, 2)``: observed loss and metric (0 where the task has none).

        Args:
            parameters: ``(N, P)``.
            buffers: Each ``(N, …)``; not changed.
            inputs: ``(M, …)`` where shared, else ``(N, M, …)``.
            targets: ``(M, …)`` where shared, else ``(N, M, …)``.
            input_scales: Factors ``(N,)`` on the inputs, or None.
            shared: Whether all members see the same examples.
            training: Whether the pass is made in training mode.
        """
        if not self._batched:
            rows = []
            for i in range(len(parameters)):
                examples = (inputs, targets) if shared else (inputs[i], targets[i])
                scale = None if input_scales is None else input_scales[i]
                rows.append(self._run(self._sums, (parameters[i], _clone(buffers, i), *examples, scale), training))
            return torch.stack(rows)
        axis = None if shared else 0
        function = vmap(self._sums, in_dims=(0, 0, axis, axis, None if input_scales is None else 0))
        return self._run(function, (parameters, _clone(buffers), inputs, targets, input_scales), training)

    def _run(self, function: Callable[..., Tensor], arguments: tuple[Any, ...], training: bool) -> Tensor:
        key = (training, *(argument.shape if isinstance(argument, Tensor) else None for argument in arguments))
        traced = self._traces.get(key)
        with torch.no_grad():
            if traced is not None and not training:
                result: Tensor = traced(*arguments)
                return result
            with preserved_global_generators():  # a pass in training mode may draw
                self._model.train(training)
                try:
                    if key not in self._traces:
                        self._traces[key] = self._try_trace(function, arguments)
                    return (self._traces[key] or function)(*arguments)
                finally:
                    self._model.train()

    @staticmethod
    def _try_trace(function: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Callable[..., Tensor] | None:
        try:
            return _trace(function, arguments)
        except Exception:  # control flow that depends on data: run the model itself
            return None

    def _sums(self, parameters: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor, input_scale: Tensor | None) -> Tensor:
        if input_scale is not None:
            inputs = inputs * input_scale
        outputs = functional_call(self._model, {**self._layout.views(parameters), **buffers}, (inputs,))
        loss = self._task.loss if self._task.observed_loss is None else self._task.observed_loss
        assert callable(loss)
        sums = loss(outputs, targets).sum()
        metric = torch.zeros_like(sums) if self._task.metric is None else self._task.metric.function(outputs, targets).sum()
        return torch.stack([sums, metric])


def _mean(function: ExampleFunction | str, outputs: Tensor, targets: Tensor) -> Tensor:
    assert callable(function)
    return function(outputs, targets).mean()


def _clone(buffers: Buffers, member: int | None = None) -> Buffers:
    return {name: (buffer if member is None else buffer[member]).clone() for name, buffer in buffers.items()}


def _trace(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    # make_fx counts the arguments of the function itself, so that a bound method must be wrapped.
    graph = make_fx(lambda *values: function(*values))(*arguments)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
