"""All-reduce between 2 processes of one core each: whale's operation, TensorFlow's gRPC collectives, and raw MPI.

Each contender is two processes of its own. The pairs have their turns one after another, and sleep in between.
"""

from __future__ import annotations

from benchmarks.all_reduce.tensors import describe, workloads
from benchmarks.groups import Groups, free_ports
from benchmarks.measure import Claim, alternate, arguments, report

RANKS = 2
WHALE, GRPC, MPI = "whale", "TensorFlow's gRPC", "raw MPI"
MODULE = "benchmarks.all_reduce.contender"
# Ratios that are worth a line, by workload. Without a bound there is no claim.
CLAIMS = {
    "4 KiB": [Claim(GRPC, WHALE), Claim(WHALE, MPI)],
    "4 MiB": [Claim(GRPC, WHALE, at_least=5.0), Claim(WHALE, MPI)],
    "64 MiB": [Claim(GRPC, WHALE, at_least=10.0), Claim(WHALE, MPI, at_most=1.25)],
    "gradients": [Claim(GRPC, WHALE), Claim(WHALE, MPI)],
}


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=9, steps=7).parse_args()
    small = ["--small"] if options.small else []
    ports = map(str, free_ports(RANKS))
    with Groups() as groups:
        groups.start(WHALE, RANKS, [MODULE, "whale", *small], whale_run=True)
        groups.start(GRPC, RANKS, [MODULE, "grpc", *small, "--ports", *ports])
        groups.start(MPI, RANKS, [MODULE, "mpi", *small])
        groups.wait()
        for workload, shapes in workloads(small=options.small).items():
            turns = {
                name: lambda name=name, workload=workload: groups.turn(name, workload, options.steps)
                for name in (WHALE, GRPC, MPI)
            }
            measured = alternate(turns, rounds=options.rounds, steps=1)
            report(f"All-reduce between {RANKS} processes, {describe(shapes)}", measured, CLAIMS[workload])


if __name__ == "__main__":
    main()
