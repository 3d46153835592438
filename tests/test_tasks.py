"""Tasks, families, data and the registry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lr_env import Task, TaskFamily, make_task, register_task
from lr_env.seeding import Streams
from lr_env.tasks import LOSSES, Data, as_family
from lr_env.tasks.models import mlp
from tests.rollouts import start, tiny_task


@pytest.mark.parametrize("name", ["breast-cancer-mlp", "digits-logreg", "digits-mlp"])
def test_splits_are_disjoint_and_complete(name: str) -> None:
    task = make_task(name)
    total = 569 if name.startswith("breast") else 1797
    parts = [task.data.split(split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == total
    rows = [{inputs.numpy().tobytes() for inputs in part.inputs} for part in parts]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def test_named_losses_equal_pytorchs() -> None:
    outputs, classes, values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1, 0]), torch.ones(5, 3)
    assert torch.allclose(LOSSES["cross_entropy"](outputs, classes), nn.CrossEntropyLoss(reduction="none")(outputs, classes))
    probabilities = outputs.softmax(1)
    assert torch.allclose(LOSSES["cross_entropy"](outputs, probabilities), nn.CrossEntropyLoss(reduction="none")(outputs, probabilities))
    # One class per position, as language models have it: the mean over an example's positions.
    sequences, tokens = outputs.t().reshape(1, 3, 5), classes.view(1, 5)
    assert torch.allclose(LOSSES["cross_entropy"](sequences, tokens), LOSSES["cross_entropy"](outputs, classes).mean())
    assert torch.allclose(LOSSES["mean_squared_error"](outputs, values).mean(), nn.MSELoss()(outputs, values))
    # Targets without the trailing dimension must not broadcast to a matrix.
    assert torch.equal(LOSSES["mean_squared_error"](outputs[:, :1], values[:, 0]), (outputs[:, 0] - 1).square())


def test_batches_are_without_replacement_within_an_epoch_and_drop_the_rest() -> None:
    task = tiny_task()
    assert isinstance(task.data, Data)
    num_examples, num_batches = len(task.data.train), len(task.data.train) // 16
    assert num_examples % 16 != 0
    batches = task.batches(3)
    epochs = [torch.cat([next(batches)[0] for _ in range(num_batches)]) for _ in range(2)]
    for epoch in epochs:
        assert len(torch.unique(epoch, dim=0)) == num_batches * 16
    assert not torch.equal(*epochs)
    known = {row.numpy().tobytes() for row in task.data.train.inputs}
    assert {row.numpy().tobytes() for row in epochs[0]} <= known


def test_batches_and_weights_belong_to_seed_and_episode() -> None:
    task = tiny_task()
    keys = [(0, 0), (0, 1), (1, 0)]
    first = [next(task.batches(*key))[0] for key in keys]
    weights = [next(task.initial_model(*key).parameters()) for key in keys]
    for values in (first, weights):
        assert not any(torch.equal(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(first[0], next(task.batches(0))[0])
    assert torch.equal(weights[0], next(task.initial_model(0).parameters()))


def test_a_population_sees_the_task_s_batches_and_weights() -> None:
    task = tiny_task()
    population = start(task, [4, 9])
    for member, seed in enumerate((4, 9)):
        parameters = torch.cat([p.detach().ravel() for p in task.initial_model(seed).double().parameters()])
        assert torch.equal(population.parameters[member], parameters)
    streams = [task.batches(seed) for seed in (4, 9)]
    for _ in range(15):
        inputs, targets = population.batches.current()
        for member, stream in enumerate(streams):
            expected_inputs, expected_targets = next(stream)
            assert torch.equal(inputs[member], expected_inputs.double()) and torch.equal(targets[member], expected_targets)
        population.move_on()


def test_from_tensors_takes_lists_arrays_and_tensors() -> None:
    inputs, targets = [[float(i), 1.0] for i in range(40)], [i % 2 for i in range(40)]
    for convert in (lambda values: values, np.array, torch.tensor):
        task = Task.from_tensors("mine", lambda: nn.Linear(2, 2), convert(inputs), convert(targets), batch_size=8)
        assert task.data.split("train").inputs.dtype == torch.float32
        assert [len(task.data.split(name)) for name in ("train", "validation", "test")] == [28, 6, 6]
        assert task.metric is not None and task.metric.name == "accuracy"


def test_from_tensors_does_not_share_memory_with_the_user() -> None:
    inputs = torch.zeros(40, 2)
    task = Task.from_tensors("mine", lambda: nn.Linear(2, 2), inputs, torch.zeros(40, dtype=torch.int64), batch_size=8)
    inputs += 1
    assert float(task.data.split("train").inputs.max()) == 0


def test_a_module_is_copied_and_initialised_anew() -> None:
    module = mlp(4, (8,), 3)
    before = [parameter.clone() for parameter in module.parameters()]
    task = tiny_task(module)
    models = [task.initial_model(seed) for seed in (0, 0, 1)]
    weights = [torch.cat([p.detach().ravel() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    # The same as a function that makes the module.
    expected = tiny_task(lambda: mlp(4, (8,), 3)).initial_model(0)
    assert models[0][0].weight.shape == expected[0].weight.shape


def test_a_family_scales_the_inputs_of_each_training() -> None:
    family = TaskFamily("scaled", tiny_task(), input_scale_decades=(-0.75, 0.75))
    seeds = list(range(200))
    scales = np.array([family.draw_input_scale(Streams(seed).family) for seed in seeds])
    decades = np.log10(scales)
    assert -0.75 <= decades.min() < -0.7 and 0.7 < decades.max() <= 0.75
    assert abs(decades.mean()) < 0.1
    population, plain = start(family, seeds[:3]), start(family.task, seeds[:3])
    scaled, unscaled = population.batches.current()[0], plain.batches.current()[0]
    assert torch.allclose(scaled, unscaled * torch.from_numpy(scales[:3])[:, None, None], rtol=1e-12)
    assert torch.equal(population.parameters, plain.parameters)


def test_the_scale_holds_for_evaluation_too() -> None:
    family = TaskFamily("scaled", tiny_task(), input_scale_decades=(-0.75, 0.75))
    population = start(family, [5])
    scale = family.draw_input_scale(Streams(5).family)
    split = family.task.data.split("test")
    outputs = family.task.initial_model(5).double()(split.inputs.double() * scale)
    expected = nn.functional.cross_entropy(outputs, split.targets).item()
    assert population.evaluate("test").losses[0] == pytest.approx(expected, rel=1e-12)


def test_a_task_is_a_family_without_variation() -> None:
    family = as_family(tiny_task())
    assert not family.varies_inputs and as_family(family) is family
    assert family.draw_input_scale(Streams(0).family) == 1.0


def test_registered_tasks_are_made_once_and_names_are_taken_once() -> None:
    calls: list[int] = []

    def factory() -> Task:
        calls.append(1)
        return tiny_task()

    register_task("registered-by-a-test", factory)
    assert make_task("registered-by-a-test") is make_task("registered-by-a-test")
    assert len(calls) == 1
    with pytest.raises(ValueError, match="'registered-by-a-test' is registered already"):
        register_task("registered-by-a-test", factory)
    register_task("registered-by-a-test", lambda: tiny_task(horizon=3), replace=True)
    assert as_family(make_task("registered-by-a-test")).variants[0].horizon == 3
    with pytest.raises(TypeError, match="pass lambda: task"):
        register_task("another-by-a-test", tiny_task())  # type: ignore[arg-type]
