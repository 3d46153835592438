"""State-feedback rules against loops that read like their formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from agents import ArmijoLineSearch, GreedyBranching, HypergradientDescent, NormalisedGradient, StochasticPolyak
from benchmarks.runner import Runner, run
from lr_env import BoundController, Task, make_task
from lr_env.episodes import Episodes, Execution
from lr_env.groups import make_episodes
from lr_env.training import draw_subset, make_optimizer
from tests import reference
from tests.rollouts import tiny_task


@dataclass
class NaiveTraining:
    """A training whose rates are chosen by a function of its history."""

    task: Task
    seed: int
    optimizer: str
    rates: list[float] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    loss: float = 0.0
    passes: int = 0

    def __post_init__(self) -> None:
        self.model, self.batches = self.task.initial_model(self.seed).double(), self.task.batches(self.seed)

    def run(self, horizon: int, choose: Callable[[NaiveTraining], float]) -> list[float]:
        for _ in range(horizon):
            self.inputs, self.targets = next(self.batches)
            loss = self.task.loss(self.model(self.inputs.double()), self.targets).mean()
            self.loss, parameters = loss.item(), list(self.model.parameters())
            self.gradients.append(reference.flat(torch.autograd.grad(loss, parameters)))
            self.weights.append(reference.flat(parameters))
            self.rates.append(choose(self))
            self.set_weights(self.weights[-1] - self.rates[-1] * self.directions[-1])
        return self.rates

    @property
    def directions(self) -> list[np.ndarray]:
        return reference.directions(self.gradients, self.optimizer, self.weights)

    def set_weights(self, weights: np.ndarray) -> None:
        vector_to_parameters(torch.from_numpy(weights), self.model.parameters())

    def loss_after(self, rate: float, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """What a step at this rate would lead to, on these examples."""
        before = parameters_to_vector(self.model.parameters()).detach().numpy().copy()
        self.set_weights(before - rate * self.directions[-1])
        self.passes += 1
        loss = reference.mean_loss(self.task, self.model, inputs, targets)
        self.set_weights(before)
        return loss


def drive(bound: BoundController, task: Task, seeds: list[int], horizon: int) -> np.ndarray:
    """The rates of a controller in float64, ``(T, N)``."""
    members = np.arange(len(seeds))
    episodes = Episodes(task, len(seeds), bound.mdp, horizon, Execution(dtype="float64"))
    episodes.restart(members, seeds)
    outcome, state, rates = episodes.begin(members), None, []
    if hasattr(bound.controller, "attach"):
        bound.controller.attach(episodes)
    for step in range(horizon):
        actions, state = bound.controller.predict(outcome.observations, state, np.full(len(seeds), step == 0), deterministic=True)
        outcome = episodes.step(episodes.parse_actions(actions))
        rates.append(outcome.rates[:, 0])
    return np.array(rates)


def naive(task: Task, seeds: list[int], optimizer: str, horizon: int, choose: Callable[[NaiveTraining], float]) -> tuple[np.ndarray, list[int]]:
    """The rates ``(T, N)`` and extra forward passes ``(N,)`` of plain loops."""
    trainings = [NaiveTraining(task, seed, optimizer) for seed in seeds]
    rates = np.array([training.run(horizon, choose) for training in trainings]).T
    return rates, [training.passes for training in trainings]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_normalised_steps_have_one_length(optimizer: str) -> None:
    task = tiny_task()
    expected, _ = naive(task, [2, 5], optimizer, 20, lambda training: float(0.3 / np.linalg.norm(training.directions[-1])))
    np.testing.assert_allclose(drive(NormalisedGradient(0.3).bind(optimizer), task, [2, 5], 20), expected, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("is_multiplicative", [True, False])
def test_hypergradient_descent(optimizer: str, is_multiplicative: bool) -> None:
    constant = 0.1 if is_multiplicative else {"sgd": 0.05, "momentum": 0.005, "adamw": 1e-4}[optimizer]
    first = make_optimizer(optimizer)[1].initial

    def choose(training: NaiveTraining) -> float:
        if len(training.gradients) == 1:
            return first
        gradient, direction, rate = training.gradients[-1], training.directions[-2], training.rates[-1]
        merit = gradient @ direction
        if is_multiplicative:
            return float(rate * (1 + constant * merit / np.linalg.norm(gradient) / np.linalg.norm(direction)))
        return float(max(rate + constant * merit, 0))

    expected, _ = naive(tiny_task(), [2, 5], optimizer, 25, choose)
    np.testing.assert_allclose(drive(HypergradientDescent(constant, is_multiplicative).bind(optimizer), tiny_task(), [2, 5], 25), expected, rtol=1e-7)
    assert np.ptp(expected, axis=0).min() > 0.1 * first


def test_hypergradient_descent_never_ascends() -> None:
    rates = drive(HypergradientDescent(50.0, is_multiplicative=False).bind(), tiny_task(), [2, 5], 25)
    assert rates.min() == 0 and np.isfinite(rates).all()


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_armijo_line_search(optimizer: str) -> None:
    limits = make_optimizer(optimizer)[1]

    def choose(training: NaiveTraining) -> float:
        rate, slope = limits.highest, float(training.gradients[-1] @ training.directions[-1])
        if training.rates:
            rate = training.rates[-1]
            if slope <= 0:
                return rate
            rate = min(rate * 4.0 ** (1 / 6), limits.highest)  # an epoch of six batches
        while training.loss_after(rate, training.inputs, training.targets) > training.loss - 0.3 * rate * slope and rate > limits.lowest:
            rate = max(rate * 0.7, limits.lowest)
        return rate

    expected, passes = naive(tiny_task(), [2, 5], optimizer, 15, choose)
    rule = ArmijoLineSearch(0.3, shrink=0.7, growth=4.0)
    np.testing.assert_allclose(drive(rule.bind(optimizer), tiny_task(), [2, 5], 15), expected, rtol=1e-9)
    np.testing.assert_array_equal(rule.extra_forward_passes, passes)
    assert len(np.unique(expected)) > 10


def test_greedy_branching() -> None:
    task, factors = tiny_task(), (0.5, 1.0, 2.0)
    subset = draw_subset(task, "train", 80)
    inputs, targets = task.data.train.inputs[subset], task.data.train.targets[subset]

    def choose(training: NaiveTraining) -> float:
        tried = [factor * (training.rates[-1] if training.rates else 0.1) for factor in factors]
        return min(tried, key=lambda rate: training.loss_after(rate, inputs, targets))

    expected, passes = naive(task, [2, 5], "sgd", 25, choose)
    rule = GreedyBranching(factors, num_examples=80)
    np.testing.assert_allclose(drive(rule.bind(), task, [2, 5], 25), expected, rtol=1e-9)
    np.testing.assert_allclose(rule.extra_forward_passes, np.array(passes) * 80 / 16)
    assert len(np.unique(expected)) > 4


@pytest.mark.parametrize("rule", [ArmijoLineSearch, HypergradientDescent])
def test_each_training_may_have_a_constant_of_its_own(rule: Any) -> None:
    apart = [drive(rule(constant).bind(), tiny_task(), [seed], 10)[:, 0] for constant, seed in ((0.1, 2), (0.6, 5))]
    together = rule()
    together.constant = np.array([0.1, 0.6])
    np.testing.assert_allclose(drive(together.bind(), tiny_task(), [2, 5], 10), np.array(apart).T, rtol=1e-9)


@pytest.mark.parametrize("rule", [ArmijoLineSearch(), GreedyBranching(), HypergradientDescent()])
def test_the_runner_attaches_rules_and_reports_what_they_cost(rule: Any) -> None:
    bound = rule.bind("momentum")
    runner = Runner("digits-mlp-scaled", bound.mdp, [0, 1, 2], horizon=15)
    result, again = runner.run(bound.controller), runner.run(bound.controller)
    np.testing.assert_array_equal(result.rates, again.rates)  # its look at the trainings has left no trace in them
    np.testing.assert_array_equal(result.losses, again.losses)
    np.testing.assert_array_equal(result.extra_forward_passes, again.extra_forward_passes)
    assert (result.extra_forward_passes > 0).all() == (not isinstance(rule, HypergradientDescent))
    assert run(StochasticPolyak().bind(), "digits-logreg", [0], horizon=2).extra_forward_passes is None


def test_rules_say_what_they_need() -> None:
    rule = ArmijoLineSearch()
    with pytest.raises(RuntimeError, match=r"call attach\(episodes\) first"):
        rule.predict(np.zeros((2, 1)))
    family = {"num_variants": 2, "data_sets": ["digits"], "depth": [0, 1]}
    with pytest.raises(TypeError, match="choose a variant"):
        rule.attach(make_episodes(family, 2, rule.bind().mdp))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs an optimizer by name"):
        rule.attach(Episodes(tiny_task(), 1, rule.bind(torch.optim.RAdam).mdp))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalisedGradient(0.0), "constant must be a finite number > 0"),
        (lambda: HypergradientDescent(float("inf")), "constant must be a finite number > 0"),
        (lambda: ArmijoLineSearch(1.0), r"constant must be in \(0, 1\)"),
        (lambda: ArmijoLineSearch(shrink=1.5), r"shrink must be in \(0, 1\)"),
        (lambda: ArmijoLineSearch(growth=0.5), "growth must be finite and >= 1"),
        (lambda: GreedyBranching([1.0, -1.0]), "a factor must be a finite number > 0"),
        (lambda: GreedyBranching(num_examples=0), "num_examples must be an integer >= 1"),
    ],
)
def test_refuses_impossible_numbers(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rates_equal_the_formula() -> None:
    task = make_task("digits-logreg")
    model, batches, expected = task.initial_model(3), task.batches(3), []
    for _ in range(30):
        inputs, targets = next(batches)
        loss = F.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = min(0.3 * loss.item() / sum(float(g.square().sum()) for g in gradients), 0.5)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        expected.append(rate)
    result = run(StochasticPolyak(0.3, cap=0.5).bind(), task, [3], horizon=30)
    np.testing.assert_allclose(result.rates[:, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("constant", [0.0, -1.0, float("nan")])
def test_refuses_impossible_constants(constant: float) -> None:
    with pytest.raises(ValueError, match="constant"):
        StochasticPolyak(constant)
