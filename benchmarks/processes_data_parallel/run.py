"""Data parallelism over 2 processes of one core each: `whale.replica(2)` against linear scaling and its peer.

Linear scaling is one process on one core with half of the batch: two processes share all of a step, and an exchange of
gradients that costs nothing would take no longer.
"""

from __future__ import annotations

from benchmarks.groups import Groups, free_ports
from benchmarks.measure import SMALL, Claim, alternate, arguments, check_losses, report
from benchmarks.model import Size
from benchmarks.processes_data_parallel.contender import REPLICAS

WHALE, STRATEGY = "whale", "MultiWorkerMirroredStrategy"
LINEAR, APART = "one process, half the batch", "two such processes, no exchange"
MODULE = "benchmarks.processes_data_parallel.contender"
WARM_UP_STEPS = 3


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=5).parse_args()
    small = ["--small"] if options.small else []
    ports = map(str, free_ports(REPLICAS))
    with Groups() as groups:
        groups.start(LINEAR, 1, [MODULE, "alone", *small])
        groups.start(WHALE, REPLICAS, [MODULE, "whale", *small], whale_run=True)
        groups.start(APART, REPLICAS, [MODULE, "alone", *small])
        groups.start(STRATEGY, REPLICAS, [MODULE, "strategy", *small, "--ports", *ports])
        groups.wait()
        losses = {name: groups.run(name, "step", WARM_UP_STEPS)[1] for name in (LINEAR, WHALE, APART, STRATEGY)}
        check_losses({name: losses[name] for name in (WHALE, STRATEGY)})
        turns = {name: lambda name=name: groups.turn(name, "step", options.steps) for name in losses}
        measured = alternate(turns, rounds=options.rounds, steps=1)
    claims = [
        Claim(LINEAR, WHALE, at_least=0.96),
        Claim(APART, WHALE),  # what this machine's memory lets two busy cores do, without any communication
        Claim(LINEAR, STRATEGY),
        Claim(STRATEGY, WHALE),
    ]
    size = SMALL if options.small else Size()
    report(f"Data parallelism, {REPLICAS} processes of one core each: {size}", measured, claims)


if __name__ == "__main__":
    main()
