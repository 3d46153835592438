"""Rates of their own for parameter groups, and the momentum as a second action, against loops over ``torch.optim``'s parameter groups."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

from lr_env import BoundController, LearningRateVectorEnv, SharedGroupController, TaskFamily
from lr_env.mdp import FEATURES, MDP
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from lr_env.tasks.models import mlp
from lr_env.training import OPTIMIZERS, parameter_groups
from tests.reference import TORCH_OPTIMIZERS, Training, features, train
from tests.rollouts import Rollout, assert_same_bits, roll_out, tiny_task

NAMES = list(FEATURES)
MLP_NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
GROUPS = [["2.bias", "0.weight"], ["0.bias", "2.weight"]]
"""Neither contiguous nor in the model's order."""


def test_named_groupings() -> None:
    assert parameter_groups("global", MLP_NAMES) == (tuple(MLP_NAMES),)
    assert parameter_groups("layer", MLP_NAMES) == (("0.weight", "0.bias"), ("2.weight", "2.bias"))
    assert parameter_groups("tensor", MLP_NAMES) == (("0.weight",), ("0.bias",), ("2.weight",), ("2.bias",))
    assert parameter_groups(GROUPS, MLP_NAMES) == (("0.weight", "2.bias"), ("0.bias", "2.weight"))


@pytest.mark.parametrize(
    ("grouping", "error", "message"),
    [
        ("layers", ValueError, "Unknown lr_groups 'layers'. Did you mean 'layer'"),
        ([["0.weight"], []], ValueError, "at least one parameter name each"),
        (["0.weight"], TypeError, "lists of parameter names"),
        (3, TypeError, "lists of parameter names"),
        ([["0.weigth", "0.bias", "2.weight", "2.bias"]], ValueError, "Unknown parameter in lr_groups '0.weigth'. Did you mean '0.weight'"),
        ([["0.weight", "0.bias"], ["0.bias", "2.weight", "2.bias"]], ValueError, "'0.bias' stands in lr_groups more than once"),
        ([["0.weight"], ["2.weight"]], ValueError, r"leaves out 0\.bias, 2\.bias"),
    ],
)
def test_wrong_groupings_are_refused(grouping: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gym.make("LearningRate-v0", task=tiny_task(), lr_groups=grouping)


def naive(seed: int, optimizer: str, groups: Sequence[Sequence[str]], rates: np.ndarray, momenta: np.ndarray | None = None) -> list[float]:
    """Losses of a loop with ``torch.optim``'s parameter groups: rates ``(T, G)``, and momenta ``(T, G)`` where they are chosen."""
    task = tiny_task()
    batches = task.batches(seed)
    with preserved_global_generators():
        seed_global_generators(Streams(seed).weights)
        model = task.initialise().double()
    parameters = dict(model.named_parameters())
    stepper = TORCH_OPTIMIZERS[optimizer]([{"params": [parameters[name] for name in group]} for group in groups])
    losses = []
    for t in range(len(rates) + 1):
        inputs, targets = next(batches)
        stepper.zero_grad()
        loss = task.loss(model(inputs.double()), targets).mean()
        loss.backward()
        losses.append(loss.item())
        if t < len(rates):
            for g, group in enumerate(stepper.param_groups):
                group["lr"] = rates[t, g]
                if momenta is not None and "momentum" in group:
                    group["momentum"] = momenta[t, g]
                elif momenta is not None:
                    group["betas"] = (momenta[t, g], group["betas"][1])
            stepper.step()
    return losses


def drawn_rates(optimizer: str, num_steps: int, num_groups: int) -> np.ndarray:
    middle = MDP(optimizer).rate_range().initial
    return middle * 10 ** np.random.default_rng(0).uniform(-1, 0.5, (num_steps, num_groups))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("grouping", ["tensor", GROUPS])
def test_each_group_is_trained_at_its_own_rate(optimizer: str, grouping: Any) -> None:
    groups = parameter_groups(grouping, MLP_NAMES)
    rates = drawn_rates(optimizer, 40, len(groups))
    options: dict[str, Any] = {"task": tiny_task(horizon=50), "optimizer": optimizer, "action": "rate", "lr_groups": grouping, "dtype": "float64"}
    rollout = roll_out(gym.make("LearningRate-v0", **options), rates, seed=4)
    np.testing.assert_allclose(rollout.values("loss"), naive(4, optimizer, groups, rates), rtol=1e-8)
    np.testing.assert_array_equal(rollout.values("learning_rate")[1:], rates)
    together = roll_out(LearningRateVectorEnv(3, **options), np.tile(rates[:, None], (1, 3, 1)), seed=3)
    np.testing.assert_allclose(together.values("loss")[:, 1], rollout.values("loss"), rtol=1e-9)
    np.testing.assert_allclose(np.array(together.observations)[:, 1], np.array(rollout.observations), rtol=1e-5, atol=1e-5)


def of_group(history: Training, columns: np.ndarray) -> Training:
    """The history as if these weights were all there are."""
    chosen = copy.copy(history)
    chosen.gradients, chosen.weights = ([values[columns] for values in part] for part in (history.gradients, history.weights))
    chosen.example_gradients = [[gradient[columns] for gradient in gradients] for gradients in history.example_gradients]
    return chosen


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_features_of_groups_stand_one_after_the_other(optimizer: str) -> None:
    task, rates = tiny_task(), 0.01 * 10 ** np.random.default_rng(0).uniform(-0.5, 0.5, 20)
    env = gym.make(
        "LearningRate-v0",
        task=task,
        optimizer=optimizer,
        features=NAMES,
        action="rate",
        initial_rate=0.03,
        horizon=30,
        lr_groups=GROUPS,
        dtype="float64",
    )
    assert env.unwrapped.parameter_groups == parameter_groups(GROUPS, MLP_NAMES)
    assert env.observation_space.shape == (2 * len(NAMES),) and env.action_space.shape == (2,)
    observed = np.array(roll_out(env, np.tile(rates[:, None], (1, 2)), seed=4).observations)
    history = train(task, 4, list(rates), optimizer, looks_closer=True)
    sizes = [parameter.numel() for parameter in history.model.parameters()]
    for g, group in enumerate(GROUPS):
        columns = np.concatenate([np.full(size, name in group) for name, size in zip(MLP_NAMES, sizes, strict=True)])
        expected = features(task, of_group(history, columns), [0.03, *rates], optimizer, 30)
        for t, row in enumerate(expected):
            row["depth"] = float(g)
            block = observed[t, g * len(NAMES) : (g + 1) * len(NAMES)]
            np.testing.assert_allclose(block, [row[name] for name in NAMES], rtol=2e-5, atol=2e-6, err_msg=f"step {t}, group {g}")


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam", "adamw", "nadamw", "lion"])
@pytest.mark.parametrize("grouping", ["global", GROUPS])
def test_the_momentum_is_chosen_with_the_rate(optimizer: str, grouping: Any) -> None:
    groups = parameter_groups(grouping, MLP_NAMES)
    rates = drawn_rates(optimizer, 40, len(groups)) / 3
    momenta = np.random.default_rng(1).uniform(0.1, 0.95, rates.shape)
    options: dict[str, Any] = {"task": tiny_task(horizon=50), "optimizer": optimizer, "action": "rate", "lr_groups": grouping, "dtype": "float64"}
    actions = np.concatenate([rates, momenta], axis=1)
    rollout = roll_out(gym.make("LearningRate-v0", control_momentum=True, **options), actions, seed=4)
    np.testing.assert_allclose(rollout.values("loss"), naive(4, optimizer, groups, rates, momenta), rtol=1e-8)
    looped = LearningRateVectorEnv(2, control_momentum=True, gradients="looped", **options)
    together = roll_out(looped, np.tile(actions[:, None], (1, 2, 1)), seed=4)
    np.testing.assert_allclose(together.values("loss")[:, 0], rollout.values("loss"), rtol=1e-9)


def test_a_chosen_momentum_that_stays_is_the_optimizer_s_own() -> None:
    options: dict[str, Any] = {"task": tiny_task(horizon=30), "optimizer": "momentum", "features": ["scale_free", "momentum"], "dtype": "float64"}
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (30, 1))
    plain = roll_out(gym.make("LearningRate-v0", **options), actions)
    both = np.concatenate([actions, np.zeros_like(actions)], axis=1)  # 0 stands for a momentum of 0.9
    chosen = roll_out(gym.make("LearningRate-v0", control_momentum=True, **options), both)
    np.testing.assert_allclose(np.array(chosen.observations), np.array(plain.observations), atol=1e-6)
    env = gym.make("LearningRate-v0", control_momentum=True, **options)
    for action, momentum in ((-1.0, 0.0), (0.0, 0.9), (1.0, 0.99)):
        env.reset(seed=0)
        observation = env.step([0.0, action])[0]
        assert observation[-1] == pytest.approx(-np.log10(1 - momentum), abs=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="discrete action needs exactly one parameter group"):
        gym.make("LearningRate-v0", task=tiny_task(), lr_groups="layer", action="discrete")
    with pytest.raises(ValueError, match="control_momentum needs continuous actions"):
        gym.make("LearningRate-v0", task=tiny_task(), optimizer="momentum", control_momentum=True, action="discrete")
    with pytest.raises(ValueError, match="control_momentum needs an optimizer that has one"):
        gym.make("LearningRate-v0", task=tiny_task(), control_momentum=True)
    depths = iter((1, 2))
    family = TaskFamily("depths", lambda generator: tiny_task(lambda: mlp(4, [8] * next_depth, 3)) if (next_depth := next(depths)) else tiny_task())
    family = replace(family, num_variants=2)
    with pytest.raises(ValueError, match=r"lr_groups='layer' makes 2 or 3 parameter groups .* Use lr_groups='global'"):
        LearningRateVectorEnv(2, family, lr_groups="layer")


@pytest.mark.parametrize("options", [{"lr_groups": "layer"}, {"lr_groups": GROUPS, "optimizer": "adam", "control_momentum": True}])
def test_the_checker_passes_and_copies_go_on_alike(options: dict[str, Any]) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), **options)
    check_env(env.unwrapped, skip_render_check=True)
    vector_env = LearningRateVectorEnv(4, tiny_task(), **options)
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (8, 4, *vector_env.single_action_space.shape))
    roll_out(vector_env, actions[:4], seed=0)
    state = vector_env.get_state()
    rollouts = []
    for _ in range(2):
        vector_env.set_state(state)
        rollouts.append(Rollout())
        for action in actions[4:]:
            rollouts[-1].add(*vector_env.step(action))
    assert_same_bits(*rollouts)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_groups_and_momenta_agree() -> None:
    options: dict[str, Any] = {"task": tiny_task(), "optimizer": "adam", "lr_groups": "layer", "control_momentum": True, "dtype": "float64"}
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (8, 3, 4))
    eager, compiled = (roll_out(LearningRateVectorEnv(3, compile=compiles, **options), actions) for compiles in (False, True))
    np.testing.assert_allclose(eager.values("loss"), compiled.values("loss"), rtol=1e-9)
    np.testing.assert_allclose(np.array(eager.observations), np.array(compiled.observations), rtol=1e-5, atol=1e-5)


class Doubling:
    """Twice the first feature of each observation; counts its calls in its state."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        assert episode_start is None or len(episode_start) == len(observation)
        counts = np.zeros(len(observation)) if state is None else state[0]
        return 2 * observation[:, :1], (counts + 1,)


def test_one_policy_for_all_groups() -> None:
    shared = SharedGroupController(Doubling(), num_groups=3)
    observations = np.arange(24, dtype=np.float32).reshape(2, 12)  # two members, three groups, four features
    actions, state = shared.predict(observations, None, np.array([True, False]), deterministic=True)
    np.testing.assert_array_equal(actions, [[0, 8, 16], [24, 32, 40]])
    assert state[0].shape == (6,)
    action, _ = shared.predict(observations[1], None)
    np.testing.assert_array_equal(action, [24, 32, 40])
    with pytest.raises(ValueError, match="12 features can't be divided among 5 parameter groups"):
        SharedGroupController(Doubling(), num_groups=5).predict(observations)
    env = LearningRateVectorEnv(2, tiny_task(), lr_groups="tensor", features=["log_rate", "depth"])
    observation, _ = env.reset(seed=0)
    actions, _ = SharedGroupController(Doubling(), num_groups=4).predict(observation)
    assert env.step(np.clip(actions, -1, 1))[0].shape == (2, 8)


def test_only_controllers_are_shared() -> None:
    with pytest.raises(TypeError, match=r"method predict is needed, but BoundController was given: pass its attribute `controller`\."):
        SharedGroupController(BoundController(Doubling(), MDP()), num_groups=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"method predict is needed, but int was given: see lr_env\.controllers\.Controller\."):
        SharedGroupController(3, num_groups=2)  # type: ignore[arg-type]


def test_shared_momenta_stand_behind_the_rates() -> None:
    class Both:
        def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
            return np.stack([observation[:, 0], -observation[:, 0]], axis=1), state

    actions, _ = SharedGroupController(Both(), num_groups=2).predict(np.array([[1.0, 0.0, 2.0, 0.0]]))
    np.testing.assert_array_equal(actions, [[1, 2, -1, -2]])


def test_a_model_without_layers_names_its_own_parameters() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ self.weight

    env = gym.make("LearningRate-v0", task=tiny_task(Bare), lr_groups="layer")
    assert env.unwrapped.parameter_groups == (("weight",),)
