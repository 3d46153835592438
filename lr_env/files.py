"""Files that hold data only: safetensors with all metadata, and a checksum of everything, as JSON under one key. Reading one runs no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

METADATA_KEY = "lr_env"
FORMAT_VERSION = 2
"""1 had no checksum."""


class FileFormatError(ValueError):
    """A file is damaged, foreign, or of another version."""


def write_file(path: str | os.PathLike[str], kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file of this kind, or leaves what was there: it is written beside and then moved. Equal contents give equal bytes.

    Args:
        path: Where to; missing folders are made.
        kind: What the file is, checked when it is read.
        metadata: JSON-ready data.
        tensors: By name.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    fields = {"kind": kind, "version": FORMAT_VERSION, **metadata}
    header = _as_json(fields | {"sha256": _checksum(fields, stored)})
    beside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(save(stored, metadata={METADATA_KEY: header}))  # save_file() would hide it from other users
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file that :func:`write_file` wrote.

    Raises:
        FileNotFoundError: If there is none.
        FileFormatError: If it is damaged, altered, foreign, or of another kind or version.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"There is no file {target}.")
    try:
        with safe_open(target, framework="pt") as file:
            header = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(f"{target} is no safetensors file, or is damaged: {error}. Save it again.") from error
    if header is None:
        raise FileFormatError(f"{target} is a safetensors file, but lr-env did not write it: it has no metadata {METADATA_KEY!r}.")
    try:
        metadata = json.loads(header)
        found = (metadata["kind"], metadata["version"])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise FileFormatError(f"The metadata of {target} are damaged: {error!r}. Save it again.") from error
    if found != (kind, FORMAT_VERSION):
        raise FileFormatError(
            f"{target} holds {found[0]!r} of version {found[1]!r}, but {kind!r} of version {FORMAT_VERSION} is needed: make it anew."
        )
    if metadata.pop("sha256", None) != _checksum(metadata, tensors):
        raise FileFormatError(f"{target} is damaged, or was altered: its contents don't fit its checksum. Save it again.")
    del metadata["kind"], metadata["version"]
    return metadata, tensors


def _as_json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _checksum(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(_as_json(fields).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON-ready data; its tensors and arrays are put into ``tensors``.

    Raises:
        TypeError: If it holds anything but dictionaries, lists, tuples, tensors, arrays, numbers, strings, booleans and None.
    """
    match tree:
        case Tensor() | np.ndarray():
            name = f"{len(tensors):06d}"
            tensors[name] = tree if isinstance(tree, Tensor) else torch.from_numpy(np.ascontiguousarray(tree))
            return {"tensor" if isinstance(tree, Tensor) else "array": name, "shape": list(tree.shape)}
        case dict():
            if all(isinstance(key, str) for key in tree):
                return {"dict": {key: pack(value, tensors) for key, value in tree.items()}}
            return {"items": [[pack(key, tensors), pack(value, tensors)] for key, value in tree.items()]}
        case list() | tuple():
            return {"list" if isinstance(tree, list) else "tuple": [pack(value, tensors) for value in tree]}
        case np.generic():
            return tree.item()
        case None | bool() | int() | float() | str():
            return tree
    raise TypeError(f"A state may not hold a {type(tree).__name__}: {tree!r}")


def unpack(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nested state that :func:`pack` took apart."""
    match data:
        case {"tensor": name}:
            return tensors[name]
        case {"array": name, "shape": shape}:
            return tensors[name].numpy().reshape(shape)
        case {"dict": entries}:
            return {key: unpack(value, tensors) for key, value in entries.items()}
        case {"items": pairs}:  # keys that JSON would turn into strings
            return {unpack(key, tensors): unpack(value, tensors) for key, value in pairs}
        case {"list": values}:
            return [unpack(value, tensors) for value in values]
        case {"tuple": values}:
            return tuple(unpack(value, tensors) for value in values)
    return data
