"""The online actor-critic of :mod:`agents.actor_critic` in a user's own training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lr_env.mdp.actions import RateRange
from lr_env.mdp.features import CLIP
from lr_env.scheduler import set_rate
from lr_env.seeding import check_seed
from torch import Tensor

from agents.actor_critic import ActorCriticConfig, OnlineLearner

STATE_VERSION = 1


class OnlineLR:
    """The online actor-critic in a user's own training loop, in place of ``optimizer.step()``.

    ```python
    online = OnlineLR(optimizer)
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        online.step(loss, lambda: criterion(model(inputs), targets))
    ```

    The state is the loss, bounded to ±10. The algorithm's f(x_i; w_{t+1}) is what the closure returns after the step, as in
    ``torch.optim.LBFGS`` another pass on the same minibatch, here without gradients; a model with dropout draws, and one with batch
    normalisation counts the minibatch, once more. Without a closure the next minibatch's loss stands in, which is free and **a deviation
    from the algorithm**: the reward then has the noise of two minibatches. The agent learns from a step when the next one tells it
    the next minibatch's loss.

    Args:
        optimizer: Any with ``lr`` in its groups. The first group's present rate is the initial one; other groups keep their ratios to it.
        config: Choices.
        seed: Of networks and exploration.
        lr_min: Lowest rate of the first group; None for 1e-3 of the initial one.
        lr_max: Highest one; None for 1e3 of the initial one.

    Attributes:
        learner: Actor and critic.

    Raises:
        ValueError: If the initial rate is not within the range, or the range is none.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: ActorCriticConfig | None = None,
        seed: int = 0,
        lr_min: float | None = None,
        lr_max: float | None = None,
    ) -> None:
        self.optimizer = optimizer
        initial = float(optimizer.param_groups[0]["lr"])
        rates = RateRange(initial / 1e3 if lr_min is None else lr_min, initial * 1e3 if lr_max is None else lr_max, initial)
        self.learner = OnlineLearner(1, rates, config or ActorCriticConfig(), np.random.SeedSequence([check_seed(seed)]))
        self._ratios = [float(group["lr"]) / initial for group in optimizer.param_groups]
        self._before: float | None = None
        self._after: float | None = None

    def step(self, loss: Tensor | float, closure: Callable[[], Tensor | float] | None = None) -> float:
        """Learns from the last step, chooses the rate, and makes the optimizer's step.

        Args:
            loss: f(x_i; w_t), whose gradient has been taken.
            closure: Returns f(x_i; w_{t+1}) when it is called after the step.

        Returns:
            The first group's rate. Where the loss is not finite, the agent neither learns nor chooses, and the rate stays.
        """
        present = _number(loss)
        if self._before is not None:
            after = present if self._after is None else self._after
            self.learner.learn(self._before - after, _loss_state(after), _loss_state(present))
        self._before = self._after = None
        if math.isfinite(present):
            rate = self.learner.act(_loss_state(present))
            for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
                set_rate(group, rate * ratio)
            self._before = present
        self.optimizer.step()
        if closure is not None:
            with torch.no_grad():
                self._after = _number(closure())
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, in plain data and tensors, for ``torch.load(weights_only=True)``.

        The tensors of the networks are the agent's own, as those of a module's ``state_dict`` are.
        """
        actor = self.learner.actor
        return {
            "version": STATE_VERSION,
            "config": asdict(self.learner.config),
            "range": [actor.lowest, actor.highest],
            "ratios": list(self._ratios),
            "losses": [self._before, self._after],
            "learner": self.learner.get_state(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken, whatever rate the optimizer has now; its own state is loaded apart.

        Raises:
            ValueError: If it is another version's, or of another configuration or number of parameter groups.
        """
        if state_dict.get("version") != STATE_VERSION:
            raise ValueError(f"A state of OnlineLR of version {STATE_VERSION} is needed, but one of {state_dict.get('version')!r} was given.")
        if state_dict["config"] != asdict(self.learner.config):
            raise ValueError(f"The state is one of {ActorCriticConfig(**state_dict['config'])}, but {self.learner.config} was given.")
        if len(state_dict["ratios"]) != len(self._ratios):
            given, needed = len(state_dict["ratios"]), len(self._ratios)
            raise ValueError(f"The state is one of {given} parameter groups, but the optimizer has {needed}. Give it the groups it was saved with.")
        self.learner.actor.lowest, self.learner.actor.highest = state_dict["range"]
        self.learner.set_state(state_dict["learner"])
        self._ratios, (self._before, self._after) = list(state_dict["ratios"]), state_dict["losses"]


def _loss_state(loss: float) -> np.ndarray:
    return np.array([min(max(loss, -CLIP), CLIP)])


def _number(loss: Tensor | float) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
