"""The target models of tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from lr_env.tasks.models import CharacterTransformer, cnn, mlp
from lr_env.tasks.task import LOSSES


def _cnn() -> nn.Module:
    return cnn((1, 10, 13), (3, 4), 5)


def _transformer() -> nn.Module:
    return CharacterTransformer(vocabulary_size=7, context=6, width=8, num_heads=2, num_layers=2)


def _images() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 10, 13), torch.randint(5, (4,))


def _tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(7, (4, 6)), torch.randint(7, (4, 6))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_shapes() -> None:
    assert mlp(6, (5, 4), 3)(torch.randn(2, 6)).shape == (2, 3)
    assert _cnn()(_images()[0]).shape == (4, 5)
    assert _transformer()(_tokens()[0]).shape == (4, 7, 6)
    assert _transformer()(_tokens()[0][:, :3]).shape == (4, 7, 3)


def test_cnn_pools_once_per_convolution() -> None:
    shapes = [tuple(parameter.shape) for parameter in cnn((1, 28, 28), (8, 16), 10).parameters()]
    assert shapes == [(8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (10, 16 * 7 * 7), (10,)]


def test_transformer_sees_earlier_tokens_alone() -> None:
    model, (tokens, _) = _transformer(), _tokens()
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    before, after = model(tokens), model(changed)
    assert torch.equal(before[..., :3], after[..., :3])
    for later in (3, 4, 5):
        assert not torch.allclose(before[..., later], after[..., later])


def test_transformer_refuses_a_width_that_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads"):
        CharacterTransformer(vocabulary_size=7, context=6, width=9, num_heads=2, num_layers=1)


@pytest.mark.filterwarnings("error:.*performance drop.*")  # an operation without a batching rule
@pytest.mark.parametrize(("make_model", "make_batch"), [(_cnn, _images), (_transformer, _tokens)])
def test_gradients_mapped_over_stacked_parameters_equal_a_loop(
    make_model: Callable[[], nn.Module], make_batch: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    models, batches = [make_model() for _ in range(3)], [make_batch() for _ in range(3)]
    parameters, _ = stack_module_state(models)

    def loss(own: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return LOSSES["cross_entropy"](functional_call(models[0], own, (inputs,)), targets).mean()

    inputs, targets = (torch.stack(parts) for parts in zip(*batches, strict=True))
    mapped = vmap(grad(loss))(parameters, inputs, targets)
    for i, (model, batch) in enumerate(zip(models, batches, strict=True)):
        looped = grad(loss)(dict(model.named_parameters()), *batch)
        for name, gradient in looped.items():
            torch.testing.assert_close(mapped[name][i], gradient, rtol=1e-4, atol=1e-6)
