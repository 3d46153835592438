"""Controller files: exact, and data only."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from agents.schedules import constant
from lr_env import MDP, BoundController, FileFormatError, PolicyNetwork, RecurrentPolicy, load_controller, save_controller
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
    with safe_open(saved, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    save_file(tensors, saved, metadata={METADATA_KEY: json.dumps(header | change)})
    with pytest.raises(FileFormatError, match=message if change.keys() & {"version", "kind"} else "altered"):
        load_controller(saved)
    write_file(saved, "controller", {**metadata, **change}, tensors)  # with a checksum that fits
    with pytest.raises(FileFormatError, match=message):
        load_controller(saved)


def test_every_altered_byte_is_noticed(saved: Path) -> None:
    content, generator = saved.read_bytes(), np.random.default_rng(0)
    for position in (len(content) - 1, *generator.integers(8, len(content), 60).tolist()):
        altered = bytearray(content)
        altered[position] ^= 1 << int(generator.integers(8))
        saved.write_bytes(altered)
        with pytest.raises(FileFormatError):
            load_controller(saved)


def test_what_does_not_fit_is_neither_loaded_nor_saved(saved: Path, tmp_path: Path) -> None:
    metadata, tensors = read_file(saved, "controller")
    broken = {name: torch.full_like(tensor, np.nan) for name, tensor in tensors.items()}
    write_file(tmp_path / "broken.safetensors", "controller", metadata, broken)
    with pytest.raises(FileFormatError, match="no finite numbers"):
        load_controller(tmp_path / "broken.safetensors")
    policy = load_controller(saved).controller
    recurrent = RecurrentPolicy(2, 3, 1, "log", 1e-3, 1.0)
    pair = ["progress", "log_rate"]
    wrong = [
        (policy, MDP(features=["progress"])),
        (policy, MDP(features=pair, optimizer="momentum", control_momentum=True)),
        (policy, MDP(features=pair, action="discrete")),
        (recurrent, MDP(features=pair)),
    ]
    for network, mdp in wrong:
        with pytest.raises(ValueError, match="does not fit the decision process, which has"):
            save_controller(tmp_path / "wrong.safetensors", BoundController(network, mdp))
    write_file(saved, "controller", {**metadata, "mdp": MDP(features=["progress"]).to_dict()}, tensors)
    with pytest.raises(FileFormatError, match="does not fit the decision process"):
        load_controller(saved)
    fitting = [
        (policy, MDP(features=pair, lr_groups="layer")),
        (PolicyNetwork(4, 2), MDP(features=pair, lr_groups=[["a"], ["b"]])),
        (PolicyNetwork(2, 5, output="argmax"), MDP(features=pair, action="discrete")),
        (recurrent, MDP(features=pair, action="rate")),
    ]
    for network, mdp in fitting:
        for name in ("first", "second"):
            save_controller(tmp_path / name, BoundController(network, mdp))
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
        assert load_controller(tmp_path / "first").mdp == mdp


def test_deep_metadata(saved: Path) -> None:
    save_file(read_file(saved, "controller")[1], saved, metadata={METADATA_KEY: "[" * 100_000})
    with pytest.raises(FileFormatError, match="metadata"):
        load_controller(saved)


def test_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
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
    of_numbers = {0: {"step": 1}, "0": None}  # as the state of an optimizer has them
    assert unpack(json.loads(json.dumps(pack(of_numbers, {}))), {}) == of_numbers


def test_others_may_read_a_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "x", "controller", {}, {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_only_policy_networks_are_saved(tmp_path: Path) -> None:
    for wrong in ((object(), MDP()), (MDP(), PolicyNetwork(2, 1))):
        with pytest.raises(TypeError, match=r"needs an object with predict\(\) and an MDP"):
            BoundController(*wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PolicyNetwork"):
        save_controller(tmp_path / "x", constant(0.1).bind())
    with pytest.raises(TypeError, match="object"):
        pack({"a": object()}, {})


def test_wrong_observations() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        PolicyNetwork(2, 1).predict(np.zeros((3, 5), np.float32))


@pytest.mark.parametrize(("activation", "function"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)])
@pytest.mark.parametrize(("output", "last"), [("tanh", np.tanh), ("clip", lambda x: np.clip(x, -1, 1)), ("argmax", lambda x: x.argmax(-1))])
def test_network_equals_the_formula(activation: Any, function: Any, output: Any, last: Any, tmp_path: Path) -> None:
    policy = PolicyNetwork(3, 3, (8, 5), seed=2, activation=activation, output=output)
    with torch.no_grad():
        policy.layers[-1].weight.mul_(1e3)  # so that values are clipped
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    values = observations.astype(np.float64)
    linear = [layer for layer in policy.layers if isinstance(layer, torch.nn.Linear)]
    for layer in linear:
        values = values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        values = values if layer is linear[-1] else function(values)
    if output == "clip":
        assert 0 < (np.abs(values) > 1).mean() < 1
    actions, _ = policy.predict(observations)
    np.testing.assert_allclose(actions, last(values), rtol=1e-4, atol=1e-4)
    assert actions.dtype == (np.int64 if output == "argmax" else np.float32)
    np.testing.assert_allclose(policy.predict(observations[0])[0], actions[0], rtol=1e-5)

    discrete = MDP(features=["progress", "log_rate", "log_loss"], action={"kind": "discrete", "steps": 1})
    mdp = discrete if output == "argmax" else MDP(features=["progress"], lr_groups=[["a"], ["b"], ["c"]])
    save_controller(tmp_path / "policy.safetensors", BoundController(policy, mdp))
    loaded = load_controller(tmp_path / "policy.safetensors").controller
    assert isinstance(loaded, PolicyNetwork)
    assert (loaded.activation, loaded.output) == (activation, output)
    np.testing.assert_array_equal(loaded.predict(observations)[0], actions)


def test_one_observation_sees_the_present_weights() -> None:
    """However they were changed since the last one."""
    policy = PolicyNetwork(3, 2, (8, 5))
    observations = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)

    def check(network: PolicyNetwork) -> np.ndarray:
        for observation in (observations[0], observations[:1]):
            action = network.predict(observation)[0]
            np.testing.assert_allclose(action, network(torch.from_numpy(observation)).detach().numpy(), rtol=1e-5)
        return action

    seen = [check(policy)]
    with torch.no_grad():
        policy.layers[0].weight.add_(1.0)
    seen.append(check(policy))
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        copied.layers[-1].bias.add_(1.0)
    seen.append(check(copied))
    policy.load_state_dict(PolicyNetwork(3, 2, (8, 5), seed=7).state_dict())
    seen.append(check(policy))
    policy.load_state_dict(PolicyNetwork(3, 2, (8, 5), seed=9).state_dict(), assign=True)
    seen.append(check(policy))
    policy.share_memory()
    policy.layers[-1].weight.data = torch.ones(2, 5)
    seen.append(check(policy))
    assert len({action.tobytes() for action in seen}) == len(seen)
    check(PolicyNetwork(3, 2, (300, 300)))  # too wide for NumPy
    infinite = PolicyNetwork(3, 1)
    with torch.no_grad():
        infinite.layers[0].weight.fill_(np.inf)
    assert np.isnan(infinite.predict(np.array([1.0, -1.0, 0.0], np.float32))[0]).all()


def test_network_that_is_given_the_mean_of_its_observations(tmp_path: Path) -> None:
    policy = PolicyNetwork(3, 3, (8,), seed=2, averages=True)
    observations = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    starts = np.zeros((6, 4), bool)
    starts[0], starts[3, 1] = True, True
    save_controller(tmp_path / "policy.safetensors", BoundController(policy, MDP(features=["progress"], lr_groups=[["a"], ["b"], ["c"]])))
    loaded = load_controller(tmp_path / "policy.safetensors").controller
    assert isinstance(loaded, PolicyNetwork) and loaded.averages
    state, alone = None, None
    for step, (seen, begins) in enumerate(zip(observations, starts, strict=True)):
        first = np.where(np.arange(4) == 1, 3 * (step >= 3), 0)
        means = np.stack([observations[first[member] : step + 1, member].mean(0) for member in range(4)])
        expected = policy(torch.from_numpy(np.concatenate([seen, means], 1))).detach().numpy()
        actions, state = loaded.predict(seen, state, begins)
        np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-7)
        if step == 3:  # the bits of a training that has seen nothing else
            np.testing.assert_array_equal(state[0][1], seen[1])
        action, alone = policy.predict(seen[0], alone)
        assert action.shape == (3,)
        np.testing.assert_allclose(action, expected[0], rtol=1e-5, atol=1e-7)


def test_networks_without_means_are_written_as_they_always_were(saved: Path) -> None:
    assert "averages" not in read_file(saved, "controller")[0]["architecture"]


def test_files_without_activation_and_output_are_loaded(saved: Path) -> None:
    metadata, tensors = read_file(saved, "controller")
    architecture = {name: metadata["architecture"][name] for name in ("num_features", "num_actions", "hidden")}
    write_file(saved, "controller", {**metadata, "architecture": architecture}, tensors)
    loaded = load_controller(saved).controller
    assert isinstance(loaded, PolicyNetwork)
    assert (loaded.activation, loaded.output) == ("relu", "tanh")


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"output": "softmax"}, {"output": ["tanh"]}])
def test_altered_architecture(saved: Path, change: dict[str, object]) -> None:
    metadata, tensors = read_file(saved, "controller")
    write_file(saved, "controller", {**metadata, "architecture": {**metadata["architecture"], **change}}, tensors)
    with pytest.raises(FileFormatError, match="damaged"):
        load_controller(saved)


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown activation 'rleu'\. Did you mean 'relu'"):
        PolicyNetwork(2, 1, activation="rleu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown output 'sigmoid'"):
        PolicyNetwork(2, 1, output="sigmoid")  # type: ignore[arg-type]
