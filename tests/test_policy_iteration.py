"""Direct policy iteration: it finds the best action, recognises trainings that need another, and repeats itself bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents import DirectPolicyIteration, PolicyIterationConfig
from agents.policy_iteration import interpolated
from agents.train import Training
from agents.training_options import TrainingOptions
from lr_env import FileFormatError, LearningRateVectorEnv, Task, TaskFamily
from lr_env.controllers import Controller

ACTION = {"kind": "residual", "base": "constant", "rate": 0.05, "decades": 2.0}
CONFIG = PolicyIterationConfig(updates=300, batch_size=128, hidden=(16,), largest_gain=4.0)


def slope(curvature: float) -> Task:
    """Least squares in one weight: the loss is ``curvature · w²``, and the rate ``1 / (2 · curvature)`` solves it in one step."""
    inputs = torch.full((32, 1), curvature**0.5)
    model = lambda: nn.Linear(1, 1, bias=False)  # noqa: E731
    return Task.from_tensors(f"slope {curvature:g}", model, inputs, torch.zeros(32, 1), loss="mean_squared_error", batch_size=8, horizon=10)


def environment(task: Task | TaskFamily, num_envs: int, **options: Any) -> LearningRateVectorEnv:
    reward = {"kind": "log_loss", "loss_floor": 1e-4}
    return LearningRateVectorEnv(num_envs, task, **{"optimizer": "sgd", "action": ACTION, "reward": reward, "reward_on": "final"} | options)


def actions_at_the_end(controller: Controller, trainings: LearningRateVectorEnv) -> np.ndarray:
    """What a controller does at the last decision, ``(N,)``."""
    observations, _ = trainings.reset(seed=99)
    state, actions = None, np.zeros((trainings.num_envs, 1), np.float32)
    for _ in range(10):
        actions, state = controller.predict(observations, state, deterministic=True)
        observations, *_ = trainings.step(actions)
    return actions[:, 0]


def test_finds_the_best_action() -> None:
    """The rate that solves the task in one step is a decade above the schedule, which is half of two."""
    config = dataclasses.replace(CONFIG, actions=(-1, -0.5, 0, 0.25, 0.4, 0.5, 0.6, 0.7, 1), action_noise=0.02)
    agent = DirectPolicyIteration(environment(slope(1.0), 9 * 4), config).learn(1000)
    np.testing.assert_allclose(actions_at_the_end(agent.bind().controller, environment(slope(1.0), 4)), 0.5, atol=0.1)


def test_recognises_the_training() -> None:
    """Two tasks, whose best rates are a decade above and below the schedule; features do not name the task."""
    curvatures = 1.0, 100.0
    family = TaskFamily("slopes", lambda generator: slope(curvatures[int(generator.integers(2))]), num_variants=4, family_seed=1)
    drawn = np.array([curvatures.index(float(task.name.split()[1])) for task in family.variants])
    assert 0 < drawn.mean() < 1
    agent = DirectPolicyIteration(environment(family, 9 * 8), CONFIG).learn(2000)
    actions = actions_at_the_end(agent.bind().controller, environment(family, 4))
    assert (actions[drawn == 0] > 0.25).all()
    assert (actions[drawn == 1] < -0.25).all()


def test_gains_are_differences_of_returns() -> None:
    """Against the environment's own rewards, and observations, step by step."""
    config = dataclasses.replace(CONFIG, actions=(-0.5, 0, 0.5), moments=(0.0, 0.35), largest_gain=0.3)
    told: list[int] = []
    agent = DirectPolicyIteration(environment(slope(1.0), 6), config, seed=3, progress=told.append)
    agent.learn(1)
    assert told == list(range(6, 61, 6))
    assert (agent.num_rounds, agent.num_steps_taken) == (1, 60)
    seeds = [agent.environment.episodes.get_state(np.array([member]))["seeds"][0] for member in range(6)]
    assert seeds[:2] * 3 == seeds
    plain = environment(slope(1.0), 6)
    observations, _ = plain.reset(seed=seeds)
    held, returns, seen = np.repeat([[-0.5], [0.0], [0.5]], 2, axis=0).astype(np.float32), np.zeros(6), []
    for _ in range(10):
        seen.append(observations)
        observations, rewards, *_ = plain.step(held)
        returns += rewards
    inputs = np.concatenate([np.concatenate([seen[step], np.mean(seen[: step + 1], axis=0)], axis=1) for step in (1, 3)])
    np.testing.assert_allclose(agent._inputs[0], inputs, rtol=1e-6)
    gains = np.clip(returns.reshape(3, 2) - returns[2:4], -0.3, 0.3).T
    np.testing.assert_allclose(agent._gains[0], np.tile(gains, (6, 1)), rtol=1e-6)
    assert np.abs(gains).max() == pytest.approx(0.3)


def test_what_came_after_an_end_is_not_learnt() -> None:
    config = dataclasses.replace(CONFIG, actions=(0, 1), moments=(0.2, 0.8))
    steep = {**ACTION, "rate": 0.5}
    agent = DirectPolicyIteration(environment(slope(1.0), 2, action=steep), config).learn(1)
    assert agent.num_steps_taken < 20  # a rate of 50 ends it
    assert len(agent._inputs[0]) == len(agent._gains[0]) == 2 + (agent.num_steps_taken - 10 > 2)
    assert np.isfinite(agent._gains[0]).all()


def test_repeats_itself_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def make() -> DirectPolicyIteration:
        return DirectPolicyIteration(environment(slope(1.0), 18), CONFIG, 5)

    whole = make().learn(540)
    half = make().learn(180)
    half.bind()
    half.save_checkpoint(tmp_path / "checkpoint.safetensors")
    resumed = make()
    resumed.restore(tmp_path / "checkpoint.safetensors")
    resumed.learn(540)
    assert (resumed.num_rounds, resumed.num_steps_taken) == (whole.num_rounds, whole.num_steps_taken)
    assert half.num_rounds < whole.num_rounds
    networks = [agent.bind().controller for agent in (whole, resumed)]
    assert isinstance(networks[0], nn.Module) and isinstance(networks[1], nn.Module)
    for first, second in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert first.equal(second)
    with pytest.raises(FileFormatError, match="does not fit"):
        DirectPolicyIteration(environment(slope(1.0), 18), CONFIG, 6).restore(tmp_path / "checkpoint.safetensors")


def test_global_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    DirectPolicyIteration(environment(slope(1.0), 18), CONFIG).learn(180).bind()
    assert torch.get_rng_state().equal(before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_every_round_of_a_family_has_new_variants(tmp_path: Path) -> None:
    family = '{"data_sets": ["wine"], "width": [4, 8], "depth": [0, 1], "batch_size": [8, 16], "horizon": [4, 12], "num_variants": 2}'
    options = TrainingOptions(
        algorithm="dpi",
        family=family,
        num_variants=3,
        steps=250,
        output=tmp_path,
        evaluation_trainings=2,
        hyperparameters=("updates=5", "actions=[0, 1]"),
    )
    training = Training(options)
    assert training.environment.num_envs == 6
    agent, make = training.agent, training._make_environment
    assert isinstance(agent, DirectPolicyIteration)
    horizons = [training.environment.episodes.horizons.tolist()]

    def watched(*arguments: Any) -> LearningRateVectorEnv:
        made = make(*arguments)
        horizons.append(made.episodes.horizons.tolist())
        return made

    training._make_environment = watched  # type: ignore[method-assign]
    agent.learn(250)
    assert len(horizons) == agent.num_rounds > 2
    assert len({str(each) for each in horizons}) == len(horizons)


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=6, unique_by=lambda value: round(value, 2)),
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=5),
    st.integers(0, 9),
)
@settings(deadline=None)
def test_gains_are_interpolated(tried: list[float], chosen: list[float], seed: int) -> None:
    actions, gains = np.sort(tried), np.random.default_rng(seed).normal(size=(len(chosen), len(tried)))
    expected = [np.interp(action, actions, row) for action, row in zip(chosen, gains, strict=True)]
    actual = interpolated(torch.from_numpy(gains), torch.from_numpy(actions), torch.tensor(chosen, dtype=torch.float64))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "num_envs", "message"),
    [
        ({"action": "relative"}, 9, "must be absolute or residual"),
        ({"action": "discrete"}, 9, "must be absolute or residual"),
        ({"control_momentum": True, "optimizer": "momentum"}, 9, 'lr_groups="global"'),
        ({}, 10, "multiple of actions times variants, 9, but 10 was given"),
    ],
)
def test_unsuitable_environments(options: dict[str, Any], num_envs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectPolicyIteration(environment(slope(1.0), num_envs, **options))


@pytest.mark.parametrize(
    "change", [{"actions": (0.1, 0.2)}, {"actions": (0.5, 0)}, {"actions": (0, 2)}, {"moments": ()}, {"moments": (1.0,)}, {"updates": 0}]
)
def test_unsuitable_hyperparameters(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is out of range"):
        PolicyIterationConfig(**change)
