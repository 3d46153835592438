"""How trainings are computed: compiled, with several threads, on a GPU; what they are must not depend on it."""

from __future__ import annotations

import shutil
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from lr_env import LearningRateVectorEnv
from tests.rollouts import RUINOUS_RATE, Rollout, assert_same_bits, roll_out, tiny_task

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {"task": "digits-mlp-scaled"},
    "residual": {"action": "residual", "optimizer": "adam", "reward_on": "same_batch", "horizon": 7},
    "quadratic": {"task": "noisy-quadratic", "steps_per_action": 3, "reward_on": "reference"},
}


def roll(num_envs: int, steps: int = 100, **options: Any) -> Rollout:
    """A hundred steps at rates below the stability limit, in float64 where rounding is to stay small."""
    options = {"task": tiny_task(), "dtype": "float64", "initial_rate": 0.01, **options}
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (steps, num_envs, 1))
    return roll_out(LearningRateVectorEnv(num_envs, **options), actions, seed=5)


def assert_close(first: Rollout, second: Rollout, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(np.array(first.rewards), np.array(second.rewards), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(first.values("loss"), second.values("loss"), rtol=tolerance)
    np.testing.assert_allclose(np.array(first.observations), np.array(second.observations), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.array(first.terminated), np.array(second.terminated))


@needs_compiler
@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_and_eager_agree_and_repeat_themselves(name: str) -> None:
    options = {"initial_rate": None, **OPTIONS[name]} if name == "residual" else OPTIONS[name]
    eager, compiled = roll(3, **options), roll(3, compile=True, **options)
    assert_close(eager, compiled)
    assert_same_bits(compiled, roll(3, compile=True, **options))


@needs_compiler
def test_compiled_float32_and_single() -> None:
    eager, compiled = (roll(4, dtype="float32", task="digits-mlp", compile=compiles) for compiles in (False, True))
    np.testing.assert_allclose(eager.values("loss"), compiled.values("loss"), rtol=1e-4)
    alone = [roll_out(gym.make("LearningRate-v0", task=tiny_task(), dtype="float64", compile=compiles), [[0.1]] * 8) for compiles in (False, True)]
    assert_close(*alone)


@needs_compiler
def test_a_compiled_member_that_diverges_leaves_its_neighbours_bits() -> None:
    tame = np.full((6, 3, 1), 0.05)
    wild = tame.copy()
    wild[2, 1] = RUINOUS_RATE
    env = LearningRateVectorEnv(3, tiny_task(), action="rate", compile=True)
    rollouts = [roll_out(env, actions, seed=0) for actions in (tame, wild)]
    assert rollouts[1].terminated[2].tolist() == [False, True, False]
    np.testing.assert_array_equal(*[np.array(rollout.rewards)[:, [0, 2]] for rollout in rollouts])
    np.testing.assert_array_equal(*[np.array(rollout.observations)[:, [0, 2]] for rollout in rollouts])


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr_env.training.tracing.shutil.which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"compile=True needs a C\+\+ compiler, but none was found. Install one"):
        LearningRateVectorEnv(2, tiny_task(), compile=True)


MODES: dict[str, dict[str, Any]] = {
    "batched": {"gradients": "batched"},
    "looped": {"gradients": "looped"},
    "two threads": {"num_threads": 2},
    "compiled": {"compile": True},
    "compiled, two threads": {"compile": True, "num_threads": 2},
    "compiled, looped": {"compile": True, "gradients": "looped"},
}


@needs_compiler
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_the_default_and_repeats_itself(mode: str) -> None:
    before, options = torch.get_num_threads(), {"task": "digits-mlp", "horizon": 60}  # so that some have ended
    default, first, again = (roll(4, **options, **given) for given in ({}, MODES[mode], MODES[mode]))
    assert torch.get_num_threads() == before
    assert_close(default, first)
    assert_same_bits(first, again)


def test_the_threads_of_a_failing_step_are_put_back() -> None:
    before = torch.get_num_threads()
    task = tiny_task(lambda: torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(4, 3)))
    env = LearningRateVectorEnv(2, task, gradients="batched", num_threads=before + 1)
    with pytest.raises(ValueError, match="does not work"):
        env.reset(seed=0)
    assert torch.get_num_threads() == before


def test_a_model_that_cannot_be_traced_runs_compiled_too() -> None:
    class Branches(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = super().forward(inputs)
            return outputs if float(outputs.detach().sum()) > 0 else 2 * outputs

    task = tiny_task(lambda: Branches(4, 3))
    assert_close(roll(2, 12, task=task), roll(2, 12, task=task, compile=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    with pytest.raises(RuntimeError, match='device="cuda" was given, but PyTorch finds no GPU; use device="auto" or "cpu"'):
        LearningRateVectorEnv(2, tiny_task(), device="cuda")
    assert_same_bits(roll(2, 5, device="auto"), roll(2, 5))


@pytest.mark.parametrize("task", ["digits-mlp", "digits-logreg", "breast-cancer-mlp", "noisy-quadratic", "digits-mlp-scaled"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_built_in_tasks_run_as_graphs(task: str, num_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("It runs without a graph.")

    monkeypatch.setattr("lr_env.training.tracing.plain", fail)
    monkeypatch.setattr("lr_env.training.population.plain", fail)
    env = LearningRateVectorEnv(num_envs, task)
    env.reset(seed=0)
    env.step(np.zeros((num_envs, 1)))


def test_a_reset_makes_no_new_graph() -> None:
    env = LearningRateVectorEnv(2, tiny_task())
    env.reset(seed=0)
    graph = env.episodes.population._take_step
    for _ in range(20):
        env.step(np.zeros((2, 1)))
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.episodes.population._take_step is graph and len(env.episodes.population._evaluation._graphs) == 1
