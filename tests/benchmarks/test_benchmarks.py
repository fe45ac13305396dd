"""Every benchmark runs: once, with a tiny model. Whether its claim holds is for a quiet machine to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*/run.py"))


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_benchmark_runs_and_prints_a_ratio_for_its_claim(script: Path) -> None:
    if script.parent.name == "peak_memory" and shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("it compiles its counter, and there is no C compiler")
    module = ".".join(script.with_suffix("").parts)
    done = subprocess.run(
        [sys.executable, "-m", module, "--rounds", "1", "--steps", "1", "--small"],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "ratio of medians" in done.stdout
    assert "Machine:" in done.stdout


def test_each_benchmark_states_its_claim_and_command() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        page = (ROOT / script).with_name("README.md").read_text()
        assert f"python -m {'.'.join(script.with_suffix('').parts)}" in page, script
