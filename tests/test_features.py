"""Features against the formulas on the whole history."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lr_env import LearningRateEnv
from lr_env.mdp import BASE_SCHEDULES, FEATURE_SETS, FEATURES, MDP, DecisionProcess, resolve_features
from lr_env.tasks import LOSSES
from lr_env.training import OPTIMIZERS, signal_rows
from tests.reference import features, train
from tests.rollouts import roll_out, tiny_task

NAMES = list(FEATURES)


def scaled_loss(scale: float, shift: float = 0.0) -> Any:
    return lambda outputs, targets: scale * LOSSES["cross_entropy"](outputs, targets) + shift


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("horizon", "shift"), [(60, 0.0), (300, -2.5)])
def test_every_feature_equals_its_formula(optimizer: str, horizon: int, shift: float) -> None:
    task = tiny_task(loss=scaled_loss(1.0, shift), loss_lower_bound=shift)
    rates = 0.05 * 10 ** np.random.default_rng(0).uniform(-0.5, 0.5, 60)
    env = gym.make(
        "LearningRate-v0", task=task, optimizer=optimizer, features=NAMES, action="rate", initial_rate=0.03, horizon=horizon, dtype="float64"
    )
    observed = roll_out(env, rates[:, None], seed=4).observations
    expected = features(task, train(task, 4, list(rates), optimizer, looks_closer=True), [0.03, *rates], optimizer, horizon)
    assert len(observed) == 61
    for t, row in enumerate(expected):
        np.testing.assert_allclose(observed[t], [row[name] for name in NAMES], rtol=2e-5, atol=2e-6, err_msg=f"step {t}")


def test_a_rate_of_zero_does_not_stay_in_averages() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(horizon=120), features=["predictive_change", "predictive_change_mean"], action="rate")
    last, mean = roll_out(env, np.append(0.0, np.full(110, 0.1))[:, None], seed=0).observations[-1]
    assert abs(mean - last) < 1


@pytest.mark.parametrize("options_of_base", [{"base": "sps"}, {"base": "cosine", "rate": 0.1}], ids=["sps", "cosine"])
def test_what_a_residual_action_observes_does_not_depend_on_the_first_rate(options_of_base: dict[str, Any]) -> None:
    action = {"kind": "residual", **options_of_base}
    options: dict[str, Any] = {"task": tiny_task(), "features": ["log_rate", "daniel2016", "scale_free"], "action": action}
    seen = [roll_out(gym.make("LearningRate-v0", initial_rate=rate, **options), np.zeros((5, 1)), seed=0).observations for rate in (0.01, 1.0)]
    np.testing.assert_array_equal(*seen)


def test_averages_advance_per_sgd_step_not_per_decision() -> None:
    task = tiny_task(horizon=24)
    options = {"task": task, "features": NAMES, "action": "rate", "dtype": "float64"}
    rates = [0.1, 0.2, 0.05, 0.3]
    observed = roll_out(gym.make("LearningRate-v0", steps_per_action=6, **options), [[rate] for rate in rates]).observations
    every_step = roll_out(gym.make("LearningRate-v0", **options), [[rate] for rate in rates for _ in range(6)]).observations
    np.testing.assert_array_equal(np.array(observed), np.array(every_step[::6]))


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_scale_free_features_do_not_see_the_scale_of_the_loss_with_residual_actions(scale: float) -> None:
    actions = np.random.default_rng(0).uniform(-1, 0.2, (30, 1)).astype(np.float32)

    def observations(factor: float) -> np.ndarray:
        env = gym.make(
            "LearningRate-v0", task=tiny_task(loss=scaled_loss(factor)), action="residual", horizon=30, lr_min=1e-9, lr_max=1e9, dtype="float64"
        )
        return np.array(roll_out(env, actions).observations)

    np.testing.assert_allclose(observations(scale), observations(1.0), atol=2e-6)


@pytest.mark.parametrize("scale", [0.01, 100.0])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
def test_scale_free_features_do_not_see_the_scale_of_the_loss_with_rates_scaled_inversely(scale: float, optimizer: str) -> None:
    rates = 10 ** np.random.default_rng(0).uniform(-2, -1, (30, 1))

    def observations(factor: float, features: str = "scale_free") -> np.ndarray:
        env = gym.make(
            "LearningRate-v0", task=tiny_task(loss=scaled_loss(factor)), optimizer=optimizer, action="rate", features=features, horizon=30,
            initial_rate=0.05 / factor, lr_min=1e-9, lr_max=1e9, dtype="float64",
        )  # fmt: skip
        return np.array(roll_out(env, rates / factor).observations)

    np.testing.assert_allclose(observations(scale), observations(1.0), atol=2e-6)
    # The other set does see it: the comparison is able to fail.
    assert np.abs(observations(scale, "absolute") - observations(1.0, "absolute")).max() > 1.9


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_adam_needs_no_inverse_scaling(scale: float) -> None:
    def observations(factor: float) -> np.ndarray:
        env = gym.make(
            "LearningRate-v0", task=tiny_task(loss=scaled_loss(factor)), optimizer={"name": "adam", "epsilon": 1e-30}, horizon=30, dtype="float64"
        )
        return np.array(roll_out(env, np.zeros((30, 1))).observations)

    np.testing.assert_allclose(observations(scale), observations(1.0), atol=2e-6)


def test_observations_stay_finite_and_clipped_at_the_extremes() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task(), features=NAMES, action="rate")
    for rate in (0.0, 1e-300, 1e30, 1e300):
        rollout = roll_out(env, [[rate]] * 8)
        values = np.array(rollout.observations)
        assert np.isfinite(values).all() and np.abs(values).max() <= 10


def test_each_observation_is_a_fresh_array() -> None:
    env = gym.make("LearningRate-v0", task=tiny_task())
    rollout = roll_out(env, np.zeros((5, 1)))
    copies = [observation.copy() for observation in rollout.observations]
    rollout.observations[-1][:] = 77
    env.step([1.0])
    for observation, kept in list(zip(rollout.observations, copies, strict=True))[:-1]:
        np.testing.assert_array_equal(observation, kept)


def test_sets_and_names_resolve_in_order_without_repetition() -> None:
    assert [f.name for f in resolve_features("absolute")] == list(FEATURE_SETS["absolute"])
    names = [f.name for f in resolve_features(["log_horizon", "absolute", "progress"])]
    assert names == ["log_horizon", *FEATURE_SETS["absolute"]]
    assert [f.name for f in resolve_features("log_rate")] == ["log_rate"]
    with pytest.raises(ValueError, match="At least one feature"):
        resolve_features([])


def test_the_specification_names_every_feature_with_its_formula() -> None:
    text = " ".join((LearningRateEnv.__doc__ or "").replace("``", "").split())
    for feature in FEATURES.values():
        formula = feature.formula.split(", 0 at first")[0]
        assert f"| {feature.name} | {formula}" in text, feature.name


def test_only_needed_signals_are_asked_for() -> None:
    assert MDP(features=["log_loss"]).begin(1, 10, 0.0).needs == frozenset()
    slope = {"gradient_dot_direction", "gradient_norm_squared", "direction_norm_squared"}
    assert MDP(features=["log_loss"], action="residual").begin(1, 10, 0.0).needs == slope
    assert MDP(features=["alignment", "disagreement_mean"]).begin(1, 10, 0.0).needs == {"direction_agreement", "loss_variance"}


def process(device: torch.device | None = None) -> tuple[DecisionProcess, int]:
    """All features at work, and the number of signals."""
    made = MDP(features=list(FEATURES), action="residual").begin(1, 50, 0.0, device)
    return made, len(signal_rows(made.needs))


def observe(made: DecisionProcess, table: Any, signals: Any) -> Any:
    made.observe(made.record(table), signals)
    return table


def test_a_restarted_member_begins_anew() -> None:
    generator, (made, rows) = np.random.default_rng(0), process()
    table, fresh = made.initial(2), made.initial(1)
    for _ in range(5):
        table = observe(made, table, generator.random((rows, 1, 2)) + 0.5)
    table[..., 1:] = made.initial(1)
    for step in range(4):
        signals = generator.random((rows, 1, 2)) + 0.5
        if step == 0:
            signals[signal_rows(made.needs).index("gradient_dot_previous"), :, 1] = 0.0  # a population has no previous gradient then
        table, fresh = observe(made, table, signals), observe(made, fresh, signals[..., 1:])
    assert made.record(table)["age"].tolist() == [[8, 3]]
    np.testing.assert_array_equal(made.observation(table)[1], made.observation(fresh)[0])


@pytest.mark.parametrize(
    "action", ["relative", "absolute", "residual", *({"kind": "residual", "base": base} for base in BASE_SCHEDULES), "discrete", "rate"]
)
@pytest.mark.parametrize("reward", ["loss", {"kind": "log_loss", "loss_floor": 0.01}])
def test_numpy_and_pytorch_run_the_same_process(action: Any, reward: Any) -> None:
    num_groups = 1 if action == "discrete" else 3
    mdp = MDP("momentum", features=list(FEATURES), action=action, reward=reward, control_momentum=num_groups > 1)
    results = []
    for device in (None, torch.device("cpu")):
        made, generator = mdp.begin(num_groups, 50, -0.5, device), np.random.default_rng(0)
        table, observations = made.initial(3), []
        for step in range(6):
            signals = generator.random((len(signal_rows(made.needs)), num_groups, 3)) + 0.5
            signals[0, :, 2] = np.nan if step == 4 else 1e9 if step == 5 else signals[0, :, 2]
            inputs = [generator.random((made.num_actions, 3)), generator.random(3) < 0.7, signals]
            actions, deciding, signals = [values if device is None else torch.from_numpy(values) for values in inputs]
            with np.errstate(all="ignore"):
                record = made.record(table)
                made.act(record, actions, deciding)
                made.observe(record, signals)
                if step == 0:
                    made.begin_potential(record, record["loss"])
                made.pay(record, record["loss"], deciding)
            observations += [np.asarray(made.observation(table)), np.asarray(table).copy(), np.asarray(made.has_diverged(record))]
        results.append(observations)
    for first, second in zip(*results, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)


def test_predictions_of_a_model_with_several_outputs_are_refused_in_words() -> None:
    class Two(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return super().forward(inputs), inputs

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs[0], targets, reduction="none")

    task = dataclasses.replace(tiny_task(), model=lambda: Two(4, 3), loss=loss, metric=None)
    with pytest.raises(ValueError, match=r"need a model whose output is one tensor, but that of task 'tiny' gives tuple\..*'xu2019'"):
        gym.make("LearningRate-v0", task=task, features="xu2019")
