"""The single environment: interface, exactness, ends, branching."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import NormalizeObservation, RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from torch import Tensor, nn

import lr_env
from lr_env import LearningRateEnv, Task, make_task
from lr_env.mdp import ACTIONS, FEATURE_SETS
from lr_env.tasks import Sampler, Split
from lr_env.tasks.models import mlp
from lr_env.training import OPTIMIZERS
from tests.reference import TORCH_OPTIMIZERS, train
from tests.rollouts import RUINOUS_RATE, Rollout, assert_same_bits, continue_with, fingerprint, roll_out, tiny_task

NAMES = ["breast-cancer-mlp", "digits-logreg", "digits-mlp", "digits-mlp-scaled", "noisy-quadratic"]
AGENT_ACTIONS = ["relative", "absolute", "residual", "discrete"]


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def sample_actions(env: gym.Env[Any, Any], count: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


# ---- interface -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", AGENT_ACTIONS)
@pytest.mark.parametrize("task", NAMES)
def test_both_checkers_accept_every_task_and_action_without_a_warning(task: str, action: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("LearningRate-v0", task=task, action=action, render_mode="rgb_array").unwrapped
        check_env(env)
        check_env_for_sb3(gym.make("LearningRate-v0", task=task, action=action).unwrapped)


@pytest.mark.parametrize(
    ("optimizer", "features"),
    [*((name, "scale_free") for name in OPTIMIZERS), *(("momentum", features) for features in [*FEATURE_SETS, ["log_loss"]])],
)
def test_both_checkers_accept_every_optimizer_and_feature_set(optimizer: str, features: Any) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), optimizer=optimizer, features=features).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        check_env_for_sb3(env)


def test_spaces() -> None:
    env = gym.make("LearningRate-v0")
    assert env.observation_space == gym.spaces.Box(-10, 10, (10,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (1,), np.float32)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation.dtype == np.float32
    assert info == {"loss": info["loss"], "learning_rate": pytest.approx(0.1), "step": 0, "diverged": False}
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert [type(value) for value in (reward, terminated, truncated)] == [float, bool, bool]
    assert [type(info[name]) for name in ("loss", "learning_rate", "step", "diverged")] == [float, float, int, bool]


def test_defaults_are_those_of_the_task() -> None:
    env = gym.make("LearningRate-v0", task="noisy-quadratic")
    assert env.unwrapped.episodes.horizon == make_task("noisy-quadratic").horizon
    assert gym.make("LearningRate-v0", horizon=7).unwrapped.episodes.horizon == 7


def test_the_id_with_a_module_prefix() -> None:
    program = 'import gymnasium; print(gymnasium.make("lr_env:LearningRate-v0", horizon=3).spec.id)'
    assert run_python(program).strip() == "LearningRate-v0"


def test_env_spec_survives_json() -> None:
    arguments = {
        "task": "digits-mlp-scaled", "horizon": 5, "optimizer": {"name": "adam", "beta1": 0.8}, "features": ["absolute", "log_horizon"],
        "action": {"kind": "residual", "base": "cosine"}, "reward": {"kind": "loss", "interval": 2}, "reward_on": "reference", "lr_max": 0.5,
    }  # fmt: skip
    env = gym.make("LearningRate-v0", **arguments)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec and spec.kwargs == arguments
    again = gym.make(spec)
    assert again.unwrapped.mdp == env.unwrapped.mdp
    actions = sample_actions(env, 5)
    assert_same_bits(roll_out(env, actions), roll_out(again, actions))


def test_env_spec_with_a_python_object_says_that_it_is_not_json() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task())
    assert_same_bits(roll_out(gym.make(env.spec), [[0.1]]), roll_out(env, [[0.1]]))
    with pytest.raises((TypeError, ValueError), match=r"not JSON serializable|Task"):
        env.spec.to_json()


@pytest.mark.parametrize("task", ["digits-mlp-scaled", "noisy-quadratic"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_pickle_and_deepcopy_continue_with_the_same_bits(task: str, optimizer: str, how: str) -> None:
    env = gym.make("LearningRate-v0", task=task, optimizer=optimizer, horizon=20).unwrapped
    actions = sample_actions(env, 20)
    rollout = roll_out(env, actions[:8], seed=3)
    other = pickle.loads(pickle.dumps(env)) if how == "pickle" else copy.deepcopy(env)
    first, second = copy.deepcopy(rollout), copy.deepcopy(rollout)
    continue_with(env, actions[8:], first)
    continue_with(other, actions[8:], second)
    assert len(first.rewards) == 20
    assert_same_bits(first, second)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.parametrize("model", [dropout, batch_norm])
def test_models_with_noise_or_buffers_deepcopy_too(model: Any) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(model, horizon=20)).unwrapped
    rollout = roll_out(env, [[0.1]] * 5)
    other, first, second = copy.deepcopy(env), copy.deepcopy(rollout), copy.deepcopy(rollout)
    continue_with(env, [[0.1]] * 15, first)
    continue_with(other, [[0.1]] * 15, second)
    assert_same_bits(first, second)


def test_an_environment_that_was_never_reset_pickles() -> None:
    env = gym.make("LearningRate-v0", horizon=3).unwrapped
    other = pickle.loads(pickle.dumps(env))
    assert_same_bits(roll_out(env, [[0.3]] * 3), roll_out(other, [[0.3]] * 3))


def test_statistics_and_normalisation_wrappers() -> None:
    env = NormalizeObservation(RecordEpisodeStatistics(gym.make("LearningRate-v0", horizon=6)))
    rollout = roll_out(env, [[0.2]] * 6)
    assert rollout.infos[-1]["episode"]["l"] == 6
    assert rollout.infos[-1]["episode"]["r"] == pytest.approx(sum(rollout.rewards))
    assert np.isfinite(np.array(rollout.observations)).all()


def test_videos_are_recorded(tmp_path: Path) -> None:
    env = RecordVideo(gym.make("LearningRate-v0", horizon=4, render_mode="rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda episode: True)
    roll_out(env, [[0.2]] * 4)
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 1000


def test_pictures_show_the_training() -> None:
    env = gym.make("LearningRate-v0", horizon=6, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for action in ([1.0], [-1.0]):
        env.step(action)
        frames.append(env.render())
    for frame in frames:
        assert frame.shape == (400, 600, 3) and frame.dtype == np.uint8
        assert frame.std() > 1
    assert (frames[0] != frames[1]).any() and (frames[1] != frames[2]).any()


def test_pictures_show_the_rates_of_all_groups() -> None:
    pictures = []
    for last in (-1.0, 1.0):
        env = gym.make("LearningRate-v0", horizon=6, lr_groups="layer", render_mode="rgb_array")
        env.reset(seed=0)
        for _ in range(3):
            env.step([0.5] * (env.action_space.shape[0] - 1) + [last])  # type: ignore[index]
        pictures.append(env.render())
    assert (pictures[0][:180] != pictures[1][:180]).mean() < (pictures[0][200:] != pictures[1][200:]).mean()
    envs = gym.make_vec("LearningRate-v0", num_envs=2, horizon=6, lr_groups="layer", render_mode="rgb_array")
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(np.array([[0.5] * (envs.single_action_space.shape[0] - 1) + [1.0]] * 2))  # type: ignore[index]
    np.testing.assert_array_equal(envs.render()[0], pictures[1])  # type: ignore[index]


def test_a_diverged_training_can_be_rendered() -> None:
    env = gym.make("LearningRate-v0", action="rate", render_mode="rgb_array")
    rollout = roll_out(env, [[0.0], [RUINOUS_RATE], [RUINOUS_RATE]])
    assert rollout.infos[-1]["diverged"]
    assert env.render().shape == (400, 600, 3)


# ---- seeds ---------------------------------------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    """What a new process prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(lr_env.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout


def test_the_same_seed_gives_the_same_bits_in_another_process() -> None:
    cases = [("digits-mlp-scaled", "sgd", 0), ("digits-mlp-scaled", "adam", 3), ("noisy-quadratic", "sgd", 3), ("noisy-quadratic", "momentum", 0)]
    program = f"import lr_env; from tests.rollouts import fingerprint\nfor case in {cases!r}: print(fingerprint(*case))"
    assert run_python(program).split() == [fingerprint(*case) for case in cases]


def test_seeds_differ_and_episodes_follow() -> None:
    env, other = (gym.make("LearningRate-v0", task=tiny_task()) for _ in range(2))
    first, again, another = (env.reset(seed=seed)[1]["loss"] for seed in (0, 0, 1))
    assert first == again != another
    env.reset(seed=5)
    following = [env.reset()[1]["loss"] for _ in range(3)]
    assert len({*following, env.reset(seed=5)[1]["loss"]}) == 4
    # An episode does not depend on what happened in the one before.
    roll_out(other, [[1.0]] * 3, seed=5)
    assert [other.reset()[1]["loss"] for _ in range(3)] == following


def test_without_any_seed_trainings_differ() -> None:
    losses = {gym.make("LearningRate-v0", task=tiny_task()).reset()[1]["loss"] for _ in range(4)}
    assert len(losses) == 4


def test_weights_and_data_are_paired_across_decision_processes() -> None:
    losses = [
        roll_out(gym.make("LearningRate-v0", task=tiny_task(), optimizer=optimizer, features=features, action="rate"), [[0.0]] * 8).values("loss")
        for optimizer, features in (("sgd", "scale_free"), ("adam", "absolute"), ("nesterov", ["log_loss"]))
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])
    assert len(set(losses[0])) > 5


# ---- exactness -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["digits-mlp", "breast-cancer-mlp"])
def test_constant_rates_equal_a_plain_torch_optim_loop(name: str, optimizer: str, dtype: str, tolerance: float) -> None:
    task = make_task(name)
    rate = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adagrad": 0.01, "lion": 0.001}.get(optimizer, 0.003)
    env = gym.make("LearningRate-v0", task=name, optimizer=optimizer, action="rate", dtype=dtype, horizon=60)
    rollout = roll_out(env, [[rate]] * 60, seed=5)
    # Written out here: the loop that a user would compare with.
    model, batches = task.initial_model(5).to(getattr(torch, dtype)), task.batches(5)
    stepper = TORCH_OPTIMIZERS[optimizer](model.parameters())
    stepper.param_groups[0]["lr"] = rate
    losses = []
    for _ in range(61):
        inputs, targets = next(batches)
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.to(getattr(torch, dtype))), targets)
        losses.append(loss.item())
        loss.backward()
        if len(losses) <= 60:
            stepper.step()
    np.testing.assert_allclose(rollout.values("loss"), losses, rtol=tolerance)
    assert losses[-1] < 0.9 * losses[0]
    parameters = torch.cat([parameter.detach().ravel() for parameter in model.parameters()])
    torch.testing.assert_close(env.unwrapped.episodes.population.parameters[0], parameters, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_changing_rates_equal_a_plain_loop_over_several_epochs(optimizer: str) -> None:
    rates = 0.02 * 10 ** np.random.default_rng(0).uniform(-1, 0.5, 40)
    env = gym.make("LearningRate-v0", task=tiny_task(), optimizer=optimizer, action="rate", dtype="float64", horizon=40)
    np.testing.assert_allclose(roll_out(env, rates[:, None], seed=2).values("loss"), train(tiny_task(), 2, list(rates), optimizer).losses, rtol=1e-9)


def sampled_task(changed_from: int | None) -> Task:
    """Fresh samples; those of batches from ``changed_from`` on are other ones."""

    def sample(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        inputs = generator.normal(size=(count, 4))
        if changed_from is not None:
            inputs[16 * changed_from :] *= -2.0
        return torch.from_numpy(inputs).float(), torch.from_numpy((inputs[:, 0] > 0).astype(np.int64))

    reference = Split(torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))
    return Task("sampled", partial(mlp, 4, (8,), 2), "cross_entropy", Sampler(sample, reference), batch_size=16, horizon=12)


@pytest.mark.parametrize("t", [0, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("reward_on", ["next_batch", "same_batch", "reference"])
def test_an_observation_does_not_change_when_the_next_batch_does(reward_on: str, optimizer: str, t: int) -> None:
    rollouts = []
    for changed_from in (None, t + 1):
        env = gym.make(
            "LearningRate-v0", task=sampled_task(changed_from), optimizer=optimizer, reward_on=reward_on, features=["scale_free", "absolute"]
        )
        rollouts.append(roll_out(env, [[0.3]] * 8))
    first, second = (np.array(rollout.observations) for rollout in rollouts)
    np.testing.assert_array_equal(first[: t + 1], second[: t + 1])
    assert (first[t + 1] != second[t + 1]).any()  # the next batch did change
    np.testing.assert_array_equal(rollouts[0].rewards[:t], rollouts[1].rewards[:t])


# ---- ends and decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "terminates"), [("scale_free", True), (["log_loss"], False), (["log_loss", "progress"], True)])
def test_the_horizon_terminates_where_progress_is_observed_and_truncates_elsewhere(features: Any, terminates: bool) -> None:
    rollout = roll_out(gym.make("LearningRate-v0", task=tiny_task(), features=features), [[0.0]] * 20)
    assert len(rollout.rewards) == 8
    assert rollout.terminated == [False] * 7 + [terminates]
    assert rollout.truncated == [False] * 7 + [not terminates]
    assert not rollout.infos[-1]["diverged"] and rollout.infos[-1]["step"] == 8


@pytest.mark.parametrize("features", ["scale_free", ["log_loss"]])
@pytest.mark.parametrize("rate", [RUINOUS_RATE, 1e300, 1e4])
@pytest.mark.parametrize("reward_on", ["next_batch", "same_batch", "reference", "validation", "final"])
def test_divergence_terminates_with_finite_numbers(reward_on: str, rate: float, features: Any) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), action="rate", features=features, reward_on=reward_on)
    rollout = roll_out(env, [[0.1], [0.1], [rate], [rate], [rate], [rate]])
    assert rollout.terminated[-1] and not rollout.truncated[-1]
    assert rollout.values("diverged").tolist()[-2:] == [False, True]
    assert np.isfinite(np.array(rollout.observations)).all() and np.isfinite(rollout.rewards).all()
    assert env.observation_space.contains(rollout.observations[-1])
    assert rollout.rewards[-1] < -1


def test_the_threshold_of_divergence_can_be_chosen() -> None:
    rates = [[0.1]] * 2 + [[30.0]] + [[0.0]] * 5
    tolerant, strict = (
        roll_out(gym.make("LearningRate-v0", task=tiny_task(), action="rate", reward={"divergence": limit}), rates) for limit in (1e6, 1.5)
    )
    assert len(tolerant.rewards) == 8 and not tolerant.infos[-1]["diverged"]
    assert len(strict.rewards) == 3 and strict.infos[-1]["diverged"]
    assert 1.5 < strict.values("loss")[-1] / strict.values("loss")[0] < 1e6


@pytest.mark.parametrize("steps_per_action", [2, 3, 8, 50])
def test_several_steps_share_one_decision(steps_per_action: int) -> None:
    task = tiny_task()
    decisions = -(-8 // steps_per_action)
    rates = [[0.05 * (1 + i)] for i in range(decisions)]
    env = gym.make("LearningRate-v0", task=task, action="rate", steps_per_action=steps_per_action, dtype="float64")
    rollout = roll_out(env, rates)
    assert rollout.values("step").tolist() == [min(i * steps_per_action, 8) for i in range(decisions + 1)]
    assert rollout.terminated[-1] and not any(rollout.terminated[:-1])
    every_step = [rate for (rate,) in rates for _ in range(steps_per_action)][:8]
    losses = train(task, 0, every_step).losses
    np.testing.assert_allclose(rollout.values("loss"), [losses[step] for step in rollout.values("step")], rtol=1e-9)


def test_a_relative_action_changes_the_rate_once_per_decision() -> None:
    rollout = roll_out(gym.make("LearningRate-v0", task=tiny_task(), steps_per_action=4), [[0.5], [0.5]])
    np.testing.assert_allclose(rollout.values("learning_rate"), 0.1 * 10 ** np.array([0, 0.25, 0.5]), rtol=1e-12)


def test_divergence_within_a_decision_stops_there() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), action="rate", steps_per_action=4)
    rollout = roll_out(env, [[RUINOUS_RATE]])
    assert rollout.terminated == [True] and rollout.infos[-1] == {**rollout.infos[-1], "diverged": True, "step": 1}


def test_evaluate_gives_loss_and_accuracy_of_the_present_weights() -> None:
    env = gym.make("LearningRate-v0", horizon=100)
    env.reset(seed=0)
    before = env.unwrapped.evaluate("test")
    roll_out(env, [[0.0]] * 100)
    after = env.unwrapped.evaluate("test")
    assert after.losses[0] < before.losses[0] and after.metrics[0] > before.metrics[0]


# ---- branching -----------------------------------------------------------------------------------------------------------------

BRANCHED: dict[str, dict[str, Any]] = {
    "sgd": {"task": "digits-mlp"},
    "scaled": {"task": "digits-mlp-scaled", "reward_on": "same_batch"},
    "adam": {"task": "digits-mlp", "optimizer": "adam", "features": "absolute", "reward_on": "reference"},
    "nesterov": {"task": "breast-cancer-mlp", "optimizer": "nesterov", "action": {"kind": "residual", "base": "cosine"}},
    "quadratic": {"task": "noisy-quadratic", "horizon": 100},
    "dropout": {"task": tiny_task(dropout, horizon=100), "steps_per_action": 1},
    "batch_norm": {"task": tiny_task(batch_norm, horizon=100), "optimizer": "momentum"},
    "interval": {"task": "digits-mlp", "reward_on": "validation", "reward": {"interval": 7}, "render_mode": "rgb_array"},
}


@pytest.mark.parametrize("options", BRANCHED.values(), ids=BRANCHED.keys())
@pytest.mark.parametrize("elsewhere", [False, True])
def test_three_rates_tried_at_step_50_leave_no_trace(options: dict[str, Any], elsewhere: bool) -> None:
    env, other = gym.make("LearningRate-v0", **options), gym.make("LearningRate-v0", **options)
    actions = 0.2 * np.random.default_rng(0).uniform(-1, 1, (100, 1))
    expected = roll_out(other, actions, seed=9)
    rollout = roll_out(env, actions[:50], seed=9)
    state = env.unwrapped.get_state()
    tried = []
    for action in (-1.0, 0.0, 1.0):
        env.unwrapped.set_state(state)
        branch = Rollout()
        continue_with(env, [[action]] * 6, branch)
        tried.append(branch.values("loss")[-1])
    assert len(set(tried)) == 3
    # The state also holds in another environment of the same arguments, and after a pickle.
    if elsewhere:
        state = pickle.loads(pickle.dumps(state))
        env = gym.make("LearningRate-v0", **options)
        env.reset(seed=1)
    env.unwrapped.set_state(state)
    continue_with(env, actions[50:], rollout)
    assert len(rollout.rewards) == 100
    assert_same_bits(rollout, expected)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_the_state_after_an_end_is_an_end() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), disable_env_checker=True).unwrapped
    roll_out(env, [[0.0]] * 8)
    ended = env.get_state()
    env.reset(seed=1)
    running = env.get_state()
    env.set_state(ended)
    with pytest.raises(gym.error.ResetNeeded, match="ended"):
        env.step([0.0])
    env.set_state(running)
    env.step([0.0])


def test_a_state_can_be_put_into_an_environment_that_was_never_reset() -> None:
    first, second = (gym.make("LearningRate-v0", task=tiny_task()).unwrapped for _ in range(2))
    roll_out(first, [[0.5]] * 3)
    second.set_state(first.get_state())
    for a, b in zip(first.step([0.2])[:2], second.step([0.2])[:2], strict=True):
        np.testing.assert_array_equal(a, b)


# ---- the specification ---------------------------------------------------------------------------------------------------------


def test_the_docstring_names_every_argument_action_task_default_and_key() -> None:
    text = LearningRateEnv.__doc__ or ""
    for name in [*inspect.signature(LearningRateEnv).parameters, *ACTIONS, *OPTIMIZERS, "loss", "learning_rate", "step", "diverged"]:
        assert f"``{name}``" in text or f'``"{name}"``' in text, name


def test_a_specification_is_json() -> None:
    env = gym.make("LearningRate-v0", features=["absolute"], action={"kind": "relative", "max_change": 0.1})
    assert json.loads(json.dumps(env.unwrapped.mdp.to_dict()))["action"] == {"kind": "relative", "max_change": 0.1}


def test_nothing_else_is_exported() -> None:
    for name in lr_env.__all__:
        assert hasattr(lr_env, name)
    assert len(set(lr_env.__all__)) == len(lr_env.__all__)
