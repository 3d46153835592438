"""On a GPU: what trainings are must not depend on it. Skipped where there is none."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import lr_env
from agents import DDPG, DDPGConfig
from agents.sb3 import make_sb3_env
from lr_env import ControllerLR, LearningRateVectorEnv
from lr_env.tasks.models import CharacterTransformer, cnn
from lr_env.training.tracing import _CapturedGraph
from tests.rollouts import RUINOUS_RATE, Rollout, assert_same_bits, continue_with, roll_out, tiny_task
from tests.test_execution import OPTIONS, assert_close, roll

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

MORE_OPTIONS: dict[str, dict[str, Any]] = OPTIONS | {
    "momentum": {"optimizer": "momentum", "autoreset_mode": "SameStep", "horizon": 9},
    "breaker": {"circuit_breaker": True, "reward_on": "validation"},
    "groups": {"lr_groups": "layer", "optimizer": {"name": "adamw", "clip_norm": 1.0}, "features": "solar2026"},
    "examples": {"features": ["daniel2016", "xu2019"], "reward_on": "final"},
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: cnn((1, 8, 8), (3, 4), 5),
    "batch normalisation": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)),
}


def graph_of(env: LearningRateVectorEnv) -> Any:
    return env.episodes._graph.__globals__["graph"]  # type: ignore[union-attr]


def image_task(model: Callable[[], nn.Module]) -> lr_env.Task:
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(120, 1, 8, 8)), generator.integers(5, size=120)
    return lr_env.Task.from_tensors("images", model, images, labels, batch_size=10, horizon=12)


def text_task() -> lr_env.Task:
    text = torch.randint(11, (90, 9), generator=torch.Generator().manual_seed(0))
    model = lambda: CharacterTransformer(11, 8, width=8, num_heads=2, num_layers=1)  # noqa: E731
    return lr_env.Task.from_tensors("text", model, text[:, :-1], text[:, 1:], batch_size=6, horizon=12)


@pytest.mark.parametrize("name", MORE_OPTIONS)
def test_as_on_the_cpu(name: str) -> None:
    options = {"initial_rate": None, **MORE_OPTIONS[name]} if name == "residual" else MORE_OPTIONS[name]
    if "lr_groups" in options:
        actions = np.random.default_rng(0).uniform(-0.1, 0.1, (30, 3, 2))
        envs = [LearningRateVectorEnv(3, tiny_task(), dtype="float64", device=device, **options) for device in ("cpu", "cuda")]
        width = envs[0].single_action_space.shape[0]  # type: ignore[index]
        assert_close(*[roll_out(env, np.resize(actions, (30, 3, width)), seed=5) for env in envs], tolerance=1e-7)
        return
    assert_close(roll(3, **options), roll(3, device="cuda", **options), 1e-7)


@pytest.mark.parametrize("name", ["digits", "residual"])
def test_compiled_as_on_the_cpu(name: str) -> None:
    options = {"initial_rate": None, **OPTIONS[name]} if name == "residual" else OPTIONS[name]
    assert_close(roll(3, 30, **options), roll(3, 30, device="cuda", compile=True, **options), 1e-7)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_models_as_on_the_cpu(model: str, num_envs: int) -> None:
    task = image_task(MODELS[model])
    assert_close(roll(num_envs, 30, task=task), roll(num_envs, 30, task=task, device="cuda"), 1e-7)


def test_a_transformer_as_on_the_cpu() -> None:
    assert_close(roll(3, 30, task=text_task()), roll(3, 30, task=text_task(), device="cuda"), 1e-7)


def test_convolutions_keep_the_precision_of_their_numbers() -> None:
    task = image_task(MODELS["convolutions"])
    first, second = (roll(3, 12, task=task, dtype="float32", device=device).values("loss") for device in ("cpu", "cuda"))
    np.testing.assert_allclose(first, second, rtol=1e-4)
    assert torch.backends.cudnn.allow_tf32  # the process keeps its own setting


def test_variants_of_a_family_as_on_the_cpu() -> None:
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (20, 24, 1))
    rollouts = [roll_out(LearningRateVectorEnv(24, "small", dtype="float64", device=device), actions, seed=1) for device in ("cpu", "cuda")]
    assert_close(*rollouts, tolerance=1e-7)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_decision_is_one_cuda_graph(compiles: bool) -> None:
    for task in ("digits-mlp-scaled", image_task(MODELS["convolutions"]), text_task()):
        env = LearningRateVectorEnv(4, task, device="cuda", compile=compiles)
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.zeros((4, 1)))
        assert isinstance(graph_of(env), _CapturedGraph), task


def test_the_same_bits_again() -> None:
    for task in (tiny_task(), image_task(MODELS["convolutions"]), text_task()):
        assert_same_bits(roll(3, 30, task=task, device="cuda"), roll(3, 30, task=task, device="cuda"))


def test_a_member_that_diverges_leaves_its_neighbours_bits() -> None:
    tame = np.full((6, 3, 1), 0.05)
    wild = tame.copy()
    wild[2, 1] = RUINOUS_RATE
    env = LearningRateVectorEnv(3, tiny_task(), action="rate", device="cuda")
    rollouts = [roll_out(env, actions, seed=0) for actions in (tame, wild)]
    assert rollouts[1].terminated[2].tolist() == [False, True, False]
    np.testing.assert_array_equal(*[np.array(rollout.rewards)[:, [0, 2]] for rollout in rollouts])
    np.testing.assert_array_equal(*[np.array(rollout.observations)[:, [0, 2]] for rollout in rollouts])


def test_resets_of_some_as_on_the_cpu() -> None:
    def run(device: str) -> Rollout:
        env = LearningRateVectorEnv(4, tiny_task(horizon=50), autoreset_mode="Disabled", dtype="float64", device=device)
        rollout = roll_out(env, np.zeros((5, 4, 1)), seed=0)
        env.reset(options={"reset_mask": np.array([False, True, False, True])})
        continue_with(env, np.full((5, 4, 1), 0.1), rollout)
        return rollout

    assert_close(run("cpu"), run("cuda"), 1e-7)


def test_a_branched_training_goes_on_with_the_same_bits() -> None:
    env = LearningRateVectorEnv(3, "digits-mlp-scaled", optimizer="adam", device="cuda")
    roll_out(env, np.zeros((30, 3, 1)), seed=0)
    state = env.get_state()
    futures = []
    for copy in (env, env, pickle.loads(pickle.dumps(env))):
        copy.set_state(state)
        futures.append(Rollout())
        continue_with(copy, np.full((30, 3, 1), 0.1), futures[-1])
    assert_same_bits(futures[0], futures[1])
    assert_same_bits(futures[0], futures[2])


def test_observations_are_fresh() -> None:
    env = LearningRateVectorEnv(2, tiny_task(), device="cuda")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.ones((2, 1)))
    np.testing.assert_array_equal(first, kept)


def test_agents_train_on_it() -> None:
    def train() -> DDPG:
        env = gym.make_vec("LearningRate-v0", num_envs=4, task="digits-logreg", horizon=10, autoreset_mode="SameStep", device="cuda")
        return DDPG(env, DDPGConfig(batch_size=32, learning_starts=64, actor_starts=10, memory_size=4_000, hidden=(16,)), seed=0).learn(400)

    first, second = train(), train()
    assert all(torch.equal(a, b) for a, b in zip(first.actor.parameters(), second.actor.parameters(), strict=True))
    env = make_sb3_env(4, task="digits-logreg", horizon=5, device="cuda")
    env.reset()
    for _ in range(6):
        env.step(np.zeros((4, 1), np.float32))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_controller_lr_as_on_the_cpu(make: Any) -> None:
    rates = []
    for device in ("cpu", "cuda"):
        task = lr_env.make_task("digits-mlp")
        assert isinstance(task, lr_env.Task)
        model = task.initial_model(0).to(device, torch.float64)
        optimizer = make(model.parameters(), lr=0.01)
        controller = ControllerLR(optimizer, "pretrained", total_steps=40)
        chosen = []
        for (inputs, targets), _ in zip(task.batches(0), range(40), strict=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs.to(device, torch.float64)), targets.to(device))
            loss.backward()
            controller.step(loss)
            chosen.append(controller.get_last_lr()[0])
            optimizer.step()
        rates.append(chosen)
    np.testing.assert_allclose(*rates, rtol=1e-5)


def test_what_draws_while_it_trains_is_refused() -> None:
    task = tiny_task(lambda: nn.Sequential(nn.Dropout(), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match='use device="cpu" for it'):
        LearningRateVectorEnv(2, task, device="cuda").reset(seed=0)
