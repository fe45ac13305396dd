"""`whale run` of real training scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world.runs import ROOT, Runs, checked


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    yield from checked(Runs(tmp_path, environment=environment, bound_seconds=120.0))
