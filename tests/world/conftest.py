"""`whale run` for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world.runs import Runs, checked


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    yield from checked(Runs(tmp_path))
