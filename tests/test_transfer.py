"""Transfer of controllers, on tiny tasks: what the tables hold, resumption, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import StochasticPolyak
from agents.schedules import constant
from benchmarks import transfer
from benchmarks.baselines import RunnerCache
from benchmarks.runner import Result, Runner, run
from lr_env import MDP, BoundController, PolicyNetwork, Task, TaskFamily, load_controller, register_task, save_controller
from lr_env.seeding import Role, role_seeds
from lr_env.tasks import make_task, task_names
from tests.rollouts import tiny_task

TASK, FAMILY = "tiny-transfer", "tiny-transfer-family"
FEATURES = ["log_rate"]


def draw(generator: np.random.Generator) -> Task:
    return tiny_task(horizon=int(generator.integers(4, 9)))


if TASK not in task_names():
    register_task(TASK, tiny_task)
    register_task(FAMILY, lambda: TaskFamily(FAMILY, draw, num_variants=2))


def save(path: Path, optimizer: str = "momentum", seed: int = 0, action: str = "relative") -> str:
    policy = PolicyNetwork(len(FEATURES), 1, (4,), seed)
    policy.layers[-1].bias.data.fill_(0.3)  # type: ignore[union-attr]
    mdp = MDP(optimizer=optimizer, features=FEATURES, action=action, reward_on="reference", initial_rate_decades=1.0)
    save_controller(path, BoundController(policy, mdp))
    return str(path)


def make_options(folder: Path) -> transfer.Options:
    controllers = (f"first={save(folder / 'first.safetensors')}",)
    counts: dict[str, Any] = {"trainings": 3, "tuning_trainings": 2, "examples": 50, "horizons": (f"{TASK}=6",)}
    return transfer.Options(controllers, tasks=(TASK, FAMILY), starts_on=(TASK,), output=folder / "output", **counts)


@pytest.fixture
def options(tmp_path: Path) -> transfer.Options:
    return make_options(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> transfer.Transfer:
    benchmark = transfer.Transfer(make_options(tmp_path_factory.mktemp("finished")))
    benchmark.run()
    return benchmark


def results(benchmark: transfer.Transfer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(benchmark.path.read_text())
    return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], MDP]]:
    """Seeds and decision processes of all runs, whose trainings are replaced: the mean score of a schedule is lowest at 10^-2."""
    made: list[tuple[list[int], MDP]] = []

    def fake(self: RunnerCache, bound: BoundController) -> Result:
        made.append((self.seeds, bound.mdp))
        action = float(bound.controller.predict(np.zeros((1, 1)))[0].item())
        scores = (np.log10(action) + 2 if bound.mdp.action == "rate" else action) ** 2 + np.array(self.seeds) / 2**31
        nothing = np.zeros(len(scores))
        return Result(scores, nothing > 0, nothing, nothing, nothing, nothing)

    monkeypatch.setattr(RunnerCache, "run", fake)
    return made


def test_tables_hold_what_single_runs_give(finished: transfer.Transfer) -> None:
    summary = results(finished)
    assert list(summary["tasks"]) == [TASK, f"{FAMILY}/0", f"{FAMILY}/1"]
    row = summary["tasks"][TASK]
    assert (row["horizon"], row["trainings"], row["metric"]) == (6, 3, "accuracy")
    bound = load_controller(finished.options.output.parent / "first.safetensors")
    seeds = role_seeds(0, Role.REPORT, 3)

    def scores(other: BoundController, initial_rate: float | None = None) -> np.ndarray:
        mdp = dataclasses.replace(other.mdp, initial_rate=initial_rate, initial_rate_decades=0.0)
        return Runner(TASK, mdp, seeds, 6, 50).run(other.controller).scores

    own, controller = scores(bound), row["controllers"]["first"]
    assert controller["score"] == pytest.approx(own.mean(), abs=1e-6)
    rivals = {
        transfer.SHARED: constant(row["rivals"][transfer.SHARED]["choice"][1]).bind("momentum"),
        transfer.SHARED_POLYAK: StochasticPolyak(row["rivals"][transfer.SHARED_POLYAK]["choice"][1]).bind("momentum"),
    }
    for rival, other in rivals.items():
        assert controller["differences"][rival]["mean"] == pytest.approx((own - scores(other)).mean(), abs=1e-6)
    change = (scores(bound, 1.0) - own).mean()
    assert controller["starts"]["100"]["mean"] == pytest.approx(change, abs=1e-6)
    assert abs(change) > 0.01
    assert not summary["tasks"][f"{FAMILY}/0"]["controllers"]["first"]["starts"]


def test_prints_tables(finished: transfer.Transfer, capsys: pytest.CaptureFixture[str]) -> None:
    transfer.main(finished.options)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("first, untouched", f"{FAMILY}/1", "Mean: all tasks", "first × 0.01", "Rivals", "accuracy"))
    table = transfer.make_tables(results(finished))[0]
    difference = results(finished)["tasks"][TASK]["controllers"]["first"]["differences"][transfer.TUNED]
    assert next(iter(table.columns[3].cells)) == f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    text = finished.path.with_name("tables.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["Task", "steps", *transfer.RIVALS, "first"]
    assert [row[0] for row in rows[2:5]] == [TASK, f"{FAMILY}/0", f"{FAMILY}/1"]
    row = results(finished)["tasks"][TASK]
    assert rows[2][1:3] == ["6", f"{row['rivals'][transfer.SHARED]['score']:+.3f}"]
    assert rows[2][5].startswith(f"{row['controllers']['first']['score']:+.3f}")
    assert [row[0] for row in rows[-2:]] == ["first; all tasks", f"first; {FAMILY}"]


def test_means_are_those_over_tasks(finished: transfer.Transfer) -> None:
    summary = results(finished)
    for group, names in (("all tasks", list(summary["tasks"])), (FAMILY, [f"{FAMILY}/0", f"{FAMILY}/1"])):
        for rival in transfer.RIVALS:
            expected = np.mean([summary["tasks"][name]["controllers"]["first"]["differences"][rival]["mean"] for name in names])
            assert summary["means"][group]["first"]["differences"][rival]["mean"] == pytest.approx(expected)
    assert set(summary["means"]) == {"all tasks", FAMILY}  # one other task has no interval


def test_rivals_are_the_best_of_the_grid(finished: transfer.Transfer) -> None:
    tasks = {subject.name: finished.records.of(subject) for subject in finished.subjects}
    rivals = results(finished)["tasks"][TASK]["rivals"]
    tuned = tasks[TASK]["tuning"]
    assert len(tuned["constant"]) >= 15 and len(tuned["SPS"]) >= 15
    scores = {(name, float(rate)): entry["score"] for name in ("constant", "cosine", "step") for rate, entry in tuned[name].items()}
    assert min(scores, key=lambda key: scores[key]) == tuple(rivals[transfer.TUNED]["choice"])
    for shape, rival in (("constant", transfer.SHARED), ("SPS", transfer.SHARED_POLYAK)):
        points = [point for point in tuned[shape] if all(point in task["tuning"][shape] for task in tasks.values())]
        means = [np.mean([task["tuning"][shape][point]["score"] for task in tasks.values()]) for point in points]
        assert rivals[rival]["choice"] == [shape, float(points[int(np.argmin(means))])]


def test_rivals_are_tuned_on_other_trainings(options: transfer.Options, runs: list[tuple[list[int], MDP]]) -> None:
    summary = transfer.Transfer(options).run()
    tuning, reporting = role_seeds(0, Role.TUNE, 2), role_seeds(0, Role.REPORT, 3)
    assert set(tuning).isdisjoint(reporting)
    assert {tuple(seeds) for seeds, _ in runs} == {tuple(tuning), tuple(reporting)}
    reported = [mdp.action for seeds, mdp in runs if seeds == reporting]
    assert reported.count("relative") == 3 + 2  # three tasks, and two starts off on one of them
    assert not any(mdp.action == "relative" for seeds, mdp in runs if seeds == tuning)
    assert summary["tasks"][TASK]["rivals"][transfer.SHARED]["choice"] == ["constant", pytest.approx(0.01)]
    assert summary["tasks"][TASK]["rivals"][transfer.SHARED_POLYAK]["choice"] == ["SPS", pytest.approx(1.0)]


def test_resumes_a_killed_run_and_adds_controllers(
    options: transfer.Options, runs: list[tuple[list[int], MDP]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = transfer.Transfer(dataclasses.replace(options, output=tmp_path / "whole")).run()
    expected = len(runs)
    recorded = RunnerCache.run
    for survived in (20, expected - 4):  # killed while tuning, then while reporting
        runs.clear()

        def die(self: RunnerCache, bound: BoundController, survived: int = survived) -> Result:
            if len(runs) == survived:
                raise KeyboardInterrupt
            return recorded(self, bound)

        changed = dataclasses.replace(options, output=tmp_path / f"killed-{survived}")
        monkeypatch.setattr(RunnerCache, "run", die)
        with pytest.raises(KeyboardInterrupt):
            transfer.Transfer(changed).run()
        monkeypatch.setattr(RunnerCache, "run", recorded)
        assert transfer.Transfer(changed).run() == whole
        assert len(runs) == expected
    runs.clear()
    second = f"second={save(tmp_path / 'second.safetensors', seed=1)}"
    summary = transfer.Transfer(dataclasses.replace(changed, controllers=(*options.controllers, second))).run()
    assert len(runs) == 3 + 2
    assert summary["tasks"][TASK]["controllers"]["first"] == whole["tasks"][TASK]["controllers"]["first"]
    assert set(summary["tasks"][TASK]["controllers"]) == {"first", "second"}


def test_tasks_run_apart_and_are_put_together(options: transfer.Options, runs: list[tuple[list[int], MDP]], tmp_path: Path) -> None:
    whole = transfer.Transfer(dataclasses.replace(options, output=tmp_path / "whole")).run()
    names, together = list(whole["tasks"]), tmp_path / "together"
    for name in names:
        apart = transfer.Transfer(dataclasses.replace(options, tasks=(name,), output=tmp_path / name))
        assert list(apart.run()["tasks"]) == [name]
        shutil.copytree(tmp_path / name / "tasks", together / "tasks", dirs_exist_ok=True)
    runs.clear()
    assert transfer.Transfer(dataclasses.replace(options, output=together)).run() == whole
    assert len(runs) <= 2 * len(names)  # rivals at the points that the tasks share


def test_full_grid_and_costly_models(options: transfer.Options, runs: list[tuple[list[int], MDP]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_is_perceptron", lambda task: False)
    changed = dataclasses.replace(options, tasks=(TASK,), starts_on=(), costly_trainings=5, costly_tuning_trainings=1, full_grid=True)
    benchmark = transfer.Transfer(changed)
    summary = benchmark.run()
    record = benchmark.records.of(benchmark.subjects[0])
    assert len(record["tuning"]["cosine"]) == 15
    assert summary["tasks"][TASK]["trainings"] == 5
    assert max(len(seeds) for seeds, _ in runs) == transfer.COSTLY_SIDE_BY_SIDE
    offsets = np.array(role_seeds(0, Role.REPORT, 5)) / 2**31
    best = repr(summary["tasks"][TASK]["rivals"][transfer.SHARED]["choice"][1])
    np.testing.assert_allclose(record["reports"][f"constant {best}"]["scores"], offsets, atol=1e-9)  # in the order of the seeds


def test_what_is_a_perceptron() -> None:
    assert transfer._is_perceptron(tiny_task())
    variants = make_task("small-heldout")
    assert isinstance(variants, TaskFamily)
    for task in variants.variants:
        assert transfer._is_perceptron(task) == (" mlp " in task.name)


def test_evaluates_a_fixed_subset() -> None:
    bound = constant(0.05).bind()
    whole = run(bound, TASK, [1, 2])
    part = Runner(TASK, bound.mdp, [1, 2], num_examples=50, tests=False).run(bound.controller)
    every = Runner(TASK, bound.mdp, [1, 2], num_examples=10_000).run(bound.controller)
    np.testing.assert_array_equal(every.scores, whole.scores)
    np.testing.assert_array_equal(part.losses, whole.losses)
    assert (part.scores != whole.scores).all() and np.abs(part.scores - whole.scores).max() < 0.2
    assert part.test_metrics is None and np.isnan(part.test_losses).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"controllers": ("first",)}, "NAME=VALUE"),
        ({"controllers": ("a=x", "a=y")}, "given twice"),
        ({"tasks": ("tiny-transfr",)}, "Did you mean 'tiny-transfer'"),
        ({"tasks": ()}, "At least one task"),
        ({"tasks": (f"{FAMILY}/2",)}, f"{FAMILY} has 2 variants, but '{FAMILY}/2' was given. Pass one of {FAMILY}/0"),
        ({"starts_on": ("mnist",)}, "task of starts_on"),
        ({"horizons": ("digits-mlp=none",)}, "horizon of digits-mlp"),
        ({"trainings": 1}, "trainings must be at least 2"),
        ({"examples": 0}, "examples must be an integer >= 1"),
        ({"optimizer": "sgdd"}, "Unknown optimizer"),
        ({"optimizer": "adam"}, "'first' was made for optimizer 'momentum'.*--replace-optimizer"),
        ({"optimizer": "adam", "replace_optimizer": True, "trainings": 4}, "was begun with optimizer='momentum', trainings=3"),
    ],
)
def test_refuses(options: transfer.Options, changes: dict[str, Any], message: str) -> None:
    begun = transfer.Transfer(options)
    begun.records.save(begun.subjects[0])
    with pytest.raises(ValueError, match=message):
        transfer.Transfer(dataclasses.replace(options, **changes))


def test_refuses_missing_files_and_data(options: transfer.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        transfer.Transfer(dataclasses.replace(options, controllers=("a=nowhere",)))
    monkeypatch.setattr(transfer, "is_available", lambda data_set: data_set != "mnist")
    with pytest.raises(ValueError, match=r"not at hand: mnist\. Set LR_ENV_DATA"):
        transfer.Transfer(dataclasses.replace(options, tasks=(TASK, "mnist-mlp")))


def test_replaces_the_optimizer_where_asked_for(options: transfer.Options) -> None:
    benchmark = transfer.Transfer(dataclasses.replace(options, optimizer="adam", replace_optimizer=True))
    assert benchmark.contestants[0].bound.mdp.optimizer == "adam"
    assert benchmark.contestants[0].started(0.01).mdp.rate_range().initial == pytest.approx(1e-5)
