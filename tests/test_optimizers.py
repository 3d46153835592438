"""Update directions against ``torch.optim``."""

from __future__ import annotations

import pytest
import torch

from lr_env.training import OPTIMIZERS, SGD, Adam, make_optimizer
from tests.reference import TORCH_OPTIMIZERS, directions


def test_all_optimizers_are_tested() -> None:
    assert set(OPTIMIZERS) == set(TORCH_OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_torch_optim(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    gradients = torch.randn(30, 3, 7, dtype=torch.float64, generator=generator)
    rates = torch.rand(30, 3, 1, dtype=torch.float64, generator=generator)
    optimizer, _ = make_optimizer(name)
    own, state = parameters.clone(), optimizer.initial_state(parameters)
    for t in range(30):
        direction, state = optimizer.directions(gradients[t], own, state, torch.full((3, 1), t + 1))
        own -= rates[t] * direction
    for member in range(3):  # each member with its own rates
        theirs = parameters[member].clone().requires_grad_()
        stepper = TORCH_OPTIMIZERS[name]([theirs])
        for t in range(30):
            theirs.grad = gradients[t, member].clone()
            stepper.param_groups[0]["lr"] = rates[t, member].item()
            stepper.step()
        torch.testing.assert_close(own[member], theirs.detach(), rtol=1e-12, atol=1e-14)


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


def test_the_user_s_mapping_is_not_changed() -> None:
    specification = {"name": "adam", "beta1": 0.95}
    make_optimizer(specification)
    assert specification == {"name": "adam", "beta1": 0.95}


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("adm", "Unknown optimizer 'adm'. Did you mean 'adam'"),
        ({"momentum": 0.9}, "Unknown optimizer 'None'"),
        ({"name": "adam", "beta": 0.9}, "Unknown hyperparameter of optimizer 'adam' 'beta'. Did you mean"),
        ({"name": "momentum", "momentum": 1.0}, r"momentum must be in \[0, 1\), but 1.0 was given"),
        ({"name": "sgd", "nesterov": True}, "Nesterov's momentum needs a momentum > 0"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon > 0"),
        ({"name": "adam", "beta2": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_wrong_specifications_are_refused(specification: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(specification)
