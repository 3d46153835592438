"""ControllerLR in loops of one's own: as in the environment, as a scheduler of torch, and where something goes wrong."""

from __future__ import annotations

import copy
import io
import math
import pickle
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from agents import OnlineActorCritic
from agents.schedules import cosine, reduce_on_plateau
from lr_env import MDP, BoundController, ControllerLR, PolicyNetwork, SharedGroupController, make_task, save_controller
from lr_env.training import torch_directions
from tests.rollouts import tiny_task

ALL_OF_A_LOOP = ["scale_free", "absolute", "alignment", "log_weight_norm", "log_base_rate", "previous_action", "gradient_norm_change"]
Make = Callable[[Any], torch.optim.Optimizer]


def bind(mdp: MDP, num_groups: int = 1, liveliness: float = 100.0, averages: bool = False) -> BoundController:
    """A controller whose actions depend on what it observes, or with ``averages`` on what it has observed."""
    process = mdp.begin(num_groups, 100, 0.0)
    policy = PolicyNetwork(process.observation_space.shape[0], num_groups, (16,), seed=1, averages=averages)  # type: ignore[index]
    with torch.no_grad():
        policy.layers[-1].weight.mul_(liveliness)
    return BoundController(policy, mdp)


class Constant:
    """Always the same action, of a controller with or without a recurrent state."""

    def __init__(self, action: float = 0.0, counts: bool = False) -> None:
        self.action, self.counts = action, counts
        self.starts: list[bool] = []

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        self.starts += [bool(start) for start in episode_start]
        if self.counts:
            state = (np.zeros((len(observation), 1)) if state is None else state[0] + 1,)
        return np.full((len(observation), 1), self.action if state is None else self.action + state[0][0, 0]), state


class Loop:
    """A plain training, and what ControllerLR did in it."""

    def __init__(self, task: Any, make: Make, bound: BoundController, steps: int, seed: int = 3) -> None:
        self.task, self.model = task, task.initial_model(seed)
        self.optimizer = make(self.model.parameters())
        self.controller = ControllerLR(self.optimizer, bound, total_steps=steps, initial_rate=bound.mdp.rate_range().initial)
        self.observations: list[np.ndarray] = []
        self.rates: list[float] = []

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        for inputs, targets in batches:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.controller.step(loss)
            assert self.controller.observation is not None
            self.observations.append(self.controller.observation[0])
            self.rates.append(float(self.controller.get_last_lr()[0]))
            self.optimizer.step()


def in_environment(task: Any, bound: BoundController, steps: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Observations and rates of the environment under the same controller."""
    env = gym.make("LearningRate-v0", task=task, gradients="looped", horizon=steps, **vars(bound.mdp))
    observation, _ = env.reset(seed=seed)
    observations, rates, state = [], [], None
    for step in range(steps):
        if step % bound.mdp.steps_per_action == 0:
            action, state = bound.controller.predict(observation[None], state)
        observations.append(observation)
        if step % bound.mdp.steps_per_action == 0:
            observation, _, _, _, info = env.step(action[0])
        rates.append(float(info["learning_rate"]))
        assert not info["diverged"], step
    return np.array(observations), np.array(rates)


OPTIMIZERS: dict[str, tuple[Any, Make]] = {
    "sgd": ("sgd", lambda parameters: torch.optim.SGD(parameters, 0.5)),
    "sgd with weight decay": ({"name": "sgd", "weight_decay": 1e-3}, lambda parameters: torch.optim.SGD(parameters, 0.5, weight_decay=1e-3)),
    "momentum": ("momentum", lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9)),
    "nesterov": ("nesterov", lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True)),
    "adam": ({"name": "adam", "weight_decay": 1e-3}, lambda parameters: torch.optim.Adam(parameters, weight_decay=1e-3)),
    "adamw": ("adamw", torch.optim.AdamW),
    "momentum by a function": (lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),) * 2,
    "adamw by a function": (torch.optim.AdamW, torch.optim.AdamW),
}


@pytest.mark.parametrize("features", [ALL_OF_A_LOOP, "scale_free"], ids=["all", "scale_free"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bits_of_the_environment(name: str, features: Any) -> None:
    specification, make = OPTIMIZERS[name]
    bound = bind(MDP(optimizer=specification, features=features, lr_max=0.3), averages=name in ("momentum", "adamw"))
    task = make_task("digits-mlp")
    loop = Loop(task, make, bound, 200)
    loop.run(islice(task.batches(3), 200))
    observations, rates = in_environment(task, bound, 200)
    np.testing.assert_array_equal(np.array(loop.observations), observations)
    np.testing.assert_array_equal(loop.rates, rates)
    assert len(set(loop.rates)) > 10


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_training_has_the_bits_of_one_that_was_not_interrupted(name: str) -> None:
    specification, make = OPTIMIZERS[name]
    bound = bind(MDP(optimizer=specification, features=ALL_OF_A_LOOP, lr_max=0.3), averages=name in ("momentum", "adamw"))
    task = make_task("digits-mlp")
    whole, first = (Loop(task, make, bound, 200) for _ in range(2))
    whole.run(islice(task.batches(3), 200))
    first.run(islice(task.batches(3), 77))
    file = io.BytesIO()
    torch.save({name: getattr(first, name).state_dict() for name in ("model", "optimizer", "controller")}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = Loop(task, make, bound, 200, seed=4)
    for part, state in saved.items():
        getattr(second, part).load_state_dict(state)
    assert second.controller.get_last_lr() == first.controller.get_last_lr()
    second.run(islice(task.batches(3), 77, 200))
    np.testing.assert_array_equal(np.array(first.observations + second.observations), np.array(whole.observations))
    assert first.rates + second.rates == whole.rates


def run(model: nn.Linear, optimizer: torch.optim.Optimizer, controller: ControllerLR, steps: range) -> list[float]:
    """Rates of a training whose data never change."""
    rates = []
    for _ in steps:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        controller.step(loss)
        optimizer.step()
        rates.append(float(controller.get_last_lr()[0]))
    return rates


@pytest.mark.parametrize("action", [{"kind": "residual", "base": "cosine"}, "rate"], ids=["cosine", "rate"])
def test_a_resumed_training_may_begin_with_the_optimizer_s_state(action: Any) -> None:
    """Its rate is then the one that the training has come to, 0 perhaps, and not the first."""
    bound = cosine(0.5, 20).bind() if action == "rate" else BoundController(Constant(0.0), MDP(action=action))

    def make() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, torch.optim.SGD(model.parameters(), 0.5)

    whole = run(*(made := make()), ControllerLR(made[1], bound, total_steps=20), range(20))
    model, optimizer = make()
    controller = ControllerLR(optimizer, bound, total_steps=20)
    first = run(model, optimizer, controller, range(12))
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), controller.state_dict()])
    saved[1]["param_groups"][0]["lr"] *= 0 if action == "rate" else 1
    model, optimizer = make()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    controller = ControllerLR(optimizer, bound, total_steps=20)
    controller.load_state_dict(saved[2])
    assert first + run(model, optimizer, controller, range(12, 20)) == whole
    assert controller.base_lrs == [0.5]
    assert len(set(whole)) == 20


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("limits", [{"lr_min": 5e-5}, {"lr_max": 0.2}], ids=["lowest", "highest"])
def test_a_training_goes_on_from_a_rate_at_or_beyond_the_edge_of_the_range(lr: Any, limits: dict[str, float]) -> None:
    """10 ** log10(5e-5) is below 5e-5, and a float32 tensor may be anywhere near; a fallback's rates have no bounds."""
    bound = BoundController(Constant(-1.0 if "lr_min" in limits else 1.0), MDP(action={"kind": "relative", "max_change": 0.5}, **limits))
    beyond = {"lr_min": 1e-6, "lr_max": 100.0}[next(iter(limits))]

    def begin(state: Any = None) -> tuple[torch.optim.Optimizer, ControllerLR]:
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([weight], lr=lr.clone() if isinstance(lr, Tensor) else lr)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state[0]))
        controller = ControllerLR(optimizer, bound, total_steps=40, fallback=lambda step: beyond)
        if state is not None:
            controller.load_state_dict(state[1])
        return optimizer, controller

    def run(optimizer: torch.optim.Optimizer, controller: ControllerLR, losses: list[float]) -> list[float]:
        rates = []
        for loss in losses:
            optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
            controller.step(loss)
            rates.append(float(optimizer.param_groups[0]["lr"]))
        return rates

    for losses in ([1.0] * 10, [1.0] * 9 + [math.nan]):
        optimizer, controller = begin()
        run(optimizer, controller, losses)
        saved = copy.deepcopy((optimizer.state_dict(), controller.state_dict()))
        expected = run(optimizer, controller, [1.0] * 3)
        assert run(*begin(saved), [1.0] * 3) == expected
        assert begin(saved)[1].mdp.initial_rate == pytest.approx(0.1)


def test_a_schedule_with_a_rate_of_its_own_does_not_depend_on_the_first_rate() -> None:
    bound = bind(MDP(optimizer="momentum", action={"kind": "residual", "base": "warmup_stable_decay", "rate": 0.05}))
    task = make_task("digits-mlp")
    observations, rates = in_environment(task, bound, 60)
    for first in (1e-4, 0.01, 1.0):
        loop = Loop(task, lambda parameters, first=first: torch.optim.SGD(parameters, first, momentum=0.9), bound, 60)
        loop.run(islice(task.batches(3), 60))
        np.testing.assert_array_equal(np.array(loop.observations), observations)
        np.testing.assert_array_equal(loop.rates, rates)
    assert len(set(rates)) > 10


def test_a_decision_for_several_steps() -> None:
    bound = bind(MDP(optimizer="sgd", steps_per_action=5))
    task = make_task("digits-mlp")
    loop = Loop(task, OPTIMIZERS["sgd"][1], bound, 60)
    loop.run(islice(task.batches(3), 60))
    env = gym.make("LearningRate-v0", task=task, gradients="looped", horizon=60, **vars(bound.mdp))
    observation, _ = env.reset(seed=3)
    for step in range(0, 60, 5):
        np.testing.assert_array_equal(loop.observations[step], observation)
        assert len(set(loop.rates[step : step + 5])) == 1
        observation, *_ = env.step(bound.controller.predict(observation[None])[0][0])


NAMED: dict[str, tuple[Any, Make, dict[str, str]]] = {
    "rmsprop": (
        {"name": "rmsprop", "centered": True, "momentum": 0.5},
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
        {"second_moment": "square_avg", "first_moment": "grad_avg", "momentum": "momentum_buffer"},
    ),
    "adagrad": ("adagrad", torch.optim.Adagrad, {"sum_of_squares": "sum"}),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_loop_in_the_environment_s_state_observes_its_bits(name: str) -> None:
    """By name these optimizers' steps are rounded otherwise than torch's; so here each step begins with the environment's weights."""
    specification, make, names = NAMED[name]
    bound = bind(MDP(optimizer=specification, features=ALL_OF_A_LOOP, lr_max=0.3))
    task = tiny_task()
    env = gym.make("LearningRate-v0", task=task, gradients="looped", horizon=50, **vars(bound.mdp))
    observation, _ = env.reset(seed=0)
    population = env.unwrapped.episodes.population  # type: ignore[attr-defined]
    loop = Loop(task, make, bound, 50)
    parameters = list(loop.model.parameters())
    before: dict[str, Tensor] = {}
    for step, (inputs, targets) in enumerate(islice(task.batches(0), 50)):
        nn.utils.vector_to_parameters(population.parameters[0].clone(), parameters)
        loop.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(loop.model(inputs), targets)
        loss.backward()
        if before:
            for ours, theirs in names.items():
                nn.utils.vector_to_parameters(before[ours], [loop.optimizer.state[parameter][theirs] for parameter in parameters])
        loop.controller.step(loss)
        assert loop.controller.observation is not None
        np.testing.assert_array_equal(loop.controller.observation[0], observation, err_msg=str(step))
        loop.optimizer.step()
        before = {ours: population.state[f"optimizer.{ours}"][0].clone() for ours in names}
        observation, *_ = env.step(bound.controller.predict(observation[None])[0][0])


GROUPS_OF_OPTIMIZERS: dict[str, Make] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, momentum=0.5, centered=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, initial_accumulator_value=0.1),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": lambda groups: torch.optim.NAdam(groups, decoupled_weight_decay=True),
}


def _limit_pieces(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """Makes models of more elements large."""
    limits = {"ELEMENTS_OF_SMALL_MODEL": elements, "ELEMENTS_PER_PIECE": elements, "ELEMENTS_PER_CHUNK": max(elements // 2, 3), "ELEMENTS_TO_COPY": 4}
    for name, value in limits.items():
        monkeypatch.setattr(torch_directions, name, value)


@pytest.mark.parametrize("elements", [2**18, 7])
@pytest.mark.parametrize("name", GROUPS_OF_OPTIMIZERS)
def test_the_direction_is_what_the_optimizer_subtracts(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weight decays of their own, unequal rates, frozen parameters and ones that have no gradient at times."""
    _limit_pieces(monkeypatch, elements)
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in ((3, 5), (5,), (5, 2), (2,), (4,))]
    weights[4].requires_grad_(False)
    groups = [
        {"params": [weights[0], weights[2], weights[4]], "weight_decay": 0.1},
        {"params": [weights[1], weights[3]], "lr": 0.01, "weight_decay": 0.0},
    ]
    optimizer = GROUPS_OF_OPTIMIZERS[name]([{"lr": 0.02, **group} for group in groups])
    signals = torch_directions.LoopSignals(optimizer, frozenset({"direction_norm_squared", "gradient_dot_direction"}))
    tolerance = 1e-6 if name == "nadam" else 1e-9  # torch keeps NAdam's product of momenta in float32
    for step in range(6):
        for weight in weights[:4]:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if step in (2, 3):
            weights[3].grad = weights[0].grad = None
        state_before = repr(optimizer.state_dict())
        norm = signals(torch.ones(1), [1.0, 0.5])[signals_row("direction_norm_squared"), 0, 0]
        assert repr(optimizer.state_dict()) == state_before
        before = [weight.detach().clone() for weight in weights]
        optimizer.step()
        moved = [(old - new.detach()) / 0.02 for old, new in zip(before, weights, strict=True)]
        torch.testing.assert_close(norm, sum(move.square().sum() for move in moved), rtol=tolerance, atol=0)


def signals_row(name: str) -> int:
    return ["loss", "gradient_dot_direction", "direction_norm_squared"].index(name)


@pytest.mark.parametrize("grouped", [False, True], ids=["one rate", "a rate for each group"])
def test_a_model_in_pieces_is_measured_as_a_whole_one(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task()
    names = [name for name, _ in task.initial_model(0).named_parameters()]
    options = {"lr_groups": [names[:1], names[1:]]} if grouped else {}
    mdp = MDP(optimizer="adamw", features=ALL_OF_A_LOOP, lr_max=0.1, **options)
    bound = bind(mdp, 2 if grouped else 1, liveliness=10.0)

    def make(parameters: Any) -> torch.optim.Optimizer:
        chosen = list(parameters)
        return torch.optim.AdamW([{"params": chosen[:1]}, {"params": chosen[1:]}], lr=1e-3)

    observations = []
    for elements in (2**18, 10):
        _limit_pieces(monkeypatch, elements)
        loop = Loop(task, make, bound, 20)
        loop.run(islice(task.batches(3), 20))
        observations.append(loop.observations)
    np.testing.assert_allclose(*observations, rtol=1e-3, atol=1e-3)


class Case:
    """A small training for everything else."""

    def __init__(self, action: float = 0.5, features: Any = "scale_free", controller: Any = None, groups: Any = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        given = self.model.parameters() if groups is None else groups(self.model)
        self.optimizer = torch.optim.SGD(given, lr=options.pop("lr", 0.1), momentum=0.9)
        self.constant = controller or Constant(action)
        bound = BoundController(self.constant, MDP(optimizer="momentum", features=features, action={"kind": "relative", "max_change": 0.1}))
        self.controller = ControllerLR(self.optimizer, bound, **{"total_steps": 100, **options})
        self.inputs, self.targets = torch.randn(16, 4), torch.randint(3, (16,))

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward()
        return loss

    def step(self) -> float:
        self.controller.step(self.loss())
        self.optimizer.step()
        return float(self.optimizer.param_groups[0]["lr"])


def test_it_is_a_scheduler_without_its_traps() -> None:
    case = Case()
    assert isinstance(case.controller, torch.optim.lr_scheduler.LRScheduler)
    assert case.controller.optimizer is case.optimizer
    assert case.controller.last_epoch == 0
    assert case.controller.get_last_lr() == pytest.approx([0.1])
    assert case.controller.base_lrs == [0.1]
    assert "step" not in vars(case.optimizer)
    assert not case.optimizer.state
    rates = [case.step() for _ in range(3)]  # warnings are errors here
    assert rates == pytest.approx([0.1 * 10 ** (0.05 * i) for i in (1, 2, 3)])
    assert case.controller.last_epoch == 3
    assert case.controller.get_last_lr() == [rates[-1]]
    assert case.constant.starts == [True, True, False, False]


def test_gradients_stay_as_they_are() -> None:
    case = Case(clip_norm=1e-3)
    loss = case.loss()
    before = [parameter.grad.clone() for parameter in case.model.parameters() if parameter.grad is not None]
    case.controller.step(loss)
    assert all(torch.equal(old, parameter.grad) for old, parameter in zip(before, case.model.parameters(), strict=True))  # type: ignore[arg-type]


def test_without_a_loss_nothing_changes_and_a_cycle_without_any_warns_once() -> None:
    case = Case()
    case.controller.step()  # frameworks call it so, between steps with a loss
    rate = case.step()
    case.controller.step()
    assert case.optimizer.param_groups[0]["lr"] == rate
    assert case.controller.last_epoch == 1
    with pytest.warns(UserWarning, match=r"without a loss.*controller\.step\(loss\)"):
        case.controller.step()
    case.controller.step()


def test_its_own_record_of_the_rate() -> None:
    case, other = Case(), Case()
    for _ in range(3):
        case.optimizer.param_groups[0]["lr"] = 7.0
        assert case.step() == other.step()


def test_a_tensor_rate_is_updated_in_place() -> None:
    case, other = Case(lr=torch.tensor(0.1, dtype=torch.float64)), Case()
    tensor = case.optimizer.param_groups[0]["lr"]
    for _ in range(3):
        assert case.step() == pytest.approx(other.step(), rel=1e-12)
    assert case.optimizer.param_groups[0]["lr"] is tensor


def test_groups_that_share_a_tensor_get_rates_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    names = [[f"{layer}.{part}" for part in ("weight", "bias")] for layer in range(2)]
    bound = BoundController(Constant(), MDP(lr_groups=names))
    bound.controller.predict = lambda observation, state, **_: (np.array([[1.0, -1.0]]), None)  # type: ignore[method-assign]
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], torch.tensor(0.1, dtype=torch.float64))
    controller = ControllerLR(optimizer, bound, total_steps=10)
    loss = model(torch.ones(2, 4)).square().mean()
    loss.backward()
    controller.step(loss)
    first, second = controller.get_last_lr()
    assert [float(group["lr"]) for group in optimizer.param_groups] == [first, second]
    assert first > 0.1 > second


def two_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    return [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}]


def test_groups_keep_their_ratios() -> None:
    case = Case(groups=two_groups)
    for _ in range(3):
        case.step()
        first, second = case.controller.get_last_lr()
        assert first == pytest.approx(second / 5)
    assert second == pytest.approx(0.1 * 10**0.15)
    assert [group["lr"] for group in case.optimizer.param_groups] == [first, second]


def test_each_group_its_own_rate_as_in_the_environment() -> None:
    task = tiny_task()
    names = [name for name, _ in task.initial_model(0).named_parameters()]
    mdp = MDP(optimizer="sgd", lr_max=0.3, lr_groups=[names[:2], names[2:]])
    one = bind(MDP(optimizer="sgd"), liveliness=10.0)
    bound = BoundController(SharedGroupController(one.controller, 2), mdp)
    env = gym.make("LearningRate-v0", task=task, gradients="looped", horizon=40, **vars(mdp))
    observation, _ = env.reset(seed=3)

    def make(parameters: Any) -> torch.optim.Optimizer:
        chosen = list(parameters)
        return torch.optim.SGD([{"params": chosen[:2]}, {"params": chosen[2:]}], lr=0.1)

    loop = Loop(task, make, bound, 40)
    loop.run(islice(task.batches(3), 40))
    for step in range(40):
        np.testing.assert_array_equal(loop.observations[step], observation)
        observation, *_ = env.step(bound.controller.predict(observation[None])[0][0])
    assert len(set(map(float, loop.controller.get_last_lr()))) == 2
    with pytest.raises(ValueError, match="as many parameter groups"):
        Loop(task, OPTIMIZERS["sgd"][1], bound, 40)


def test_groups_that_begin_at_several_rates_under_one_schedule_are_refused() -> None:
    mdp = MDP(optimizer="momentum", lr_groups=[["a"], ["b"]], action={"kind": "residual", "base": "cosine"})
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:]}], 0.01, momentum=0.9)
    with pytest.raises(ValueError, match="one schedule for all groups, 'cosine'"):
        ControllerLR(optimizer, bind(mdp, 2), total_steps=10)
    ControllerLR(optimizer, bind(mdp, 2), total_steps=10, initial_rate=0.1)


def test_the_start_is_the_optimizer_s_own_rate() -> None:
    assert Case(action=0.0, lr=0.03).step() == pytest.approx(0.03)
    assert Case(lr=0.003).controller.get_last_lr() == [0.003]  # not rounded by a logarithm
    assert Case(action=0.0, lr=0.03, initial_rate=0.2).step() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="initial_rate must be within"):
        Case(lr=1e4)


def test_rates_stay_within_the_range() -> None:
    case = Case(action=1.0, lr=9.0)
    assert [case.step() for _ in range(3)] == pytest.approx([10.0] * 3)


@pytest.mark.parametrize("spoilt", ["loss", "gradient", "first loss"])
def test_numbers_that_are_not_finite(spoilt: str) -> None:
    case, clean = Case(), Case()
    if spoilt != "first loss":
        case.step()
        clean.step()
    rate, observation = case.controller.get_last_lr()[0], case.controller.observation
    loss = case.loss()
    if spoilt == "gradient":
        case.model[0].weight.grad[0, 0] = math.inf  # type: ignore[index]
        case.controller.step(loss)
    else:
        case.controller.step(loss * math.nan)
    assert case.controller.get_last_lr() == [rate]
    assert case.controller.observation is observation
    assert case.controller.last_epoch == clean.controller.last_epoch + 1
    case.controller.step(case.loss())
    clean.controller.step(clean.loss())
    assert case.controller.observation is not None
    progress, expected = (each.controller.observation[0, 8] for each in (case, clean))  # type: ignore[index]
    assert progress == pytest.approx(expected + (0.01 if spoilt != "first loss" else 0.0))
    np.testing.assert_array_equal(np.delete(case.controller.observation[0], 8), np.delete(clean.controller.observation[0], 8))  # type: ignore[index]


def test_fallback_schedule() -> None:
    case = Case(fallback=lambda step: 0.5 / (1 + step), groups=two_groups)
    case.step()
    case.controller.step(math.nan)
    assert case.controller.get_last_lr() == pytest.approx([0.05, 0.25])
    case.step()
    assert case.controller.get_last_lr()[1] == pytest.approx(0.1 * 10**0.1)


@pytest.mark.parametrize("spoilt", ["loss", "action"])
def test_what_corrects_a_schedule_falls_back_to_the_schedule(spoilt: str) -> None:
    case, constant = Case(), Constant(1.0)
    mdp = MDP(optimizer="momentum", action={"kind": "residual", "base": "linear", "decades": 0.5})
    case.controller = ControllerLR(case.optimizer, BoundController(constant, mdp), total_steps=10)
    rates = [case.step() for _ in range(3)]
    if spoilt == "loss":
        case.controller.step(math.nan)
        rates.append(case.controller.get_last_lr()[0])
    else:
        constant.action = math.nan
        with pytest.warns(UserWarning, match="falls back"):
            rates.append(case.step())
        constant.action = 1.0
    rates.append(case.step())
    corrections = 10 ** np.array([0.5, 0.5, 0.5, 0.0, 0.5])
    assert rates == pytest.approx(0.1 * corrections * (1 - np.arange(5) / 10))


@pytest.mark.parametrize("action", [math.nan, math.inf])
def test_an_action_that_is_not_a_finite_number_warns_once(action: float) -> None:
    case = Case(action=action)
    with pytest.warns(UserWarning, match="not a finite number"):
        case.step()
    assert case.step() == pytest.approx(0.1)


def test_after_the_last_step_the_rate_stays_and_it_warns_once() -> None:
    case = Case(total_steps=2)
    rates = [case.step() for _ in range(2)]
    with pytest.warns(UserWarning, match="total_steps=2"):
        assert case.step() == rates[-1]
    assert case.step() == rates[-1]
    assert case.controller.last_epoch == 2


def test_a_fallback_at_the_last_step_stays_too() -> None:
    case = Case(total_steps=1, fallback=lambda step: 0.001)
    case.controller.step(math.nan * case.loss())
    with pytest.warns(UserWarning, match="the last rate stays"):
        assert case.step() == 0.001


def test_a_step_without_gradients_is_warned_of() -> None:
    case = Case()
    case.loss()
    case.optimizer.zero_grad()
    with pytest.warns(UserWarning, match=r"no parameter has a gradient: call controller.step\(loss\) between"):
        case.controller.step(1.0)


def test_a_loss_below_its_bound_is_warned_of_once() -> None:
    case, told = Case(), Case(loss_lower_bound=-10.0)
    case.step()
    told.controller.step(told.loss() - 5)
    with pytest.warns(UserWarning, match="A loss is below loss_lower_bound=0: .* Give ControllerLR a loss_lower_bound"):
        case.controller.step(case.loss() - 5)
    case.controller.step(case.loss() - 5)


def test_a_controller_of_tensors_and_one_without_a_state() -> None:
    class Tensors(Constant):
        def predict(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
            action, state = super().predict(*arguments, **options)
            return torch.from_numpy(action), state

    assert Case(controller=Tensors(0.5)).step() == Case(action=0.5).step()

    class Alone(Constant):
        def predict(self, *arguments: Any, **options: Any) -> Any:
            return np.zeros((1, 1))

    with pytest.raises(TypeError, match=r"Alone\.predict must return a pair"):
        Case(controller=Alone())


def test_accumulated_gradients() -> None:
    """Four micro-batches are observed as the one batch that they make."""
    case, whole = (
        Case(features=["log_loss", "log_gradient_norm", "relative_update"]),
        Case(features=["log_loss", "log_gradient_norm", "relative_update"]),
    )
    for _ in range(3):
        case.optimizer.zero_grad()
        for inputs, targets in zip(case.inputs.split(4), case.targets.split(4), strict=True):
            loss = nn.functional.cross_entropy(case.model(inputs), targets)
            (loss / 4).backward()
            case.controller.observe(loss)
        case.controller.step()
        case.optimizer.step()
        whole.step()
        np.testing.assert_allclose(case.controller.observation, whole.controller.observation, rtol=1e-5)  # type: ignore[arg-type]
    assert case.controller.last_epoch == 3


def test_a_loss_may_change_after_it_was_observed() -> None:
    case, divided = Case(), Case()
    for _ in range(5):
        for each in (case, divided):
            loss = each.loss().detach()
            each.controller.observe(loss)
            if each is divided:
                loss /= 4
            each.controller.step()
            each.optimizer.step()
        np.testing.assert_array_equal(case.controller.observation, divided.controller.observation)


@pytest.mark.parametrize("width", [8, 70_000], ids=["small", "large"])
@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
def test_gradients_are_free_after_zero_grad(width: int, compiles: bool) -> None:
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    controller = ControllerLR(optimizer, "pretrained", total_steps=10, compile=compiles)
    for _ in range(2):
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        gradients = [weakref.ref(parameter.grad) for parameter in model.parameters()]
        controller.step(loss)
        optimizer.step()
        optimizer.zero_grad()
        assert [gradient() for gradient in gradients] == [None] * 4


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(16,\).*mean"):
        Case().controller.step(torch.ones(16))


class Network(nn.Module):
    """A convolutional network with batch normalisation, dropout and channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(4 * 36, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images)
        return logits


@pytest.mark.parametrize("scaled", [False, True], ids=["bfloat16", "float16 with a scaler"])
def test_a_convolutional_network_in_mixed_precision(scaled: bool) -> None:
    torch.manual_seed(0)
    model = Network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
    bound = bind(MDP(optimizer="adamw"))
    controller = ControllerLR(optimizer, bound, total_steps=30, scaler=scaler)
    images, targets = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    norms = []
    for step in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16 if scaled else torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), targets)
            scaler.scale(loss).backward()
            if scaled and step == 5:
                model.body[0].weight.grad[0] = math.inf  # type: ignore[index]
            if scaled and step % 2:
                scaler.unscale_(optimizer)  # as users do who clip before
            controller.step(loss)
        norms.append(float(sum(parameter.grad.square().sum() for parameter in model.parameters() if parameter.grad is not None)))
        scaler.step(optimizer)
        scaler.update()
    assert loss.item() < 1.5
    assert controller.last_epoch == 30
    assert len({float(rate) for rate in [controller.get_last_lr()[0]]} | {1e-3}) == 2
    if scaled:
        assert norms[5] == math.inf
    assert max(norm for norm in norms if norm < math.inf) < 2000  # unscaled


def test_signals_are_not_rounded_by_autocast() -> None:
    cases = [Case(), Case()]
    losses = [case.loss() for case in cases]
    cases[0].controller.step(losses[0])
    with torch.autocast("cpu", torch.bfloat16):
        cases[1].controller.step(losses[1])
    np.testing.assert_array_equal(cases[0].controller.observation, cases[1].controller.observation)  # type: ignore[arg-type]


def test_state_is_plain_and_does_not_fit_everywhere() -> None:
    case = Case(controller=Constant(0.0, counts=True))
    for _ in range(3):
        case.step()
    file = io.BytesIO()
    torch.save(case.controller.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = Case(controller=Constant(0.0, counts=True))
    other.controller.load_state_dict(state)
    assert other.optimizer.param_groups[0]["lr"] == case.optimizer.param_groups[0]["lr"]
    assert other.controller.last_epoch == 3
    assert case.step() == other.step()  # the recurrent state counts
    with pytest.raises(ValueError, match="total_steps=100"):
        Case(total_steps=200).controller.load_state_dict(state)
    with pytest.raises(ValueError, match="needed"):
        Case(features="absolute").controller.load_state_dict(state)
    with pytest.raises(ValueError, match="another controller: its signals are"):
        Case(features=["log_weight_norm"]).controller.load_state_dict(Case(features=["log_gradient_norm"]).controller.state_dict())
    with pytest.raises(ValueError, match="version"):
        Case().controller.load_state_dict({})


def test_a_schedule_is_saved_but_not_one_that_keeps_objects() -> None:
    for schedule, expected in ((cosine(0.1, 100), 3), (reduce_on_plateau(0.1, 100), None)):
        case = Case()
        with nullcontext() if expected else pytest.warns(UserWarning, match="state can't be saved"):
            case.controller = ControllerLR(case.optimizer, schedule.bind("momentum"), total_steps=100)
        for _ in range(3):
            case.step()
        if expected is None:
            with pytest.raises(TypeError, match="state can't be saved"):
                case.controller.state_dict()
        else:
            assert case.controller.state_dict()["controller_state"] == [torch.tensor([expected - 1])]


def test_a_state_that_is_no_sequence_is_warned_of() -> None:
    class Counting:
        def predict(self, observation: np.ndarray, state: int | None = None, **_: Any) -> tuple[np.ndarray, int]:
            return np.zeros((len(observation), 1)), (state or 0) + 1

    with pytest.warns(UserWarning, match="state can't be saved"):
        case = Case(controller=Counting())
    case.step()
    with pytest.raises(TypeError, match="state can't be saved"):
        case.controller.state_dict()


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_goes_on_by_itself(how: str) -> None:
    case, other = Case(action=0.1, circuit_breaker=True), Case(action=0.1, circuit_breaker=True)
    for _ in range(3):
        assert case.step() == other.step()
    copied = copy.deepcopy(case) if how == "deepcopy" else pickle.loads(pickle.dumps(case))
    rates = [other.step() for _ in range(4)]
    for each in (copied, case):
        assert [each.step() for _ in range(4)] == rates
        assert all(torch.equal(*pair) for pair in zip(everything(each), everything(other), strict=True))
    assert len(set(rates)) == 4


def test_a_state_does_not_change_afterwards() -> None:
    case = Case()
    case.step()
    state = case.controller.state_dict()
    before = repr(state)
    case.step()
    assert repr(state) == before


@pytest.mark.parametrize(
    ("features", "named"),
    [("daniel2016", "predictive_change"), ("xu2019", "log_validation_loss"), (["output_weight_mean"], "output_weight_mean")],
)
def test_features_that_a_loop_can_t_give_are_refused(features: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"can't compute the features.*{named}"):
        Case(features=features)


def refuse(optimizer: Any, match: str, error: type[Exception] = ValueError, mdp: MDP | None = None) -> None:
    with pytest.raises(error, match=match):
        ControllerLR(optimizer, BoundController(Constant(), mdp or MDP()), total_steps=10)


class NoisySGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.add_(torch.randn_like(parameter))
        return super().step(closure)


class OtherSGD(torch.optim.SGD):
    """Not known, as its step may be another one."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda weights: torch.optim.RAdam(weights, 0.01), "direction of RAdam is not known"),
        (lambda weights: torch.optim.Adamax(weights, 0.01), "direction of Adamax is not known"),
        (lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, dampening=0.1), "dampening=0.1"),
        (lambda weights: torch.optim.AdamW(weights, 0.01, amsgrad=True), "amsgrad=True"),
        (lambda weights: torch.optim.NAdam(weights, 0.01, weight_decay=0.1), "decoupled"),
        (lambda weights: OtherSGD(weights, 0.1), "direction of OtherSGD is not known"),
    ],
)
def test_a_direction_that_is_not_known_is_the_step_of_a_copy(make: Make, message: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = make(model.parameters())
    bound = BoundController(Constant(0.1), MDP(features=["relative_update", "log_rate", "log_weight_norm"]))
    with pytest.warns(UserWarning, match=message):
        controller = ControllerLR(optimizer, bound, total_steps=20)
    for step in range(5):
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        run(model, optimizer, controller, range(step, step + 1))
        observation = controller.observation
        moved = before - torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        assert observation is not None
        norm = 10.0 ** (observation[0, 0] - observation[0, 1] + observation[0, 2])
        assert norm == pytest.approx(float(moved.norm()) / optimizer.param_groups[0]["lr"], rel=2e-3)


def test_known_directions_as_steps_of_a_copy_are_the_same() -> None:
    """What a subclass's copy does against the formula."""
    rates = []
    for make in (torch.optim.SGD, OtherSGD):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = make(model.parameters(), 0.1, momentum=0.9)
        bound = bind(MDP(optimizer="momentum"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller = ControllerLR(optimizer, bound, total_steps=20)
        rates.append(run(model, optimizer, controller, range(20)))
    assert len(set(rates[0])) > 10
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-4)


def test_optimizers_whose_step_tells_no_direction_are_refused() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    refuse(torch.optim.LBFGS(weights, 0.1), "predicted_decrease.*direction of LBFGS is not known.*needs a closure")
    refuse(torch.optim.SGD(weights, 0.1, maximize=True), "maximize=True.*lowers the loss")
    # Without features of the direction any optimizer will do.
    without = BoundController(Constant(), MDP(features="absolute"))
    ControllerLR(torch.optim.Rprop(weights, 0.1), without, total_steps=10)


def test_controllers_that_learn_online_are_refused() -> None:
    with pytest.raises(TypeError, match=r"OnlineActorCritic was given: use agents\.OnlineLR"):
        ControllerLR(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), OnlineActorCritic().bind(), total_steps=10)


def test_a_subclass_with_the_same_step_is_known() -> None:
    class Same(torch.optim.SGD):
        pass

    ControllerLR(Same([nn.Parameter(torch.ones(2))], 0.1), BoundController(Constant(), MDP()), total_steps=10)


def test_parameters_that_can_t_be_measured_are_refused() -> None:
    refuse(torch.optim.SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], 0.1), "complex")
    refuse(torch.optim.SGD([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))], 0.1), "one device")
    refuse(torch.optim.SGD([nn.Parameter(torch.ones(2), requires_grad=False)], 0.1), "no parameters")


@pytest.mark.parametrize("sharded", ["fully_shard", "its own parameters", "flat parameters"])
def test_fsdp_is_refused(sharded: str, tmp_path: Path) -> None:
    model: nn.Module = nn.Linear(4, 3)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        if sharded == "fully_shard":
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # there is nothing to shard with one process
                model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=sharded == "its own parameters")
        refuse(torch.optim.SGD(model.parameters(), 0.1), "sharded.*FSDP.*DistributedDataParallel")
    finally:
        torch.distributed.destroy_process_group()


def test_parameters_of_deepspeed_are_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.ds_id = 0  # type: ignore[attr-defined]  # how its third stage marks them
    refuse(torch.optim.SGD([parameter], 0.1), "DeepSpeed")


def rate_of_an_embedding(sparse: bool, compiles: bool = False) -> float:
    """After five steps with momentum."""
    model = nn.Embedding(10, 3, sparse=sparse, _weight=torch.linspace(-1, 1, 30).view(10, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    controller = ControllerLR(optimizer, bind(MDP(optimizer="momentum")), total_steps=10, compile=compiles)
    for step in range(5):
        optimizer.zero_grad()
        loss = model(torch.tensor([step, 3])).square().mean()
        loss.backward()
        controller.step(loss)
        optimizer.step()
    return float(controller.get_last_lr()[0])


def test_sparse_gradients_with_momentum() -> None:
    assert rate_of_an_embedding(sparse=True) == pytest.approx(rate_of_an_embedding(sparse=False), rel=1e-5)


def test_other_wrong_arguments_are_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    refuse("sgd", "torch.optim.Optimizer", TypeError)
    refuse(optimizer, "control_momentum", mdp=MDP(optimizer="momentum", control_momentum=True))
    bound = BoundController(Constant(), MDP())
    for options, match in (
        ({"total_steps": 0}, "total_steps"),
        ({"loss_lower_bound": math.nan}, "loss_lower_bound"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"initial_rate": -1.0}, "initial_rate"),
    ):
        with pytest.raises(ValueError, match=match):
            ControllerLR(optimizer, bound, **{"total_steps": 10, **options})
    with pytest.raises(TypeError, match="BoundController"):
        ControllerLR(optimizer, Constant(), total_steps=10)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        ControllerLR(optimizer, "nothing.safetensors", total_steps=10)
    with pytest.raises(ValueError, match="expected"):
        ControllerLR(optimizer, BoundController(PolicyNetwork(3, 1), MDP()), total_steps=10)


def test_another_kind_of_optimizer_than_the_controller_was_trained_for_is_reported() -> None:
    with pytest.warns(UserWarning, match="trained for SGD, but steers Adam"):
        ControllerLR(torch.optim.Adam([nn.Parameter(torch.ones(2))]), BoundController(Constant(), MDP()), total_steps=10)


def test_parameters_that_are_added_are_reported() -> None:
    case = Case()
    case.step()
    case.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="add_param_group"):
        case.step()


def test_a_file(tmp_path: Path) -> None:
    bound = bind(MDP(optimizer="sgd"))
    save_controller(tmp_path / "controller.safetensors", bound)
    weights = [nn.Parameter(torch.ones(2))]
    rates = []
    for controller in (bound, tmp_path / "controller.safetensors", str(tmp_path / "controller.safetensors")):
        optimizer = torch.optim.SGD(weights, 0.1)
        scheduler = ControllerLR(optimizer, controller, total_steps=10)
        weights[0].grad = torch.ones(2)
        scheduler.step(1.0)
        rates.append(scheduler.get_last_lr())
    assert rates[0] == rates[1] == rates[2]


@pytest.mark.parametrize(("make", "trained_for"), [(torch.optim.SGD, "momentum"), (torch.optim.AdamW, "adamw"), (torch.optim.NAdam, "adamw")])
def test_pretrained_is_of_the_optimizers_kind(make: Callable[..., torch.optim.Optimizer], trained_for: str) -> None:
    controller = ControllerLR(make([nn.Parameter(torch.ones(2))], 0.001), "pretrained", total_steps=10)
    assert controller.mdp.optimizer == trained_for


def test_pretrained_looks_into_wrapped_optimizers() -> None:
    class Wrapped(torch.optim.Optimizer):
        """As accelerate's."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups, self.state, self.defaults = optimizer, optimizer.param_groups, optimizer.state, optimizer.defaults

    inner = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    assert ControllerLR(Wrapped(inner), "pretrained", total_steps=10).mdp.optimizer == "adamw"


def test_pretrained_is_refused_for_others() -> None:
    with pytest.raises(ValueError, match="pretrained controllers for SGD, Adam, AdamW, NAdam, but Adagrad was given"):
        ControllerLR(torch.optim.Adagrad([nn.Parameter(torch.ones(2))], 0.1), "pretrained", total_steps=10)


def test_clipping_that_follows() -> None:
    """The direction is that of the clipped gradient, as for the environment's optimizers that clip."""
    mdp = MDP(optimizer={"name": "sgd", "clip_norm": 0.5}, features=ALL_OF_A_LOOP)
    bound, task = bind(mdp), tiny_task()
    env = gym.make("LearningRate-v0", task=task, gradients="looped", horizon=30, **vars(mdp))
    observation, _ = env.reset(seed=3)
    model = task.initial_model(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    controller = ControllerLR(optimizer, bound, total_steps=30, clip_norm=0.5)
    for inputs, targets in islice(task.batches(3), 30):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets).mean()
        loss.backward()
        controller.step(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        np.testing.assert_allclose(controller.observation[0], observation, rtol=1e-3, atol=1e-3)  # type: ignore[index]
        observation, *_ = env.step(bound.controller.predict(observation[None])[0][0])


def _train_in_parallel(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates, observations = _train(rank)
    torch.save((rates, observations), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _train(rank: int | None) -> tuple[list[float], Tensor]:
    """Half of each batch on each of two ranks, or all of it without."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 32, 4), torch.randint(3, (10, 32))
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    controller = ControllerLR(optimizer, bind(MDP(optimizer="momentum", features=ALL_OF_A_LOOP)), total_steps=10)
    if rank is not None:
        model = DistributedDataParallel(model)
        inputs, targets = inputs[:, rank * 16 : rank * 16 + 16], targets[:, rank * 16 : rank * 16 + 16]
    rates, observations = [], []
    for batch, labels in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        controller.step(loss)
        optimizer.step()
        rates.append(float(controller.get_last_lr()[0]))
        observations.append(torch.from_numpy(controller.observation))
    return rates, torch.cat(observations)


def test_two_processes_set_the_rate_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_in_parallel, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    alone = _train(None)
    np.testing.assert_allclose(first[1], alone[1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(first[0], alone[0], rtol=1e-3)


def everything(case: Case) -> list[Tensor]:
    """Weights, gradients and momenta."""
    weights = list(case.model.parameters())
    buffers = [case.optimizer.state[weight]["momentum_buffer"] for weight in weights]
    return [value.detach().clone() for weight, buffer in zip(weights, buffers, strict=True) for value in (weight, weight.grad, buffer)]  # type: ignore[union-attr]


def test_a_circuit_breaker_without_a_jump_changes_nothing() -> None:
    cases = Case(action=0.0), Case(action=0.0, circuit_breaker=True)
    for _ in range(20):
        assert cases[0].step() == cases[1].step()
    for plain, guarded in zip(*map(everything, cases), strict=True):
        assert torch.equal(plain, guarded)
    assert cases[1].controller.returns == 0


@pytest.mark.parametrize("spoilt", [20.0, math.inf, math.nan])
def test_a_jump_goes_back_to_the_last_safe_state(spoilt: float) -> None:
    case = Case(action=0.0, circuit_breaker={"time_constant": 5.0})
    average, safe = 0.0, []
    for step in range(12):
        loss = case.loss()
        case.controller.step(loss)
        if step == 0 or loss <= average:
            safe = everything(case) if step else safe  # without momenta at first
        average = loss.item() if step == 0 else average + (loss.item() - average) / 5
        case.optimizer.step()
    observation = case.controller.observation
    for returns in (1, 2):
        with torch.no_grad():
            case.model[0].weight.mul_(10)  # type: ignore[operator]
        case.controller.step(case.loss() * 0 + spoilt)
        for expected, found in zip(safe, everything(case), strict=True):
            assert torch.equal(expected, found)
        assert case.controller.returns == returns
        assert case.controller.get_last_lr() == pytest.approx([0.1 / 2**returns])
        assert case.controller.observation is observation
        assert case.controller.last_epoch == 12 + returns
    case.optimizer.step()
    assert case.step() == pytest.approx(0.1 / 4)  # the rate goes on from there
    assert case.controller.observation[0, 8] == pytest.approx(0.14)  # type: ignore[index]  # and time has gone on
    assert case.loss() < average


def test_a_jump_takes_back_what_the_controller_keeps_of_its_own() -> None:
    """The count of a controller that counts its decisions; saved and resumed before the jump."""
    case, resumed = cases = [Case(controller=Constant(counts=True), circuit_breaker=True) for _ in range(2)]
    counts = []
    for factor in (1, 1, 1, 1.4, 1.4):  # the last two losses are no jumps, and not safe
        case.controller.step(factor * case.loss())
        case.optimizer.step()
        counts.append(case.controller._state[0].item())
    assert counts == [0, 1, 2, 3, 4]
    for name in ("model", "optimizer", "controller"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(case, name).state_dict()))
    for each in cases:
        each.controller.step(1e6 * each.loss())
        assert each.controller.returns == 1
        assert each.controller._state[0].item() == 2
        each.step()
        assert each.controller._state[0].item() == 3


def test_the_state_that_is_safe_between_decisions_has_the_controller_s_own() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    bound = BoundController(Constant(0.0, counts=True), MDP(features=["log_loss"], steps_per_action=2))
    controller = ControllerLR(optimizer, bound, total_steps=100, circuit_breaker=True)
    for loss in (1.0, 0.9, 1.2, 0.5, 100.0):  # the fourth is safe, and no decision
        controller.step(loss)
    assert controller.returns == 1
    assert controller._state[0].item() == 1  # of two decisions, at the first and the third


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler"))])
def test_the_momentum_that_is_observed_is_the_optimizer_s(compiles: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    bound = bind(MDP(optimizer="momentum", features=["momentum", "log_loss"]))
    controller = ControllerLR(optimizer, bound, total_steps=100, compile=compiles)
    for momentum in (0.9, 0.5, 0.0, 0.99):
        optimizer.param_groups[0]["momentum"] = momentum
        parameter.grad = torch.ones(2)
        controller.step(1.0)
        assert controller.observation[0, 0] == pytest.approx(-math.log10(1 - momentum), rel=1e-6)  # type: ignore[index]


def test_options_of_an_optimizer_may_be_lists() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    controller = ControllerLR(torch.optim.Adam([{"params": [parameter], "betas": [0.9, 0.95]}]), "pretrained", total_steps=10)
    controller.step(1.0)
    assert controller.observation is not None


def test_a_copy_s_draws_are_not_the_user_s() -> None:
    optimizer = NoisySGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.warns(UserWarning, match="takes the step of a copy"):
        controller = ControllerLR(optimizer, bind(MDP()), total_steps=10)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    before = torch.get_rng_state()
    controller.step(1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_rate_does_not_fall_below_its_range_and_a_new_level_of_the_loss_is_accepted() -> None:
    case = Case(action=0.0, lr=2e-5, circuit_breaker=True)
    case.step()
    for returns in range(1, 11):
        case.controller.step(1e4)
        assert case.controller.returns == returns
    assert case.controller.get_last_lr() == pytest.approx([1e-5])
    for loss, returns in ((1e4, 10), (1.2e4, 10), (3e4, 11)):
        case.controller.step(loss)
        assert case.controller.returns == returns


def test_a_resumed_training_goes_back_to_the_same_state() -> None:
    case = Case(action=0.1, circuit_breaker=True)
    for _ in range(7):
        case.step()
    file = io.BytesIO()
    torch.save([case.model.state_dict(), case.optimizer.state_dict(), case.controller.state_dict()], file)
    file.seek(0)
    resumed = Case(action=0.1, circuit_breaker=True)
    for part, state in zip((resumed.model, resumed.optimizer, resumed.controller), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for each in (case, resumed):
        each.controller.step(each.loss() * 100)
        each.optimizer.step()
    assert case.controller.returns == resumed.controller.returns == 1
    for _ in range(3):
        assert case.step() == resumed.step()
    for expected, found in zip(everything(case), everything(resumed), strict=True):
        assert torch.equal(expected, found)


def test_a_wrong_circuit_breaker_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be"):
        Case(circuit_breaker={"threshold": 1.0})
