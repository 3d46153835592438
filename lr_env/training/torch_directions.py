"""Signals of one training of somebody else's: a model's parameters under an optimizer of ``torch.optim``, which are only read.

All is measured on flat vectors ``(1, P)`` by the population's own functions, so that the numbers have the bits that they have there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lr_env.training.gradients import ParameterLayout
from lr_env.training.optimizers import SGD, AdaGrad, Adam, AdamW, NAdamW, RMSprop, StackedOptimizer
from lr_env.training.signals import DIRECTION_SIGNALS, Groups, Step, measure

ParameterGroup: TypeAlias = Mapping[str, Any]
"""An entry of ``param_groups``."""

ELEMENTS_PER_PIECE = 2**17
"""Directions are computed piece by piece, so that what is between stays in the cache."""


class UnknownDirectionError(ValueError):
    """The direction of an optimizer, or of one with these options, is not known."""


@dataclass(frozen=True)
class _Kind:
    """How an optimizer of ``torch.optim`` maps to one of ours.

    Attributes:
        make: From a parameter group.
        state: Our state's names to torch's.
        refused: Options that have no counterpart, with the only values that are allowed.
    """

    make: Callable[[ParameterGroup], StackedOptimizer]
    state: Mapping[str, str]
    refused: Mapping[str, Any]


def _sgd(group: ParameterGroup) -> StackedOptimizer:
    return SGD(momentum=group["momentum"] or None, nesterov=group["nesterov"], weight_decay=group["weight_decay"])


def _adagrad(group: ParameterGroup) -> StackedOptimizer:
    return AdaGrad(epsilon=group["eps"], weight_decay=group["weight_decay"])  # torch's sum begins at the initial accumulator


def _rmsprop(group: ParameterGroup) -> StackedOptimizer:
    options = {"smoothing": group["alpha"], "epsilon": group["eps"], "weight_decay": group["weight_decay"]}
    return RMSprop(momentum=group["momentum"] or None, centered=group["centered"], **options)


def _adam(group: ParameterGroup) -> StackedOptimizer:
    return (AdamW if group.get("decoupled_weight_decay", False) else Adam)(**_adam_options(group))


def _adamw(group: ParameterGroup) -> StackedOptimizer:
    return AdamW(**_adam_options(group))


def _nadam(group: ParameterGroup) -> StackedOptimizer:
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        raise UnknownDirectionError("the direction of NAdam is not known if its weight decay is not decoupled: give decoupled_weight_decay=True")
    return NAdamW(momentum_decay=group["momentum_decay"], **_adam_options(group))


def _adam_options(group: ParameterGroup) -> dict[str, float]:
    beta1, beta2 = group["betas"]
    return {"beta1": float(beta1), "beta2": float(beta2), "epsilon": group["eps"], "weight_decay": group["weight_decay"]}


_MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
_KINDS: Mapping[type[torch.optim.Optimizer], _Kind] = {
    torch.optim.SGD: _Kind(_sgd, {"momentum": "momentum_buffer"}, {"dampening": 0}),
    torch.optim.Adagrad: _Kind(_adagrad, {"sum_of_squares": "sum"}, {"lr_decay": 0}),
    torch.optim.RMSprop: _Kind(_rmsprop, {"second_moment": "square_avg", "first_moment": "grad_avg", "momentum": "momentum_buffer"}, {}),
    torch.optim.Adam: _Kind(_adam, _MOMENTS, {"amsgrad": False}),
    torch.optim.AdamW: _Kind(_adamw, _MOMENTS, {"amsgrad": False}),
    torch.optim.NAdam: _Kind(_nadam, {**_MOMENTS, "bias_correction": "mu_product"}, {}),
}
KNOWN_OPTIMIZERS = tuple(kind.__name__ for kind in _KINDS)
"""Of ``torch.optim``, whose directions are known."""


@dataclass(frozen=True)
class _Piece:
    """Some parameters of one group, or a part of one parameter.

    Attributes:
        group: Its number.
        parameters: Their numbers.
        part: Where in all parameters.
        inner: Where in the only parameter; None for all of it.
    """

    group: int
    parameters: Sequence[int]
    part: slice
    inner: slice | None = None


class Directions:
    """What ``optimizer.step()`` is about to subtract at unit rate; the optimizer stays as it is.

    Args:
        optimizer: Whose directions they are.
        parameters: Those of all groups that are looked at, in order.
        group_of: The number of each one's group.

    Raises:
        UnknownDirectionError: If the optimizer or one of its options is none that is known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], group_of: Sequence[int]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        # Whoever brings a step of its own is another optimizer than what it derives from. Torch wraps the steps of all classes.
        inner = getattr(optimizer, "optimizer", optimizer)  # frameworks put optimizers into others
        step = inspect.unwrap(type(inner).step)
        found = next((kind for known, kind in _KINDS.items() if inspect.unwrap(known.step) is step), None)
        if found is None:
            raise UnknownDirectionError(f"the direction of {type(optimizer).__name__} is not known; known are {', '.join(KNOWN_OPTIMIZERS)}")
        self._kind = found
        self._made: dict[tuple[Any, ...], StackedOptimizer] = {}
        self._pieces = _pieces([parameter.numel() for parameter in parameters], group_of)
        self.rules()

    def rules(self) -> list[StackedOptimizer]:
        """The optimizers of ours that the groups correspond to at present."""
        return [self._rule(group) for group in self._optimizer.param_groups]

    def __call__(self, gradients: Tensor, ratios: Sequence[float], clip_norm: float | None, out: Tensor | None) -> Tensor:
        """The directions ``(1, P)``: the gradients themselves, or written to ``out``, which None is enough for if they are never needed.

        Args:
            gradients: ``(1, P)``.
            ratios: Factors on the directions of each group.
            clip_norm: The norm to which the gradients of all parameters are going to be clipped; None for no clipping.
            out: ``(1, P)``, overwritten.
        """
        rules = self.rules()
        factor = None
        if clip_norm is not None:
            factor = (clip_norm / (torch.linalg.vector_norm(gradients, dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        if out is None:
            return gradients
        for piece in self._pieces:
            rule, ratio = rules[piece.group], ratios[piece.group]
            slopes = gradients[:, piece.part] if factor is None else gradients[:, piece.part] * factor
            states = [self._optimizer.state.get(self._parameters[i], {}) for i in piece.parameters]
            weights = self._values(piece, [self._parameters[i] for i in piece.parameters], slopes) if rule.weight_decay else slopes
            state = {name: self._state(piece, name, states, slopes) for name in rule.initial_state(slopes[:, :0])}
            directions, _ = rule.directions(slopes, weights, state, self._steps(piece, states, slopes))
            out[:, piece.part] = directions if ratio == 1 else directions * ratio
        return out

    def are_gradients(self, ratios: Sequence[float], clip_norm: float | None) -> bool:
        """Whether the directions are the gradients, as those of plain SGD are."""
        plain = all(isinstance(rule, SGD) and rule.momentum is None and not rule.weight_decay for rule in self.rules())
        return plain and clip_norm is None and all(ratio == 1 for ratio in ratios)

    def _rule(self, group: ParameterGroup) -> StackedOptimizer:
        for option, allowed in ({"maximize": False} | dict(self._kind.refused)).items():
            if group.get(option, allowed) != allowed:
                raise UnknownDirectionError(f"the direction of {type(self._optimizer).__name__} is not known with {option}={group[option]!r}")
        names = ("momentum", "nesterov", "betas", "alpha", "centered", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay")
        key = tuple(group.get(name) for name in names)
        if key not in self._made:
            self._made = {key: self._kind.make(group)} if len(self._made) > 100 else {**self._made, key: self._kind.make(group)}
        return self._made[key]

    def _values(self, piece: _Piece, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        """Of the piece, ``(1, p)``."""
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return (joined if piece.inner is None else joined[piece.inner]).to(like).unsqueeze(0)

    def _state(self, piece: _Piece, name: str, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
        """One tensor of our state, ``(1, p)``; 0 before the optimizer's first step."""
        key = self._kind.state[name]
        values = []
        for i, state in zip(piece.parameters, states, strict=True):
            value, parameter = state.get(key), self._parameters[i]
            if value is None:
                value = torch.zeros((), dtype=like.dtype, device=like.device).expand(parameter.shape)
            elif key == "mu_product":
                value = (1 - value).to(like).expand(parameter.shape)
            values.append(value)
        return self._values(piece, values, like)

    def _steps(self, piece: _Piece, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
        """The number of the coming step, ``(1, 1)``, or ``(1, p)`` where the parameters' differ, as those do that had no gradient."""
        steps = [int(state.get("step", 0)) + 1 for state in states] if any("step" in state for state in states) else [1]
        if len(set(steps)) == 1:
            return torch.tensor([[steps[0]]], device=like.device)
        sizes = torch.tensor([self._parameters[i].numel() for i in piece.parameters])
        return torch.tensor(steps).repeat_interleave(sizes).to(like.device).unsqueeze(0)


class UnitSteps:
    """The same for any optimizer: what a copy of it subtracts in a step at rate 1. Costs a copy of its state at each step.

    Args:
        optimizer: Whose directions they are.
        parameters: Those of all groups that are looked at, in order.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    def __call__(self, gradients: Tensor, ratios: Sequence[float], clip_norm: float | None, out: Tensor | None) -> Tensor:
        """See :class:`Directions`."""
        if out is None:
            return gradients
        factor = 1.0 if clip_norm is None else min(1.0, clip_norm / (float(torch.linalg.vector_norm(gradients)) + 1e-6))
        known: dict[int, Any] = {}
        twin = copy.deepcopy(self._optimizer, known)
        for group, ratio in zip(twin.param_groups, ratios, strict=True):
            group["lr"] = torch.full_like(group["lr"], ratio) if isinstance(group["lr"], Tensor) else ratio
        for mine in (parameter for group in self._optimizer.param_groups for parameter in group["params"]):
            its = known[id(mine)]
            its.grad = None if mine.grad is None else mine.grad * factor if factor < 1 else mine.grad.clone()
        twin.step()
        moved = [known[id(parameter)].detach().reshape(-1) for parameter in self._parameters]
        torch.sub(torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters]), torch.cat(moved), out=out[0])
        return out

    def are_gradients(self, ratios: Sequence[float], clip_norm: float | None) -> bool:
        """Never known."""
        return False


class LoopSignals:
    """Measures a step of a user's own loop, between ``loss.backward()`` and ``optimizer.step()``.

    Parameters that require no gradient when it is made are left out; those without a gradient at a step have one of 0 and stay.

    Args:
        optimizer: Its parameters are measured.
        names: Of the signals, from :data:`lr_env.training.SIGNALS`: those that :class:`Step` gets from gradients, weights and directions.
        is_grouped: Whether each parameter group has signals of its own.
        by_unit_steps: Whether directions are the steps of a copy; see :class:`UnitSteps`.
        clip_norm: The norm to which the user clips the gradients afterwards; None for no clipping.

    Attributes:
        previous: ``gradients`` and ``directions`` of the step before ``(1, P)``, where signals need them.

    Raises:
        ValueError: If the parameters or the optimizer can't be measured.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: frozenset[str],
        is_grouped: bool = False,
        by_unit_steps: bool = False,
        clip_norm: float | None = None,
    ) -> None:
        self._optimizer, self._names, self._clip_norm = optimizer, names, clip_norm
        chosen = [(i, parameter) for i, group in enumerate(optimizer.param_groups) for parameter in group["params"] if parameter.requires_grad]
        group_of, self._parameters = [i for i, _ in chosen], [parameter for _, parameter in chosen]
        self._count = sum(len(group["params"]) for group in optimizer.param_groups)
        self.device, self._dtype = _common(self._parameters)
        self._layout = ParameterLayout(nn.ParameterList(nn.Parameter(parameter.detach()) for parameter in self._parameters))
        grouping = [[str(k) for k, i in enumerate(group_of) if i == group] for group in range(len(optimizer.param_groups))]
        self.groups = Groups([group for group in grouping if group] if is_grouped else "global", self._layout, self.device)
        self.directions: Directions | UnitSteps | None = None
        if names.intersection(DIRECTION_SIGNALS):
            self.directions = UnitSteps(optimizer, self._parameters) if by_unit_steps else Directions(optimizer, self._parameters, group_of)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._buffers: dict[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
        kept = {"gradients": "gradient_dot_previous", "directions": "direction_agreement"}
        self.previous = {
            name: torch.zeros(1, self._layout.size, dtype=self._dtype, device=self.device) for name, signal in kept.items() if signal in names
        }

    def __call__(self, loss: Tensor, ratios: Sequence[float]) -> Tensor:
        """The signals ``(R, G, 1)``, float64, with the rows that :func:`lr_env.training.signal_rows` names.

        Args:
            loss: ``(1,)``.
            ratios: Of the groups' rates, by which their directions are multiplied.

        Raises:
            ValueError: If parameters were added to the optimizer.
        """
        if sum(len(group["params"]) for group in self._optimizer.param_groups) != self._count:
            raise ValueError("The optimizer has other parameters than when ControllerLR was made: make a new one after add_param_group().")
        nothing = torch.zeros(1, 0, device=self.device)
        gradients = self._filled("gradients", [parameter.grad for parameter in self._parameters]) if self._names else nothing
        weights = self._filled("weights", self._parameters) if "weight_norm_squared" in self._names else nothing
        directions = nothing
        if self.directions is not None:
            out = None if self.directions.are_gradients(ratios, self._clip_norm) else self._buffer("directions")
            directions = self.directions(gradients, ratios, self._clip_norm, out)
            if out is not None and any(parameter.grad is None for parameter in self._parameters):
                for view, parameter in zip(self._layout.views(directions[0]).values(), self._parameters, strict=True):
                    if parameter.grad is None:  # the optimizer leaves it as it is
                        view.zero_()
        self._latest = {"gradients": gradients, "directions": directions}
        before = [self.previous.get(name, nothing) for name in ("gradients", "directions")]
        step = Step(loss.to(self.device), weights, gradients, directions, before[0], before[1], nothing, lambda: (nothing, nothing), None)
        return measure(step, self._names, self.groups)

    def keep(self) -> None:
        """Takes the last step for the one before the next."""
        for name, latest in self._latest.items():
            if name in self.previous:
                # The two buffers change places; directions that are the gradients have none of their own.
                if latest is self._buffers.get(name):
                    self.previous[name], self._buffers[name] = latest, self.previous[name]
                else:
                    self.previous[name].copy_(latest)

    def _filled(self, name: str, tensors: Sequence[Tensor | None]) -> Tensor:
        """A buffer with these tensors, one after the other."""
        flat = self._buffer(name)
        torch.cat([self._flat(tensor, size) for tensor, size in zip(tensors, self._sizes, strict=True)], out=flat[0])
        return flat

    def _flat(self, tensor: Tensor | None, size: int) -> Tensor:
        if tensor is None:
            return torch.zeros(1, dtype=self._dtype, device=self.device).expand(size)
        return (tensor.to_dense() if tensor.is_sparse else tensor).detach().reshape(-1)

    def _buffer(self, name: str) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.zeros(1, self._layout.size, dtype=self._dtype, device=self.device)
        return self._buffers[name]


def _pieces(sizes: Sequence[int], group_of: Sequence[int]) -> list[_Piece]:
    """Small parameters of a group together, large ones in parts."""
    pieces: list[_Piece] = []
    start = 0
    gathered: list[int] = []

    def flush(stop: int) -> None:
        if gathered:
            length = sum(sizes[i] for i in gathered)
            pieces.append(_Piece(group_of[gathered[0]], tuple(gathered), slice(stop - length, stop)))
            gathered.clear()

    for i, size in enumerate(sizes):
        if gathered and (group_of[gathered[0]] != group_of[i] or sum(sizes[j] for j in gathered) + size > ELEMENTS_PER_PIECE):
            flush(start)
        if size > ELEMENTS_PER_PIECE:
            for first in range(0, size, ELEMENTS_PER_PIECE):
                last = min(first + ELEMENTS_PER_PIECE, size)
                pieces.append(_Piece(group_of[i], (i,), slice(start + first, start + last), slice(first, last)))
        else:
            gathered.append(i)
        start += size
    flush(start)
    return pieces


def _common(parameters: Sequence[Tensor]) -> tuple[torch.device, torch.dtype]:
    """The device of the parameters, and the type in which they are measured: float32 at least."""
    if not parameters:
        raise ValueError("The optimizer has no parameters that require gradients.")
    for parameter in parameters:
        is_sharded = any(base.__name__ in ("DTensor", "FlatParameter") for base in type(parameter).__mro__)
        if is_sharded or getattr(parameter, "_fsdp_flattened", False) or hasattr(parameter, "ds_id"):
            raise ValueError(
                "ControllerLR can't measure parameters that are sharded over processes (FSDP, DeepSpeed, DTensor): each process sees only a "
                "part of the gradient. Use DistributedDataParallel, or a scheduler that needs no gradients."
            )
        if parameter.is_complex():
            raise ValueError("ControllerLR can't measure complex parameters: use real ones, such as torch.view_as_real makes.")
    devices = {parameter.device for parameter in parameters}
    if len(devices) > 1:
        raise ValueError(f"ControllerLR needs all parameters on one device, but they lie on {', '.join(sorted(map(str, devices)))}.")
    return devices.pop(), torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32
