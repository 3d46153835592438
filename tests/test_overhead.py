"""The benchmark of ControllerLR's cost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.overhead import BOUND_PASSES, BOUND_SECONDS, BOUND_SHARE, Options, Result, kept_row, main, make_table, measure_layers, measure_network


def test_rows_of_layers_and_of_the_network() -> None:
    layers, network = measure_layers("adamw", 1000, 0.0), measure_network("momentum", 0.0)
    assert layers.parameters == 10 * (10**2 + 10)
    assert network.parameters == 16 * 10 + 32 * 145 + 10 * 801
    assert layers.training_step is None
    assert network.training_step is not None and network.training_step > network.controller > 0
    assert min(layers.controller, layers.update, layers.gradient_pass) > 0


def test_the_bound_is_a_share_of_long_steps_and_passes_of_others() -> None:
    result = Result("cnn", "sgd", 10, 4e-4, 1e-5, 1e-4, 0, training_step=0.02)
    assert result.bound == pytest.approx(BOUND_SHARE * 0.02)
    assert result.passes == pytest.approx(2.5)
    short = Result("cnn", "sgd", 10, 1e-4, 1e-5, 1e-4, 0, training_step=0.005)
    assert short.bound == pytest.approx(BOUND_SECONDS + BOUND_PASSES * 1e-4)
    assert short.passes == 0
    assert make_table([result, short]).row_count == 2


def test_the_command_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Options(parameters=(1000,), optimizers=("sgd",), compiles=(False,), seconds=0.0, output=tmp_path / "overhead.json"))
    rows = json.loads((tmp_path / "overhead.json").read_text())
    assert [(row["model"], row["optimizer"]) for row in rows] == [("layers", "sgd"), ("cnn", "sgd")]
    assert "passes" in capsys.readouterr().out
    assert not (tmp_path / "overhead.unfinished").exists()


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    options = Options(parameters=(1000,), optimizers=("sgd",), compiles=(False,), seconds=0.0, output=tmp_path / "overhead.json")
    before = kept_row(tmp_path / "overhead.unfinished", 0.0, 1000, "sgd", compiles=False)
    main(options)
    assert json.loads(options.output.read_text())[0] == dataclasses.asdict(before)
