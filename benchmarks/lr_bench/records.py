"""What a benchmark runs and what comes out of it, as the engine makes them, the store keeps them and the analysis reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

Point: TypeAlias = Mapping[str, Any]
"""What was tuned, such as ``{"shape": "cosine", "rate": 0.1}``; empty where nothing is."""

CellRole: TypeAlias = Literal["tune", "report"]
"""Choices are made on trainings of ``tune`` alone; claims are made on those of ``report`` alone."""


@dataclass(frozen=True)
class Cell:
    """One controller on the trainings of one task: the unit of work.

    Attributes:
        suite: Name and version, ``"standard-1"``.
        track: The optimizer's name.
        task: The suite's name of the task.
        setting: All that the trainings of the task depend on, JSON-ready: the task's specification, horizon, examples that are evaluated.
        contestant: The name that tables show.
        identity: Digest of all that the contestant is: code, file, decision process. A changed one is another contestant.
        role: Whose seeds.
        point: What was tuned.
        seeds: One training each, ``(S,)``.
    """

    suite: str
    track: str
    task: str
    setting: Mapping[str, Any]
    contestant: str
    identity: str
    role: CellRole
    point: Point
    seeds: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """Digest of everything: cells with the same key are one result."""
        return _digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def trainings(self) -> str:
        """Digest of what the numbers depend on: cells that share it have one result, whatever contestants and suites they stand for."""
        point = {name: value for name, value in self.point.items() if name != "training_seed"}  # the identity says which controller
        return _digest([self.track, self.setting, self.identity, self.role, point, self.seeds])


@dataclass(frozen=True)
class CellResult:
    """What a controller achieved on the trainings of a cell.

    Attributes:
        scores: log10 of the loss of the final weights over the training split, above its bound, ``(S,)``; see
            :class:`benchmarks.runner.Result` for a diverged training's.
        diverged: ``(S,)``, booleans.
        test_losses: ``(S,)``.
        test_metrics: The task's metric for people, over the test split, ``(S,)``; None where the task has none.
        losses: Minibatch losses before each decision and after the last, ``(T + 1, S)``; None where curves were not kept.
        rates: Rates applied, ``(T, S)``; None where curves were not kept.
        seconds: Of one core, for all trainings of the cell.
        error: What went wrong, where nothing came out; then arrays are empty.
        extra_forward_passes: Beyond those of the trainings themselves, see :class:`benchmarks.runner.Result`, ``(S,)``; None where there are none.
        steps_per_action: SGD steps of a decision, but for the last one.
    """

    scores: np.ndarray
    diverged: np.ndarray
    test_losses: np.ndarray
    test_metrics: np.ndarray | None
    losses: np.ndarray | None
    rates: np.ndarray | None
    seconds: float
    error: str | None = None
    extra_forward_passes: np.ndarray | None = None
    steps_per_action: int = 1


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of several populations, ``(N_k,)`` or ``(T_k, N_k)``, as one: each has ended with its last training, and what is missing is not a number."""
    length = max(len(array) for array in arrays)
    if arrays[0].ndim == 2:
        arrays = [np.pad(array, ((0, length - len(array)), (0, 0)), constant_values=np.nan) for array in arrays]
    whole: np.ndarray = np.concatenate(arrays, -1)
    return whole


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
