"""Bad input gets an error that says what to do, and leaves the environment usable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from lr_env import MDP, LearningRateEnv, LearningRateVectorEnv, Task, TaskFamily
from lr_env.tasks import Data, Split
from tests.rollouts import Rollout, assert_same_bits, continue_with, roll_out, tiny_task

WRONG_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"task": "digit-mlp"}, ValueError, ["Unknown task 'digit-mlp'", "'digits-mlp'", "noisy-quadratic"]),
    ({"task": nn.Linear(2, 2)}, TypeError, ["Linear was given", "Task.from_tensors"]),
    ({"task": None}, TypeError, ["NoneType was given"]),
    ({"features": "scalefree"}, ValueError, ["Unknown feature 'scalefree'", "'scale_free'"]),
    ({"features": ["log_loss", "log_los"]}, ValueError, ["Unknown feature 'log_los'", "'log_loss'"]),
    ({"features": []}, ValueError, ["At least one feature", "scale_free"]),
    ({"action": "relativ"}, ValueError, ["Unknown action 'relativ'", "'relative'"]),
    ({"action": {"kind": "relative", "max_chance": 1}}, ValueError, ["'max_chance'", "'max_change'"]),
    ({"reward": "logloss"}, ValueError, ["Unknown reward 'logloss'", "'log_loss'"]),
    ({"reward_on": "nextbatch"}, ValueError, ["Unknown reward_on 'nextbatch'", "'next_batch'"]),
    ({"optimizer": "adamax"}, ValueError, ["Unknown optimizer 'adamax'", "'adam'"]),
    ({"gradients": "vmap"}, ValueError, ["Unknown gradients 'vmap'", "batched", "looped"]),
    ({"dtype": "float16"}, ValueError, ["Unknown dtype 'float16'", "float32", "float64"]),
    ({"lr_min": 1.0, "lr_max": 1.0}, ValueError, ["0 < lr_min < lr_max", "lr_min=1.0 and lr_max=1.0"]),
    ({"lr_min": 2.0, "lr_max": 1.0}, ValueError, ["lr_min=2.0 and lr_max=1.0"]),
    ({"lr_min": 0.0}, ValueError, ["0 < lr_min", "lr_min=0.0"]),
    ({"lr_min": -1.0}, ValueError, ["lr_min=-1.0"]),
    ({"lr_max": float("inf")}, ValueError, ["lr_max=inf"]),
    ({"lr_max": float("nan")}, ValueError, ["lr_max=nan"]),
    ({"initial_rate": 1e9}, ValueError, ["initial_rate must be within [lr_min, lr_max] = [0.0001, 100.0]", "1000000000.0 was given"]),
    ({"initial_rate_decades": -1.0}, ValueError, ["within [0, 4]", "-1.0"]),
    ({"horizon": 0}, ValueError, ["horizon must be an integer >= 1", "0 was given"]),
    ({"horizon": -5}, ValueError, ["-5 was given"]),
    ({"horizon": 2.5}, ValueError, ["2.5 was given"]),
    ({"horizon": True}, ValueError, ["True was given"]),
    ({"steps_per_action": 0}, ValueError, ["steps_per_action must be an integer >= 1", "0 was given"]),
    ({"steps_per_action": 1.5}, ValueError, ["1.5 was given"]),
    ({"lr_min": "0.1"}, TypeError, ["lr_min must be a number, but '0.1' was given"]),
    ({"initial_rate": "0.1"}, TypeError, ["initial_rate must be a number"]),
    ({"features": 5}, TypeError, ["features must be a name or a list of names, but 5 was given"]),
    ({"action": None}, TypeError, ["action must be a name or a mapping of options with its kind, but None was given"]),
    ({"action": {"kind": "relative", "max_change": True}}, TypeError, ["max_change must be a number, but True was given"]),
    ({"reward": None}, TypeError, ["reward must be a name or a mapping"]),
    ({"reward": {"loss_floor": "a"}}, TypeError, ["loss_floor must be a number, but 'a' was given"]),
    ({"compile": "False"}, TypeError, ["compile must be True or False, but 'False' was given"]),
    ({"render_mode": "human"}, ValueError, ["'rgb_array'", "'human' was given"]),
]


@pytest.mark.parametrize(("arguments", "kind", "fragments"), WRONG_ARGUMENTS, ids=[str(case[0])[:50] for case in WRONG_ARGUMENTS])
@pytest.mark.parametrize("environment", [LearningRateEnv, LearningRateVectorEnv])
def test_constructors_say_what_was_given_and_what_is_allowed(
    environment: Any, arguments: dict[str, Any], kind: type[Exception], fragments: list[str]
) -> None:
    options = {"task": tiny_task(), **arguments}
    with pytest.raises(kind) as error:
        environment(**options)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"num_envs": 0}, ["num_envs must be an integer >= 1", "0 was given"]),
        ({"num_envs": 1.5}, ["1.5 was given"]),
        ({"autoreset_mode": "nextstep"}, ["Unknown autoreset_mode 'nextstep'", "'NextStep'"]),
        ({"horizons": 3}, ["Unknown argument of LearningRate-v0 'horizons'", "'horizon'"]),
        ({"max_episode_steps": 10}, ["max_episode_steps=10", "horizon="]),
    ],
)
def test_the_vector_environment_s_own_arguments(arguments: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as error:
        gym.make_vec("LearningRate-v0", **{"num_envs": 2, **arguments})
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_time_limit_of_gymnasium_truncates_from_outside() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), max_episode_steps=3)  # the environment itself is not told
    rollout = roll_out(env, [[0.1]] * 8)
    assert (rollout.truncated, rollout.terminated[-1]) == ([False, False, True], False)
    assert_same_bits(rollout_of_three(), Rollout(rollout.observations, rollout.rewards, rollout.terminated, [False] * 3, rollout.infos))


def rollout_of_three() -> Rollout:
    return roll_out(gym.make("LearningRate-v0", task=tiny_task()), [[0.1]] * 3)


class NotANumber:
    def __repr__(self) -> str:
        return "NotANumber()"


WRONG_ACTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("shape", np.zeros(2), ValueError, r"Actions of shape \(1,\) are expected, but \(2,\) was given"),
    ("scalar", 0.0, ValueError, r"Actions of shape \(1,\) are expected"),
    ("too deep", np.zeros((1, 1)), ValueError, r"Actions of shape \(1,\) are expected"),
    ("empty", np.zeros(0), ValueError, r"Actions of shape \(1,\) are expected"),
    ("nan", [np.nan], ValueError, "must be a number, but NaN was given"),
    ("text", ["fast"], TypeError, "must be real numbers"),
    ("numeric text", ["1.0"], TypeError, "must be real numbers"),
    ("none", [None], TypeError, "must be real numbers"),
    ("none alone", None, TypeError, "must be real numbers"),
    ("object", [NotANumber()], TypeError, r"must be real numbers.*NotANumber\(\)"),
    ("complex", [1j], TypeError, "must be real numbers.*complex128"),
    ("date", np.array(["2020-01-01"], dtype="datetime64[D]"), TypeError, "must be real numbers.*datetime64"),
]


@pytest.mark.parametrize(("action", "kind", "message"), [case[1:] for case in WRONG_ACTIONS], ids=[case[0] for case in WRONG_ACTIONS])
def test_a_wrong_action_leaves_the_environment_as_it_was(action: Any, kind: type[Exception], message: str) -> None:
    env, other = (gym.make("LearningRate-v0", task=tiny_task(), disable_env_checker=True) for _ in range(2))
    rollout = roll_out(env, [[0.5]] * 3)
    with pytest.raises(kind, match=message):
        env.step(action)
    continue_with(env, [[0.5]] * 3, rollout)
    assert_same_bits(rollout, roll_out(other, [[0.5]] * 6))


@pytest.mark.parametrize(
    ("actions", "kind", "message"),
    [
        (np.zeros((3, 1)), ValueError, r"\(2, 1\) in all, but \(3, 1\) was given"),
        (np.zeros(2), ValueError, r"but \(2,\) was given"),
        (np.array([[0.0], [np.nan]]), ValueError, "NaN was given"),
        ([["a"], ["b"]], TypeError, "must be real numbers"),
    ],
)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_wrong_actions_leave_the_vector_environment_as_it_was(mode: str, actions: Any, kind: type[Exception], message: str) -> None:
    env, other = (gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task(), autoreset_mode=mode) for _ in range(2))
    rollout = roll_out(env, np.full((3, 2, 1), 0.1))
    with pytest.raises(kind, match=message):
        env.step(actions)
    continue_with(env, np.full((5, 2, 1), 0.1), rollout)
    assert_same_bits(rollout, roll_out(other, np.full((8, 2, 1), 0.1)))


@pytest.mark.parametrize(("action", "message"), [(1.5, "must be an integer, but"), (np.nan, "NaN"), ([1], r"Actions of shape \(\) are expected")])
def test_wrong_discrete_actions(action: Any, message: str) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), action="discrete", disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    env.step(2)


@pytest.mark.parametrize("action", [[np.inf], [-np.inf], [7], [np.float16(3)], [True], np.array([-9], dtype=np.int8), torch.tensor([5.0])])
def test_actions_out_of_range_are_clipped_and_real_dtypes_cast(action: Any) -> None:
    env, other = (gym.make("LearningRate-v0", task=tiny_task(), disable_env_checker=True) for _ in range(2))
    clipped = np.clip(np.asarray(action, dtype=np.float64), -1, 1)
    assert_same_bits(roll_out(env, [action] * 3), roll_out(other, [clipped] * 3))


def test_an_infinite_raw_rate_diverges_and_does_no_further_harm() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), action="rate")
    rollout = roll_out(env, [[np.inf]])
    assert rollout.infos[-1]["diverged"] and np.isfinite(rollout.observations[-1]).all()
    assert np.isfinite(env.reset(seed=0)[1]["loss"])


@pytest.mark.parametrize("call", [lambda env: env.step([0.0]), lambda env: env.render()], ids=["step", "render"])
def test_before_the_first_reset(call: Callable[[Any], Any]) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), render_mode="rgb_array").unwrapped
    with pytest.raises(gym.error.ResetNeeded, match=r"[Cc]all reset\(\) before"):
        call(env)
    env.reset(seed=0)
    call(env)


@pytest.mark.parametrize("call", [lambda env: env.step(np.zeros((2, 1))), lambda env: env.render()], ids=["step", "render"])
def test_the_vector_environment_before_the_first_reset(call: Callable[[Any], Any]) -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task(), render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) before"):
        call(env)
    env.reset(seed=0)
    call(env)


@pytest.mark.parametrize("actions", [[[0.0]] * 8, [[0.0], [np.inf]]], ids=["horizon", "divergence"])
def test_a_step_after_the_end(actions: Any) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), action="rate", disable_env_checker=True)
    rollout = roll_out(env, actions)
    assert rollout.terminated[-1]
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match=r"ended: call reset\(\) before step\(\)"):
            env.step([0.0])
    env.reset()
    env.step([0.0])


@pytest.mark.parametrize(
    ("seed", "kind", "message"),
    [(1.5, TypeError, "1.5"), ("1", TypeError, "'1'"), (True, TypeError, "True"), ([1], TypeError, r"\[1\]"), (-1, ValueError, "-1 was given")],
)
def test_seeds_that_are_no_integers(seed: Any, kind: type[Exception], message: str) -> None:
    env = gym.make("LearningRate-v0", task=tiny_task())
    expected = roll_out(env, [[0.1]] * 3, seed=2)
    with pytest.raises(kind, match=f"seed must be an integer >= 0.*{message}"):
        env.reset(seed=seed)
    assert_same_bits(roll_out(env, [[0.1]] * 3, seed=2), expected)


@pytest.mark.parametrize(
    ("seed", "kind", "message"),
    [
        (1.5, TypeError, "seed must be an integer >= 0"),
        ("12", TypeError, "seed must be an integer >= 0"),
        ([1, 2.5], TypeError, "seed must be an integer >= 0"),
        ([1, -2], ValueError, "-2 was given"),
        (-1, ValueError, "-1 was given"),
        ([1, 2, 3], ValueError, "One seed per member is needed: 2, but 3 were given"),
    ],
)
def test_seeds_of_the_vector_environment(seed: Any, kind: type[Exception], message: str) -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task())
    rollout = roll_out(env, np.zeros((2, 2, 1)), seed=4)
    with pytest.raises(kind, match=message):
        env.reset(seed=seed)
    continue_with(env, np.zeros((2, 2, 1)), rollout)  # goes on as if nothing had been asked
    expected = roll_out(gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task()), np.zeros((4, 2, 1)), seed=4)
    assert_same_bits(rollout, expected)


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        ([True, False], TypeError, "NumPy array of booleans"),
        (np.array([1, 0]), TypeError, "NumPy array of booleans"),
        (np.array([True]), ValueError, r"shape \(2,\)"),
        (np.array([False, False]), ValueError, "at least one True"),
    ],
)
def test_wrong_masks(mask: Any, kind: type[Exception], message: str) -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task(), autoreset_mode="Disabled")
    env.reset(seed=0)
    with pytest.raises(kind, match=message):
        env.reset(options={"reset_mask": mask})
    env.step(np.zeros((2, 1)))


def test_the_first_reset_is_of_all_members() -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task())
    with pytest.raises(gym.error.ResetNeeded, match="first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)


@pytest.mark.parametrize("members", [[0, 2], [-1], [[0]], [0.5], ["a"]])
def test_members_that_do_not_exist(members: Any) -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=tiny_task())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="members must be indices from 0 to 1"):
        env.get_state(members=members)
    with pytest.raises(ValueError, match="members must be indices from 0 to 1"):
        env.set_state(env.get_state(), members=members)
    with pytest.raises(ValueError, match="holds 2 members, but 1 are to be set"):
        env.set_state(env.get_state(), members=[0])
    env.step(np.zeros((2, 1)))


def test_an_unknown_split() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Unknown split 'valid'\. Did you mean 'validation'"):
        env.unwrapped.evaluate("valid")
    env.unwrapped.evaluate("validation")


def test_rendering_without_a_mode_warns() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task()).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match='render_mode="rgb_array"'):
        assert env.render() is None


# ---- tasks ---------------------------------------------------------------------------------------------------------------------

INPUTS, CLASSES = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 3


def linear() -> nn.Module:
    return nn.Linear(4, 3)


class WithoutReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight


WRONG_TASKS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("empty data", {"inputs": np.zeros((0, 4)), "targets": np.zeros(0, np.int64)}, ["no data", "(0, 4)"]),
    ("lengths", {"targets": CLASSES[:-1]}, ["same length", "50 and 49"]),
    ("nan", {"inputs": np.where(np.arange(200).reshape(50, 4) == 7, np.nan, INPUTS)}, ["NaN or infinity", "impute"]),
    ("infinity", {"inputs": np.full((50, 4), np.inf)}, ["NaN or infinity"]),
    ("width", {"model": lambda: nn.Linear(5, 3)}, ["does not accept its data", "(16, 4)"]),
    ("dtype", {"inputs": np.ones((50, 4), np.int64)}, ["does not accept its data", "torch.int64"]),
    ("too few outputs", {"model": lambda: nn.Linear(4, 2)}, ["run from 0 to 2", "2 outputs: classes from 0 to 1", "give the model more outputs"]),
    ("float classes", {"targets": CLASSES.astype(float)}, ["does not accept outputs", "class indices from 0"]),
    ("mean loss", {"loss": nn.CrossEntropyLoss()}, ["one value per example, shape (16,)", 'reduction="none"']),
    ("constant loss", {"loss": lambda outputs, targets: torch.zeros(16)}, ["does not depend on the parameters"]),
    ("unknown loss", {"loss": "crossentropy"}, ["Unknown loss 'crossentropy'", "'cross_entropy'"]),
    ("no parameters", {"model": nn.ReLU}, ["no trainable parameters"]),
    ("frozen", {"model": lambda: linear().requires_grad_(False)}, ["no trainable parameters"]),
    ("no module", {"model": lambda: 3}, ["torch.nn.Module", "int was given"]),
    ("without reset_parameters", {"model": WithoutReset()}, ["WithoutReset", "without reset_parameters()", "lambda: MyModule()"]),
    ("batch", {"batch_size": 500}, ["batch_size 500 exceeds the", "smaller"]),
    ("batch of zero", {"batch_size": 0}, ["batch_size must be an integer >= 1, but 0 was given"]),
    ("batch of half", {"batch_size": 2.5}, ["batch_size must be an integer >= 1, but 2.5"]),
    ("horizon", {"horizon": 0}, ["horizon must be an integer >= 1, but 0 was given"]),
    ("fractions", {"validation_fraction": 0.6, "test_fraction": 0.5}, ["sum to less than 1", "0.6 and 0.5"]),
    ("negative fraction", {"validation_fraction": -0.1}, ["must be in [0, 1)", "-0.1"]),
]


@pytest.mark.parametrize(("change", "fragments"), [case[1:] for case in WRONG_TASKS], ids=[case[0] for case in WRONG_TASKS])
def test_tasks_whose_parts_do_not_fit(change: dict[str, Any], fragments: list[str]) -> None:
    options = {"model": linear, "inputs": INPUTS, "targets": CLASSES, "batch_size": 16, **change}
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as error:
        Task.from_tensors("wrong", options.pop("model"), options.pop("inputs"), options.pop("targets"), **options)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_empty_training_data() -> None:
    empty = Split(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="Task 'wrong' has no training data"):
        Task("wrong", linear, "cross_entropy", Data(empty, empty, empty), batch_size=16)


def test_a_validation_reward_without_validation_data() -> None:
    task = tiny_task(validation_fraction=0.0)
    with pytest.raises(ValueError, match="has no validation data"):
        gym.make("LearningRate-v0", task=task, reward_on="validation")
    gym.make("LearningRate-v0", task=task).reset(seed=0)


@pytest.mark.parametrize("decades", [(1.0, -1.0), (-11.0, 0.0), (0.0, float("nan"))])
def test_families_with_impossible_scales(decades: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="input_scale_decades must be"):
        TaskFamily("wrong", tiny_task(), input_scale_decades=decades)


@pytest.mark.parametrize(
    "make", [lambda **options: LearningRateEnv(tiny_task(), **options), lambda **options: LearningRateVectorEnv(2, tiny_task(), **options)]
)
def test_evaluations_and_states_need_a_reset(make: Callable[..., Any]) -> None:
    env = make()
    for call in (lambda: env.evaluate("test"), env.get_state):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            call()
    env.reset(seed=0)
    state = env.get_state()
    with pytest.raises(ValueError, match="no history to render"):
        make(render_mode="rgb_array").set_state(state)


def test_numpy_s_numbers_are_numbers() -> None:
    action = {"kind": "relative", "max_change": np.float32(0.5)}
    optimizer = {"name": "adam", "beta1": np.float32(0.5)}
    mdp = MDP(optimizer, action=action, steps_per_action=np.int64(2), lr_min=np.float32(0.001), initial_rate=np.float64(0.1))  # type: ignore[arg-type]
    assert MDP(**json.loads(json.dumps(mdp.to_dict()))) == MDP(
        {"name": "adam", "beta1": 0.5},
        action={"kind": "relative", "max_change": 0.5},
        **{name: getattr(mdp, name) for name in ("steps_per_action", "lr_min", "initial_rate")},
    )


def test_no_two_arrays_of_a_step_are_one() -> None:
    env = LearningRateVectorEnv(2, tiny_task(), circuit_breaker=True)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(np.zeros((2, 1)))
    truncated |= True
    assert not terminated.any()
    assert not info["rolled_back"].any()
