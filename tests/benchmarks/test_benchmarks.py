"""Every benchmark runs: once, with a tiny model. Whether its claim holds is for a quiet machine to say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.groups import Groups

ROOT = Path(__file__).parent.parent.parent
MPIEXEC = Path(sys.prefix) / "bin" / "mpiexec"
OF_PROCESSES = ("all_reduce", "processes_data_parallel", "processes_pipeline")
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*/run.py"))


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_benchmark_runs_and_prints_a_ratio_for_its_claim(script: Path) -> None:
    if script.parent.name == "peak_memory" and shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("it compiles its counter, and there is no C compiler")
    if script.parent.name in OF_PROCESSES:
        if not MPIEXEC.exists():
            pytest.skip("it starts processes, and mpiexec of the mpich package is not installed")
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("it binds two processes to a core each, and there is one core")
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


@pytest.mark.skipif(not MPIEXEC.exists(), reason="mpiexec of the mpich package is not installed")
def test_a_group_that_does_not_start_says_what_it_printed() -> None:
    with pytest.raises(RuntimeError, match=r"group 'lost' did not start(.|\n)*No module named benchmarks\.nowhere"):
        with Groups() as groups:
            groups.start("lost", 1, ["benchmarks.nowhere"])
            groups.wait()


def test_a_group_needs_a_core_for_each_process() -> None:
    with Groups() as groups, pytest.raises(ValueError, match=r"there are \d+ cores"):
        groups.start("crowd", 1000, ["benchmarks.nowhere"])
