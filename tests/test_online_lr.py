"""The online actor-critic in a user's loop: the environment's rates, and a training that goes on where it was saved."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents import ONLINE_ENVIRONMENT, ActorCriticConfig, OnlineActorCritic, OnlineLR
from agents.actor_critic import OnlineLearner
from lr_env import make_task
from lr_env.mdp.actions import RateRange

EAGER = ActorCriticConfig(actor_starts=0)


class Loop:
    """A user's training, which a file can keep."""

    def __init__(
        self, make_optimizer: Callable[[Tensor, Tensor], torch.optim.Optimizer], config: ActorCriticConfig, with_closure: bool, seed: int = 0
    ):
        self.task = make_task("digits-logreg")
        self.model, self.with_closure = self.task.initial_model(4), with_closure
        self.optimizer = make_optimizer(*self.model.parameters())
        self.online = OnlineLR(self.optimizer, config, seed)

    def run(self, first: int, last: int) -> list[float]:
        batches, rates = self.task.batches(4), []
        for step in range(last):
            inputs, targets = next(batches)
            if step < first:
                continue

            def loss_of(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
                return torch.nn.functional.cross_entropy(self.model(inputs), targets)

            self.optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            rates.append(self.online.step(loss, loss_of if self.with_closure else None))
        return rates

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self._parts().items()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        states = torch.load(io.BytesIO(saved), weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(states[name])

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "online": self.online}


def sgd(weight: Tensor, bias: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD([weight, bias], lr=0.1)


def adamw_of_two_groups(weight: Tensor, bias: Tensor) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [weight], "lr": 0.01}, {"params": [bias], "lr": torch.tensor(0.02)}], foreach=False)


def test_a_loop_with_closure_equals_the_environment() -> None:
    def rates(with_closure: bool) -> list[float]:
        loop = Loop(sgd, EAGER, with_closure)
        loop.online.learner = OnlineLearner(1, RateRange(1e-4, 1e2, 0.1), EAGER, np.random.SeedSequence([0, 4]))
        return loop.run(0, 12)

    environment = gym.make_vec("LearningRate-v0", num_envs=1, task="digits-logreg", horizon=12, **ONLINE_ENVIRONMENT)
    expected = OnlineActorCritic(EAGER).run(environment, [4]).rates[:, 0]
    np.testing.assert_allclose(rates(with_closure=True), expected, rtol=1e-4)
    assert rates(with_closure=False)[0] == rates(with_closure=True)[0]
    assert rates(with_closure=False)[1:] != rates(with_closure=True)[1:]


def test_a_loop_survives_a_loss_that_is_not_finite_and_keeps_ratios() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    other = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.1}, {"params": [other], "lr": torch.tensor(0.05)}])
    online = OnlineLR(optimizer, EAGER)
    first = online.step(1.0)
    assert float(optimizer.param_groups[1]["lr"]) == pytest.approx(first / 2)
    assert isinstance(optimizer.param_groups[1]["lr"], Tensor)
    assert online.step(math.nan) == first
    assert online.step(0.9) != first
    assert online.learner.num_updates == 0  # neither step has two finite losses
    online.step(0.8)
    assert online.learner.num_updates == 1


@pytest.mark.parametrize("with_closure", [True, False])
@pytest.mark.parametrize("truncation", [1, 3])
def test_a_loop_goes_on_where_it_was_saved(with_closure: bool, truncation: int) -> None:
    config = replace(EAGER, truncation=truncation)
    whole = Loop(adamw_of_two_groups, config, with_closure, 0)
    expected = whole.run(0, 20)
    half = Loop(adamw_of_two_groups, config, with_closure, 0)
    assert half.run(0, 9) == expected[:9]
    saved = half.save()
    resumed = Loop(adamw_of_two_groups, config, with_closure, 1)  # nothing of its own is left
    resumed.load(saved)
    assert resumed.run(9, 20) == expected[9:]
    assert resumed.save() == whole.save()
    assert [float(group["lr"]) for group in resumed.optimizer.param_groups] == pytest.approx([expected[-1], 2 * expected[-1]])


def test_a_loop_goes_back_to_its_beginning() -> None:
    loop = Loop(adamw_of_two_groups, EAGER, with_closure=True)
    beginning = loop.save()
    rates = loop.run(0, 9)
    loop.load(beginning)
    assert loop.run(0, 9) == rates


def test_a_state_keeps_the_range_of_rates() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    state = OnlineLR(optimizer, lr_min=0.05, lr_max=0.2).state_dict()
    optimizer.param_groups[0]["lr"] = 3.0
    other = OnlineLR(optimizer)
    other.load_state_dict(state)
    assert 0.05 <= other.step(1.0) <= 0.2


def test_refuses_states_that_do_not_fit() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    state = OnlineLR(optimizer).state_dict()
    with pytest.raises(ValueError, match="version 1 is needed, but one of None"):
        OnlineLR(optimizer).load_state_dict({})
    with pytest.raises(ValueError, match=r"discount=0\.9.* was given|discount=0\.5"):
        OnlineLR(optimizer, ActorCriticConfig(discount=0.5)).load_state_dict(state)
    two = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)], lr=0.1)
    with pytest.raises(ValueError, match="one of 1 parameter groups, but the optimizer has 2"):
        OnlineLR(two).load_state_dict(state)
