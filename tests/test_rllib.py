"""RLlib's PPO: from trainings on a cluster to a controller in a benchmark. Needs a virtual environment of its own, see ``agents/rllib.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

if importlib.util.find_spec("ray") is None or importlib.util.find_spec("tree") is None:
    pytest.skip("needs lr-env[rllib], in a virtual environment of its own", allow_module_level=True)
if not any(wanted.name == "gymnasium" and version("gymnasium") in wanted.specifier for wanted in map(Requirement, requires("ray") or ())):
    pytest.skip(f"RLlib needs another Gymnasium than {version('gymnasium')}", allow_module_level=True)

import torch
from ray.cluster_utils import Cluster
from ray.rllib.core.columns import Columns

from agents import rllib
from agents.rllib import CalmPPOModule, RunnerEnv, export_policy, linear_layers, main
from benchmarks.__main__ import app
from benchmarks.lr_bench.store import Store
from lr_env import LearningRateVectorEnv, load_controller
from tests.ray_clusters import local_cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # RLlib's own


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with local_cluster(2) as cluster:
        yield cluster


def test_ppo_trains_and_is_benchmarked(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    modules = []
    monkeypatch.setattr(rllib, "export_policy", lambda module: modules.append(module) or export_policy(module))
    path = tmp_path / "ppo.safetensors"
    options = ["--task", "breast-cancer-mlp", "--horizon", "8", "--optimizer", "momentum", "--iterations", "3", "--env-runners", "1"]
    main([*options, "--num-envs", "4", "--address", cluster.address, "--output", str(path)])
    bound = load_controller(path)
    assert bound.mdp.optimizer == "momentum"
    [module] = modules
    assert isinstance(module, CalmPPOModule)
    last = linear_layers(module.pi)[-1]
    assert float(last.weight.abs().max()) > 3e-3, "nothing was learnt"
    observations = np.random.default_rng(0).normal(size=(50, bound.controller.num_features)).astype(np.float32)  # type: ignore[attr-defined]
    with torch.no_grad():
        batch = {Columns.OBS: torch.from_numpy(observations)}
        last.bias += 1 - module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS][:, :1].median()  # so that half of the actions are clipped
        of_rllib = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS][:, :1]
    actions, _ = export_policy(module).predict(observations)
    np.testing.assert_allclose(actions, of_rllib.clamp(-1, 1).numpy(), rtol=1e-5, atol=1e-6)
    assert (actions == 1).any()
    assert (actions < 1).any()

    folder = tmp_path / "results"
    arguments = ["--suite", "smoke", "--controllers", f"rllib={path}", "--no-controls", "--workers", "1", "--output", str(folder)]
    app.cli(args=["run", *arguments])
    assert "rllib" in capsys.readouterr().out
    with Store(folder / "results.sqlite") as store:
        found = [result for cell, result in store.cells() if cell.contestant == "rllib"]
    assert len(found) == 2, "one track, two tasks"
    assert all(result.error is None and np.isfinite(result.scores).all() for result in found)


def test_runners_have_trainings_of_their_own() -> None:
    seeds = [[2 * runner + member for member in range(2)] for runner in (7, 8)]
    single = LearningRateVectorEnv(2, task="breast-cancer-mlp", horizon=5)
    observations = []
    for runner, expected in zip((7, 8), seeds, strict=True):
        found, _ = RunnerEnv(2, task="breast-cancer-mlp", horizon=5).reset(seed=runner)
        np.testing.assert_array_equal(found, single.reset(seed=expected)[0])
        observations += [row.tobytes() for row in found]
    assert len(set(observations)) == 4


@pytest.mark.parametrize("option", ["iterations", "env_runners", "num_envs"])
def test_wrong_options_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([f"--{option.replace('_', '-')}", "0"])
    assert exit_info.value.code == 2
    assert option in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--task", "breast-cancer-mlp", "--address", "127.0.0.1:1"])
    assert "There is no Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err
