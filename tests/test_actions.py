"""Actions, the rate range and the MDP's specification."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lr_env import MDP
from lr_env.mdp import ACTIONS, BASE_SCHEDULES, FEATURES, make_action
from lr_env.training import OPTIMIZERS
from tests.rollouts import roll_out, tiny_task

REAL_DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_])


def make(action: Any, **options: Any) -> gym.Env[Any, Any]:
    return gym.make("LearningRate-v0", **{"task": tiny_task(horizon=20), "action": action, "dtype": "float64", **options})


def chosen_rates(env: gym.Env[Any, Any], actions: Any) -> np.ndarray:
    return roll_out(env, actions).values("learning_rate")


def test_relative_actions_multiply_the_rate() -> None:
    actions = np.array([[1.0], [-0.5], [0.2], [0.0]])
    expected = 0.1 * 10 ** (0.5 * np.array([0, 1.0, 0.5, 0.7, 0.7]))
    np.testing.assert_allclose(chosen_rates(make("relative"), actions), expected, rtol=1e-12)
    expected = 0.1 * 10 ** (0.1 * np.array([0, 1.0, 0.5, 0.7, 0.7]))
    np.testing.assert_allclose(chosen_rates(make({"kind": "relative", "max_change": 0.1}), actions), expected, rtol=1e-12)


def test_absolute_actions_are_log_uniform_over_the_range() -> None:
    rates = chosen_rates(make("absolute", lr_min=1e-3, lr_max=10.0), [[-1.0], [0.0], [1.0], [0.5]])
    np.testing.assert_allclose(rates[1:], [1e-3, 0.1, 10.0, 1.0], rtol=1e-12)


@pytest.mark.parametrize("base", BASE_SCHEDULES)
def test_residual_actions_correct_a_schedule_anew_at_each_step(base: str) -> None:
    progress = np.arange(20) / 20
    shape = {
        "constant": np.ones(20),
        "linear": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
        "step": np.repeat([1.0, 0.1, 0.01], [10, 5, 5]),
        "warmup_stable_decay": np.array([0.1, *[1.0] * 16, 0.75, 0.5, 0.25]),
    }[base]
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 1))
    rates = chosen_rates(make({"kind": "residual", "base": base, "decades": 0.7}, initial_rate=0.05, lr_min=1e-8), actions)
    assert rates[0] == pytest.approx(0.05)
    np.testing.assert_allclose(rates[1:], 0.05 * shape * 10 ** (0.7 * actions[:, 0]), rtol=1e-9)
    own = chosen_rates(make({"kind": "residual", "base": base, "decades": 0.7, "rate": 0.2}, initial_rate=0.05, lr_min=1e-8), actions)
    np.testing.assert_allclose(own[1:], 4 * rates[1:], rtol=1e-9)


def test_a_schedule_is_off_by_what_its_trainings_start_is_off() -> None:
    options: dict[str, Any] = {"initial_rate": 0.05, "lr_min": 1e-8, "lr_max": 1e8}
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 1))
    for action in ({"kind": "residual", "base": "linear"}, {"kind": "residual", "base": "linear", "rate": 0.2}):
        exact, off = chosen_rates(make(action, **options), actions), chosen_rates(make(action, **options, initial_rate_decades=1.0), actions)
        assert 0.1 < off[0] / exact[0] < 10 and off[0] != exact[0]
        np.testing.assert_allclose(off, exact * (off[0] / exact[0]), rtol=1e-9)
    polyak = {"kind": "residual"}
    np.testing.assert_array_equal(
        chosen_rates(make(polyak, **options), actions)[1:], chosen_rates(make(polyak, **options, initial_rate_decades=1.0), actions)[1:]
    )


def test_a_rate_belongs_to_a_schedule() -> None:
    with pytest.raises(ValueError, match="rate belongs to a base schedule"):
        make_action({"kind": "residual", "rate": 0.1})
    with pytest.raises(ValueError, match="rate must be a finite number > 0"):
        make_action({"kind": "residual", "base": "linear", "rate": 0.0})


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_residual_actions_on_sps_use_the_present_loss_gradient_and_direction(optimizer: str) -> None:
    env = make({"kind": "residual", "decades": 1.0, "constant": 0.3}, optimizer=optimizer, lr_min=1e-9, lr_max=1e9, horizon=40)
    env.reset(seed=0)
    floored = []
    for action in [0.0, -0.5, 0.25] * 12:
        population = env.unwrapped.episodes.population
        loss, gradient, direction = env.unwrapped.episodes.losses[0], population.gradients[0].numpy(), population.directions[0].numpy()
        least = 0.1 * np.linalg.norm(gradient) * np.linalg.norm(direction)
        floored.append(gradient @ direction < least)
        _, _, _, _, info = env.step([action])
        assert info["learning_rate"] == pytest.approx(0.3 * loss / max(gradient @ direction, least) * 10**action, rel=1e-9)
    assert any(floored) == (optimizer != "sgd")


def test_discrete_actions_are_factors() -> None:
    env = make("discrete")
    assert env.action_space == gym.spaces.Discrete(5)
    rates = chosen_rates(env, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(np.diff(np.log10(rates)), [-0.5, -0.25, 0.0, 0.25, 0.5], atol=1e-12)
    assert make({"kind": "discrete", "steps": 1}).action_space == gym.spaces.Discrete(3)


def test_the_action_rate_is_taken_as_it_is() -> None:
    given_rates = [[0.1], [1e-17], [0.0], [1 / 3]]
    rates = chosen_rates(make("rate", lr_min=1e-3, lr_max=1.0), given_rates)
    np.testing.assert_array_equal(rates[1:], np.ravel(given_rates))  # neither rounded nor clipped to the range


@pytest.mark.parametrize("kind", ["relative", "absolute", "residual", "discrete"])
@pytest.mark.parametrize("action", [-1, 1])
def test_rates_stay_within_the_range(kind: str, action: int) -> None:
    env = make(kind, lr_min=0.05, lr_max=0.2)
    value: Any = (0 if action < 0 else 4) if kind == "discrete" else [action]
    rates = chosen_rates(env, [value] * 6)
    np.testing.assert_allclose(rates[-1], 0.05 if action < 0 else 0.2, rtol=1e-12)
    assert (rates >= 0.05 * (1 - 1e-12)).all() and (rates <= 0.2 * (1 + 1e-12)).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_user_s_range_moves_the_default_start_into_it(optimizer: str) -> None:
    assert MDP(optimizer, lr_min=0.5, lr_max=0.6).rate_range().initial == 0.5
    low = MDP(optimizer).rate_range()
    assert MDP(optimizer, lr_max=low.initial / 2).rate_range().initial == low.initial / 2
    assert low.lowest < low.initial < low.highest


def test_the_start_is_drawn_within_the_decades_given_and_belongs_to_the_seed() -> None:
    env = make("relative", initial_rate_decades=1.5)
    starts = np.array([env.reset(seed=seed)[1]["learning_rate"] for seed in range(200)])
    decades = np.log10(starts / 0.1)
    assert -1.5 <= decades.min() < -1.3 and 1.3 < decades.max() <= 1.5
    assert env.reset(seed=7)[1]["learning_rate"] == starts[7]
    plain = make("relative")
    env.reset(seed=7), plain.reset(seed=7)  # weights and data are paired across MDPs
    assert (env.unwrapped.episodes.population.parameters == plain.unwrapped.episodes.population.parameters).all()


@pytest.mark.parametrize("kind", ["relative", "absolute", "residual"])
@given(values=hnp.arrays(REAL_DTYPES, (3, 1), elements={"allow_nan": False}))
@settings(max_examples=60, deadline=None)
def test_real_actions_of_any_dtype_are_cast_and_clipped(kind: str, values: np.ndarray) -> None:
    process = MDP(action=kind).begin(1, 10, 0.0)
    parsed = process.parse_actions(values, 3)
    assert parsed.dtype == np.float64 and parsed.shape == (3, 1)
    np.testing.assert_array_equal(parsed, np.clip(values.astype(np.float64), -1, 1))


@given(values=hnp.arrays(np.int64, (4,)))
@settings(max_examples=60, deadline=None)
def test_discrete_actions_are_clipped(values: np.ndarray) -> None:
    parsed = MDP(action="discrete").begin(1, 10, 0.0).parse_actions(values, 4)
    np.testing.assert_array_equal(parsed[:, 0], np.clip(values.astype(np.float64), 0, 4))


@given(values=hnp.arrays(np.float64, (2, 1), elements={"allow_nan": False}))
@settings(max_examples=60, deadline=None)
def test_raw_rates_are_not_negative(values: np.ndarray) -> None:
    parsed = MDP(action="rate").begin(1, 10, 0.0).parse_actions(values, 2)
    np.testing.assert_array_equal(parsed, np.maximum(values, 0))


def test_parsing_does_not_change_the_user_s_array() -> None:
    values = np.array([[3.0]])
    MDP().begin(1, 10, 0.0).parse_actions(values, 1)
    assert values[0, 0] == 3.0


POSITIVE = st.floats(0.01, 5)
BASES = st.sampled_from(list(BASE_SCHEDULES))
MDPS = st.builds(
    MDP,
    optimizer=st.sampled_from(OPTIMIZERS) | st.builds(lambda beta: {"name": "adam", "beta1": beta}, st.floats(0, 0.999)),
    features=st.sampled_from(["scale_free", "absolute"]) | st.lists(st.sampled_from(list(FEATURES)), min_size=1),
    action=st.sampled_from(list(ACTIONS)) | st.builds(lambda d, b: {"kind": "residual", "decades": d, "base": b}, POSITIVE, BASES),
    reward=st.sampled_from(["loss", "log_loss"]) | st.builds(lambda floor: {"kind": "log_loss", "loss_floor": floor}, st.floats(0, 1)),
    reward_on=st.sampled_from(["next_batch", "same_batch", "reference", "validation", "final"]),
    steps_per_action=st.integers(1, 50),
    lr_min=st.none() | st.floats(1e-9, 1e-3),
    lr_max=st.none() | st.floats(1.0, 1e9),
    initial_rate_decades=st.floats(0, 4),
)  # fmt: skip


@given(mdp=MDPS)
@settings(max_examples=100, deadline=None)
def test_a_specification_survives_json(mdp: MDP) -> None:
    again = MDP(**json.loads(json.dumps(mdp.to_dict())))
    assert again == mdp
    assert again.to_dict() == mdp.to_dict()


def test_tuples_in_a_specification_become_lists() -> None:
    assert MDP(features=("log_loss",)).to_dict()["features"] == ["log_loss"]


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("relativ", "Unknown action 'relativ'. Did you mean 'relative'"),
        ({"max_change": 1.0}, "Unknown action 'None'"),
        ({"kind": "relative", "max_chang": 1.0}, "Unknown option of action 'relative' 'max_chang'. Did you mean 'max_change'"),
        ({"kind": "relative", "max_change": 0.0}, "max_change must be a finite number > 0, but 0.0 was given"),
        ({"kind": "relative", "max_change": float("nan")}, "max_change must be a finite number > 0"),
        ({"kind": "residual", "base": "cosin"}, "Unknown base of a residual action 'cosin'. Did you mean 'cosine'"),
        ({"kind": "residual", "constant": -1}, "constant must be a finite number > 0"),
        ({"kind": "discrete", "steps": 0}, "steps must be an integer >= 1, but 0 was given"),
        ({"kind": "discrete", "steps": 1.5}, "steps must be an integer >= 1"),
    ],
)
def test_wrong_specifications_are_refused(specification: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_action(specification)


def test_discrete_actions_hold_for_one_parameter_group_only() -> None:
    with pytest.raises(ValueError, match="exactly one parameter group"):
        make_action("discrete").space(2)
