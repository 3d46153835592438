"""Rewards against naive sums, and scripts that try to earn without progress."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lr_env import NoisyQuadratic, Task, make_task
from lr_env.mdp import REWARD_SOURCES, REWARDS, Reward, make_reward
from tests.reference import mean_loss, train
from tests.rollouts import RUINOUS_RATE, Rollout, roll_out, tiny_task

WHOLE = {"subset_size": 256}  # more than there are examples
RATES = 0.1 * 10 ** np.random.default_rng(0).uniform(-0.5, 0.5, 8)


def potential(kind: str, loss: float, first: float, bound: float = 20.0, floor: float = 0.0) -> float:
    """Φ, written as the specification says; the loss's lower bound is 0."""
    clipped = bound * first if not np.isfinite(loss) else min(max(loss, 1e-6 * first), bound * first)
    return clipped if kind == "loss" else float(np.log10(clipped + floor * first))


def make(task: Task, **options: Any) -> gym.Env[Any, Any]:
    return gym.make("LearningRate-v0", task=task, **{"action": "rate", "dtype": "float64", **options})


@cache
def naive(seed: int) -> tuple[list[float], dict[str, list[float]], list[float]]:
    """Of the plain training: minibatch losses, losses on whole splits, and ℓ(B_t; w_{t+1})."""
    task = tiny_task()
    history = train(task, seed, list(RATES))
    splits = {}
    for name in ("train", "validation"):
        split = task.data.split(name)
        splits[name] = [mean_loss(task, model, split.inputs, split.targets) for model in history.models]
    batches = task.batches(seed)
    again = [mean_loss(task, model, *next(batches)) for model in history.models[1:]]
    return history.losses, splits, again


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("source", REWARD_SOURCES)
def test_rewards_equal_their_definitions(kind: str, source: str) -> None:
    losses, splits, again = naive(3)
    rewards = roll_out(make(tiny_task(), reward={"kind": kind, **WHOLE}, reward_on=source), RATES[:, None], seed=3).rewards
    # The training split has 102 examples: the reference subset is all of it.
    if source == "same_batch":
        expected = [potential(kind, before, losses[0]) - potential(kind, after, losses[0]) for before, after in zip(losses, again, strict=False)]
    else:
        series = splits["validation" if source == "validation" else "train"]
        if source == "next_batch":
            series = [series[0], *losses[1:-1], series[-1]]
        potentials = [potential(kind, loss, series[0]) for loss in series]
        expected = [before - after for before, after in pairwise(potentials)]
        if source == "final":
            expected = [0.0] * 7 + [potentials[0] - potentials[-1]]
    np.testing.assert_allclose(rewards, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("source", ["next_batch", "reference", "final"])
@pytest.mark.parametrize("steps_per_action", [1, 3])
@pytest.mark.parametrize("name", ["digits-mlp", "tiny"])
def test_the_undiscounted_return_is_the_reduction_on_the_reference_subset(kind: str, source: str, steps_per_action: int, name: str) -> None:
    task = make_task(name) if name != "tiny" else tiny_task()
    env = make(task, reward=kind, reward_on=source, steps_per_action=steps_per_action, horizon=20)
    _, _ = env.reset(seed=1)
    episodes = env.unwrapped.episodes
    subset = episodes._subset
    assert len(subset) == 4 * task.batch_size
    rollout = roll_out(env, [[0.1]] * 20, seed=1)
    data = task.data.split("train")
    first, last = (mean_loss(task, train(task, 1, [0.1] * t).model, data.inputs[subset], data.targets[subset]) for t in (0, 20))
    assert len(rollout.rewards) == -(-20 // steps_per_action)
    assert sum(rollout.rewards) == pytest.approx(potential(kind, first, first) - potential(kind, last, first), rel=1e-9)
    assert sum(rollout.rewards) > 0


@pytest.mark.parametrize("kind", REWARDS)
def test_the_interval_of_the_reference_reward(kind: str) -> None:
    _, splits, _ = naive(3)
    env = make(tiny_task(), reward={"kind": kind, "interval": 3, **WHOLE}, reward_on="reference")
    rewards = roll_out(env, RATES[:, None], seed=3).rewards
    values = [potential(kind, splits["train"][t], splits["train"][0]) for t in (0, 3, 6, 8)]
    expected = [0, 0, values[0] - values[1], 0, 0, values[1] - values[2], 0, values[2] - values[3]]
    np.testing.assert_allclose(rewards, expected, rtol=1e-9, atol=1e-12)


def test_the_floor_of_the_logarithm() -> None:
    _, splits, _ = naive(3)
    env = make(tiny_task(), reward={"kind": "log_loss", "loss_floor": 0.5, **WHOLE}, reward_on="reference")
    values = [potential("log_loss", loss, splits["train"][0], floor=0.5) for loss in splits["train"]]
    np.testing.assert_allclose(roll_out(env, RATES[:, None], seed=3).rewards, -np.diff(values), rtol=1e-9, atol=1e-12)


def test_potentials_are_bounded_and_monotone() -> None:
    losses = np.array([-1.0, 0.0, 1e-9, 1e-3, 1.0, 19.9, 20.0, 1e9, np.inf, np.nan])
    for kind in REWARDS:
        values = make_reward(kind, "reference").potential(losses, np.ones(10))
        assert np.isfinite(values).all() and (np.diff(values) >= 0).all()
        assert values[-1] == values[-2] == values[6] == pytest.approx(20 if kind == "loss" else np.log10(20))
        assert values[0] == values[1] == pytest.approx(1e-6 if kind == "loss" else -6)


def test_what_counts_as_diverged() -> None:
    reward = Reward(divergence=5.0)
    losses = np.array([4.9, 5.1, np.nan, np.inf, -np.inf, 0.0])
    assert reward.has_diverged(losses, np.ones(6)).tolist() == [False, True, True, True, False, False]
    assert reward.has_diverged(np.array([8.0, 10.1]), np.full(2, 2.0)).tolist() == [False, True]


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("source", ["next_batch", "reference", "validation", "final"])
@pytest.mark.parametrize("when", [0, 4, 7])
def test_a_diverged_return_is_the_worst_there_is_whenever_it_diverges(kind: str, source: str, when: int) -> None:
    _, splits, _ = naive(3)
    first = splits["validation" if source == "validation" else "train"][0]
    rates = RATES[:, None].copy()
    rates[when] = RUINOUS_RATE
    rollout = roll_out(make(tiny_task(), reward={"kind": kind, **WHOLE}, reward_on=source), rates, seed=3)
    assert rollout.terminated[-1] and rollout.infos[-1]["diverged"] and len(rollout.rewards) == when + 1
    worst = potential(kind, first, first) - potential(kind, np.inf, first)
    assert sum(rollout.rewards) == pytest.approx(worst, rel=1e-9)
    assert np.isfinite(rollout.observations[-1]).all()


# ---- scripts that try to earn without progress ---------------------------------------------------------------------------------

QUIET = NoisyQuadratic(curvatures=(1.0, 1.0), noise_variances=(0.0, 0.0), initial_weights=(1.0, -2.0), horizon=30)
"""Without noise, and with one curvature: a step of rate η multiplies the loss by exactly (1 − η)²."""

Script = Callable[[int, float], float]


def diverge_at_once(t: int, lowest: float) -> float:
    return RUINOUS_RATE


def diverge_at_the_end(t: int, lowest: float) -> float:
    return RUINOUS_RATE if t == 29 else lowest


def sit_just_under_the_clip(t: int, lowest: float) -> float:
    return 1 + np.sqrt(19.9) if t == 0 else 0.0


def sit_just_under_the_clip_and_swing(t: int, lowest: float) -> float:
    return 1 + np.sqrt(19.9) if t == 0 else 2.0


def raise_the_loss_then_recover(t: int, lowest: float) -> float:
    # Down again to the first loss, and no lower.
    return {0: 1 + np.sqrt(15.0), 15: 1 - np.sqrt(1 / 15)}.get(t, 0.0)


def raise_and_recover_again_and_again(t: int, lowest: float) -> float:
    return 1 + np.sqrt(15.0) if t % 2 == 0 else 1 - np.sqrt(1 / 15)


def sit_above_the_clip_of_the_potential_and_recover(t: int, lowest: float) -> float:
    # Raised in two steps, so that the second one starts high.
    return {0: 1 + np.sqrt(4.0), 1: 1 + np.sqrt(4.9), 28: 1 - np.sqrt(1 / 4.0), 29: 1 - np.sqrt(1 / 4.9)}.get(t, 0.0)


VANDALS = [
    diverge_at_once,
    diverge_at_the_end,
    sit_just_under_the_clip,
    sit_just_under_the_clip_and_swing,
    raise_the_loss_then_recover,
    raise_and_recover_again_and_again,
    sit_above_the_clip_of_the_potential_and_recover,
]


@cache
def quadratic_return(script: Script | None, kind: str, source: str) -> Rollout:
    lowest = 1e-4
    rates = [[lowest if script is None else script(t, lowest)] for t in range(30)]
    return roll_out(make(QUIET.task(), reward=kind, reward_on=source), rates)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("source", REWARD_SOURCES)
@pytest.mark.parametrize("script", VANDALS)
def test_vandals_do_not_earn_more_than_the_lowest_rate_on_a_quadratic(script: Script, kind: str, source: str) -> None:
    honest, vandal = quadratic_return(None, kind, source), quadratic_return(script, kind, source)
    assert sum(honest.rewards) > 0
    peak = np.nanmax(vandal.values("loss")) / vandal.infos[0]["loss"]
    assert peak > 4 or vandal.infos[-1]["diverged"]  # it was vandalism
    assert vandal.infos[-1]["diverged"] == script.__name__.startswith("diverge")
    assert sum(vandal.rewards) < sum(honest.rewards)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("source", REWARD_SOURCES)
def test_vandals_do_not_earn_more_than_the_lowest_rate_on_digits(kind: str, source: str) -> None:
    """Eight members each: the same scripts by closed loop, since here nobody knows the loss of a rate beforehand."""
    env = gym.make_vec(
        "LearningRate-v0", num_envs=8, task="digits-mlp", horizon=30, action="rate", reward=kind, reward_on=source, autoreset_mode="Disabled"
    )

    def play(rate: Callable[[int, np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns, highest loss relative to the first, and who diverged."""
        _, info = env.reset(seed=0)
        first, returns, ended, diverged = info["loss"], np.zeros(8), np.zeros(8, bool), np.zeros(8, bool)
        ratio, peak = np.ones(8), np.ones(8)
        for t in range(30):
            _, rewards, terminated, truncated, info = env.step(np.where(ended, 0.0, rate(t, ratio))[:, None])
            ratio = info["loss"] / first
            returns += np.where(ended, 0.0, rewards)  # what members do after their first end is not counted
            peak = np.where(ended, peak, np.fmax(peak, ratio))
            diverged |= ~ended & info["diverged"]
            ends_now = terminated | truncated
            ended |= ends_now
            if ends_now.any():
                env.reset(options={"reset_mask": ends_now})
        return returns, peak, diverged

    honest, _, diverged = play(lambda t, ratio: np.full(8, 1e-4))
    assert not diverged.any()
    returns, _, diverged = play(lambda t, ratio: np.full(8, 1e4))
    assert diverged.all() and (returns < honest).all()
    # Up by a large rate, then standing still at the height reached.
    returns, peak, diverged = play(lambda t, ratio: np.where((t == 0) & (ratio < 3), 12.0, 0.0))
    assert not diverged.all() and (peak > 1.5).any()
    worse = diverged | (peak > 1.5)
    assert worse.sum() >= 4 and (returns < honest)[worse].all()
    # Up, then down again by rates so low that the height is not made good.
    returns, peak, diverged = play(lambda t, ratio: np.full(8, 12.0 if t == 0 else 1e-3))
    worse = diverged | (peak > 1.5)
    assert worse.sum() >= 4 and (returns < honest)[worse].all()


@pytest.mark.parametrize(
    ("specification", "source", "message"),
    [
        ("logloss", "reference", "Unknown reward 'logloss'. Did you mean 'log_loss'"),
        ("loss", "next-batch", "Unknown reward_on 'next-batch'. Did you mean 'next_batch'"),
        ({"kind": "loss", "floor": 1}, "reference", "Unknown option of the reward 'floor'. Did you mean 'loss_floor'"),
        ({"kind": "loss", "source": "final"}, "reference", "Unknown option of the reward 'source'"),
        ({"interval": 0}, "reference", "interval must be an integer >= 1, but 0 was given"),
        ({"subset_size": 1.5}, "reference", "subset_size must be an integer >= 1, but 1.5"),
        ({"loss_floor": -0.1}, "reference", "loss_floor must be a finite number >= 0, but -0.1"),
        ({"divergence": 1.0}, "reference", "divergence must be a finite number > 1, but 1.0"),
        ({"divergence": float("inf")}, "reference", "divergence must be a finite number > 1"),
    ],
)
def test_wrong_specifications_are_refused(specification: Any, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_reward(specification, source)


@pytest.mark.parametrize("gradients", ["looped", "batched"])
def test_nothing_is_paid_on_the_same_batch_where_the_rate_is_zero(gradients: str) -> None:
    env = gym.make("LearningRate-v0", gradients=gradients, action="rate", reward="loss", reward_on="same_batch", horizon=20)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[1] for _ in range(20)] == [0.0] * 20
