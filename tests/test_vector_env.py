"""The native vector environment against single ones, in each autoreset mode."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics
from torch import nn

from lr_env import LearningRateVectorEnv, TaskFamily
from tests.rollouts import RUINOUS_RATE, Rollout, assert_same_bits, continue_with, roll_out, tiny_task

MODES = ["NextStep", "SameStep", "Disabled"]
INFORMATION = ("loss", "learning_rate", "step", "diverged")


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def make(num_envs: int = 3, **options: Any) -> LearningRateVectorEnv:
    return gym.make_vec("LearningRate-v0", num_envs=num_envs, **{"task": tiny_task(), **options})


def single_member(seed: int, actions: np.ndarray, mode: str, options: dict[str, Any]) -> Rollout:
    """What member i of a vector environment should return, by a single environment that is reset as the mode says."""
    env = gym.make("LearningRate-v0", **options)
    rollout = Rollout()
    observation, info = env.reset(seed=seed)
    rollout.observations.append(observation)
    rollout.infos.append(info)
    ended = False
    for action in actions:
        if ended and mode == "NextStep":
            observation, info = env.reset()
            rollout.add(observation, 0.0, False, False, info)
            ended = False
            continue
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        if ended and mode != "NextStep":
            final = (observation, info)
            observation, info = env.reset()
            info = {**info, "final": final}
        rollout.add(observation, reward, terminated, truncated, info)
    return rollout


def vector_members(
    env: LearningRateVectorEnv, actions: np.ndarray, seed: int, mode: str
) -> tuple[Rollout, list[tuple[int, int, np.ndarray, dict[str, Any]]]]:
    """Steps all members; with autoreset disabled it resets those that ended. Also the final observations, by step and member."""
    rollout, finals = Rollout(), []
    observations, info = env.reset(seed=seed)
    rollout.observations.append(observations)
    rollout.infos.append(info)
    for t, action in enumerate(actions):
        observations, rewards, terminated, truncated, info = env.step(action)
        ended = terminated | truncated
        if mode == "Disabled" and ended.any():
            final_observations, final_info = observations, info
            observations, reset_info = env.reset(options={"reset_mask": ended.copy()})
            info = {name: np.where(ended, reset_info[name], info[name]) for name in INFORMATION}
        elif mode == "SameStep" and ended.any():
            final_observations, final_info = info["final_obs"], info["final_info"]
            np.testing.assert_array_equal(info["_final_obs"], ended)
            np.testing.assert_array_equal(info["_final_info"], ended)
        if mode != "NextStep":
            finals += [(t, i, final_observations[i], {name: final_info[name][i] for name in INFORMATION}) for i in np.flatnonzero(ended)]
        rollout.add(observations, rewards, terminated, truncated, info)
    return rollout, finals


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "reward_on": "reference", "features": "absolute"},
    "momentum_same_batch": {"optimizer": "momentum", "reward_on": "same_batch"},
    "residual_validation": {"action": "residual", "reward_on": "validation", "reward": {"interval": 2}},
    "final_family": {"task": TaskFamily("scaled", tiny_task(), (-0.5, 0.5)), "reward_on": "final", "initial_rate_decades": 1.0},
    "three_steps": {"steps_per_action": 3, "features": ["log_loss", "log_rate"], "reward_on": "reference", "reward": {"kind": "loss", "interval": 2}},
    "batch_norm": {"task": tiny_task(batch_norm), "optimizer": "nesterov"},
    "dropout": {"task": tiny_task(dropout)},
    "quadratic": {"task": "noisy-quadratic", "horizon": 6},
}


def actions_with_ruin(kind: str, steps: int, members: int) -> np.ndarray:
    """Random actions; raw rates are now and then ruinous, at other times for each member."""
    generator = np.random.default_rng(0)
    if kind != "rate":
        return generator.uniform(-1, 1, (steps, members, 1))
    rates = 10 ** generator.uniform(-2.5, -1, (steps, members, 1))
    for t, member, rate in ((2, 0, RUINOUS_RATE), (3, 1, 1e300), (9, 0, 1e4), (9, 2, 1e300), (10, 1, RUINOUS_RATE), (15, 2, 1e5)):
        rates[t, member] = rate
    return rates


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIONS)
def test_member_i_equals_the_single_environment_with_seed_s_plus_i(name: str, mode: str) -> None:
    options = {"task": tiny_task(), "dtype": "float64", "action": "rate", **OPTIONS[name]}
    actions = actions_with_ruin(options["action"], 32, 3)
    rollout, finals = vector_members(make(autoreset_mode=mode, **options), actions, 11, mode)
    ends = np.array(rollout.terminated) | np.array(rollout.truncated)
    assert (ends.sum(0) >= 3).all()  # three episodes of each member, with resets between
    if options["action"] == "rate":
        assert len({tuple(column) for column in ends.T}) > 1  # that end at different times
    checked = 0
    for member in range(3):
        expected = single_member(11 + member, actions[:, member], mode, options)
        for t in range(33):
            np.testing.assert_allclose(rollout.observations[t][member], expected.observations[t], rtol=1e-5, atol=5e-6, err_msg=f"step {t}")
            for key in INFORMATION:
                np.testing.assert_allclose(rollout.infos[t][key][member], expected.infos[t][key], rtol=1e-8, err_msg=f"{key} at step {t}")
        np.testing.assert_allclose(np.array(rollout.rewards)[:, member], expected.rewards, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(np.array(rollout.terminated)[:, member], expected.terminated)
        np.testing.assert_array_equal(np.array(rollout.truncated)[:, member], expected.truncated)
        for t, i, observation, info in finals:
            if i == member:
                final_observation, final_info = expected.infos[t + 1]["final"]
                np.testing.assert_allclose(observation, final_observation, rtol=1e-5, atol=5e-6)
                for key in INFORMATION:
                    np.testing.assert_allclose(info[key], final_info[key], rtol=1e-8)
                checked += 1
    assert checked == (0 if mode == "NextStep" else ends.sum())


@pytest.mark.parametrize("mode", MODES)
def test_in_float32_to_single_precision(mode: str) -> None:
    options = {"task": "digits-mlp", "horizon": 10, "action": "rate"}
    actions = 10 ** np.random.default_rng(0).uniform(-2, -1, (33, 3, 1))
    rollout, _ = vector_members(make(autoreset_mode=mode, **options), actions, 5, mode)
    for member in range(3):
        expected = single_member(5 + member, actions[:, member], mode, options)
        np.testing.assert_allclose([info["loss"][member] for info in rollout.infos], [info["loss"] for info in expected.infos], rtol=1e-4)
        np.testing.assert_allclose([o[member] for o in rollout.observations], expected.observations, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sgd", "adam", "momentum_same_batch", "dropout", "batch_norm", "three_steps"])
def test_a_member_driven_to_nan_leaves_its_neighbours_bits(name: str, mode: str) -> None:
    options = {"task": tiny_task(), "action": "rate", **OPTIONS[name]}
    tame = 10 ** np.random.default_rng(0).uniform(-2.5, -1, (24, 4, 1))
    wild = tame.copy()
    wild[1::3, 2] = 1e300
    rollouts = []
    for actions in (tame, wild):
        env = make(4, autoreset_mode=mode, **options)
        rollouts.append((vector_members(env, actions, 0, mode)[0], env.episodes.population.parameters.numpy()))
    (calm, calm_weights), (ruined, ruined_weights) = rollouts
    neighbours = [0, 1, 3]
    for attribute in ("observations", "rewards", "terminated", "truncated"):
        first, second = (np.array(getattr(rollout, attribute)) for rollout in (calm, ruined))
        np.testing.assert_array_equal(first[:, neighbours], second[:, neighbours])
        assert (first[:, 2] != second[:, 2]).any() or attribute == "truncated"
    np.testing.assert_array_equal(calm.values("loss")[:, neighbours], ruined.values("loss")[:, neighbours])
    np.testing.assert_array_equal(calm_weights[neighbours], ruined_weights[neighbours])
    # Each of the ruined member's later trainings starts with sound weights.
    assert np.isfinite(ruined.values("loss")[ruined.values("step")[:, 2] == 0, 2]).all()


@pytest.mark.parametrize("size", [1, 8, 64])
def test_populations_of_1_8_and_64_agree(size: int) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (25, 64, 1)) - 0.2
    options = {"task": "digits-mlp-scaled", "horizon": 10, "dtype": "float64"}
    rollout = roll_out(make(size, **options), actions[:, :size], seed=3)
    reference = roll_out(make(2, **options), actions[:, :2], seed=3)
    shared = min(size, 2)
    np.testing.assert_allclose(rollout.values("loss")[:, :shared], reference.values("loss")[:, :shared], rtol=1e-9)
    np.testing.assert_allclose(np.array(rollout.rewards)[:, :shared], np.array(reference.rewards)[:, :shared], rtol=1e-8, atol=1e-10)


def test_the_same_seed_gives_the_same_bits_again_and_in_a_new_environment() -> None:
    env, actions = make(horizon=8), np.random.default_rng(0).uniform(-1, 1, (20, 3, 1))
    first = roll_out(env, actions, seed=4)
    assert_same_bits(first, roll_out(env, actions, seed=4))
    assert_same_bits(first, roll_out(make(horizon=8), actions, seed=4))
    assert (roll_out(env, actions, seed=5).observations[0] != first.observations[0]).any()


def test_lists_of_seeds() -> None:
    env = make()
    losses = {seed: gym.make("LearningRate-v0", task=tiny_task()).reset(seed=seed)[1]["loss"] for seed in (3, 9, 10)}
    for seeds in ([9, 3, 10], (9, 3, 10), np.array([9, 3, 10])):
        np.testing.assert_allclose(env.reset(seed=seeds)[1]["loss"], [losses[9], losses[3], losses[10]], rtol=1e-5)
    following = env.reset()[1]["loss"]
    env.reset(seed=[9, 3, 10])
    mixed = env.reset(seed=[None, 3, None])[1]["loss"]  # None: the member's own next training
    np.testing.assert_array_equal(mixed[[0, 2]], following[[0, 2]])
    assert mixed[1] == pytest.approx(losses[3], rel=1e-5)


def test_a_mask_resets_some_members_and_leaves_the_others_alone() -> None:
    env, other = (make(autoreset_mode="Disabled") for _ in range(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 3, 1))
    rollout, expected = roll_out(env, actions[:3]), roll_out(other, actions)
    mask = np.array([False, True, False])
    observations, info = env.reset(seed=[7, 8, 9], options={"reset_mask": mask})
    np.testing.assert_array_equal(observations[[0, 2]], rollout.observations[-1][[0, 2]])
    assert info["_loss"].tolist() == mask.tolist()
    fresh = make().reset(seed=[0, 8, 0])
    np.testing.assert_array_equal(observations[1], fresh[0][1])
    continue_with(env, actions[3:], rollout)
    for attribute in ("observations", "rewards"):
        first, second = np.array(getattr(rollout, attribute)), np.array(getattr(expected, attribute))
        np.testing.assert_array_equal(first[:, [0, 2]], second[:, [0, 2]])
    assert rollout.infos[-1]["step"].tolist() == [6, 3, 6]


def test_an_ended_member_waits_for_its_reset_where_autoreset_is_disabled() -> None:
    env = make(autoreset_mode="Disabled", action="rate")
    rollout = roll_out(env, [np.array([[0.1], [RUINOUS_RATE], [0.1]])])
    assert rollout.terminated[-1].tolist() == [False, True, False]
    with pytest.raises(gym.error.ResetNeeded, match=r"Members \[1\] have ended"):
        env.step(np.full((3, 1), 0.1))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert env.step(np.full((3, 1), 0.1))[4]["step"].tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("vectorization_mode", "mode"), [(None, "NextStep"), (None, "SameStep"), ("sync", "NextStep"), ("sync", "SameStep"), ("async", "NextStep")]
)
def test_gymnasium_makes_vectors_of_every_kind(vectorization_mode: str | None, mode: str) -> None:
    kind = AutoresetMode(mode)
    options: dict[str, Any] = {"task": "breast-cancer-mlp", "horizon": 4, "dtype": "float64"}
    if vectorization_mode is None:
        env = gym.make_vec("LearningRate-v0", num_envs=2, autoreset_mode=mode, **options)
        assert isinstance(env, LearningRateVectorEnv)
    else:
        vector_options: dict[str, Any] = {"autoreset_mode": kind}
        if vectorization_mode == "async":
            vector_options["context"] = "spawn"
        env = gym.make_vec("LearningRate-v0", num_envs=2, vectorization_mode=vectorization_mode, vector_kwargs=vector_options, **options)
        assert not isinstance(env, LearningRateVectorEnv)
    assert env.metadata["autoreset_mode"] == kind
    native = make(2, autoreset_mode=kind, **options)
    actions = np.random.default_rng(0).uniform(-1, 1, (14, 2, 1)).astype(np.float32)
    # Seeds of their own, since Gymnasium's vectors give the seeds s, s + 1 as well.
    rollout, expected = roll_out(env, actions, seed=6), roll_out(native, actions, seed=6)
    env.close()
    np.testing.assert_allclose(np.array(rollout.observations), np.array(expected.observations), rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(np.array(rollout.rewards), np.array(expected.rewards), rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(np.array(rollout.terminated), np.array(expected.terminated))
    for key in INFORMATION:
        np.testing.assert_allclose(rollout.values(key), expected.values(key), rtol=1e-8)
        assert rollout.infos[-1][key].dtype.kind == expected.infos[-1][key].dtype.kind


def test_spaces_and_attributes() -> None:
    env = make(5, action="discrete")
    assert env.num_envs == 5
    assert env.single_observation_space == gym.spaces.Box(-10, 10, (10,), np.float32)
    assert env.observation_space.shape == (5, 10)
    assert env.single_action_space == gym.spaces.Discrete(5)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert [array.dtype for array in (rewards, terminated, truncated)] == [np.float64, bool, bool]
    assert all(array.shape == (5,) for array in (rewards, terminated, truncated))
    assert all(info[key].shape == (5,) and info[f"_{key}"].all() for key in INFORMATION)


@pytest.mark.parametrize("mode", MODES)
def test_returned_arrays_are_fresh(mode: str) -> None:
    env = make(autoreset_mode=mode, horizon=6)
    rollout = roll_out(env, np.zeros((4, 3, 1)))
    kept = copy.deepcopy(rollout)
    for array in (rollout.observations[-1], rollout.rewards[-1], rollout.terminated[-1], rollout.infos[-1]["loss"], rollout.infos[-1]["step"]):
        array[:] = 1
    other = make(autoreset_mode=mode, horizon=6)
    expected = roll_out(other, np.zeros((4, 3, 1)))
    assert_same_bits(kept, expected)
    np.testing.assert_array_equal(env.step(np.zeros((3, 1)))[0], other.step(np.zeros((3, 1)))[0])
    np.testing.assert_array_equal(np.array(rollout.observations[:-1]), np.array(kept.observations[:-1]))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_wrappers_record_statistics(mode: str) -> None:
    env = RecordEpisodeStatistics(make(autoreset_mode=mode))
    rollout = roll_out(env, np.zeros((8, 3, 1)))
    assert rollout.terminated[-1].all()
    assert rollout.infos[-1]["episode"]["l"].tolist() == [8, 8, 8]
    np.testing.assert_allclose(rollout.infos[-1]["episode"]["r"], np.sum(rollout.rewards, axis=0), rtol=1e-6)


def test_wrappers_normalise_observations() -> None:
    env = NormalizeObservation(make(8, horizon=50))
    observations = np.array(roll_out(env, np.zeros((40, 8, 1))).observations)
    assert np.isfinite(observations).all() and np.abs(observations.mean((0, 1))).max() < 3


@pytest.mark.skipif(not hasattr(vector_wrappers, "RecordVideo"), reason="Gymnasium has no vector RecordVideo before 1.2")
def test_wrappers_record_videos(tmp_path: Path) -> None:
    env = vector_wrappers.RecordVideo(
        make(2, render_mode="rgb_array", horizon=4), str(tmp_path / "videos"), episode_trigger=lambda episode: episode == 0
    )
    roll_out(env, np.zeros((6, 2, 1)))
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_pictures_of_all_members_equal_those_of_single_environments(mode: str) -> None:
    env = make(2, render_mode="rgb_array", horizon=3, autoreset_mode=mode, dtype="float64", action="rate")
    roll_out(env, np.full((5, 2, 1), 0.1))
    frames = env.render()
    assert frames is not None and len(frames) == 2
    alone = gym.make("LearningRate-v0", task=tiny_task(), render_mode="rgb_array", horizon=3, dtype="float64", action="rate")
    alone.reset(seed=0)
    alone.reset()
    for _ in range(1 if mode == "NextStep" else 2):
        alone.step([0.1])
    assert (np.abs(frames[0].astype(int) - alone.render()) > 8).mean() < 0.01
    assert (frames[0] != frames[1]).any()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "NextStep") for name in ("sgd", "adam", "batch_norm", "dropout", "final_family", "quadratic")),
        ("sgd", "SameStep"),
        ("adam", "Disabled"),
    ],
)
def test_three_rates_tried_at_step_50_leave_no_trace(name: str, mode: str) -> None:
    options = {"task": tiny_task(), **OPTIONS[name], "horizon": 100, "initial_rate": 0.01, "autoreset_mode": mode}
    actions = 0.2 * np.random.default_rng(0).uniform(-1, 1, (100, 3, 1))
    env = make(**options)
    expected = roll_out(make(**options), actions)
    rollout = roll_out(env, actions[:50])
    state = env.get_state()
    for action in (-1.0, 0.0, 0.5):
        env.set_state(state)
        continue_with(env, np.full((6, 3, 1), action), Rollout())
    env.set_state(pickle.loads(pickle.dumps(state)))
    continue_with(env, actions[50:], rollout)
    assert_same_bits(rollout, expected)


def test_one_member_is_copied_to_all_to_try_a_rate_each() -> None:
    env, other = make(4, horizon=100), make(4, horizon=100)
    actions = 0.2 * np.random.default_rng(0).uniform(-1, 1, (60, 4, 1))
    expected = roll_out(other, actions)
    rollout = roll_out(env, actions[:50])
    everyone, chosen = env.get_state(), env.get_state(members=[2, 2, 2, 2])
    env.set_state(chosen)
    branch = Rollout()
    continue_with(env, np.repeat(actions[50:, 2:3], 4, axis=1), branch)
    for i in range(4):  # the same actions: four times the member itself
        np.testing.assert_array_equal([loss[i] for loss in branch.values("loss")], expected.values("loss")[51:, 2])
    env.set_state(chosen)
    branch = Rollout()
    continue_with(env, [np.array([[-1.0], [-0.3], [0.3], [1.0]])] * 10, branch)
    assert len(set(branch.values("loss")[-1])) == 4
    env.set_state(everyone)
    continue_with(env, actions[50:], rollout)
    assert_same_bits(rollout, expected)


def test_a_member_is_copied_into_some_places_and_the_rest_goes_on() -> None:
    env, other = make(4, horizon=100), make(4, horizon=100)
    actions = 0.2 * np.random.default_rng(0).uniform(-1, 1, (60, 4, 1))
    rollout, expected = roll_out(env, actions[:50]), roll_out(other, actions)
    env.set_state(env.get_state(members=[2, 2]), members=[0, 3])
    continue_with(env, actions[50:], rollout)
    for attribute in ("observations", "rewards"):
        first, second = np.array(getattr(rollout, attribute)), np.array(getattr(expected, attribute))
        np.testing.assert_array_equal(first[:, [1, 2]], second[:, [1, 2]])
    assert (rollout.values("loss")[-1][[0, 3]] != expected.values("loss")[-1][[0, 3]]).all()


@pytest.mark.parametrize("mode", MODES)
def test_pickle_and_deepcopy_continue_with_the_same_bits(mode: str) -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=3, task="digits-mlp-scaled", optimizer="adam", autoreset_mode=mode, horizon=20)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, 1))
    rollout = roll_out(env, actions[:9], seed=1)
    others = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    expected = copy.deepcopy(rollout)
    continue_with(env, actions[9:], expected)
    for other in others:
        continued = copy.deepcopy(rollout)
        continue_with(other, actions[9:], continued)
        assert_same_bits(continued, expected)


def test_a_reset_right_after_a_copy_leaves_the_others_draws_alone() -> None:
    env = make(task=tiny_task(model=dropout), autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step(np.zeros((3, 1)))
    twin, options = copy.deepcopy(env), {"reset_mask": np.array([True, False, False])}
    expected = make(task=tiny_task(model=dropout), autoreset_mode="Disabled")
    expected.reset(seed=0)
    losses = [expected.step(np.zeros((3, 1)))[4]["loss"] for _ in range(2)][-1]
    for each in (env, twin):
        each.reset(seed=[7, None, None], options=options)
        np.testing.assert_array_equal(each.step(np.zeros((3, 1)))[4]["loss"][1:], losses[1:])


def test_states_that_do_not_fit_change_nothing() -> None:
    env, others = make(horizon=20), [make(horizon=20, optimizer="momentum"), make(horizon=30), make(horizon=20, circuit_breaker=True)]
    env.reset(seed=0)
    with pytest.raises(ResetNeeded, match="other members have no training yet"):
        others[0].set_state(env.get_state([0]), [0])
    for other, message in zip(others, ("optimizer.momentum", "horizon 20 was given, but 30", "circuit breaker False"), strict=True):
        other.reset(seed=1)
        before = other.evaluate("train").losses
        with pytest.raises(ValueError, match=f"does not fit: .*{message}"):
            other.set_state(env.get_state())
        np.testing.assert_array_equal(other.evaluate("train").losses, before)


def test_a_history_with_gaps_is_not_rendered() -> None:
    seen, unseen = make(render_mode="rgb_array"), make()
    seen.reset(seed=0)
    unseen.set_state(seen.get_state())
    with pytest.raises(ValueError, match="no history to render"):
        seen.set_state(unseen.get_state())


def test_evaluate_gives_each_member_s_loss() -> None:
    env = make(2, dtype="float64")
    roll_out(env, np.zeros((5, 2, 1)), seed=3)
    evaluation = env.evaluate("validation")
    for member in range(2):
        alone = gym.make("LearningRate-v0", task=tiny_task(), dtype="float64")
        roll_out(alone, np.zeros((5, 1)), seed=3 + member)
        assert evaluation.losses[member] == pytest.approx(alone.unwrapped.evaluate("validation").losses[0], rel=1e-9)


def test_the_spec_survives_json() -> None:
    env = gym.make_vec("LearningRate-v0", num_envs=2, horizon=5, features=["log_loss"])
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert spec.kwargs == env.spec.kwargs
    assert spec.kwargs["horizon"] == 5
