"""The critic's network; the actor's is :class:`lr_env.controllers.PolicyNetwork`, so that a trained actor is a controller."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from lr_env.seeding import preserved_global_generators
from torch import Tensor, nn


class CriticNetwork(nn.Module):
    """Q(s, a): a multilayer perceptron on observation and action, with layer normalisation against overestimation far from the data.

    Args:
        num_features: F.
        num_actions: A.
        hidden: Widths of the hidden layers.
        seed: Seed of the initial weights.
    """

    def __init__(self, num_features: int, num_actions: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__()
        widths = [num_features + num_actions, *hidden]
        with preserved_global_generators():
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            for fan_in, fan_out in pairwise(widths):
                layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """``(B, F), (B, A) -> (B,)``."""
        values: Tensor = self.layers(torch.cat([observations, actions], dim=1))
        return values.squeeze(1)
