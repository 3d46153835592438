"""Naive implementations that read like the formulas; the fast ones are compared with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_env import Task
from lr_env.seeding import Streams, preserved_global_generators, seed_global_generators


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023 (arXiv 2302.06675)."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                m, g = self.state[parameter].get("m", torch.zeros_like(parameter)), parameter.grad
                update = torch.sign(beta1 * m + (1 - beta1) * g) + group["weight_decay"] * parameter
                parameter.sub_(group["lr"] * update)
                self.state[parameter]["m"] = beta2 * m + (1 - beta2) * g


def nadamw(parameters: Any, weight_decay: float = 0.01, **options: Any) -> torch.optim.Optimizer:
    """``torch.optim.NAdam`` with its product of momenta, which torch would keep in float32, in float64."""
    stepper = torch.optim.NAdam(parameters, weight_decay=weight_decay, decoupled_weight_decay=True, **options)
    for group in stepper.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            stepper.state[parameter] = {"step": torch.tensor(0.0), "mu_product": torch.ones((), dtype=torch.float64), **moments}
    return stepper


TORCH_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1.0),
    "momentum": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1.0, momentum=0.9, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
    "adam": partial(torch.optim.Adam, lr=1.0),
    "adamw": partial(torch.optim.AdamW, lr=1.0),
    "nadamw": partial(nadamw, lr=1.0),
    "lion": partial(Lion, lr=1.0),
}

OWN_MOMENTA = {"sgd": 0.0, "momentum": 0.9, "nesterov": 0.9, "adagrad": 0.0, "rmsprop": 0.0, "adam": 0.9, "adamw": 0.9, "nadamw": 0.9, "lion": 0.9}


@dataclass
class Training:
    """History of one training: T rates, and T + 1 losses, gradients, weights and directions at w_0, …, w_T."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    gradients: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    models: list[nn.Module] = field(default_factory=list)
    example_losses: list[list[float]] = field(default_factory=list)
    example_gradients: list[list[np.ndarray]] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)

    def look_closer(self, task: Task, inputs: Tensor, targets: Tensor) -> None:
        """Records what needs more than the minibatch's own gradient, of the present model; for splits of at most four minibatches."""
        losses, gradients, parameters = [], [], list(self.model.parameters())
        for i in range(len(inputs)):
            loss = task.loss(self.model(inputs[i : i + 1]), targets[i : i + 1]).mean()
            losses.append(loss.item())
            gradients.append(flat(torch.autograd.grad(loss, parameters)))
        validation = task.data.split("validation")
        self.example_losses.append(losses)
        self.example_gradients.append(gradients)
        self.validation_losses.append(mean_loss(task, self.model, validation.inputs, validation.targets))
        with torch.no_grad():
            self.predictions.append(self.model.eval()(validation.inputs.to(parameters[0].dtype)).numpy())
        self.model.train()


def train(
    task: Task, seed: int, rates: Sequence[float], optimizer: str = "sgd", dtype: torch.dtype = torch.float64, looks_closer: bool = False
) -> Training:
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
            if looks_closer:
                history.look_closer(task, inputs.to(dtype), targets)
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


def directions(gradients: Sequence[np.ndarray], optimizer: str, weights: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """Update directions at unit rate, from all gradients and weights so far (zeros where none are given)."""
    result = []
    momentum = first = second = squares = smooth = lion = np.zeros_like(gradients[0])
    mu = [0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in range(1, len(gradients) + 2)]
    for t, gradient in enumerate(gradients, start=1):
        decay = 0.01 * (np.zeros_like(gradient) if weights is None else weights[t - 1])
        momentum = 0.9 * momentum + gradient
        squares, smooth = squares + gradient**2, 0.99 * smooth + 0.01 * gradient**2
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        adam = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        ahead = (1 - mu[t - 1]) * gradient / (1 - np.prod(mu[:t])) + mu[t] * first / (1 - np.prod(mu[: t + 1]))
        result.append(
            {
                "sgd": gradient,
                "momentum": momentum,
                "nesterov": gradient + 0.9 * momentum,
                "adagrad": gradient / (np.sqrt(squares) + 1e-10),
                "rmsprop": gradient / (np.sqrt(smooth) + 1e-8),
                "adam": adam,
                "adamw": adam + decay,
                "nadamw": ahead / (np.sqrt(second / (1 - 0.999**t)) + 1e-8) + decay,
                "lion": np.sign(0.9 * lion + 0.1 * gradient),
            }[optimizer]
        )
        lion = 0.99 * lion + 0.01 * gradient
    return result


def average(values: Sequence[float], time_constant: float) -> float:
    """Exponential moving average that starts at the first value."""
    result = values[0]
    for value in values[1:]:
        result += (value - result) / max(time_constant, 1.0)
    return result


def features(task: Task, history: Training, rates: Sequence[float], optimizer: str, horizon: int) -> list[dict[str, float]]:
    """All features at w_0, …, w_T from the whole history; ``rates[0]`` is the initial rate, ``rates[t + 1]`` the one applied at step t."""
    lower_bound, norm = task.loss_lower_bound, np.linalg.norm
    units = directions(history.gradients, optimizer, history.weights)
    excess = [loss - lower_bound for loss in history.losses]
    logs = [log(max(value, 1e-6 * abs(excess[0]))) for value in excess]
    cosines, alignments, changes = [0.0], [0.0], [0.0]
    for t in range(1, len(excess)):
        g, before = history.gradients[t], history.gradients[t - 1]
        cosines.append(float(g @ before / norm(g) / norm(before)))
        alignments.append(float(np.sign(units[t] * units[t - 1]).mean()))
        changes.append(log(norm(g) / norm(before)))
    slopes = [[float(g @ u) for g in gradients] for gradients, u in zip(history.example_gradients, units, strict=True)]
    predictive = [log(rate**2 * np.var(values)) for rate, values in zip(rates, slopes, strict=True)]
    disagreement = [log(np.var(losses)) for losses in history.example_losses]
    rows = []
    for t, (g, u, w) in enumerate(zip(history.gradients, units, history.weights, strict=True)):
        so_far, window = logs[: t + 1], ([history.losses[0]] * 20 + history.losses[: t + 1])[-20:]
        short, long = (discounted(history.losses[: t + 1], discount)[0] for discount in (0.9, 0.99))
        outputs, output_weight = history.predictions[t], [p for p in history.models[t].parameters() if p.dim() > 1][-1].detach().numpy()
        row = {
            "log_loss": logs[t],
            "loss_ratio": average(so_far, 5) - logs[0],
            "loss_trend": 10 * (average(so_far, 5) - average(so_far, 20)),
            "loss_trend_of_horizon": 10 * (average(so_far, 0.01 * horizon) - average(so_far, 0.05 * horizon)),
            "log_gradient_norm": log(norm(g)),
            "gradient_norm_ratio": log(norm(g) / norm(history.gradients[0])),
            "gradient_cosine": cosines[t],
            "gradient_cosine_average": average(cosines[: t + 1], 5),
            "log_rate": log(rates[t]),
            "predicted_decrease": log(rates[t] * max(g @ u, 1e-38) / 10 ** logs[t]),
            "relative_update": log(rates[t] * norm(u) / norm(w)),
            "progress": t / horizon,
            "log_horizon": log(horizon) / 4,
            "momentum": -log(1 - OWN_MOMENTA[optimizer]),
            "minibatch_loss": history.losses[t],
            "predictive_change": predictive[t],
            "predictive_change_mean": discounted(predictive[: t + 1])[0],
            "predictive_change_uncertainty": discounted(predictive[: t + 1])[1],
            "disagreement": disagreement[t],
            "disagreement_mean": discounted(disagreement[: t + 1])[0],
            "disagreement_uncertainty": discounted(disagreement[: t + 1])[1],
            "alignment": alignments[t],
            "log_validation_loss": log(history.validation_losses[t] - lower_bound),
            "log_prediction_variance": log(np.var(outputs)),
            "log_prediction_change_variance": log(np.var(outputs - history.predictions[t - 1])) if t else -10,
            "output_weight_mean": output_weight.mean(),
            "log_output_weight_variance": log(output_weight.var()),
            "relative_loss_deviation": np.std(window) / abs(np.mean(window)),
            "loss_average_gap": (short - long) / abs(long),
            "log_base_rate": log(rates[t]),
            "previous_action": rates[t] if t else 0.0,
            "depth": 0.0,
            "log_weight_norm": log(norm(w)),
            "gradient_norm_change": changes[t],
        }
        rows.append({name: float(np.clip(value, -10, 10)) for name, value in row.items()})
    return rows


def log(value: float) -> float:
    return float(np.log10(value))


def discounted(values: Sequence[float], discount: float = 0.9) -> tuple[float, float]:
    """Discounted mean and uncertainty of Daniel et al. 2016, from the first value and 0."""
    mean, uncertainty = values[0], 0.0
    for value in values[1:]:
        mean = discount * mean + (1 - discount) * value
        uncertainty = discount * uncertainty + (1 - discount) * (value - mean) ** 2
    return mean, uncertainty


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
