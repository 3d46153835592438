"""State-feedback rules as controllers: no learning, one constant."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lr_env.controllers import BoundController
from lr_env.mdp import MDP

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
