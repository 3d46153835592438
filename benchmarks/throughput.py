"""How many SGD steps per second does an environment leave of what a bare PyTorch loop makes?

Run ``python -m benchmarks.throughput``. All rows train the same model on the same batches' sizes, with one torch thread, default
features and one SGD step per action; resets are included. A row is measured between two measurements of the bare loop, so that
a machine whose speed drifts slows both alike; ratios are medians over repeats.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lr_env
from benchmarks.terminal import make_console

TASK, HORIZON, BATCH_SIZE, SEED = "digits-mlp", 100, 64, 0
RATE = 0.1

Run = Callable[[int], int]
"""Trains for a number of episodes and returns the SGD steps made."""


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    repeats: int = 9
    """Measurements per row; at least 7 for medians that hold."""
    seconds: float = 0.3
    """Shortest duration of a measurement; one episode of the whole row at least."""
    members: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Sizes of the native vector environment."""
    output: Path = Path("results/throughput.json")
    """Where the numbers go."""


@dataclass(frozen=True)
class Row:
    """One line of the table; ``run`` is None where an optional package is missing."""

    name: str
    run: Run | None
    required: float | None = None


@dataclass(frozen=True)
class Result:
    """Medians over repeats, and all ratios; None where the row was skipped."""

    name: str
    steps_per_second: float | None
    ratio: float | None
    required: float | None
    ratios: list[float]


def bare_loop() -> Run:
    """The loop that everybody writes: preloaded tensors, precomputed batches of indices."""
    inputs, targets = _training_data()
    generator = torch.Generator().manual_seed(SEED)
    batches = [torch.randperm(len(inputs), generator=generator)[:BATCH_SIZE] for _ in range(HORIZON)]
    step = _sgd_step()

    def run(episodes: int) -> int:
        for _ in range(episodes):
            for batch in batches:
                step(inputs[batch], targets[batch])
        return episodes * HORIZON

    return run


def loader_loop() -> Run:
    """The same with PyTorch's ``DataLoader``."""
    dataset = TensorDataset(*_training_data())
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(SEED))
    step = _sgd_step()

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    endless = batches()

    def run(episodes: int) -> int:
        for _ in range(episodes * HORIZON):
            inputs, targets = next(endless)
            step(inputs, targets)
        return episodes * HORIZON

    return run


def single_environment() -> Run:
    """``gym.make``."""
    env = gym.make("LearningRate-v0", task=TASK, horizon=HORIZON)
    env.reset(seed=SEED)
    action = np.zeros(1, np.float32)  # the rate stays where it is

    def run(episodes: int) -> int:
        for _ in range(episodes):
            env.reset()
            ended = False
            while not ended:
                _, _, terminated, truncated, _ = env.step(action)
                ended = terminated or truncated
        return episodes * HORIZON

    return run


def vector_environment(num_envs: int, vectorization_mode: str | None = None) -> Run:
    """``gym.make_vec``: native without a mode. The step that resets is none of SGD."""
    env = gym.make_vec("LearningRate-v0", num_envs=num_envs, vectorization_mode=vectorization_mode, task=TASK, horizon=HORIZON)
    env.reset(seed=SEED)
    actions = np.zeros((num_envs, 1), np.float32)

    def run(episodes: int) -> int:
        for _ in range(episodes * (HORIZON + 1)):
            env.step(actions)
        return num_envs * episodes * HORIZON

    return run


def sb3_environment(num_envs: int) -> Run | None:
    """The adapter to Stable-Baselines3; None where that is not installed."""
    if find_spec("stable_baselines3") is None:
        return None
    from agents.sb3 import make_sb3_env

    env = make_sb3_env(num_envs, seed=SEED, task=TASK, horizon=HORIZON)
    env.reset()
    actions = np.zeros((num_envs, 1), np.float32)

    def run(episodes: int) -> int:
        for _ in range(episodes * HORIZON):
            env.step(actions)
        return num_envs * episodes * HORIZON

    return run


def measure(bare: Run, rows: list[Row], repeats: int, seconds: float) -> list[Result]:
    """Measures all rows in turn, ``repeats`` times, the bare loop before and after each."""
    runs = {row.name: row.run for row in rows if row.run is not None}
    episodes = {name: _episodes_within(run, seconds) for name, run in runs.items()}
    bare_episodes = _episodes_within(bare, seconds)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in track(range(repeats), "Measuring", transient=True):
        before = _steps_per_second(bare, bare_episodes)
        for name, run in runs.items():
            speed = _steps_per_second(run, episodes[name])
            after = _steps_per_second(bare, bare_episodes)
            speeds[name].append(speed)
            ratios[name].append(2 * speed / (before + after))
            before = after
    return [
        Result(row.name, float(np.median(speeds[row.name])), float(np.median(ratios[row.name])), row.required, ratios[row.name])
        if row.name in runs
        else Result(row.name, None, None, row.required, [])
        for row in rows
    ]


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, str | int | None]:
    """What the numbers hold for."""
    information = Path("/proc/cpuinfo")  # on Linux, the one system where `platform` does not know the processor
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "gymnasium")},
    }


def table(results: list[Result]) -> Table:
    """The results for people."""
    printed = Table(title=f"{TASK}, batch {BATCH_SIZE}, horizon {HORIZON}, one torch thread, resets included")
    printed.add_column("")
    for column in ("SGD steps/s", "ratio to bare loop", "required"):
        printed.add_column(column, justify="right")
    for result in results:
        required = "" if result.required is None else f"≥ {result.required:g}"
        if result.ratio is None:
            printed.add_row(result.name, "skipped:", "not installed", required)
        else:
            printed.add_row(result.name, f"{result.steps_per_second:,.0f}", f"{result.ratio:.2f}", required)
    return printed


def main(options: Options) -> None:
    """Measures, prints the table and writes the file."""
    with one_thread():
        bare = bare_loop()
        rows = [
            Row("bare PyTorch loop", bare),
            Row("PyTorch loop with DataLoader", loader_loop()),
            Row("single, gym.make", single_environment(), required=0.8),
            *(Row(f"vector N = {n}, native", vector_environment(n), required=4.0 if n == 64 else None) for n in options.members),
            Row("vector N = 8, SyncVectorEnv", vector_environment(8, "sync")),
            Row("Stable-Baselines3 adapter N = 64", sb3_environment(64)),
        ]
        results = measure(bare, rows, options.repeats, options.seconds)
    make_console().print(table(results))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "repeats": options.repeats, "rows": [asdict(result) for result in results]}
    options.output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"Written to {options.output}.")


def _training_data() -> tuple[Tensor, Tensor]:
    task = lr_env.make_task(TASK)
    assert isinstance(task, lr_env.Task)
    split = task.data.split("train")
    return split.inputs, split.targets


def _sgd_step() -> Callable[[Tensor, Tensor], None]:
    task = lr_env.make_task(TASK)
    assert isinstance(task, lr_env.Task)
    model = task.make_model(np.random.SeedSequence(SEED))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    return step


def _episodes_within(run: Run, seconds: float) -> int:
    """Episodes that take about this long, at least one; also the warm-up."""
    run(1)
    start = time.perf_counter()
    run(1)
    return max(1, round(seconds / (time.perf_counter() - start)))


def _steps_per_second(run: Run, episodes: int) -> float:
    start = time.perf_counter()
    steps = run(episodes)
    return steps / (time.perf_counter() - start)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
