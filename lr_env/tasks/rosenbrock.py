"""Rosenbrock's function: a narrow curved valley, whose floor is far flatter than its walls (Rosenbrock 1960).

``f(x, y) = (1 − x)² / 100 + (y − x²)²``: the usual function divided by 100, so that rates around 0.1 are stable. At its minimum (1, 1) the
curvatures differ by a factor of 2,500.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lr_env.tasks.task import Sampler, Split, Task

START = (-1.2, 1.0)
"""The usual start, on the far side of the valley's bend."""


class RosenbrockModel(nn.Module):
    """Holds ``weights (2,)``, drawn around :data:`START`; maps noise ``ξ (B, 2)`` to ``(B, 2)``: the noisy value and the noise-free value."""

    def __init__(self, start_deviation: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(START) + start_deviation * torch.randn(2))

    def forward(self, noise: Tensor) -> Tensor:
        """``noise (B, 2) -> values (B, 2)``."""
        x, y = self.weights.unbind()
        noise_free = (1 - x).square() / 100 + (y - x.square()).square()
        return torch.stack([noise_free + noise @ self.weights, noise_free.expand(noise.shape[0])], dim=1)


@dataclass(frozen=True)
class Rosenbrock:
    """Rosenbrock's function, with noise on its gradient if wanted.

    Attributes:
        noise_deviation: Standard deviation of each gradient component's noise, not negative.
        start_deviation: Standard deviation of each coordinate's start around (−1.2, 1), not negative.
        horizon: Number of SGD steps.
    """

    noise_deviation: float = 0.0
    start_deviation: float = 0.1
    horizon: int = 400

    def __post_init__(self) -> None:
        if not (self.noise_deviation >= 0 and self.start_deviation >= 0 and self.horizon >= 1):
            raise ValueError(f"noise_deviation and start_deviation must be >= 0 and the horizon >= 1, but {self} was given.")

    def task(self) -> Task:
        """The task ``"rosenbrock"``: batches of one noise vector; observations and rewards use the noise-free value."""
        return Task(
            "rosenbrock",
            partial(RosenbrockModel, self.start_deviation),
            _noisy_value,
            Sampler(partial(_sample, self.noise_deviation), Split(torch.zeros(1, 2), torch.zeros(1))),
            batch_size=1,
            horizon=self.horizon,
            observed_loss=_noise_free_value,
        )


def _noisy_value(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


def _noise_free_value(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 1]


def _sample(noise_deviation: float, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    noise = generator.standard_normal((count, 2)) * noise_deviation
    return torch.from_numpy(noise).float(), torch.zeros(count)
