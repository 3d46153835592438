"""Signals of one training of somebody else's: a model's parameters under an optimizer of ``torch.optim``, which are only read.

A small model is measured on flat vectors ``(1, P)`` by the population's own functions, so that the numbers have the bits that they have
there. A large one is measured piece by piece, which are flat vectors for a moment, in the cache.
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
from lr_env.training.signals import DIRECTION_SIGNALS, Groups, Step, measure, signal_rows

ParameterGroup: TypeAlias = Mapping[str, Any]
"""An entry of ``param_groups``."""

ELEMENTS_PER_PIECE = 2**18
"""Elements that are looked at together. In larger models sums are rounded otherwise than in the environment."""


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
class Piece:
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

    def of(self, tensors: Sequence[Tensor], like: Tensor) -> Tensor:
        """What it takes of its parameters' tensors, ``(1, p)``, of the type of ``like``."""
        flat = [tensor.detach().reshape(-1) for tensor in tensors]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return (joined if self.inner is None else joined[self.inner]).to(like).unsqueeze(0)


class Directions:
    """What ``optimizer.step()`` is about to subtract at unit rate; the optimizer stays as it is.

    Args:
        optimizer: Whose directions they are.
        parameters: Those of all groups that are looked at, in order.

    Raises:
        UnknownDirectionError: If the optimizer or one of its options is none that is known.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        # Whoever brings a step of its own is another optimizer than what it derives from. Torch wraps the steps of all classes.
        inner = getattr(optimizer, "optimizer", optimizer)  # frameworks put optimizers into others
        step = inspect.unwrap(type(inner).step)
        found = next((kind for known, kind in _KINDS.items() if inspect.unwrap(known.step) is step), None)
        if found is None:
            raise UnknownDirectionError(f"the direction of {type(optimizer).__name__} is not known; known are {', '.join(KNOWN_OPTIMIZERS)}")
        self._kind = found
        self._made: dict[tuple[Any, ...], StackedOptimizer] = {}
        self.rules = [self._rule(group) for group in optimizer.param_groups]

    def begin(self, ratios: Sequence[float], factor: Tensor | None) -> None:
        """Takes the present options of the optimizer.

        Args:
            ratios: Factors on the directions of each group.
            factor: On the gradients, ``(1, 1)``; None for 1.
        """
        self.rules = [self._rule(group) for group in self._optimizer.param_groups]
        self._ratios, self._factor = ratios, factor

    def __call__(self, piece: Piece, gradients: Tensor) -> Tensor:
        """The directions of a piece ``(1, p)``, with its gradients ``(1, p)``; the same tensor for plain SGD."""
        rule, ratio = self.rules[piece.group], self._ratios[piece.group]
        parameters = [self._parameters[i] for i in piece.parameters]
        without = [i for i, parameter in enumerate(parameters) if parameter.grad is None]
        if self._factor is not None:
            gradients = gradients * self._factor
        directions = gradients
        if rule.weight_decay or not isinstance(rule, SGD) or rule.has_momentum:
            states = [self._optimizer.state.get(parameter, {}) for parameter in parameters]
            weights = piece.of(parameters, gradients) if rule.weight_decay else gradients
            state = {name: self._state(piece, name, states, gradients) for name in rule.initial_state(gradients[:, :0])}
            directions, _ = rule.directions(gradients, weights, state, self._steps(piece, states, gradients))
        if ratio != 1:
            directions = directions * ratio
        if without and directions is not gradients:  # the optimizer leaves them as they are
            sizes = [directions.shape[1]] if piece.inner else [parameter.numel() for parameter in parameters]
            parts = list(directions.split(sizes, dim=1))
            for i in without:
                parts[i] = torch.zeros_like(parts[i])
            directions = torch.cat(parts, 1)
        return directions

    def _rule(self, group: ParameterGroup) -> StackedOptimizer:
        for option, allowed in ({"maximize": False} | dict(self._kind.refused)).items():
            if group.get(option, allowed) != allowed:
                raise UnknownDirectionError(f"the direction of {type(self._optimizer).__name__} is not known with {option}={group[option]!r}")
        names = ("momentum", "nesterov", "betas", "alpha", "centered", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay")
        key = tuple(group.get(name) for name in names)
        if key not in self._made:
            self._made = {key: self._kind.make(group)} | ({} if len(self._made) > 100 else self._made)
        return self._made[key]

    def _state(self, piece: Piece, name: str, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
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
        return piece.of(values, like)

    def _steps(self, piece: Piece, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
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
        self._moved: list[Tensor] = []

    def begin(self, ratios: Sequence[float], factor: Tensor | None) -> None:
        """See :class:`Directions`."""
        known: dict[int, Any] = {}
        twin = copy.deepcopy(self._optimizer, known)
        for group, ratio in zip(twin.param_groups, ratios, strict=True):
            group["lr"] = torch.full_like(group["lr"], ratio) if isinstance(group["lr"], Tensor) else ratio
        for mine in (parameter for group in self._optimizer.param_groups for parameter in group["params"]):
            gradient = mine.grad
            known[id(mine)].grad = None if gradient is None else gradient.clone() if factor is None else gradient * factor.view(()).to(gradient.dtype)
        twin.step()
        self._moved = [known[id(parameter)] for parameter in self._parameters]

    def __call__(self, piece: Piece, gradients: Tensor) -> Tensor:
        """See :class:`Directions`."""
        before, after = (piece.of([tensors[i] for i in piece.parameters], gradients) for tensors in (self._parameters, self._moved))
        return before - after


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
        num_groups: Groups with signals of their own.
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
        layout = ParameterLayout(nn.ParameterList(nn.Parameter(parameter.detach()) for parameter in self._parameters))
        grouping = [[str(k) for k, i in enumerate(group_of) if i == group] for group in range(len(optimizer.param_groups))]
        chosen_grouping = [group for group in grouping if group] if is_grouped else "global"
        self.num_groups = len(chosen_grouping) if is_grouped else 1
        self.directions: Directions | UnitSteps | None = None
        if names.intersection(DIRECTION_SIGNALS):
            self.directions = (UnitSteps if by_unit_steps else Directions)(optimizer, self._parameters)
        self._pieces = _pieces([parameter.numel() for parameter in self._parameters], group_of)
        self._is_small = layout.size <= ELEMENTS_PER_PIECE
        self._whole = Piece(0, range(len(self._parameters)), slice(0, layout.size))
        # Groups hold a number for each weight; a piece is summed as the one group that it is, as if it were one weight.
        of_one = ParameterLayout(nn.ParameterList([nn.Parameter(torch.zeros(1))]))
        self._groups = Groups(chosen_grouping, layout, self.device) if self._is_small else Groups("global", of_one, self.device)
        self._is_grouped = is_grouped
        self._like = torch.zeros(0, dtype=self._dtype, device=self.device)
        kept = {"gradients": "gradient_dot_previous", "directions": "direction_agreement"}
        self.previous = {name: self._like.new_zeros(1, layout.size) for name, signal in kept.items() if signal in names}
        self._latest_directions = self._like

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
        if self.directions is not None:
            factor = None
            if self._clip_norm is not None:
                norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self._parameters if parameter.grad is not None])
                factor = (self._clip_norm / (norm.to(self._like) + 1e-6)).clamp(max=1.0).view(1, 1)
            self.directions.begin(ratios, factor)
        loss = loss.to(self.device)
        if self._is_small:
            return self._measure_whole(loss)
        return self._measure_pieces(loss)

    def keep(self) -> None:
        """Takes the last step for the one before the next."""
        if "gradients" in self.previous:
            flat = [self._gradient(i).detach().reshape(-1) for i in self._whole.parameters]
            torch.cat(flat, out=self.previous["gradients"][0])
        if "directions" in self.previous:
            self.previous["directions"].copy_(self._latest_directions)

    def _measure_whole(self, loss: Tensor) -> Tensor:
        gradients = self._gradients(self._whole)
        directions = gradients
        if self.directions is not None:
            parts = [self.directions(piece, gradients if len(self._pieces) == 1 else gradients[:, piece.part]) for piece in self._pieces]
            directions = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self._measure(loss, self._whole, gradients, directions)

    def _measure_pieces(self, loss: Tensor) -> Tensor:
        rows = signal_rows(self._names)
        totals = torch.zeros(len(rows), self.num_groups, 1, dtype=torch.float64, device=self.device)
        latest = torch.empty_like(self.previous["directions"]) if "directions" in self.previous else None
        counts = torch.zeros_like(totals[0])
        for piece in self._pieces:
            gradients = self._gradients(piece)
            directions = gradients if self.directions is None else self.directions(piece, gradients)
            if latest is not None:
                latest[:, piece.part] = directions
            signals = self._measure(loss, piece, gradients, directions)[:, 0]
            size = piece.part.stop - piece.part.start
            group = piece.group if self._is_grouped else 0
            totals[:, group] += signals
            counts[group] += size
        if latest is not None:
            self._latest_directions = latest
            totals[rows.index("direction_agreement")] /= counts
        totals[0] = loss.double()
        return totals

    def _measure(self, loss: Tensor, piece: Piece, gradients: Tensor, directions: Tensor) -> Tensor:
        nothing = self._like.view(1, 0)
        weights = piece.of([self._parameters[i] for i in piece.parameters], self._like) if "weight_norm_squared" in self._names else nothing
        before = [self.previous[name][:, piece.part] if name in self.previous else nothing for name in ("gradients", "directions")]
        if piece is self._whole:
            self._latest_directions = directions
        step = Step(loss, weights, gradients, directions, before[0], before[1], nothing, lambda: (nothing, nothing), None)
        return measure(step, self._names, self._groups)

    def _gradients(self, piece: Piece) -> Tensor:
        if not self._names:
            return self._like.view(1, 0)
        return piece.of([self._gradient(i) for i in piece.parameters], self._like)

    def _gradient(self, i: int) -> Tensor:
        parameter = self._parameters[i]
        if parameter.grad is None:
            return torch.zeros_like(parameter)
        dense: Tensor = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        return dense


def _pieces(sizes: Sequence[int], group_of: Sequence[int]) -> list[Piece]:
    """Small parameters of a group together, large ones in parts."""
    pieces: list[Piece] = []
    start = 0
    gathered: list[int] = []

    def flush(stop: int) -> None:
        if gathered:
            length = sum(sizes[i] for i in gathered)
            pieces.append(Piece(group_of[gathered[0]], tuple(gathered), slice(stop - length, stop)))
            gathered.clear()

    for i, size in enumerate(sizes):
        if gathered and (group_of[gathered[0]] != group_of[i] or sum(sizes[j] for j in gathered) + size > ELEMENTS_PER_PIECE):
            flush(start)
        if size > ELEMENTS_PER_PIECE:
            for first in range(0, size, ELEMENTS_PER_PIECE):
                last = min(first + ELEMENTS_PER_PIECE, size)
                pieces.append(Piece(group_of[i], (i,), slice(start + first, start + last), slice(first, last)))
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
