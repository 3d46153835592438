"""Files that keep a training: a nested state, and whose it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lr_env.files import FileFormatError, pack, read_file, unpack, write_file
from torch import Tensor


def write_checkpoint(path: str | os.PathLike[str], kind: str, owner: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes a training's state.

    Args:
        path: Where to.
        kind: What the file is, checked when it is read.
        owner: Whose it is, such as a configuration and a seed: JSON-ready data.
        state: See :func:`lr_env.files.pack`.
    """
    tensors: dict[str, Tensor] = {}
    write_file(path, kind, {**owner, "state": pack(state, tensors)}, tensors)


@contextmanager
def opened_checkpoint(path: str | os.PathLike[str], kind: str, owner: Mapping[str, Any] | None = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """What :func:`write_checkpoint` wrote: whose it is, and the state. What goes wrong inside is the file's fault.

    Args:
        path: The file.
        kind: As written.
        owner: Whose it must be; None for anybody's.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If it is damaged or foreign, somebody else's, or what is inside can't take it over.
    """
    found, tensors = read_file(path, kind)
    try:
        written = found.pop("state")
        if owner is not None and found != json.loads(json.dumps(owner)):
            raise ValueError("it is of " + ", ".join(f"{name} {value}" for name, value in found.items()))
        yield found, unpack(written, tensors)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FileFormatError(f"The checkpoint {os.fspath(path)} does not fit this training, or is damaged: {error!r}.") from error
