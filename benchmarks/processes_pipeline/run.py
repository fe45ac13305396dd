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

ALONE = "one process"
WHALE = {"whale, 1f1b": "1f1b", "whale, zero_bubble": "zero_bubble"}
LOOPS = ("unrolled loop", "while loop")
MODULE = "benchmarks.processes_pipeline.contender"
WARM_UP_STEPS = 3
# Each stage waits for S - 1 of M + S - 1 turns of a micro-batch: GPipe (Huang et al. 2019), section 2.3.
BUBBLE_ALLOWS = STAGES * MICRO_BATCHES / (MICRO_BATCHES + STAGES - 1)


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=5).parse_args()
    small = ["--small"] if options.small else []
    with Groups() as groups:
        groups.start(ALONE, 1, [MODULE, "alone", *small])
        for name, schedule in WHALE.items():
            groups.start(name, STAGES, [MODULE, "whale", *small, "--schedule", schedule], whale_run=True)
        groups.wait()
        contenders = {loop: (ALONE, loop) for loop in LOOPS}
        contenders |= {name: (name, "step") for name in WHALE}
        losses = {name: groups.run(*of_group, WARM_UP_STEPS)[1] for name, of_group in contenders.items()}
        check_losses(losses, tolerance=TOLERANCE)
        turns = {name: partial(groups.turn, group, step, options.steps) for name, (group, step) in contenders.items()}
        measured = alternate(turns, rounds=options.rounds, steps=1)
    peer = min((one for one in measured if one.name in LOOPS), key=lambda one: one.median)
    claims = [Claim(peer.name, name, at_least=0.95 * BUBBLE_ALLOWS) for name in WHALE]
    layout = f"{STAGES} stages in processes of one core each x {MICRO_BATCHES} micro-batches"
    report(f"Pipeline, {layout}: {size_of(options.small)}", measured, claims)


if __name__ == "__main__":
    main()
