"""Memory of this process, as Linux counts it."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> int | None:
    """Forgets the highest use of memory so far, and tells the present one, bytes; None where the system can't.

    What was used before, by imports for one, would hide what follows, and ``ru_maxrss``, which a child inherits from its parent, can't be reset.
    """
    if not _CLEAR.exists():
        return None
    _CLEAR.write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """The highest use of memory since :func:`reset_peak`, bytes."""
    return next(1024 * int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def release_memory() -> None:
    """Hands what is free back to the system: glibc would keep it, a gigabyte after the first evaluation of a transformer."""
    with suppress(OSError, AttributeError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)
