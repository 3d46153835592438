"""Recorded computations against the same functions on arrays."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from lr_env.mdp import FEATURE_SETS, MDP
from lr_env.mdp.recording import Recording

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
NUM_MEMBERS, NUM_GROUPS = 5, 2
ACTIONS: dict[str, Any] = {"relative": "relative", "residual": "residual", "cosine": {"kind": "residual", "base": "cosine"}, "rate": "rate"}


def all_operations(table: Any, values: Any, mask: Any) -> Sequence[Any]:
    """Copies that are needed later and such that are not, views, updates in place, broadcasting."""
    doubled = 2 * values
    table[:1] = doubled
    table[1:2] = np.sqrt(abs(values))
    table += doubled.reshape(1, -1)
    table[2] = np.where(mask, table[0], 10.0 ** -table[1])
    squares = (table - table.mean(0)) ** 2
    return squares.take(np.array([[2, 0]]), axis=0), table[:2].T.astype(np.float32, order="C"), None


def test_a_recording_does_what_was_recorded() -> None:
    generator = np.random.default_rng(0)
    expected, actual = np.ones((3, 4)), np.ones((3, 4))
    recording: Recording | None = None
    for _ in range(4):
        inputs = generator.normal(size=(1, 4)), generator.normal(size=4) > 0
        wanted = all_operations(expected, *inputs)
        if recording is None:
            recording = Recording(all_operations, actual, *inputs)
            found = recording.results
        else:
            found = recording(*inputs)
        np.testing.assert_array_equal(actual, expected)
        for one, other in zip(found[:2], wanted[:2], strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
        assert found[2] is None


@pytest.mark.parametrize("operation", [lambda table: (table.sum(),), lambda table: (np.add.reduce(table),), lambda table: (table**3,)])
def test_what_cannot_be_recorded_raises(operation: Any) -> None:
    with pytest.raises((AttributeError, NotImplementedError, AssertionError)):
        Recording(operation, np.ones((2, 2)))


@pytest.mark.parametrize("features", FEATURE_SETS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_a_recorded_process_is_the_process(features: str, action: str, masked: bool, is_compiled: bool) -> None:
    process = MDP("momentum", features, ACTIONS[action], {"kind": "log_loss", "loss_floor": 0.01}, control_momentum=True).begin(NUM_GROUPS, 50, 0.1)
    generator = np.random.default_rng(1)

    def decide(table: Any, actions: Any, signals: Any, losses: Any, mask: Any) -> Sequence[Any]:
        record = process.record(table)
        process.act(record, actions, mask)
        process.observe(record, signals, begins=masked)
        process.pay(record, np.where(process.has_diverged(record), np.inf, losses), mask)
        return process.observation(table), record["rates"]

    tables = process.initial(NUM_MEMBERS), process.initial(NUM_MEMBERS)
    recording: Recording | None = None
    for _ in range(8):
        actions = generator.uniform(0, 0.9, (process.num_actions, NUM_MEMBERS))
        signals = generator.lognormal(size=(1 + len(process.needs), NUM_GROUPS, NUM_MEMBERS))
        signals[:, 0, 0] *= generator.choice([1, np.inf, np.nan])
        mask = generator.uniform(size=NUM_MEMBERS) < 0.7 if masked else None
        inputs = actions, signals, signals[0, 1], mask
        with np.errstate(all="ignore"):
            expected = decide(tables[0], *inputs)
            if recording is None:
                recording = Recording(decide, tables[1], *inputs, is_compiled=is_compiled)
                actual = recording.results
            else:
                actual = recording(*inputs)
        # To the bit, but for C++'s logarithms and powers.
        tolerance = {"rtol": 1e-12, "atol": 1e-12} if is_compiled else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(tables[1], tables[0], **tolerance)
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5 * is_compiled, atol=1e-6 * is_compiled)  # in float32
        np.testing.assert_allclose(actual[1], expected[1], **tolerance)
        assert [each.dtype for each in actual] == [np.float32, np.float64]
    assert recording is not None and (type(recording._repeat) is not FunctionType) == is_compiled


def numbers(table: Any, values: Any, mask: Any) -> Sequence[Any]:
    """Operations whose formulas must know numbers that are none."""
    table[0] = np.maximum(values, 0.5)
    table[1] = np.minimum(values, table[3])
    table[2] = np.fmax(values, table[3])
    table[3] = np.fmin(table[3], values)
    table[4] = 1.0 * ~(values <= 0.3)
    table[5] = np.where(mask & (values > -1.0), -values, abs(values) / table[0])
    table[6] = np.log10(values)
    table[7] = 10.0**values
    return table[::2], (values * table[1]).reshape(2, -1)


@needs_compiler
def test_formulas_know_numbers_that_are_none() -> None:
    values = np.array([0.3, -2.0, np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300])
    tables = np.zeros((8, 8)), np.zeros((8, 8))
    recording: Recording | None = None
    with np.errstate(all="ignore"):
        for shift in range(4):
            inputs = np.roll(values, shift), values > 0
            expected = numbers(tables[0], *inputs)
            if recording is None:
                recording = Recording(numbers, tables[1], *inputs, is_compiled=True)
                actual = recording.results
            else:
                actual = recording(*inputs)
            for one, other in zip([tables[1], *actual], [tables[0], *expected], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-14)
    assert recording is not None and type(recording._repeat) is not FunctionType


@needs_compiler
def test_the_first_time_gives_the_bits_of_any_other() -> None:
    def add_logarithms(table: Any, values: Any) -> Sequence[Any]:
        table[:] = table + np.log10(values)
        return []

    values, table = np.random.default_rng(0).lognormal(size=(1, 1000)), np.ones((1, 1000))
    recording = Recording(add_logarithms, table, values, is_compiled=True)
    first = table.copy()
    table[:] = 1
    recording(values)
    np.testing.assert_array_equal(first, table)
