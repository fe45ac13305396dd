"""Build time: from the call to the end of the first step, each measurement in a fresh process.

whale with 2 replicas against `tf.function` on one device, its first call with another batch size against that first
step, and 32 micro-batches against 4 in a pipeline of 2 stages.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

from benchmarks.build_time.first_step import BATCH
from benchmarks.measure import SECONDS, SMALL, Claim, alternate, arguments, report
from benchmarks.model import Size

CONTENDERS = {
    "tf.function": ("--peer",),
    "whale, 2 replicas": ("--replicas", "2"),
    "its last, smaller batch": ("--replicas", "2", "--last"),
    "4 micro-batches": ("--stages", "2", "--micro-batches", "4"),
    "32 micro-batches": ("--stages", "2", "--micro-batches", "32"),
}


def first_step(*options: str) -> Callable[[], float]:
    """Measures in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.build_time.first_step", *options]

    def seconds() -> float:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return float(done.stdout.splitlines()[-1])

    return seconds


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=7, steps=1).parse_args()
    small = ["--small"] if options.small else []
    size = replace(SMALL if options.small else Size(), batch=BATCH)
    measured = alternate(
        {name: first_step(*asked, *small) for name, asked in CONTENDERS.items()},
        rounds=options.rounds,
        steps=options.steps,
    )
    claims = [
        Claim("whale, 2 replicas", "tf.function", at_most=1.6),
        Claim("its last, smaller batch", "whale, 2 replicas", at_most=0.6),
        Claim("32 micro-batches", "4 micro-batches", at_most=1.3),
    ]
    report(f"Build and first step: {size}", measured, claims, SECONDS)


if __name__ == "__main__":
    main()
