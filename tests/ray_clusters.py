"""Clusters of Ray on this machine, which leave nothing behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

QUIET = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
"""Fewer processes; there is no autoscaler."""

PATIENCE = 120.0


@contextmanager
def local_cluster(num_cores: int = 1) -> Iterator[Cluster]:
    """A cluster of one node."""
    before = processes()
    cluster = Cluster(initialize_head=True, head_node_args=QUIET | {"num_cpus": num_cores})
    try:
        yield cluster
    finally:
        session = Path(cluster.head_node.get_session_dir_path())
        cluster.shutdown()
        end = time.monotonic() + PATIENCE
        while processes() - before and time.monotonic() < end:
            time.sleep(0.2)
        shutil.rmtree(session, ignore_errors=True)
        assert processes() <= before, "Ray left processes behind"


def processes() -> set[int]:
    """Of Ray."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or [""]
        if line[0].startswith("ray::") or any("/ray/core/src/" in part or "/ray/dashboard/" in part or "/ray/_private/" in part for part in line[:3]):
            found.add(process.pid)
    return found
