"""One's own tasks: from tensors, from data sets, with any module; and what is said about wrong ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lr_env import LearningRateVectorEnv, Task
from lr_env.tasks import Data, Sampler, Split, materialisation
from lr_env.tasks.materialisation import materialise
from tests.reference import train
from tests.rollouts import assert_same_bits, roll_out, tiny_task

INPUTS, CLASSES = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), np.arange(50) % 3
EXAMPLES = TensorDataset(torch.from_numpy(INPUTS), torch.from_numpy(CLASSES))


class Items(Dataset[Any]):
    """A data set of given items, or of what a function makes of an index."""

    def __init__(self, items: list[Any] | Callable[[int], Any], length: int = 50) -> None:
        self.items, self.length = items, len(items) if isinstance(items, list) else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.items[index] if isinstance(self.items, list) else self.items(index)


def linear() -> nn.Module:
    return nn.Linear(4, 3)


def from_dataset(dataset: Any, **options: Any) -> Task:
    return Task.from_dataset("mine", options.pop("model", linear), dataset, **{"batch_size": 8, **options})


def sizes(task: Task) -> list[int]:
    assert isinstance(task.data, Data)
    return [len(part) for part in (task.data.train, task.data.validation, task.data.test)]


def all_rows(task: Task) -> list[bytes]:
    assert isinstance(task.data, Data)
    return [row.numpy().tobytes() for part in (task.data.train, task.data.validation, task.data.test) for row in part.inputs]


# ---- from a data set -----------------------------------------------------------------------------------------------------------


def test_a_dataset_gives_the_task_of_its_tensors() -> None:
    task, expected = from_dataset(EXAMPLES, split_seed=3), Task.from_tensors("mine", linear, INPUTS, CLASSES, batch_size=8, split_seed=3)
    for name in ("train", "validation", "test"):
        given, wanted = task.data.split(name), expected.data.split(name)
        assert torch.equal(given.inputs, wanted.inputs) and torch.equal(given.targets, wanted.targets)
    assert sizes(task) == [36, 7, 7] and task.metric is not None
    env = gym.make("LearningRate-v0", task=task, horizon=5)
    assert_same_bits(roll_out(env, [[0.1]] * 5), roll_out(gym.make("LearningRate-v0", task=expected, horizon=5), [[0.1]] * 5))


def test_data_sets_of_their_own_for_validation_and_test() -> None:
    parts = [Subset(EXAMPLES, range(*bounds)) for bounds in ((0, 30), (30, 38), (38, 50))]
    task = from_dataset(parts[0], validation=parts[1], test=parts[2])
    assert sizes(task) == [30, 8, 12]
    assert torch.equal(task.data.split("validation").inputs, torch.from_numpy(INPUTS[30:38]))
    assert torch.equal(task.data.split("test").targets, torch.from_numpy(CLASSES[38:]))
    assert sizes(from_dataset(parts[0], test=parts[2], validation_fraction=0.2)) == [24, 6, 12]
    assert sizes(from_dataset(parts[0], test=parts[2], validation_fraction=0.0)) == [30, 0, 12]


def test_tensors_of_their_own_for_validation_and_test() -> None:
    own = INPUTS[:5] + 1, CLASSES[:5]
    task = Task.from_tensors("mine", linear, INPUTS, CLASSES, validation=own, test_fraction=0.5, batch_size=8)
    assert sizes(task) == [25, 5, 25]
    assert torch.equal(task.data.split("validation").inputs, torch.from_numpy(own[0]))
    assert sorted(all_rows(task)) == sorted(row.tobytes() for row in (*INPUTS, *own[0]))


@pytest.mark.parametrize(
    ("item", "dtypes"),
    [
        (lambda i: (INPUTS[i], CLASSES[i]), (torch.float32, torch.int64)),
        (lambda i: (torch.from_numpy(INPUTS[i]).double(), int(CLASSES[i])), (torch.float32, torch.int64)),
        (lambda i: [INPUTS[i].astype(np.float16), np.uint8(CLASSES[i])], (torch.float32, torch.int64)),
    ],
    ids=["numpy", "tensor and int", "list of narrow"],
)
def test_items_are_converted_as_a_data_loader_does(item: Callable[[int], Any], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    dataset = Items(item)
    task = from_dataset(dataset, validation_fraction=0, test_fraction=0)
    split = task.data.split("train")
    assert (split.inputs.dtype, split.targets.dtype) == dtypes
    inputs, targets = materialise(dataset)
    expected_inputs, expected_targets = next(iter(DataLoader(dataset, batch_size=50)))
    assert torch.equal(inputs, expected_inputs.float()) and torch.equal(targets, expected_targets)


def test_floating_point_targets_and_images() -> None:
    dataset = Items(lambda i: (torch.full((1, 4, 4), float(i)), float(i)))
    task = from_dataset(dataset, model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), loss="mean_squared_error", test_fraction=0)
    split = task.data.split("train")
    assert split.inputs.shape[1:] == (1, 4, 4) and split.targets.dtype == torch.float32
    assert torch.equal(split.inputs[:, 0, 0, 0], split.targets)


def test_random_transforms_are_drawn_once_from_the_split_s_seed() -> None:
    def augmented(index: int) -> Any:
        return torch.from_numpy(INPUTS[index]) + torch.rand(4) + random.random() + float(np.random.rand()), int(CLASSES[index])

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first, again, other = (from_dataset(Items(augmented), split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert all_rows(first) == all_rows(again) and not set(all_rows(first)) & set(all_rows(other))


def test_every_example_is_read_once_and_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    bars: list[dict[str, Any]] = []

    def bar(indices: range, **options: Any) -> Iterator[int]:
        bars.append({"total": len(indices), **options})
        return iter(indices)

    def item(index: int) -> Any:
        read.append(index)
        return EXAMPLES[index]

    monkeypatch.setattr(materialisation, "tqdm", bar)
    from_dataset(Items(item))
    assert read == list(range(50))
    assert [(made["total"], made["desc"]) for made in bars] == [(50, "training data set of task 'mine'")]


def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    read: list[int] = []

    def image(index: int) -> Any:
        read.append(index)
        return torch.zeros(3, 224, 224), 0

    with pytest.raises(ValueError, match="max_bytes=4,294,967,296") as error:
        from_dataset(Items(image, length=1_281_167))
    for fragment in ("771,416,274,040 bytes", "1,281,167 examples", "(3, 224, 224)", "Subset", "transform", "uint8", "larger max_bytes"):
        assert fragment in str(error.value)
    assert read == [0]
    num_bytes = 50 * (4 * 4 + 8)
    from_dataset(EXAMPLES, max_bytes=num_bytes)
    with pytest.raises(ValueError, match=f"max_bytes={num_bytes - 1:,}"):
        from_dataset(EXAMPLES, max_bytes=num_bytes - 1)
    with pytest.raises(ValueError, match=r"bytes for its 10,000,000,000,000 examples .*, which there is no memory for.*Subset"):
        from_dataset(Items(image, length=10**13), max_bytes=2**63)
    with pytest.raises(ValueError, match="max_bytes must be an integer >= 1, but '4G' was given"):
        from_dataset(EXAMPLES, max_bytes="4G")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


class WithoutLength(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return EXAMPLES[index]


class FailingLength(WithoutLength):
    def __len__(self) -> int:
        raise NotImplementedError("unknown")


@pytest.mark.parametrize("targets", [torch.zeros(40, 1), torch.zeros(40, dtype=torch.int64)])
def test_cross_entropy_over_one_output_is_refused(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r'cross-entropy over one class is always 0\. For regression give loss="mean_squared_error"'):
        Task.from_tensors("regression", lambda: nn.Linear(3, 1), torch.zeros(40, 3), targets, batch_size=4)


def ragged(index: int) -> Any:
    return torch.zeros(5 if index == 7 else 4), 0


def of_two_dtypes(index: int) -> Any:
    return torch.zeros(4), 0.5 if index == 9 else 0


def failing(index: int) -> Any:
    if index == 3:
        raise OSError("truncated file")
    return torch.zeros(4), 0


WRONG_DATASETS: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("iterable", Stream(), TypeError, ["is an IterableDataset (Stream)", "map-style", "Task.from_tensors"]),
    ("loader", DataLoader(EXAMPLES), TypeError, ["is a DataLoader", "loader.dataset"]),
    ("no length", WithoutLength(), TypeError, ["WithoutLength, has no length", "__len__"]),
    ("failing length", FailingLength(), TypeError, ["FailingLength, has no length (unknown)", "__len__"]),
    ("no data set", 3, TypeError, ["of type int", "__getitem__"]),
    ("empty", Items([]), ValueError, ["is empty"]),
    ("shapes", Items(ragged), ValueError, ["example 7", "(5,)", "example 0", "(4,)", "Pad, crop"]),
    ("dtypes", Items(of_two_dtypes), ValueError, ["example 9", "torch.float32", "torch.int64"]),
    ("failing", Items(failing), ValueError, ["Example 3", "cannot be read", "truncated file"]),
    ("single", Items(lambda i: torch.zeros(4)), ValueError, ["must be a pair (inputs, targets)", "example 0", "is a Tensor"]),
    ("triple", Items(lambda i: (0.0, 1, 2)), ValueError, ["must be a pair", "is a tuple of 3"]),
    ("mapping", Items(lambda i: {"x": 0.0, "y": 1}), ValueError, ["must be a pair", "is a dict of 2", "__getitem__ returns (inputs, targets)"]),
    ("later triple", Items([*([(0.0, 1)] * 5), (0.0, 1, 2)]), ValueError, ["example 5", "is a tuple of 3"]),
    ("nested", Items(lambda i: ((torch.zeros(4), torch.zeros(2)), 0)), ValueError, ["inputs of example 0", "one tensor, but tuple"]),
    ("text", Items(lambda i: ("a sentence", 0)), ValueError, ["inputs of example 0", "one tensor, but str"]),
    ("object", Items(lambda i: (torch.zeros(4), object())), ValueError, ["targets of example 0", "type object", "ToTensor"]),
    ("nan", Items(lambda i: (torch.full((4,), torch.nan if i == 11 else 0.0), 0)), ValueError, ["inputs hold NaN", "example 11"]),
]


@pytest.mark.parametrize(("dataset", "kind", "fragments"), [case[1:] for case in WRONG_DATASETS], ids=[case[0] for case in WRONG_DATASETS])
@pytest.mark.parametrize("place", ["training", "validation"])
def test_wrong_data_sets(place: str, dataset: Any, kind: type[Exception], fragments: list[str]) -> None:
    with pytest.raises(kind, match=re.escape(fragments[0])) as error:
        from_dataset(dataset) if place == "training" else from_dataset(EXAMPLES, validation=dataset)
    for fragment in fragments:
        assert fragment in str(error.value)
    if "NaN" not in str(error.value):
        assert f"{place} data set of task 'mine'" in str(error.value)


# ---- modules that keep or draw something while they train ----------------------------------------------------------------------


def batch_norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def both() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": batch_norm,
    "cumulative batch norm": partial(batch_norm, momentum=None),
    "dropout": dropout,
    "both": both,
    "spectral norm": spectral_norm,
}


@pytest.mark.parametrize("gradients", ["auto", "looped"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_modules_with_state_have_exact_seeds(model: Callable[[], nn.Module], gradients: str) -> None:
    task = tiny_task(model)
    options = {"task": task, "gradients": gradients, "action": "rate"}
    rates = np.linspace(0.01, 0.3, 8)[:, None]
    single = gym.make("LearningRate-v0", **options)
    vector = gym.make_vec("LearningRate-v0", num_envs=3, **options)
    first = roll_out(single, rates, seed=6)
    assert_same_bits(first, roll_out(single, rates, seed=6))
    assert_same_bits(first, roll_out(gym.make("LearningRate-v0", **options), rates, seed=6))
    side_by_side = roll_out(vector, np.repeat(rates[:, None], 3, axis=1), seed=5)
    np.testing.assert_allclose(side_by_side.values("loss")[:, 1], first.values("loss"), rtol=1e-4)
    assert not np.allclose(side_by_side.values("loss")[:, 0], first.values("loss"))
    if vector.unwrapped.episodes.population.engine == "looped":
        np.testing.assert_array_equal(side_by_side.values("loss")[:, 1], first.values("loss"))
    np.testing.assert_allclose(first.values("loss"), train(task, 6, rates[:, 0], dtype=torch.float32).losses, rtol=1e-4)


@pytest.mark.parametrize("gradients", ["auto", "looped"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_evaluation_uses_evaluation_mode(model: Callable[[], nn.Module], gradients: str) -> None:
    task = tiny_task(model)
    rates = np.full(7, 0.1)
    env = gym.make_vec("LearningRate-v0", num_envs=2, task=task, gradients=gradients, action="rate", horizon=9)
    roll_out(env, np.repeat(rates[:, None, None], 2, axis=1), seed=0)
    evaluations = [env.unwrapped.evaluate("test") for _ in range(2)]
    assert evaluations[0].losses.tobytes() == evaluations[1].losses.tobytes()  # nothing is drawn, no statistics are changed
    split = task.data.split("test")
    for member in (0, 1):
        trained = train(task, member, rates, dtype=torch.float32).model.eval()
        with torch.no_grad():
            outputs = trained(split.inputs)
        expected = nn.functional.cross_entropy(outputs, split.targets).item()
        assert evaluations[0].losses[member] == pytest.approx(expected, rel=1e-4)
        assert evaluations[0].metrics is not None
        assert evaluations[0].metrics[member] == pytest.approx((outputs.argmax(1) == split.targets).float().mean().item())


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.huber_loss(outputs, targets, reduction="none").mean(1)


def test_any_loss_with_a_value_per_example() -> None:
    targets = np.stack([INPUTS.sum(1), INPUTS[:, 0]], axis=1)
    task = Task.from_tensors("huber", lambda: nn.Linear(4, 2), INPUTS, targets, loss=huber, batch_size=10)
    env = gym.make("LearningRate-v0", task=task, action="rate", horizon=6)
    losses = roll_out(env, [[0.3]] * 5, seed=2).values("loss")
    np.testing.assert_allclose(losses, train(task, 2, [0.3] * 5, dtype=torch.float32).losses, rtol=1e-5)
    assert losses[-1] < losses[0]


# ---- what is said about wrong tasks --------------------------------------------------------------------------------------------


class WithWidth(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(4, width)


def partly_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return model


NAN_TARGETS = np.where(np.arange(50) == 4, np.nan, 1.0)
REGRESSION: dict[str, Any] = {"model": lambda: nn.Linear(4, 1), "targets": INPUTS[:, :1], "loss": "mean_squared_error"}
WRONG: list[tuple[str, dict[str, Any], list[str]]] = [
    ("nan in targets", {**REGRESSION, "targets": NAN_TARGETS}, ["targets hold NaN or infinity, first in example 4", "impute"]),
    ("infinity in targets", {**REGRESSION, "targets": np.full((50, 1), np.inf)}, ["targets hold NaN or infinity, first in example 0"]),
    ("nan in one pixel", {"inputs": np.where(np.arange(200).reshape(50, 4) == 42, np.nan, INPUTS)}, ["inputs hold NaN", "first in example 10"]),
    ("too large for float32", {"inputs": np.full((50, 4), 1e300)}, ["inputs hold NaN or infinity"]),
    ("labels from one", {"targets": CLASSES + 1}, ["train targets", "run from 1 to 3", "3 outputs: classes from 0 to 2"]),
    ("booleans", {"targets": CLASSES > 0}, ["does not accept outputs (16, 3)", "torch.bool", "integer class indices from 0"]),
    ("rare label", {"targets": np.where(np.arange(50) == 49, 3, CLASSES)}, ["run from 0 to 3", "3 outputs: classes from 0 to 2"]),
    ("rare negative label", {"targets": np.where(np.arange(50) == 49, -1, CLASSES)}, ["run from -1 to 1", "Number the classes from 0"]),
    ("negative labels", {"targets": CLASSES - 5}, ["run from -5 to -3", "Number the classes from 0"]),
    ("float labels", {"targets": CLASSES.astype(np.float32)}, ["does not accept outputs", "class indices from 0"]),
    ("one-hot of other width", {"targets": np.eye(4)[CLASSES]}, ["does not accept outputs (16, 3)", "targets (16, 4)"]),
    ("column of labels", {"targets": CLASSES[:, None]}, ["does not accept outputs (16, 3)", "targets (16, 1)"]),
    ("integer inputs", {"inputs": np.ones((50, 4), np.int64)}, ["does not accept its data", "torch.int64", "inputs.float()"]),
    ("bytes", {"inputs": np.ones((50, 4), np.uint8)}, ["does not accept its data", "torch.uint8", "inputs.float()"]),
    ("complex inputs", {"inputs": INPUTS + 1j}, ["inputs are complex numbers", "torch.view_as_real(inputs)"]),
    ("complex targets", {**REGRESSION, "targets": INPUTS[:, :1] + 1j}, ["targets are complex numbers"]),
    ("other device", {"targets": torch.zeros(50, dtype=torch.int64, device="meta")}, ["targets lie on device 'meta'", "targets.cpu()"]),
    ("sparse", {"inputs": torch.eye(50, 4).to_sparse()}, ["inputs are not dense", "to_dense()"]),
    ("text", {"targets": [["cat", "dog"][i % 2] for i in range(50)]}, ["targets must be an array of numbers"]),
    ("ragged", {"inputs": [[0.0] * (3 + i % 2) for i in range(50)]}, ["inputs must be an array of numbers"]),
    ("a number", {"inputs": 3.0}, ["inputs are a single number", "count the examples"]),
    ("too few targets", {**REGRESSION, "model": lambda: nn.Linear(4, 2)}, ["does not accept outputs (16, 2)", "Regression wants as many"]),
    ("arguments", {"model": WithWidth}, ["Making the model of task 'wrong' failed", "'width'", "lambda: MyModule"]),
    ("impossible layer", {"model": lambda: nn.Linear(4, -3)}, ["Making the model of task 'wrong' failed: RuntimeError"]),
    ("no function", {"model": "linear"}, ["Making the model of task 'wrong' failed", "'str' object is not callable"]),
    ("lazy", {"model": lambda: nn.LazyLinear(3)}, ["shape of parameter 'weight' of task 'wrong' is unknown", "nn.LazyLinear"]),
    ("partly frozen", {"model": partly_frozen}, ["Parameter '0.weight' of task 'wrong' is frozen", "register_buffer"]),
    ("double model", {"model": lambda: nn.Linear(4, 3).double()}, ["does not accept its data"]),
    ("mean", {**REGRESSION, "loss": lambda outputs, targets: (outputs - targets).square().mean()}, ["one value per example", "returned ()"]),
    ("not averaged", {**REGRESSION, "loss": lambda outputs, targets: (outputs - targets).square()}, ["one value per example", "returned (16, 1)"]),
    ("complex loss", {"loss": lambda outputs, targets: outputs[:, 0] * 1j}, ["must return real numbers", "complex64"]),
    ("loss of three", {"loss": lambda outputs, targets, weights: outputs[:, 0]}, ["'weights'", "called as loss(outputs, targets)"]),
    ("bound", {"loss_lower_bound": -np.inf}, ["loss_lower_bound must be a finite number, but -inf was given"]),
    ("validation alone", {"validation": INPUTS}, ["validation must be a pair (inputs, targets), but ndarray was given"]),
    ("validation shapes", {"validation": (INPUTS[:, :3], CLASSES)}, ["validation inputs are (50, 3)", "training inputs (43, 4)"]),
    ("test dtypes", {"test": (INPUTS, CLASSES.astype(float))}, ["test targets are (50,) torch.float32", "training targets (43,) torch.int64"]),
    ("test lengths", {"test": (INPUTS, CLASSES[:3])}, ["same length, but 50 and 3"]),
    ("test labels", {"test": (INPUTS, CLASSES + 1)}, ["test targets", "run from 1 to 3"]),
]


@pytest.mark.parametrize(("change", "fragments"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_tasks_from_wrong_tensors(change: dict[str, Any], fragments: list[str]) -> None:
    options = {"model": linear, "inputs": INPUTS, "targets": CLASSES, "batch_size": 16, **change}
    with pytest.raises(ValueError, match=re.escape(fragments[0])) as error:
        Task.from_tensors("wrong", options.pop("model"), options.pop("inputs"), options.pop("targets"), **options)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_task_s_data_are_its_own() -> None:
    given = [torch.from_numpy(INPUTS).clone(), torch.from_numpy(CLASSES).clone()]
    task = Task.from_tensors("mine", linear, *given, validation=tuple(given), test_fraction=0.0, batch_size=16)
    before = all_rows(task)
    for values in given:
        values.zero_()
    assert all_rows(task) == before
    assert task.data.split("train").targets.any() and task.data.split("validation").targets.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(dtype: type[np.integer[Any]]) -> None:
    task = Task.from_tensors("mine", linear, INPUTS, CLASSES.astype(dtype), batch_size=16)
    assert task.data.split("train").targets.dtype == torch.int64


def test_data_that_are_neither() -> None:
    with pytest.raises(TypeError, match=r"Data or Sampler, but tuple was given\. Task\.from_tensors"):
        Task("wrong", linear, "cross_entropy", (INPUTS, CLASSES), batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"inputs must be a tensor, but ndarray was given\. Task\.from_tensors"):
        Split(INPUTS, CLASSES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"loss of task 'wrong' must be one of cross_entropy, .*, but NoneType was given"):
        Task.from_tensors("wrong", linear, INPUTS, CLASSES, loss=None, batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"metric of task 'wrong' must be a lr_env\.tasks\.Metric.* but 'accuracy' was given"):
        Task.from_tensors("wrong", linear, INPUTS, CLASSES, metric="accuracy", batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"loss_lower_bound must be a number, but '0' was given"):
        Task.from_tensors("wrong", linear, INPUTS, CLASSES, loss_lower_bound="0", batch_size=8)  # type: ignore[arg-type]


def test_the_observed_loss_has_a_name_or_is_a_function_with_a_value_per_example() -> None:
    good = Task.from_tensors("mine", linear, INPUTS, CLASSES, batch_size=8)
    by_name = replace(good, observed_loss="cross_entropy")
    rollouts = [roll_out(gym.make("LearningRate-v0", task=task), np.zeros((3, 1))) for task in (good, by_name)]
    assert_same_bits(*rollouts)
    with pytest.raises(ValueError, match="observed_loss of task 'mine' must return one value per example"):
        replace(good, observed_loss=lambda outputs, targets: outputs.mean())
    with pytest.raises(ValueError, match="Unknown observed_loss 'cross_entropi'"):
        replace(good, observed_loss="cross_entropi")
    with pytest.raises(TypeError, match="observed_loss of task 'mine' must be one of cross_entropy"):
        replace(good, observed_loss=3)  # type: ignore[arg-type]


def test_empty_splits() -> None:
    task = tiny_task(validation_fraction=0.0, test_fraction=0.0)
    env = gym.make("LearningRate-v0", task=task)
    env.reset(seed=0)
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=f"The task has no {name} data. Give {name} examples"):
            env.unwrapped.evaluate(name)
    env.step(np.zeros(1))


def test_a_sampler_that_draws_what_the_model_does_not_take() -> None:
    def sample(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(generator.normal(size=(count, 5))).float(), torch.zeros(count, dtype=torch.int64)

    with pytest.raises(ValueError, match=r"does not accept its data \(inputs \(8, 5\)"):
        Task("wrong", linear, "cross_entropy", Sampler(sample, Split(torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))), batch_size=8)


def test_accuracy_of_sequences_and_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    classes, probabilities = torch.randint(3, (60, 5), generator=generator), torch.rand(60, 3, generator=generator)
    sequences = Task.from_tensors("sequences", lambda: nn.Sequential(nn.Linear(4, 15), nn.Unflatten(1, (3, 5))), inputs, classes, batch_size=8)
    soft = Task.from_tensors("soft", lambda: nn.Linear(4, 3), inputs, probabilities, batch_size=8)
    for task in (sequences, soft):
        env = LearningRateVectorEnv(2, task)
        env.reset(seed=0)
        metrics = env.evaluate("test").metrics
        test = task.data.split("test")  # type: ignore[union-attr]
        for member in range(2):
            outputs = task.initial_model(member)(test.inputs)
            expected = (outputs.argmax(1) == (test.targets if task is sequences else test.targets.argmax(1))).float().mean()
            assert metrics is not None
            assert metrics[member] == pytest.approx(float(expected))


def test_one_output_for_each_example() -> None:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    tasks = [
        Task.from_tensors(
            "flat", lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), inputs, inputs.sum(1), loss="mean_squared_error", batch_size=8
        ),
        Task.from_tensors("column", lambda: nn.Linear(4, 1), inputs, inputs.sum(1, keepdim=True), loss="mean_squared_error", batch_size=8),
    ]
    losses = [roll_out(LearningRateVectorEnv(2, task), np.zeros((5, 2, 1))).values("loss") for task in tasks]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_sampler_of_tokens() -> None:
    def sample(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(generator.integers(5, size=count))
        return tokens, tokens % 3

    task = Task(
        "tokens",
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)),
        "cross_entropy",
        Sampler(sample, Split(*sample(np.random.default_rng(0), 20))),
        8,
    )
    for num_envs in (1, 2):
        losses = roll_out(LearningRateVectorEnv(num_envs, task, initial_rate=1.0), np.zeros((30, num_envs, 1))).values("loss")
        assert losses[-1].mean() < 0.7 * losses[0].mean()
