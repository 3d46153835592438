"""Controls against naive references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents import ArmijoLineSearch, OnlineActorCritic
from agents.schedules import constant
from benchmarks.lr_bench.controls import (
    Replay,
    leave_one_out,
    mean_observations,
    mean_rates,
    other_seeds_rates,
    population_replay,
    same_instance_replay,
    shuffled_observations,
    smoothed,
    state_blind,
)
from benchmarks.runner import Runner, run
from lr_env import MDP, BoundController, PolicyNetwork, TaskFamily
from tests.rollouts import tiny_task

NAN = float("nan")
SCALED = TaskFamily("scaled", tiny_task(), (-1.5, 1.5))


class Echo:
    """Acts with what it sees; its state counts each training's decisions."""

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        counts = np.zeros(len(observation)) if state is None else np.where(episode_start, 0, state + 1)
        return np.stack([observation[:, 0], counts], 1), counts


def decide(bound: BoundController, observations: np.ndarray, starts: Any = ()) -> np.ndarray:
    """Actions ``(T, N, A)`` for observations ``(T, N, F)``; ``starts`` are pairs of decision and training that begins anew."""
    actions, state = [], None
    for step, observation in enumerate(observations):
        begins = np.array([step == 0 or (step, member) in starts for member in range(len(observation))])
        action, state = bound.controller.predict(observation, state, begins, deterministic=True)
        actions.append(action)
    return np.array(actions)


def policy() -> BoundController:
    """A network that reacts strongly to what it sees."""
    mdp = MDP(features=["log_loss", "gradient_cosine"])
    network = PolicyNetwork(2, 1, hidden=(8,), seed=1)
    for parameter in network.parameters():
        parameter.data.mul_(100 if parameter.abs().max() < 0.01 else 1)
    return BoundController(network, mdp)


def test_every_observation_is_seen_by_one_other_training_in_an_order_of_each_step() -> None:
    observations = np.arange(80, dtype=np.float32).reshape(20, 4, 1)
    bound = BoundController(Echo(), MDP())
    actions = decide(shuffled_observations(bound, 4), observations)
    np.testing.assert_array_equal(np.sort(actions[:, :, 0], axis=1), observations[:, :, 0])
    assert (actions[:, :, 0] != observations[:, :, 0]).all()
    orders = {tuple(row) for row in (actions[:, :, 0] % 4).tolist()}
    assert len(orders) > 3
    np.testing.assert_array_equal(actions[:, :, 1], np.arange(20)[:, None].repeat(4, 1))  # states stay
    np.testing.assert_array_equal(decide(shuffled_observations(bound, 4), observations), actions)
    assert (decide(shuffled_observations(bound, 5), observations) != actions).any()
    with pytest.raises(ValueError, match="two trainings or more"):
        decide(shuffled_observations(bound), observations[:, :1])


def test_shuffling_changes_a_controller_s_result_but_not_a_schedule_s() -> None:
    task, seeds = SCALED, [0, 1, 2, 3]
    assert (run(shuffled_observations(policy()), task, seeds, 10).rates != run(policy(), task, seeds, 10).rates).any()
    schedule = constant(0.3).bind()
    np.testing.assert_array_equal(run(shuffled_observations(schedule), task, seeds, 10).rates, run(schedule, task, seeds, 10).rates)


def test_the_blind_see_what_they_are_given() -> None:
    given = np.array([[10.0], [20.0], [30.0]])
    actions = decide(state_blind(BoundController(Echo(), MDP()), given), np.zeros((5, 2, 1)), starts={(3, 1)})
    np.testing.assert_array_equal(actions[:, 0, 0], [10, 20, 30, 30, 30])
    np.testing.assert_array_equal(actions[:, 1, 0], [10, 20, 30, 10, 20])
    np.testing.assert_array_equal(actions[:, 1, 1], [0, 1, 2, 0, 1])


def test_mean_observations_are_those_of_running_trainings() -> None:
    bound, seeds = BoundController(Echo(), MDP(features=["log_loss"], action="rate")), [0, 1, 2]

    class Explode:
        """Training 1 explodes at its fourth decision."""

        def __init__(self) -> None:
            self.calls = 0

        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            self.calls += 1
            return np.array([[0.1], [1e6 if self.calls == 4 else 0.1], [0.1]]), None

    runner = Runner("digits-mlp", bound.mdp, seeds, horizon=8)
    seen, losses = mean_observations(runner, Explode()), runner.run(Explode()).losses
    expected = [np.log10(row[np.isfinite(row)]).mean() for row in losses[:-1]]
    np.testing.assert_allclose(np.delete(seen[:, 0], 4), np.delete(expected, 4), rtol=1e-5)  # there the loss has exploded, perhaps to infinity
    assert seen.shape == (8, 1) and np.isfinite(seen).all()
    with pytest.raises(ValueError, match="replay its rates instead"):
        mean_observations(runner, ArmijoLineSearch())


def test_state_blind_trainings_share_their_rates() -> None:
    seeds, task = [0, 1, 2], SCALED
    seen = mean_observations(Runner(task, policy().mdp, [7, 8, 9], horizon=12), policy().controller)
    rates = run(state_blind(policy(), seen), task, seeds, 12).rates
    np.testing.assert_array_equal(rates, rates[:, :1].repeat(3, axis=1))
    assert np.ptp(run(policy(), task, seeds, 12).rates, axis=1).max() > 0


def test_mean_rates_are_geometric_over_running_trainings() -> None:
    rates = np.array([[1.0, 100.0, 1e-3], [1.0, 0.01, NAN], [8.0, NAN, NAN], [NAN, NAN, NAN]])
    np.testing.assert_allclose(mean_rates(rates), [10 ** (-1 / 3), 0.1, 8.0, 8.0])
    np.testing.assert_allclose(leave_one_out(rates)[:, 0], [10**-0.5, 0.01, 0.01, 0.01])
    np.testing.assert_allclose(leave_one_out(rates)[:, 2], [10, 0.1, 8, 8])
    for nothing in (rates[:, :0], rates[3:]):
        with pytest.raises(ValueError, match="a rate at the first decision"):
            mean_rates(nothing)
    with pytest.raises(ValueError, match="a rate at the first decision"):
        leave_one_out(rates[:, :1])


@pytest.mark.parametrize(("count", "reach"), [(1, 0), (10, 0), (40, 1), (200, 5)])
def test_smoothing_is_a_moving_geometric_mean(count: int, reach: int) -> None:
    rates = 10 ** np.random.default_rng(0).normal(size=(count, 2))
    padded = np.concatenate([rates[:1].repeat(reach, 0), rates, rates[-1:].repeat(reach, 0)])
    expected = [np.exp(np.log(padded[i : i + 2 * reach + 1]).mean(0)) for i in range(count)]
    np.testing.assert_allclose(smoothed(rates), expected, rtol=1e-9)


def test_replays_apply_the_rates() -> None:
    task, seeds = SCALED, [0, 1, 2]
    mdp = policy().mdp
    rates = 10 ** np.random.default_rng(0).uniform(-2, -1, (60, 3))
    result = run(same_instance_replay(mdp, rates, 2.0), task, seeds, 60)
    np.testing.assert_allclose(result.rates, 2 * smoothed(rates), rtol=1e-12)
    assert np.ptp(result.rates, axis=1).min() > 0
    np.testing.assert_allclose(run(population_replay(mdp, rates), task, seeds, 60).rates, mean_rates(rates)[:, None].repeat(3, 1), rtol=1e-12)
    longer = decide(BoundController(Replay(rates[:2, 0]), mdp), np.zeros((4, 3, 1)), starts={(3, 0)})
    np.testing.assert_array_equal(longer[:, :, 0], rates[[[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], 0])


def test_an_instance_s_other_seeds_share_its_draws_alone() -> None:
    scales = {}
    for instances in (None, [5, 5, 6]):
        runner = Runner(SCALED, MDP(features=["log_loss"], action="rate"), [1, 2, 3], horizon=2, instances=instances)
        result = runner.run(constant(0.1).bind().controller)
        scales[instances is None] = runner._episodes.population.batches.input_scales.numpy().copy(), result.losses
    own, shared = scales[True][0], scales[False][0]
    assert len(set(own)) == 3 and shared[0] == shared[1] != shared[2] and not set(own) & set(shared)
    assert (scales[True][1] != scales[False][1]).any()
    with pytest.raises(ValueError, match="instances need a task of one variant"):
        Runner({"data_sets": ["digits"], "depth": [0, 1], "num_variants": 2}, MDP(), [0, 1], instances=[0, 0])  # type: ignore[arg-type]


def test_rates_of_other_seeds_are_those_of_runs_of_the_instance() -> None:
    task, bound = SCALED, policy()
    rates = other_seeds_rates(bound, task, [5, 6], [1, 2, 3], horizon=10)
    for member, instance in enumerate([5, 6]):
        runs = Runner(task, bound.mdp, [1, 2, 3], horizon=10, instances=[instance] * 3).run(bound.controller).rates
        np.testing.assert_allclose(rates[:, member], np.exp(np.log(runs).mean(1)), rtol=1e-4)
    assert (rates[:, 0] != rates[:, 1]).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Replay(np.array([0.1, NAN])), "finite numbers >= 0"),
        (lambda: Replay(np.array([-0.1])), "finite numbers >= 0"),
        (lambda: Replay(np.zeros((3, 2))).predict(np.zeros((4, 1))), "Rates of 2 trainings can't be replayed in 4"),
        (lambda: shuffled_observations(OnlineActorCritic().bind()), "OnlineActorCritic sees more than observations"),
        (lambda: same_instance_replay(MDP(), np.ones((3, 2)), 0.0), "factor must be a finite number > 0"),
        (lambda: population_replay(MDP(optimizer="momentum", control_momentum=True), np.ones((3, 2))), "Only one rate for all parameters"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
