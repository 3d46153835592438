"""ControllerLR(compile=True): one pass of a kernel gives what the operations of torch give."""

from __future__ import annotations

import copy
import math
import shutil
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lr_env import MDP, ControllerLR, make_task
from lr_env.training import loop_kernel, torch_directions
from lr_env.training.signals import signal_rows
from tests.test_scheduler import OPTIMIZERS, Case, Loop, bind, rate_of_an_embedding

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

NAMES = frozenset(loop_kernel.SIGNALS)
KNOWN: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "sgd with weight decay": (torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "adam with an ε that vanishes": (torch.optim.Adam, {"eps": 1e-60}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw without averages": (torch.optim.AdamW, {"betas": (0.0, 0.5)}),
}


class Signals:
    """A model of several blocks, measured with and without the kernel."""

    def __init__(self, name: str = "adamw", is_grouped: bool = False, clip_norm: float | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.weights = [nn.Parameter(self._random((size,), dtype)) for size in (5, 20_003, 1, 64, 70_000)]
        make, options = KNOWN[name]
        groups = [{"params": self.weights[::2], "lr": 0.02}, {"params": self.weights[1::2], "lr": 0.01, "weight_decay": 0.0}]
        self.optimizer = make(groups, **{"lr": 0.02, **options})
        self.plain, self.compiled = (
            torch_directions.LoopSignals(self.optimizer, NAMES, is_grouped, clip_norm=clip_norm, compile=compiles) for compiles in (False, True)
        )

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def next(self) -> tuple[Tensor, Tensor]:
        """The signals of one more step."""
        for weight in self.weights:
            weight.grad = self._random(tuple(weight.shape), weight.dtype)
        results = [signals(torch.ones(1), [1.0, 0.5]) for signals in (self.plain, self.compiled)]
        self.plain.keep()
        self.compiled.keep()
        return results[0], results[1]


def assert_close(compiled: Tensor, plain: Tensor) -> None:
    """But for rounding, of the gradient before to bfloat16, whose errors average out."""
    row, norm = (signal_rows(NAMES).index(name) for name in ("gradient_dot_previous", "gradient_norm_squared"))
    assert ((compiled[row] - plain[row]).abs() <= 3e-5 * plain[norm]).all()
    others = [k for k in range(len(plain)) if k != row]
    torch.testing.assert_close(compiled[others], plain[others], rtol=1e-5, atol=1e-2)  # a product of unlike vectors is near 0


@pytest.mark.parametrize("limit", [2**18, 10_000], ids=["small", "in pieces"])
@pytest.mark.parametrize("is_grouped", [False, True], ids=["one rate", "a rate for each group"])
@pytest.mark.parametrize("name", KNOWN)
def test_the_same_signals(name: str, is_grouped: bool, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_directions, "ELEMENTS_OF_SMALL_MODEL", limit)
    monkeypatch.setattr(torch_directions, "ELEMENTS_PER_PIECE", 30_000)
    signals = Signals(name, is_grouped)
    for _ in range(4):
        plain, compiled = signals.next()
        assert_close(compiled, plain)
        torch.testing.assert_close(signals.compiled.previous["gradients"], signals.plain.previous["gradients"].bfloat16(), rtol=0, atol=0)
        signals.optimizer.step()


def test_the_direction_is_what_the_optimizer_subtracts() -> None:
    for name in KNOWN:
        signals = Signals(name)
        for _ in range(4):
            compiled = signals.next()[1]
            before = [weight.detach().clone() for weight in signals.weights]
            signals.optimizer.step()
            moved = sum(((old - new.detach()) / 0.02).double().square().sum() for old, new in zip(before, signals.weights, strict=True))
            row = signal_rows(NAMES).index("direction_norm_squared")
            torch.testing.assert_close(compiled[row, 0, 0], moved, rtol=1e-4, atol=0, msg=name)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            signals = Signals()
            signals.next()
            signals.optimizer.step()
            results.append(signals.next()[1])
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_what_the_kernel_can_t_read_is_measured_as_without() -> None:
    signals = Signals("momentum")
    signals.next()
    signals.optimizer.step()
    for spoil in ("no gradient", "transposed", "none"):
        signals.next()
        if spoil == "no gradient":
            signals.weights[3].grad = None
        if spoil == "transposed":
            signals.weights[1].grad = torch.randn(20_003, 2)[:, 0]
        plain, compiled = (each(torch.ones(1), [1.0, 0.5]) for each in (signals.plain, signals.compiled))
        assert_close(compiled, plain)
        signals.plain.keep()
    in_float64 = Signals("momentum", dtype=torch.float64)
    torch.testing.assert_close(*in_float64.next())


def test_sparse_gradients_with_momentum() -> None:
    assert rate_of_an_embedding(sparse=True, compiles=True) == pytest.approx(rate_of_an_embedding(sparse=False), rel=1e-3)


def test_tensors_that_have_moved_are_found() -> None:
    """Weights and moments that lie elsewhere than at the step before."""
    signals = Signals()
    for step in range(4):
        np.testing.assert_allclose(*signals.next(), rtol=1e-3, atol=1.0)  # of the last gradient only three digits are kept
        signals.optimizer.step()
        if step == 1:
            signals.weights[1].data = signals.weights[1].data + 1.0
            signals.optimizer.load_state_dict(copy.deepcopy(signals.optimizer.state_dict()))
        elif step == 2:
            signals.optimizer.state[signals.weights[4]]["exp_avg"] = torch.ones(70_000)


def test_clipping_that_follows() -> None:
    signals = Signals("adamw", clip_norm=1.0)
    for _ in range(3):
        plain, compiled = signals.next()
        assert_close(compiled, plain)
        signals.optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "adamw by a function"])
def test_a_training_as_without(name: str) -> None:
    specification, make = OPTIMIZERS[name]
    bound = bind(MDP(optimizer=specification, lr_max=0.3), liveliness=1.0)
    task = make_task("digits-mlp")
    observations = []
    for compiles in (False, True):
        loop = Loop(task, make, bound, 50)
        loop.controller = ControllerLR(loop.optimizer, bound, total_steps=50, initial_rate=bound.mdp.rate_range().initial, compile=compiles)
        loop.run(islice(task.batches(3), 50))
        observations.append(loop.observations)
    np.testing.assert_allclose(*observations, rtol=1e-3, atol=1e-3)


def test_a_resumed_training_has_the_bits_of_one_that_was_not_interrupted() -> None:
    whole, part, resumed = (Case(compile=True) for _ in range(3))
    rates = [whole.step() for _ in range(12)]
    for _ in range(5):
        part.step()
    for name in ("model", "optimizer", "controller"):
        getattr(resumed, name).load_state_dict(getattr(part, name).state_dict())
    assert [resumed.step() for _ in range(7)] == rates[5:]
    np.testing.assert_array_equal(resumed.controller.observation, whole.controller.observation)


def test_a_copy_has_a_kernel_of_its_own() -> None:
    case, other = Case(action=0.1, compile=True), Case(action=0.1, compile=True)
    for _ in range(3):
        assert case.step() == other.step()
    copied = copy.deepcopy(case)
    observations = [[each.step() and each.controller.observation for _ in range(4)] for each in (copied, case, other)]
    for found in observations[:2]:
        np.testing.assert_array_equal(found, observations[2])
    assert copied.controller._signals.kernel not in (None, case.controller._signals.kernel)


def test_numbers_that_are_not_finite() -> None:
    case = Case(compile=True)
    for step in range(6):
        loss = case.loss()
        if step in (0, 3):
            case.model[0].weight.grad[0, 0] = math.nan if step else math.inf  # type: ignore[union-attr, index]
        else:
            case.optimizer.step()
        case.controller.step(loss)
    assert case.controller.last_epoch == 6
    assert np.isfinite(case.controller.observation).all()  # type: ignore[arg-type]


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        Case(compile=True)
