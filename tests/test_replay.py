"""The replay memory against a loop over the transitions."""

from __future__ import annotations

import numpy as np
import pytest

from agents.replay import ReplayMemory

NUM_MEMBERS, NUM_ROWS, DISCOUNT = 3, 40, 0.9


def filled(num_added: int, seed: int = 0) -> tuple[ReplayMemory, list[dict[str, np.ndarray]]]:
    """A memory, and all transitions that went in: observation 100·row + member, so that a sample can be traced."""
    memory, generator = ReplayMemory(NUM_MEMBERS * NUM_ROWS, NUM_MEMBERS, 1, 1), np.random.default_rng(seed)
    history = []
    for row in range(num_added):
        transition = {
            "observations": (100.0 * row + np.arange(NUM_MEMBERS))[:, None],
            "actions": generator.normal(size=(NUM_MEMBERS, 1)),
            "rewards": generator.normal(size=NUM_MEMBERS),
            "next_observations": (100.0 * (row + 1) + np.arange(NUM_MEMBERS))[:, None] + 0.5,
            "terminated": generator.random(NUM_MEMBERS) < 0.2,
            "truncated": generator.random(NUM_MEMBERS) < 0.2,
        }
        memory.add(**transition)
        history.append(transition)
    return memory, history


@pytest.mark.parametrize("num_added", [5, NUM_ROWS, NUM_ROWS + 17])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_samples_equal_a_loop(num_added: int, num_steps: int) -> None:
    memory, history = filled(num_added)
    batch = memory.sample(np.random.default_rng(1), 300, num_steps, DISCOUNT)
    oldest = max(0, num_added - NUM_ROWS)
    rows_seen = set()
    for i in range(300):
        row, member = divmod(int(batch.observations[i, 0]), 100)
        assert oldest <= row < num_added
        rows_seen.add(row)
        expected_return, discount = 0.0, 1.0
        for last in range(row, min(row + num_steps, num_added)):
            expected_return += discount * history[last]["rewards"][member]
            discount *= DISCOUNT
            if history[last]["terminated"][member] or history[last]["truncated"][member]:
                break
        assert batch.returns[i].item() == pytest.approx(expected_return, rel=1e-5, abs=1e-6)
        assert batch.next_observations[i].item() == np.float32(history[last]["next_observations"][member, 0])
        assert batch.discounts[i].item() == pytest.approx(0.0 if history[last]["terminated"][member] else discount)
        assert batch.actions[i].item() == np.float32(history[row]["actions"][member, 0])
    assert len(rows_seen) == num_added - oldest


def test_state_restores_samples() -> None:
    memory, _ = filled(NUM_ROWS + 3)
    copy = ReplayMemory(NUM_MEMBERS * NUM_ROWS, NUM_MEMBERS, 1, 1)
    copy.set_state(memory.get_state())
    for a, b in zip(*(m.sample(np.random.default_rng(2), 50, 3, DISCOUNT) for m in (memory, copy)), strict=True):
        assert a.equal(b)
    assert len(copy) == len(memory) == NUM_MEMBERS * NUM_ROWS
