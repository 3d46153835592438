"""The engines against plain autograd, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr_env import LearningRateVectorEnv
from lr_env.tasks.models import CharacterTransformer, mlp
from lr_env.tasks.task import Split, Task
from tests.reference import flat, train
from tests.rollouts import advance, start, tiny_task
from tests.test_execution import needs_compiler


class FallsBack(nn.Module):
    """Uses an operation that ``vmap`` can only run in a loop, with a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.renorm(self.layer(inputs), 2, 0, 1.0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(1, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs[..., None])
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).mean(1))


class DoublesGradient(torch.autograd.Function):
    """An operation for which ``vmap`` has no rule at all."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradients: Tensor) -> Tensor:
        return 2 * gradients


class WithoutRule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return DoublesGradient.apply(self.layer(inputs))


class Branches(nn.Module):
    """Control flow that depends on data: it can neither be mapped nor traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        return outputs if float(outputs.detach().sum()) > 0 else 2 * outputs


class PartlyUnused(nn.Module):
    """One parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 3), nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def convolution() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 5, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3))


class Recurrent(nn.Module):
    """The last output of a recurrent layer of this kind."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent, self.head = kind(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(inputs[..., None])[0][:, -1])


class Scaled(nn.Module):
    """Buffers of several shapes, which a graph must not mistake for one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("mean", torch.linspace(-1, 1, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer((inputs - self.mean) * self.scale)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mlp": (lambda: mlp(4, (8,), 3), "batched"),
    "batch_norm": (batch_norm, "batched"),
    "convolution": (convolution, "looped"),  # faster so
    "partly_unused": (PartlyUnused, "batched"),
    "dropout": (dropout, "looped"),
    "attention": (Attention, "batched"),
    "lstm": (partial(Recurrent, nn.LSTM), "looped"),  # recurrent cells can't be evaluated side by side
    "gru": (partial(Recurrent, nn.GRU), "looped"),
    "scaled": (Scaled, "batched"),
    "falls_back": (FallsBack, "looped"),
    "without_rule": (WithoutRule, "looped"),
    "branches": (Branches, "looped"),
}
RATES = 0.05 * (1 + np.arange(20) % 3)


@pytest.mark.parametrize("name", MODELS)
def test_the_right_engine_is_chosen(name: str) -> None:
    model, expected = MODELS[name]
    population = start(tiny_task(model), [0, 1])
    assert population.engine == "auto"
    population.begin()
    assert population.engine == expected
    alone = start(tiny_task(model), [0])
    alone.begin()
    assert alone.engine == "looped"


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=needs_compiler)])
def test_one_member_with_buffers_under_adam(optimizer: str, compiles: bool) -> None:
    """Its step and its buffers keep their places, however often the state goes round."""
    losses = []
    for engine in ("looped", "batched"):
        population = start(tiny_task(Scaled), [3], {"name": optimizer}, gradients=engine, compile=compiles)
        losses.append(advance(population, np.full((10, 1), 0.01)))
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("reward_on", ["same_batch", "validation"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_models_are_evaluated(name: str, dtype: str, reward_on: str) -> None:
    env = LearningRateVectorEnv(2, tiny_task(MODELS[name][0]), reward_on=reward_on, dtype=dtype)
    env.reset(seed=0)
    for _ in range(3):
        assert np.isfinite(env.step(np.zeros((2, 1)))[1]).all()
    assert np.isfinite(env.evaluate("test").losses).all()
    with pytest.raises(ValueError, match='gradients="batched" does not work'):
        LearningRateVectorEnv(2, tiny_task(MODELS[name][0]), gradients="batched", dtype=dtype).reset(seed=0)


@pytest.mark.parametrize(("width", "expected"), [(2**9, "batched"), (2**13, "looped")])
def test_what_keeps_much_for_its_backward_pass_is_looped_over(width: int, expected: str) -> None:
    population = start(tiny_task(lambda: mlp(4, (width, 8), 3), batch_size=64), [0, 1])  # 64 activations of each hidden unit
    population.begin()
    assert population.engine == expected


def test_a_model_that_differentiates_in_its_forward_pass_trains() -> None:
    class OfItsGradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            slopes: Tensor = torch.func.grad(lambda x: self.layer(x).tanh().sum())(inputs)
            return self.layer(inputs + slopes)

    population = start(tiny_task(OfItsGradient), [0, 1])
    losses = advance(population, np.repeat(RATES[:, None], 2, axis=1))
    np.testing.assert_allclose(losses[:, 1], train(tiny_task(OfItsGradient), 1, list(RATES)).losses, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_engine_chosen_equals_a_plain_loop(name: str, num_members: int, dtype: str) -> None:
    task = tiny_task(MODELS[name][0])
    population = start(task, range(num_members), dtype=dtype)
    losses = advance(population, np.repeat(RATES[:, None], num_members, axis=1))
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for member in range(num_members):
        plain = train(task, member, list(RATES), dtype=getattr(torch, dtype))
        np.testing.assert_allclose(losses[:, member], plain.losses, rtol=tolerance)
        scale = np.abs(plain.gradients[-1]).max()
        np.testing.assert_allclose(population.gradients[member].double(), plain.gradients[-1], rtol=tolerance, atol=tolerance * scale)
        for buffer_name, buffer in plain.model.named_buffers():  # running means are updated once a step
            np.testing.assert_allclose(population.buffers[buffer_name][member].double(), buffer.double(), rtol=tolerance, atol=tolerance)


# An LSTM in float32 runs in a fused operation that has no batching rule; in float64 it is made of plain ones.
@pytest.mark.parametrize("name", [name for name, (_, engine) in MODELS.items() if engine == "batched" or name == "convolution"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_batched_and_looped_agree(name: str, dtype: str, tolerance: float) -> None:
    populations = [start(tiny_task(MODELS[name][0]), range(4), gradients=engine, dtype=dtype) for engine in ("batched", "looped")]
    losses = [advance(population, np.tile(np.geomspace(0.01, 0.3, 4), (50, 1))) for population in populations]
    assert [population.engine for population in populations] == ["batched", "looped"]
    np.testing.assert_allclose(*losses, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "reason"), [("dropout", "draws random numbers"), ("falls_back", "performance drop"), ("without_rule", "vmap"), ("branches", "")]
)
def test_batched_where_it_cannot_work_says_why(name: str, reason: str) -> None:
    population = start(tiny_task(MODELS[name][0]), [0, 1], gradients="batched")
    with pytest.raises(ValueError, match="gradients=\"batched\" does not work for task 'tiny'") as error:
        population.begin()
    assert reason in str(error.value) and 'Use "auto" or "looped".' in str(error.value)


def test_dropout_draws_from_each_member_s_own_stream() -> None:
    task = tiny_task(dropout)
    rates = np.full((10, 3), 0.1)
    together = advance(start(task, [7, 8, 9]), rates)
    for member, seed in enumerate((7, 8, 9)):
        np.testing.assert_array_equal(together[:, member], advance(start(task, [seed]), rates[:, :1])[:, 0])
    masks = [train(task, seed, list(rates[:, 0])).losses for seed in (7, 8)]
    assert masks[0] != masks[1]


def test_dropout_is_off_in_an_evaluation() -> None:
    task = tiny_task(dropout)
    population = start(task, [0, 1])
    population.begin()
    first, second = population.evaluate("train"), population.evaluate("train")
    np.testing.assert_array_equal(first.losses, second.losses)


@pytest.mark.parametrize("engine", ["batched", "looped"])
def test_a_step_does_not_change_what_a_reader_kept(engine: str) -> None:
    population = start(tiny_task(), [0, 1], "momentum", gradients=engine)
    population.begin()
    kept, copied = (population.gradients, population.directions), (population.gradients.clone(), population.directions.clone())
    advance(population, np.full((3, 2), 0.1))
    assert all(torch.equal(a, b) for a, b in zip(kept, copied, strict=True))


def test_the_first_gradient_is_the_gradient_of_the_mean_loss() -> None:
    task = tiny_task()
    population = start(task, [0])
    population.begin()
    model = task.initial_model(0).double()
    inputs, targets = next(task.batches(0))
    F.cross_entropy(model(inputs.double()), targets).backward()
    np.testing.assert_allclose(population.gradients[0].numpy(), flat(parameter.grad for parameter in model.parameters()), rtol=1e-12, atol=1e-15)


def sequence_task() -> Task:
    text = torch.randint(5, (60, 9), generator=torch.Generator().manual_seed(0))
    model = partial(CharacterTransformer, 5, 8, width=8, num_heads=2, num_layers=1)
    return Task("text", model, "cross_entropy", Split(text[:, :-1], text[:, 1:]).divide(), batch_size=6)


def regression_task() -> Task:
    numbers = torch.randn(60, 7, generator=torch.Generator().manual_seed(0))
    return Task("numbers", partial(mlp, 4, (8,), 3), "mean_squared_error", Split(numbers[:, :4], numbers[:, 4:]).divide(), batch_size=6)


@pytest.mark.parametrize(("make", "criterion"), [(tiny_task, F.cross_entropy), (sequence_task, F.cross_entropy), (regression_task, F.mse_loss)])
def test_a_single_training_has_the_bits_of_the_loop_that_people_write(make: Callable[[], Task], criterion: Callable[..., Tensor]) -> None:
    task = make()
    population = start(task, [0], dtype="float32")
    model = task.initial_model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, (inputs, targets) in enumerate(islice(task.batches(0), 20)):
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        signals = population.step(np.full((1, 1), 0.1)) if number else population.begin()
        assert signals[0, 0, 0] == loss.item()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        assert torch.equal(population.gradients[0], gradients)
        optimizer.step()


@pytest.mark.parametrize("gradients", ["auto", "batched"])
@pytest.mark.parametrize("ruined", [[3], [0, 2], [0, 1, 2, 3]])
def test_weights_that_overflow_from_the_start_change_no_neighbour(gradients: str, ruined: list[int]) -> None:
    population = start(tiny_task(), [0, 1, 2, 3], "sgd", gradients=gradients)
    population.parameters[ruined] = torch.inf
    losses = population.begin()[0, 0]
    assert np.isfinite(losses).tolist() == [member not in ruined for member in range(4)]
    good = start(tiny_task(), [0, 1, 2, 3], "sgd", gradients=gradients).begin()[0, 0]
    np.testing.assert_array_equal(np.delete(losses, ruined), np.delete(good, ruined))
