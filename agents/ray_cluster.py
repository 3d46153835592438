"""Ray without noise: connects to a cluster, or starts one on this machine, and takes this project's code along."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ray

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default; without it each start warns
    "RAY_enable_metrics_collection": "0",  # there is no exporter to receive them
}
"""Variables that Ray and the processes that it starts read."""

PATIENCE = 10.0
"""Seconds for a cluster to answer."""


def connect(packages: Sequence[ModuleType], address: str | None = None, num_cores: int | None = None) -> None:
    """Connects to a cluster; ``ray.shutdown()`` disconnects, and ends what was started here.

    Args:
        packages: Code that every node receives, in place of what is installed there.
        address: ``"HOST:PORT"`` or ``"auto"``, from a machine of the cluster; None for the variable ``RAY_ADDRESS``, else for this machine alone.
        num_cores: Of this machine; by default all. Has no effect on a cluster.

    Raises:
        ConnectionError: If there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    paths = [str(Path(package.__path__[0])) for package in packages]
    variables = {name: os.environ[name] for name in ("LR_ENV_DATA",) if name in os.environ}
    environment = {"py_modules": paths, "excludes": ["__pycache__", "figures", "results"], "env_vars": variables}
    own: dict[str, Any] = {"num_cpus": num_cores, "include_dashboard": False} if address == "local" else {}
    try:
        _knock(address)
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:  # as such Ray says that this machine is too busy to start anything
        raise ConnectionError(
            f"There is no Ray cluster at {address!r}: {str(error).rstrip('.')}. Start one with `ray start --head`, then pass --address auto, or "
            "--address HOST:PORT from a machine that has joined it; leave --address out for this machine alone."
        ) from error


def _knock(address: str) -> None:
    """Ray itself would try for minutes, and then end the process."""
    host, separator, port = address.rpartition(":")
    if separator and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
