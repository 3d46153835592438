"""The reward: reduction of the loss, as a difference of potentials ``Φ(w_t) − Φ(w_{t+1})``.

A difference of potentials telescopes: what a controller earns in a training is what it reduced, whatever the way. So neither an
early divergence, nor raising the loss first, nor sitting at a clip pays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lr_env.checks import number, options_of, positive_integer, unknown_name
from lr_env.mdp.arrays import Array, namespace

REWARDS = ("loss", "log_loss")
REWARD_SOURCES = ("next_batch", "same_batch", "reference", "validation", "final")

POTENTIAL_FLOOR = 1e-6
"""The potential's loss is not taken below this fraction of its first value."""


@dataclass(frozen=True)
class Reward:
    """What is rewarded.

    Attributes:
        kind: ``"loss"``: Φ = ℓ − b. ``"log_loss"``: Φ = log10(ℓ − b + loss_floor · ℓ₀), in decades.
        source: Where ℓ comes from. ``"next_batch"``: the minibatch loss, with the first and the last potential on the reference
            subset; free and noisy. ``"same_batch"``: ``ℓ(B_t; w_t) − ℓ(B_t; w_{t+1})``, Xu et al. 2017 as recalled; one more forward
            pass; **does not telescope**: fitting each minibatch in turn pays for ever without progress. ``"reference"``: a fixed
            subset of the training split. ``"validation"``: a fixed subset of the validation split. ``"final"``: the reference
            subset, paid once at the end.
        interval: SGD steps between evaluations of ``"reference"`` and ``"validation"``; the last step is always evaluated.
        loss_floor: Floor of the logarithm relative to ℓ₀, ≥ 0; keeps the noise of small losses from drowning the rest.
        divergence: A training has diverged where its loss is not finite or ``ℓ − b > divergence · (ℓ₀ − b)``; > 1.
        subset_size: Examples of the reference and validation subsets; None for four minibatches.
    """

    kind: str = "log_loss"
    source: str = "next_batch"
    interval: int = 1
    loss_floor: float = 0.0
    divergence: float = 20.0
    subset_size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in REWARDS:
            raise unknown_name("reward", self.kind, REWARDS)
        if self.source not in REWARD_SOURCES:
            raise unknown_name("reward_on", self.source, REWARD_SOURCES)
        positive_integer("The reward's interval", self.interval)
        if self.subset_size is not None:
            positive_integer("The reward's subset_size", self.subset_size)
        if not 0 <= number("The reward's loss_floor", self.loss_floor) < math.inf:
            raise ValueError(f"The reward's loss_floor must be a finite number >= 0, but {self.loss_floor!r} was given.")
        if self.loss_floor and self.kind == "loss":
            raise ValueError(f"The reward 'loss' has no loss_floor, but {self.loss_floor!r} was given: leave it out, or use 'log_loss'.")
        if not 1 < number("The reward's divergence", self.divergence) < math.inf:
            raise ValueError(f"The reward's divergence must be a finite number > 1, but {self.divergence!r} was given.")

    def potential(self, excess: Array, first_excess: Array) -> Array:
        """Φ of losses above their bound, ``ℓ − b``; infinite and undefined ones count as the worst potential there is.

        Args:
            excess: ``ℓ − b``.
            first_excess: ``ℓ₀ − b`` > 0, of the same shape.
        """
        # fmin takes the bound where the loss is not a number.
        library = namespace(excess)
        bounded = library.maximum(library.fmin(excess, self.divergence * first_excess), POTENTIAL_FLOOR * first_excess)
        if self.kind == "loss":
            return bounded
        return library.log10(bounded + self.loss_floor * first_excess if self.loss_floor else bounded)

    def has_diverged(self, excess: Array, first_excess: Array) -> Array:
        """Booleans, of the same shape."""
        # Written so that a loss that is not a number counts as diverged.
        return ~(excess <= self.divergence * first_excess)


def make_reward(specification: str | Mapping[str, Any], reward_on: str) -> Reward:
    """The reward of a kind's name, or of ``{"kind": "log_loss", "loss_floor": 0.01}`` with options.

    Raises:
        TypeError: If it is neither, or an option is no number.
        ValueError: If a name is unknown or an option is out of range.
    """
    options = options_of("reward", specification)
    valid = [name for name in Reward.__dataclass_fields__ if name != "source"]
    for option in options:
        if option not in valid:
            raise unknown_name("option of the reward", option, valid)
    return Reward(source=reward_on, **options)


@dataclass(frozen=True)
class CircuitBreaker:
    """Undoes what a rate has spoilt (as SOLAR, 2026): where the loss jumps, the training goes back to its last safe state and pays a penalty.

    With x = ℓ − b, its average E and its mean absolute deviation D, ``x > max(threshold · E, E + deviations · D)`` is a jump; a state is safe
    where ``x ≤ E``. E and D are moving averages over all steps, of x and of |x − E|, where of a jump the limit itself is taken: were jumps left
    out, a few low losses would make all that follow jumps. (Of a loss that is not finite, E is taken.) D is ours: without it, as SOLAR has it,
    the noise of small minibatches counts as jumps.
    Weights, buffers, the optimizer's averages, the gradient at hand and the rate in force become those of the safe state; the data go on,
    the steps count, in Adam's bias correction too, and the reward is the change of the potential less the penalty. With it no training
    ends by divergence.

    Attributes:
        threshold: > 1.
        penalty: ≥ 0, in the reward's units.
        time_constant: Of the averages, SGD steps, ≥ 1.
        deviations: ≥ 0; 0 leaves D out.
    """

    threshold: float = 1.5
    penalty: float = 1.0
    time_constant: float = 10.0
    deviations: float = 5.0

    def __post_init__(self) -> None:
        bounds = ("threshold", math.nextafter(1, 2), "> 1"), ("penalty", 0, ">= 0"), ("time_constant", 1, ">= 1"), ("deviations", 0, ">= 0")
        for name, lowest, allowed in bounds:
            if not lowest <= number(f"The circuit breaker's {name}", getattr(self, name)) < math.inf:
                raise ValueError(f"The circuit breaker's {name} must be a finite number {allowed}, but {getattr(self, name)!r} was given.")

    def limits(self, level: np.ndarray) -> np.ndarray:
        """What is a jump beyond, ``(N,)``, by E and D ``(2, N)``."""
        average, deviation = level
        limits: np.ndarray = np.maximum(self.threshold * average, average + self.deviations * deviation)
        return limits

    def following(self, level: np.ndarray, excess: np.ndarray) -> np.ndarray:
        """E and D ``(2, N)`` after a step with ``ℓ − b`` of ``(N,)``."""
        taken = np.where(np.isfinite(excess), np.minimum(excess, self.limits(level)), level[0])
        following: np.ndarray = level + (np.stack([taken, abs(taken - level[0])]) - level) / self.time_constant
        return following


def make_circuit_breaker(specification: bool | Mapping[str, Any]) -> CircuitBreaker | None:
    """The circuit breaker of True, or of ``{"threshold": 2.0}`` with options; None of False.

    Raises:
        TypeError: If it is none of these.
        ValueError: If an option is unknown or out of range.
    """
    if isinstance(specification, bool):
        return CircuitBreaker() if specification else None
    if not isinstance(specification, Mapping):
        raise TypeError(f"circuit_breaker must be True, False or a mapping of options, but {specification!r} was given.")
    for option in specification:
        if option not in CircuitBreaker.__dataclass_fields__:
            raise unknown_name("option of the circuit breaker", option, CircuitBreaker.__dataclass_fields__)
    return CircuitBreaker(**specification)
