"""A pipeline over 2 processes of one core each, 2 stages × 8 micro-batches, against one process on one core.

The one process accumulates the gradients of the same micro-batches, in a Python loop that the trace unrolls or in a
`tf.while_loop`; the claim is against the faster.
"""

from __future__ import annotations

from functools import partial

from benchmarks.groups import Groups
from benchmarks.measure import Claim, alternate, arguments, check_losses, report
from benchmarks.pipeline.contender import MICRO_BATCHES, STAGES
from benchmarks.pipeline.run import TOLERANCE
from benchmarks.processes_pipeline.contender import size_of

WHALE, ALONE = "whale", "one process"
LOOPS = ("unrolled loop", "while loop")
MODULE = "benchmarks.processes_pipeline.contender"
WARM_UP_STEPS = 3
# Each stage waits for S - 1 of M + S - 1 turns of a micro-batch: GPipe (Huang et al. 2019), section 2.3.
BUBBLE_ALLOWS = STAGES * MICRO_BATCHES / (MICRO_BATCHES + STAGES - 1)


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "", rounds=15, steps=5)
    parser.add_argument("--schedule", default="1f1b", help="whale's schedule")
    options = parser.parse_args()
    small = ["--small"] if options.small else []
    with Groups() as groups:
        groups.start(ALONE, 1, [MODULE, "alone", *small])
        groups.start(WHALE, STAGES, [MODULE, "whale", *small, "--schedule", options.schedule], whale_run=True)
        groups.wait()
        contenders = {loop: (ALONE, loop) for loop in LOOPS} | {WHALE: (WHALE, "step")}
        losses = {name: groups.run(*of_group, WARM_UP_STEPS)[1] for name, of_group in contenders.items()}
        check_losses(losses, tolerance=TOLERANCE)
        turns = {name: partial(groups.turn, group, step, options.steps) for name, (group, step) in contenders.items()}
        measured = alternate(turns, rounds=options.rounds, steps=1)
    peer = min((one for one in measured if one.name != WHALE), key=lambda one: one.median)
    size = size_of(options.small)
    layout = f"{STAGES} stages in processes of one core each x {MICRO_BATCHES} micro-batches, {options.schedule}"
    report(f"Pipeline, {layout}: {size}", measured, [Claim(peer.name, WHALE, at_least=0.95 * BUBBLE_ALLOWS)])


if __name__ == "__main__":
    main()
