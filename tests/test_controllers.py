"""Controller files: exact, and data only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lr_env import MDP, BoundController, FileFormatError, PolicyNetwork, load_controller, save_controller
from lr_env.files import METADATA_KEY, pack, read_file, unpack, write_file


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "controller.safetensors"
    save_controller(path, BoundController(PolicyNetwork(2, 1, (8,), seed=1), MDP(features=["progress", "log_rate"], action={"kind": "residual"})))
    return path


def test_round_trip(saved: Path) -> None:
    bound = load_controller(saved)
    observations = np.ones((3, 2), np.float32)
    expected, _ = PolicyNetwork(2, 1, (8,), seed=1).predict(observations)
    np.testing.assert_array_equal(bound.controller.predict(observations)[0], expected)
    assert bound.mdp.action == {"kind": "residual"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        load_controller(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("length", [0, 4, 40, -8])
def test_truncated_file(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(FileFormatError, match="damaged"):
        load_controller(saved)


def test_hostile_size_claim(saved: Path) -> None:
    saved.write_bytes((2**60).to_bytes(8, "little") + saved.read_bytes()[8:])
    with pytest.raises(FileFormatError, match="damaged"):
        load_controller(saved)


def test_pickle_is_not_run(saved: Path) -> None:
    torch.save({"a": torch.zeros(1)}, saved)
    with pytest.raises(FileFormatError, match="no safetensors file"):
        load_controller(saved)


def test_foreign_file(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="did not write it"):
        load_controller(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"kind": "something"}, "something"),
        ({"architecture": {"num_features": 2, "num_actions": 1, "hidden": [10**9]}}, "do not fit"),
        ({"mdp": {"features": ["nonsense"]}}, "nonsense"),
        ({"mdp": {"unknown": 1}}, "unknown"),
    ],
)
def test_altered_metadata(saved: Path, change: dict[str, object], message: str) -> None:
    metadata, tensors = read_file(saved, "controller")
    header = json.dumps({"kind": "controller", "version": 1, **metadata, **change})
    save_file(tensors, saved, metadata={METADATA_KEY: header})
    with pytest.raises(FileFormatError, match=message):
        load_controller(saved)


def test_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lr_env.files.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(saved, "controller", {}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_packed_states_return() -> None:
    state = {"a": [1, 2.5, None, True, "x", 2**127], "b": (np.arange(6).reshape(2, 3), torch.ones(2)), "c": {"d": np.array(3.0)}}
    tensors: dict[str, torch.Tensor] = {}
    restored = unpack(json.loads(json.dumps(pack(state, tensors))), tensors)
    assert restored["a"] == state["a"]
    assert isinstance(restored["b"], tuple)
    np.testing.assert_array_equal(restored["b"][0], state["b"][0])
    assert restored["b"][1].equal(state["b"][1])
    assert restored["c"]["d"].shape == ()


def test_only_policy_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PolicyNetwork"):
        save_controller(tmp_path / "x", BoundController(object(), MDP()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="object"):
        pack({"a": object()}, {})


def test_wrong_observations() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        PolicyNetwork(2, 1).predict(np.zeros((3, 5), np.float32))
