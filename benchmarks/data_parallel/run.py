"""Data parallelism: `whale.replica(2)` against one device and against MirroredStrategy, same global batch.

Each contender is a process of its own with all cores, since threads are set for a whole process; they take turns.
Logical CPU devices share the cores: the one-device step is the limit. whale and MirroredStrategy are measured twice:
with operations on all cores, TensorFlow's default, and with those on a device's own part of the cores, whale's.
"""

from __future__ import annotations

import os

from benchmarks.data_parallel.contender import REPLICAS
from benchmarks.groups import Groups
from benchmarks.measure import SMALL, Claim, alternate, arguments, check_losses, report
from benchmarks.model import Size

MODULE = "benchmarks.data_parallel.contender"
WARM_UP_STEPS = 3
ALL_CORES = "whale, all cores"
MIRRORED_OWN_CORES = "MirroredStrategy, own cores"


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=5).parse_args()
    small = ["--small"] if options.small else []
    cores = len(os.sched_getaffinity(0))
    contenders = {
        "one device": ["one"],
        "whale": ["whale"],
        ALL_CORES: ["whale", "--threads", str(cores)],
        "MirroredStrategy": ["mirrored"],
        MIRRORED_OWN_CORES: ["mirrored", "--threads", str(max(1, cores // REPLICAS))],
    }
    with Groups() as groups:
        for name, contender in contenders.items():
            groups.start(name, 1, [MODULE, *contender, *small], bound=False)
        groups.wait()
        check_losses({name: groups.run(name, "step", WARM_UP_STEPS)[1] for name in contenders})
        turns = {name: lambda name=name: groups.turn(name, "step", options.steps) for name in contenders}
        measured = alternate(turns, rounds=options.rounds, steps=1)
    claims = [
        Claim("whale", "one device", at_most=1.03),
        Claim("MirroredStrategy", "whale", at_least=1.10),
        Claim(MIRRORED_OWN_CORES, "whale"),
        Claim("MirroredStrategy", ALL_CORES),
    ]
    size = SMALL if options.small else Size()
    report(f"Data parallelism, {REPLICAS} replicas: {size}", measured, claims)


if __name__ == "__main__":
    main()
