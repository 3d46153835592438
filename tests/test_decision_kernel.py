"""Whole decisions in one call of C++ against the same ones step by step."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import numpy as np
import pytest

from lr_env import LearningRateVectorEnv
from lr_env.decision_kernel import DecisionKernel
from tests.rollouts import RUINOUS_RATE, Rollout, roll_out, tiny_task

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

NUM_MEMBERS = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "one step": {},
    "several steps": {"steps_per_action": 3},  # across epochs of 6 batches
    "a whole training": {"steps_per_action": 50},
    "float32": {"dtype": "float32", "steps_per_action": 2},
    "groups": {"lr_groups": "tensor", "steps_per_action": 3},
    "evaluated": {"reward_on": "reference", "reward": {"kind": "loss", "interval": 2}, "steps_per_action": 4},
    "final": {"reward_on": "final", "steps_per_action": 3},
    "at once": {"autoreset_mode": "SameStep", "steps_per_action": 3},
    "two threads": {"num_threads": 2, "steps_per_action": 3},
    "momentum": {"optimizer": "momentum", "steps_per_action": 3},
    "adamw": {"optimizer": "adamw", "steps_per_action": 3, "lr_groups": "tensor", "lr_max": 1.0},
}


def make(**options: Any) -> LearningRateVectorEnv:
    return LearningRateVectorEnv(NUM_MEMBERS, tiny_task(horizon=20), compile=True, **{"dtype": "float64", "action": "rate"} | options)


def rates(env: LearningRateVectorEnv) -> np.ndarray:
    """Of 30 decisions; one training diverges early, within a decision's first step or a later one."""
    chosen = 10.0 ** np.random.default_rng(0).uniform(-3, -0.5, (30, *env.action_space.shape))
    chosen[2, 1] = RUINOUS_RATE
    return chosen


def assert_close(first: Rollout, second: Rollout, tolerance: float) -> None:
    for name in ("observations", "rewards"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), tolerance, tolerance, err_msg=name)
    for name in ("loss", "learning_rate", "step", "diverged"):
        np.testing.assert_allclose(first.values(name), second.values(name), tolerance, err_msg=name)
    for name in ("terminated", "truncated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_decisions_at_once_are_those_step_by_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env, made = make(**OPTIONS[name]), []
    call = DecisionKernel.__call__
    with monkeypatch.context() as patch:
        patch.setattr(DecisionKernel, "__call__", lambda *arguments: made.append(call(*arguments)) or made[-1])
        at_once = roll_out(env, rates(env))
    most = min(OPTIONS[name].get("steps_per_action", 1), 6)
    assert 1 <= max(made) <= most and (max(made) > 1) == (most > 1)
    if name == "a whole training":  # the first step is Python's; then to the end of the epoch, whole epochs, and what is left
        assert made[:4] == [4, 6, 6, 3]
    monkeypatch.setattr("lr_env.episodes.Episodes._decision_kernel", lambda _: None)
    one_by_one = roll_out(make(**OPTIONS[name]), rates(env))
    assert_close(at_once, one_by_one, 1e-6 if name == "float32" else 1e-12)
    assert any(info.get("final_info", info)["diverged"].any() for info in at_once.infos)


def test_copies_go_on_as_the_environment_does() -> None:
    env = make(steps_per_action=2)
    chosen = rates(env)
    roll_out(env, chosen[:2])
    assert env.episodes._kernel is not None
    others = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    for row in chosen[3:]:
        expected = env.step(row)
        for other in others:
            for one, another in zip(other.step(row)[:4], expected[:4], strict=True):
                np.testing.assert_allclose(one, another, 1e-12, 1e-12)  # a copy's first step is made from Python, in another order of sums


@pytest.mark.parametrize("options", [{"optimizer": "lion"}, {"reward_on": "same_batch"}, {"circuit_breaker": True}, {"control_momentum": True}])
def test_what_else_happens_between_steps_is_left_to_python(options: dict[str, Any]) -> None:
    if "control_momentum" in options:
        options = options | {"optimizer": "momentum", "action": "relative"}
    env = make(**options)
    roll_out(env, np.zeros((4, *env.action_space.shape)) if "control_momentum" in options else rates(env)[:4])
    assert env.episodes._kernel is None
