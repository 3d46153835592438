"""Any optimizer of ``torch.optim``'s kind, one object for each training, for a population in a loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lr_env.seeding import drawing_from, preserved_global_generators
from lr_env.training.draws import Generators
from lr_env.training.gradients import ParameterLayout

Factory: TypeAlias = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""Makes an optimizer of parameters, or of their groups, as ``lambda parameters: torch.optim.RAdam(parameters)`` does.

If it has the methods ``train()`` and ``eval()``, as schedule-free ones do (Defazio et al. 2024), it trains after the one, and what is evaluated
are the weights that the other puts in place. Running statistics of the model, as of batch normalisation, remain those of training.
"""

DECADES_BELOW, DECADES_ABOVE = 4, 3
"""Of the default range of the rate, around the optimizer's own default."""


class TorchOptimizer:
    """The specification of an optimizer by a factory.

    Its steps are the optimizer's own, at the rates that are chosen. The direction ``u`` that features see is the step that a copy of it
    would make at rate 1: for an optimizer whose step is not proportional to its rate, it is that step and no more.

    Args:
        factory: See :data:`Factory`.

    Attributes:
        default_rate: The optimizer's own ``lr``.
        momentum: Its momentum, or its first β; 0 where it has none.
        draws: Whether its steps draw from PyTorch's global generator, as Langevin dynamics do; each training's draws are then its own.

    Raises:
        ValueError: If the factory makes no optimizer, or one that can't be used: without ``lr`` in its groups, or whose step needs a closure.
    """

    has_momentum = False

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        weight = torch.zeros(2, requires_grad=True)
        weight.grad = torch.ones(2)
        try:
            with preserved_global_generators():
                before = torch.get_rng_state()
                optimizer = _in_training(factory([{"params": [weight]}]))
                optimizer.step()
                self.draws = not torch.equal(before, torch.get_rng_state())
                copied_optimizer(optimizer, {}).step()  # as features need it
        except Exception as error:
            raise ValueError(
                f"The optimizer factory does not work: {type(error).__name__}: {error}. It must make an optimizer of parameter groups, "
                "as `lambda parameters: torch.optim.RAdam(parameters)` does, whose step() needs no closure."
            ) from error
        if not isinstance(optimizer, torch.optim.Optimizer) or not float(optimizer.param_groups[0].get("lr", 0)) > 0:
            raise ValueError(f"An optimizer factory must make a torch.optim.Optimizer with a rate lr > 0, but it made {optimizer!r}.")
        self.default_rate = float(optimizer.param_groups[0]["lr"])
        self.momentum = momentum_of(optimizer.param_groups[0])

    def initial_state(self, parameters: Tensor) -> dict[str, Tensor]:
        """Nothing: each training's optimizer holds its own."""
        return {}


class MemberOptimizers:
    """The optimizers of N trainings.

    Args:
        optimizer: How they are made.
        layout: Where each parameter lies.
        groups: The names of the parameters of each group, ``(G,)``.
        parameters: The weights, ``(N, P)``.

    Attributes:
        resting: Members whose optimizers make no step.
    """

    def __init__(self, optimizer: TorchOptimizer, layout: ParameterLayout, groups: Sequence[Sequence[str]], parameters: Tensor) -> None:
        self._optimizer, self._layout, self._groups = optimizer, layout, groups
        self._members = [self._make(row) for row in parameters]
        self.resting: frozenset[int] = frozenset()

    def restart(self, members: np.ndarray, parameters: Tensor) -> None:
        """Gives members ``(K,)`` new optimizers of their weights in ``parameters (N, P)``."""
        for member in members.tolist():
            self._members[member] = self._make(parameters[member])

    def apply(self, parameters: Tensor, gradients: Tensor, rates: Tensor, steps: Tensor, generators: Generators) -> Tensor:
        """The weights ``(N, P)`` after a step at rates ``(N, G)`` of all members that have made one, by ``steps (N, 1)``, but the resting.

        Steps that draw advance the members' own generators ``(N,)``.
        """
        result = parameters.clone()
        for i, member in enumerate(self._members):
            if int(steps[i, 0]) > 0 and i not in self.resting:
                with self._drawing_from(generators, i):
                    result[i] = self._step(member, parameters[i], gradients[i], rates[i].tolist())
        return result

    def directions(self, parameters: Tensor, gradients: Tensor, generators: Generators) -> Tensor:
        """What a step at rate 1 would subtract, ``(N, P)``, 0 for the resting; the optimizers and their generators stay as they are."""
        ones, result = [1.0] * len(self._groups), parameters.clone()
        for i, member in enumerate(self._members):
            if i not in self.resting:
                known: dict[int, Any] = {}
                weights, twin = copy.deepcopy(member[0], known), copied_optimizer(member[1], known)
                with self._drawing_from(generators, i, advances=False):
                    result[i] = self._step((weights, twin), parameters[i], gradients[i], ones)
        return parameters - result

    def evaluated(self, parameters: Tensor) -> Tensor:
        """The weights to evaluate in place of ``parameters (N, P)``; the optimizers stay as they are."""
        result = parameters.clone()
        for i, (weights, optimizer) in enumerate(self._members):
            if hasattr(optimizer, "eval") and hasattr(optimizer, "train"):
                self._write(weights, parameters[i])
                optimizer.eval()
                result[i] = self._layout.flatten(weights).detach()
                optimizer.train()
        return result

    def get_state(self, members: np.ndarray) -> list[dict[str, Any]]:
        """The state of members ``(K,)``."""
        return [copy.deepcopy(self._members[member][1].state_dict()) for member in members.tolist()]

    def set_state(self, states: Sequence[dict[str, Any]], members: np.ndarray) -> None:
        """Restores what :meth:`get_state` returned into members ``(K,)``."""
        for member, state in zip(members.tolist(), states, strict=True):
            self._members[member][1].load_state_dict(copy.deepcopy(state))

    def _make(self, row: Tensor) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        weights = {name: view.clone().requires_grad_() for name, view in self._layout.views(row).items()}
        with preserved_global_generators() if self._optimizer.draws else nullcontext():
            return weights, _in_training(self._optimizer.factory([{"params": [weights[name] for name in group]} for group in self._groups]))

    def _drawing_from(self, generators: Generators, member: int, advances: bool = True) -> AbstractContextManager[None]:
        return drawing_from(generators[member], advances) if self._optimizer.draws else nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"own_attributes": [_own_attributes(optimizer) for _, optimizer in self._members]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own_attributes = state.pop("own_attributes")
        self.__dict__.update(state)
        for (_, optimizer), attributes in zip(self._members, own_attributes, strict=True):
            vars(optimizer).update(attributes)

    def _step(self, member: tuple[dict[str, Tensor], torch.optim.Optimizer], row: Tensor, gradient: Tensor, rates: Sequence[float]) -> Tensor:
        weights, optimizer = member
        self._write(weights, row)
        for name, view in self._layout.views(gradient).items():
            weights[name].grad = view.clone()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            # A tensor of its own: that of the optimizer's defaults may be shared by all groups.
            group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
        optimizer.step()
        return self._layout.flatten(weights).detach()

    def _write(self, weights: dict[str, Tensor], row: Tensor) -> None:
        with torch.no_grad():
            for name, view in self._layout.views(row).items():
                weights[name].copy_(view)


def copied_optimizer(optimizer: Any, known: dict[int, Any]) -> Any:
    """A deep copy, with its parameters' in ``known``."""
    twin = copy.deepcopy(optimizer, known)
    vars(twin).update(copy.deepcopy(_own_attributes(optimizer), known))
    return twin


def momentum_of(group: Mapping[str, Any]) -> float:
    """The momentum of a parameter group of ``torch.optim``, or its first β; 0 where it has none."""
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def _own_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Those that a class adds, of which ``Optimizer.__getstate__`` keeps none."""
    kept = vars(copy.copy(optimizer))
    return {name: value for name, value in vars(optimizer).items() if name not in kept and name != "step"}  # schedulers put that there


def _in_training(optimizer: Any) -> Any:
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer
