"""A controller in somebody's own training loop: the same decision process as in the environment, deployed."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lr_env.checks import positive_integer
from lr_env.controllers import BoundController, OnlineController, PolicyNetwork, decide, load_controller
from lr_env.isolation import full_precision
from lr_env.loop_decision import LoopDecision, Outcome, can_decide
from lr_env.mdp import MDP, DecisionProcess
from lr_env.mdp.actions import BASE_SCHEDULES, ResidualAction
from lr_env.mdp.arrays import Array
from lr_env.mdp.recording import Recorder
from lr_env.mdp.rewards import CircuitBreaker, make_circuit_breaker
from lr_env.mdp.statistics import Statistics
from lr_env.mdp.trackers import TINY
from lr_env.pretrained import load_pretrained
from lr_env.training import make_optimizer
from lr_env.training.signals import DIRECTION_SIGNALS, EXAMPLE_SIGNALS, VALIDATION_SIGNALS
from lr_env.training.torch_directions import Directions, LoopSignals, UnknownDirectionError
from lr_env.training.torch_optimizers import momentum_of

PRETRAINED = "pretrained"
"""Stands for the controller of :mod:`lr_env.pretrained` for the optimizer."""

UNAVAILABLE = frozenset({*EXAMPLE_SIGNALS, *VALIDATION_SIGNALS, "output_weight_mean", "output_weight_variance"})
"""Signals that a loop does not give."""

STATE_VERSION = 7

_GROUP = torch.distributed.GroupMember if torch.distributed.is_available() else None

RETURNS_IN_A_ROW = 10
"""After so many, the circuit breaker takes a high loss for the new level."""


class ControllerLR(LRScheduler):
    """Sets the rates of an optimizer of ``torch.optim`` by a controller, in any training loop.

    As in::

        controller = ControllerLR(optimizer, "pretrained", total_steps=10_000)  # or the file of a controller
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            controller.step(loss)  # between backward and step, like gradient clipping
            optimizer.step()

    It looks at the loss, the gradients, the weights and the direction that ``optimizer.step()`` is about to take, and changes nothing
    but ``lr`` in the optimizer's groups. What the controller observes and what its actions do is its own decision process's, as in the
    environment ``LearningRate-v0``: for the same training on a CPU, with at most 2¹⁸ weights, the bits that it has with ``gradients="looped"``
    under SGD (with momentum too), Adam or AdamW by name, or under any optimizer by a function. Reward and the process's circuit breaker play
    no part.

    - **Start.** The rate before the first decision is the optimizer's own ``lr``, or ``initial_rate``; controllers move it from there,
      unless their action does not depend on it. It must lie within the process's range, as all rates then do, but those of ``fallback``
      and of the action ``rate``.
    - **Groups.** Under a controller of one rate all groups keep the ratios of their rates; the largest of them is the one that is
      controlled. A process with ``lr_groups`` sets each of the optimizer's groups by itself, and needs as many as it was trained for.
    - **Whoever else writes ``lr``** is overwritten at the next step: use no other scheduler beside it, except as ``fallback``.
    - **Gradient accumulation.** ``controller.observe(loss)`` after each ``backward()`` with the undivided loss of the micro-batch, then
      ``controller.step()`` without a loss before ``optimizer.step()``: the mean counts.
    - **Mixed precision.** Pass the loss itself, not the scaled one, and ``scaler=`` the ``GradScaler``: ``step`` unscales the gradients, as
      clipping needs too. Steps whose gradients overflowed count as not finite.
    - **Clipping.** Controllers are trained on unclipped gradients: call ``step`` before ``clip_grad_norm_``, and tell ``clip_norm``, so that
      the direction is that of the clipped gradient.
    - **Several processes.** Where ``torch.distributed`` is initialised, loss and signals are averaged over all ranks, which so set the same
      rate; each rank must call ``step``. Sharded parameters (FSDP, DeepSpeed, DTensor) are refused.
    - **Numbers that are not finite** in loss, gradients or the controller's action never raise: such a step is not observed, and its rate
      is ``fallback(steps made)``; without a fallback that of the schedule that the controller corrects, or else the last one.
    - **Resume.** ``state_dict()`` holds plain data and tensors, which ``torch.load(weights_only=True)`` reads; a training that goes on from
      there, with the optimizer's state, has the bits of one that was never interrupted.
    - **Circuit breaker** (as SOLAR, 2026; off by default). Where the loss jumps, weights, the optimizer's state and the gradients go back to
      the last safe state, and what the controller has observed too; time goes on, and so do the data and the model's buffers. The k-th return
      in a row continues at the safe state's rate divided by 2ᵏ. Which loss is a jump, and which state is safe, see
      :class:`lr_env.mdp.CircuitBreaker`, whose ``penalty`` plays no part; after :data:`RETURNS_IN_A_ROW` returns in a row the level of the
      loss is taken to have changed. It keeps copies of weights, gradients and the optimizer's state: 2 numbers for each weight with SGD, 3
      with momentum, 4 with Adam. ``state_dict()`` holds them too.
    - After ``total_steps`` the last rate stays.

    ``step()`` without a loss, which frameworks call, changes nothing.

    Args:
        optimizer: Of ``torch.optim``'s kind, with parameters on one device. Features that look at its direction know those of SGD, Adagrad,
            RMSprop, Adam, AdamW and NAdam; that of another one is the step of a copy at rate 1, which costs the optimizer's own step and
            memory once more at each step, and holds where steps are proportional to the rate.
        controller: A file's path, a :class:`lr_env.BoundController`, or ``"pretrained"`` for the one that the package brings for the
            optimizer, see :mod:`lr_env.pretrained`.
        total_steps: T, calls of ``optimizer.step()`` in the whole training.
        initial_rate: Replaces the optimizer's ``lr`` at the start; of several groups, the largest.
        loss_lower_bound: What the loss can't fall below; 0 for classification.
        scaler: The ``torch.amp.GradScaler`` that scaled the loss.
        clip_norm: The norm to which the gradients are clipped afterwards; None for no clipping.
        fallback: Gives the rate of a step whose numbers are not finite, from the number of steps made before it.
        circuit_breaker: False, True, or a mapping with options of :class:`lr_env.mdp.CircuitBreaker`.
        compile: Whether a kernel measures the step, in one pass over gradients, weights and the optimizer's state: for float32 on a CPU
            under SGD (with momentum too), Adam and AdamW; everything else is measured as without. A perceptron, such as the pretrained ones,
            then decides in the same call, but for several ranks and with a circuit breaker. Sums are rounded otherwise than in the
            environment, and the gradient before is kept in bfloat16. Needs a C++ compiler, which takes some seconds once.

    Attributes:
        last_epoch: Steps made.
        returns: Steps that the circuit breaker has undone.
        observation: What the controller saw last, ``(1, F)``; None before the first step.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If ``compile`` is asked for and there is no C++ compiler.
        TypeError: If the optimizer or the controller is none, or the controller learns online.
        ValueError: If a number is out of range, a feature needs what the loop can't give, or no pretrained controller fits the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        controller: BoundController | str | os.PathLike[str],
        *,
        total_steps: int,
        initial_rate: float | None = None,
        loss_lower_bound: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
        clip_norm: float | None = None,
        fallback: Callable[[int], float] | None = None,
        circuit_breaker: bool | Mapping[str, Any] = False,
        compile: bool = False,  # noqa: A002  (torch's word)
    ) -> None:
        # The base class's constructor would make a step and patch the optimizer's.
        _check_optimizer(optimizer)
        if not math.isfinite(loss_lower_bound):
            raise ValueError(f"loss_lower_bound must be a finite number, but {loss_lower_bound!r} was given.")
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ValueError(f"clip_norm must be a finite number > 0, or None, but {clip_norm!r} was given.")
        self.optimizer = optimizer
        self.total_steps = positive_integer("total_steps", total_steps)
        self._bound = _find(controller, optimizer)
        self._scaler, self._fallback = scaler, fallback
        options = make_circuit_breaker(circuit_breaker)
        self._breaker = None if options is None else _Breaker(options, optimizer)
        self._is_grouped = self._bound.mdp.lr_groups != "global"
        own = self._initial_rates()
        self._ratios = [1.0 if self._is_grouped or max(own) == 0 else rate / max(own) for rate in own]
        self._loss_lower_bound, self._compiles = loss_lower_bound, compile
        self._begin(max(own) if initial_rate is None else float(initial_rate))
        _refuse_unknown(self._process, self.mdp)
        self._signals = _measuring(optimizer, self._process, self._is_grouped, clip_norm, compile)
        self._check_groups(self.mdp)
        if self._is_grouped and initial_rate is None:
            self._begin_at(own)
        self._check_actions()
        self._state: Any = None
        self._pending: list[Tensor] = []
        self._warned: list[str] = []
        self._steps_without_loss = 0
        self.returns = 0
        self.observation: np.ndarray | None = None
        _unshare_rates(optimizer)
        for group, rate in zip(optimizer.param_groups, own, strict=True):
            group.setdefault("initial_lr", rate)
        self.base_lrs = list(own)
        self.last_epoch = self._step_count = 0
        self._last_lr: list[float | Tensor] = []
        self._set_rates()

    @property
    def mdp(self) -> MDP:
        """The decision process, with the initial rate of this training."""
        return self._process.mdp

    def observe(self, loss: Tensor | float) -> None:
        """Takes in the loss of one micro-batch of a step; see gradient accumulation above.

        Raises:
            ValueError: If it is not one number.
        """
        _check_number(loss)
        self._pending.append(_detached(loss).clone())  # the caller may divide the loss in place

    def step(self, loss: Tensor | float | None = None) -> None:
        """Sets the rates of the coming ``optimizer.step()``; without a loss, and without any observed since the last call, does nothing.

        Args:
            loss: Of the minibatch at whose gradients the optimizer is about to step.

        Raises:
            ValueError: If it is not one number.
        """
        _check_number(loss)
        losses = self._pending if loss is None else [*self._pending, loss]
        if not losses:
            self._steps_without_loss += 1
            if self._steps_without_loss > 1:
                self._warn_once(
                    "ControllerLR.step() was called without a loss, again and again: the rate does not change. Call controller.step(loss) between "
                    "loss.backward() and optimizer.step(); where a framework calls step() itself, call controller.observe(loss) there."
                )
            return
        self._steps_without_loss, self._pending = 0, []
        if self.last_epoch >= self.total_steps:
            self._warn_once(f"ControllerLR has made its total_steps={self.total_steps} steps: the last rate stays. Give the number of all steps.")
            self._set([float(rate) for rate in self._last_lr])
            return
        if "momentum_decades" in self._record:
            self._see_momentum()
        if not self._decides_at_once(losses):
            if self._process.needs and not self._has_gradients():
                self._warn_once(
                    "ControllerLR.step() was called where no parameter has a gradient: call controller.step(loss) between loss.backward() and "
                    "optimizer.step(), before zero_grad()."
                )
            with full_precision(self._signals.device.type), torch.no_grad():
                self._measure_and_decide(losses)
        self.last_epoch += 1
        self._step_count += 1

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the groups at present."""
        return list(self._last_lr)

    def get_last_lr(self) -> list[float | Tensor]:
        """The rates of the groups that were set last."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, in plain data and tensors.

        Raises:
            TypeError: If the controller's own state is none of arrays of numbers.
        """
        return {
            "version": STATE_VERSION,
            "statistics": dict(self._process.sizes),
            "signals": sorted(self._process.needs),
            "last_epoch": self.last_epoch,
            "total_steps": self.total_steps,
            "_last_lr": list(self._last_lr),
            "initial_rate": self.mdp.initial_rate,
            "base_lrs": list(self.base_lrs),
            "ratios": list(self._ratios),
            "table": torch.from_numpy(self._table.copy()),
            "previous": {name: value.clone() for name, value in self._signals.previous.items()},
            "controller_state": None if self._state is None else _saved(self._state),
            "pending": [value.clone() for value in self._pending],
            "warned": list(self._warned),
            "returns": self.returns,
            "circuit_breaker": None if self._breaker is None else self._breaker.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken.

        Raises:
            ValueError: If it is another version's, or of another controller, number of steps or model.
        """
        if state_dict.get("version") != STATE_VERSION:
            raise ValueError(f"A state of ControllerLR of version {STATE_VERSION} is needed, but one of {state_dict.get('version')!r} was given.")
        for name, needed in {"statistics": dict(self._process.sizes), "signals": sorted(self._process.needs)}.items():
            if state_dict[name] != needed:
                raise ValueError(f"The state is one of another controller: its {name} are {state_dict[name]}, but {needed} are needed.")
        shapes = {"table": self._table.shape} | {name: value.shape for name, value in self._signals.previous.items()}
        given = {name: tuple(value.shape) for name, value in {"table": state_dict["table"], **state_dict["previous"]}.items()}
        if given != {name: tuple(shape) for name, shape in shapes.items()} or len(state_dict["ratios"]) != len(self._ratios):
            raise ValueError(
                f"The state does not fit: it holds {given}, but {shapes} are needed. Give the controller and model that it was saved with."
            )
        if state_dict["total_steps"] != self.total_steps:
            raise ValueError(
                f"The state is one of total_steps={state_dict['total_steps']}, but total_steps={self.total_steps} was given. What a controller "
                "decides depends on the length of the training: go on with the same number of steps (with Hugging Face: max_steps or epochs), or "
                "begin with a new ControllerLR and load model and optimizer alone."
            )
        self.last_epoch = self._step_count = int(state_dict["last_epoch"])
        if state_dict["initial_rate"] != self.mdp.initial_rate:  # the optimizer's own rate has moved on
            self._begin(float(state_dict["initial_rate"]))
        self.base_lrs = list(state_dict["base_lrs"])
        self._ratios = [float(ratio) for ratio in state_dict["ratios"]]
        self._table[:] = _array(state_dict["table"])
        for name, value in state_dict["previous"].items():
            self._signals.previous[name].copy_(value)
        arrays = state_dict["controller_state"]
        self._state = None if arrays is None else tuple(map(_array, arrays))
        self._pending = [value.clone() for value in state_dict["pending"]]
        self._warned = list(state_dict["warned"])
        self.returns = int(state_dict["returns"])
        if self._breaker is not None and state_dict["circuit_breaker"] is not None:
            self._breaker.load_state_dict(state_dict["circuit_breaker"])
        self._set(state_dict["_last_lr"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_record", "_recorded", "_at_once")}  # views into the table

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._look_at_table()

    def _initial_rates(self) -> list[float]:
        """The groups' rates; those that they began with where a training before, or the one that goes on, has moved them out of the range."""
        limits, rates = self._bound.mdp.rate_range(), [float(group["lr"]) for group in self.optimizer.param_groups]
        if all(limits.lowest <= rate <= limits.highest for rate in (rates if self._is_grouped else [max(rates)])):
            return rates
        return [float(group.get("initial_lr", rate)) for group, rate in zip(self.optimizer.param_groups, rates, strict=True)]

    def _begin(self, rate: float) -> None:
        """The decision process of a training that begins at this rate."""
        limits = self._bound.mdp.rate_range()
        if not limits.lowest <= rate <= limits.highest:
            raise ValueError(
                f"The training would begin at the rate {rate}, but initial_rate must be within the controller's range, [{limits.lowest}, "
                f"{limits.highest}]: change the optimizer's lr, or give initial_rate=."
            )
        mdp = replace(self._bound.mdp, initial_rate=rate, initial_rate_decades=0.0)
        self._process = mdp.begin(len(self._ratios) if self._is_grouped else 1, self.total_steps, self._loss_lower_bound)
        self._table = self._process.initial(1)
        self._look_at_table()

    def _look_at_table(self) -> None:
        self._record, self._recorded = self._process.record(self._table), Recorder(self._table, self._compiles)
        self._at_once: LoopDecision | Literal[False] | None = None

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for group in self.optimizer.param_groups for parameter in group["params"])

    def _see_momentum(self) -> None:
        """The optimizer's own, which others may change; under one rate, the first group's."""
        shares = [max(1 - momentum_of(group), TINY) for group in self.optimizer.param_groups]
        self._record["momentum_decades"][:] = -np.log10(shares if self._is_grouped else shares[:1])

    def _decides_at_once(self, losses: Sequence[Tensor | float]) -> bool:
        """Measures and decides in one call of C++, where everything can be: with nothing done, says that it can't."""
        if self._at_once is None:
            self._at_once = self._make_decision()
        if not self._at_once or _num_ranks() > 1:
            return False
        if self._scaler is not None:
            _unscale(self._scaler, self.optimizer)
        loss = losses[0] if len(losses) == 1 else torch.cat([_detached(each) for each in losses]).mean()
        if not self._signals.prepare(self._ratios):
            return False
        number = loss.item() if isinstance(loss, Tensor) else float(loss)
        self._warn_below_bound(number)
        outcome = self._at_once(number, self._state, self.last_epoch % self._process.mdp.steps_per_action == 0)
        self._signals.release()
        if outcome == Outcome.SIGNALS_NOT_FINITE:
            self._signals.keep(is_valid=False)
            self._fall_back()
            return True
        self.observation = self._at_once.observation.copy()
        if outcome == Outcome.ACTION_NOT_FINITE:
            self._fall_back_from_action()
        else:
            self._set_rates()
        return True

    def _make_decision(self) -> LoopDecision | Literal[False] | None:
        """What decides in one call; False where nothing can, None before the first step."""
        policy = self._bound.controller
        if self._signals.kernel is None or self._breaker is not None or not isinstance(policy, PolicyNetwork) or not can_decide(policy):
            return False
        if self._record["age"][0, 0] < 0:
            return None
        before, nothing = self._table.copy(), np.zeros((self._process.num_actions, 1))
        signals = np.ones((1 + len(self._signals.columns), self._process.num_groups, 1))
        with np.errstate(all="ignore"):
            self._recorded(self._observe_in, signals)
            self._recorded(self._act_in, nothing)
        self._table[:] = before
        observe, act = self._recorded.find(self._observe_in, signals), self._recorded.find(self._act_in, nothing)
        if observe is None or act is None or observe.kernel is None or act.kernel is None:
            return False
        return LoopDecision(self._signals, observe, act, self._process, policy)

    def _measure_and_decide(self, losses: Sequence[Tensor | float]) -> None:
        signals = self._measure([_detached(loss) for loss in losses])
        if self._breaker is not None and self._breaker.sees_jump(float(signals[0, 0, 0]) - self._process.lower_bound):
            self._go_back(self._breaker)
            return
        is_finite = bool(np.isfinite(signals).all())
        self._signals.keep(is_finite)
        if is_finite:
            self._warn_below_bound(float(signals[0, 0, 0]))
            self._decide(signals)
        else:
            self._fall_back()

    def _warn_below_bound(self, loss: float) -> None:
        if loss < self._loss_lower_bound:
            self._warn_once(
                f"A loss is below loss_lower_bound={self._loss_lower_bound:g}: the controller can't tell such losses apart. Give ControllerLR a "
                "loss_lower_bound that no loss can fall below."
            )

    def _measure(self, losses: Sequence[Tensor]) -> np.ndarray:
        """Signals ``(R, G, 1)``, of all ranks."""
        if self._scaler is not None:
            _unscale(self._scaler, self.optimizer)
        device = self._signals.device
        loss = losses[0] if len(losses) == 1 else torch.cat([value.to(device) for value in losses]).mean(0, keepdim=True)
        signals = self._signals(loss, self._ratios)
        if (num_ranks := _num_ranks()) > 1:
            signals = signals.to(device)  # NCCL knows no other
            torch.distributed.all_reduce(signals)
            signals /= num_ranks
        measured: np.ndarray = (signals if signals.is_cpu else signals.cpu()).numpy()
        return measured

    def _decide(self, signals: np.ndarray) -> None:
        """One step of the decision process, and the rates that it ends with."""
        process, age = self._process, self._record["age"]
        is_first = bool(age[0, 0] < 0)
        with np.errstate(all="ignore"):
            if is_first:
                process.observe(self._record, signals)
                self.observation = process.observation(self._table)
            else:
                self.observation = self._recorded(self._observe_in, signals)[0].copy()
            is_safe = self._breaker is not None and self._breaker.take(float(signals[0, 0, 0]) - process.lower_bound, self._table)
            action = None
            if self.last_epoch % self.mdp.steps_per_action == 0 or is_first:
                action, self._state = decide(self._bound.controller, self.observation, self._state, np.array([is_first]))
            if self._breaker is not None and is_safe:
                self._breaker.controller_state = self._state
            if action is not None:
                action = np.asarray(action)  # a tensor would warn
                if not np.isfinite(action).all():
                    self._fall_back_from_action()
                    return
                self._recorded(self._act_in, process.parse_actions(action, 1).T)
        self._set_rates()

    def _observe_in(self, table: Array, signals: Array) -> tuple[Array]:
        self._process.observe(self._process.record(table), signals, begins=False)
        return (self._process.observation(table),)

    def _act_in(self, table: Array, actions: Array) -> tuple[()]:
        self._process.act(self._process.record(table), actions, None)
        return ()

    def _go_back(self, breaker: _Breaker) -> None:
        """The safe state, at a lower rate."""
        record, age = self._record, self._record["age"] + 1
        breaker.restore(self._table)
        self._state = breaker.controller_state
        self.returns += 1
        rates, lowest = record["rates"], self._process.rates.lowest
        rates[:] = np.maximum(rates * 0.5**breaker.in_a_row, np.minimum(rates, lowest))
        with np.errstate(divide="ignore"):
            record["log_rate"][:] = np.log10(rates)
        record["age"][:], record["progress"][:] = age, age / self.total_steps
        self._signals(torch.zeros(1), self._ratios)
        self._signals.keep()  # for the next step this is the one before
        self._set_rates()

    def _fall_back(self) -> None:
        """A step that is not observed; time goes on."""
        age = self._record["age"]
        age[age >= 0] += 1
        self._set_fallback_rates()

    def _fall_back_from_action(self) -> None:
        self._warn_once("The controller gave an action that is not a finite number: the rate falls back. Look at its weights.")
        self._set_fallback_rates()

    def _set_fallback_rates(self) -> None:
        rate, action = math.nan if self._fallback is None else float(self._fallback(self.last_epoch)), self._process.action
        if math.isfinite(rate):
            self._set([rate * ratio for ratio in self._ratios])
            return
        if self._fallback is None and isinstance(action, ResidualAction) and action.base in BASE_SCHEDULES:
            self._recorded(self._act_in, np.zeros((self._process.num_actions, 1)))  # no correction
        self._set_rates()

    def _set_rates(self) -> None:
        """The process's rates, in all groups."""
        rates = self._record["rates"][0].tolist()  # (G,)
        self._set([rate * ratio for rate, ratio in zip(rates if self._is_grouped else rates * len(self._ratios), self._ratios, strict=True)])

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            set_rate(group, rate)
        self._last_lr = list(rates)

    def _begin_at(self, rates: list[float]) -> None:
        """Each group begins at its own rate."""
        lowest, highest = self._process.rates.lowest, self._process.rates.highest
        if not all(lowest <= rate <= highest for rate in rates):
            raise ValueError(f"The rates of the optimizer's groups must be within [{lowest}, {highest}], but they are {rates}.")
        action = self._process.action
        if isinstance(action, ResidualAction) and action.base != "sps" and action.rate is None and len(set(rates)) > 1:
            raise ValueError(
                f"The controller corrects one schedule for all groups, {action.base!r} from the initial rate, but its groups' rates "
                f"are {rates}: give all the same rate, or initial_rate."
            )
        self._record["log_rate"][:] = np.log10(rates)
        self._record["rates"][:] = rates

    def _check_groups(self, mdp: MDP) -> None:
        expected = None if isinstance(mdp.lr_groups, str) else len(mdp.lr_groups)
        found = len(self.optimizer.param_groups)
        if self._is_grouped and (expected not in (None, found) or self._signals.num_groups != found):
            needed = expected or "several"
            raise ValueError(
                f"The controller sets {needed} rates, one for each of the groups that it was trained with: the optimizer needs as many parameter "
                f"groups, each with parameters that require gradients, but has {found}."
            )

    def _check_actions(self) -> None:
        """Lets the controller decide once, for nothing, so that one that does not fit is found here, and one that can't be saved."""
        nothing = np.zeros((1, *self._process.observation_space.shape), np.float32)
        action, state = decide(self._bound.controller, nothing, None, np.array([True]))
        self._process.parse_actions(np.nan_to_num(np.asarray(action)), 1)
        if state is not None and not _can_be_saved(state):
            warnings.warn(f"{_UNSAVED} As it is, state_dict() raises.", UserWarning, stacklevel=3)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.append(message)
            warnings.warn(message, UserWarning, stacklevel=3)


class _Breaker:
    """The circuit breaker of a loop of one's own.

    Args:
        options: What is a jump.
        optimizer: Whose parameters, with their gradients, and state are kept.

    Attributes:
        in_a_row: Returns since the last step that was no jump.
        controller_state: The controller's own after its last decision in a safe state.
    """

    def __init__(self, options: CircuitBreaker, optimizer: torch.optim.Optimizer) -> None:
        self._options, self._optimizer = options, optimizer
        self.in_a_row = 0
        self.controller_state: Any = None
        self._level: np.ndarray | None = None  # (2, 1)
        self._table = np.zeros(0)
        self._safe: list[dict[str, Any]] = []

    def sees_jump(self, excess: float) -> bool:
        """Takes in ``ℓ − b`` where it is a jump, and says whether it is; a loss that is not finite always is, others not for ever."""
        if self._level is None or excess <= max(float(self._options.limits(self._level)[0]), 0.0):
            return False
        if self.in_a_row >= RETURNS_IN_A_ROW and math.isfinite(excess):
            self._level = None
            return False
        self._level = self._options.following(self._level, np.array([excess]))
        return True

    @torch.no_grad()
    def take(self, excess: float, table: np.ndarray) -> bool:
        """Takes in a step that is no jump, with the decision process's table; keeps the state if it is safe, and says whether it is."""
        self.in_a_row = 0
        is_safe = self._level is None or excess <= self._level[0, 0]
        self._level = np.array([[excess], [0.0]]) if self._level is None else self._options.following(self._level, np.array([excess]))
        if is_safe:
            self._table = table.copy()
            self._safe = [
                {"weights": parameter.clone(), "gradients": _cloned(parameter.grad), "state": _cloned(self._optimizer.state.get(parameter, {}))}
                for parameter in self._parameters()
            ]
        return bool(is_safe)

    @torch.no_grad()
    def restore(self, table: np.ndarray) -> None:
        """Puts the safe state and its table back, in place."""
        self.in_a_row += 1
        table[:] = self._table
        for parameter, safe in zip(self._parameters(), self._safe, strict=True):
            parameter.copy_(safe["weights"])
            parameter.grad = _cloned(safe["gradients"])
            self._optimizer.state[parameter] = _cloned(safe["state"])

    def state_dict(self) -> dict[str, Any]:
        """All of it in plain data and tensors."""
        safe = [_cloned(part) for part in self._safe]
        level = None if self._level is None else torch.from_numpy(self._level.copy())
        own = None if self.controller_state is None else _saved(self.controller_state)
        return {"level": level, "in_a_row": self.in_a_row, "table": torch.from_numpy(self._table.copy()), "safe": safe, "controller_state": own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._level, self.in_a_row = None if state_dict["level"] is None else _array(state_dict["level"]), state_dict["in_a_row"]
        self._table, own = _array(state_dict["table"]), state_dict["controller_state"]
        self.controller_state = None if own is None else tuple(map(_array, own))
        self._safe = [_cloned(part) for part in state_dict["safe"]]
        for parameter, safe in zip(self._parameters(), self._safe, strict=False):  # a file may have been loaded to another device
            present = self._optimizer.state.get(parameter, {})
            for name in ("weights", "gradients"):
                safe[name] = None if safe[name] is None else safe[name].to(parameter.device)
            for name, value in safe["state"].items():
                if isinstance(value, Tensor):
                    like = present.get(name, torch.empty(()) if name == "step" else parameter)
                    safe["state"][name] = value.to(like.device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]


def _check_number(loss: Tensor | float | None) -> None:
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"The loss must be one number, but a tensor of shape {tuple(loss.shape)} was given: take its mean.")


def _detached(loss: Tensor | float) -> Tensor:
    """A loss as a tensor ``(1,)``, of float32 where it is of half precision, of float64 where it is a number."""
    value = loss.detach().reshape(1) if isinstance(loss, Tensor) else torch.tensor([float(loss)], dtype=torch.float64)
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _num_ranks() -> int:
    """Processes that train together."""
    is_alone = _GROUP is None or _GROUP.WORLD is None  # what is_initialized() asks, in less time
    return 1 if is_alone else torch.distributed.get_world_size()


def _cloned(value: Any) -> Any:
    """A copy of plain data and tensors."""
    if isinstance(value, Mapping):
        return {name: _cloned(part) for name, part in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def _array(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor, wherever it was loaded to."""
    array: np.ndarray = tensor.cpu().numpy()
    return array.copy()


def _saved(state: Sequence[Any]) -> list[Tensor]:
    """A controller's own state as tensors."""
    if not _can_be_saved(state):
        raise TypeError(_UNSAVED)
    return [torch.from_numpy(np.array(part)) for part in state]


_UNSAVED = "The controller's state can't be saved, as it holds other things than numbers: let predict() return a tuple of arrays."


def _can_be_saved(state: Any) -> bool:
    try:
        return all(np.asarray(part).dtype.kind in "biuf" for part in state)
    except (TypeError, ValueError):  # no sequence, or a part that is no array
        return False


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Gives a parameter group its rate; a tensor is filled in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _unshare_rates(optimizer: torch.optim.Optimizer) -> None:
    """Gives each group a rate of its own where several have one tensor, that of the optimizer's defaults."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer)
        advice = " DeepSpeed's are refused: each holds a part of the gradient." if kind.__module__.startswith("deepspeed") else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, but {kind.__name__} was given.{advice}")


def _find(controller: BoundController | str | os.PathLike[str], optimizer: torch.optim.Optimizer) -> BoundController:
    if isinstance(controller, BoundController):
        if isinstance(controller.controller, OnlineController):
            name = type(controller.controller).__name__
            raise TypeError(f"ControllerLR can't teach a controller that learns online, but {name} was given: use agents.OnlineLR in its place.")
        return controller
    if not isinstance(controller, (str, os.PathLike)):
        raise TypeError(f"controller must be a file's path or a BoundController, but {type(controller).__name__} was given.")
    return load_pretrained(optimizer) if controller == PRETRAINED else load_controller(controller)


def _refuse_unknown(process: DecisionProcess, mdp: MDP) -> None:
    """Refuses features whose signals a loop can't give.

    Raises:
        ValueError: If there are any, or the momentum is to be chosen.
    """
    if refused := _features_that_need(process, UNAVAILABLE):
        raise ValueError(
            f"ControllerLR can't compute the features {', '.join(refused)}: they need the gradients of single examples, validation data or the "
            "output layer, which a training loop does not show. Use a controller that was trained without them."
        )
    if mdp.control_momentum:
        raise ValueError("ControllerLR sets rates only, but this controller chooses the momentum too (control_momentum=True).")


def _features_that_need(process: DecisionProcess, signals: frozenset[str]) -> list[str]:
    """Names of features, and the action where it needs some of these signals."""
    found = []
    for feature in process.features:
        needs = Statistics(feature.needs, [*feature.plus, feature.minus], 1, 0.0, None).needs
        if needs & signals:
            found.append(repr(feature.name))
    return [*found, *(["the action's base rate"] if process.action.needs & signals else [])]


def _measuring(optimizer: torch.optim.Optimizer, process: DecisionProcess, is_grouped: bool, clip_norm: float | None, compiles: bool) -> LoopSignals:
    """The signals of this optimizer's training.

    Raises:
        ValueError: If its direction is needed, and neither known nor to be found by a step.
    """
    specification = process.mdp.optimizer
    unit_steps = callable(specification)
    try:
        signals = LoopSignals(optimizer, process.needs, is_grouped, unit_steps, clip_norm, compiles)
    except UnknownDirectionError as error:
        features = ", ".join(_features_that_need(process, frozenset(DIRECTION_SIGNALS)))
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        if needs_closure or any(group.get("maximize") for group in optimizer.param_groups):
            reason = "its step needs a closure" if needs_closure else "a controller lowers the loss"
            raise ValueError(f"ControllerLR can't compute {features} here: {error}, and {reason}. Use another optimizer.") from error
        warnings.warn(
            f"For {features} ControllerLR takes the step of a copy of the optimizer at rate 1, at each step: {error}. This costs the optimizer's own "
            "step and memory once more, and holds where its steps are proportional to the rate.",
            UserWarning,
            stacklevel=3,
        )
        signals = LoopSignals(optimizer, process.needs, is_grouped, True, clip_norm, compiles)
    if isinstance(signals.directions, Directions):
        ours, trained = type(signals.directions.rules[0]), type(make_optimizer(specification)[0])
        if not (issubclass(ours, trained) or issubclass(trained, ours)):
            warnings.warn(
                f"The controller was trained for {trained.__name__}, but steers {ours.__name__}: its range of rates may not fit.",
                UserWarning,
                stacklevel=3,
            )
    return signals


def _unscale(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
    """Unscales the gradients, unless that has been done in this step."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
