"""Naive implementations that read like the formulas; the fast ones are compared with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lr_env import Task
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators

TORCH_OPTIMIZERS: Mapping[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1.0),
}


@dataclass
class Training:
    """History of one training: T rates, and T + 1 losses, gradients, weights and directions at w_0, …, w_T."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)


def train(task: Task, seed: int, rates: Sequence[float], optimizer: str = "sgd", dtype: torch.dtype = torch.float64) -> Training:
    """The loop that anybody would write with ``torch.optim``."""
    batches = task.batches(seed)
    with preserved_global_generators():
        seed_global_generators(Streams(seed).weights)
        history = Training(task.initialise().to(dtype))
        model = history.model
        stepper = TORCH_OPTIMIZERS[optimizer](model.parameters())
        for rate in [*rates, None]:
            inputs, targets = next(batches)
            stepper.zero_grad()
            outputs = model(inputs.to(dtype))
            loss = task.loss(outputs, targets).mean()
            loss.backward()
            history.losses.append(loss.item())
            history.weights.append(flat(parameter for parameter in model.parameters()))
            history.gradients.append(flat(gradient_of(parameter) for parameter in model.parameters()))
            history.models.append(copy.deepcopy(model))
            if rate is not None:
                stepper.param_groups[0]["lr"] = rate
                stepper.step()
    return history


def flat(tensors: Iterable[Tensor]) -> np.ndarray:
    """All values in one float64 vector."""
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient; zero where the loss does not depend on the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def mean_loss(task: Task, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Mean loss of a model in evaluation mode; the model is left in training mode."""
    with torch.no_grad():
        loss = task.loss(model.eval()(inputs.to(next(model.parameters()).dtype)), targets).mean().item()
    model.train()
    return loss


def directions(gradients: Sequence[np.ndarray], optimizer: str) -> list[np.ndarray]:
    """Update directions at unit rate, from all gradients so far."""
    result = []
    momentum = first = second = np.zeros_like(gradients[0])
    for t, gradient in enumerate(gradients, start=1):
        momentum = 0.9 * momentum + gradient
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        result.append(
            {
                "sgd": gradient,
                "momentum": momentum,
                "nesterov": gradient + 0.9 * momentum,
                "adam": first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8),
            }[optimizer]
        )
    return result


def average(values: Sequence[float], time_constant: float) -> float:
    """Exponential moving average that starts at the first value."""
    result = values[0]
    for value in values[1:]:
        result += (value - result) / max(time_constant, 1.0)
    return result


def features(history: Training, rates: Sequence[float], optimizer: str, horizon: int, lower_bound: float = 0.0) -> list[dict[str, float]]:
    """All features at w_0, …, w_T from the whole history; ``rates[0]`` is the initial rate, ``rates[t + 1]`` the one applied at step t."""
    units = directions(history.gradients, optimizer)
    excess = [loss - lower_bound for loss in history.losses]
    logs = [float(np.log10(max(value, 1e-6 * abs(excess[0])))) for value in excess]
    cosines = [0.0]
    for g, before in zip(history.gradients[1:], history.gradients, strict=False):
        cosines.append(float(g @ before / np.linalg.norm(g) / np.linalg.norm(before)))
    rows = []
    for t, (g, u, w) in enumerate(zip(history.gradients, units, history.weights, strict=True)):
        so_far, norm = logs[: t + 1], np.linalg.norm
        row = {
            "log_loss": logs[t],
            "loss_ratio": average(so_far, 5) - logs[0],
            "loss_trend": 10 * (average(so_far, 5) - average(so_far, 20)),
            "loss_trend_of_horizon": 10 * (average(so_far, 0.01 * horizon) - average(so_far, 0.05 * horizon)),
            "log_gradient_norm": np.log10(norm(g)),
            "gradient_norm_ratio": np.log10(norm(g) / norm(history.gradients[0])),
            "gradient_cosine": cosines[t],
            "gradient_cosine_average": average(cosines[: t + 1], 5),
            "log_rate": np.log10(rates[t]),
            "predicted_decrease": np.log10(rates[t] * max(g @ u, 1e-38) / 10 ** logs[t]),
            "relative_update": np.log10(rates[t] * norm(u) / norm(w)),
            "progress": t / horizon,
            "log_horizon": np.log10(horizon) / 4,
        }
        rows.append({name: float(np.clip(value, -10, 10)) for name, value in row.items()})
    return rows


def quadratic_expected_losses(
    curvatures: Sequence[float], noise_variances: Sequence[float], initial_weights: Sequence[float], rates: Sequence[float]
) -> list[float]:
    """E[½ Σ h w²] before each step and after the last: E[w²] ← (1 − η h)² E[w²] + η² c, coordinate by coordinate."""
    squares = [weight**2 for weight in initial_weights]
    losses = []
    for rate in [*rates, None]:
        losses.append(sum(0.5 * h * square for h, square in zip(curvatures, squares, strict=True)))
        if rate is not None:
            squares = [(1 - rate * h) ** 2 * square + rate**2 * c for h, c, square in zip(curvatures, noise_variances, squares, strict=True)]
    return losses
