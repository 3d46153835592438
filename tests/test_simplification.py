"""Graphs without idle operations give the same bits."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lr_env.training.simplification import simplify
from lr_env.training.tracing import flat_graph

VALUES = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def twice_transposed(values: Tensor) -> Tensor:
    return values.t().t() * 2


def views_of_the_same_form(values: Tensor) -> Tensor:
    return values.view(4, 3).expand(4, 3).detach().view(12)


def constants(values: Tensor) -> Tensor:
    return values + torch.ones_like(values).div(3).neg() + torch.arange(3) * 2


def views_there_and_back(values: Tensor) -> Tensor:
    return values.unsqueeze(0).transpose(0, 1).select(1, 0) + values.view(3, 4).t().select(1, 0).unsqueeze(1)  # only the first is the same again


def a_changed_constant(values: Tensor) -> Tensor:
    zeros = torch.zeros_like(values)
    zeros[1] = values[1]  # writes into a view of it
    return zeros + values


def a_view_that_is_changed(values: Tensor) -> Tensor:
    own = values.clone()
    turned = own.t().t()
    turned += 1
    return own * turned


@pytest.mark.parametrize(
    ("function", "removed"),
    [
        (twice_transposed, {"t"}),
        (views_of_the_same_form, {"expand", "detach"}),
        (constants, {"ones_like", "div", "neg", "arange", "mul"}),
        (views_there_and_back, {"transpose"}),
        (a_changed_constant, set()),
        (a_view_that_is_changed, set()),
    ],
)
def test_the_same_bits_with_fewer_operations(function: object, removed: set[str]) -> None:
    graph = make_fx(function)(VALUES)
    before = {node.target.overloadpacket.__name__ for node in graph.graph.nodes if node.op == "call_function"}
    simplify(graph)
    after = {node.target.overloadpacket.__name__ for node in graph.graph.nodes if node.op == "call_function"}
    assert before - after == removed
    for other in (VALUES, VALUES.flip(0), VALUES * 3):  # and again: no run changes a constant
        assert torch.equal(graph(other), function(other))


def test_pooling_channels_last_gives_the_same_bits() -> None:
    def pooled(images: Tensor) -> Tensor:
        values, indices = torch.nn.functional.max_pool2d(images, 2, return_indices=True)
        return (values * 2).view(2, -1) + indices.view(2, -1)

    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = make_fx(pooled)(images)
    simplify(graph)
    assert any(node.kwargs.get("memory_format") is torch.channels_last for node in graph.graph.nodes)
    for other in (images, images.flip(0)):
        assert torch.equal(graph(other), pooled(other))


def test_pooling_of_what_is_channels_last_is_left_alone() -> None:
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    graph = make_fx(lambda values: F.max_pool2d(values, 2))(images)
    simplify(graph)
    assert not any(node.target is torch.ops.aten.clone.default for node in graph.graph.nodes)
    assert torch.equal(graph(images), F.max_pool2d(images, 2))


def test_the_gradient_of_a_layer_normalisation_runs_without_python() -> None:
    weight, bias = torch.full((3,), 2.0), torch.ones(3)

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():
            loss = F.layer_norm(leaves[0], (3,), *leaves[1:]).pow(3).sum()
        return torch.autograd.grad(loss, leaves)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation, and constants
        scripted = torch.jit.trace(flat_graph(gradients, (VALUES, weight, bias)), (VALUES, weight, bias), check_trace=False)
    for actual, expected in zip(scripted(VALUES + 1, weight, bias), gradients(VALUES + 1, weight, bias), strict=True):
        torch.testing.assert_close(actual, expected)
