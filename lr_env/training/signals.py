"""What a training step tells about itself beside the loss: signals, of which only those that are asked for are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from lr_env.training.gradients import ParameterLayout
from lr_env.training.parameter_groups import Grouping, parameter_groups

Signal: TypeAlias = Tensor
"""Of one number for each training ``(N,)``, or for each of its parameter groups ``(N, G)``."""

DIRECTION_SIGNALS = ("gradient_dot_direction", "direction_norm_squared", "direction_agreement", "slope_variance")
EXAMPLE_SIGNALS = ("slope_variance", "loss_variance")
VALIDATION_SIGNALS = ("validation_loss", "prediction_variance", "prediction_change_variance")

SIGNALS = (
    "gradient_norm_squared",
    "gradient_dot_previous",
    "gradient_dot_direction",
    "direction_norm_squared",
    "weight_norm_squared",
    "direction_agreement",
    "output_weight_mean",
    "output_weight_variance",
    *EXAMPLE_SIGNALS,
    *VALIDATION_SIGNALS,
)
"""Names of the signals beside the loss. The first six and ``slope_variance`` have a value for each parameter group: ‖g‖², ⟨g, g₋₁⟩, ⟨g, u⟩,
‖u‖², ‖w‖², the mean sign of u · u₋₁, and the variance of ⟨g_i, u⟩ over a minibatch's examples i. The others are the training's: mean and
variance of the weights of the output layer, the variance of the examples' losses, and of a fixed part of the validation split the loss,
the variance of the outputs, and that of their change since the step before."""

MEMBERS_AT_ONCE = 256
"""Whose products are taken together on a CPU."""


def signal_rows(names: frozenset[str]) -> list[str]:
    """The rows of the signals of a step: the loss first, then these in the order of :data:`SIGNALS`."""
    return ["loss", *(name for name in SIGNALS if name in names)]


class Groups:
    """The parameter groups of N models.

    Args:
        grouping: See :func:`parameter_groups`.
        layout: Of the parameters.
        device: Where they lie.

    Attributes:
        names: The parameters of each group, ``(G,)``.
        of_tensors: The group of each parameter tensor.
    """

    def __init__(self, grouping: Grouping, layout: ParameterLayout, device: torch.device) -> None:
        self.names = parameter_groups(grouping, list(layout.shapes))
        positions = {name: position for position, group in enumerate(self.names) for name in group}
        self._sizes = [shape.numel() for shape in layout.shapes.values()]
        self.of_tensors = tuple(positions[name] for name in layout.shapes)
        self._of_tensor = torch.tensor(self.of_tensors, device=device)
        self._of_weight = self._of_tensor.repeat_interleave(torch.tensor(self._sizes, device=device))
        sizes = torch.tensor(self._sizes, dtype=torch.float32, device=device)
        self._counts = torch.zeros(len(self.names), dtype=torch.float32, device=device).index_add(0, self._of_tensor, sizes)

    def __len__(self) -> int:
        return len(self.names)

    def expand(self, values: Tensor) -> Tensor:
        """Values of the groups ``(N, G)`` for each weight: ``(N, P)``, or ``(N, 1)`` for one group."""
        return values if len(self.names) == 1 else values.index_select(1, self._of_weight)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the weights of each group: ``(…, P) -> (…, G)``."""
        if len(self.names) == 1:
            return torch.sum(values, -1, keepdim=True)
        parts = torch.stack([part.sum(-1) for part in values.split(self._sizes, dim=-1)], dim=-1)
        zeros = torch.zeros((*values.shape[:-1], len(self.names)), dtype=values.dtype, device=values.device)
        return zeros.index_add(-1, self._of_tensor, parts)

    def means(self, values: Tensor) -> Tensor:
        """Means over the weights of each group: ``(…, P) -> (…, G)``."""
        means: Tensor = self.sums(values) / self._counts.to(values.dtype)
        return means

    def products(self, left: Tensor, right: Tensor) -> Signal:
        """Scalar products of ``(N, P)`` and ``(N, P)`` in each group, ``(N, G)``, or ``(N,)`` for one group."""
        if len(self.names) > 1:
            return self.sums(left * right)
        if len(left) == 1:  # of one vector these two operations cost less
            return (left * right).sum(1)
        products: Tensor
        if left is right:
            products = torch.linalg.vector_norm(left, dim=1).square()
            return products
        if left.is_cuda or len(left) <= MEMBERS_AT_ONCE:
            products = torch.linalg.vecdot(left, right)
            return products
        # It writes the factors' product first: of some members at a time this stays in the cache, and takes no memory that is new to the process.
        parts = zip(left.split(MEMBERS_AT_ONCE), right.split(MEMBERS_AT_ONCE), strict=True)
        return torch.cat([torch.linalg.vecdot(*part) for part in parts])


@dataclass(frozen=True)
class Step:
    """Of what signals are made.

    Attributes:
        losses: ``(N,)``.
        parameters: ``(N, P)``, as the following.
        gradients: At the parameters.
        directions: Of the optimizer.
        previous_gradients: Of the step before; 0 at the first. None where no signal is made of them.
        previous_directions: The same.
        output_weights: ``(N, K)``.
        examples: Gives the losses ``(N, B)`` and slopes ``⟨g_i, u⟩ (N, B, G)`` of the minibatch's examples; None where nobody asks.
        predictions: On the validation examples: losses ``(N,)``, outputs ``(N, M)`` and their change ``(N, M)``; None where nobody asks.
        known: Signals ``(N, G)``, or ``(N,)`` for one group, that need not be computed.
    """

    losses: Tensor
    parameters: Tensor
    gradients: Tensor
    directions: Tensor
    previous_gradients: Tensor | None
    previous_directions: Tensor | None
    output_weights: Tensor
    examples: Callable[[], tuple[Tensor, Tensor]] | None = None
    predictions: tuple[Tensor, Tensor, Tensor] | None = None
    known: Mapping[str, Signal] = field(default_factory=dict)


def measure(step: Step, names: frozenset[str], groups: Groups) -> Tensor:
    """The signals of a step, ``(R, G, N)``, float64, with the rows that :func:`signal_rows` names."""
    rows = signal_values(step, names, groups)
    if len(groups) == 1:
        return torch.stack([row.view(-1) for row in rows]).double().unsqueeze(1)
    return torch.stack([row.t() if row.dim() == 2 else row.expand(len(groups), -1) for row in rows]).double()


def signal_values(step: Step, names: frozenset[str], groups: Groups) -> list[Signal]:
    """The same, row by row."""
    factors = {
        "gradient_norm_squared": (step.gradients, step.gradients),
        "gradient_dot_previous": (step.gradients, step.previous_gradients),
        "gradient_dot_direction": (step.gradients, step.directions),
        "direction_norm_squared": (step.directions, step.directions),
        "weight_norm_squared": (step.parameters, step.parameters),
    }
    values: dict[str, Signal] = {"loss": step.losses, **step.known}
    # For SGD the direction is the gradient: the same product is taken once.
    products = {(id(left), id(right)): values[name] for name, (left, right) in factors.items() if name in values}
    for name in signal_rows(names):
        if name in factors:
            left, right = factors[name]
            key = (id(left), id(right))
            if key not in products:
                assert right is not None
                products[key] = groups.products(left, right)
            values[name] = products[key]
    if "direction_agreement" in names:
        assert step.previous_directions is not None
        values["direction_agreement"] = groups.means((step.directions * step.previous_directions).sign())
    if "output_weight_mean" in names:
        values["output_weight_mean"] = step.output_weights.mean(1)
    if "output_weight_variance" in names:
        values["output_weight_variance"] = step.output_weights.var(1, correction=0)
    if names.intersection(EXAMPLE_SIGNALS):
        assert step.examples is not None
        losses, slopes = step.examples()
        values |= {"loss_variance": losses.var(1, correction=0), "slope_variance": slopes.var(1, correction=0)}
    if step.predictions is not None:
        losses, outputs, changes = step.predictions
        variances = outputs.var(1, correction=0), changes.var(1, correction=0)
        values |= dict(zip(VALIDATION_SIGNALS, (losses, *variances), strict=True))
    return [values[name] for name in signal_rows(names)]
