"""The noisy quadratic against its closed form."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from lr_env import NoisyQuadratic
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC
from tests.reference import quadratic_expected_losses
from tests.rollouts import advance, start

QUADRATIC = NoisyQuadratic(curvatures=(2.0, 0.5, 0.1), noise_variances=(1.0, 0.3, 4.0), initial_weights=(1.0, -3.0, 2.0), horizon=25)
RATES = 0.4 * 0.95 ** np.arange(25)


def test_expected_losses_follow_the_recursion() -> None:
    expected = quadratic_expected_losses(QUADRATIC.curvatures, QUADRATIC.noise_variances, QUADRATIC.initial_weights, list(RATES))
    np.testing.assert_allclose(QUADRATIC.expected_losses(RATES), expected, rtol=1e-13)


@pytest.mark.parametrize("quadratic", [QUADRATIC, SHIPPED_QUADRATIC], ids=["other", "shipped"])
def test_4096_members_match_the_recursion_within_sampling_error(quadratic: NoisyQuadratic) -> None:
    rates = 0.4 * 0.95 ** np.arange(quadratic.horizon)
    losses = advance(start(quadratic.task(), range(4096)), np.repeat(rates[:, None], 4096, axis=1))  # (T + 1, N)
    expected = np.array(quadratic_expected_losses(quadratic.curvatures, quadratic.noise_variances, quadratic.initial_weights, list(rates)))
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-6)
    errors = (losses[1:].mean(1) - expected[1:]) / (losses[1:].std(1) / np.sqrt(4096))
    assert np.abs(errors).max() < 4.5  # standard errors, over T correlated steps
    assert np.abs(errors).max() > 0.1  # it is a sample, not the formula itself


def test_the_environment_shows_the_noise_free_loss() -> None:
    env = gym.make("LearningRate-v0", task=QUADRATIC.task(), action="rate", dtype="float64")
    _, info = env.reset(seed=0)
    assert info["loss"] == pytest.approx(QUADRATIC.expected_losses(np.zeros(0))[0], rel=1e-6)
    for _ in range(5):  # without movement the noise-free loss stays
        _, _, _, _, info = env.step(np.zeros(1))
        assert info["loss"] == pytest.approx(QUADRATIC.expected_losses(np.zeros(0))[0], rel=1e-6)


def test_gradients_are_noisy_with_the_given_variances() -> None:
    population = start(QUADRATIC.task(), range(4096))
    population.begin()
    gradients = population.gradients.numpy()
    mean = np.array(QUADRATIC.curvatures) * QUADRATIC.initial_weights
    deviation = np.sqrt(QUADRATIC.noise_variances)
    assert (np.abs(gradients.mean(0) - mean) < 4.5 * deviation / 64).all()
    np.testing.assert_allclose(gradients.var(0), QUADRATIC.noise_variances, rtol=0.1)


def test_samples_are_fresh_beyond_those_drawn_at_once() -> None:
    task = QUADRATIC.task()
    batches = task.batches(0)
    drawn = np.array([next(batches)[0].numpy() for _ in range(200)])
    assert len(np.unique(drawn[..., 0])) == 200
    population = start(task, [0])
    for expected in drawn:
        np.testing.assert_array_equal(population.batches.current()[0][0].numpy(), expected)
        population.move_on()


def test_greedy_rates_minimise_each_single_step() -> None:
    greedy = QUADRATIC.greedy_rates()
    best = QUADRATIC.expected_losses(greedy)
    for t in (0, 7, 24):
        for factor in (0.95, 1.05):
            other = greedy.copy()
            other[t] *= factor
            assert QUADRATIC.expected_losses(other)[t + 1] > best[t + 1]


def test_best_constant_beats_a_scan() -> None:
    constant = QUADRATIC.best_constant()

    def final(rate: float) -> float:
        return float(QUADRATIC.expected_losses(np.full(QUADRATIC.horizon, rate))[-1])

    assert final(constant) <= min(final(rate) for rate in np.geomspace(1e-4, 0.99, 500)) * (1 + 1e-9)


def test_best_schedule_is_30_percent_below_the_best_constant() -> None:
    quadratic = SHIPPED_QUADRATIC
    schedule = quadratic.best_schedule()
    best = quadratic.expected_losses(schedule)[-1]
    assert best <= 0.7 * quadratic.expected_losses(np.full(quadratic.horizon, quadratic.best_constant()))[-1]
    assert best <= quadratic.expected_losses(quadratic.greedy_rates())[-1]
    generator = np.random.default_rng(0)
    for _ in range(20):  # nothing near it is better
        assert best <= quadratic.expected_losses(schedule * np.exp(0.1 * generator.normal(size=quadratic.horizon)))[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curvatures": (1.0,)}, "same length"),
        ({"curvatures": (), "noise_variances": (), "initial_weights": ()}, "at least 1"),
        ({"curvatures": (1.0, 0.0, 1.0)}, "curvatures must be > 0"),
        ({"noise_variances": (1.0, -1.0, 1.0)}, "noise_variances >= 0"),
        ({"horizon": 0}, "horizon >= 1"),
    ],
)
def test_impossible_quadratics_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyQuadratic(**{**vars(QUADRATIC), **change})


def test_integers_are_numbers_too() -> None:
    task = NoisyQuadratic(curvatures=(1, 2), noise_variances=(0, 0), initial_weights=(1, 1), horizon=5).task()
    assert task.initial_model(0).weights.dtype == torch.float32
