"""What the pretrained controllers correct, alone: warm-up–stable–decay at their rate, the action 0."""

from typing import Any

import numpy as np

from lr_env import MDP, BoundController

RATES = {"momentum": 0.05, "adamw": 0.02}


class Zero:
    """No correction."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """See :class:`lr_env.controllers.Controller`."""
        return np.zeros((len(observation), 1), np.float32), state


def schedule(optimizer: str) -> BoundController:
    """The schedule of a track's pretrained controller."""
    action = {"kind": "residual", "base": "warmup_stable_decay", "rate": RATES[optimizer], "decades": 1.0}
    return BoundController(Zero(), MDP(optimizer=optimizer, features=["progress"], action=action))
