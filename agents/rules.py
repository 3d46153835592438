"""State-feedback rules as controllers: no learning, one constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lr_env.controllers import BoundController
from lr_env.mdp import MDP
from lr_env.mdp.features import CLIP


class StochasticPolyak:
    """The stochastic Polyak step size SPS_max: ``rate = min(c · (ℓ − b) / ⟨g, u⟩⁺, cap)``.

    After Loizou et al. 2021, with ``c`` as a factor and, for optimizers beyond SGD, ``⟨g, u⟩`` in place of ``‖g‖²``.

    Args:
        constant: c, > 0.
        cap: Highest rate, > 0.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, constant: float = 0.2, cap: float = 100.0) -> None:
        if not (0 < constant < float("inf") and 0 < cap < float("inf")):
            raise ValueError(f"constant and cap must be finite numbers > 0, but constant={constant!r} and cap={cap!r} were given.")
        self.constant, self.cap = constant, cap

    def bind(self, optimizer: str = "sgd") -> BoundController:
        """The rule with the decision process it needs: ``log η`` and ``log(η ⟨g, u⟩⁺ / (ℓ − b))`` hold the Polyak step size."""
        return BoundController(self, MDP(optimizer=optimizer, features=["log_rate", "predicted_decrease"], action="rate"))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, float64; see :class:`lr_env.controllers.Controller`."""
        observations = np.asarray(observation, np.float64)
        log_rate, log_decrease = observations[..., 0], observations[..., 1]
        # At its lower clip the direction does not descend, as momentum's may: the rate in force stays.
        log_polyak = np.where(log_decrease <= -CLIP, log_rate - math.log10(self.constant), log_rate - log_decrease)
        return np.minimum(self.constant * 10.0**log_polyak, self.cap)[..., None], state
