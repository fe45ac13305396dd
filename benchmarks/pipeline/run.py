"""A pipeline in one process: 2 stages × 8 micro-batches against hand-written gradient accumulation on one device.

Two peers accumulate, one in a Python loop that the trace unrolls and one in a `tf.while_loop`; the claim is against the
faster. Each contender is a process of its own with all cores; they take turns.
"""

from __future__ import annotations

from benchmarks.groups import Groups
from benchmarks.measure import SMALL, Claim, alternate, arguments, check_losses, report
from benchmarks.model import Size
from benchmarks.pipeline.contender import MICRO_BATCHES, STAGES

MODULE = "benchmarks.pipeline.contender"
WARM_UP_STEPS = 3
TOLERANCE = 1e-2  # Keras' Adam squares a token's occurrences one by one, but in a dense sum their total


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "", rounds=15, steps=5)
    parser.add_argument("--schedule", default="1f1b", help="whale's schedule")
    options = parser.parse_args()
    small = ["--small"] if options.small else []
    contenders = {
        "unrolled loop": ["unrolled"],
        "whale": ["whale", "--schedule", options.schedule],
        "while loop": ["looped"],
    }
    with Groups() as groups:
        for name, contender in contenders.items():
            groups.start(name, 1, [MODULE, *contender, *small], bound=False)
        groups.wait()
        losses = {name: groups.run(name, "step", WARM_UP_STEPS)[1] for name in contenders}
        check_losses(losses, tolerance=TOLERANCE)
        turns = {name: lambda name=name: groups.turn(name, "step", options.steps) for name in contenders}
        measured = alternate(turns, rounds=options.rounds, steps=1)
    peer = min((one for one in measured if one.name != "whale"), key=lambda one: one.median)
    size = SMALL if options.small else Size()
    title = f"Pipeline, {STAGES} stages x {MICRO_BATCHES} micro-batches, {options.schedule}: {size}"
    report(title, measured, [Claim("whale", peer.name, at_most=1.05)])


if __name__ == "__main__":
    main()
