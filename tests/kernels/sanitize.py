"""Runs the communicator's C++ tests under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer.

python tests/kernels/sanitize.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kernels.build import WITHOUT_RANDOM_ADDRESSES, build

SANITIZERS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
PROGRAMS = (
    "test_reduce",
    "test_failures",
    "test_doorbell",
    "test_collectives",
)  # MPI itself is not built for sanitizers
PROGRAM_SECONDS = 300


def main() -> int:
    """Returns the number of programs that failed."""
    prefix = list(WITHOUT_RANDOM_ADDRESSES) if shutil.which(WITHOUT_RANDOM_ADDRESSES[0]) else []
    failures = 0
    for sanitizer, flags in SANITIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            programs = build(Path(folder), ["-O1", "-g", "-fno-omit-frame-pointer", *flags], PROGRAMS)
            for name, program in programs.items():
                code = subprocess.run([*prefix, str(program)], timeout=PROGRAM_SECONDS).returncode
                print(f"{name} under {sanitizer}: {'clean' if code == 0 else f'exit code {code}'}", flush=True)
                failures += code != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
