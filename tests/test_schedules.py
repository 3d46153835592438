"""Schedules as controllers against PyTorch's own schedulers."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from agents.schedules import Schedule, constant, cosine, step_decay
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


def test_runs_without_a_warning_and_equals_closed_form() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(cosine(0.5, horizon=30).bind(), "digits-logreg", [0, 1], horizon=30)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(30) / 30)) / 2
    np.testing.assert_allclose(result.rates, expected[:, None].repeat(2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_impossible_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="initial_rate"):
        constant(rate)
