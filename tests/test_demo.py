"""The demo on a small budget, and DDPG where the best schedule is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import lr_env
from benchmarks import demo, noisy_quadratic
from benchmarks.runner import Runner
from lr_env.seeding import Role, role_seeds
from lr_env.tasks.noisy_quadratic import SHIPPED_QUADRATIC


@pytest.fixture
def options(tmp_path: Path) -> demo.Options:
    return demo.Options(seed=3, steps=1_200, num_envs=4, evaluations=2, trainings=4, output=tmp_path)


def test_demo_writes_table_controller_and_picture(options: demo.Options, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(options)
    results = json.loads((options.output / "results.json").read_text())
    rows = {row["name"]: row for row in results["table"]}
    assert len(rows) == 10
    hindsight, learned = rows[demo.HINDSIGHT]["score"], rows[demo.LEARNED]["score"]
    assert all(hindsight <= rows[f"Best shared {shape}"]["score"] for shape in ("constant", "cosine", "step"))
    difference = rows["SPS, tuned constant"]["difference"]
    assert difference["mean"] == pytest.approx(learned - rows["SPS, tuned constant"]["score"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert all(len(tuned["scores"]) >= 14 for tuned in results["tuned"].values())
    assert (options.output / "demo.png").stat().st_size > 10_000
    lr_env.load_controller(options.output / "controller.safetensors")
    assert "DDPG (learned)" in capsys.readouterr().out


def test_demo_resumes_a_killed_training(options: demo.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    _, best, seconds_file = demo.training_files(options)
    whole, _ = demo.train(options)
    expected = best.read_bytes()
    for file in options.output.iterdir():
        file.unlink()
    evaluations = []

    def die_in_second_evaluation(self: object, bound: object) -> object:
        evaluations.append(bound)
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return run(self, bound)

    run = demo.RunnerCache.run
    monkeypatch.setattr(demo.RunnerCache, "run", die_in_second_evaluation)
    with pytest.raises(KeyboardInterrupt):
        demo.train(options)
    monkeypatch.setattr(demo.RunnerCache, "run", run)
    demo.train(dataclasses.replace(options, seed=4))  # in between, in the same folder
    before = json.loads(seconds_file.read_text())
    assert demo.train(options)[1] > before > 0
    assert best.read_bytes() == expected
    assert whole.mdp == lr_env.load_controller(best).mdp


def test_ddpg_is_no_worse_than_the_best_schedule_of_the_noisy_quadratic() -> None:
    best = SHIPPED_QUADRATIC.expected_losses(SHIPPED_QUADRATIC.best_schedule())[-1]
    constant = SHIPPED_QUADRATIC.expected_losses(np.full(SHIPPED_QUADRATIC.horizon, SHIPPED_QUADRATIC.best_constant()))[-1]
    assert best <= 0.7 * constant
    agent = noisy_quadratic.train(150_000, seed=0)
    runner = Runner(noisy_quadratic.TASK, agent.bind().mdp, role_seeds(0, Role.REPORT, 4_096))
    loss, _, _ = noisy_quadratic.mean_loss(runner, agent.actor)
    assert loss <= 1.05 * best
