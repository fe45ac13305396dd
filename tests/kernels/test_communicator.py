"""The communicator's C++ tests: in one process, and between processes that mpiexec starts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.build import build

PROGRAM_SECONDS = 120


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The test programs, built once."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build the C++ tests with")
    return build(tmp_path_factory.mktemp("kernels"), ["-O1"])


def mpi() -> tuple[str, str]:
    """mpiexec and libmpi_abi.so.1 of the mpich package; skips the test where they are not."""
    mpiexec = Path(sys.prefix, "bin", "mpiexec")
    library = Path(sys.prefix, "lib", "libmpi_abi.so.1")
    if not mpiexec.exists() or not library.exists():
        pytest.skip("no mpich beside this Python: pip install whale_tf[mpi]")
    return str(mpiexec), str(library)


def run(command: list[str]) -> str:
    """The output of a program that must succeed within PROGRAM_SECONDS."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["test_reduce", "test_failures", "test_doorbell", "test_collectives"])
def test_program(programs: dict[str, Path], program: str) -> None:
    run([str(programs[program])])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_collectives_between_processes(programs: dict[str, Path], ranks: int) -> None:
    mpiexec, library = mpi()
    printed = run([mpiexec, "-n", str(ranks), str(programs["mpi_world"]), library])
    assert printed == f"ok, {ranks} ranks\n"


# A rank's place is kept, as `whale run` does, until all have ended: mpiexec kills the others when it sees one end.
KEPT = """
"$@"; code=$?
touch "$ENDED/$PMI_RANK"
while [ "$(ls "$ENDED" | wc -l)" -lt "$PMI_SIZE" ]; do sleep 0.02; done
exit $code
"""


@pytest.mark.parametrize(
    ("failure", "ranks"),
    [
        ("mismatch", 2),
        ("late", 2),
        ("cancelled", 2),
        ("killed", 4),
        ("absent", 2),
        pytest.param("large", 2, marks=pytest.mark.long),
        pytest.param("slow", 2, marks=pytest.mark.long),
    ],
)
def test_failures_between_processes(programs: dict[str, Path], tmp_path: Path, failure: str, ranks: int) -> None:
    mpiexec, library = mpi()
    program = [str(programs["mpi_failures"]), library, failure]
    done = subprocess.run(
        [mpiexec, "-n", str(ranks), "sh", "-c", KEPT, "kept", *program],
        env={**os.environ, "ENDED": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
    # Where ranks do not leave together, mpiexec ends with an error of its own or not.
    assert done.stdout.count(f"{failure} as expected") == ranks - (failure == "killed"), done.stdout + done.stderr


@pytest.mark.long
def test_the_benchmark_runs(programs: dict[str, Path]) -> None:
    mpiexec, library = mpi()
    printed = run([mpiexec, "-n", "2", str(programs["mpi_world"]), library, "--benchmark"])
    assert re.findall(r"^(\d+ .iB|68 tensors, 21 MB) +whale", printed, re.MULTILINE) == [
        "4 KiB",
        "4 MiB",
        "64 MiB",
        "68 tensors, 21 MB",
    ]


def test_a_path_without_mpi_is_named(programs: dict[str, Path]) -> None:
    done = subprocess.run(
        [str(programs["mpi_world"]), "/nowhere/libmpi_abi.so.1"],
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
    assert done.returncode == 1
    assert "MPI cannot be loaded from '/nowhere/libmpi_abi.so.1': /nowhere/libmpi_abi.so.1: cannot open" in done.stderr
