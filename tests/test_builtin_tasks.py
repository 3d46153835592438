"""The built-in tasks: they learn, in both engines and in the environment; their metrics, their listing and what they must reach."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from rich.console import Console
from sklearn.metrics import r2_score
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from torch import nn

import lr_env
from benchmarks.tasks import BUDGETS, Budget, Options, Outcome, check, main, make_table
from lr_env import Task, make_task, register_task, task_names
from lr_env.tasks import PERPLEXITY, R_SQUARED, Rosenbrock, Split, task_data_sets
from lr_env.tasks.__main__ import flops_per_step, row
from lr_env.tasks.datasets import DATASETS, is_available
from lr_env.tasks.models import CharacterTransformer, cnn, image_mlp, resnet
from lr_env.testing import check_task
from tests.rollouts import advance, roll_out, start

BUNDLED = {"breast-cancer-mlp", "diabetes-mlp", "digits-logreg", "digits-mlp", "digits-mlp-scaled", "noisy-quadratic", "rosenbrock", "wine-mlp"}
DOWNLOADED = {
    "cifar10-cnn": "cifar10",
    "cifar10-resnet": "cifar10",
    "fashion-cnn": "fashion-mnist",
    "fashion-mlp": "fashion-mnist",
    "mnist-autoencoder": "mnist",
    "mnist-cnn": "mnist",
    "mnist-mlp": "mnist",
    "shakespeare-transformer": "tinyshakespeare",
}
NAMES = sorted(BUNDLED | DOWNLOADED.keys())


def require_data(name: str) -> None:
    missing = [data_set for data_set in task_data_sets(name) if not is_available(data_set)]
    if missing:
        pytest.skip(f"no {', '.join(missing)} data; LR_ENV_DATA can name a folder that holds them")


def test_names_and_data_sets() -> None:
    assert set(NAMES) <= set(task_names()) and task_names() == sorted(task_names())
    for name in NAMES:
        assert all(map(is_available, task_data_sets(name))) or name in DOWNLOADED
    assert {name: task_data_sets(name) for name in DOWNLOADED} == {name: (data_set,) for name, data_set in DOWNLOADED.items()}
    with pytest.raises(ValueError, match=r"Unknown task 'digit-mlp'.*digits-mlp"):
        task_data_sets("digit-mlp")
    with pytest.raises(ValueError, match=r"Unknown data set 'mnits'.*Did you mean 'mnist'"):
        register_task("of-unknown-data", lambda: make_task("digits-mlp"), ("mnits",))
    assert "of-unknown-data" not in task_names()


@pytest.mark.parametrize("name", NAMES)
def test_every_task_learns_at_the_rate_of_its_budget(name: str) -> None:
    require_data(name)
    population = start(make_task(name), [0, 1], BUDGETS[name].optimizer, dtype="float32")
    first = population.begin()[0, 0]
    losses = np.array([population.step(np.full((2, 1), BUDGETS[name].rate))[0, 0] for _ in range(30)])
    assert (losses[-10:].mean(0) < first).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", NAMES)
def test_every_task_runs_an_episode(name: str, optimizer: str) -> None:
    require_data(name)
    env = gym.make("LearningRate-v0", task=name, horizon=5, optimizer=optimizer)
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    ended, length = False, 0
    while not ended:
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        ended, length = terminated or truncated, length + 1
        assert np.isfinite(reward) and not info["diverged"]
    assert length == 5
    if optimizer == "sgd":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env.unwrapped, skip_render_check=True)
            check_env_for_sb3(env.unwrapped)


@pytest.mark.parametrize("name", NAMES)
def test_every_task_passes_the_check(name: str) -> None:
    require_data(name)
    check_task(name)


@pytest.mark.parametrize("name", NAMES)
def test_vector_equals_single(name: str) -> None:
    require_data(name)
    options: dict[str, Any] = {"task": name, "horizon": 6, "dtype": "float64", "initial_rate": 0.01}
    together = roll_out(gym.make_vec("LearningRate-v0", num_envs=2, **options), np.zeros((5, 2, 1)), seed=0)
    alone = roll_out(gym.make("LearningRate-v0", **options), np.zeros((5, 1)), seed=1)
    np.testing.assert_allclose(together.values("loss")[:, 1], alone.values("loss"), rtol=1e-9)
    np.testing.assert_allclose(np.array(together.observations)[:, 1], np.array(alone.observations), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar10-cnn", "cifar10-resnet"])
def test_models_of_cifar10_learn_other_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randn(3, 3, 32, 32, generator=generator)[labels]  # one image per class, so that they are learned in a few steps
    monkeypatch.setitem(DATASETS, "cifar10", lambda: Split(images, labels).divide(0.1, 0.1))
    population = start(make_task.__wrapped__(name), [0], "momentum", dtype="float32")  # not the cached task
    first = population.begin()[0, 0]
    losses = np.array([population.step(np.array([[0.05]]))[0, 0] for _ in range(20)])
    assert losses[-1] < 0.5 * first


def _images(model: Callable[[], nn.Module], targets: torch.Tensor, loss: str) -> Task:
    return Task.from_tensors("images", model, torch.randn(40, 3, 8, 9, generator=torch.Generator().manual_seed(0)), targets, loss=loss, batch_size=4)


def _text() -> Task:
    tokens = torch.randint(7, (40, 7), generator=torch.Generator().manual_seed(0))
    model = partial(CharacterTransformer, vocabulary_size=7, context=6, width=8, num_heads=2, num_layers=1)
    return Task.from_tensors("text", model, tokens[:, :-1], tokens[:, 1:], batch_size=4, metric=PERPLEXITY)


SMALL_TASKS: dict[str, Callable[[], Task]] = {
    "autoencoder": lambda: _images(partial(image_mlp, (3, 8, 9), (12, 4, 12), 216), torch.rand(40, 216), "mean_squared_error"),
    "cnn": lambda: _images(partial(cnn, (3, 8, 9), (4, 5), 3), torch.arange(40) % 3, "cross_entropy"),
    "resnet": lambda: _images(partial(resnet, (3, 8, 9), (4, 8), 3, num_groups=2), torch.arange(40) % 3, "cross_entropy"),
    "rosenbrock": lambda: Rosenbrock(noise_deviation=0.1).task(),
    "transformer": _text,
}


@pytest.mark.parametrize("name", SMALL_TASKS)
def test_batched_equals_looped(name: str) -> None:
    task = SMALL_TASKS[name]()
    batched, looped = (start(task, range(3), gradients=engine) for engine in ("batched", "looped"))
    rates = np.full((4, 3), 0.05)
    np.testing.assert_allclose(advance(batched, rates), advance(looped, rates), rtol=1e-9)
    torch.testing.assert_close(batched.gradients, looped.gradients, rtol=1e-8, atol=1e-12)
    assert (batched.engine, looped.engine) == ("batched", "looped")
    results = [population.evaluate("validation") for population in (batched, looped)]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-9)
    if task.metric is not None:
        assert results[0].metrics is not None and results[0].metrics.shape == (3,)
        np.testing.assert_allclose(results[0].metrics, results[1].metrics, rtol=1e-9)


def test_rosenbrock_equals_its_formula() -> None:
    population = start(Rosenbrock().task(), range(4))
    losses = population.begin()[0, 0]
    for (x, y), loss, gradient in zip(population.parameters.numpy(), losses, population.gradients.numpy(), strict=True):
        assert loss == pytest.approx(((1 - x) ** 2 + 100 * (y - x**2) ** 2) / 100, rel=1e-12)
        np.testing.assert_allclose(gradient, [(-2 * (1 - x) - 400 * x * (y - x**2)) / 100, 2 * (y - x**2)], rtol=1e-10)
    distances = population.parameters.numpy() - [-1.2, 1.0]
    assert len(np.unique(distances)) == 8 and np.abs(distances).max() < 0.5
    population.state["parameters"][:] = 1.0
    assert (population.evaluate("test").losses == 0).all()


def test_rosenbrocks_noise_is_on_the_gradient_alone() -> None:
    task = Rosenbrock(noise_deviation=0.5, start_deviation=0.0).task()
    population = start(task, range(400))
    losses = population.begin()[0, 0]
    np.testing.assert_allclose(losses, 2.2**2 / 100 + 0.44**2, rtol=1e-6)
    noise = population.gradients.numpy() - [-0.044 - 4 * 1.2 * 0.44, -0.88]
    assert noise.mean() == pytest.approx(0, abs=0.06)
    assert noise.std() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("options", [{"noise_deviation": -1.0}, {"start_deviation": float("nan")}, {"horizon": 0}])
def test_rosenbrock_refuses_impossible_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"must be >= 0 and the horizon >= 1, but .*{next(iter(options))}"):
        Rosenbrock(**options)


@pytest.mark.parametrize("examples_per_pass", [2**16, 10])
def test_r_squared_equals_scikit_learns(monkeypatch: pytest.MonkeyPatch, examples_per_pass: int) -> None:
    for name in ("EXAMPLES_PER_PASS", "EXAMPLES_SIDE_BY_SIDE"):
        monkeypatch.setattr(f"lr_env.training.population.{name}", examples_per_pass)
    generator = torch.Generator().manual_seed(0)
    inputs, offset = torch.randn(60, 2, generator=generator), 1e4  # a mean far larger than the deviation
    targets = offset + inputs.sum(1) + 0.5 * torch.randn(60, generator=generator)
    task = Task.from_tensors("line", lambda: nn.Linear(2, 1), inputs, targets, loss="mean_squared_error", batch_size=4, metric=R_SQUARED)
    population = start(task, [0, 1])
    population.state["parameters"][:] = torch.tensor([[0.9, 1.1, offset], [0.0, 0.0, offset + 3]])
    evaluation, test = population.evaluate("test"), task.data.split("test")
    assert evaluation.metrics is not None
    for member, (first, second, bias) in enumerate(population.parameters):
        expected = r2_score(test.targets.double(), test.inputs.double() @ torch.stack([first, second]) + bias)
        assert evaluation.metrics[member] == pytest.approx(expected, rel=1e-6)
    assert evaluation.metrics[0] > 0.5 > 0 > evaluation.metrics[1]


def test_r_squared_refuses_several_outputs() -> None:
    task = Task.from_tensors(
        "plane", lambda: nn.Linear(2, 2), torch.randn(40, 2), torch.randn(40, 2), loss="mean_squared_error", batch_size=4, metric=R_SQUARED
    )
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        start(task, [0]).evaluate("test")


@pytest.mark.parametrize("batches_per_pass", [32, 1])
def test_perplexity_is_the_exponential_of_the_mean_loss(monkeypatch: pytest.MonkeyPatch, batches_per_pass: int) -> None:
    monkeypatch.setattr("lr_env.training.population.BATCHES_PER_PASS", batches_per_pass)
    evaluation = start(_text(), [0, 1]).evaluate("test")
    np.testing.assert_allclose(evaluation.metrics, np.exp(evaluation.losses), rtol=1e-12)


def test_the_autoencoder_maps_images_to_themselves() -> None:
    require_data("mnist-autoencoder")
    task = make_task("mnist-autoencoder")
    test = task.data.split("test")
    assert torch.equal(test.targets, test.inputs.view(10_000, 784)) and test.targets.data_ptr() == test.inputs.data_ptr()
    evaluation = start(task, [0], dtype="float32").evaluate("test", np.arange(50))
    expected = (task.initial_model(0)(test.inputs[:50]) - test.inputs[:50].flatten(1)).square().mean().item()
    assert evaluation.losses[0] == pytest.approx(expected, rel=1e-5)
    assert evaluation.metrics == pytest.approx(evaluation.losses)


def test_flops_of_a_linear_model() -> None:
    # Forward and the weights' gradient: one product of 64 × 64 by 64 × 10 each; the inputs need no gradient.
    assert flops_per_step(make_task("digits-logreg")) == 2 * 2 * 64 * 64 * 10


def test_the_listing_shows_what_is_not_at_hand_without_downloading_it(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    environment = {name: value for name, value in os.environ.items() if name != "LR_ENV_DATA"} | {"HOME": str(home), "XDG_CACHE_HOME": str(cache)}
    package = Path(lr_env.__file__).parents[1]
    command = [sys.executable, "-W", "error", "-m", "lr_env.tasks"]
    listing = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=True)
    assert listing.stderr == ""
    rows = {line.split()[0]: line for line in listing.stdout.splitlines()}
    for name in NAMES:
        assert ("not at hand" in rows[name]) == (name in DOWNLOADED)
        assert DOWNLOADED.get(name, "") in rows[name]
    assert not list(tmp_path.rglob("*.gz"))


def test_a_row_of_the_listing() -> None:
    expected = ("diabetes-mlp", "diabetes", "310 / 66 / 66", "193", "0.02", "32", "100", "R²", "")
    assert row("diabetes-mlp") == expected
    assert row("digits-mlp-scaled")[-1] == "inputs × 10^(-0.75 to 0.75)"


def test_every_task_has_a_budget() -> None:
    assert sorted(BUDGETS) == NAMES
    required = {name: budget.required for name, budget in BUDGETS.items() if budget.required}
    assert required == {
        "digits-mlp": "metric ≥ 0.95",
        "fashion-cnn": "metric ≥ 0.84",
        "mnist-cnn": "metric ≥ 0.97",
        "mnist-mlp": "metric ≥ 0.95",
        "shakespeare-transformer": "loss < 2.2",
    }


def test_the_check_of_a_task_trains_it() -> None:
    outcome = check("digits-mlp", BUDGETS["digits-mlp"], Options())
    assert outcome.reached is True and outcome.metric is not None and outcome.metric >= 0.95 and outcome.metric_name == "accuracy"
    assert outcome.loss is not None and 0 < outcome.loss < 0.3 and outcome.seconds is not None
    untrained = check("digits-mlp", Budget("sgd", 1e-9, 1, least_metric=0.95), Options())
    assert untrained.reached is False and untrained.loss == pytest.approx(np.log(10), rel=0.1)


def test_missing_data_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.tasks.is_available", lambda name: name != "mnist")
    main(Options(tasks=("mnist-cnn", "noisy-quadratic"), output=tmp_path / "tasks.json"))
    printed = capsys.readouterr().out
    assert "no mnist data" in printed and "noisy-quadratic" in printed
    assert '"missing": [\n   "mnist"\n  ]' in (tmp_path / "tasks.json").read_text()


def test_a_requirement_that_is_not_met_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.tasks.BUDGETS", {"digits-logreg": Budget("sgd", 0.1, 1, largest_loss=0.1)})
    with pytest.raises(SystemExit, match=r"Not reached: digits-logreg\."):
        main(Options(tasks=("digits-logreg",), output=tmp_path / "tasks.json"))
    assert '"reached": false' in (tmp_path / "tasks.json").read_text()
    with pytest.raises(ValueError, match="Unknown task with a budget 'digits-mlp'"):
        main(Options(tasks=("digits-mlp",)))


def test_the_table_shows_outcomes() -> None:
    budget = Budget("adam", 0.003, 1000, largest_loss=2.2)
    console = Console(width=140, record=True, file=io.StringIO())
    outcomes = [Outcome("text", budget, (), loss, np.exp(loss), "perplexity", 12.34) for loss in (2.0, 2.3)]
    console.print(make_table(outcomes))
    text = console.export_text()
    assert "7.389 perplexity" in text and "loss < 2.2" in text and "yes" in text and "NO" in text and "12.3" in text
