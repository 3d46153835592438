"""Target models of the built-in tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(num_inputs: int, hidden: Sequence[int], num_outputs: int) -> nn.Module:
    """A multilayer perceptron with ReLU between its layers, initialised as ``torch.nn.Linear`` does."""
    widths = [num_inputs, *hidden, num_outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
