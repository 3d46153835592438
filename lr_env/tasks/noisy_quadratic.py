"""The noisy quadratic: a task whose expected loss under any schedule is known in closed form (Schaul et al. 2013; Wu et al. 2018).

The loss of a step is ``½ Σ h_i w_i² + ξᵀw`` with fresh ``ξ_i ~ N(0, c_i)``, so that the gradient is ``h_i w_i + ξ_i``. The expected
squares of the weights follow ``E[w_i²] ← (1 − η h_i)² E[w_i²] + η² c_i``. Observations and rewards use the noise-free loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lr_env.tasks.task import Sampler, Split, Task


class QuadraticModel(nn.Module):
    """Holds the weights ``w (D,)``. Maps noise ``ξ (B, D)`` to ``(B, 2)``: the noisy loss and the noise-free loss."""

    curvatures: Tensor

    def __init__(self, curvatures: tuple[float, ...], initial_weights: tuple[float, ...]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(initial_weights, dtype=torch.float32))
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float32))

    def forward(self, noise: Tensor) -> Tensor:
        """``noise (B, D) -> losses (B, 2)``."""
        noise_free = 0.5 * (self.curvatures * self.weights.square()).sum()
        return torch.stack([noise_free + noise @ self.weights, noise_free.expand(noise.shape[0])], dim=1)


def _noisy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


def _noise_free_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 1]


def _sample(noise_variances: tuple[float, ...], generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    deviations = np.sqrt(np.asarray(noise_variances))
    noise = generator.standard_normal((count, len(deviations))) * deviations
    return torch.from_numpy(noise).float(), torch.zeros(count)


@dataclass(frozen=True)
class NoisyQuadratic:
    """A noisy quadratic and its oracle.

    Attributes:
        curvatures: ``h (D,)``, positive.
        noise_variances: ``c (D,)``, variances of the gradient noise, not negative.
        initial_weights: ``w_0 (D,)``.
        horizon: Number of SGD steps.
    """

    curvatures: tuple[float, ...]
    noise_variances: tuple[float, ...]
    initial_weights: tuple[float, ...]
    horizon: int

    def __post_init__(self) -> None:
        sizes = {len(self.curvatures), len(self.noise_variances), len(self.initial_weights)}
        if len(sizes) != 1 or sizes == {0}:
            raise ValueError("curvatures, noise_variances and initial_weights must have the same length, at least 1.")
        if min(self.curvatures) <= 0 or min(self.noise_variances) < 0 or self.horizon < 1:
            raise ValueError("curvatures must be > 0, noise_variances >= 0 and the horizon >= 1.")

    def task(self) -> Task:
        """The task ``"noisy-quadratic"``: batches of one noise vector."""
        dimension = len(self.curvatures)
        return Task(
            "noisy-quadratic",
            partial(QuadraticModel, self.curvatures, self.initial_weights),
            _noisy_loss,
            Sampler(partial(_sample, self.noise_variances), Split(torch.zeros(1, dimension), torch.zeros(1))),
            batch_size=1,
            horizon=self.horizon,
            observed_loss=_noise_free_loss,
        )

    def expected_losses(self, rates: np.ndarray) -> np.ndarray:
        """Expected noise-free loss before each step and after the last, ``(T + 1,)``, under a schedule of rates ``(T,)``."""
        curvatures, variances = np.array(self.curvatures), np.array(self.noise_variances)
        squares = np.square(self.initial_weights)
        losses = [0.5 * curvatures @ squares]
        for rate in rates:
            squares = (1 - rate * curvatures) ** 2 * squares + rate**2 * variances
            losses.append(0.5 * curvatures @ squares)
        return np.array(losses)

    def greedy_rates(self) -> np.ndarray:
        """The rate ``(T,)`` that minimises the expected loss after each single step (Schaul et al. 2013).

        ``η = Σ h_i² E[w_i²] / Σ h_i (h_i² E[w_i²] + c_i)``.
        """
        curvatures, variances = np.array(self.curvatures), np.array(self.noise_variances)
        squares = np.square(self.initial_weights)
        rates = []
        for _ in range(self.horizon):
            rate = (curvatures**2 @ squares) / (curvatures @ (curvatures**2 * squares + variances))
            squares = (1 - rate * curvatures) ** 2 * squares + rate**2 * variances
            rates.append(rate)
        return np.array(rates)

    def best_constant(self) -> float:
        """The constant rate with the lowest expected final loss."""
        from scipy.optimize import minimize_scalar  # here, as training on the task does not need it

        def final_loss(log_rate: float) -> float:
            return float(np.log(self.expected_losses(np.full(self.horizon, np.exp(log_rate)))[-1]))

        # The stability limit 2 / max(h) bounds the search; a grid finds the basin, Brent's method the minimum.
        grid = np.linspace(np.log(1e-6 / max(self.curvatures)), np.log(2 / max(self.curvatures)), 200)
        best = int(np.argmin([final_loss(point) for point in grid]))
        found = minimize_scalar(final_loss, bounds=(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]), method="bounded")
        return float(np.exp(found.x))

    def best_schedule(self) -> np.ndarray:
        """The open-loop schedule ``(T,)`` with the lowest expected final loss, by gradient descent through the recursion."""
        from scipy.optimize import minimize

        curvatures, variances = torch.tensor(self.curvatures).double(), torch.tensor(self.noise_variances).double()
        initial = torch.tensor(self.initial_weights).double().square()

        def objective(log_rates: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.tensor(log_rates, requires_grad=True)
            squares = initial
            for rate in parameters.exp():
                squares = (1 - rate * curvatures) ** 2 * squares + rate**2 * variances
            value = (0.5 * curvatures @ squares).log()
            (gradient,) = torch.autograd.grad(value, parameters)
            return value.item(), gradient.numpy()

        starts = [np.full(self.horizon, self.best_constant()), np.maximum(self.greedy_rates(), 1e-12)]
        solutions = [minimize(objective, np.log(start), jac=True, method="L-BFGS-B", options={"maxiter": 2000}) for start in starts]
        best: np.ndarray = np.exp(min(solutions, key=lambda solution: float(solution.fun)).x)
        return best


SHIPPED_QUADRATIC = NoisyQuadratic(curvatures=(1.0, 0.3), noise_variances=(10.0, 3.0), initial_weights=(3.0, 5.5), horizon=40)
