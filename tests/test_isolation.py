"""The caller's PyTorch settings change nothing that we compute, and are afterwards as they were."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import lr_env
from lr_env.isolation import isolated


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
}


def settings() -> tuple[object, ...]:
    return torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.get_default_device()


@pytest.mark.parametrize("name", CONTEXTS)
def test_settings_are_the_usual_ones_inside_and_the_callers_afterwards(name: str) -> None:
    usual = settings()
    with CONTEXTS[name]():
        before = settings()
        assert before != usual
        with isolated():
            assert settings() == usual
            assert torch.zeros(1).dtype == torch.float32
        assert settings() == before
    assert settings() == usual


def losses(reset: AbstractContextManager[object], step: AbstractContextManager[object], num_envs: int, task: object, gradients: str) -> list[float]:
    envs = gym.make_vec("LearningRate-v0", num_envs=num_envs, task=task, horizon=6, gradients=gradients, autoreset_mode="SameStep")
    with reset:
        envs.reset(seed=3)
    with step:
        for _ in range(8):  # over an end
            _, _, _, _, info = envs.step(np.full((num_envs, 1), 0.1, np.float32))
    envs.reset(seed=4)  # outside again
    found: list[float] = info["loss"].tolist()
    envs.close()
    return found


CNN = {"name": "small-cnn", "data_sets": ["digits"], "architectures": ["cnn"], "num_variants": 1}


@pytest.mark.parametrize(("num_envs", "task", "gradients"), [(1, "digits-mlp", "auto"), (3, "digits-mlp", "auto"), (2, CNN, "looped")])
@pytest.mark.parametrize("name", CONTEXTS)
def test_environments_have_the_same_bits(name: str, num_envs: int, task: object, gradients: str) -> None:
    expected = losses(nullcontext(), nullcontext(), num_envs, task, gradients)
    assert losses(CONTEXTS[name](), CONTEXTS[name](), num_envs, task, gradients) == expected
    assert losses(nullcontext(), CONTEXTS[name](), num_envs, task, gradients) == expected


@pytest.mark.parametrize("name", CONTEXTS)
def test_tasks_are_made_of_the_same_data(name: str) -> None:
    """Anew, where `make_task` would return the one that it has made before."""
    expected = lr_env.make_task("wine-mlp").data.train  # type: ignore[union-attr]
    with CONTEXTS[name]():
        made = lr_env.make_task.__wrapped__("wine-mlp").data.train  # type: ignore[attr-defined]
    assert torch.equal(made.inputs, expected.inputs) and torch.equal(made.targets, expected.targets)


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_task_of_ones_own_has_the_same_initial_weights(name: str) -> None:
    inputs, targets = torch.ones(20, 4), torch.zeros(20, dtype=torch.int64)

    def weights() -> np.ndarray:
        task = lr_env.Task.from_tensors("own", lambda: nn.Linear(4, 2), inputs, targets, batch_size=5)
        parameters: np.ndarray = torch.cat([each.detach().flatten() for each in task.initial_model(7).parameters()]).numpy()
        return parameters

    expected = weights()
    with CONTEXTS[name]():
        np.testing.assert_array_equal(weights(), expected)


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize("name", CONTEXTS)
def test_policies_decide_the_same(name: str, num_members: int) -> None:
    observations = np.linspace(-1, 1, num_members * 4, dtype=np.float32).reshape(num_members, 4)
    expected, _ = lr_env.PolicyNetwork(4, 1, seed=5).predict(observations)
    with CONTEXTS[name]():
        policy = lr_env.PolicyNetwork(4, 1, seed=5)
        actions, _ = policy.predict(observations)
    np.testing.assert_array_equal(actions, expected)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


@pytest.mark.parametrize("width", [16, 40_000])
@pytest.mark.parametrize("name", ["autocast", "float64", "bfloat16", "another device"])
def test_controller_lr_decides_the_same(name: str, width: int) -> None:
    def rates(context: AbstractContextManager[object]) -> list[float]:
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
        with context:
            controller = lr_env.ControllerLR(optimizer, "pretrained", total_steps=10)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 8)).square().mean()
            loss.backward()
            with context:
                controller.step(loss)
            optimizer.step()
            found += [float(rate) for rate in controller.get_last_lr()]
        return found

    class Again:
        """The context, as often as one likes."""

        def __enter__(self) -> None:
            self._context = CONTEXTS[name]()
            self._context.__enter__()

        def __exit__(self, *exception: object) -> None:
            self._context.__exit__(None, None, None)

    assert rates(Again()) == rates(nullcontext())  # type: ignore[arg-type]  # a context manager by its methods
