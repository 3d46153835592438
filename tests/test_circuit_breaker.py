"""The circuit breaker against a loop that keeps copies."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lr_env import LearningRateVectorEnv, Task
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators
from tests.reference import TORCH_OPTIMIZERS, mean_loss
from tests.rollouts import RUINOUS_RATE, assert_same_bits, roll_out, tiny_task

WHOLE = {"kind": "loss", "subset_size": 256}
RATES = np.where(np.arange(40) % 7 == 5, 30.0, 0.3)
"""Every seventh rate is ruinous."""


def naive(task: Task, seed: int, optimizer: str, rates: np.ndarray) -> dict[str, list[Any]]:
    """Losses of the state in force, who was rolled back, and the loss on the whole training split."""
    batches, history = task.batches(seed), {"loss": [], "rolled_back": [], "whole": []}
    with preserved_global_generators():
        seed_global_generators(Streams(seed).weights)
        model = task.initialise().double()
    stepper = TORCH_OPTIMIZERS[optimizer](model.parameters())
    average, deviation, safe, loss = 0.0, 0.0, None, 0.0
    for t, rate in enumerate([None, *rates]):
        if rate is not None:
            stepper.param_groups[0]["lr"] = rate
            stepper.step()
            for state in stepper.state.values():
                if "step" in state:
                    state["step"].fill_(t)  # the count goes on
        inputs, targets = next(batches)
        stepper.zero_grad()
        mean = task.loss(model(inputs.double()), targets).mean()
        mean.backward()
        loss = mean.item()
        limit = max(1.5 * average, average + 5 * deviation)
        jumped = rate is not None and not loss <= limit
        taken = min(loss, limit) if np.isfinite(loss) else average
        before, average = average, average + (taken - average) / 10
        deviation += (abs(taken - before) - deviation) / 10
        if rate is None:
            before, average, deviation = loss, loss, 0.0
        if jumped:
            model, stepper, loss = copy.deepcopy(safe)  # together, so that the optimizer steps the copied parameters
        else:
            if loss <= before:  # safe
                gradients = [parameter.grad.clone() for parameter in model.parameters()]
                safe = copy.deepcopy((model, stepper, loss))
                for parameter, gradient in zip(safe[0].parameters(), gradients, strict=True):
                    parameter.grad = gradient
        if jumped:  # deepcopy leaves gradients behind
            for parameter, kept in zip(model.parameters(), safe[0].parameters(), strict=True):
                parameter.grad = kept.grad.clone()
        history["loss"].append(loss)
        history["rolled_back"].append(jumped)
        data = task.data.split("train")
        history["whole"].append(mean_loss(task, model, data.inputs, data.targets))
    return history


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_steps_that_make_the_loss_jump_are_undone(optimizer: str) -> None:
    task, rates = tiny_task(horizon=60), RATES if optimizer == "sgd" else RATES / 10
    expected = naive(task, 3, optimizer, rates)
    assert 3 <= sum(expected["rolled_back"]) < 30
    env = gym.make(
        "LearningRate-v0", task=task, optimizer=optimizer, action="rate", dtype="float64", circuit_breaker=True, reward=WHOLE, reward_on="reference"
    )
    rollout = roll_out(env, rates[:, None], seed=3)
    np.testing.assert_allclose(rollout.values("loss"), expected["loss"], rtol=1e-9)
    assert rollout.values("rolled_back").tolist() == expected["rolled_back"]
    assert not rollout.values("diverged").any() and rollout.values("step").tolist() == list(range(41))
    rewards = -np.diff(expected["whole"]) - np.array(expected["rolled_back"][1:])
    np.testing.assert_allclose(rollout.rewards, rewards, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("last_rate", [0.3, 1e-9])
def test_the_noise_of_minibatches_is_no_jump(last_rate: float) -> None:
    env = LearningRateVectorEnv(4, "digits-mlp", horizon=300, action="rate", circuit_breaker=True, lr_min=1e-9)
    rollout = roll_out(env, np.repeat([0.3, last_rate], 150)[:, None, None].repeat(4, 1), seed=0)
    assert rollout.values("rolled_back").mean() < 0.02


def test_with_it_no_training_diverges_and_progress_goes_on() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(horizon=20), action="rate", circuit_breaker={"penalty": 0.25}, features=["progress", "log_rate"])
    rollout = roll_out(env, [[RUINOUS_RATE]] * 20, seed=0)
    assert rollout.terminated == [False] * 19 + [True] and not rollout.values("diverged").any()
    np.testing.assert_allclose(np.array(rollout.observations)[:, 0], np.arange(21) / 20, atol=1e-6)
    np.testing.assert_allclose(rollout.rewards[:-1], -0.25)
    assert (rollout.values("learning_rate") == 0.1).all()  # the rate in force is the safe state's


def test_no_training_diverges_where_jump_follows_jump() -> None:
    env = gym.make("LearningRate-v0", task="digits-mlp", horizon=40, action="rate", circuit_breaker=True)
    rollout = roll_out(env, [[100.0]] * 40, seed=0)
    assert rollout.terminated == [False] * 39 + [True] and not rollout.values("diverged").any()


def test_returns_are_told_where_another_member_ends() -> None:
    drawn = {"name": "several", "data_sets": ["digits"], "architectures": ["mlp"], "horizon": [4, 12], "num_variants": 3, "family_seed": 1}
    told = []
    for mode in ("NextStep", "SameStep"):
        env = LearningRateVectorEnv(3, drawn, action="rate", circuit_breaker=True, autoreset_mode=mode)
        env.reset(seed=0)
        ended = np.zeros(3, bool)
        while not ended.any():
            _, rewards, terminated, truncated, info = env.step(np.full((3, 1), 100.0))
            ended = terminated | truncated
        assert not ended.all()
        told.append(info["rolled_back"] & ~ended)
        assert (rewards[told[-1]] < -0.5).all()  # the penalty
    np.testing.assert_array_equal(*told)
    assert told[0].any()


def test_members_are_rolled_back_on_their_own() -> None:
    options: dict[str, Any] = {"task": tiny_task(horizon=30), "action": "rate", "circuit_breaker": True}
    wild = np.full((30, 3, 1), 0.2)
    wild[4, 1] = wild[5, 1] = RUINOUS_RATE
    rollouts = [roll_out(LearningRateVectorEnv(3, **options), actions, seed=0) for actions in (np.full((30, 3, 1), 0.2), wild)]
    assert rollouts[1].values("rolled_back")[5:7].tolist() == [[False, True, False]] * 2
    for name in ("loss", "rolled_back"):
        np.testing.assert_array_equal(*[rollout.values(name)[:, [0, 2]] for rollout in rollouts])
    single = roll_out(gym.make("LearningRate-v0", **options), wild[:, 1], seed=1)
    np.testing.assert_allclose(single.values("loss"), rollouts[1].values("loss")[:, 1], rtol=1e-4)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_branches_and_automatic_resets(mode: str) -> None:
    def make() -> LearningRateVectorEnv:
        return LearningRateVectorEnv(3, tiny_task(horizon=6), action="rate", circuit_breaker=True, autoreset_mode=mode, steps_per_action=2)

    rates = np.where(np.random.default_rng(0).random((20, 3, 1)) < 0.3, 100.0, 0.2)
    whole, env = roll_out(make(), rates, seed=0), make()
    first = roll_out(env, rates[:9], seed=0)
    other = make()  # without a reset
    other.set_state(env.get_state())
    for action in rates[9:]:
        first.add(*other.step(action))
    assert whole.values("rolled_back").any()
    np.testing.assert_array_equal(np.array(first.observations), np.array(whole.observations))
    np.testing.assert_array_equal(np.array(first.rewards), np.array(whole.rewards))


def test_the_checker_passes() -> None:
    check_env(gym.make("LearningRate-v0", task=tiny_task(), circuit_breaker=True).unwrapped, skip_render_check=True)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_it_does_the_same() -> None:
    options: dict[str, Any] = {"task": tiny_task(horizon=30), "action": "rate", "circuit_breaker": True, "dtype": "float64"}
    rates = np.where(np.random.default_rng(0).random((30, 2, 1)) < 0.2, 100.0, 0.2)
    eager, compiled = (roll_out(LearningRateVectorEnv(2, compile=compiles, **options), rates) for compiles in (False, True))
    assert eager.values("rolled_back").any()
    np.testing.assert_array_equal(eager.values("rolled_back"), compiled.values("rolled_back"))
    np.testing.assert_allclose(eager.values("loss"), compiled.values("loss"), rtol=1e-8)
    assert_same_bits(compiled, roll_out(LearningRateVectorEnv(2, compile=True, **options), rates))


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"threshold": 1.0}, "threshold must be a finite number > 1, but 1.0 was given"),
        ({"penalty": -1.0}, "penalty must be a finite number >= 0"),
        ({"time_constant": 0.5}, "time_constant must be a finite number >= 1"),
        ({"deviations": -1.0}, "deviations must be a finite number >= 0"),
        ({"treshold": 2.0}, "Unknown option of the circuit breaker 'treshold'. Did you mean 'threshold'"),
    ],
)
def test_wrong_options_are_refused(specification: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("LearningRate-v0", task=tiny_task(), circuit_breaker=specification)
    with pytest.raises(TypeError, match="circuit_breaker must be True, False or a mapping of options, but 3 was given"):
        gym.make("LearningRate-v0", task=tiny_task(), circuit_breaker=3)
    with pytest.raises(ValueError, match="use reward_on='next_batch'"):
        gym.make("LearningRate-v0", task=tiny_task(), circuit_breaker=True, reward_on="same_batch")
