"""The adapter to Stable-Baselines3 against SB3's own vector environment of single environments."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import nn

from agents.sb3 import (
    CorrelatedActionNoise,
    LearningRateVecEnv,
    PairedVecEnv,
    SB3Agent,
    VariantRewardScale,
    default_hyperparameters,
    default_policy,
    export_policy,
    load_model,
    make_sb3_env,
)
from benchmarks import sb3 as benchmark
from lr_env import MDP, FileFormatError, LearningRateEnv, LearningRateVectorEnv, load_controller, save_controller
from tests.rollouts import RUINOUS_RATE, tiny_task

TERMINATING = {"features": "scale_free"}
TRUNCATING = {"features": ["loss_ratio", "log_rate"]}  # without progress the end is a truncation
ALGORITHMS = ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")


def make_adapter(num_envs: int = 3, **arguments: Any) -> LearningRateVecEnv:
    return LearningRateVecEnv(LearningRateVectorEnv(num_envs, task=tiny_task(), autoreset_mode="SameStep", **arguments))


def make_dummy(num_envs: int = 3, **arguments: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: LearningRateEnv(task=tiny_task(), **arguments) for _ in range(num_envs)])


def assert_same_info(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert type(actual[name]) is type(value), name
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=1e-6 if name == "terminal_observation" else 0, err_msg=name)


@pytest.mark.parametrize("arguments", [TERMINATING, TRUNCATING], ids=["terminating", "truncating"])
def test_equals_sb3_s_own_vector_environment(arguments: dict[str, Any]) -> None:
    """Three episodes with automatic resets, one member diverging early again and again."""
    arguments = {**arguments, "dtype": "float64", "lr_max": 1e30, "action": {"kind": "relative", "max_change": 10.0}}
    adapter, dummy = make_adapter(**arguments), make_dummy(**arguments)
    assert adapter.observation_space == dummy.observation_space
    assert adapter.action_space == dummy.action_space
    assert adapter.seed(5) == dummy.seed(5)
    np.testing.assert_allclose(adapter.reset(), dummy.reset(), rtol=1e-5, atol=1e-6)
    actions = np.random.default_rng(0).uniform(-0.02, 0.02, (24, 3, 1)).astype(np.float32)
    actions[2::5, 1] = 1
    ends, truncations, divergences = 0, 0, 0
    for action in actions:
        actual, expected = adapter.step(action), dummy.step(action)
        for values, reference in zip(actual[:2], expected[:2], strict=True):
            np.testing.assert_allclose(values, reference, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(actual[2], expected[2], strict=True)
        for i in range(3):
            assert_same_info(actual[3][i], expected[3][i])
            assert_same_info(adapter.reset_infos[i], dummy.reset_infos[i])
        ends += actual[2].sum()
        truncations += sum(info["TimeLimit.truncated"] for info in actual[3])
        divergences += sum(info["diverged"] for info in actual[3])
    assert divergences > 2
    assert ends - divergences >= 6
    assert truncations == (ends - divergences if arguments["features"] == TRUNCATING["features"] else 0)


def test_seeds_are_used_once() -> None:
    env = make_adapter()
    env.seed(1)
    first = env.reset()
    second = env.reset()
    assert not np.array_equal(first, second)
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), first)


def test_monitor_reports_episode_returns() -> None:
    env = make_sb3_env(4, seed=0, task=tiny_task())
    assert isinstance(env, VecMonitor)
    env.reset()
    returns, reported = np.zeros(4), []
    for _ in range(16):
        _, rewards, ends, infos = env.step(np.full((4, 1), 0.1, np.float32))
        returns += rewards
        for i in np.flatnonzero(ends):
            assert infos[i]["episode"]["l"] == 8
            assert infos[i]["episode"]["r"] == pytest.approx(returns[i], abs=1e-5)
            reported.append(returns[i])
        returns[ends] = 0
    assert len(reported) == 8
    assert len(set(reported)) == 8


def test_seed_of_the_helper_is_that_of_the_first_reset() -> None:
    expected = LearningRateVectorEnv(2, task=tiny_task()).reset(seed=7)[0]
    np.testing.assert_array_equal(make_sb3_env(2, seed=7, task=tiny_task()).reset(), expected)


def test_vec_normalize_works_on_top() -> None:
    env = VecNormalize(make_sb3_env(2, task=tiny_task()))
    env.reset()
    observations, _, _, infos = env.step(np.zeros((2, 1), np.float32))
    assert np.isfinite(observations).all()
    assert all(type(infos[0][name]) is kind for name, kind in {"loss": float, "step": int, "diverged": bool, "TimeLimit.truncated": bool}.items())


def test_observations_and_rewards_are_fresh() -> None:
    env = make_adapter()
    kept = [(env.reset(), np.zeros(3))]
    copies = [(kept[0][0].copy(), np.zeros(3))]
    for _ in range(9):  # past an automatic reset
        observations, rewards, _, _ = env.step(np.zeros((3, 1), np.float32))
        kept.append((observations, rewards))
        copies.append((observations.copy(), rewards.copy()))
    for held, copied in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(held[0], copied[0])
        np.testing.assert_array_equal(held[1], copied[1])


def test_attributes_of_members() -> None:
    env, dummy = make_adapter(), make_dummy()
    for name in ("action_space", "mdp", "observation_space", "render_mode", "spec"):
        assert env.get_attr(name) == dummy.get_attr(name)
        assert len(env.get_attr(name, [0, 2])) == 2
    env.set_attr("label", "a", [0, -1])
    assert env.get_attr("label", [0, 2]) == ["a", "a"]
    assert not env.has_attr("label")  # one member has none
    with pytest.raises(AttributeError, match=r"no attribute 'label'.*observation_space"):
        env.get_attr("label", 1)
    env.set_attr("double", lambda value: 2 * value)
    assert env.env_method("double", 3, indices=1) == [6]
    with pytest.raises(AttributeError, match="fixed"):
        env.set_attr("render_mode", "rgb_array")
    with pytest.raises(IndexError):
        env.get_attr("mdp", 3)
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert env.env_is_wrapped(gym.Wrapper, indices=0) == [False]


def test_methods_of_members() -> None:
    env, dummy = make_adapter(), make_dummy()
    for each in (env, dummy):
        each.seed(0)
        each.reset()
    action = np.full((3, 1), 0.2, np.float32)
    for evaluation, expected in zip(env.env_method("evaluate", "test"), dummy.env_method("evaluate", "test"), strict=True):
        np.testing.assert_allclose(evaluation.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(evaluation.metrics, expected.metrics)
    (state,) = env.env_method("get_state", indices=[1])
    branched = env.step(action)
    env.env_method("set_state", state, indices=1)
    env.env_method("set_state", state, indices=[2])  # and a copy of it
    observations, rewards, _, infos = env.step(action)
    np.testing.assert_array_equal(observations[[1, 2]], branched[0][[1, 1]])
    np.testing.assert_array_equal(rewards[[1, 2]], branched[1][[1, 1]])
    assert infos[0]["step"] == 2
    assert infos[1]["step"] == 1
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        env.env_method("nonsense")


def test_images() -> None:
    env = make_adapter(render_mode="rgb_array")
    env.reset()
    images = env.get_images()
    assert [image.shape for image in images if image is not None] == [(400, 600, 3)] * 3
    np.testing.assert_array_equal(env.env_method("render", indices=1)[0], images[1])
    picture = env.render()
    assert picture is not None
    assert picture.shape == (800, 1200, 3)  # tiled
    with pytest.warns(UserWarning, match="render_mode"):
        assert make_adapter().render() is None


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f'"SameStep".*"{mode}"'):
        LearningRateVecEnv(LearningRateVectorEnv(1, task=tiny_task(), autoreset_mode=mode))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_train_with_the_published_defaults(name: str) -> None:
    """Two runs with one seed give the same weights, and the model acts as a controller within the action space."""
    action = "discrete" if name == "dqn" else "relative"
    models = []
    for _ in range(2):
        env = make_sb3_env(16, task=tiny_task(), action=action)
        hyperparameters = default_hyperparameters(name, num_envs=16, decisions=8)
        if "learning_starts" in hyperparameters:
            hyperparameters["learning_starts"] = 64
        algorithm: type[BaseAlgorithm] = getattr(stable_baselines3, name.upper())
        model = algorithm(default_policy(name), env, seed=0, **hyperparameters)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        models.append(model.learn(256))
        assert any(not old.equal(new) for old, new in zip(before, model.policy.parameters(), strict=True))
    for first, second in zip(models[0].policy.parameters(), models[1].policy.parameters(), strict=True):
        assert first.equal(second)
    observations = LearningRateVectorEnv(5, task=tiny_task(), action=action).reset(seed=0)[0]
    actions, state = models[0].predict(observations, state=None, episode_start=None, deterministic=True)
    assert state is None
    assert all(env.action_space.contains(each) for each in actions)


def test_hyperparameters_follow_the_environment() -> None:
    ppo = default_hyperparameters("ppo", num_envs=64, decisions=100)
    assert ppo["gamma"] == pytest.approx(0.999)
    assert ppo["n_steps"] == 100
    assert (64 * 100) % ppo["batch_size"] == 0
    assert default_hyperparameters("sac", 64, decisions=20)["gamma"] == pytest.approx(0.995)
    assert default_hyperparameters("td3", 256)["gradient_steps"] > default_hyperparameters("td3", 16)["gradient_steps"]
    ppo["policy_kwargs"]["net_arch"].append(1)
    assert default_hyperparameters("ppo", 64)["policy_kwargs"]["net_arch"] == [64, 64]  # each call gives its own


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown algorithm 'ppoo'\. Did you mean 'ppo'.*Valid: a2c"):
        default_hyperparameters("ppoo", 64)
    with pytest.raises(ValueError, match=r"Unknown algorithm 'ppoo'\. Did you mean 'ppo'"):
        default_policy("ppoo")
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1, but 0"):
        default_hyperparameters("ppo", 0)
    with pytest.raises(ValueError, match=r"decisions must be an integer >= 1, but 1\.5"):
        default_hyperparameters("ppo", 64, decisions=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown argument of LearningRate-v0 'tusk'"):
        make_sb3_env(2, tusk="digits-mlp")


def test_without_stable_baselines3_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['stable_baselines3'] = None; import agents.sb3"
    result = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert "pip install 'lr-env[sb3]'" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("ImportError")


EXTREME = np.random.default_rng(3).choice([-10.0, -1.0, 0.0, 1e-30, 1.0, 10.0], (40, 10)).astype(np.float32)


def make_model(name: str, policy: Any = "MlpPolicy", env: Any = None, **arguments: Any) -> BaseAlgorithm:
    """An untrained model whose actions reach the bounds."""
    algorithm: type[BaseAlgorithm] = getattr(stable_baselines3, name.upper())
    sizes, scale = ({}, 300.0) if name in ("a2c", "ppo") else ({"buffer_size": 100}, 30.0)
    env = env or make_sb3_env(2, task=tiny_task(), action=arguments.pop("action", "discrete" if name == "dqn" else "relative"))
    model = algorithm(policy, env, seed=1, device="cpu", **sizes, **copy.deepcopy(arguments))  # SB3 changes policy_kwargs
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(scale if parameter.ndim == 2 and len(parameter) == 1 else 1.5)
    return model


@pytest.mark.parametrize("policy_kwargs", [None, {"net_arch": [5, 7, 3], "activation_fn": nn.Tanh}, {"net_arch": []}, {"activation_fn": nn.ReLU}])
@pytest.mark.parametrize(("name", "action"), [*((name, "discrete" if name == "dqn" else "relative") for name in ALGORITHMS), ("ppo", "discrete")])
def test_exported_policies_act_as_the_model(name: str, action: str, policy_kwargs: dict[str, Any] | None, tmp_path: Path) -> None:
    model, mdp = make_model(name, action=action, policy_kwargs=policy_kwargs), MDP(action=action)
    save_controller(tmp_path / "policy.safetensors", export_policy(model, mdp))
    bound = load_controller(tmp_path / "policy.safetensors")
    assert bound.mdp == mdp
    observations = np.concatenate([np.random.default_rng(2).uniform(-10, 10, (200, 10)), np.zeros((1, 10)), EXTREME]).astype(np.float32)
    expected = model.predict(observations, deterministic=True)[0]
    actions = bound.controller.predict(observations)[0]
    assert actions.shape == expected.shape
    assert actions.dtype.kind == expected.dtype.kind
    np.testing.assert_allclose(actions, expected, rtol=0, atol=5e-7)
    assert len(np.unique(expected)) > 1
    if name in ("a2c", "ppo") and action == "relative":
        assert (np.abs(expected) == 1).any()  # clipped


@pytest.mark.parametrize("name", ["ddpg", "sac", "td3"])
def test_calm_policies_are_exported_and_loaded(name: str, tmp_path: Path) -> None:
    model = make_model(name, default_policy(name))
    model.save(tmp_path / "model.zip")
    loaded = load_model(name, tmp_path / "model.zip")
    expected = model.predict(EXTREME, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(EXTREME, deterministic=True)[0], expected)
    np.testing.assert_allclose(export_policy(loaded, MDP()).controller.predict(EXTREME)[0], expected, rtol=0, atol=5e-7)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("name", ["ddpg", "sac", "td3"])
def test_calm_actors_start_near_zero_late_and_with_a_penalty(name: str) -> None:
    """Gradients against those of the loss written out."""
    options = {"actor_starts": 2, "saturation_penalty": 0.3}
    algorithm: type[BaseAlgorithm] = getattr(stable_baselines3, name.upper())
    model = algorithm(default_policy(name), make_sb3_env(2, task=tiny_task()), seed=0, device="cpu", buffer_size=100, policy_kwargs=options)
    observations = torch.from_numpy(np.random.default_rng(1).uniform(-3, 3, (7, 10)).astype(np.float32))
    actor: Any = model.policy.actor
    assert np.abs(model.predict(observations.numpy(), deterministic=True)[0]).max() < 0.2
    assert np.abs(model.predict(np.zeros((1, 10), np.float32), deterministic=True)[0]).max() < 0.01
    layers = [*actor.latent_pi, actor.mu] if name == "sac" else list(actor.mu[:-1])
    with torch.no_grad():
        layers[-1].weight.mul_(100)

    def gradients(preactivations: torch.Tensor, penalty: float) -> list[torch.Tensor]:
        loss = (preactivations.tanh() - 0.5).square().sum() + penalty * preactivations.square().mean()
        return list(torch.autograd.grad(loss, [parameter for layer in layers for parameter in layer.parameters()]))

    def act() -> torch.Tensor:
        return actor.get_action_dist_params(observations)[0] if name == "sac" else actor(observations).atanh()

    for _ in range(2):
        assert not any(gradient.any() for gradient in gradients(act(), 0.0))
    for actual, expected in zip(gradients(act(), 0.0), gradients(nn.Sequential(*layers)(observations), 0.3), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert int(actor.num_updates) == 3


def test_noise_is_stationary_and_correlated() -> None:
    np.random.seed(0)
    noise = CorrelatedActionNoise(2_000, scale=0.3, correlation=0.8)
    values = np.stack([noise()[:, 0] for _ in range(50)])
    np.testing.assert_allclose(values.std(1), 0.3, rtol=0.08)
    for lag in (1, 3):
        assert np.corrcoef(values[:-lag].ravel(), values[lag:].ravel())[0, 1] == pytest.approx(0.8**lag, abs=0.02)
    before = noise.values
    assert before is not None
    before = before.copy()
    noise.reset()
    np.testing.assert_array_equal(noise.values, before)
    noise.reset([3, 5])
    assert np.flatnonzero((noise.values != before)[:, 0]).tolist() == [3, 5]


def test_exported_policies_are_copies() -> None:
    model = make_model("ppo")
    policy = export_policy(model, MDP()).controller
    before = policy.predict(EXTREME)[0]
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(policy.predict(EXTREME)[0], before)


class Squared(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.square()


class CustomPolicy(ActorCriticPolicy):
    pass


class CustomExtractor(FlattenExtractor):
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_kwargs": {"activation_fn": Squared}}, "ReLU or Tanh"),
        ({"policy_kwargs": {"activation_fn": nn.GELU}}, "ReLU or Tanh"),
        ({"policy": CustomPolicy}, "CustomPolicy was given"),
        ({"policy_kwargs": {"features_extractor_class": CustomExtractor}}, "CustomExtractor"),
        ({"use_sde": True}, "use_sde"),
        ({"use_sde": True, "policy_kwargs": {"squash_output": True}}, "use_sde"),
    ],
)
def test_other_policies_are_not_exported(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_policy(make_model("ppo", **arguments), MDP())


def test_image_policies_are_not_exported() -> None:
    space = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)

    class Images(gym.Env[Any, Any]):
        observation_space, action_space = space, gym.spaces.Box(-1, 1, (1,), np.float32)

    with pytest.raises(ValueError, match="ActorCriticCnnPolicy was given"):
        export_policy(make_model("ppo", "CnnPolicy", DummyVecEnv([Images])), MDP())


def test_normalised_observations_are_not_exported() -> None:
    def env() -> VecMonitor:
        return make_sb3_env(2, task=tiny_task())

    with pytest.raises(ValueError, match="VecNormalize"):
        export_policy(make_model("ppo", env=VecNormalize(env())), MDP())
    export_policy(make_model("ppo", env=VecNormalize(env(), norm_obs=False)), MDP())


def test_a_file_doesn_t_tell_whether_observations_were_normalised(tmp_path: Path) -> None:
    environments = [VecNormalize(make_sb3_env(2, task=tiny_task()), norm_obs=False) for _ in range(2)]
    make_model("ppo", env=environments[0], n_steps=4, batch_size=8).learn(8).save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="does not know any more whether that normalised observations"):
        export_policy(load_model("ppo", tmp_path / "model.zip"), MDP())
    export_policy(stable_baselines3.PPO.load(tmp_path / "model.zip", env=environments[1]), make_sb3_env(2, task=tiny_task()).mdp)  # type: ignore[attr-defined]


def test_policies_of_other_processes_are_not_exported() -> None:
    with pytest.raises(ValueError, match="not those of the decision process"):
        export_policy(make_model("ppo"), MDP(features=["progress"]))
    with pytest.raises(ValueError, match="not those of the decision process"):
        export_policy(make_model("ppo"), MDP(action="discrete"))


def test_loading_a_model(tmp_path: Path) -> None:
    model = make_model("td3")
    model.save(tmp_path / "model.zip")
    loaded = load_model("td3", tmp_path / "model.zip")
    np.testing.assert_array_equal(loaded.predict(EXTREME)[0], model.predict(EXTREME)[0])
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model("td3", tmp_path / "missing.zip")
    with pytest.raises(ValueError, match="Unknown algorithm"):
        load_model("trpo", tmp_path / "model.zip")
    saved = (tmp_path / "model.zip").read_bytes()
    for name, content in {"other": saved, "damaged": b"nothing", "cut": saved[: len(saved) // 2]}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no model of ppo"):
            load_model("ppo", path)
    with zipfile.ZipFile(tmp_path / "spoilt.zip", "w") as spoilt, zipfile.ZipFile(tmp_path / "model.zip") as model_file:
        for name in model_file.namelist():
            spoilt.writestr(name, b"nothing" if name == "policy.pth" else model_file.read(name))
    with pytest.raises(ValueError, match="no model of td3"):
        load_model("td3", tmp_path / "spoilt.zip")


def test_loading_a_model_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    make_model("ppo").save(tmp_path / "model.zip")
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index, union-attr]
    load_model("ppo", tmp_path / "model.zip")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tobytes(), random.getstate())  # type: ignore[index, union-attr]


def test_rewards_are_scaled_for_each_variant() -> None:
    """Against the formula, written out for each variant."""
    env = make_sb3_env(4, seed=3, task=tiny_task(), reward="loss")
    scaled, plain = VariantRewardScale(make_sb3_env(4, seed=3, task=tiny_task(), reward="loss"), 2, 0.9), env
    scaled.reset()
    plain.reset()
    running, history = np.zeros(4), []
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4, 1)).astype(np.float32)
    for action in actions:
        rewards, actual = plain.step(action), scaled.step(action)
        running = 0.9 * running + rewards[1]
        history.append(running.copy())
        for variant in range(2):
            values = np.array(history)[:, variant::2]
            scale = np.sqrt(values.var() + 1e-8)
            np.testing.assert_allclose(actual[1][variant::2], rewards[1][variant::2] / scale, rtol=0.05)  # SB3 begins with a guess
        running[rewards[2]] = 0


@pytest.mark.parametrize(
    ("lowest", "highest", "who_diverges"), [(1e-3, 1.0, "nobody"), (1e-2, RUINOUS_RATE, "twins"), (1 / RUINOUS_RATE, RUINOUS_RATE, "the others")]
)
def test_pairs_earn_what_they_gain_over_their_twins(lowest: float, highest: float, who_diverges: str) -> None:
    """Against single environments, the twin being put into the state at which the other one begins."""
    arguments: dict[str, Any] = {"task": tiny_task(), "action": "absolute", "lr_min": lowest, "lr_max": highest, "reward": "loss"}
    pairs = make_sb3_env(3, seed=5, paired=True, **arguments)
    assert pairs.num_envs == 3
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 3, 1)).astype(np.float32)
    if who_diverges == "twins":
        actions = np.minimum(actions - 0.9, -0.9)  # near the lowest rate
    observations, rewards, ends, terminal = [pairs.reset()], [], [], []
    for action in actions:
        observation, reward, done, infos = pairs.step(action)
        observations.append(observation)
        rewards.append(reward)
        ends.append(done)
        terminal.append([info.get("diverged") for info in infos])
    assert np.array(ends).any(0).all()
    assert np.array(terminal).any() == (who_diverges == "the others")
    for member in range(3):
        own, twin, is_over = LearningRateEnv(**arguments), LearningRateEnv(**arguments), True
        own_return = twin_return = 0.0
        twin.reset(seed=0)
        observation, _ = own.reset(seed=5 + member)
        for step, action in enumerate(actions[:, member]):
            np.testing.assert_allclose(observations[step][member], observation, rtol=1e-4, atol=1e-5)
            if is_over:
                twin.set_state(own.get_state())
                is_over = twin_is_over = False
            observation, own_reward, terminated, truncated, _ = own.step(action)
            twin_reward = 0.0
            if not twin_is_over:
                _, twin_reward, *twin_ends, _ = twin.step(np.zeros(1, np.float32))
                twin_is_over = any(twin_ends)
            np.testing.assert_allclose(rewards[step][member], own_reward - twin_reward, rtol=1e-4, atol=1e-5)
            own_return, twin_return = own_return + own_reward, twin_return + twin_reward
            is_over = terminated or truncated
            assert ends[step][member] == is_over
            if is_over:
                observation, _ = own.reset()
        assert (own_return != twin_return) == (who_diverges != "nobody" or own_return != 0)


def test_pairs_are_twins_whatever_they_are_seeded_with() -> None:
    for seed in (None, 3):
        pairs = make_sb3_env(4, seed=seed, paired=True, task=tiny_task())
        pairs.reset()
        pairs.reset()
        for _ in range(20):
            _, rewards, _, _ = pairs.step(np.zeros((4, 1), np.float32))
            np.testing.assert_array_equal(rewards, 0)
    assert len(pairs.get_attr("mdp")) == len(pairs.env_method("evaluate", "train")) == len(pairs.env_is_wrapped(VecMonitor)) == 4
    pairs.set_attr("colour", "red")
    assert pairs.get_attr("colour") == ["red"] * 4


def test_pairs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="Twins take the action 0, but the space is Discrete"):
        make_sb3_env(2, paired=True, task=tiny_task(), action="discrete")
    with pytest.raises(ValueError, match="Twins need an even number of trainings whose halves"):
        PairedVecEnv(make_adapter(3))
    family = {"num_variants": 2, "data_sets": ["wine"], "width": [4, 8], "batch_size": [16, 16], "horizon": [5, 5]}
    with pytest.raises(ValueError, match="but 6 of 2 variants were given"):
        make_sb3_env(3, paired=True, task=family)
    assert make_sb3_env(2, paired=True, task=family).num_envs == 2


def test_long_trainings_have_short_rollouts() -> None:
    family = default_hyperparameters("ppo", 256, decisions=1000, is_family=True)
    assert family["n_steps"] == 128
    assert (256 * 128) % family["batch_size"] == 0
    assert family["gamma"] == pytest.approx(0.9999)
    assert family["n_epochs"] < default_hyperparameters("ppo", 256, decisions=1000)["n_epochs"]


def test_agent_refuses_foreign_checkpoints(tmp_path: Path) -> None:
    def agent(name: str = "ppo", seed: int = 0, **arguments: Any) -> SB3Agent:
        environment = LearningRateVectorEnv(2, task=tiny_task(), autoreset_mode="SameStep", **arguments)
        return SB3Agent(name, environment, {"n_steps": 8, "batch_size": 16, "device": "cpu"} if name == "ppo" else None, seed)

    path = tmp_path / "checkpoint.safetensors"
    agent().learn(16).save_checkpoint(path)
    agent().restore(path)
    for other in (agent(seed=1), agent("a2c"), agent(features=["progress"])):
        with pytest.raises(FileFormatError, match="does not fit"):
            other.restore(path)
    with pytest.raises(ValueError, match=r"Unknown hyperparameter of ppo 'n_stepz'\. Did you mean 'n_steps'"):
        SB3Agent("ppo", agent().environment, {"n_stepz": 1})
    with pytest.raises(ValueError, match="refuses the hyperparameters"):
        SB3Agent("ppo", agent().environment, {"n_steps": 1, "batch_size": 1, "device": "cpu", "policy_kwargs": {"nonsense": 1}})


def test_learning_rates_fall_along_a_line() -> None:
    def agent(rate: Any) -> SB3Agent:
        environment = LearningRateVectorEnv(4, tiny_task(), 6, autoreset_mode="SameStep")
        return SB3Agent("ppo", environment, {"n_steps": 8, "batch_size": 16, "device": "cpu", "learning_rate": rate})

    rates: list[float] = []
    agent("lin_0.004").learn(4 * 32, lambda agent: rates.append(agent.model.policy.optimizer.param_groups[0]["lr"]))
    np.testing.assert_allclose(rates, [0.003, 0.002, 0.001, 0.0], atol=1e-12)
    for text in ("lin_", "lin_-1", "cos_0.1", "lin_inf"):
        with pytest.raises(ValueError, match=r"such as 'lin_0\.001'"):
            agent(text)


def test_benchmark_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = benchmark.Options(algorithms=("a2c",), seeds=(0,), steps=640, trainings=16, output=tmp_path)
    benchmark.main(options)
    table = (tmp_path / "table.json").read_text()
    (row,) = json.loads(table)
    assert (row["algorithm"], row["seed"], row["steps"]) == ("a2c", 0, 640)
    for name in ("constant", "SPS"):
        assert row[name]["difference"]["mean"] == pytest.approx(row["score"] - row[name]["score"])
    assert row["SPS"]["score"] < row["constant"]["score"]
    assert "a2c" in capsys.readouterr().out
    monkeypatch.delattr(benchmark, "Training")  # nothing is left to train
    benchmark.main(options)
    assert (tmp_path / "table.json").read_text() == table
    with pytest.raises(SystemExit, match="from a run with"):
        benchmark.main(dataclasses.replace(options, trainings=5))
