"""Optimizers without a rate to tune, in the looped engine, against plain loops and their papers' formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agents.optimizers import RATE_FREE, AveragedDoG, DoG, schedule_free_sgd, untouched
from agents.schedules import constant
from benchmarks.runner import run
from lr_env import Task, make_task
from lr_env.episodes import Episodes, Execution
from tests import reference
from tests.rollouts import tiny_task

SEEDS = [3, 8]
HORIZON = 10


def start(factory: Any, task: Task) -> tuple[Episodes, np.ndarray]:
    """Two trainings in float64 at the default rate, and its actions."""
    bound, members = untouched(factory), np.arange(2)
    episodes = Episodes(task, 2, bound.mdp, HORIZON, Execution(dtype="float64"))
    episodes.restart(members, SEEDS)
    episodes.begin(members)
    return episodes, bound.controller.predict(np.zeros((2, 1)))[0]


def trained(factory: Any, task: Task, evaluates: bool = False) -> tuple[Episodes, np.ndarray]:
    """After all steps; minibatch losses ``(T + 1, 2)``."""
    episodes, rates = start(factory, task)
    losses = [episodes.losses]
    for _ in range(HORIZON):
        losses.append(episodes.step(rates).losses)
        if evaluates:
            episodes.evaluate("test")
    return episodes, np.array(losses)


def weights_by_hand(task: Task, seed: int, step: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """All weights of a loop in which ``step(weights, gradient)`` gives the next ones."""
    model, batches = task.initial_model(seed).double(), task.batches(seed)
    parameters = list(model.parameters())
    weights = [reference.flat(parameters)]
    for _ in range(HORIZON):
        inputs, targets = next(batches)
        loss = task.loss(model(inputs.double()), targets).mean()
        weights.append(step(weights[-1], reference.flat(torch.autograd.grad(loss, parameters))))
        torch.nn.utils.vector_to_parameters(torch.from_numpy(weights[-1]), parameters)
    return weights


def train_loss(task: Task, weights: np.ndarray) -> float:
    """Of a model with these weights over the whole training split."""
    model = task.initial_model(0).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), model.parameters())
    return reference.mean_loss(task, model, task.data.split("train").inputs, task.data.split("train").targets)


@pytest.mark.parametrize("name", RATE_FREE)
def test_trainings_are_those_of_the_plain_loop(name: str) -> None:
    task = tiny_task()
    episodes, losses = trained(RATE_FREE[name], task)
    evaluation = episodes.evaluate("train").losses
    for member, seed in enumerate(SEEDS):
        model, batches = task.initial_model(seed).double(), task.batches(seed)
        optimizer: Any = RATE_FREE[name](model.parameters())
        getattr(optimizer, "train", lambda: None)()
        for step in range(HORIZON + 1):
            inputs, targets = next(batches)
            optimizer.zero_grad()
            loss = task.loss(model(inputs.double()), targets).mean()
            assert losses[step, member] == pytest.approx(loss.item(), rel=1e-9)
            if step < HORIZON:
                loss.backward()
                optimizer.step()
        getattr(optimizer, "eval", lambda: None)()
        train = task.data.split("train")
        assert evaluation[member] == pytest.approx(reference.mean_loss(task, model, train.inputs, train.targets), rel=1e-9)


@pytest.mark.parametrize(("member", "seed"), list(enumerate(SEEDS)))
def test_schedule_free_sgd_is_evaluated_at_the_average(member: int, seed: int) -> None:
    task, rate, beta = tiny_task(), 1.0, 0.9
    episodes, _ = trained(schedule_free_sgd, task)
    z = x = reference.flat(task.initial_model(seed).double().parameters())
    count = 0

    def step(_: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        nonlocal z, x, count
        count += 1
        z = z - rate * gradient
        x = (1 - 1 / count) * x + z / count
        return (1 - beta) * z + beta * x

    y = weights_by_hand(task, seed, step)[-1]
    np.testing.assert_allclose(episodes.population.parameters[member], y, rtol=1e-9)
    assert episodes.evaluate("train").losses[member] == pytest.approx(train_loss(task, x), rel=1e-9)
    assert train_loss(task, x) != pytest.approx(train_loss(task, y), rel=1e-3)


@pytest.mark.parametrize("is_averaged", [False, True])
@pytest.mark.parametrize(("member", "seed"), list(enumerate(SEEDS)))
def test_dog_is_distance_over_gradients(is_averaged: bool, member: int, seed: int) -> None:
    task, history, gradients = tiny_task(), [], []

    def step(weights: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        history.append(weights)
        gradients.append(gradient)
        first = 1e-6 * (1 + np.linalg.norm(history[0]))
        distance = max([first, *(float(np.linalg.norm(past - history[0])) for past in history)])
        return weights - distance / np.sqrt(sum(g @ g for g in gradients) + 1e-8) * gradient

    weights = weights_by_hand(task, seed, step)
    episodes, _ = trained(AveragedDoG if is_averaged else DoG, task)
    np.testing.assert_allclose(episodes.population.parameters[member], weights[-1], rtol=1e-9)
    expected = weights[-1]
    if is_averaged:
        expected = weights[1]
        for t in range(2, HORIZON + 1):
            expected = (1 - 9 / (t + 8)) * expected + 9 / (t + 8) * weights[t]
    assert episodes.evaluate("train").losses[member] == pytest.approx(train_loss(task, expected), rel=1e-9)


@pytest.mark.parametrize("name", RATE_FREE)
def test_evaluations_and_branches_leave_no_trace(name: str) -> None:
    task, members = tiny_task(), np.arange(2)
    episodes, losses = trained(RATE_FREE[name], task, evaluates=True)
    np.testing.assert_array_equal(losses, trained(RATE_FREE[name], task)[1])
    other, rates = start(RATE_FREE[name], task)
    state, final = episodes.get_state(members), episodes.evaluate("train").losses
    episodes.step(rates)
    other.set_state(state, members)
    np.testing.assert_array_equal(other.evaluate("train").losses, final)
    other.step(rates)
    np.testing.assert_array_equal(other.losses, episodes.losses)
    other.restart(members, SEEDS)
    assert other.begin(members).losses[0] == losses[0, 0]


@pytest.mark.parametrize("name", RATE_FREE)
def test_they_learn_and_survive_a_divergence(name: str) -> None:
    result = run(untouched(RATE_FREE[name]), "digits-logreg", SEEDS, horizon=150)  # they begin with tiny rates
    first = run(constant(1e-9).bind(), "digits-logreg", SEEDS, horizon=1)
    assert not result.diverged.any() and (result.scores < first.scores - 0.05).all()
    ruined = run(constant(1e30).bind(RATE_FREE[name]), tiny_task(), [3], horizon=10)
    assert ruined.diverged.all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=r"SGDScheduleFree needs the package schedulefree: pip install 'lr-env\[baselines\]'"):
        untouched(schedule_free_sgd)


def test_options_reach_the_optimizer() -> None:
    task = make_task("digits-logreg")
    results = [run(untouched(lambda parameters, lr=lr: schedule_free_sgd(parameters, lr=lr)), task, [0], 5) for lr in (0.5, 2.0)]
    np.testing.assert_array_equal([result.rates[0, 0] for result in results], [0.5, 2.0])
