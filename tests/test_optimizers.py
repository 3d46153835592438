"""Update directions against ``torch.optim``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from lr_env.seeding import Streams
from lr_env.training import OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, Lion, NAdamW, RMSprop, make_optimizer
from lr_env.training.optimizers import Optimizer
from tests.reference import TORCH_OPTIMIZERS, directions
from tests.rollouts import advance, start, tiny_task

STEPS, MEMBERS, GROUPS = 200, 2, (3, 4)

CASES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in OPTIMIZERS},
    **{f"{name}, weight decay": (name, {"weight_decay": 0.1}, {"weight_decay": 0.1}) for name in OPTIMIZERS},
    "momentum 0.5": ("momentum", {"momentum": 0.5}, {"momentum": 0.5}),
    "adagrad, others": ("adagrad", {"epsilon": 1e-3, "initial_accumulator": 0.5}, {"eps": 1e-3, "initial_accumulator_value": 0.5}),
    "rmsprop, momentum": ("rmsprop", {"momentum": 0.9}, {"momentum": 0.9}),
    "rmsprop, centered": ("rmsprop", {"centered": True}, {"centered": True}),
    "rmsprop, others": (
        "rmsprop",
        {"smoothing": 0.9, "epsilon": 1e-3, "momentum": 0.8, "centered": True},
        {"alpha": 0.9, "eps": 1e-3, "momentum": 0.8, "centered": True},
    ),
    "adam, others": ("adam", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "adamw, others": ("adamw", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "nadamw, others": ("nadamw", {"beta1": 0.8, "momentum_decay": 0.1}, {"betas": (0.8, 0.999), "momentum_decay": 0.1}),
    "lion, others": ("lion", {"beta1": 0.7, "beta2": 0.8}, {"betas": (0.7, 0.8)}),
}
"""By title: name, hyperparameters, and how torch calls them."""

TOLERANCES = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def test_all_optimizers_are_tested() -> None:
    assert set(OPTIMIZERS) == set(TORCH_OPTIMIZERS)


class Problem:
    """Noisy gradients ``w + ξ_t``; rates per step, member and group; optionally momenta too."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = np.random.default_rng(0)
        size = sum(GROUPS)
        self.start = torch.from_numpy(generator.normal(size=(MEMBERS, size))).to(dtype)
        self.noise = torch.from_numpy(generator.normal(size=(STEPS, MEMBERS, size))).to(dtype)
        self.rates = generator.uniform(0.01, 0.1, (STEPS, MEMBERS, len(GROUPS)))
        self.momenta = generator.uniform(0.1, 0.95, (STEPS, MEMBERS, len(GROUPS)))

    def own_weights(self, optimizer: Optimizer, momenta: np.ndarray | None = None, as_torch: bool = False) -> torch.Tensor:
        """``(STEPS, MEMBERS, P)``, all members together; momenta ``(STEPS, MEMBERS, G)`` or ``(STEPS, MEMBERS, 1)``."""
        weights, state = self.start, optimizer.initial_state(self.start)
        history = []
        for t in range(STEPS):
            momentum = None if momenta is None else expanded(momenta[t])
            steps = torch.full((MEMBERS, 1), t + 1)
            direction, state = optimizer.directions(weights + self.noise[t], weights, state, steps, momentum)
            if as_torch and isinstance(optimizer, Adam):
                weights = optimizer.stepped(weights, expanded(self.rates[t]), state, steps, momentum)
            else:
                weights = torch.addcmul(weights, direction, expanded(self.rates[t]).to(weights.dtype), value=-1)
            history.append(weights)
        return torch.stack(history)

    def torch_weights(self, name: str, options: dict[str, Any], clip_norm: float | None = None, momenta: np.ndarray | None = None) -> torch.Tensor:
        """The same, one member at a time, with ``torch.optim``'s parameter groups."""
        members = []
        for member in range(MEMBERS):
            tensors = [part.clone().requires_grad_() for part in self.start[member].split(GROUPS)]
            stepper = TORCH_OPTIMIZERS[name]([{"params": [tensor]} for tensor in tensors], **options)
            history = []
            for t in range(STEPS):
                for g, (tensor, noise) in enumerate(zip(tensors, self.noise[t, member].split(GROUPS), strict=True)):
                    tensor.grad = tensor.detach() + noise
                    group = stepper.param_groups[g]
                    group["lr"] = self.rates[t, member, g]
                    if momenta is not None and "betas" in group:
                        group["betas"] = (momenta[t, member, g], group["betas"][1])
                    elif momenta is not None:
                        group["momentum"] = momenta[t, member, g]
                if clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(tensors, clip_norm)
                stepper.step()
                history.append(torch.cat(tensors).detach().clone())
            members.append(torch.stack(history))
        return torch.stack(members, 1)


def expanded(groups: np.ndarray) -> torch.Tensor:
    """``(MEMBERS, G)``, one value for each group, as ``(MEMBERS, P)``; ``(MEMBERS, 1)`` as it is."""
    return torch.from_numpy(groups if groups.shape[1] == 1 else groups.repeat(GROUPS, 1))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("clip_norm", [None, 1.5])
@pytest.mark.parametrize("case", CASES)
def test_200_steps_equal_torch_optim(case: str, clip_norm: float | None, dtype: torch.dtype) -> None:
    name, own_options, torch_options = CASES[case]
    optimizer, _ = make_optimizer({"name": name, "clip_norm": clip_norm, **own_options})
    problem = Problem(dtype)
    expected = problem.torch_weights(name, torch_options, clip_norm)
    torch.testing.assert_close(problem.own_weights(optimizer), expected, **TOLERANCES[dtype])


@pytest.mark.parametrize("with_momenta", [False, True])
@pytest.mark.parametrize("case", [case for case, (name, _, _) in CASES.items() if name in ("sgd", "momentum", "nesterov", "adam", "adamw")])
def test_the_bits_of_torch_optim(case: str, with_momenta: bool) -> None:
    name, own_options, torch_options = CASES[case]
    optimizer, _ = make_optimizer({"name": name, **own_options})
    problem = Problem(torch.float32)
    momenta = problem.momenta if with_momenta and optimizer.has_momentum else None
    expected = problem.torch_weights(name, torch_options, momenta=momenta)
    assert torch.equal(problem.own_weights(optimizer, momenta, as_torch=True), expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("of_groups", [True, False])
@pytest.mark.parametrize("case", [title for title, (name, options, _) in CASES.items() if make_optimizer({"name": name, **options})[0].has_momentum])
def test_a_momentum_that_changes_at_each_step_equals_torch_optim(case: str, of_groups: bool, dtype: torch.dtype) -> None:
    name, own_options, torch_options = CASES[case]
    optimizer, _ = make_optimizer({"name": name, **own_options})
    problem = Problem(dtype)
    momenta = problem.momenta if of_groups else problem.momenta[..., :1]
    expected = problem.torch_weights(name, torch_options, momenta=np.broadcast_to(momenta, problem.momenta.shape))
    torch.testing.assert_close(problem.own_weights(optimizer, momenta), expected, **TOLERANCES[dtype])


@pytest.mark.parametrize("case", [title for title, (name, options, _) in CASES.items() if make_optimizer({"name": name, **options})[0].has_momentum])
def test_a_momentum_as_large_as_the_constant_changes_nothing(case: str) -> None:
    name, options, _ = CASES[case]
    optimizer: Any = make_optimizer({"name": name, **options})[0]
    constant = getattr(optimizer, "momentum", None) or optimizer.beta1
    problem = Problem()
    with_momenta = problem.own_weights(optimizer, np.full((STEPS, MEMBERS, 1), constant))
    torch.testing.assert_close(with_momenta, problem.own_weights(optimizer), rtol=1e-12, atol=1e-14)


def test_which_optimizers_have_a_momentum() -> None:
    having = [name for name in OPTIMIZERS if make_optimizer(name)[0].has_momentum]
    assert having == ["momentum", "nesterov", "adam", "adamw", "nadamw", "lion"]
    assert make_optimizer({"name": "rmsprop", "momentum": 0.0})[0].has_momentum
    assert make_optimizer({"name": "momentum", "momentum": 0.0})[0].has_momentum


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop"])
def test_a_momentum_is_refused_by_optimizers_that_have_none(name: str) -> None:
    optimizer, _ = make_optimizer(name)
    parameters = torch.ones(1, 2)
    with pytest.raises(ValueError, match="has no momentum that could be set; use an optimizer that has one"):
        optimizer.directions(parameters, parameters, optimizer.initial_state(parameters), torch.ones(1, 1), torch.full((1, 1), 0.9))


def test_a_constant_gradient_leaves_centered_rmsprop_finite() -> None:
    optimizer, _ = make_optimizer({"name": "rmsprop", "centered": True})
    gradients = torch.linspace(0.1, 10, 1000).unsqueeze(0)
    state = optimizer.initial_state(gradients)
    for t in range(2500):
        direction, state = optimizer.directions(gradients, gradients, state, torch.tensor([[t + 1]]))
    assert torch.isfinite(direction).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_batched_and_looped_populations_agree(name: str) -> None:
    task, rates = tiny_task(), np.random.default_rng(0).uniform(0.001, 0.05, (20, 3))
    options = {"name": name, "weight_decay": 0.1, "clip_norm": 0.5}
    populations = [start(task, range(3), options, gradients=engine) for engine in ("batched", "looped")]
    losses = [advance(population, rates) for population in populations]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restarted_member_has_the_bits_of_a_fresh_one(name: str) -> None:
    task, rates = tiny_task(), np.random.default_rng(0).uniform(0.001, 0.05, (15, 2))
    options = {"name": name, "weight_decay": 0.1, "clip_norm": 0.5}
    used, fresh = start(task, [0, 1], options), start(task, [0, 7], options)
    advance(used, rates)
    used.restart(np.array([1]), [Streams(7)])
    used.begin(np.array([1]))
    fresh.begin()
    for rate in rates:
        np.testing.assert_array_equal(used.step(np.full((2, 1), rate[1]))[..., 1], fresh.step(np.full((2, 1), rate[1]))[..., 1])
    for key, value in used.state.items():
        assert torch.equal(value[1], fresh.state[key][1]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_directions_follow_the_formulas(name: str) -> None:
    gradients = torch.randn(12, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer, _ = make_optimizer(name)
    state = optimizer.initial_state(gradients[0])
    expected = directions([gradient[0].numpy() for gradient in gradients], name)
    actual = []
    for t, gradient in enumerate(gradients):
        direction, state = optimizer.directions(gradient, torch.zeros_like(gradient), state, torch.tensor([[t + 1]]))
        actual.append(direction)
    for a, e in zip(actual, expected, strict=True):  # all were computed before: a direction must not be changed by the next step
        torch.testing.assert_close(a[0], torch.from_numpy(e), rtol=1e-12, atol=1e-14)


def test_members_of_different_age_keep_their_own_bias_correction() -> None:
    optimizer, _ = make_optimizer("adam")
    gradients = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state = optimizer.initial_state(gradients)
    directions_together, _ = optimizer.directions(gradients, gradients, state, torch.tensor([[1], [50]]))
    for member, age in enumerate((1, 50)):
        alone = optimizer.initial_state(gradients[:1])
        own = gradients[member : member + 1]
        direction, _ = optimizer.directions(own, own, alone, torch.tensor([[age]]))
        torch.testing.assert_close(direction[0], directions_together[member])


def test_hyperparameters_are_taken() -> None:
    assert make_optimizer({"name": "adam", "beta1": 0.95})[0] == Adam(beta1=0.95)
    assert make_optimizer({"name": "momentum", "momentum": 0.5})[0] == SGD(momentum=0.5)
    assert make_optimizer("nesterov")[0] == SGD(momentum=0.9, nesterov=True)
    assert make_optimizer("adagrad")[0] == AdaGrad(epsilon=1e-10)
    assert make_optimizer({"name": "rmsprop", "smoothing": 0.9})[0] == RMSprop(smoothing=0.9)
    assert make_optimizer("adamw")[0] == AdamW(weight_decay=0.01)
    assert make_optimizer({"name": "nadamw", "weight_decay": 0})[0] == NAdamW(weight_decay=0.0)
    assert make_optimizer({"name": "lion", "clip_norm": 1})[0] == Lion(clip_norm=1.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_initial_rate_lies_in_its_range(name: str) -> None:
    _, rates = make_optimizer(name)
    assert 0 < rates.lowest < rates.initial < rates.highest


def test_the_user_s_mapping_is_not_changed() -> None:
    specification = {"name": "adam", "beta1": 0.95}
    make_optimizer(specification)
    assert specification == {"name": "adam", "beta1": 0.95}


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("adm", "Unknown optimizer 'adm'. Did you mean 'adam'"),
        ({"momentum": 0.9}, "mapping must have a name, such as .*, but {'momentum': 0.9} was given"),
        ({"name": "adam", "beta": 0.9}, "Unknown hyperparameter of optimizer 'adam' 'beta'. Did you mean"),
        ({"name": "momentum", "momentum": 1.0}, r"momentum must be in \[0, 1\), but 1.0 was given"),
        ({"name": "sgd", "nesterov": True}, "Nesterov's momentum needs a momentum > 0"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon must be finite and > 0, but 0.0"),
        ({"name": "rmsprop", "smoothing": -0.1}, r"smoothing must be in \[0, 1\), but -0.1 was given"),
        ({"name": "rmsprop", "alpha": 0.9}, "Unknown hyperparameter of optimizer 'rmsprop' 'alpha'"),
        ({"name": "rmsprop", "centered": 1}, "centered must be True or False, but 1 was given"),
        ({"name": "adagrad", "momentum": 0.9}, "Unknown hyperparameter of optimizer 'adagrad' 'momentum'"),
        ({"name": "adagrad", "initial_accumulator": -1.0}, "initial_accumulator must be finite and >= 0, but -1.0"),
        ({"name": "adamw", "weight_decay": -0.1}, "weight_decay must be finite and >= 0, but -0.1"),
        ({"name": "adamw", "weight_decay": float("nan")}, "weight_decay must be finite and >= 0, but nan"),
        ({"name": "nadamw", "momentum_decay": None}, "momentum_decay must be finite and >= 0, but None"),
        ({"name": "lion", "beta1": "0.9"}, r"beta1 must be in \[0, 1\), but '0.9' was given"),
        ({"name": "sgd", "clip_norm": 0}, "clip_norm must be finite and > 0, but 0 was given"),
        ({"name": "sgd", "clip_norm": True}, "clip_norm must be finite and > 0, but True was given"),
        ({"name": "adam", "beta2": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_wrong_specifications_are_refused(specification: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(specification)
