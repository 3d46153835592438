"""What ``benchmarks.throughput`` measures: three trainings, and the loops and environments that run each of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import lr_env
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.throughput_dacbench import make_dacbench_env
from lr_env.mdp import FEATURE_SETS
from lr_env.seeding import Streams
from lr_env.tasks.models import CharacterTransformer, cnn
from lr_env.tasks.task import Split
from lr_env.training import Population, make_optimizer

HORIZON, SEED, RATE = 100, 0, 0.1
NUM_EXAMPLES = 3_000
NUM_CLASSES, VOCABULARY_SIZE, CONTEXT = 10, 65, 32
MEMORY_STEPS = 5
DEFAULT_FEATURES = "scale_free"

Device: TypeAlias = Literal["cpu", "cuda"]
TaskName: TypeAlias = Literal["mlp", "cnn", "transformer"]
Kind: TypeAlias = Literal["bare", "loader", "dacbench", "single", "sync", "dummy", "async", "subproc", "native", "sb3"]

LABELS: dict[Kind, str] = {
    "bare": "bare PyTorch loop",
    "loader": "PyTorch loop with DataLoader",
    "dacbench": "DACBench's SGDEnv",
    "single": "single, gym.make",
    "sync": "SyncVectorEnv",
    "dummy": "SB3 DummyVecEnv",
    "async": "AsyncVectorEnv",
    "subproc": "SB3 SubprocVecEnv",
    "native": "native",
    "sb3": "SB3 adapter",
}


@dataclass(frozen=True)
class Row:
    """One line of a table: what trains, and how many copies of the model."""

    kind: Kind
    members: int = 1
    compiled: bool = False
    threads: int = 1
    processes: int = 1
    features: str = DEFAULT_FEATURES
    device: Device = "cpu"

    @property
    def name(self) -> str:
        """For people."""
        parts = [LABELS[self.kind]]
        if self.kind not in ("bare", "loader", "dacbench", "single"):
            parts[0] += f" N = {self.members}"
        if self.compiled:
            parts.append("compiled")
        if self.features != DEFAULT_FEATURES:
            parts.append(f"features {self.features}")
        for number, unit in ((self.threads, "threads"), (self.processes, "processes")):
            if number > 1:
                parts.append(f"{number} {unit}")
        return ", ".join(parts)

    @property
    def is_plain(self) -> bool:
        """Whether it is the native vector environment in one process with one thread and default features."""
        return self.kind == "native" and self.threads == self.processes == 1 and self.features == DEFAULT_FEATURES


@dataclass(frozen=True)
class Training:
    """A row that is ready to be measured.

    Attributes:
        step: One call of the loop or the environment. It starts a new episode where one has ended.
        calls: Calls of ``step`` from one reset to the next.
        steps: SGD steps in these.
        env: What is stepped, if it is an environment.
    """

    step: Callable[[], object]
    calls: int = HORIZON
    steps: int = HORIZON
    env: Any = None

    def close(self) -> None:
        """Ends the environment's processes."""
        if self.env is not None:
            self.env.close()


def rows_on_gpu(members: tuple[int, ...], compiled: bool) -> list[Row]:
    """The lines of one task's table on a GPU. Small populations wait for launches, compiled or not."""
    adapted = max((n for n in members if n <= 1024), default=min(members))
    return [
        Row("bare", device="cuda"),
        Row("single", device="cuda"),
        *(Row("native", n, device="cuda") for n in members),
        *(Row("native", n, compiled, device="cuda") for n in sorted(members)[-2:] if compiled),
        Row("sb3", adapted, device="cuda"),
    ]


def rows(
    members: tuple[int, ...], parallel_members: tuple[int, ...], compiled: bool, largest_varied: int = 1024, with_dacbench: bool = False
) -> list[Row]:
    """The lines of one task's table; all rows that start processes by "fork" come before those that start threads.

    Args:
        members: Sizes of the native environment.
        parallel_members: Sizes of vectors of single environments.
        compiled: Whether there are compiled rows.
        largest_varied: Size of the native environment, at most, with other features, with the adapter, and on two cores.
        with_dacbench: Whether DACBench's environment has a row.
    """
    engines = (False, True) if compiled else (False,)
    several = [n for n in sorted(members) if 16 <= n <= largest_varied][-3:]  # fewer are not worth a second core
    adapted = max((n for n in members if n <= min(64, largest_varied)), default=min(members))
    return [
        Row("bare"),
        Row("loader"),
        *([Row("dacbench")] if with_dacbench else []),
        *(Row("single", compiled=engine) for engine in engines),
        *(Row(kind, n) for kind in ("sync", "dummy") for n in parallel_members[:1]),
        *(Row(kind, n) for kind in ("async", "subproc") for n in parallel_members),
        *(Row("native", n, engine) for engine in engines for n in members),
        *(Row("native", adapted, features=features) for features in FEATURE_SETS if features != DEFAULT_FEATURES),
        *(Row("sb3", adapted, engine) for engine in engines),
        *(Row("native", n, engine, processes=2) for engine in engines for n in several),
        *(Row("native", n, engine, threads=2) for engine in engines for n in several),
    ]


@cache
def make_task(name: TaskName) -> lr_env.Task:
    """A registered task for the mlp, seeded synthetic data for the others."""
    if name == "mlp":
        task = lr_env.make_task("digits-mlp")
        assert isinstance(task, lr_env.Task)
        return task
    generator = torch.Generator().manual_seed(SEED)
    if name == "cnn":
        images = torch.randn(NUM_EXAMPLES, 1, 28, 28, generator=generator)
        examples = Split(images, torch.randint(NUM_CLASSES, (NUM_EXAMPLES,), generator=generator))
        return lr_env.Task("cnn", partial(cnn, (1, 28, 28), (8, 16), NUM_CLASSES), "cross_entropy", examples.divide(), batch_size=64)
    text = torch.randint(VOCABULARY_SIZE, (NUM_EXAMPLES, CONTEXT + 1), generator=generator)
    model = partial(CharacterTransformer, VOCABULARY_SIZE, CONTEXT, width=64, num_heads=4, num_layers=1)
    return lr_env.Task("transformer", model, "cross_entropy", Split(text[:, :-1], text[:, 1:]).divide(), batch_size=16)


def make_training(name: TaskName, row: Row) -> Training:
    """Makes a row's loop or environment, reset and ready."""
    task = make_task(name)
    if row.kind == "bare":
        return _loop(task, _preloaded(task, row.device), row.device)
    if row.kind == "loader":
        return _loop(task, _loaded(task), row.device)
    if row.kind == "dacbench":
        return _dacbench_environment(task)
    if row.kind == "single":
        return _single_environment(task, row)
    if row.kind in ("sync", "async", "native"):
        return _vector_environment(task, row)
    return _sb3_environment(task, row)


def _loop(task: lr_env.Task, batches: Iterator[tuple[Tensor, Tensor]], device: Device) -> Training:
    """The loop that everybody writes."""
    model = task.make_model(np.random.SeedSequence(SEED)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        inputs, targets = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    return Training(step)


def _preloaded(task: lr_env.Task, device: Device) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of preloaded tensors, of indices that are drawn beforehand."""
    inputs, targets = (examples.to(device) for examples in _examples(task))
    generator = torch.Generator().manual_seed(SEED)
    indices = [torch.randperm(len(inputs), generator=generator)[: task.batch_size].to(device) for _ in range(HORIZON)]
    while True:
        for batch in indices:
            yield inputs[batch], targets[batch]


def _loaded(task: lr_env.Task) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    loader = DataLoader(TensorDataset(*_examples(task)), task.batch_size, shuffle=True, drop_last=True, generator=generator)
    while True:
        yield from loader


def _dacbench_environment(task: lr_env.Task) -> Training:
    env = make_dacbench_env(task, HORIZON, SEED)
    env.reset(seed=SEED)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(RATE)
        if terminated or truncated:
            env.reset()

    return Training(step, env=env)


def _single_environment(task: lr_env.Task, row: Row) -> Training:
    env = gym.make("LearningRate-v0", task=task, horizon=HORIZON, compile=row.compiled, device=row.device)
    env.reset(seed=SEED)
    action = np.zeros(1, np.float32)  # the rate stays where it is

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return Training(step, env=env)


def _vector_environment(task: lr_env.Task, row: Row) -> Training:
    """``gym.make_vec``: the step that resets is none of SGD."""
    arguments: dict[str, Any] = {"num_envs": row.members, "task": task, "horizon": HORIZON}
    if row.kind == "native":
        arguments |= {"compile": row.compiled, "device": row.device, "num_processes": row.processes, "features": row.features}
        arguments["num_threads"] = row.threads if row.device == "cpu" else os.cpu_count()  # there, for the draws of weights and orders
    else:
        arguments |= {"vectorization_mode": row.kind, "wrappers": [_with_one_thread]}
    if row.kind == "async":
        arguments["vector_kwargs"] = {"context": "fork"}  # other contexts import PyTorch anew in each worker
    env = gym.make_vec("LearningRate-v0", **arguments)
    env.reset(seed=SEED)
    actions = np.zeros((row.members, 1), np.float32)
    return Training(lambda: env.step(actions), HORIZON + 1, HORIZON * row.members, env)


def _sb3_environment(task: lr_env.Task, row: Row) -> Training:
    """Stable-Baselines3's environments, which reset in the step that ends."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv  # here, as the package is optional

    from agents.sb3 import make_sb3_env

    factories: list[Callable[[], gym.Env[Any, Any]]] = [partial(_make_single, task)] * row.members
    env: VecEnv
    if row.kind == "dummy":
        env = DummyVecEnv(factories)
    elif row.kind == "subproc":
        env = SubprocVecEnv(factories, start_method="fork")
    else:
        env = make_sb3_env(row.members, seed=SEED, task=task, horizon=HORIZON, compile=row.compiled, device=row.device)
    env.reset()
    actions = np.zeros((row.members, 1), np.float32)
    return Training(lambda: env.step(actions), HORIZON, HORIZON * row.members, env)


def _make_single(task: lr_env.Task) -> gym.Env[Any, Any]:
    return _with_one_thread(gym.make("LearningRate-v0", task=task, horizon=HORIZON))


def _with_one_thread(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Called in each worker, which starts with as many threads as there are cores."""
    torch.set_num_threads(1)
    return env


def flops_per_step(task: lr_env.Task) -> int:
    """Floating-point operations of one forward and backward pass, products and convolutions alone."""
    inputs, targets = (part[: task.batch_size] for part in _examples(task))
    model = task.make_model(np.random.SeedSequence(SEED))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(inputs), targets).backward()
    return int(counter.get_total_flops())


def matrix_product(device: Device = "cpu") -> Callable[[], float]:
    """A function that measures how many floating-point operations a second a large product makes: the limit of all rows."""
    size = 1024 if device == "cpu" else 8192
    generator = torch.Generator().manual_seed(SEED)
    left, right, product = (torch.randn(size, size, generator=generator).to(device) for _ in range(3))

    def measured() -> float:
        durations = []
        for _ in range(3):
            synchronise()
            start = time.perf_counter()
            torch.mm(left, right, out=product)
            synchronise()
            durations.append(time.perf_counter() - start)
        return 2 * size**3 / float(np.median(durations))

    return measured


def synchronise() -> None:
    """Waits for what a GPU has still to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def make_pure_training(name: TaskName, row: Row) -> Training:
    """What an environment's step cannot do without: order and gather of the data, forward, backward and update, in the same engine."""
    population = Population(make_task(name), row.members, make_optimizer("sgd")[0], compile=row.compiled, device=row.device)
    population.restart(np.arange(row.members), [Streams(SEED + member) for member in range(row.members)])
    rates = np.full((row.members, 1), RATE)
    population.begin()
    return Training(lambda: population.step(rates), 1, row.members)


def make_resets(training: Training) -> Training:
    """The resets of a row's environment alone; a step of it is a reset."""
    return Training(training.env.reset, 1, 1)


def peak_bytes_per_member(name: TaskName, row: Row) -> float | None:
    """Growth of a fresh process's peak memory by making the environment and a few steps, over N; None but on Linux.

    What the environment keeps of the data set, and a compiler loaded for it, are part of it. On a GPU, peak of what PyTorch's tensors take there.
    """
    if row.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _few_steps(name, row)
        return (torch.cuda.max_memory_allocated() - before) / row.members
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        growth = child.submit(_peak_growth, name, row).result()
    return None if growth is None else growth / row.members


def _peak_growth(name: TaskName, row: Row) -> int | None:
    torch.set_num_threads(1)
    make_task(name)
    before = reset_peak()
    if before is None:
        return None
    training = _few_steps(name, row)
    growth = peak_bytes() - before
    training.close()
    return growth


def _few_steps(name: TaskName, row: Row) -> Training:
    training = make_training(name, row)
    for _ in range(MEMORY_STEPS):
        training.env.step(np.zeros((row.members, 1), np.float32))
    return training


def _examples(task: lr_env.Task) -> tuple[Tensor, Tensor]:
    split = task.data.split("train")
    return split.inputs, split.targets
