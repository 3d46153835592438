"""Signals of one training of somebody else's: a model's parameters under an optimizer of ``torch.optim``, which are only read.

A small model is measured on flat vectors ``(1, P)`` by the population's own functions, so that the numbers have the bits that they have
there. A large one is measured in a single pass, chunk by chunk, each for a moment in the cache, by scalar products: where the direction is a sum
of vectors that exist already, as SGD's, without making it. The same pass stores the gradient for the next step. A compiled kernel,
:mod:`lr_env.training.loop_kernel`, does all of that at once, and of small models too.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from lr_env.seeding import preserved_global_generators
from lr_env.training.gradients import ParameterLayout
from lr_env.training.loop_kernel import SIGNALS, LoopKernel, is_known
from lr_env.training.optimizers import SGD, AdaGrad, Adam, AdamW, NAdamW, RMSprop, StackedOptimizer
from lr_env.training.signals import DIRECTION_SIGNALS, Groups, Step, measure, signal_rows, signal_values
from lr_env.training.torch_optimizers import copied_optimizer
from lr_env.training.tracing import require_compiler

ParameterGroup: TypeAlias = Mapping[str, Any]
"""An entry of ``param_groups``."""

ELEMENTS_OF_SMALL_MODEL = 2**18
"""In larger models sums are rounded otherwise than in the environment."""

ELEMENTS_PER_PIECE = 2**20
"""Elements of a large model whose optimizer's state is looked up together."""

ELEMENTS_PER_CHUNK = 2**16
"""Elements of a piece, of which all products are taken before the next ones': a few vectors of them stay in a core's cache."""

ELEMENTS_TO_COPY = 2**13
"""Smaller parameters are copied, to be looked at together with others."""


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
_OPTIONS = ("momentum", "nesterov", "betas", "alpha", "centered", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay")
"""Of a parameter group: on what its rule depends."""

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
        tensors = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]  # momentum of sparse gradients is sparse
        joined = tensors[0].reshape(-1) if len(tensors) == 1 else _flatten_dense_tensors(tensors)
        return (joined if self.inner is None else joined[self.inner]).to(like).unsqueeze(0)


@dataclass(frozen=True)
class Terms:
    """The directions of a piece, ``a g + b w + c q``, with gradients g, weights w, and q that is made for a chunk at a time.

    Attributes:
        of_gradients: a.
        of_weights: b.
        of_made: c.
        sources: Of what q is made, each ``(1, p)``.
        make: Gives q of a chunk, from its gradients and sources; it may lie in memory that is used again. None where q is the only source.
    """

    of_gradients: float
    of_weights: float
    of_made: float
    sources: Sequence[Tensor]
    make: Callable[..., Tensor] | None = None


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
        self._kind, self._refused = found, tuple(({"maximize": False} | dict(found.refused)).items())
        self._options = (*_OPTIONS, *(option for option, _ in self._refused))
        self._made: dict[tuple[Any, ...], StackedOptimizer] = {}
        self._names: dict[StackedOptimizer, list[str]] = {}
        self._memory: Tensor | None = None
        self._number: float | None = None
        self.rules = [self._rule(group) for group in optimizer.param_groups]

    def begin(self, ratios: Sequence[float], factor: Tensor | None) -> None:
        """Takes the present options of the optimizer.

        Args:
            ratios: Factors on the directions of each group.
            factor: On the gradients, ``(1, 1)``; None for 1.
        """
        self.rules = [self._rule(group) for group in self._optimizer.param_groups]
        self._ratios, self._factor, self._number = ratios, factor, None

    def terms(self, piece: Piece, gradients: Tensor) -> Terms | None:
        """The directions of a piece with gradients ``(1, p)``; None where they are not known as a sum."""
        rule, parameters = self.rules[piece.group], [self._parameters[i] for i in piece.parameters]
        states = [self._optimizer.state.get(parameter, {}) for parameter in parameters]
        if any(state.keys() != states[0].keys() for state in states) or any(parameter.grad is None for parameter in parameters):
            return None
        factor, scale = self._factor_as_number(), self._ratios[piece.group]
        if isinstance(rule, SGD):
            # s (g + λ w + μ m), or with Nesterov's momentum s ((1 + μ) (g + λ w) + μ² m), where s is the group's ratio.
            momentum = rule.momentum or 0.0
            of_gradients, of_buffer = (scale * (1 + momentum), scale * momentum**2) if rule.nesterov else (scale, scale * momentum)
            buffers = [buffer for state in states if (buffer := state.get("momentum_buffer")) is not None] if momentum else []
            sources = [piece.of(buffers, gradients)] if buffers else []
            return Terms(of_gradients * factor, of_gradients * rule.weight_decay, of_buffer if sources else 0.0, sources)
        steps = {int(state.get("step", 0)) for state in states}
        is_adam = type(rule) in (Adam, AdamW) and (rule.is_decoupled or not rule.weight_decay)
        if not is_adam or len(steps) > 1 or "exp_avg" not in states[0]:
            return None
        assert isinstance(rule, Adam)
        if rule.beta1 == 0 or rule.beta2 == 0:
            return None
        moments = [piece.of([state[name] for state in states], gradients) for name in _MOMENTS.values()]
        return self._terms_of_adam(rule, steps.pop() + 1, scale, factor, moments)

    def prepare(self, kernel: LoopKernel, gradients: Sequence[Tensor], group_of: Sequence[int]) -> bool:
        """Makes the kernel ready, with the groups of the parameters; False where it can't be, and before Adam's first step."""
        tensors: dict[str, Sequence[Tensor | None]] = {"weights": self._parameters}
        momenta = [rule.momentum for rule in self.rules if isinstance(rule, SGD)]
        if momenta and not any(momenta):  # looking up states takes time
            tensors["first"] = [None] * len(gradients)
            return kernel.prepare(gradients, tensors, self.rules, self._ratios, self._factor_as_number())
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters]
        if momenta:
            tensors["first"] = [state.get("momentum_buffer") if momenta[i] else None for i, state in zip(group_of, states, strict=True)]
        else:
            for name, key in (("first", "exp_avg"), ("second", "exp_avg_sq"), ("step", "step")):
                tensors[name] = values = [state.get(key) for state in states]
                if not all([isinstance(value, Tensor) for value in values]):  # noqa: C419  (takes less time)
                    return False
        return kernel.prepare(gradients, tensors, self.rules, self._ratios, self._factor_as_number())

    def _factor_as_number(self) -> float:
        if self._factor is not None and self._number is None:
            self._number = self._factor.item()
        return 1.0 if self._number is None else self._number

    def _terms_of_adam(self, rule: Adam, step: int, scale: float, factor: float, moments: Sequence[Tensor]) -> Terms:
        """``s m / ((1 − β₁ᵗ) (√v̂ + ε)) + s λ w``, with all constant factors taken out, so that fewest operations are left."""
        if self._memory is None or self._memory.dtype != moments[0].dtype:
            self._memory = moments[0].new_empty((2, _elements_per_chunk(moments[0].device)))
        memory, correction = self._memory, math.sqrt((1 - rule.beta2**step) / rule.beta2)
        first, second, epsilon = factor * (1 - rule.beta1) / rule.beta1, factor**2 * (1 - rule.beta2) / rule.beta2, rule.epsilon * correction

        def make(gradients: Tensor, averages: Tensor, squares: Tensor) -> Tensor:
            quotients, denominators = memory[:, : len(gradients)]
            torch.addcmul(squares, gradients, gradients, value=second, out=denominators).sqrt_().add_(epsilon)
            return torch.add(averages, gradients, alpha=first, out=quotients).div_(denominators)

        return Terms(0.0, scale * rule.weight_decay, scale * rule.beta1 / (1 - rule.beta1**step) * correction, moments, make)

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
            state = {name: self._state(piece, name, states, gradients) for name in self._names[rule]}
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
        key = tuple(tuple(value) if isinstance(value, list) else value for value in map(group.get, self._options))
        rule = self._made.get(key)
        if rule is None:
            for option, allowed in self._refused:
                if group.get(option, allowed) != allowed:
                    raise UnknownDirectionError(f"the direction of {type(self._optimizer).__name__} is not known with {option}={group[option]!r}")
            rule = self._kind.make(group)
            self._made = {key: rule} | ({} if len(self._made) > 100 else self._made)
            self._names = {rule: list(rule.initial_state(torch.zeros(1, 0)))} | ({} if len(self._names) > 100 else self._names)
        return rule

    def _state(self, piece: Piece, name: str, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
        """One tensor of our state, ``(1, p)``; 0 before the optimizer's first step."""
        key = self._kind.state[name]
        values: list[Any] = [state.get(key) for state in states]
        for k, value in enumerate(values):
            if value is None or key == "mu_product":
                start = like.new_zeros(()) if value is None else (1 - value).to(like)
                values[k] = start.expand(self._parameters[piece.parameters[k]].shape)
        return piece.of(values, like)

    def _steps(self, piece: Piece, states: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor | int:
        """The number of the coming step, or ``(1, p)`` where the parameters' differ, as those do that had no gradient."""
        steps = [int(state.get("step", 0)) + 1 for state in states]
        if len(set(steps)) == 1:
            return steps[0]
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
        twin = copied_optimizer(self._optimizer, known)
        for group, ratio in zip(twin.param_groups, ratios, strict=True):
            group["lr"] = torch.full_like(group["lr"], ratio) if isinstance(group["lr"], Tensor) else ratio
        for mine in (parameter for group in self._optimizer.param_groups for parameter in group["params"]):
            gradient = mine.grad
            known[id(mine)].grad = None if gradient is None else gradient.clone() if factor is None else gradient * factor.view(()).to(gradient.dtype)
        with preserved_global_generators():  # it may draw what the optimizer is about to
            twin.step()
        self._moved = [known[id(parameter)] for parameter in self._parameters]

    def __call__(self, piece: Piece, gradients: Tensor) -> Tensor:
        """See :class:`Directions`."""
        before, after = (piece.of([tensors[i] for i in piece.parameters], gradients) for tensors in (self._parameters, self._moved))
        return before - after


Shares: TypeAlias = dict[int, float]
"""Rows of the signals, and the factors with which a scalar product is a part of them."""


class LoopSignals:
    """Measures a step of a user's own loop, between ``loss.backward()`` and ``optimizer.step()``.

    Parameters that require no gradient when it is made are left out; those without a gradient at a step have one of 0 and stay.

    Args:
        optimizer: Its parameters are measured.
        names: Of the signals, from :data:`lr_env.training.SIGNALS`: those that :class:`Step` gets from gradients, weights and directions.
        is_grouped: Whether each parameter group has signals of its own.
        by_unit_steps: Whether directions are the steps of a copy; see :class:`UnitSteps`.
        clip_norm: The norm to which the user clips the gradients afterwards; None for no clipping.
        compile: Whether a :class:`LoopKernel` measures what it can.

    Attributes:
        num_groups: Groups with signals of their own.
        previous: ``gradients`` and ``directions`` of the step before ``(1, P)``, where signals need them; gradients in bfloat16 where a
            kernel measures.
        kernel: None where there is none.
        columns: Which of the kernel's products the signals after the loss are.

    Raises:
        RuntimeError: If ``compile`` is asked for and there is no C++ compiler.
        ValueError: If the parameters or the optimizer can't be measured.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: frozenset[str],
        is_grouped: bool = False,
        by_unit_steps: bool = False,
        clip_norm: float | None = None,
        compile: bool = False,  # noqa: A002  (torch's word)
    ) -> None:
        self._optimizer, self._names, self._clip_norm = optimizer, names, clip_norm
        chosen = [(i, parameter) for i, group in enumerate(optimizer.param_groups) for parameter in group["params"] if parameter.requires_grad]
        group_of, self._parameters = [i for i, _ in chosen], [parameter for _, parameter in chosen]
        self._count = sum(len(group["params"]) for group in optimizer.param_groups)
        self.device, self._dtype = _common(self._parameters)
        sizes = [parameter.numel() for parameter in self._parameters]
        self._grouping = [[str(k) for k, i in enumerate(group_of) if i == group] for group in range(len(optimizer.param_groups))]
        self._grouping = [group for group in self._grouping if group]
        self.num_groups = len(self._grouping) if is_grouped else 1
        self.directions: Directions | UnitSteps | None = None
        if names.intersection(DIRECTION_SIGNALS):
            self.directions = (UnitSteps if by_unit_steps else Directions)(optimizer, self._parameters)
        self._whole = Piece(0, range(len(sizes)), slice(0, sum(sizes)))
        is_small = sum(sizes) <= ELEMENTS_OF_SMALL_MODEL
        self._is_small = is_small and not compile
        self._pieces = _runs(sizes, group_of) if is_small else _pieces(sizes, group_of)
        if self._is_small:
            layout = ParameterLayout(nn.ParameterList(nn.Parameter(parameter.detach()) for parameter in self._parameters))
            self._groups = Groups(self._grouping if is_grouped else "global", layout, self.device)
        self._is_grouped, self._rows = is_grouped, signal_rows(names)
        self._sizes_of_groups = [
            sum(size for size, i in zip(sizes, group_of, strict=True) if not is_grouped or i == group) for group in range(self.num_groups)
        ]
        self._like = torch.zeros(0, dtype=self._dtype, device=self.device)
        kept = {"gradients": "gradient_dot_previous", "directions": "direction_agreement"}
        has_kernel = compile and self._has_kernel()
        dtypes = {"gradients": torch.bfloat16 if has_kernel else self._dtype}  # read and written anew at every step: half the traffic
        self.previous = {name: self._like.new_zeros(1, sum(sizes), dtype=dtypes.get(name)) for name, signal in kept.items() if signal in names}
        self._agrees = "directions" in self.previous
        self._chunk = _elements_per_chunk(self.device)
        self._gradients: list[Tensor] = []
        self._latest_gradients = self._latest_directions = self._like
        self._group_of = group_of
        self.kernel = self._make_kernel(sizes) if has_kernel else None
        self.columns = [SIGNALS.index(name) for name in self._rows[1:]] if has_kernel else []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kernel": self.kernel is not None}  # it holds addresses

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.kernel = self._make_kernel([parameter.numel() for parameter in self._parameters]) if state["kernel"] else None

    def __call__(self, loss: Tensor, ratios: Sequence[float]) -> Tensor:
        """The signals ``(R, G, 1)``, float64, with the rows that :func:`lr_env.training.signal_rows` names.

        Args:
            loss: ``(1,)``.
            ratios: Of the groups' rates, by which their directions are multiplied.

        Raises:
            ValueError: If parameters were added to the optimizer.
        """
        loss = loss.to(self.device)
        is_ready = self.prepare(ratios)
        if not self._names:  # the loss is all
            signals = loss.double().expand(1, self.num_groups).unsqueeze(2).clone()
        elif is_ready:
            assert self.kernel is not None
            signals = self._of_products(loss, self.kernel())
        else:
            signals = self._measure_whole(loss) if self._is_small else self._measure_pieces(loss)
        self.release()
        return signals

    def prepare(self, ratios: Sequence[float]) -> bool:
        """Looks at the step that is due; says whether the kernel is ready to measure it. :meth:`release` is due afterwards.

        Raises:
            ValueError: If parameters were added to the optimizer.
        """
        if sum([len(group["params"]) for group in self._optimizer.param_groups]) != self._count:
            raise ValueError("The optimizer has other parameters than when ControllerLR was made: make a new one after add_param_group().")
        if self.directions is not None:
            factor = None
            if self._clip_norm is not None:
                norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self._parameters if parameter.grad is not None])
                factor = (self._clip_norm / (norm.to(self._like) + 1e-6)).clamp(max=1.0).view(1, 1)
            self.directions.begin(ratios, factor)
        lacks_gradients, self._gradients = False, []
        for parameter in self._parameters if self._names else ():
            gradient = parameter.grad
            lacks_gradients |= gradient is None
            self._gradients.append(_dense(gradient, parameter) if gradient is None or gradient.is_sparse else gradient)  # calls take time
        if self.kernel is None or lacks_gradients:
            return False
        if isinstance(self.directions, Directions):
            return self.directions.prepare(self.kernel, self._gradients, self._group_of)
        rules = [SGD()] * (max(self._group_of) + 1)  # any: nobody asks
        return self.kernel.prepare(self._gradients, {"weights": self._parameters}, rules, [1.0] * len(rules), 1.0)

    def release(self) -> None:
        """Lets go of the gradients, which ``zero_grad()`` is to free."""
        self._gradients = []

    def keep(self, is_valid: bool = True) -> None:
        """Takes the last step for the one before the next; one that is not valid, for none.

        Before the next step then is the last valid one, of a large model none: its cosine will be 0.
        """
        if self._is_small and is_valid:
            latest = {"gradients": self._latest_gradients, "directions": self._latest_directions}
            self.previous = {name: latest[name] for name in self.previous}
        elif not self._is_small and not is_valid:
            for value in self.previous.values():
                value.zero_()

    def _has_kernel(self) -> bool:
        """Whether a kernel knows these signals and directions."""
        if self.device.type != "cpu":
            raise ValueError(f"compile=True makes kernels for a CPU, but the parameters lie on {self.device}: leave it out.")
        require_compiler()
        knows_directions = self.directions is None or (isinstance(self.directions, Directions) and all(map(is_known, self.directions.rules)))
        return bool(self._names) and self._names.issubset(SIGNALS) and knows_directions and self._dtype == torch.float32

    def _make_kernel(self, sizes: Sequence[int]) -> LoopKernel:
        before = None
        if "gradients" in self.previous:
            starts: dict[int, int] = {}
            for piece in self._pieces:
                start = piece.part.start
                for i in piece.parameters:
                    starts.setdefault(i, start)  # of one in parts, the first part's
                    start += sizes[i]
            before = [self.previous["gradients"][0, starts[i] :][:size] for i, size in enumerate(sizes)]
        return LoopKernel(sizes, self._group_of, self._group_of if self._is_grouped else [0] * len(sizes), before)

    def _of_products(self, loss: Tensor, products: np.ndarray) -> Tensor:
        signals = np.empty((len(self._rows), len(products), 1))
        signals[0], signals[1:, :, 0] = loss.item(), products.T[self.columns]
        return torch.from_numpy(signals)

    def _measure_whole(self, loss: Tensor) -> Tensor:
        nothing = self._like.view(1, 0)
        gradients = self._whole.of(self._gradients, self._like) if self._names else nothing
        if len(self._gradients) == 1:
            gradients = gradients.clone()  # it is kept, and the parameter's own will change
        directions = gradients
        if self.directions is not None:
            parts = [self.directions(piece, gradients if len(self._pieces) == 1 else gradients[:, piece.part]) for piece in self._pieces]
            directions = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        self._latest_gradients, self._latest_directions = gradients, directions
        weights = self._whole.of(self._parameters, self._like) if "weight_norm_squared" in self._names else nothing
        previous_gradients, previous_directions = (self.previous.get(name, nothing) for name in ("gradients", "directions"))
        step = Step(loss, weights, gradients, directions, previous_gradients, previous_directions, nothing, lambda: (nothing, nothing), None)
        if self.num_groups > 1 or self.device.type != "cpu":
            return measure(step, self._names, self._groups)
        return torch.from_numpy(np.array([value.item() for value in signal_values(step, self._names, self._groups)]).reshape(-1, 1, 1))

    def _measure_pieces(self, loss: Tensor) -> Tensor:
        previous = self.previous.get("gradients")
        products: list[Tensor] = []
        blocks: list[tuple[int, int, Sequence[Shares]]] = []  # how many of the products follow, and which parts they have in what
        for piece in self._pieces:
            gradients, weights = (piece.of([tensors[i] for i in piece.parameters], self._like) for tensors in (self._gradients, self._parameters))
            group = piece.group if self._is_grouped else 0
            terms = Terms(0.0, 0.0, 0.0, [])
            if self.directions is not None:
                known = self.directions.terms(piece, gradients) if isinstance(self.directions, Directions) and not self._agrees else None
                terms = known or Terms(0.0, 0.0, 1.0, [self.directions(piece, gradients)])
            if self._agrees:
                directions, before = terms.sources[0], self.previous["directions"][:, piece.part]
                products.append((directions * before).sign().sum())
                blocks.append((group, 1, [{self._rows.index("direction_agreement"): 1 / self._sizes_of_groups[group]}]))
                before.copy_(directions)
            shares = self._shares(terms)
            stored = gradients if previous is None else previous[:, piece.part]
            sources = [source[0].split(self._chunk) for source in (gradients, weights, stored, *terms.sources)]
            for g, w, last, *others in zip(*sources, strict=True):
                vectors = (g, w, last.to(g), *(others if terms.make is None else [terms.make(g, *others)]))
                products += [torch.dot(vectors[left], vectors[right]) for left, right in shares]
                if previous is not None:
                    last.copy_(g)
            blocks.append((group, len(sources[0]), list(shares.values())))
        totals = np.zeros((len(self._rows), self.num_groups, 1))
        values = torch.stack(products).detach().double().cpu().numpy() if products else np.zeros(0)
        for group, repeats, shared in blocks:
            sums, values = values[: repeats * len(shared)].reshape(repeats, -1).sum(0), values[repeats * len(shared) :]
            for product, shares_of_product in zip(sums.tolist(), shared, strict=True):
                for row, factor in shares_of_product.items():
                    totals[row, group] += factor * product
        totals[0] = loss.item()
        return torch.from_numpy(totals)

    def _shares(self, terms: Terms) -> dict[tuple[int, int], Shares]:
        """Which scalar products of g, w, the gradients before, and q (by number) are needed, and the rows that each is a part of."""
        gradients, weights, before, made = range(4)
        shares: dict[tuple[int, int], Shares] = {}

        def add(name: str, left: int, right: int, factor: float) -> None:
            if factor and name in self._names:
                shares.setdefault((min(left, right), max(left, right)), {})[self._rows.index(name)] = factor

        add("gradient_norm_squared", gradients, gradients, 1.0)
        add("gradient_dot_previous", gradients, before, 1.0)
        add("weight_norm_squared", weights, weights, 1.0)
        factors = [(gradients, terms.of_gradients), (weights, terms.of_weights), (made, terms.of_made)]
        for k, (vector, factor) in enumerate(factors):
            add("gradient_dot_direction", gradients, vector, factor)
            add("direction_norm_squared", vector, vector, factor**2)
            for other, other_factor in factors[k + 1 :]:
                add("direction_norm_squared", vector, other, 2 * factor * other_factor)
        return shares


def _dense(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """A parameter's gradient; 0 where there is none."""
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient


def _elements_per_chunk(device: torch.device) -> int:
    return ELEMENTS_PER_CHUNK if device.type == "cpu" else ELEMENTS_PER_PIECE  # elsewhere few operations count


def _runs(sizes: Sequence[int], group_of: Sequence[int]) -> list[Piece]:
    """The parameters of a group that follow each other."""
    starts = list(itertools.accumulate(sizes, initial=0))
    runs = [[i for i, _ in run] for _, run in itertools.groupby(enumerate(group_of), key=lambda entry: entry[1])]
    return [Piece(group_of[run[0]], tuple(run), slice(starts[run[0]], starts[run[-1] + 1])) for run in runs]


def _pieces(sizes: Sequence[int], group_of: Sequence[int]) -> list[Piece]:
    """Large parameters alone, in parts; the small ones of each group together, as many as a piece holds."""
    places: list[tuple[int, tuple[int, ...], slice | None, int]] = []
    for group in sorted(set(group_of)):
        gathered: list[int] = []
        for i in (i for i, other in enumerate(group_of) if other == group):
            if sizes[i] > ELEMENTS_TO_COPY:
                for first in range(0, sizes[i], ELEMENTS_PER_PIECE):
                    last = min(first + ELEMENTS_PER_PIECE, sizes[i])
                    places.append((group, (i,), slice(first, last), last - first))
                continue
            if sum(sizes[k] for k in gathered) + sizes[i] > ELEMENTS_PER_PIECE:
                places.append((group, tuple(gathered), None, sum(sizes[k] for k in gathered)))
                gathered = []
            gathered.append(i)
        if gathered:
            places.append((group, tuple(gathered), None, sum(sizes[k] for k in gathered)))
    stops = itertools.accumulate(size for *_, size in places)
    return [Piece(group, chosen, slice(stop - size, stop), inner) for (group, chosen, inner, size), stop in zip(places, stops, strict=True)]


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
