"""All cases, and the layouts that each of them is run at."""

from __future__ import annotations

from collections.abc import Iterator

from tests.equivalence import (
    cases_control_flow,
    cases_gradients,
    cases_inner_gradients,
    cases_operations,
    cases_optimizers,
    cases_reductions,
    cases_rounds,
    cases_stages,
    cases_state,
    cases_structure,
)
from tests.equivalence.harness import Case, Layout

CASES = (
    *cases_structure.CASES,
    *cases_stages.CASES,
    *cases_gradients.CASES,
    *cases_rounds.CASES,
    *cases_control_flow.CASES,
    *cases_state.CASES,
    *cases_optimizers.CASES,
    *cases_operations.CASES,
    *cases_inner_gradients.CASES,
    *cases_reductions.CASES,
)

LAYOUTS = (
    Layout(replicas=2),
    Layout(stages=2, micro_batches=4),
    Layout(replicas=2, stages=2, micro_batches=2, schedule="gpipe", examples=13),
    Layout(stages=4, micro_batches=4, schedule="zero_bubble"),
    Layout(replicas=2, shares=(3, 1), micro_batches=4),
    Layout(replicas=4, stages=2, schedule="interleaved"),
    Layout(micro_batches=4, examples=10),
    Layout(stages=2, schedule="gpipe"),
    Layout(replicas=2, stages=4, micro_batches=4),
    Layout(replicas=4, examples=13),
    Layout(stages=4, devices=2, micro_batches=4, schedule="interleaved"),
    Layout(replicas=2, stages=2, shares=(1, 2), micro_batches=1, schedule="zero_bubble"),
    Layout(replicas=2, stages=4, shares=(1, 2), micro_batches=2, places=((0, 0, 1, 1), (2, 3, 4, 5))),
)
LAYOUTS_OF_A_CASE = 3
STRIDE = 5  # no divisor of the number of layouts: neighbours in the table share few of them


def choices() -> Iterator[tuple[Case, Layout]]:
    """Each case with three layouts, by rotation, so that every layout meets every kind of case."""
    for i, case in enumerate(CASES):
        allowed = [layout for layout in LAYOUTS if case.allows(layout)]
        chosen = {allowed[(i + STRIDE * k) % len(allowed)]: None for k in range(LAYOUTS_OF_A_CASE)}
        yield from ((case, layout) for layout in case.layouts or chosen)
