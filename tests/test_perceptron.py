"""The kernel for perceptrons against the loop that anybody would write, and what it is used for."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lr_env import LearningRateVectorEnv, Task
from lr_env.seeding import Streams
from lr_env.tasks.models import mlp
from lr_env.training.perceptron import Perceptron
from tests.reference import flat, mean_loss, train
from tests.rollouts import RUINOUS_RATE, advance, roll_out, start, tiny_task

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")

SIGNALS = frozenset(
    {
        "gradient_norm_squared",
        "gradient_dot_previous",
        "gradient_dot_direction",
        "direction_norm_squared",
        "weight_norm_squared",
        "output_weight_mean",
    }
)


def mixed() -> nn.Module:
    """Widths that fill no vector, one that fills several and a bit, all activations, and layers without a bias."""
    layers = nn.Linear(4, 37, bias=False), nn.Tanh(), nn.Linear(37, 5), nn.Sigmoid(), nn.Linear(5, 7, bias=False), nn.Identity(), nn.Linear(7, 18)
    return nn.Sequential(nn.Flatten(), nn.Sequential(*layers[:4]), *layers[4:], nn.ReLU(), nn.Linear(18, 3))


def regression(batch_size: int = 16) -> Task:
    """Two numbers for each example."""
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(144, 4))
    targets = np.sin(inputs @ generator.normal(size=(4, 2)))
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 2))
    return Task.from_tensors("waves", model, inputs, targets, loss="mean_squared_error", batch_size=batch_size)


TASKS: dict[str, Callable[[], Task]] = {
    "small": tiny_task,
    "mixed": lambda: tiny_task(mixed, batch_size=13),
    "linear": lambda: tiny_task(lambda: nn.Linear(4, 40), batch_size=70),
    "regression": regression,
}


RULES: dict[str, dict[str, Any]] = {
    "sgd with weight decay": {"name": "sgd", "weight_decay": 0.1},
    "momentum": {"name": "momentum"},
    "momentum with weight decay": {"name": "momentum", "momentum": 0.7, "weight_decay": 0.1},
    "nesterov": {"name": "momentum", "nesterov": True, "weight_decay": 0.1},
    "adam": {"name": "adam"},
    "adam with weight decay": {"name": "adam", "weight_decay": 0.1, "beta1": 0.5, "epsilon": 0.01},
    "adamw": {"name": "adamw", "weight_decay": 0.1},
    "nadamw": {"name": "nadamw"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_trainings_are_those_of_a_plain_loop(name: str, dtype: torch.dtype) -> None:
    task, optimizer = TASKS[name](), "momentum" if name == "mixed" else "sgd"
    rates = 0.1 * np.random.default_rng(0).random((25, 3))
    population = start(task, [5, 6, 7], optimizer, dtype=str(dtype).removeprefix("torch."), compile=True)
    losses = advance(population, rates)
    assert population.has_kernel
    evaluation, test = population.evaluate("train"), task.data.split("test")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for member, seed in enumerate((5, 6, 7)):
        plain = train(task, seed, list(rates[:, member]), optimizer, dtype=dtype)
        np.testing.assert_allclose(losses[:, member], plain.losses, rtol=tolerance)
        np.testing.assert_allclose(population.parameters[member], plain.weights[-1], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(population.gradients[member], plain.gradients[-1], rtol=tolerance, atol=tolerance)
        examples = task.data.split("train")
        assert evaluation.losses[member] == pytest.approx(mean_loss(task, plain.models[-1], examples.inputs, examples.targets), rel=tolerance)
        if evaluation.metrics is not None and task.metric is not None and task.metric.name == "accuracy":
            right = plain.models[-1](test.inputs.to(dtype)).argmax(1) == test.targets
            assert population.evaluate("test").metrics[member] == pytest.approx(right.double().mean().item())  # type: ignore[index]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("groups", ["global", "tensor"])
def test_signals_and_rates_of_groups_are_those_of_other_engines(groups: str, optimizer: str) -> None:
    rates = 0.05 * np.random.default_rng(0).random((12, 2, 1 if groups == "global" else 4))
    results = []
    for compiles in (False, True):
        population = start(tiny_task(), [1, 2], optimizer, signals=SIGNALS, lr_groups=groups, compile=compiles)
        results.append(np.array([population.begin(), *(population.step(row) for row in rates)]))
        assert population.has_kernel == compiles
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "groups", "dtype"), [*((name, "tensor", "float64") for name in RULES), ("nesterov", "global", "float32"), ("adamw", "global", "float32")]
)
def test_directions_of_the_kernel_are_those_of_other_engines(name: str, groups: str, dtype: str) -> None:
    """Members at different steps, of which one begins anew in between."""
    signals, optimizer = SIGNALS - {"output_weight_mean"}, RULES[name]
    rates = 0.02 * np.random.default_rng(0).random((9, 3, 1 if groups == "global" else 12))
    results, populations = [], []
    for compiles in (False, True):
        population = start(
            TASKS["mixed"](), [1, 2, 3], optimizer, signals=signals, lr_groups=groups, compile=compiles, dtype=dtype, gradients="batched"
        )
        found = [population.begin(), *(population.step(row[:, : len(population.groups)]) for row in rates)]
        population.restart(np.array([1]), [Streams(9)])
        population.begin(np.array([1]))
        results.append(np.array([*found, *(population.step(row[:, : len(population.groups)]) for row in rates)]))
        populations.append(population)
    assert populations[1].has_kernel and (populations[1].kernel_sources is not None) == (name != "nadamw")
    tolerance = 1e-9 if dtype == "float64" else 3e-4
    np.testing.assert_allclose(*results, rtol=tolerance, atol=1e-9 if dtype == "float64" else 1e-4)
    for state in populations[0].state:
        torch.testing.assert_close(populations[1].state[state], populations[0].state[state], rtol=tolerance, atol=tolerance, msg=state)


def test_a_family_scales_inputs_and_changes_labels() -> None:
    family = {
        "name": "noisy",
        "data_sets": ["wine"],
        "architectures": ["mlp"],
        "width": [8, 20],
        "depth": [1, 2],
        "input_scale_decades": [-0.5, 0.5],
        "label_noise": [0.1, 0.4],
        "data_fraction": [0.6, 0.9],
        "num_variants": 2,
    }
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (30, 4, 1))
    rollouts = [
        roll_out(LearningRateVectorEnv(4, family, dtype="float64", initial_rate=0.01, horizon=20, compile=compiles), actions)
        for compiles in (False, True)
    ]
    np.testing.assert_allclose(*(rollout.values("loss") for rollout in rollouts), rtol=1e-9)
    np.testing.assert_allclose(*(np.array(rollout.rewards) for rollout in rollouts), rtol=1e-8, atol=1e-9)


def test_threads_and_neighbours_change_no_bit() -> None:
    rates = 0.1 * np.random.default_rng(0).random((8, 5))
    wild = rates.copy()
    wild[3, 2] = RUINOUS_RATE
    before, results = torch.get_num_threads(), []
    for num_threads, chosen in ((1, rates), (2, rates), (1, wild)):
        torch.set_num_threads(num_threads)
        results.append(advance(start(tiny_task(), range(5), compile=True), chosen))
    torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    assert results[2][-1, 2] > 1e20
    np.testing.assert_array_equal(np.delete(results[0], 2, 1), np.delete(results[2], 2, 1))


def test_a_state_that_is_put_back_or_pickled_goes_on_with_the_same_bits() -> None:
    rates = np.full((5, 3), 0.1)
    population = start(tiny_task(), range(3), "momentum", compile=True)
    advance(population, rates)
    state, copy = population.get_state(np.arange(3)), pickle.loads(pickle.dumps(population))
    expected = advance(population, rates)
    np.testing.assert_array_equal(advance(copy, rates), expected)
    population.set_state(state, np.arange(3))
    np.testing.assert_array_equal(advance(population, rates)[1:], expected[1:])


class Doubled(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def hooked() -> nn.Module:
    model = mlp(4, (8,), 3)
    model.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)),
        lambda: nn.Sequential(Doubled(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(4, 3)),
        hooked,
    ],
    ids=["gelu", "dropout", "subclass", "activated", "rectified inputs", "hook"],
)
def test_other_models_are_no_perceptrons(model: Callable[[], nn.Module]) -> None:
    assert Perceptron.of(model()) is None


def test_a_layer_that_is_used_twice_is_not_taken_for_two() -> None:
    layer = nn.Linear(4, 4)
    population = start(tiny_task(lambda: nn.Sequential(layer, nn.Tanh(), layer)), [0], compile=True)
    assert not population.has_kernel


def test_perceptrons_are_told_by_their_layers() -> None:
    perceptron = Perceptron.of(mixed())
    assert perceptron == Perceptron((4, 37, 5, 7, 18, 3), (False, True, False, True, True), ("TANH", "SIGMOID", "IDENTITY", "RELU", "IDENTITY"))
    assert perceptron.size == flat(mixed().parameters()).size
