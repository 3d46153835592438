"""State-feedback rules as controllers: no learning, one constant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lr_env.checks import positive_integer
from lr_env.controllers import BoundController
from lr_env.episodes import Episodes
from lr_env.mdp import MDP
from lr_env.tasks.task import Data
from lr_env.training import TorchOptimizer, draw_subset

TINY = 1e-38

DECADES = 4.0
"""Range of the rule's constant either side of 1."""


class StochasticPolyak:
    """The stochastic Polyak step size SPS_max: ``rate = min(c · (ℓ − b) / ‖g‖², cap)`` (Loizou et al. 2021), with ``c`` as a factor.

    It is the base of the action ``residual``, which says what stands for ``‖g‖²`` with optimizers beyond SGD; the rule corrects it by c.

    Args:
        constant: c, in [1e-4, 1e4].
        cap: Highest rate, > 0; None for the highest of the optimizer's range.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, constant: float = 0.2, cap: float | None = None) -> None:
        if not 10**-DECADES <= constant <= 10**DECADES:
            raise ValueError(f"constant must be in [1e-4, 1e4], but {constant!r} was given.")
        self.constant, self.cap = constant, cap

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The rule with the decision process that computes it."""
        action = {"kind": "residual", "base": "sps", "constant": 1.0, "decades": DECADES}  # all constants share one decision process
        return BoundController(self, MDP(optimizer=optimizer, features=["log_loss"], action=action, lr_max=self.cap))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """The same correction ``(N, 1)`` always; see :class:`lr_env.controllers.Controller`."""
        return np.full((*np.shape(observation)[:-1], 1), math.log10(self.constant) / DECADES), state


class NormalisedGradient:
    """Steps of one length: ``rate = c / ‖u‖``, u being the optimizer's direction; for SGD, c / ‖g‖, with momentum as Cutkosky & Mehta 2020.

    Args:
        constant: c, > 0.

    Raises:
        ValueError: If the constant is out of range.
    """

    def __init__(self, constant: float = 0.1) -> None:
        self.constant = _positive("constant", constant)

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The rule with the decision process from whose features it computes ‖u‖."""
        return BoundController(self, MDP(optimizer=optimizer, features=["relative_update", "log_rate", "log_weight_norm"], action="rate"))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``; see :class:`lr_env.controllers.Controller`."""
        relative_update, log_rate, log_weight_norm = np.moveaxis(np.asarray(observation, np.float64), -1, 0)
        log_norm = relative_update - log_rate + log_weight_norm  # relative_update is log(rate · ‖u‖ / ‖w‖)
        return self.constant * 10.0 ** -log_norm[..., None], state


class AttachedRule:
    """What rules share that look at the trainings themselves, beyond an observation: they need to be attached to them before they decide.

    The ``constant`` of those that have one may be set to an array ``(N,)``: one for each training.

    Attributes:
        extra_forward_passes: Forward passes on a minibatch, or on as many examples, beyond those of the training itself, of each training
            since it was attached, ``(N,)``.
    """

    extra_forward_passes: np.ndarray

    def __init__(self) -> None:
        self._episodes: Episodes | None = None

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The rule with the decision process that takes its rates."""
        return BoundController(self, MDP(optimizer=optimizer, features=["log_loss"], action="rate"))

    def attach(self, episodes: Episodes) -> None:
        """Lets the rule look at these trainings, which it decides for from now on; it leaves them as they are.

        Raises:
            TypeError: If they are of several variants, or in other processes.
            ValueError: If their optimizer is made by a function, whose directions are not known beforehand.
        """
        name = type(self).__name__
        if not isinstance(episodes, Episodes):
            raise TypeError(
                f"{name} looks at the trainings of one variant in this process, but {type(episodes).__name__} was given: choose a variant."
            )
        if isinstance(episodes.population.optimizer, TorchOptimizer):
            raise ValueError(f"{name} needs an optimizer by name, but {episodes.mdp.optimizer!r} was given.")
        self._episodes, self.extra_forward_passes = episodes, np.zeros(episodes.num_members)

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, for the trainings that it is attached to; see :class:`lr_env.controllers.Controller`. The state begins with them.

        Raises:
            RuntimeError: If it is not attached.
        """
        if self._episodes is None:
            raise RuntimeError(f"{type(self).__name__} looks at the trainings themselves: call attach(episodes) first, as benchmarks.runner does.")
        first = np.full(self._episodes.num_members, self._first_rate(self._episodes))
        is_first = np.ones(len(first), bool) if state is None else np.zeros(len(first), bool) if episode_start is None else np.asarray(episode_start)
        rates = first if state is None else np.where(is_first, first, state[0])
        rates, *further = self._choose(self._episodes, rates, is_first, None if state is None else state[1:])
        return rates[:, None], (rates, *further)

    def _first_rate(self, episodes: Episodes) -> float:
        return episodes.process.rates.initial

    def _choose(self, episodes: Episodes, rates: np.ndarray, is_first: np.ndarray, further: Any) -> tuple[Any, ...]:
        """The next rates ``(N,)``, from those in force, and what else the state holds.

        Args:
            episodes: The trainings.
            rates: ``(N,)``; the first rate for those that begin.
            is_first: Who begins, ``(N,)``.
            further: What else the last state holds; None at the start.
        """
        raise NotImplementedError

    @contextmanager
    def _after_step(self, episodes: Episodes, rates: np.ndarray) -> Iterator[None]:
        """Inside, the weights are those that a step at rates ``(N,)`` would lead to."""
        population = episodes.population
        state, steps = population.state, torch.from_numpy(rates).to(population.device, population.dtype)[:, None]
        population.state = state | {"parameters": torch.addcmul(state["parameters"], state["directions"], steps, value=-1)}
        try:
            yield
        finally:
            population.state = state


class HypergradientDescent(AttachedRule):
    """Hypergradient descent (Baydin et al. 2018, arXiv 1703.04782): gradient descent on the rate, by ``h = ⟨g, u₋₁⟩``, its last step's merit.

    ``rate ← rate + c · h``, or multiplicative ``rate ← rate · (1 + c · h / (‖g‖ ‖u₋₁‖))`` (equation 8); u is the optimizer's direction, so that
    the rule is SGD-HD, with momentum SGDN-HD's form, with Adam Adam-HD. A rate is never below 0.

    Args:
        constant: c, > 0; β of the paper.
        is_multiplicative: Which of both.

    Raises:
        ValueError: If the constant is out of range.
    """

    def __init__(self, constant: float = 0.02, is_multiplicative: bool = True) -> None:
        super().__init__()
        self.constant, self.is_multiplicative = _positive("constant", constant), is_multiplicative

    def _choose(self, episodes: Episodes, rates: np.ndarray, is_first: np.ndarray, further: Any) -> tuple[Any, ...]:
        gradients, directions = episodes.population.gradients.double(), episodes.population.directions.double()
        if further is None:
            return rates, directions
        merits = torch.linalg.vecdot(gradients, further[0])
        if self.is_multiplicative:
            norms = torch.linalg.vector_norm(gradients, dim=1) * torch.linalg.vector_norm(further[0], dim=1)
            merits = merits / norms.clamp(min=TINY) * torch.from_numpy(rates).to(merits.device)
        changed = np.maximum(rates + self.constant * merits.cpu().numpy(), 0.0)
        return np.where(is_first | ~np.isfinite(changed), rates, changed), directions


class ArmijoLineSearch(AttachedRule):
    """Stochastic Armijo line search (Vaswani et al. 2019, arXiv 1905.09997, algorithm 1 with its second reset option).

    The rate is multiplied by ``growth`` over an epoch, then by ``shrink`` until ``ℓ(w − rate · u) ≤ ℓ(w) − c · rate · ⟨g, u⟩`` on the minibatch at
    hand, or until it is the lowest of the optimizer's range. Each trial is a forward pass. Where u does not descend, as momentum's may not,
    there is nothing to search for: the rate in force stays. A model with dropout draws other masks in trials.

    Args:
        constant: c, in (0, 1).
        shrink: In (0, 1).
        growth: Over an epoch, or over the horizon where there are no epochs; at least 1.
        highest: Highest rate, where the search begins; None for the highest of the optimizer's range.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, constant: float = 0.1, shrink: float = 0.9, growth: float = 2.0, highest: float | None = None) -> None:
        super().__init__()
        for name, value in (("constant", constant), ("shrink", shrink)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must be in (0, 1), but {value!r} was given.")
        if not 1 <= growth < math.inf:
            raise ValueError(f"growth must be finite and >= 1, but {growth!r} was given.")
        self.constant, self.shrink, self.growth, self.highest = constant, shrink, growth, highest

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The rule with the decision process that takes its rates."""
        return BoundController(self, MDP(optimizer=optimizer, features=["log_loss"], action="rate", lr_max=self.highest))

    def _first_rate(self, episodes: Episodes) -> float:
        return episodes.process.rates.highest

    def _choose(self, episodes: Episodes, rates: np.ndarray, is_first: np.ndarray, further: Any) -> tuple[Any, ...]:
        population, limits = episodes.population, episodes.process.rates
        slopes = torch.linalg.vecdot(population.gradients, population.directions).double().cpu().numpy()
        searching = slopes > 0
        grown = np.minimum(rates * self.growth ** (1 / self._epoch(episodes)), limits.highest)
        rates = np.where(searching & ~is_first, grown, rates)
        while searching.any():
            with self._after_step(episodes, rates):
                losses = population.losses_on(*population.batches.current())
            self.extra_forward_passes += searching
            searching &= ~(losses <= episodes.losses - self.constant * rates * slopes) & (rates > limits.lowest)
            rates = np.where(searching, np.maximum(rates * self.shrink, limits.lowest), rates)
        return (rates,)

    def _epoch(self, episodes: Episodes) -> int:
        """SGD steps."""
        family, task = episodes.family, episodes.population.task
        return family.num_examples // task.batch_size if isinstance(task.data, Data) else episodes.horizon


class GreedyBranching(AttachedRule):
    """The rate whose single step leads to the lowest loss over many training examples, among a few multiples of the rate in force.

    Knows more than a controller may, and looks one step ahead only: what a far-sighted controller must beat (Wu et al. 2018, arXiv 1803.02021).

    Args:
        factors: What the rate in force is multiplied by; > 0. The results are kept in the optimizer's range.
        num_examples: Fixed training examples, at most the whole split.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0), num_examples: int = 1024) -> None:
        super().__init__()
        self.factors = [_positive("a factor", factor) for factor in factors]
        self.num_examples = positive_integer("num_examples", num_examples)

    def _choose(self, episodes: Episodes, rates: np.ndarray, is_first: np.ndarray, further: Any) -> tuple[Any, ...]:
        limits, task = episodes.process.rates, episodes.population.task
        tried = np.clip(np.outer(self.factors, rates), limits.lowest, limits.highest)  # (K, N)
        losses = []
        for row in tried:
            with self._after_step(episodes, row):
                losses.append(episodes.evaluate("train", self.num_examples).losses)
        self.extra_forward_passes += len(tried) * len(draw_subset(task, "train", self.num_examples)) / task.batch_size
        best = np.where(np.isnan(losses), np.inf, losses).argmin(0)
        return (tried[best, np.arange(len(rates))],)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, but {value!r} was given.")
    return value
