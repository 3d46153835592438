"""Cells of a benchmark that nobody ran: losses are sums of known parts, so that every finding is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.lr_bench.records import Cell, CellResult, CellRole, Point
from benchmarks.lr_bench.suites import Suite, SuiteTask

HORIZON = 60
CONTROLLER = "ours"
OFFSETS: Mapping[str, float] = {
    "default rate": 0.5,
    "tuned per task": 0.0,
    "constant (shared)": 0.15,
    "cosine (shared)": 0.08,
    "SPS": 0.05,
    "schedule-free": 0.02,
    "AdamW (default)": 0.3,
    "hypergradient": 0.2,
    CONTROLLER: -0.06,
    f"{CONTROLLER}: same-instance replay": -0.02,
    f"{CONTROLLER}: population replay": 0.03,
    f"{CONTROLLER}: shuffled observations": 0.12,
    f"{CONTROLLER}: state-blind": 0.1,
    "random policy": 0.7,
}
"""Decades above the schedule that is tuned per task."""


def make_suite(num_tasks: int = 3, tracks: tuple[str, ...] = ("momentum", "adamw"), reporting: int = 10) -> Suite:
    """Tasks of all budgets; every second one scales its inputs."""
    budgets = ("short", "medium", "noise")
    tasks = tuple(
        SuiteTask(f"task-{i}", "digits-mlp" if i % 2 else "digits-mlp-scaled", HORIZON, budgets[i % 3], 4, reporting, 30, min(reporting, 10))  # type: ignore[arg-type]
        for i in range(num_tasks)
    )
    return Suite("synthetic", 1, "None.", tasks, tracks, ())


def make_cells(
    suite: Suite, offsets: Mapping[str, float] = OFFSETS, num_points: int = 30, training_seeds: int = 5, curves: bool = True, seed: int = 0
) -> Iterator[tuple[Cell, CellResult]]:
    """All cells of a finished run."""
    generator = np.random.default_rng(seed)
    for track in suite.tracks:
        for k, task in enumerate(suite.tasks):
            seeds = np.arange(1000 * k, 1000 * k + task.reporting)
            base = -1 + 0.1 * k + generator.normal(0, 0.05, len(seeds))
            shared = np.array([0.06 if k % 2 else -0.02])  # what a controller is better at on some tasks
            for contestant, offset in offsets.items():
                is_ours = contestant.startswith(CONTROLLER)
                trained = range(training_seeds) if is_ours else (None,)
                for training_seed in trained:
                    point: Point = {} if training_seed is None else {"training_seed": training_seed}
                    scores = base + offset + (shared if is_ours else 0) + generator.normal(0, 0.02, len(seeds))
                    diverged = (generator.random(len(seeds)) < 0.2) if contestant == "random policy" else np.zeros(len(seeds), bool)
                    yield _cell(suite, track, task.name, contestant, "report", point, seeds), _result(scores, diverged, generator, curves)
            for contestant in ("constant (shared)", "cosine (shared)", "SPS"):
                for i in range(3):
                    scores = -1 + OFFSETS[contestant] + 0.1 * i + generator.normal(0, 0.02, 4)
                    yield (
                        _cell(suite, track, task.name, contestant, "tune", {"rate": 10.0**-i}, seeds[:4] + 500),
                        _result(scores, np.zeros(4, bool), generator),
                    )
            for shape, gain in (("constant", 0.0), ("cosine", 0.1 if task.budget != "short" else 0.01)):
                for i in range(3):
                    scores = np.full(4, -1 - gain + 0.1 * i)
                    point = {"shape": shape, "rate": 10.0**-i}
                    yield (
                        _cell(suite, track, task.name, "tuned per task", "tune", point, seeds[:4] + 500),
                        _result(scores, np.zeros(4, bool), generator),
                    )
            for i in range(num_points):
                quality = generator.exponential(0.3) - 0.03
                for role, count in (("tune", 4), ("report", task.searching)):
                    scores = (base[:count] if role == "report" else -1 + 0.1 * k) + quality + generator.normal(0, 0.02, count)
                    chosen = seeds[:count] + (500 if role == "tune" else 0)
                    yield (
                        _cell(suite, track, task.name, "random search", role, {"index": i}, chosen),
                        _result(scores, np.zeros(count, bool), generator),
                    )


def _cell(suite: Suite, track: str, task: str, contestant: str, role: CellRole, point: Point, seeds: np.ndarray) -> Cell:
    return Cell(suite.key, track, task, {}, contestant, "0" * 8, role, point, tuple(map(int, seeds)))


def _result(scores: np.ndarray, diverged: np.ndarray, generator: np.random.Generator, curves: bool = False) -> CellResult:
    losses = rates = None
    if curves:
        time = np.linspace(0, 1, HORIZON + 1)[:, None]
        losses = 10 ** (scores * time**0.3 + generator.normal(0, 0.05, (HORIZON + 1, len(scores))))
        rates = 0.1 * (1 - 0.9 * time[1:]) * 10 ** generator.normal(0, 0.05, (HORIZON, len(scores)))
        losses[20:, diverged], rates[20:, diverged] = np.nan, np.nan
    tests = np.where(diverged, np.nan, 10 ** (scores + 0.1))
    return CellResult(np.where(diverged, 1.5, scores), diverged, tests, np.where(diverged, np.nan, 0.9 - 0.1 * scores), losses, rates, 1.5)
