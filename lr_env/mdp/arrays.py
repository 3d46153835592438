"""One formula for NumPy and for PyTorch.

The decision process is written once and runs on both: on NumPy's arrays, whose small operations cost less than PyTorch's, and on
PyTorch's tensors, where a whole decision is one graph on a GPU. Formulas use what both libraries have under the
same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = Any
"""A NumPy array, or a tensor of PyTorch."""

Record: TypeAlias = Mapping[str, Array]
"""Named rows ``(size, C)`` of a table, as views: ``record["age"][:] = 0`` writes into the table."""


def namespace(array: Array) -> Any:
    """The library of this array."""
    return torch if isinstance(array, torch.Tensor) else np


def constant(values: Any, device: torch.device | None) -> Array:
    """Values in float64 as a tensor on this device, or without one as an array."""
    array = np.array(values, np.float64)
    return array if device is None else torch.from_numpy(array).to(device)
