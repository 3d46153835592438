"""Checks of arguments, with errors that say what was given and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np


def unknown_name(what: str, given: object, valid: Iterable[str]) -> ValueError:
    """An error that says what was given, the nearest valid names and all valid names.

    Args:
        what: What the name stands for, such as ``"task"``.
        given: What the user gave.
        valid: All names that would have been accepted.
    """
    names = sorted(valid)
    nearest = difflib.get_close_matches(str(given), names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(name) for name in nearest)}?" if nearest else ""
    return ValueError(f"Unknown {what} {given!r}.{hint} Valid: {', '.join(names)}.")


def positive_integer(name: str, value: object) -> int:
    """``value`` as an ``int``.

    Raises:
        ValueError: If it is no integer, or below 1.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or value.__index__() < 1:
        raise ValueError(f"{name} must be an integer >= 1, but {value!r} was given.")
    return value.__index__()


def number(name: str, value: object) -> float:
    """``value`` as a ``float``.

    Raises:
        TypeError: If it is no real number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, but {value!r} was given.")
    return float(value)


def options_of(what: str, specification: object) -> dict[str, Any]:
    """Options by name, of a mapping as it is, and of a name as the option ``kind``.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(specification, str):
        return {"kind": specification}
    if not isinstance(specification, Mapping):
        raise TypeError(f"{what} must be a name or a mapping of options with its kind, but {specification!r} was given.")
    return dict(specification)


def plain(value: Any) -> Any:
    """Mappings, sequences and NumPy's numbers as JSON-ready data."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def number_within(name: str, value: object, lowest: float, highest: float) -> float:
    """``value`` as a ``float``.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it lies outside of ``[lowest, highest]``.
    """
    if not lowest <= number(name, value) <= highest:
        raise ValueError(f"{name} must be within [{lowest:g}, {highest:g}], but {value!r} was given.")
    return number(name, value)


def number_range(name: str, value: object, lowest: float, highest: float) -> tuple[float, float]:
    """``value``, a pair (low, high), as two ``float``.

    Raises:
        TypeError: If it does not hold real numbers.
        ValueError: If they are not two with ``lowest <= low <= high <= highest``.
    """
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a pair (low, high), but {value!r} was given.")
    if len(value) != 2:
        raise ValueError(f"{name} must be a pair (low, high), but {value!r} was given.")
    low, high = (number(f"{name}, (low, high),", bound) for bound in value)
    if not lowest <= low <= high <= highest:
        raise ValueError(f"{name} must be (low, high) with {lowest:g} <= low <= high <= {highest:g}, but {value} was given.")
    return low, high
