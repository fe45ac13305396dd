"""Programs as they are published, ported by the decorator and one scope: the numbers of one device."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import whale_tf as whale
from tests.equivalence.harness import TOLERANCE, Case, Layout, Scopes, Training, differences, fresh, numbers, reference
from tests.equivalence.programs import adversaries, fields, sequences

Program = Callable[[Scopes], Training]

PROGRAMS: tuple[Program, ...] = (*adversaries.PROGRAMS, *sequences.PROGRAMS, *fields.PROGRAMS)
SHORT = ("gan_generator_first", "masked_language_model", "physics_informed_network", "custom_train_step")
PARTS = Layout(replicas=2, micro_batches=2)
LAYOUTS = (Layout(replicas=2, examples=8), Layout(micro_batches=4), Layout(replicas=2, micro_batches=2, examples=13))
# Three steps of float32 through a recurrence or an attention: about ten times the rounding of the small models.
TOLERANCES = {
    "connectionist_temporal_classification": 1e-4,
    "sequence_to_sequence": 1e-4,
    "masked_language_model": 1e-4,
}


def check_program(program: Program, layout: Layout) -> None:
    """Trains under the layout and on one device, and fails where a number differs."""
    case = Case(program)
    want = reference(case, layout.examples)
    whale.init(devices=layout.replicas)
    training = fresh(case, layout)
    got = numbers(training, whale.function(micro_batches=layout.micro_batches)(training.step))
    wrong = differences(got, want, TOLERANCES.get(str(case), TOLERANCE))
    assert not wrong, f"{case} at {layout}: {len(wrong)} of {len(want)} differ\n  " + "\n  ".join(wrong)


def params(programs: tuple[Program, ...]) -> list[object]:
    """Programs as parameters; those that take more than a few seconds only in the long run."""
    return [
        pytest.param(program, id=program.__name__, marks=[] if program.__name__ in SHORT else [pytest.mark.long])
        for program in programs
    ]


@pytest.mark.parametrize("program", params(PROGRAMS))
def test_program_is_one_devices(program: Program) -> None:
    check_program(program, PARTS)


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_program_is_one_devices_under_other_layouts(program: Program, layout: Layout) -> None:
    check_program(program, layout)


def test_programs_have_names_of_their_own_and_the_short_ones_are_among_them() -> None:
    names = [program.__name__ for program in PROGRAMS]
    assert len(set(names)) == len(names)
    assert set(SHORT) | set(TOLERANCES) <= set(names)
