"""The stochastic Polyak step size against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from agents import StochasticPolyak
from benchmarks.runner import run
from lr_env import make_task


def test_rates_equal_the_formula() -> None:
    task = make_task("digits-logreg")
    model, batches, expected = task.initial_model(3), task.batches(3), []
    for _ in range(30):
        inputs, targets = next(batches)
        loss = F.cross_entropy(model(inputs), targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rate = min(0.3 * loss.item() / sum(float(g.square().sum()) for g in gradients), 0.5)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= rate * gradient
        expected.append(rate)
    result = run(StochasticPolyak(0.3, cap=0.5).bind(), task, [3], horizon=30)
    np.testing.assert_allclose(result.rates[:, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("constant", [0.0, -1.0, float("nan")])
def test_refuses_impossible_constants(constant: float) -> None:
    with pytest.raises(ValueError, match="constant"):
        StochasticPolyak(constant)
