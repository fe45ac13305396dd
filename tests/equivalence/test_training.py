"""Training under every layout gives the numbers of one device."""

from __future__ import annotations

import pytest

from tests.equivalence.cases import CASES, choices
from tests.equivalence.harness import TOLERANCE, Case, Layout, check, reference
from tests.equivalence.test_layouts import UNLIKE


@pytest.mark.parametrize(("case", "layout"), [pytest.param(*each, id=f"{each[0]}-{each[1]}") for each in choices()])
def test_training_equals_one_device(case: Case, layout: Layout) -> None:
    check(case, layout)


@pytest.mark.long
@pytest.mark.parametrize("layout", UNLIKE, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if str(case) in ("adam", "nesterov")], ids=str)
def test_slots_of_replicas_that_are_cut_differently_equal_one_device(case: Case, layout: Layout) -> None:
    check(case, layout)


def test_cases_have_names_of_their_own() -> None:
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)


VERIFIED = ("nested_structures", "gan_in_turns", "adam", "slices", "metrics")


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in VERIFIED], ids=str)
def test_verify_finds_no_difference(case: Case) -> None:
    """`verify` compares the same two things by itself."""
    step, training = check(case, Layout(replicas=2, stages=2, micro_batches=2))
    args, keywords = next(iter(training.calls()))
    assert step.verify(*args, **keywords).largest < 10 * TOLERANCE


def test_reference_changes_with_every_step() -> None:
    """A reference that did not train would agree with anything that does not train either."""
    for case in CASES[:3]:
        losses = {name: value for name, value in reference(case, 16).items() if name.endswith("output 0")}
        assert len({value.tobytes() for value in losses.values()}) == len(losses), str(case)
