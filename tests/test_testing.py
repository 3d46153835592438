"""The conformance suite accepts what is right, and says in words what is wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lr_env.testing
from lr_env import Task, TaskFamily
from lr_env.tasks import ACCURACY, Metric, Sampler, Split
from lr_env.testing import TaskError, check_task
from tests.rollouts import tiny_task


@pytest.mark.parametrize("name", ["breast-cancer-mlp", "digits-mlp", "noisy-quadratic"])
def test_built_in_tasks_pass_without_remarks(name: str) -> None:
    remarks = check_task(name)
    assert [remark for remark in remarks if "do not depend on the seed" not in remark] == []
    assert (len(remarks) == 1) == (name == "noisy-quadratic")  # it starts from given weights


def test_a_good_task_has_no_remarks_and_generators_stay_as_found() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    assert check_task(tiny_task()) == []
    assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())


def test_what_leaves_tensors_trains_without_a_graph() -> None:
    [remark] = check_task(tiny_task(model=CountsOutsideOfTensors))
    assert remark.startswith("Vector environments train one member after another (engine: looped)")


def test_a_rare_label_out_of_range_is_found_under_a_loss_of_ones_own() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    inputs, labels = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32), np.arange(300) % 3
    wrong = np.where(np.arange(50) == 41, 9, np.arange(50) % 3)
    task = Task.from_tensors("mine", lambda: nn.Linear(4, 3), inputs, labels, loss=loss, test=(inputs[:50], wrong), batch_size=16)
    with pytest.raises(TaskError, match=r"fails on test examples \[0, 41\], whose labels are the lowest and the highest, 0 and 9: IndexError"):
        check_task(task)


# ---- broken models -------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A good model, to be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.hidden(inputs).tanh())


class FromTheSystem(Model):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.hidden.bias.copy_(torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8) / 255)


PRIVATE = np.random.default_rng(0)


class FromAPrivateGenerator(Model):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.hidden.bias.copy_(torch.from_numpy(PRIVATE.normal(size=8)))


class SeedsPyTorch(Model):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()


class SeedsNumPy(Model):
    def __init__(self) -> None:
        np.random.seed(0)
        super().__init__()


SHARED = Model()


class OfRandomWidth(nn.Sequential):
    def __init__(self) -> None:
        width = 2 + int(torch.randint(100, ()))
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


class StochasticDepth(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1.0 if not self.training or np.random.rand() < 0.5 else 0.5)


class PrivateNoise(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + torch.from_numpy(PRIVATE.normal(size=tuple(inputs.shape))).float())


class CountsInPython(Model):
    calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs) / self.calls


class SeedsInForward(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().forward(nn.functional.dropout(inputs, 0.5, self.training))


class DropsInEvaluation(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(inputs, 0.5))


class ChangesInputs(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.mul_(0.5))


class Squeezes(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).squeeze()


class Counts(Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


class CountsOutsideOfTensors(Counts):
    """A graph would not see the number that a buffer had."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(inputs) / (float(self.calls.numpy()) if self.training else 1.0)


class AssignsABuffer(Counts):
    """``torch.func.functional_call`` puts the old buffer back."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return super().forward(inputs) / (self.calls if self.training else 1.0)


class Uphill(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return -gradient


class WrongGradient(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return Uphill.apply(super().forward(inputs))


class AllZero(Model):
    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def mean_over_the_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses / losses.sum()


def noisy_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, torch.randint(3, targets.shape), reduction="none")


def below_zero(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none") - 5


def unbounded(outputs: Tensor, targets: Tensor) -> Tensor:
    return 10 + 5 * outputs[:, 0]


def infinite(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs.softmax(1)[:, 0] * (targets > 0)).log()


def kinked(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().sum(1).sqrt() + 1


def flat(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().sum(1) + 1


def changes_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets.clamp_(max=1), reduction="none")


BAD_SUMMARY = Metric("error", lambda outputs, targets: (outputs.argmax(1) != targets).float(), lambda means: means.mean())
MEAN_ACCURACY = Metric("accuracy", lambda outputs, targets: (outputs.argmax(1) == targets).float().mean())

BROKEN: list[tuple[str, dict[str, Any], list[str]]] = [
    ("os.urandom", {"model": FromTheSystem}, ["not reproducible from its seed", "'hidden.bias'", "os.urandom"]),
    ("private generator", {"model": FromAPrivateGenerator}, ["not reproducible from its seed", "'hidden.bias'", "a generator of your own"]),
    ("manual_seed", {"model": SeedsPyTorch}, ["model function seeds the global generator of PyTorch", "Remove the call"]),
    ("np.random.seed", {"model": SeedsNumPy}, ["model function seeds the global generator of NumPy"]),
    ("shared module", {"model": lambda: SHARED}, ["same module every time", "Make a new one"]),
    ("random shapes", {"model": OfRandomWidth}, ["same names and shapes"]),
    ("numpy in forward", {"model": StochasticDepth}, ["draw from the global generator of NumPy in training", "PyTorch's"]),
    ("private noise", {"model": PrivateNoise}, ["not reproducible in training", "PyTorch's global generator"]),
    ("python state", {"model": CountsInPython}, ["not reproducible in training", "buffers"]),
    ("seed in forward", {"model": SeedsInForward}, ["seed the global generator of PyTorch in training", "Remove the call"]),
    ("dropout in evaluation", {"model": DropsInEvaluation}, ["PyTorch in evaluation", "self.training"]),
    ("inputs in place", {"model": ChangesInputs}, ["change their inputs in place", "clone()"]),
    ("targets in place", {"loss": changes_targets}, ["change their targets in place"]),
    ("squeeze", {"model": Squeezes}, ["do not accept a single example", "squeeze()"]),
    ("batch normalised loss", {"loss": mean_over_the_batch}, ["loss is not per example", "first dimension"]),
    ("random loss", {"loss": noisy_labels}, ["PyTorch in evaluation"]),
    ("below the bound", {"loss": below_zero}, ["is below loss_lower_bound=0"]),
    ("below the bound later", {"loss": unbounded}, ["is below loss_lower_bound=0"]),
    ("infinite", {"loss": infinite}, ["loss is not finite before any training", "of 102 examples"]),
    ("not differentiable", {"model": AllZero, "loss": kinked}, ["first gradient is not finite", "square roots"]),
    ("flat", {"model": AllZero, "loss": flat}, ["gradient is zero in all parameters", "detach()"]),
    ("metric", {"metric": MEAN_ACCURACY}, ["metric 'accuracy' must return one value per example, (102,)", "returned ()"]),
    ("summary", {"metric": BAD_SUMMARY}, ["summary of metric 'error' must turn means (N, K)", "returned () for 2 models"]),
    ("batch norm without statistics", {"model": lambda: batch_norm(track_running_stats=False)}, ["do not accept a single example"]),
    ("uphill", {"model": WrongGradient}, ["does not lower the loss within 20 steps", "gradcheck"]),
    ("assigned buffer", {"model": AssignsABuffer}, ["vector (engine: batched) environment trains otherwise", "Change buffers in place"]),
]


@pytest.mark.parametrize(("change", "fragments"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_tasks(change: dict[str, Any], fragments: list[str]) -> None:
    task = tiny_task(**{"model": Model, **change})
    with pytest.raises(TaskError) as error:
        check_task(task)
    for fragment in fragments:
        assert fragment in str(error.value)
    assert str(error.value).startswith("Task 'tiny' has ")


def test_all_problems_of_one_stage_are_listed() -> None:
    task = tiny_task(FromTheSystem, mean_over_the_batch, metric=MEAN_ACCURACY)
    with pytest.raises(TaskError, match=r"has 3 problem\(s\)") as error:
        check_task(task)
    assert str(error.value).count("\n- ") == 3 and "call check_task again" in str(error.value)


# ---- samplers ------------------------------------------------------------------------------------------------------------------


def regression(inputs: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, inputs.sum(1, keepdim=True)


def good_sample(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    return regression(torch.from_numpy(generator.normal(size=(count, 4))).float())


def column_by_column(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    return regression(torch.from_numpy(np.stack([generator.normal(size=count) for _ in range(4)], axis=1)).float())


def private(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    return good_sample(PRIVATE, count)


def from_the_global_generator(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    return regression(torch.rand(count, 4))


def always_five(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    inputs, targets = good_sample(generator, max(count, 6))
    return inputs, targets


def far_from_the_reference(generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    inputs, targets = good_sample(generator, count)
    return inputs, targets + 100


def sampled(sample: Callable[[np.random.Generator, int], tuple[Tensor, Tensor]], width: int = 4) -> Task:
    reference = Split(*regression(torch.randn(40, width, generator=torch.Generator().manual_seed(0))))
    return Task("sampled", lambda: nn.Linear(4, 1), "mean_squared_error", Sampler(sample, reference), batch_size=8)


def test_a_good_sampler_passes() -> None:
    assert check_task(sampled(good_sample)) == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: sampled(column_by_column), "Drawing 2 and then 3 of the sampler's inputs"),
        (lambda: sampled(private), "inputs differ between two draws with one seed"),
        (lambda: sampled(from_the_global_generator), "sampler draws from global generators"),
        (lambda: sampled(always_five), "asked for 5 examples, but returned 6 inputs"),
        (lambda: sampled(good_sample, width=7), r"inputs have shape \(4,\) each, those of its reference examples \(7,\)"),
        (lambda: sampled(far_from_the_reference), "with the small rate .* counts as diverged: .* reference examples"),
    ],
    ids=["columns", "private", "global", "count", "shape", "reference"],
)
def test_broken_samplers(task: Callable[[], Task], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check_task(task())


# ---- remarks -------------------------------------------------------------------------------------------------------------------


class Unused(Model):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Centred(Model):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs - inputs.mean(0))


def batch_norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))


REMARKS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unused", {"model": Unused}, ["'spare.weight', 'spare.bias' never had a gradient"]),
    (
        "empty splits",
        {"validation_fraction": 0.0, "test_fraction": 0.0},
        ['no validation data: reward_on="validation"', "no test data: benchmarks"],
    ),
    ("batch norm", {"model": batch_norm}, ["depends on the others of its minibatch, as with BatchNorm"]),
    ("centred", {"model": Centred}, ["depends on the others of its minibatch", "In evaluation, an example's output depends on the others"]),
    ("convolution", {"model": convolution}, ["(engine: looped): it has convolutions, or keeps much"]),
    ("dropout", {"model": dropout}, ["draws random numbers while it trains"]),
]


@pytest.mark.parametrize(("change", "fragments"), [case[1:] for case in REMARKS], ids=[case[0] for case in REMARKS])
def test_remarks(change: dict[str, Any], fragments: list[str]) -> None:
    remarks = check_task(tiny_task(**{"model": Model, **change}))
    assert len(remarks) == len(fragments)
    for fragment in fragments:
        assert sum(fragment in remark for remark in remarks) == 1


def test_examples_that_splits_share() -> None:
    inputs, targets = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    task = Task.from_tensors("shared", Model, inputs, targets, validation=(inputs[:7], targets[:7]), test_fraction=0, batch_size=8)
    assert any("train and validation data share 7 identical inputs" in remark for remark in check_task(task))


# ---- what is checked -----------------------------------------------------------------------------------------------------------


def test_names_and_other_objects() -> None:
    with pytest.raises(ValueError, match="Unknown task 'digit-mlp'"):
        check_task("digit-mlp")
    with pytest.raises(TypeError, match="Linear was given"):
        check_task(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_variants must be an integer >= 1"):
        check_task("digits-mlp", max_variants=0)


def draw(generator: np.random.Generator) -> Task:
    return tiny_task(batch_size=int(generator.integers(4, 20)))


def test_variants_of_a_family() -> None:
    family = TaskFamily("several", draw, num_variants=3)
    assert check_task(family, max_variants=1) == ["1 of 3 variants were checked; max_variants= checks more."]
    spoilt = TaskFamily("several", lambda generator: draw(generator) if generator.random() < 0.5 else tiny_task(FromTheSystem), num_variants=8)
    with pytest.raises(TaskError, match=r"Task variant \d of 'several' has 1 problem"):
        check_task(spoilt, max_variants=8)


def test_the_accuracy_of_the_suite_s_own_comparison() -> None:
    """Losses that agree are accepted, and a small mistake is not."""
    values = torch.tensor([1.0, 1e-6, 3.0])
    assert lr_env.testing._agree(values, values * (1 + 1e-5)) and not lr_env.testing._agree(values, values * 1.01)
    assert lr_env.testing._agree(torch.full((2,), torch.nan), torch.full((2,), torch.nan))
    assert ACCURACY.summary is None
