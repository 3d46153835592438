"""The benchmark of throughput: its arithmetic on a clock that stands still between steps, and one very small run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import throughput
from benchmarks.throughput import Options, Repeat, Requirement, Result, measure, measure_once, requirements, warm_up
from benchmarks.throughput_dacbench import make_dacbench_env
from benchmarks.throughput_rows import Row, TaskName, Training, make_task, rows


@dataclass
class Machine:
    """Steps take the seconds they are said to take, ``slowness`` times."""

    now: float = 0.0
    slowness: float = 1.0
    order: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def training(self, name: str, seconds: float, calls: int = 10, steps: int = 10) -> Training:
        def step() -> None:
            self.now += seconds * self.slowness
            self.order.append(name)

        return Training(step, calls, steps)

    def limit(self) -> float:
        return 100.0 / self.slowness


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_bare_loop_is_measured_around_each_slice(machine: Machine) -> None:
    row, bare = machine.training("row", 2.0, calls=11, steps=40), machine.training("bare", 0.5)
    repeat = measure_once(row, bare, machine.limit, slices=[6, 5], bare_calls=2, clock=machine.clock)
    assert machine.order == ["bare"] * 2 + ["row"] * 6 + ["bare"] * 2 + ["row"] * 5 + ["bare"] * 2
    assert repeat == Repeat(speed=pytest.approx(40 / 22), bare_speed=pytest.approx(2.0), limit=100.0)


def test_ratio_and_share_do_not_depend_on_a_slow_machine(machine: Machine) -> None:
    row, bare = machine.training("row", 0.25), machine.training("bare", 0.5)
    repeats = []
    for slowness in (1.0, 5.0, 3.0):
        machine.slowness = slowness
        repeats.append(measure_once(row, bare, machine.limit, [10], 4, machine.clock))
    result = Result(Row("native"), flops=5, repeats=repeats)
    assert result.ratio == pytest.approx(2.0)
    assert result.share == pytest.approx(0.2)
    assert result.speed == pytest.approx(4 / 3)


def test_ratio_is_the_median_of_ratios(machine: Machine) -> None:
    result = Result(Row("native"), 1, [Repeat(10, 1, 100), Repeat(20, 10, 100), Repeat(30, 5, 100)])
    assert result.ratio == 6.0  # of the pairs 10, 2 and 6; the medians' ratio is 4
    assert result.overhead_share is None and result.reset_share is None


def test_shares_of_an_episode() -> None:
    """Of two members, whose 200 steps take as long as 250 of pure computation; resets take 10 of these."""
    result = Result(Row("native", 2), 1, [Repeat(2, 1, 100)], pure_ratio=0.8, resets_per_pure_step=0.1)
    assert result.reset_share == pytest.approx(0.04)
    assert result.overhead_share == pytest.approx(1 - 200 / 240)


@pytest.mark.parametrize(("seconds", "expected_slices"), [(0.01, 1), (0.2, 7)])
def test_whole_episodes_are_measured(machine: Machine, seconds: float, expected_slices: int) -> None:
    """Short ones several times, long ones in slices."""
    row, bare = machine.training("row", seconds), machine.training("bare", 0.1)
    repeats = measure(row, bare, machine.limit, Options(repeats=2, seconds=0.3), machine.clock)
    measured = "".join(name[0] for name in machine.order).rstrip("b")[machine.order.index("bare") :].lstrip("b")
    parts = [part for part in measured.split("b") if part]
    assert len(parts) == 2 * expected_slices
    assert len("".join(parts)) == (60 if expected_slices == 1 else 20)
    assert [repeat.speed for repeat in repeats] == [pytest.approx(1 / seconds)] * 2


def test_long_rows_are_measured_at_least_once(machine: Machine) -> None:
    row, bare = machine.training("row", 10.0), machine.training("bare", 0.1)
    repeats = measure(row, bare, machine.limit, Options(repeats=7, longest=250), machine.clock)
    assert len(repeats) == 3  # an episode takes 100 seconds


def test_warm_up_ignores_a_slow_first_call(machine: Machine) -> None:
    durations = iter([50.0, *[0.1] * 100])

    def step() -> None:
        machine.now += next(durations)

    assert warm_up(Training(step, calls=10), seconds=1.0, clock=machine.clock) == pytest.approx(0.1)


def test_threads_start_after_all_forks() -> None:
    names = [row.name for row in rows((1, 16, 64), (8, 64), compiled=True)]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.endswith("2 threads")] == names[-4:]
    assert not any("compiled" in row.name for row in rows((1, 16), (), compiled=False))


def test_large_populations_of_large_models_have_plain_rows_alone() -> None:
    found = rows((1, 4, 16, 64), (), compiled=True, largest_varied=16)
    assert {row.members for row in found if row.kind == "native" and row.is_plain} == {1, 4, 16, 64}
    assert {row.members for row in found if row.kind == "sb3" or (row.kind == "native" and not row.is_plain)} == {16}


@pytest.fixture
def result() -> Callable[..., Result]:
    """Of a row with this ratio, where the limit is 100 bare loops."""
    return lambda ratio, *row, **options: Result(Row(*row, **options), 1, [Repeat(ratio, 1.0, 100.0)])


def test_requirements(result: Callable[..., Result]) -> None:
    measured = [
        result(1.0, "bare"),
        result(0.9, "single"),
        result(6.0, "native", 64),
        dataclasses.replace(result(9.0, "native", 64, processes=2), native_ratio=1.4),
        dataclasses.replace(result(8.0, "native", 16, threads=2), native_ratio=1.8),
        dataclasses.replace(result(7.0, "sb3", 64), native_ratio=1 / 1.2),
        result(20.0, "native", 16, compiled=True),
        dataclasses.replace(result(3.0, "native", 1024), bytes_per_member=2.0**19),
        result(1.0, "async", 64),
        Result(Row("subproc", 64), 1),  # not installed
    ]
    found = {requirement.text: requirement for requirement in requirements({"mlp": measured})}
    assert found == {
        text: Requirement(text, pytest.approx(value), bound, text.endswith(("on top of the environment", "GiB")))
        for text, value, bound in [
            ("mlp: single, gym.make, against the bare loop", 0.9, 0.92),
            ("mlp: native N = 64, against the bare loop", 6.0, 5.0),
            ("mlp: at its best, native N = 16, compiled, against the bare loop", 20.0, 12),
            ("mlp: at its best, native N = 16, compiled, share of the limit", 0.2, 0.35),
            ("mlp: native N = 64, 2 processes, against the same on one core", 1.4, 1.7),
            ("mlp: native N = 1024, memory in GiB", 0.5, 1.0),
            ("mlp: SB3 adapter N = 64, on top of the environment", 0.2, 0.05),
            ("mlp: native N = 64, 2 processes, against AsyncVectorEnv N = 64", 9.0, 8),
        ]
    }
    assert [requirement.is_met for requirement in found.values()] == [False, True, True, False, False, True, False, True]


def test_requirements_of_the_cnn_hold_at_every_number_of_members(result: Callable[..., Result]) -> None:
    found = requirements({"cnn": [result(0.98, "native", 1), result(1.3, "native", 4), result(0.5, "native", 4, threads=2)]})
    assert [(requirement.measured, requirement.bound) for requirement in found] == [(0.98, 0.97), (1.3, 0.97), (1.3, 1.2)]


def test_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results" / "throughput.json"
    throughput.main(Options(tasks=("mlp",), members=(2,), parallel_members=0, repeats=1, seconds=0.1, compiled=False, output=output))
    content = json.loads(output.read_text())
    lines = {line["name"]: line for line in content["rows"]["mlp"]}
    assert list(lines) == [
        "bare PyTorch loop",
        "PyTorch loop with DataLoader",
        *(["DACBench's SGDEnv"] if find_spec("dacbench") else []),
        "single, gym.make",
        "native N = 2",
        *(f"native N = 2, features {name}" for name in ("absolute", "xu2017", "daniel2016", "xu2019", "solar2026")),
        "SB3 adapter N = 2",
    ]
    assert all(len(line["repeats"]) == 1 and line["ratio"] > 0 and line["flops"] > 3 * 64 * 64 * 32 for line in lines.values())
    assert content["options"]["repeats"] == 1
    assert content["machine"]["torch"]
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "Requirements" in capsys.readouterr().out
    assert not list(output.parent.glob("*.unfinished"))

    shown = tmp_path / "shown" / "throughput.json"
    throughput.main(Options(show=(output,), output=shown))
    assert "Requirements" in capsys.readouterr().out
    assert shown.with_suffix(".png").read_bytes() == output.with_suffix(".png").read_bytes()
    assert shown.with_suffix(".md").read_text() == output.with_suffix(".md").read_text()
    assert "| native N = 2 |" in shown.with_suffix(".md").read_text()
    assert not shown.exists()


def test_files_of_earlier_runs_that_do_not_fit_are_refused(tmp_path: Path, result: Callable[..., Result]) -> None:
    options = Options(tasks=("mlp",))
    (first := tmp_path / "first.json").write_text(json.dumps(throughput.as_json({"mlp": [result(1.0, "bare")]}, options), default=str))
    (other := tmp_path / "other.json").write_text('{"rows": {"cnn": [{"row": 3}]}}')
    (unknown := tmp_path / "unknown.json").write_text(first.read_text().replace('"mlp"', '"resnet"'))
    with pytest.raises(ValueError, match="is of mlp, as another"):
        throughput.main(dataclasses.replace(options, show=(first, first), output=tmp_path / "shown.json"))
    with pytest.raises(ValueError, match="does not hold the numbers"):
        throughput.main(dataclasses.replace(options, show=(first, other), output=tmp_path / "shown.json"))
    with pytest.raises(ValueError, match="is of resnet, but tasks are mlp, cnn, transformer"):
        throughput.main(dataclasses.replace(options, show=(unknown,), output=tmp_path / "shown.json"))
    assert not list(tmp_path.glob("shown*"))


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped at its second row; the first one is not measured again."""
    monkeypatch.setattr(throughput, "task_rows", lambda name, options: [Row("bare"), Row("native", 2)])
    options = Options(tasks=("mlp",), repeats=1, seconds=0.01, output=tmp_path / "throughput.json")
    measured: list[Row] = []
    measure_row = throughput.measure_row

    def stopped(name: TaskName, row: Row, *arguments: Any) -> Result:
        measured.append(row)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure_row(name, row, *arguments)

    monkeypatch.setattr(throughput, "measure_row", stopped)
    with pytest.raises(KeyboardInterrupt):
        throughput.main(options)
    assert not options.output.exists()
    with pytest.raises(SystemExit, match="is from a run with"):
        throughput.main(dataclasses.replace(options, repeats=2))
    throughput.main(options)
    assert measured == [Row("bare"), Row("native", 2), Row("native", 2)]
    assert [line["name"] for line in json.loads(options.output.read_text())["rows"]["mlp"]] == ["bare PyTorch loop", "native N = 2"]


@pytest.mark.skipif(find_spec("dacbench") is None, reason="DACBench is not installed")
def test_dacbench_trains_the_same_model_on_the_same_data() -> None:
    task = make_task("mlp")
    env = make_dacbench_env(task, horizon=3, seed=0)
    env.reset(seed=0)
    assert sum(parameter.numel() for parameter in env.model.parameters()) == 64 * 32 + 32 + 32 * 10 + 10
    assert len(env.train_loader) == len(task.data.split("train")) // task.batch_size
    before = [parameter.clone() for parameter in env.model.parameters()]
    assert [env.step(0.01)[3] for _ in range(3)] == [False, False, True]
    assert not any(map(torch.equal, before, env.model.parameters()))
