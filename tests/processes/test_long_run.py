"""Thousands of steps in two processes: what they hold does not grow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.world.runs import Runs

SETTLED, STEPS = 200, 2000
MOST_BYTES_PER_STEP = 2048  # a tensor, a request or a report kept by each step would show; the allocator's rest is less


@pytest.mark.long
def test_memory_does_not_grow_with_steps(runs: Runs) -> None:
    script = str(Path(__file__).with_name("endurance.py"))
    code, output, errors = runs.run("-n", "2", script, str(SETTLED), str(STEPS))
    assert code == 0, errors
    found = re.findall(r"\[(\d)\] resident bytes (\d+) (\d+)", output)
    assert len(found) == 2, output
    for rank, settled, end in found:
        growth = int(end) - int(settled)
        text = f"rank {rank}: {int(settled) / 2**20:.1f} MiB after {SETTLED} steps, {growth >> 10:+d} KiB after {STEPS}"
        print(text)
        assert growth < MOST_BYTES_PER_STEP * (STEPS - SETTLED), text
