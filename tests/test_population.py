"""Populations: sizes, neighbours, updates, evaluations, state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lr_env import Task, make_task
from lr_env.seeding import Streams
from lr_env.tasks import TaskFamily, Variant
from lr_env.training import OPTIMIZERS, SIGNALS, Population, make_optimizer, signal_rows
from lr_env.training.gradients import LARGEST_AT_ONCE, EvaluationFunction, GradientFunction
from lr_env.training.signals import EXAMPLE_SIGNALS
from tests.reference import directions, flat, mean_loss, train
from tests.rollouts import RUINOUS_RATE, advance, start, tiny_task
from tests.test_execution import needs_compiler

ALL_SIGNALS = frozenset(SIGNALS)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch_norm_alone() -> nn.Module:
    """Without the biases whose gradient is nothing but rounding."""
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def smooth() -> nn.Module:
    """For which there is no kernel of our own."""
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_populations_of_1_8_and_64_agree(optimizer: str, dtype: str, tolerance: float) -> None:
    task = make_task("digits-mlp")
    rate = 0.003 if optimizer == "adam" else 0.02
    losses = {size: advance(start(task, range(size), optimizer, dtype=dtype), np.full((40, size), rate)) for size in (1, 8, 64)}
    np.testing.assert_allclose(losses[8][:, :1], losses[1], rtol=tolerance)
    np.testing.assert_allclose(losses[64][:, :8], losses[8], rtol=tolerance)
    assert losses[64][-1].std() > 1e-3  # members do differ


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_member_trains_at_its_own_rate_as_torch_optim_would(optimizer: str) -> None:
    task = tiny_task()
    rates = 0.1 * np.random.default_rng(0).random((25, 3))
    population = start(task, [5, 6, 7], optimizer)
    losses = advance(population, rates)
    for member, seed in enumerate((5, 6, 7)):
        plain = train(task, seed, list(rates[:, member]), optimizer)
        np.testing.assert_allclose(losses[:, member], plain.losses, rtol=1e-9)
        np.testing.assert_allclose(population.parameters[member], plain.weights[-1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_members", [1, 2])
def test_signals_equal_their_definitions(optimizer: str, num_members: int) -> None:
    task = tiny_task()
    population = start(task, range(num_members), optimizer, signals=ALL_SIGNALS)
    rows = signal_rows(ALL_SIGNALS)
    plain = [train(task, seed, [0.05] * 10, optimizer) for seed in range(num_members)]
    for t in range(11):
        signals = population.begin() if t == 0 else population.step(np.full((num_members, 1), 0.05))
        values = dict(zip(rows, signals, strict=True))
        for member, history in enumerate(plain):
            g, u, w = history.gradients[t], directions(history.gradients[: t + 1], optimizer, history.weights)[t], history.weights[t]
            before = history.gradients[t - 1] if t else np.zeros_like(g)
            expected = {
                "loss": history.losses[t],
                "gradient_norm_squared": g @ g,
                "gradient_dot_previous": g @ before,
                "gradient_dot_direction": g @ u,
                "direction_norm_squared": u @ u,
                "weight_norm_squared": w @ w,
            }
            for name, value in expected.items():
                assert values[name][0, member] == pytest.approx(value, rel=1e-8, abs=1e-12), name


@pytest.mark.parametrize("model", [None, batch_norm, dropout])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("gradients", ["auto", "looped"])
def test_a_member_driven_to_nan_leaves_its_neighbours_bits(model: object, optimizer: str, gradients: str) -> None:
    task = tiny_task() if model is None else tiny_task(model)
    tame = np.full((15, 4), 0.05)
    wild = tame.copy()
    wild[4, 2] = RUINOUS_RATE * 1e200
    populations = [start(task, range(4), optimizer, gradients=gradients) for _ in range(2)]
    losses = [advance(population, rates) for population, rates in zip(populations, (tame, wild), strict=True)]
    assert np.isfinite(losses[0]).all() and not np.isfinite(losses[1][-1, 2])
    neighbours = [0, 1, 3]
    np.testing.assert_array_equal(losses[0][:, neighbours], losses[1][:, neighbours])
    assert torch.equal(populations[0].parameters[neighbours], populations[1].parameters[neighbours])


def test_a_ruined_member_restarts_clean() -> None:
    task = tiny_task()
    population = start(task, [0, 1], "momentum")
    advance(population, np.array([[RUINOUS_RATE * 1e200, 0.1], [0.1, 0.1]]))
    assert torch.isnan(population.directions[0]).any()
    population.restart(np.array([0]), [Streams(3)])
    population.step(np.full((2, 1), 0.1), np.array([1]))  # the other takes a step before the first gradient of the new training
    assert population.begin(np.array([0]))[0, 0, 0] == pytest.approx(train(task, 3, [], "momentum").losses[0], rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [None, batch_norm, dropout])
def test_members_that_pause_are_not_changed(optimizer: str, model: object) -> None:
    task = tiny_task() if model is None else tiny_task(model)
    population, other = start(task, range(3), optimizer), start(task, range(3), optimizer)
    advance(population, np.full((3, 3), 0.1)), advance(other, np.full((3, 3), 0.1))
    active = np.array([0, 2])
    for _ in range(4):
        population.step(np.full((3, 1), 0.1), active)
    paused = other.get_state(np.array([1]))
    for _ in range(4):
        other.step(np.full((3, 1), 0.1))
    state, expected = population.get_state(np.array([1])), paused
    for name, tensor in expected["tensors"].items():
        assert torch.equal(state["tensors"][name], tensor), name
    assert torch.equal(torch.stack(state["generators"]), torch.stack(expected["generators"]))
    np.testing.assert_array_equal(state["steps"], expected["steps"])
    # The active ones moved on as if all had.
    torch.testing.assert_close(population.parameters[active], other.parameters[active], rtol=0, atol=0)


def in_parts(monkeypatch: pytest.MonkeyPatch, task: Task | TaskFamily, seeds: Sequence[int], optimizer: str, **options: Any) -> Population:
    """A population that has taken its first gradient, of two or three members at once."""
    sizes: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(GradientFunction, "_choose_num_at_once", lambda self, num_bytes: sizes.append(num_bytes))
        start(task, seeds[:1], optimizer, gradients="batched", **options).begin()
    population = start(task, seeds, optimizer, gradients="batched", **options)
    with monkeypatch.context() as patch:
        patch.setattr("lr_env.training.gradients.LARGEST_AT_ONCE", 3 * sizes[0])
        population.begin()
    assert population._gradient_function.num_at_once in (2, 3)
    return population


@pytest.mark.parametrize("name", ["tiny", "batch normalisation", "family", "samples"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_members_that_are_computed_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch, optimizer: str, name: str) -> None:
    draws = {"input_scale_decades": (-0.3, 0.3), "initialisation_scale_decades": (-0.3, 0.3), "label_noise": (0.1, 0.5)}
    task, signals = {
        "tiny": (tiny_task(), ALL_SIGNALS),
        "batch normalisation": (tiny_task(batch_norm_alone), ALL_SIGNALS.difference(EXAMPLE_SIGNALS)),
        "family": (TaskFamily("varied", Variant(tiny_task(), data_fraction=0.7), **draws), ALL_SIGNALS),
        "samples": (make_task("noisy-quadratic"), frozenset({"gradient_dot_previous"})),
    }[name]
    options = {"signals": signals, "lr_groups": "layer"}
    parts, whole = in_parts(monkeypatch, task, range(6), optimizer, **options), start(task, range(6), optimizer, gradients="batched", **options)
    whole.begin()
    assert whole._gradient_function.num_at_once == 6
    rates, active = np.full((6, len(whole.groups)), 0.05), np.array([0, 3, 4])
    for members in (None, active, None, None, None, active, None, None):  # past the end of an epoch
        of_parts, of_whole = parts.step(rates, members), whole.step(rates, members)
        shown = slice(None) if members is None else members
        np.testing.assert_allclose(of_parts[..., shown], of_whole[..., shown], rtol=1e-9, atol=1e-12)
    for key, value in whole.state.items():
        torch.testing.assert_close(parts.state[key], value, rtol=1e-9, atol=1e-12)
    state = parts.get_state(np.arange(6))
    expected = parts.step(rates)
    parts.set_state(state, np.arange(6))
    np.testing.assert_array_equal(parts.step(rates), expected)


def test_members_have_the_same_bits_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seeds = make_task("digits-mlp"), range(6)
    parts, whole = in_parts(monkeypatch, task, seeds, "sgd", dtype="float32"), start(task, seeds, gradients="batched", dtype="float32")
    whole.begin()
    np.testing.assert_array_equal(advance(parts, np.full((30, 6), 0.1))[1:], advance(whole, np.full((30, 6), 0.1))[1:])


@needs_compiler
def test_compiled_members_in_parts_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task, options, rates = tiny_task(smooth), {"signals": ALL_SIGNALS.difference(EXAMPLE_SIGNALS), "compile": True}, np.full((9, 6), 0.05)
    parts, whole = in_parts(monkeypatch, task, range(6), "adamw", **options), start(task, range(6), "adamw", **options)
    whole.begin()
    np.testing.assert_allclose(advance(parts, rates)[1:], advance(whole, rates)[1:], rtol=1e-9)


@pytest.mark.parametrize(("num_members", "expected"), [(1, 1), (10, 10), (11, 11), (12, 6), (13, 13), (24, 8), (35, 7), (100, 10), (1024, 8)])
def test_parts_are_divisors_of_the_population(num_members: int, expected: int) -> None:
    task = tiny_task()
    function = GradientFunction(task, task.initial_model(0), num_members)
    function._choose_num_at_once(LARGEST_AT_ONCE // 10)
    assert function.num_at_once == expected


@pytest.mark.parametrize("name", ["digits-mlp", "noisy-quadratic"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_evaluation_equals_the_plain_model(name: str, split: str) -> None:
    task = make_task(name)
    population = start(task, [0, 1])
    advance(population, np.full((5, 2), 0.1))
    evaluation = population.evaluate(split)
    data = task.data.split(split)
    for member in range(2):
        model = train(task, member, [0.1] * 5).model if name != "noisy-quadratic" else None
        if model is None:
            weights = population.parameters[member].numpy()
            assert evaluation.losses[member] == pytest.approx(0.5 * (np.float32([1.0, 0.3]) @ weights**2), rel=1e-7)
        else:
            assert evaluation.losses[member] == pytest.approx(mean_loss(task, model, data.inputs, data.targets), rel=1e-9)
            accuracy = (model(data.inputs.double()).argmax(1) == data.targets).double().mean().item()
            assert evaluation.metrics is not None and evaluation.metrics[member] == pytest.approx(accuracy)


def test_evaluation_of_a_subset_and_in_evaluation_mode() -> None:
    task = tiny_task(batch_norm)
    population = start(task, [0, 1])
    advance(population, np.full((5, 2), 0.1))
    before = {name: buffer.clone() for name, buffer in population.buffers.items()}
    subset = np.array([3, 5, 8])
    data = task.data.split("train")
    for member in range(2):
        model = train(task, member, [0.1] * 5).model
        expected = mean_loss(task, model, data.inputs[subset], data.targets[subset])
        assert population.evaluate("train", subset).losses[member] == pytest.approx(expected, rel=1e-9)
    assert all(torch.equal(before[name], buffer) for name, buffer in population.buffers.items())


@pytest.mark.parametrize(
    ("engine", "at_once", "expected"),
    [("batched", 90, (4, 22)), ("batched", 102, (1, 102)), ("batched", 204, (2, 102)), ("batched", 10**6, (4, 102)), ("looped", 90, (4, 22))],
)
@pytest.mark.parametrize("varies_inputs", [False, True])
def test_large_evaluations_in_parts_are_the_same(
    engine: Any, at_once: int, expected: tuple[int, int], varies_inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny_task()
    family = TaskFamily("scaled", lambda generator: task, input_scale_decades=(-0.5, 0.5)) if varies_inputs else task
    population, sizes, evaluate = start(family, range(4), gradients=engine), [], EvaluationFunction.__call__
    population.begin()
    whole = population.evaluate("train")

    def observed(function: EvaluationFunction, parameters: Tensor, buffers: Any, scales: Any, inputs: Tensor, *others: Any) -> Tensor:
        sizes.append((len(parameters), len(inputs)))
        return evaluate(function, parameters, buffers, scales, inputs, *others)

    monkeypatch.setattr(EvaluationFunction, "__call__", observed)
    for name in ("EXAMPLES_PER_PASS", "EXAMPLES_SIDE_BY_SIDE"):
        monkeypatch.setattr(f"lr_env.training.population.{name}", at_once)
    parts = population.evaluate("train")
    assert sizes[0] == expected and sum(members * examples for members, examples in sizes) == 4 * 102
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-13)
    np.testing.assert_allclose(parts.metrics, whole.metrics, rtol=1e-13)


def test_evaluation_before_the_first_gradient() -> None:
    task = tiny_task()
    data = task.data.split("test")
    assert start(task, [0]).evaluate("test").losses[0] == pytest.approx(
        mean_loss(task, task.initial_model(0).double(), data.inputs, data.targets), rel=1e-9
    )


@pytest.mark.parametrize("model", [None, batch_norm, dropout])
def test_losses_on_the_current_batch_are_those_of_the_present_weights(model: object) -> None:
    task = tiny_task() if model is None else tiny_task(model)
    population = start(task, [0, 1])
    losses = population.begin()[0, 0]
    batch = population.batches.current()
    if model is not dropout:
        np.testing.assert_allclose(population.losses_on(*batch), losses, rtol=1e-12)
    population.step(np.full((2, 1), 0.1))
    buffers = {name: buffer.clone() for name, buffer in population.buffers.items()}
    after = population.losses_on(*batch)
    if model is not dropout:
        assert (after < losses).all()
    torch.rand(1)  # models that draw do so from their members' own generators
    np.testing.assert_array_equal(population.losses_on(*batch), after)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in population.buffers.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [None, batch_norm, dropout])
def test_state_can_be_put_back_and_a_member_copied(optimizer: str, model: object) -> None:
    task = tiny_task() if model is None else tiny_task(model)
    population, rates = start(task, range(3), optimizer), np.full((9, 3), 0.05)
    advance(population, rates)
    state = population.get_state(np.arange(3))
    first = advance(population, rates)
    population.set_state(state, np.arange(3))
    np.testing.assert_array_equal(advance(population, rates), first)
    population.set_state(state, np.arange(3))
    population.set_state(population.get_state(np.array([1, 1, 1])), np.arange(3))
    copies = advance(population, rates)
    # Bits may depend on a member's place, which decides how sums over the batch are vectorised.
    np.testing.assert_allclose(copies, np.repeat(first[:, 1:2], 3, axis=1), rtol=1e-9)


@pytest.mark.parametrize("model", [None, dropout])
def test_pickle_and_deepcopy_continue_with_the_same_bits(model: object) -> None:
    task = make_task("digits-mlp") if model is None else tiny_task(model)
    population, rates = start(task, range(2), "adam"), np.full((9, 2), 0.01)
    advance(population, rates)
    copies = [copy.deepcopy(population)] if model else [copy.deepcopy(population), pickle.loads(pickle.dumps(population))]
    expected = advance(population, rates)
    for other in copies:
        np.testing.assert_array_equal(advance(other, rates), expected)


def test_parameters_begin_as_the_model_initialises_them() -> None:
    task = make_task("digits-mlp")
    population = start(task, [11, 12], dtype="float32")
    for member, seed in enumerate((11, 12)):
        np.testing.assert_array_equal(population.parameters[member].double().numpy(), flat(task.initial_model(seed).parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_members": 0}, "num_members must be an integer >= 1, but 0 was given"),
        ({"dtype": "float16"}, "Unknown dtype 'float16'. Did you mean"),
        ({"gradients": "batch"}, "Unknown gradients 'batch'. Did you mean 'batched'"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Population(**{"task": tiny_task(), "num_members": 1, "optimizer": make_optimizer("sgd")[0], **options})
