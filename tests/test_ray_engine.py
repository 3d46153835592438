"""The Ray engine: a cluster of two nodes that loses one, what travels to the nodes, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import make_engine
from benchmarks.lr_bench.contestants import CodeMaker, ControlMaker, FileMaker, Maker, enter
from benchmarks.lr_bench.engine import Benchmark, Engine, LocalEngine, Work
from benchmarks.lr_bench.records import CellResult
from benchmarks.lr_bench.store import Store
from benchmarks.lr_bench.suites import find_suite
from lr_env import MDP, BoundController, PolicyNetwork, save_controller
from tests.test_engine import cells_of

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs lr-env[ray]", allow_module_level=True)

from ray.cluster_utils import Cluster
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from agents.ray_cluster import QUIET, connect
from benchmarks.lr_bench import ray_engine
from benchmarks.lr_bench.ray_engine import RayEngine, pack, unpack, versions
from tests.ray_clusters import local_cluster

LOSING_SUITE = os.environ.get("LR_BENCH_RAY_SUITE", "smoke")
"""Which a node is lost in; but for smoke with all rivals: `LR_BENCH_RAY_SUITE=quick pytest tests/test_ray_engine.py -k loses -s`."""

CONTROLLER = """
import os
import signal
import time
from pathlib import Path

import numpy as np
from neighbour import ACTION

FOLDER = Path({folder!r})


class Steady:
    '''On a worker: the node that is to be lost ends, and the other waits for that.'''

    def __init__(self):
        if __file__ != {path!r} and not (FOLDER / "lost").exists():
            import ray

            if ray.get_runtime_context().get_node_id() == (FOLDER / "doomed").read_text():
                (FOLDER / "lost").touch()
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            while not (FOLDER / "lost").exists():
                time.sleep(0.05)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation), 1), ACTION, np.float32), state
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with local_cluster() as cluster:
        yield cluster


class CountingEngine(RayEngine):
    """Counts what is lost."""

    losses = 0

    def restart(self) -> None:
        self.losses += 1
        super().restart()


def table(path: Path, source: Path, engine: Engine) -> tuple[dict[str, CellResult], list[str]]:
    """Runs rivals and a user's file on a suite."""
    suite = find_suite(LOSING_SUITE)
    contestants = enter([f"steady={source}:Steady"], suite, has_controls=False)
    if LOSING_SUITE == "smoke":  # a few are enough
        chosen = ("constant (shared)", "default rate", "SPS", "steady")
        contestants = [contestant for contestant in contestants if contestant.name in chosen]
        assert len(contestants) == len(chosen)
    with Store(path) as store:
        benchmark = Benchmark(suite, contestants, store, engine)
        try:
            cells = benchmark.run()
        finally:
            engine.shutdown()
        found = list(store.cells())
    assert len(found) == len({cell.key for cell in cells}), "a cell is missing, or there twice"
    return {cell.key: result for cell, result in found}, benchmark.problems


def test_a_cluster_that_loses_a_node_gives_the_table_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "outside" / "steady.py"
    source.parent.mkdir()
    (source.parent / "neighbour.py").write_text("ACTION = -0.1\n")
    source.write_text(CONTROLLER.format(folder=str(tmp_path), path=str(source)))
    doomed = cluster.add_node(num_cpus=1, include_log_monitor=False)
    (tmp_path / "doomed").write_text(doomed.node_id)
    engine = CountingEngine(cluster.address)
    assert engine.slots == 2 * ray_engine.AHEAD
    found, problems = table(tmp_path / "ray.sqlite", source, engine)
    assert (tmp_path / "lost").exists()
    assert engine.losses > 0
    assert problems == []
    print(f"{LOSING_SUITE}: {len(found)} results, {engine.losses} pieces of work begun again")  # noqa: T201
    expected, _ = table(tmp_path / "local.sqlite", source, LocalEngine())
    assert found.keys() == expected.keys()
    for key, result in expected.items():
        for name, value in vars(result).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(found[key], name), value)
        assert result.error is None


def makers(folder: Path) -> list[tuple[Maker, dict[str, Any]]]:
    """Of files in a folder, with their points."""
    mdp = MDP(optimizer="momentum")
    network = PolicyNetwork(mdp.begin(1, 1, 0.0).observation_space.shape[-1], 1, (4,))
    save_controller(folder / "a.safetensors", BoundController(network, mdp))
    (folder / "code.py").write_text("from beside import Controller\n")
    (folder / "beside.py").write_text("class Controller:\n    def predict(self, observation, *rest, **options): ...\n")
    files = FileMaker((folder / "a.safetensors",))
    code = CodeMaker(str(folder / "code.py"), "Controller")
    return [(files, {"training_seed": 0}), (code, {}), (CodeMaker("code", "Controller"), {}), (ControlMaker(code, "shuffled observations", 0), {})]


def test_files_of_contestants_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    given = makers(here)
    monkeypatch.chdir(here)
    task = cells_of([{}], (1,)).task
    expected = given[0][0]("momentum", task, (1,), given[0][1])
    work, files = pack(dataclasses.replace(cells_of([point for _, point in given], (1,)), makers=tuple(maker for maker, _ in given)))
    assert sorted(Path(path).name for path in files) == ["a.safetensors", "beside.py", "code.py"]
    shutil.rmtree(here)
    monkeypatch.chdir(tmp_path)
    moved = unpack(work, files, there).makers
    bounds = [maker("momentum", task, (1,), point) for maker, (_, point) in zip(moved, given, strict=True)]
    observations = np.ones((2, expected.controller.num_features), np.float32)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(bounds[0].controller.predict(observations)[0], expected.controller.predict(observations)[0])
    assert all(bound.mdp.optimizer == "momentum" for bound in bounds)


def test_the_process_of_a_model_of_sb3_travels_with_it(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"model")
    (tmp_path / "model.mdp.json").write_text(json.dumps({"algorithm": "ppo"}))
    work = dataclasses.replace(cells_of([{}], (1,)), makers=(FileMaker((tmp_path / "model.zip",)),))
    moved = unpack(*pack(work), tmp_path / "there").makers[0]
    assert isinstance(moved, FileMaker)
    assert moved.paths[0].read_bytes() == b"model"
    assert json.loads(moved.paths[0].with_suffix(".mdp.json").read_text()) == {"algorithm": "ppo"}


@pytest.mark.parametrize(
    ("problem", "is_lost"),
    [
        (WorkerCrashedError(), True),
        (OutOfMemoryError("no memory"), True),
        (NodeDiedError("gone"), True),
        (RayTaskError("compute", "trace", ValueError("wrong")), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_lost_work_is_told_from_work_that_fails(problem: Exception, is_lost: bool) -> None:
    future: Future[list[CellResult]] = Future()
    done: Future[Any] = Future()
    done.set_exception(problem)
    ray_engine._settle(future, done)
    assert isinstance(future.exception(), BrokenExecutor) == is_lost


def test_a_node_with_other_versions_is_refused() -> None:
    work: Work = cells_of([{"shape": "constant", "rate": 0.1}], (1,))
    with pytest.raises(ImportError, match=r"the driver has .*'torch': '0\.1'.*install the same"):
        ray_engine._compute(work, {}, versions() | {"torch": "0.1"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(ConnectionError, match=rf"There is no Ray cluster at '{address}': .*ray start --head"):
        make_engine("ray", address, None)


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "benchmarks.lr_bench.ray_engine")
    with pytest.raises(ImportError, match=r"pip install 'lr-env\[ray\]'"):
        make_engine("ray", None, None)


def test_an_address_is_for_ray() -> None:
    with pytest.raises(ValueError, match="An address is for Ray, but 'auto' was given"):
        make_engine("local", "auto", None)


def test_ray_is_quiet() -> None:
    with pytest.raises(ConnectionError):
        connect([], "nonsense")
    assert os.environ.items() >= QUIET.items()
