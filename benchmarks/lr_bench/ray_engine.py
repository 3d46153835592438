"""Computes a benchmark's work on a Ray cluster, through the same store: workers train, and the driver alone saves.

Every node needs Python and the dependencies of the driver's versions; the code of this project goes with the work, and so do the files of
contestants:

- ``.safetensors`` and ``.zip`` files, with the decision process beside these;
- ``path/to/file.py:MyController``: the file with the other ``.py`` files of its folder, which it may import; ``my_module:MyController`` alike
  where ``my_module.py`` lies in the present folder. Every other module must be installed on the nodes; what the code itself opens must lie there;
- ``LR_ENV_DATA``, where it is set: the nodes need the data at the same place.

Work whose worker or node is lost is begun again by :class:`benchmarks.lr_bench.engine.Benchmark`.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agents
import benchmarks
import lr_env
from benchmarks.lr_bench.contestants import CodeMaker, ControlMaker, FileMaker, Maker
from benchmarks.lr_bench.engine import Work, compute
from benchmarks.lr_bench.records import CellResult

try:
    import ray
    from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

    from agents.ray_cluster import connect
except ImportError as error:
    raise ImportError("--engine ray needs Ray: pip install 'lr-env[ray]'.") from error

AHEAD = 2
"""Pieces of work that wait for each core, so that none is idle and a cluster that grows sees what is to be done."""


class RayEngine:
    """A cluster; each piece of work takes one core.

    Args:
        address: See :func:`agents.ray_cluster.connect`.
        workers: Cores of this machine; on a cluster, pieces of work at a time. By default all.

    Raises:
        ConnectionError: If there is no cluster at the address.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        connect((agents, benchmarks, lr_env), address, workers)
        self._workers = workers
        self._compute = ray.remote(num_cpus=1, max_retries=0)(_compute)  # Ray would begin work that lacks memory again without end
        self.slots = self._count_slots()

    def submit(self, work: Work) -> Future[list[CellResult]]:
        """See :class:`benchmarks.lr_bench.engine.Engine`."""
        self.slots = self._count_slots()  # nodes come and go
        packed, files = pack(work)
        future: Future[list[CellResult]] = Future()
        self._compute.remote(packed, files, versions()).future().add_done_callback(lambda done: _settle(future, done))
        return future

    def restart(self) -> None:
        """The cluster works on without what was lost."""

    def shutdown(self) -> None:
        """Disconnects, which ends the work; ends what was started on this machine."""
        ray.shutdown()

    def _count_slots(self) -> int:
        return self._workers or max(1, AHEAD * int(ray.cluster_resources().get("CPU", 0)))


def _settle(future: Future[list[CellResult]], done: Future[Any]) -> None:
    problem = done.exception()
    if problem is None:
        future.set_result(done.result())
    elif isinstance(problem, RayError) and not isinstance(problem, (RayTaskError, RuntimeEnvSetupError)):
        future.set_exception(BrokenExecutor(str(problem)))
    else:
        future.set_exception(problem)


def _compute(work: Work, files: Mapping[str, bytes], expected: Mapping[str, str]) -> list[CellResult]:
    """On a worker: see :func:`benchmarks.lr_bench.engine.compute`.

    Raises:
        ImportError: If versions are not the driver's.
    """
    if versions() != expected:
        raise ImportError(f"Node {platform.node()} has {versions()}, but the driver has {dict(expected)}: install the same on every node.")
    with tempfile.TemporaryDirectory(prefix="lr-bench-") as folder:
        return compute(unpack(work, files, Path(folder)))


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def pack(work: Work) -> tuple[Work, dict[str, bytes]]:
    """Work that :func:`unpack` prepares elsewhere, and the content of the files that it needs, by path."""
    makers = tuple(_by_path(maker) for maker in work.makers)
    paths = {path for maker in makers for path in _files(maker)}
    return dataclasses.replace(work, makers=makers), {str(path): path.read_bytes() for path in sorted(paths) if path.is_file()}


def unpack(work: Work, files: Mapping[str, bytes], folder: Path) -> Work:
    """The same work with files in this folder."""
    for path, content in files.items():
        target = _moved(Path(path), folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return dataclasses.replace(work, makers=tuple(_reading_from(maker, folder) for maker in work.makers))


def _by_path(maker: Maker) -> Maker:
    """Modules of the present folder become files."""
    if isinstance(maker, ControlMaker):
        return dataclasses.replace(maker, base=_by_path(maker.base))
    if isinstance(maker, CodeMaker) and (path := Path.cwd() / f"{maker.source}.py").is_file():
        return dataclasses.replace(maker, source=str(path))
    return maker


def _files(maker: Maker) -> list[Path]:
    """What it reads."""
    if isinstance(maker, ControlMaker):
        return _files(maker.base)
    if isinstance(maker, FileMaker):
        return [*maker.paths, *(path.with_suffix(".mdp.json") for path in maker.paths)]
    if isinstance(maker, CodeMaker) and maker.source.endswith(".py"):
        return list(Path(maker.source).parent.glob("*.py"))
    return []


def _reading_from(maker: Maker, folder: Path) -> Maker:
    if isinstance(maker, ControlMaker):
        return dataclasses.replace(maker, base=_reading_from(maker.base, folder))
    if isinstance(maker, FileMaker):
        return dataclasses.replace(maker, paths=tuple(_moved(path, folder) for path in maker.paths))
    if isinstance(maker, CodeMaker) and maker.source.endswith(".py"):
        return dataclasses.replace(maker, source=str(_moved(Path(maker.source), folder)))
    return maker


def _moved(path: Path, folder: Path) -> Path:
    return folder / path.relative_to(path.anchor)
