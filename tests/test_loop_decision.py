"""ControllerLR(compile=True) with a perceptron: a step in one call of C++ is the step that Python makes of the same parts."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lr_env import MDP, BoundController, ControllerLR, PolicyNetwork, loop_decision
from lr_env.loop_decision import LoopDecision
from lr_env.pretrained import load_pretrained
from tests.test_scheduler import Constant

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

NUM_STEPS = 30


def make_bound(output: str = "tanh", activation: str = "relu", averages: bool = False, num_groups: int = 1, **options: Any) -> BoundController:
    """A perceptron whose actions depend on what it observes."""
    actions = {"kind": "discrete"} if output == "argmax" else {"kind": "relative", "max_change": 0.1}
    mdp = MDP(**{"optimizer": "momentum", "action": actions, "lr_groups": "layer" if num_groups > 1 else "global"} | options)
    process = mdp.begin(num_groups, NUM_STEPS, 0.0)
    assert process.observation_space.shape is not None
    num_actions = int(process.action_space.n) if output == "argmax" else num_groups  # type: ignore[attr-defined]
    policy = PolicyNetwork(process.observation_space.shape[0], num_actions, (16, 5), 1, activation, output, averages)  # type: ignore[arg-type]
    with torch.no_grad():
        policy.layers[-1].weight.mul_(300)
    return BoundController(policy, mdp)


class Training:
    """A small one under a controller, decided in one call or, where this is turned off, by Python."""

    def __init__(
        self, bound: BoundController, at_once: bool = True, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, **options: Any
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(0, 0.5, generator=generator)
        self.inputs, self.targets = torch.randn(NUM_STEPS, 16, 4, generator=generator), torch.randint(3, (NUM_STEPS, 16), generator=generator)
        groups: Any = self.model.parameters()
        if bound.mdp.lr_groups != "global":
            groups = [{"params": self.model[0].parameters()}, {"params": self.model[2].parameters()}]
        self.optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9) if optimizer is None else optimizer(groups)
        self.controller = ControllerLR(self.optimizer, bound, total_steps=NUM_STEPS, compile=True, **options)
        self.at_once, self.step_number = at_once, 0

    def step(self, spoil: Callable[[nn.Module], None] = lambda _: None) -> tuple[float, ...]:
        """The rates of one more step."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs[self.step_number]), self.targets[self.step_number])
        loss.backward()
        spoil(self.model)
        if not self.at_once:
            self.controller._at_once = False
        self.controller.step(loss)
        if all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in self.model.parameters()):
            self.optimizer.step()
        self.step_number += 1
        return tuple(float(group["lr"]) for group in self.optimizer.param_groups)


def assert_same(bound: BoundController, spoil: Callable[[int], Callable[[nn.Module], None]] = lambda _: lambda _: None, **options: Any) -> Training:
    """Both ways take the same steps, but for rounding; returns the training that was decided in one call."""
    whole, parts = Training(bound, **options), Training(bound, at_once=False, **options)
    rates = []
    for number in range(NUM_STEPS):
        found, expected = whole.step(spoil(number)), parts.step(spoil(number))
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=f"step {number}")
        np.testing.assert_allclose(whole.controller.observation, parts.controller.observation, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
        rates.append(found)
    assert isinstance(whole.controller._at_once, LoopDecision)
    assert len(set(rates)) > 1, "the controller does something"
    return whole


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("output", loop_decision.OUTPUTS)
def test_as_in_python(output: str, activation: str, averages: bool) -> None:
    assert_same(make_bound(output, activation, averages))


@pytest.mark.parametrize("features", ["scale_free", "absolute", "solar2026", ["scale_free", "relative_loss_deviation", "log_base_rate"]])
@pytest.mark.parametrize("action", [{"kind": "residual", "base": "cosine", "decades": 2.0}, "rate"], ids=["residual", "rate"])
def test_any_process_as_in_python(features: Any, action: Any) -> None:
    assert_same(make_bound(features=features, action=action, steps_per_action=3))


def test_several_groups() -> None:
    assert_same(make_bound(num_groups=2))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_pretrained_ones(name: str) -> None:
    make = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
    bound = load_pretrained(make([nn.Parameter(torch.ones(1))], 0.1))
    assert_same(bound, optimizer=lambda groups: make(groups, 0.1))


def test_numbers_that_are_not_finite_fall_back() -> None:
    def spoil(number: int) -> Callable[[nn.Module], None]:
        def change(model: nn.Module) -> None:
            if number in (7, 8, 20):
                next(model.parameters()).grad[0, 0] = math.nan  # type: ignore[index]

        return change

    whole = assert_same(make_bound(averages=True), spoil, fallback=lambda step: 0.001 * step)
    assert whole.controller.last_epoch == NUM_STEPS


def test_an_action_that_is_not_finite_falls_back() -> None:
    bound = make_bound()
    training = Training(bound, fallback=lambda step: 0.001 * step)
    for _ in range(5):
        training.step()
    with torch.no_grad():
        bound.controller.layers[-1].bias.fill_(math.nan)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="not a finite number"):
        assert training.step() == (0.005,)
    assert isinstance(training.controller._at_once, LoopDecision)


def test_a_loss_below_its_bound_is_warned_of() -> None:
    training = Training(make_bound())
    for _ in range(3):
        training.step()
    with pytest.warns(UserWarning, match="A loss is below loss_lower_bound=0"):
        training.controller.step(-1.0)
    assert isinstance(training.controller._at_once, LoopDecision)


def test_a_step_that_the_kernel_can_t_read_is_python_s() -> None:
    def spoil(number: int) -> Callable[[nn.Module], None]:
        def change(model: nn.Module) -> None:
            if number in (3, 9):
                model[0].bias.grad = None  # type: ignore[index]

        return change

    assert_same(make_bound(averages=True), spoil)


def test_accumulated_losses_and_numbers() -> None:
    rates = []
    for at_once in (True, False):
        training = Training(make_bound(), at_once)
        for number in range(6):
            if number % 2:
                training.controller.observe(torch.tensor(2.0))
                training.controller.observe(torch.tensor(1.0, dtype=torch.float16))
            training.step()
        training.at_once or setattr(training.controller, "_at_once", False)
        training.controller.step(0.75)
        rates.append(training.controller.get_last_lr())
        with pytest.raises(ValueError, match="one number"):
            training.controller.step(torch.ones(2))
    np.testing.assert_allclose(*rates, rtol=1e-4)


@pytest.mark.parametrize("averages", [False, True])
def test_a_resumed_training_and_a_copy_have_the_bits_of_one_that_went_on(averages: bool) -> None:
    whole, part, resumed = (Training(make_bound(averages=averages)) for _ in range(3))
    rates = [whole.step() for _ in range(20)]
    for _ in range(8):
        part.step()
    for name in ("model", "optimizer", "controller"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(part, name).state_dict()))
    resumed.step_number = part.step_number
    copied = copy.deepcopy(part)
    for training in (resumed, copied, part):
        assert [training.step() for _ in range(12)] == rates[8:]
        np.testing.assert_array_equal(training.controller.observation, whole.controller.observation)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_that_were_put_in_the_place_of_others_count(dtype: torch.dtype) -> None:
    rates = []
    for at_once in (True, False):
        bound = make_bound()
        training, policy = Training(bound, at_once), bound.controller
        assert isinstance(policy, PolicyNetwork)
        for _ in range(5):
            training.step()
        other: dict[str, Tensor] = {name: -value.to(dtype) for name, value in policy.state_dict().items()}
        policy.load_state_dict(other, assign=True)
        rates.append([training.step() for _ in range(5)])
    np.testing.assert_allclose(*rates, rtol=1e-4)


def test_what_has_no_such_call_is_done_by_python() -> None:
    for options in ({"circuit_breaker": True}, {"bound": BoundController(Constant(), make_bound().mdp)}):
        training = Training(**({"bound": make_bound()} | options))  # type: ignore[arg-type]
        for _ in range(3):
            training.step()
        assert training.controller._at_once is False
