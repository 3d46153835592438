"""DDPG: solves a trivial environment, repeats itself bit for bit, resumes exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import lr_env
from agents import DDPG, DDPGConfig
from agents.ddpg import CHECKPOINT_KIND
from lr_env.files import read_file, write_file
from tests.trivial import HalfVectorEnv

SMALL = DDPGConfig(batch_size=32, learning_starts=64, actor_starts=10, memory_size=4_000, hidden=(16,))


def make_environment(**arguments: Any) -> Any:
    return gym.make_vec("LearningRate-v0", num_envs=4, task="digits-logreg", horizon=10, autoreset_mode="SameStep", **arguments)


def equal_weights(first: DDPG, second: DDPG) -> bool:
    pairs = [(first.actor, second.actor), (first.critic, second.critic), (first.target_critic, second.target_critic)]
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-3.0, 3.0)])
def test_solves_trivial_environment(low: float, high: float) -> None:
    config = DDPGConfig(
        discount=0.0, num_steps=1, actor_learning_rate=1e-3, batch_size=64, learning_starts=100, hidden=(32, 32), updates_per_decision=1
    )
    agent = DDPG(HalfVectorEnv(8, low, high), config, seed=1).learn(16_000)
    observations = np.linspace(-0.9, 0.9, 19, dtype=np.float32)[:, None]
    actions, _ = agent.predict(observations, deterministic=True)
    assert np.abs(actions - observations / 2).max() < 0.15


def test_repeats_itself_bit_for_bit() -> None:
    first, second, other = (DDPG(make_environment(), SMALL, seed=seed).learn(400) for seed in (3, 3, 4))
    assert equal_weights(first, second)
    assert not equal_weights(first, other)


def test_leaves_global_generators_alone() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    DDPG(make_environment(), SMALL, seed=0).learn(200)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = DDPG(make_environment(), SMALL, seed=5).learn(600)
    DDPG(make_environment(), SMALL, seed=5).learn(284, checkpoint=tmp_path / "agent.safetensors")  # in the middle of an episode
    resumed = DDPG.resume(tmp_path / "agent.safetensors", make_environment())
    assert resumed.num_steps_taken == 284
    resumed.learn(600)
    assert equal_weights(whole, resumed)
    assert whole.recent_returns == resumed.recent_returns


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.safetensors"
    program = (
        "import gymnasium as gym, torch, lr_env; from agents import DDPG; from tests.test_ddpg import SMALL, make_environment\n"
        "torch.set_num_threads(1)\n"
        f"DDPG(make_environment(), SMALL, seed=6).learn(10**9, checkpoint={str(checkpoint)!r}, checkpoint_interval=100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the training ended by itself"
    resumed = DDPG.resume(checkpoint, make_environment())
    target = resumed.num_steps_taken + 200
    whole = DDPG(make_environment(), SMALL, seed=6).learn(target)
    assert equal_weights(whole, resumed.learn(target))


def test_saved_controller_acts_as_the_agent(tmp_path: Path) -> None:
    environment = make_environment(features=["progress", "log_rate"])
    agent = DDPG(environment, SMALL, seed=0).learn(300)
    for name in ("a", "b"):
        agent.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    bound = lr_env.load_controller(tmp_path / "a.safetensors")
    observations = np.random.default_rng(0).uniform(-1, 1, (7, 2)).astype(np.float32)
    expected, _ = agent.predict(observations, deterministic=True)
    actions, _ = bound.controller.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, expected)
    assert bound.mdp == environment.mdp


def test_exploration_only_without_deterministic() -> None:
    agent = DDPG(make_environment(), SMALL, seed=0)
    observations = np.zeros((4, 10), np.float32)
    quiet, noisy = agent.predict(observations, deterministic=True)[0], agent.predict(observations)[0]
    assert not np.array_equal(quiet, noisy)
    assert agent.predict(observations[0], deterministic=True)[0].shape == (1,)


def test_callback_stops_training() -> None:
    agent = DDPG(make_environment(), SMALL, seed=0)
    agent.learn(10_000, callback=lambda agent: agent.num_steps_taken < 40)
    assert agent.num_steps_taken == 40


def test_refuses_what_it_cannot_learn_on() -> None:
    with pytest.raises(ValueError, match="SameStep"):
        DDPG(gym.make_vec("LearningRate-v0", num_envs=2))
    with pytest.raises(TypeError, match="continuous"):
        DDPG(make_environment(action="discrete"))
    with pytest.raises(TypeError, match="make_vec"):
        DDPG(gym.make("LearningRate-v0"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discount"):
        DDPGConfig(discount=1.5)


def test_refuses_foreign_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    agent = DDPG(make_environment(), SMALL, seed=0).learn(100)
    agent.save(path)
    with pytest.raises(lr_env.FileFormatError, match="ddpg-checkpoint"):
        DDPG.resume(path, make_environment())
    agent.save_checkpoint(path)
    with pytest.raises(lr_env.FileFormatError, match="does not fit"):
        DDPG.resume(path, make_environment(features=["progress"]))
    metadata, tensors = read_file(path, CHECKPOINT_KIND)
    metadata["config"]["of_another_version"] = 1
    write_file(path, CHECKPOINT_KIND, metadata, tensors)
    with pytest.raises(lr_env.FileFormatError, match="of_another_version"):
        DDPG.resume(path, make_environment())
