"""A recurrent policy: an LSTM that reads one observation of a training after another and gives its rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lr_env.checks import positive_integer, unknown_name

Memory: TypeAlias = list[tuple[Tensor, Tensor]]
"""Of an LSTM: hidden and cell state ``(N, H)`` of each layer."""

RateOutput: TypeAlias = Literal["absolute", "log"]
OUTPUTS = ("absolute", "log")
LARGEST_EXPONENT = 300.0


class RecurrentPolicy(nn.Module):
    """An LSTM with a linear output y, whose action is the rate (``action="rate"``): what :class:`agents.OnlineActorCritic` learns, float64.

    Args:
        num_features: F.
        hidden: Units H of each layer.
        num_layers: Layers of the LSTM.
        output: ``"absolute"``: the rate is |y|; ``"log"``: y is its log10.
        lowest: Rates are clipped to this, > 0,
        highest: and to this.
        first_output: y before the first update, whatever is observed.

    Raises:
        ValueError: If a number is out of range or a name is unknown.
    """

    def __init__(
        self, num_features: int, hidden: int, num_layers: int, output: RateOutput, lowest: float, highest: float, first_output: float = 0.0
    ) -> None:
        super().__init__()
        self.num_features, self.hidden = positive_integer("num_features", num_features), positive_integer("hidden", hidden)
        self.num_layers = positive_integer("num_layers", num_layers)
        if output not in OUTPUTS:
            raise unknown_name("output", output, OUTPUTS)
        if not 0 < lowest <= highest < math.inf:
            raise ValueError(f"Rates need 0 < lowest <= highest, both finite, but {lowest!r} and {highest!r} were given.")
        self.kind_of_output, self.lowest, self.highest = output, float(lowest), float(highest)
        widths = [num_features, *[hidden] * num_layers]
        self.cells = nn.ModuleList(nn.LSTMCell(fan_in, fan_out, dtype=torch.float64) for fan_in, fan_out in pairwise(widths))
        self.output = nn.Linear(hidden, 1, dtype=torch.float64)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, first_output)

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments that make another one like this, JSON-ready."""
        sizes = {"num_features": self.num_features, "hidden": self.hidden, "num_layers": self.num_layers}
        return sizes | {"output": self.kind_of_output, "lowest": self.lowest, "highest": self.highest}

    @staticmethod
    def expected_shapes(architecture: Mapping[str, Any], most_layers: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name, without making them.

        Raises:
            ValueError: If there are more layers than ``most_layers``.
        """
        hidden, num_layers = architecture["hidden"], architecture["num_layers"]
        if num_layers > most_layers:
            raise ValueError(f"it claims {num_layers} layers")
        shapes: dict[str, tuple[int, ...]] = {"output.weight": (1, hidden), "output.bias": (1,)}
        for layer, width in enumerate([architecture["num_features"], *[hidden] * (num_layers - 1)]):
            shapes |= {f"cells.{layer}.weight_ih": (4 * hidden, width), f"cells.{layer}.weight_hh": (4 * hidden, hidden)}
            shapes |= {f"cells.{layer}.bias_ih": (4 * hidden,), f"cells.{layer}.bias_hh": (4 * hidden,)}
        return shapes

    def empty_memory(self, num_members: int = 1) -> Memory:
        """What the LSTM has before the first observation of N trainings."""
        zeros = self.output.weight.new_zeros(num_members, self.hidden)
        return [(zeros, zeros) for _ in self.cells]

    def forward(self, observations: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Observations ``(N, F)`` give y ``(N, 1)`` and the memory after them."""
        following: Memory = []
        values = observations
        for cell, before in zip(self.cells, memory, strict=True):
            following.append(cell(values, before))
            values = following[-1][0]
        return self.output(values), following

    def rates(self, outputs: Tensor) -> np.ndarray:
        """The rates of y, before they are clipped."""
        values: np.ndarray = outputs.numpy()
        return np.asarray(np.abs(values) if self.kind_of_output == "absolute" else 10.0 ** np.clip(values, -LARGEST_EXPONENT, LARGEST_EXPONENT))

    def clip(self, rates: np.ndarray) -> np.ndarray:
        """Rates within the range."""
        return np.asarray(np.clip(rates, self.lowest, self.highest))

    def predict(self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        """Rates ``(N, 1)``, see :class:`lr_env.controllers.Controller`; one observation ``(F,)`` gives one. Always deterministic.

        The state holds hidden and cell state of each layer in turn, ``(N, H)`` each.
        """
        observations = np.atleast_2d(np.asarray(observation, np.float64))
        if observations.ndim != 2 or observations.shape[1] != self.num_features:
            expected = f"(N, {self.num_features}) or ({self.num_features},)"
            raise ValueError(f"Observations of shape {expected} are expected, but {np.shape(observation)} was given.")
        memory = self.empty_memory(len(observations))
        if state is not None:
            going = np.ones(len(observations), bool) if episode_start is None else ~np.reshape(episode_start, len(observations)).astype(bool)
            kept = [torch.from_numpy(np.where(going[:, None], array, 0.0)) for array in state]
            memory = list(zip(kept[::2], kept[1::2], strict=True))
        with torch.no_grad():
            outputs, memory = self(torch.from_numpy(observations), memory)
        rates = self.clip(self.rates(outputs))
        return (rates if np.ndim(observation) == 2 else rates[0]), tuple(array.numpy() for pair in memory for array in pair)
