"""Optimizers that are made by a function, against a loop with the very same optimizer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from agents import DDPG, DDPGConfig
from lr_env import MDP, LearningRateVectorEnv
from lr_env.episodes import Episodes
from lr_env.training import OPTIMIZERS, parameter_groups
from tests import reference
from tests.rollouts import Rollout, assert_same_bits, roll_out, tiny_task
from tests.test_parameter_groups import GROUPS, MLP_NAMES, naive

FACTORIES: dict[str, Any] = {
    "radam": lambda parameters: torch.optim.RAdam(parameters),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, lr=1.0),
    "rprop": lambda parameters: torch.optim.Rprop(parameters),  # its step is not proportional to its rate
    "capturable": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(1e-3, dtype=torch.float64), weight_decay=0.1),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("grouping", ["global", GROUPS])
def test_steps_are_the_optimizer_s_own(name: str, grouping: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = parameter_groups(grouping, MLP_NAMES)
    rates = 0.01 * 10 ** np.random.default_rng(0).uniform(-1, 0.5, (30, len(groups)))
    monkeypatch.setitem(reference.TORCH_OPTIMIZERS, name, FACTORIES[name])
    options: dict[str, Any] = {"task": tiny_task(horizon=12), "optimizer": FACTORIES[name], "action": "rate", "lr_groups": grouping}
    single = roll_out(gym.make("LearningRate-v0", dtype="float64", **options), rates, seed=4)
    np.testing.assert_allclose(single.values("loss"), naive(4, name, groups, rates)[:13], rtol=1e-9)
    together = roll_out(LearningRateVectorEnv(3, dtype="float64", **options), np.tile(rates[:, None], (1, 3, 1)), seed=3)
    np.testing.assert_allclose(together.values("loss")[:13, 1], single.values("loss"), rtol=1e-9)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_features_are_those_of_the_same_optimizer_by_name(name: str) -> None:
    assert name in OPTIMIZERS
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (10, 1))
    options: dict[str, Any] = {"task": tiny_task(horizon=10), "features": ["scale_free", "alignment", "predictive_change"], "dtype": "float64"}
    rates = {"lr_min": 1e-5, "lr_max": 1.0, "initial_rate": 1e-2}
    rollouts = [
        roll_out(gym.make("LearningRate-v0", optimizer=optimizer, **options, **rates), actions)
        for optimizer in (name, reference.TORCH_OPTIMIZERS[name])
    ]
    np.testing.assert_allclose(*[np.array(rollout.observations) for rollout in rollouts], rtol=1e-5, atol=1e-6)


class Damped(torch.optim.SGD):
    """With an attribute of its own, which PyTorch does not copy."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.damping = 0.5

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(self.damping)
        super().step()


def test_an_optimizer_with_attributes_of_its_own() -> None:
    options: dict[str, Any] = {"task": tiny_task(horizon=5), "features": ["scale_free"], "action": "rate"}
    damped = roll_out(gym.make("LearningRate-v0", optimizer=Damped, **options), np.full((5, 1), 0.2))
    plain = roll_out(gym.make("LearningRate-v0", optimizer="sgd", **options), np.full((5, 1), 0.1))
    np.testing.assert_allclose(damped.values("loss"), plain.values("loss"), rtol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_keeps_its_attributes(copied: Any) -> None:
    env = LearningRateVectorEnv(2, "digits-logreg", horizon=5, optimizer=Damped, action="rate")
    env.reset(seed=0)
    twin, rate = copied(env), np.full((2, 1), 0.2)
    for _ in range(2):
        np.testing.assert_array_equal(env.step(rate)[4]["loss"], twin.step(rate)[4]["loss"])


class Noisy(torch.optim.SGD):
    """Langevin dynamics, in short."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.add_(torch.randn_like(parameter), alpha=0.1)
        super().step()


def test_an_optimizer_that_draws_has_generators_of_its_own() -> None:
    def make(num_envs: int) -> LearningRateVectorEnv:
        features = ["scale_free", "log_loss"]
        return LearningRateVectorEnv(num_envs, tiny_task(horizon=6), optimizer=lambda given: Noisy(given, lr=0.1), features=features, action="rate")

    before = torch.get_rng_state()
    rates = np.full((8, 2, 1), 0.3)
    pair = [roll_out(make(2), rates, seed=3) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert_same_bits(*pair)
    alone = roll_out(make(1), rates[:, :1], seed=4)
    np.testing.assert_allclose(alone.values("loss")[:, 0], pair[0].values("loss")[:, 1], rtol=1e-5)
    assert (pair[0].values("loss")[1:6, 0] != roll_out(make(2), rates, seed=5).values("loss")[1:6, 0]).all()
    env, other = make(2), make(2)
    env.reset(seed=0)
    env.step(rates[0])
    other.set_state(env.get_state())
    np.testing.assert_array_equal(env.step(rates[0])[4]["loss"], other.step(rates[0])[4]["loss"])


def test_checkpoints_keep_the_optimizers_states(tmp_path: Path) -> None:
    def make() -> LearningRateVectorEnv:
        return LearningRateVectorEnv(2, "digits-logreg", horizon=30, optimizer=torch.optim.Adam, autoreset_mode="SameStep")

    agent = DDPG(make(), DDPGConfig(hidden=(8,)), seed=0)
    agent.learn(20)
    agent.save_checkpoint(tmp_path / "agent")
    resumed = DDPG.resume(tmp_path / "agent", make())
    zeros = np.zeros((2, 1))
    for _ in range(3):
        np.testing.assert_array_equal(*[each.environment.step(zeros)[4]["loss"] for each in (agent, resumed)])


def test_the_momentum_that_is_observed_is_the_optimizer_s() -> None:
    def momentum(optimizer: Any) -> float:
        return float(gym.make("LearningRate-v0", task=tiny_task(), optimizer=optimizer, features=["momentum"]).reset(seed=0)[0][0])

    assert momentum(lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9)) == momentum("momentum") == pytest.approx(1)
    assert momentum(torch.optim.AdamW) == momentum("adamw")
    assert momentum(torch.optim.Adagrad) == 0


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_branches_and_automatic_resets(mode: str) -> None:
    def make() -> LearningRateVectorEnv:
        return LearningRateVectorEnv(2, tiny_task(horizon=6), optimizer=FACTORIES["radam"], autoreset_mode=mode)

    actions = np.random.default_rng(0).uniform(-1, 1, (15, 2, 1))
    env, other = make(), make()
    roll_out(env, actions[:8], seed=0)
    other.reset(seed=9)
    other.set_state(env.get_state())
    rollouts = [Rollout(), Rollout()]
    for action in actions[8:]:
        rollouts[0].add(*env.step(action))
        rollouts[1].add(*other.step(action))
    assert_same_bits(*rollouts)


class OnlyForwards(torch.optim.SGD):
    """Refuses a rate of 0, as some do by accident; counts its steps."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["lr"] > 0
        self.steps += 1
        return super().step(closure)


def test_the_optimizers_of_those_who_rest_make_no_step() -> None:
    made: list[OnlyForwards] = []

    def make(parameters: Any) -> OnlyForwards:
        made.append(OnlyForwards(parameters, lr=0.1))
        return made[-1]

    episodes = Episodes(tiny_task(), 2, MDP(make, features="daniel2016"))
    episodes.restart(np.arange(2), [0, 1])
    episodes.begin(np.arange(2))
    own = made[-2:]
    for members in ([0], [1], [1], [0, 1]):
        before = episodes.population.parameters.clone()
        episodes.step(np.zeros((2, 1)), np.array(members))
        changed = (episodes.population.parameters != before).any(1)
        assert changed.tolist() == [member in members for member in range(2)]
    assert [optimizer.steps for optimizer in own] == [2, 3]


def test_the_checker_passes_and_the_range_surrounds_the_optimizer_s_own_rate() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), optimizer=FACTORIES["radam"])
    check_env(env.unwrapped, skip_render_check=True)
    assert MDP(FACTORIES["radam"]).rate_range() == MDP("adam", lr_min=1e-7, lr_max=1.0).rate_range()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "runs in a loop on the CPU: leave compile and device out"),
        ({"gradients": "batched"}, 'use gradients="auto" or "looped"'),
        ({"circuit_breaker": True}, "circuit breaker can't put back an optimizer that is made by a function"),
        ({"control_momentum": True}, "control_momentum needs an optimizer that has one"),
        ({"optimizer": torch.optim.LBFGS}, "The optimizer factory does not work: .* needs no closure"),
        ({"optimizer": lambda parameters: 3}, "The optimizer factory does not work"),
        ({"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}, "a torch.optim.Optimizer with a rate lr > 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("LearningRate-v0", task=tiny_task(), **{"optimizer": FACTORIES["radam"], **options})


def test_a_function_can_t_be_saved() -> None:
    with pytest.raises(TypeError, match=r"whose optimizer is a function can't be saved.*use a name"):
        MDP(FACTORIES["radam"]).to_dict()
