"""Builds the C++ tests with the system's g++, two files at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("test_reduce", "test_collectives", "test_failures", "test_doorbell", "mpi_world", "mpi_failures")

# A ThreadSanitizer program of g++ 12 cannot start where the kernel puts libraries at too random addresses.
WITHOUT_RANDOM_ADDRESSES = ("setarch", "--addr-no-randomize")


def build(folder: Path, flags: Sequence[str], programs: Sequence[str] = PROGRAMS) -> dict[str, Path]:
    """Compiles the communicator and `programs` into `folder`; returns the programs by name.

    Raises:
      RuntimeError: g++ refuses a file; the message is its output.
    """
    sources = sorted((ROOT / "kernels/communicator").glob("*.cc"))
    mains = [ROOT / "tests/kernels" / f"{program}.cc" for program in programs]
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(lambda source: _compile(source, folder, flags), [*mains, *sources]))
    shared = objects[len(mains) :]
    built = {}
    for program, main in zip(programs, objects, strict=False):
        built[program] = folder / program
        _run(["g++", *flags, *map(str, [main, *shared]), "-o", str(built[program]), "-ldl", "-lpthread"])
    return built


def _compile(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    compiled = folder / f"{source.stem}.o"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    _run(["g++", "-std=c++17", *flags, *warnings, f"-I{ROOT}", "-c", str(source), "-o", str(compiled)])
    return compiled


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
