"""The parts that benchmarks are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agents.schedules import constant
from benchmarks import time_to_result
from benchmarks.baselines import extended_search, grid
from benchmarks.lr_bench.engine import LocalEngine
from benchmarks.memory import peak_bytes, reset_peak
from benchmarks.runner import compare, require_accuracy, run
from benchmarks.statistics import check_sample
from benchmarks.terminal import check_output, run_command
from benchmarks.time_to_result import Run, Watch, make_table
from lr_env import MDP, BoundController, LearningRateEnv
from lr_env.seeding import Role, role_seeds


def test_runner_equals_the_single_environment() -> None:
    result = run(constant(0.5).bind(), "digits-mlp-scaled", [7, 9], horizon=20)
    for member, seed in enumerate([7, 9]):
        environment = LearningRateEnv("digits-mlp-scaled", horizon=20, features=["log_loss"], action="rate")
        environment.reset(seed=seed)
        for _ in range(20):
            _, _, _, _, info = environment.step(np.array([0.5]))
        assert result.scores[member] == pytest.approx(np.log10(environment.evaluate("train").losses[0]), abs=1e-4)
        assert result.losses[-1, member] == pytest.approx(info["loss"], rel=1e-3)
    assert result.rates.shape == (20, 2)
    assert result.losses.shape == (21, 2)


def test_diverged_training_scores_initial_loss_plus_one() -> None:
    class ExplodeFirst:
        """Member 0 explodes at its third step, member 1 never."""

        def __init__(self) -> None:
            self.calls = 0

        def predict(
            self, observation: np.ndarray, state: object = None, episode_start: object = None, deterministic: bool = False
        ) -> tuple[np.ndarray, object]:
            self.calls += 1
            return np.array([[1e6 if self.calls == 3 else 0.1], [0.1]]), state

    bounds = {"explode": BoundController(ExplodeFirst(), MDP(action="rate")), "steady": constant(0.1).bind()}
    results = compare(bounds, "digits-mlp", [0, 1], horizon=10)
    exploded, steady = results["explode"], results["steady"]
    with pytest.raises(TypeError, match=r"for 'alone': bind it, BoundController\("):
        compare({"alone": ExplodeFirst()}, "digits-mlp", [0, 1])  # type: ignore[dict-item]
    np.testing.assert_array_equal(exploded.diverged, [True, False])
    untrained = run(constant(1e-12).bind(), "digits-mlp", [0, 1], horizon=1)
    assert exploded.scores[0] == pytest.approx(untrained.scores[0] + 1, abs=1e-4)
    assert exploded.scores[1] == pytest.approx(steady.scores[1], abs=1e-4)
    assert np.isnan(exploded.rates[4:, 0]).all()


def test_what_can_t_be_written_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Options:
        output: Path = Path("results/numbers.json")

    worked: list[Path] = []
    (tmp_path / "file").touch()

    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["numbers", *arguments])
        run_command(lambda options: worked.append(options.output), Options, None)

    for output, message in (("", "must be a file, but .* is a folder"), ("file/numbers.json", "file is a file, not a folder")):
        with pytest.raises(SystemExit, match=f"numbers: output .*{message}"):
            run("--output", str(tmp_path / output))
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "deeper", is_file=False)
    assert worked == []
    run("--output", str(tmp_path / "new" / "numbers.json"))
    check_output(tmp_path / "new" / "folder", is_file=False)
    assert worked == [tmp_path / "new" / "numbers.json"]


def test_ctrl_c_ends_a_command_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Options:
        output: Path = Path("results")

    def interrupt(options: Options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["numbers"])
    with pytest.raises(SystemExit, match="130"):
        run_command(interrupt, Options, None)
    assert capsys.readouterr().err == "numbers: interrupted. What is finished is kept: the same command goes on.\n"


def test_what_would_mean_nothing_is_refused_before_the_work() -> None:
    with pytest.raises(ValueError, match="that of 'diabetes-mlp' is R²"):
        require_accuracy("diabetes-mlp")
    with pytest.raises(ValueError, match="that of 'rosenbrock' is none"):
        require_accuracy("rosenbrock")
    with pytest.raises(ValueError, match="trainings must be at least 2"):
        check_sample("trainings", 1)
    with pytest.raises(ValueError, match="workers must be an integer >= 1"):
        LocalEngine(0)


def test_time_to_result_is_kept_for_its_options(tmp_path: Path) -> None:
    output = tmp_path / "runs.json"
    output.write_text('{"settings": {"steps": 1, "interval": 1, "trainings": 2}, "runs": []}')
    with pytest.raises(SystemExit, match=r"is from a run with .*'steps': 1.*Remove it"):
        time_to_result.main(time_to_result.Options(output=output))


def test_the_peak_of_memory_is_of_what_follows() -> None:
    before = reset_peak()
    if before is None:
        pytest.skip("Only Linux tells.")
    np.ones(8_000_000)
    assert peak_bytes() - before > 50e6


def test_search_extends_a_grid_whose_edge_wins() -> None:
    tuned = extended_search(lambda rate: (np.log10(rate) - 3.0) ** 2, grid(-3), 1e-6, 1e6)
    assert np.log10(tuned.best) == pytest.approx(3.0, abs=0.17)
    assert max(tuned.scores) > tuned.best
    bounded = extended_search(lambda rate: -rate, grid(-3), 1e-6, 10.0)
    assert bounded.best <= 10.0


def test_seeds_of_roles_are_disjoint() -> None:
    seeds = [set(role_seeds(0, role, 1_000)) for role in Role]
    assert all(len(part) == 1_000 for part in seeds)
    assert len(set.union(*seeds)) == 4_000
    assert role_seeds(0, Role.TUNE, 5) == role_seeds(0, Role.TUNE, 5) != role_seeds(1, Role.TUNE, 5)


def test_time_to_result_stops_when_both_bars_are_passed() -> None:
    run = Run("DDPG", False, 0, 1.0)
    scores = iter([0.7, 0.5, -0.3, -0.3, -0.9])
    watch = Watch(run, (-0.2, -0.6), lambda: next(scores), interval=10)
    assert [watch(steps) for steps in (5, 10, 15, 20, 30, 40)] == [True, True, True, True, True, False]
    assert run.steps == 40
    assert run.seconds_to_constant is not None and run.seconds_to_polyak is not None
    assert 0 <= run.seconds_to_constant <= run.seconds_to_polyak
    before = Run("DDPG", True, 0, 1.0)
    Watch(before, (-0.2, -0.6), lambda: -0.3, interval=10)
    assert (before.seconds_to_constant, before.seconds_to_polyak) == (0.0, None)
    never = Run("DDPG", False, 1, 1.0, run.seconds_to_constant)
    cells = [column._cells for column in make_table([run, never]).columns]
    assert cells[2][:3] == ["0", "1", "median"] and cells[4][1:3] == ["never", "never"]
