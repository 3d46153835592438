"""Seeds, streams and the global generators."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lr_env.seeding import Role, Streams, check_seed, first_words, preserved_global_generators, role_seeds, seed_global_generators
from lr_env.training.draws import draw_kernel
from tests.rollouts import roll_out, tiny_task


def global_states() -> tuple[object, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), tuple(rest), torch.get_rng_state().numpy().tobytes()


def draw(sequence: np.random.SeedSequence) -> tuple[int, ...]:
    return tuple(sequence.generate_state(4).tolist())


def test_role_seeds_are_distinct_within_and_across_roles() -> None:
    seeds = [seed for role in Role for seed in role_seeds(7, role, 500)]
    assert len(set(seeds)) == len(seeds) == 2000
    assert min(seeds) >= 0 and max(seeds) < 2**31


def test_role_seeds_repeat_and_depend_on_the_run() -> None:
    assert role_seeds(3, Role.TUNE, 5) == role_seeds(3, Role.TUNE, 5)
    assert role_seeds(3, Role.TUNE, 5) != role_seeds(4, Role.TUNE, 5)


@given(st.integers(0, 2**40))
def test_check_seed_takes_every_integer_kind(value: int) -> None:
    for given_seed in (value, np.int64(value), np.array(value)):
        seed = check_seed(given_seed)
        assert seed == value and type(seed) is int


@pytest.mark.parametrize("wrong", [1.0, "3", None, True, np.bool_(True), [1], np.float32(2)])
def test_check_seed_refuses_what_is_no_integer(wrong: object) -> None:
    with pytest.raises(TypeError, match="seed must be an integer >= 0"):
        check_seed(wrong)


def test_check_seed_refuses_negative_seeds() -> None:
    with pytest.raises(ValueError, match="-1 was given"):
        check_seed(-1)


def test_streams_differ_by_seed_episode_and_purpose_and_repeat() -> None:
    def drawn(seed: int, episode: int) -> list[tuple[int, ...]]:
        streams = Streams(seed, episode)
        return [draw(part) for part in (streams.weights, streams.order, streams.family, streams.noise, streams.exploration)]

    everything = [part for seed in range(10) for episode in range(10) for part in drawn(seed, episode)]
    assert len(set(everything)) == 500
    assert drawn(4, 2) == drawn(4, 2)


def test_global_generators_are_restored_even_after_an_error() -> None:
    before = global_states()

    def disturb() -> None:
        with preserved_global_generators():
            seed_global_generators(np.random.SeedSequence(1))
            random.random(), np.random.rand(), torch.rand(1)
            assert global_states() != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        disturb()
    assert global_states() == before


class DrawsFromAllGenerators(nn.Module):
    """Initialised from ``random``, NumPy and PyTorch, and draws while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.bias[0] = random.random()
            self.layer.bias[1] = np.random.rand()
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(self.dropout(inputs))


@pytest.mark.parametrize("model", [DrawsFromAllGenerators, lambda: nn.Linear(4, 3)], ids=["dropout", "linear"])
@pytest.mark.parametrize("reward_on", ["next_batch", "same_batch", "validation"])
def test_environments_leave_the_global_generators_as_found(model: type[nn.Module], reward_on: str) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = global_states()
    task = tiny_task(model)
    single = gym.make("LearningRate-v0", task=task, reward_on=reward_on)
    roll_out(single, [np.zeros(1)] * 8)
    single.reset()
    single.unwrapped.evaluate("test")
    copy.deepcopy(single.unwrapped)
    vector = gym.make_vec("LearningRate-v0", num_envs=2, task=task, reward_on=reward_on)
    roll_out(vector, [np.zeros((2, 1))] * 12)
    assert global_states() == before


def test_the_global_generators_do_not_matter() -> None:
    task = tiny_task(DrawsFromAllGenerators)
    weights = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        env = gym.make("LearningRate-v0", task=task)
        roll_out(env, [np.zeros(1)] * 4, seed=3)
        weights.append(env.unwrapped.episodes.population.parameters.clone())
    assert torch.equal(*weights)


def test_streams_pickle() -> None:
    streams = Streams(3, 1)
    assert draw(pickle.loads(pickle.dumps(streams)).weights) == draw(Streams(3, 1).weights)


@given(st.lists(st.tuples(st.integers(0, 2**33), st.integers(0, 2**33)), max_size=5), st.sampled_from(["weights", "order"]), st.integers(1, 9))
def test_first_words_of_many_streams_are_those_of_numpy(pairs: list[tuple[int, int]], purpose: Literal["weights", "order"], count: int) -> None:
    streams = [Streams(*pair) for pair in pairs]
    expected = [getattr(stream, purpose).generate_state(count) for stream in streams]
    kernel = draw_kernel()
    for function in (first_words, *([] if kernel is None else [kernel.first_words])):
        np.testing.assert_array_equal(function(streams, purpose, count), np.array(expected, np.uint32).reshape(-1, count), strict=True)
