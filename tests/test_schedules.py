"""Schedules as controllers against PyTorch's own schedulers."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from agents.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    one_cycle,
    reduce_on_plateau,
    step_decay,
    warmup_cosine,
    warmup_stable_decay,
)
from benchmarks.baselines import schedule_shapes
from benchmarks.lr_bench.contestants import SHAPES
from benchmarks.runner import run

MAKERS = {
    "linear": partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=20),
    "exponential": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=20),
    "one cycle": partial(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=25),
}


@pytest.mark.parametrize("name", MAKERS)
def test_rates_equal_torch(name: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler, expected = MAKERS[name](optimizer), []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    controller, state, rates = Schedule(MAKERS[name], 0.3), None, []
    for _ in range(20):
        action, state = controller.predict(np.zeros((2, 1), np.float32), state, np.zeros(2, bool), deterministic=True)
        assert action.shape == (2, 1)
        rates.append(action[:, 0])
    np.testing.assert_array_equal(np.array(rates), np.array(expected)[:, None].repeat(2, axis=1))


def test_plateau_follows_each_member_s_loss() -> None:
    controller = Schedule(partial(lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=2), 1.0)
    state, observations = None, np.zeros((2, 1), np.float32)
    for step in range(8):
        observations[0] = -step  # member 0 improves, member 1 does not
        rates, state = controller.predict(observations, state, np.zeros(2, bool), deterministic=True)
    assert rates[0, 0] == 1.0
    assert rates[1, 0] < 1.0


def test_episode_start_restarts_one_member() -> None:
    controller, state = step_decay(1.0, horizon=4), None
    for _ in range(4):
        rates, state = controller.predict(np.zeros((2, 1)), state, np.zeros(2, bool))
    np.testing.assert_allclose(rates[:, 0], [0.01, 0.01])
    rates, state = controller.predict(np.zeros((2, 1)), state, np.array([True, False]))
    np.testing.assert_allclose(rates[:, 0], [1.0, 0.01])


@pytest.mark.parametrize("shape", [linear, reduce_on_plateau])
def test_a_pickled_schedule_goes_on(shape: Any) -> None:
    schedule = shape(1.0, 10)
    expected = rates_of(schedule, 10, np.ones(10))
    assert rates_of(pickle.loads(pickle.dumps(schedule)), 10, np.ones(10)) == expected


def test_runs_without_a_warning_and_equals_closed_form() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(cosine(0.5, horizon=30).bind(), "digits-logreg", [0, 1], horizon=30)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(30) / 30)) / 2
    np.testing.assert_allclose(result.rates, expected[:, None].repeat(2, axis=1), rtol=1e-6)


def by_hand(make: Any, horizon: int, losses: Any = None) -> list[float]:
    """The rates of torch's scheduler in the loop that anybody would write."""
    optimizer, rates = torch.optim.SGD([torch.zeros(1)], lr=0.3), []
    scheduler = make(optimizer)
    for step in range(horizon):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < horizon:
            scheduler.step() if losses is None else scheduler.step(losses[step + 1])
    return rates


def rates_of(schedule: Schedule, horizon: int, losses: Any = None) -> list[float]:
    """The rates that a schedule chooses for one training."""
    rates, state = [], None
    for step in range(horizon):
        observation = np.zeros((1, 1)) if losses is None else np.log10(losses[step]).reshape(1, 1)
        rate, state = schedule.predict(observation, state, np.array([step == 0]), deterministic=True)
        rates.append(rate[0, 0])
    return rates


@pytest.mark.parametrize("horizon", [1, 2, 3, 10, 40, 257])
def test_named_schedules_are_torch_s_own(horizon: int) -> None:
    warmup, decay = min(-(-horizon // 20), horizon - 1), max(1, round(horizon / 5))

    def warm(optimizer: Any) -> Any:
        return lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)

    shapes: dict[Any, Any] = {
        linear: lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=horizon),
        exponential: lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.01 ** (step / horizon)),
        cosine: lambda o: lr_scheduler.CosineAnnealingLR(o, horizon),
        step_decay: lambda o: lr_scheduler.MultiStepLR(o, [horizon // 2, horizon * 3 // 4]),
        warmup_cosine: lambda o: lr_scheduler.LambdaLR(
            o,
            lambda step: (step + 1) / (warmup + 1) if step < warmup else (1 + np.cos(np.pi * (step - warmup) / (horizon - warmup))) / 2,
        ),
        warmup_stable_decay: lambda o: lr_scheduler.SequentialLR(
            o, [warm(o), lr_scheduler.ConstantLR(o, 1.0), lr_scheduler.PolynomialLR(o, decay)], [warmup, horizon - decay]
        ),
        one_cycle: lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=horizon, cycle_momentum=False),
    }
    for shape, make in shapes.items():
        np.testing.assert_allclose(rates_of(shape(0.3, horizon), horizon), by_hand(make, horizon), rtol=1e-9, atol=1e-15, err_msg=shape.__name__)


@pytest.mark.parametrize(("horizon", "patience"), [(1, 1), (3, 1), (40, 4), (257, 26)])
def test_plateau_s_patience_is_a_tenth_of_the_horizon(horizon: int, patience: int) -> None:
    losses = np.exp(np.random.default_rng(0).normal(size=horizon))
    expected = by_hand(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=patience), horizon, losses)
    np.testing.assert_array_equal(rates_of(reduce_on_plateau(0.3, horizon), horizon, losses), expected)
    assert horizon < 40 or expected[-1] < 0.3


def test_shapes_at_a_glance() -> None:
    rates = {shape: np.array(rates_of(shape(1.0, 100), 100)) for shape in (linear, exponential, warmup_cosine, warmup_stable_decay, one_cycle)}
    np.testing.assert_allclose(rates[linear], 1 - np.arange(100) / 100)
    assert rates[exponential][50] == pytest.approx(0.1)
    assert rates[warmup_cosine].argmax() == rates[warmup_stable_decay].argmax() == 5 and rates[one_cycle].argmax() == 29
    np.testing.assert_array_equal(rates[warmup_stable_decay][5:81], 1.0)
    assert rates[warmup_stable_decay][90] == pytest.approx(0.5)
    assert all(values.max() == pytest.approx(1.0) for values in rates.values())


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_impossible_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="initial_rate"):
        constant(rate)


def test_all_shapes_have_the_peak_rate_and_one_decision_process() -> None:
    assert len(SHAPES) == 9 and SHAPES.keys() >= schedule_shapes(20).keys()
    schedules = {name: shape(0.3, 20) for name, shape in SHAPES.items()}
    assert len({schedule.bind("momentum").mdp for schedule in schedules.values()}) == 1
    for name, schedule in schedules.items():
        assert max(rates_of(schedule, 20, np.ones(20))) == pytest.approx(0.3), name
