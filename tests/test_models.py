"""The target models of tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from lr_env.tasks.models import CharacterTransformer, ProductConvolution, ProductPooling, cnn, image_mlp, mlp, resnet
from lr_env.tasks.task import LOSSES


def _cnn() -> nn.Module:
    return cnn((1, 10, 13), (3, 4), 5)


def _resnet() -> nn.Module:
    return resnet((1, 10, 13), (4, 8), 5, num_groups=2)


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
    assert _resnet()(_images()[0]).shape == (4, 5)
    assert image_mlp((1, 10, 13), (6,), 5)(_images()[0]).shape == (4, 5)
    assert _transformer()(_tokens()[0]).shape == (4, 7, 6)
    assert _transformer()(_tokens()[0][:, :3]).shape == (4, 7, 3)


def test_cnn_pools_once_per_convolution() -> None:
    shapes = [tuple(parameter.shape) for parameter in cnn((1, 28, 28), (8, 16), 10).parameters()]
    assert shapes == [(8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (10, 16 * 7 * 7), (10,)]


def test_resnet_equals_its_formula() -> None:
    model, (images, _) = _resnet(), _images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # normalisations start as ones and zeros
    p = dict(model.named_parameters())

    def normalised(values: Tensor, name: str) -> Tensor:
        groups = values.reshape(len(values), 2, -1)  # two groups of channels
        deviation = (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        standardised = ((groups - groups.mean(-1, keepdim=True)) / deviation).view_as(values)
        return F.relu(standardised * p[f"{name}.weight"].view(-1, 1, 1) + p[f"{name}.bias"].view(-1, 1, 1))

    hidden = F.conv2d(images, p["0.weight"], padding=1)
    activated = normalised(hidden, "1.activation.0")
    inner = normalised(F.conv2d(activated, p["1.residual.0.weight"], padding=1), "1.residual.1")
    hidden = hidden + F.conv2d(inner, p["1.residual.3.weight"], padding=1)
    activated = normalised(hidden, "2.activation.0")
    inner = normalised(F.conv2d(activated, p["2.residual.0.weight"], stride=2, padding=1), "2.residual.1")
    hidden = F.conv2d(activated, p["2.shortcut.weight"], stride=2) + F.conv2d(inner, p["2.residual.3.weight"], padding=1)
    assert hidden.shape == (4, 8, 5, 7)
    expected = normalised(hidden, "3").mean((2, 3)) @ p["7.weight"].t() + p["7.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


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
@pytest.mark.parametrize(("make_model", "make_batch"), [(_cnn, _images), (_resnet, _images), (_transformer, _tokens)])
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


def test_convolutions_as_products_equal_convolutions() -> None:
    images = torch.randn(5, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for as_products in (False, True):
        torch.manual_seed(3)
        model = cnn((2, 7, 6), (3, 4), 10, as_products=as_products).double()
        gradients = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
        results.append((*model.parameters(), model(images), *gradients))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)


def test_products_keep_examples_last_in_memory() -> None:
    images = ProductConvolution(2, 3)(torch.randn(5, 2, 7, 6))
    pooled = ProductPooling()(images)
    assert images.permute(1, 2, 3, 0).is_contiguous()
    assert pooled.permute(1, 2, 3, 0).is_contiguous()
    assert torch.equal(pooled, F.max_pool2d(images, 2))
    assert torch.equal(ProductPooling()(images.contiguous()), pooled)
