"""Families with variants, and populations spread over processes: each member as a single environment runs it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env

from lr_env import LearningRateVectorEnv, Task, TaskFamily
from lr_env.tasks.models import mlp
from tests.rollouts import RUINOUS_RATE, assert_same_bits, roll_out, tiny_task


def draw(generator: np.random.Generator) -> Task:
    """Another width, depth, batch size and horizon."""
    hidden = [int(generator.integers(3, 9))] * int(generator.integers(0, 3))
    return tiny_task(partial(mlp, 4, hidden, 3), batch_size=int(generator.integers(4, 20)), horizon=int(generator.integers(4, 9)))


def family(**options: Any) -> TaskFamily:
    return TaskFamily("tinies", draw, **{"num_variants": 3, "family_seed": 1, **options})


def make(num_envs: int, **options: Any) -> LearningRateVectorEnv:
    return LearningRateVectorEnv(num_envs, **{"task": family(), "dtype": "float64", **options})


def rates(num_envs: int, steps: int = 25) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, num_envs, 1)).astype(np.float32)


def test_variants_depend_on_the_seed_and_their_number_alone() -> None:
    shapes = [[tuple(p.shape) for p in task.initial_model(0).parameters()] for task in family().variants]
    assert len({str(shape) for shape in shapes}) == 3
    again, more, other = (family(**options).variants for options in ({}, {"num_variants": 5}, {"family_seed": 2}))

    def describe(tasks: tuple[Task, ...]) -> list[tuple[int, int, str]]:
        return [(task.batch_size, task.horizon, str(task.initial_model(0))) for task in tasks]

    assert describe(again) == describe(family().variants) == describe(more)[:3] != describe(other)


def test_processes_with_several_threads(tmp_path: Path) -> None:
    """In a process of its own whose threads have worked: forked ones would wait for them for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym, torch, lr_env\n"
        "if __name__ == '__main__':\n"
        "    torch.set_num_threads(2)\n"
        "    torch.randn(600, 600) @ torch.randn(600, 600)\n"
        "    envs = gym.make_vec('LearningRate-v0', num_envs=4, task='digits-mlp', num_processes=2, num_threads=2)\n"
        "    print(envs.reset(seed=0)[0].shape)\n"
        "    envs.close()\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert result.stdout.startswith("(4, "), result.stderr


def test_a_process_ends_whatever_its_parent_does_at_a_signal() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        env = make(2, num_processes=2)
    finally:
        signal.signal(signal.SIGTERM, before)
    for episodes, _ in env.episodes._groups:  # type: ignore[union-attr]
        process = episodes._process  # type: ignore[union-attr]
        process.terminate()
        process.join(60)
        assert process.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_state_brings_its_observations(num_processes: int) -> None:
    env, fresh = (make(3, autoreset_mode="Disabled", num_processes=num_processes) for _ in range(2))
    env.reset(seed=0)
    actions = rates(3)
    observations = env.step(actions[0])[0]
    state = env.get_state()
    env.step(actions[1])
    for other in (env, fresh):
        other.set_state(state)
        found, _ = other.reset(options={"reset_mask": np.array([True, False, False])})
        np.testing.assert_array_equal(found[1:], observations[1:])
        other.close()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_decision_process_is_that_of_all_members(num_processes: int) -> None:
    env = make(4, task=family(initial_rate_decades=0.5), num_processes=num_processes)
    assert env.mdp.initial_rate_decades == 0.5
    env.close()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_members_equal_single_environments_of_their_variant(mode: str, num_processes: int) -> None:
    scaled = family(input_scale_decades=(-0.5, 0.5))
    env, actions = make(5, task=scaled, autoreset_mode=mode, num_processes=num_processes), rates(5)
    together = roll_out(env, actions, seed=7)
    env.close()
    assert len(set(env.episodes.horizons.tolist())) > 1  # members end at different times
    for member in range(5):
        alone = gym.make("LearningRate-v0", task=scaled, variant=member % 3, dtype="float64")
        observation, info = alone.reset(seed=7 + member)
        ended, t = False, 0
        for t in range(26):
            if mode == "NextStep" or not ended:
                np.testing.assert_allclose(together.observations[t][member], observation, rtol=1e-5, atol=1e-6)
                assert together.infos[t]["loss"][member] == pytest.approx(info["loss"], rel=1e-9)
                assert together.infos[t]["step"][member] == info["step"]
            if t == 25:
                break
            if ended:
                (observation, info), reward, ended = alone.reset(), 0.0, False
            else:
                observation, reward, terminated, truncated, info = alone.step(actions[t][member])
                ended = terminated or truncated
            assert together.rewards[t][member] == pytest.approx(reward, rel=1e-8, abs=1e-12)
            assert (together.terminated[t] | together.truncated[t])[member] == ended
            if ended and mode == "SameStep":
                np.testing.assert_allclose(together.infos[t + 1]["final_obs"][member], observation, rtol=1e-5, atol=1e-6)
                observation, info = alone.reset()
                ended = False


def test_one_variant_for_all() -> None:
    env = make(2, variant=2)
    first, second = roll_out(env, rates(2, 3)), roll_out(LearningRateVectorEnv(2, family().variants[2], dtype="float64"), rates(2, 3))
    assert_same_bits(first, second)


def test_processes_give_the_bits_of_populations_of_their_size() -> None:
    actions = rates(4)
    env = LearningRateVectorEnv(4, tiny_task(), num_processes=2)
    together = roll_out(env, actions, seed=3)
    halves = [roll_out(LearningRateVectorEnv(2, tiny_task()), actions[:, part], seed=3 + part.start) for part in (slice(0, 2), slice(2, 4))]
    env.close()
    np.testing.assert_array_equal(np.array(together.rewards), np.concatenate([np.array(half.rewards) for half in halves], 1))
    np.testing.assert_array_equal(np.array(together.observations), np.concatenate([np.array(half.observations) for half in halves], 1))


def test_disabled_autoreset_with_masks() -> None:
    env = make(5, autoreset_mode="Disabled")
    env.reset(seed=0)
    ended = np.zeros(5, bool)
    for _ in range(30):
        if ended.any():
            _, info = env.reset(options={"reset_mask": ended})
            assert (info["_loss"] == ended).all() and (info["step"][ended] == 0).all()
        observations, _, terminated, truncated, info = env.step(np.zeros((5, 1)))
        ended = terminated | truncated
        assert (info["step"] > 0).all() and np.isfinite(observations).all()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_branching(num_processes: int) -> None:
    env, actions = make(5, num_processes=num_processes), rates(5, 12)
    roll_out(env, actions[:3], seed=1)
    state = env.get_state()
    first = [env.step(action)[1] for action in actions[3:8]]
    env.set_state(state)
    np.testing.assert_array_equal([env.step(action)[1] for action in actions[3:8]], first)
    env.set_state(env.get_state([0, 0]), [0, 3])  # members 0 and 3 have the same variant
    with pytest.raises(ValueError, match="States of variants"):
        env.set_state(env.get_state([0]), [1])
    env.close()


def test_evaluation_of_mixed_tasks() -> None:
    env = make(4)
    env.reset(seed=0)
    evaluation = env.evaluate("test")
    for member in range(4):
        alone = gym.make("LearningRate-v0", task=family(), variant=member % 3, dtype="float64")
        alone.reset(seed=member)
        expected = alone.unwrapped.evaluate("test")
        assert evaluation.losses[member] == pytest.approx(expected.losses[0], rel=1e-9)
        assert evaluation.metrics[member] == pytest.approx(expected.metrics[0])


def test_a_divergence_leaves_other_groups_alone() -> None:
    tame, wild = (np.full((4, 5, 1), rate) for rate in (0.05, 0.05))
    wild[1, 2] = RUINOUS_RATE
    results = [roll_out(make(5, action="rate"), actions) for actions in (tame, wild)]
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(*[np.array(result.rewards)[:, others] for result in results])
    assert results[1].terminated[1].tolist() == [False, False, True, False, False]


def test_checkers_accept_a_variant() -> None:
    check_env(gym.make("LearningRate-v0", task=family(), variant=1).unwrapped)


def test_a_mixed_environment_can_be_pickled_but_not_its_processes() -> None:
    env, actions = make(3, task=TaskFamily("tinies", draw, num_variants=3)), rates(3, 4)
    roll_out(env, actions)
    copied = pickle.loads(pickle.dumps(env))
    for action in actions:
        np.testing.assert_array_equal(env.step(action)[0], copied.step(action)[0])
    remote = LearningRateVectorEnv(2, tiny_task(), num_processes=2)
    with pytest.raises(TypeError, match="other processes"):
        pickle.dumps(remote)
    remote.close()


def test_a_process_that_dies_is_reported() -> None:
    env = LearningRateVectorEnv(2, tiny_task(), num_processes=2)
    env.reset(seed=0)
    os.kill(env.episodes._groups[1][0]._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"has died \(exit code -9\)"):
        roll_out(env, rates(2))
    env.close()


def test_an_error_in_a_process_is_raised_here() -> None:
    task = tiny_task(partial(torch.nn.Sequential, torch.nn.Dropout(), torch.nn.Linear(4, 3)))
    env = LearningRateVectorEnv(4, task, gradients="batched", num_processes=2)
    with pytest.raises(ValueError, match='gradients="batched" does not work'):
        env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: TaskFamily("one", tiny_task(), num_variants=2), ValueError, "has one task, but 2 variants"),
        (lambda: family(num_variants=0), ValueError, "num_variants must be an integer >= 1"),
        (lambda: family(family_seed=0.5), TypeError, "seed must be an integer"),
        (lambda: TaskFamily("none", lambda generator: 3).variants, TypeError, "draws Tasks, but variant 0 of family 'none'"),
        (
            lambda: TaskFamily("bad", lambda generator: tiny_task(batch_size=1000)).variants,
            ValueError,
            "Drawing variant 0 .* failed: batch_size 1000",
        ),
        (lambda: make(2, variant=3), ValueError, "variant must be an integer from 0 to 2 for task 'tinies', but 3"),
        (lambda: gym.make("LearningRate-v0", variant=1), ValueError, "variant must be an integer from 0 to 0 for task 'digits-mlp'"),
        (lambda: make(2, num_processes=3), ValueError, "must not exceed the number of members, 2, but 3"),
        (lambda: make(2, num_processes=0), ValueError, "num_processes must be an integer >= 1"),
        (lambda: make(2, num_threads=0), ValueError, "num_threads must be an integer >= 1"),
        (lambda: make(2, device="tpu"), ValueError, "Unknown device 'tpu'"),
    ],
)
def test_bad_input(make_it: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_it()


def test_after_an_error_in_all_processes_the_next_answer_is_its_own() -> None:
    env = LearningRateVectorEnv(2, tiny_task(), num_processes=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="Unknown split 'holdout'"):
        env.evaluate("holdout")
    assert np.isfinite(env.evaluate("test").losses).all()
    assert env.step(np.zeros((2, 1)))[0].shape == env.observation_space.shape
    env.close()
