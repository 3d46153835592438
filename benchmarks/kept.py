"""Results that are computed once: each in a file of its own, which several processes may share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


def kept(path: Path, settings: Mapping[str, Any], run: Callable[[], dict[str, Any]], patience: float = -1.0) -> dict[str, Any]:
    """What the file holds, else what ``run`` returns, which is written there.

    A process that computes it holds a lock on a file beside it, which the system lets go of when the process ends, however it does.

    Args:
        path: The file.
        settings: What the result depends on, JSON-ready.
        run: Computes a JSON-ready result.
        patience: Seconds to wait where another process computes it; below 0 as long as it takes.

    Raises:
        filelock.Timeout: If another process still computes it.
        SystemExit: If the file is from a run with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=patience):
        if not path.exists():
            beside = path.with_name(f"{path.name}.{os.getpid()}.partial")  # a kill shall leave a whole file or none
            beside.write_text(json.dumps({"settings": settings, "result": run()}) + "\n")
            beside.replace(path)
    found = json.loads(path.read_text())
    if found["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{path} is from a run with {found['settings']}, not {settings}. Remove it, or choose another --output.")
    result: dict[str, Any] = found["result"]
    return result


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """A folder beside an output for what a run has computed so far; removed where the run ends well."""
    folder = output.with_suffix(".unfinished")
    yield folder
    shutil.rmtree(folder)
