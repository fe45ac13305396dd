"""Communication in a grid: where it is inserted, that it costs no clock steps, and that a wrong one is refused."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whale_tf.errors import ScheduleError
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.communication import Channel, with_communication
from whale_tf.plan.grid import Action, Grid
from whale_tf.plan.grids import Grids
from whale_tf.plan.schedule import SCHEDULES, make_grid

BOTH = (Channel((0, "F"), (1, "F")), Channel((1, "B"), (0, "B")))
TWO_STAGES = """
device 0: 0F0 0F1 0B0 0B1
device 1: 1F0 1B0 1F1 1B1
"""


def chained(stages: int, backward: str) -> list[Channel]:
    """Activations to the next stage, gradients to the one before, and the first stage's to the last one's backward."""
    pairs = list(pairwise(range(stages)))
    forward = [Channel((j, "F"), (k, "F")) for j, k in pairs]
    back = [Channel((k, backward), (j, backward)) for j, k in pairs]
    return [*forward, *back, *([Channel((0, "F"), (stages - 1, backward))] if stages > 2 else [])]


def test_it_stands_where_values_are_made_and_taken() -> None:
    made = with_communication(Grid.parse(TWO_STAGES), BOTH * 2, reduced=(0, 1))
    assert str(made).splitlines() == [
        "device 0: 0F0 0F0S1 0F1 0F1S1 0R1B0 0B0 0R1B1 0B1 0C",
        "device 1: 1R0F0 1F0 1B0 1B0S0 1R0F1 1F1 1B1 1B1S0 1C",
    ]


def test_a_value_comes_before_the_first_action_that_takes_it() -> None:
    channels = (*BOTH, Channel((0, "F"), (1, "B")))
    assert with_communication(Grid.parse(TWO_STAGES), channels) == with_communication(Grid.parse(TWO_STAGES), BOTH)
    only_backward = with_communication(Grid.parse(TWO_STAGES), channels[1:])
    assert str(only_backward).splitlines()[1] == "device 1: 1F0 1R0F0 1B0 1B0S0 1F1 1R0F1 1B1 1B1S0"


def test_stages_of_one_device_send_each_other_nothing() -> None:
    grid = Grid.parse("device 0: 0F0 1F0 1B0 0B0")
    assert with_communication(grid, BOTH) == grid


def test_gradients_are_reduced_behind_the_last_weight_gradients() -> None:
    made = with_communication(make_grid("zero_bubble", (0, 1), 2), (), reduced=(1,))
    assert str(made).splitlines()[1] == "device 1: 1F0 1I0 1F1 1I1 1W0 1W1 1C"


@settings(deadline=None)
@given(
    devices=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    micro_batches=st.integers(1, 6),
    schedule=st.sampled_from(SCHEDULES),
    data=st.data(),
)
def test_any_grid_keeps_its_cost_and_order(
    devices: list[int], micro_batches: int, schedule: str, data: st.DataObject
) -> None:
    grid = make_grid(schedule, devices, micro_batches)
    channels = chained(len(devices), "I" if schedule == "zero_bubble" else "B")
    reduced = data.draw(st.sets(st.sampled_from(range(len(devices)))))
    made = with_communication(grid, channels, reduced)
    plain, priced = check_grid(grid), check_grid(made)
    assert (priced.makespan, priced.bubble, priced.busy) == (plain.makespan, plain.bubble, plain.busy)
    assert priced.peak_live == plain.peak_live
    assert plain.start.items() <= priced.start.items()
    assert tuple(tuple(action for action in row if action.computes) for row in made.rows) == grid.rows
    assert with_communication(made, channels, reduced) == made
    assert Grid.parse(str(made)) == made == Grid.from_proto(made.to_proto())
    assert made.first(micro_batches) == made
    for send in (action for action in chain.from_iterable(made.rows) if action.kind == "S"):
        assert priced.start[send.made] < priced.start[send] <= priced.start[send.other_end]


def test_what_is_written_stays_in_its_place() -> None:
    late = Grid.parse("device 0: 0F0 0F1 0F0S1 0B0 0B1\ndevice 1: 1R0F0 1F0 1B0 1F1 1B1")
    made = with_communication(late, BOTH, reduced=(0,))
    assert str(made).splitlines() == [
        "device 0: 0F0 0F1 0F1S1 0F0S1 0R1B0 0B0 0R1B1 0B1 0C",
        "device 1: 1R0F0 1F0 1B0 1B0S0 1R0F1 1F1 1B1 1B1S0",
    ]
    assert check_grid(made).makespan == check_grid(Grid.parse(TWO_STAGES)).makespan + 1


def test_a_reduction_of_one_replica_is_left_out() -> None:
    grid = Grid.parse("device 0: 0F0 0B0 0C")
    assert str(with_communication(grid, ())) == "clock     0   1   2\ndevice 0: 0F0 0B0 -"
    assert with_communication(grid, (), reduced=(0,)) == grid


def test_a_step_without_backward_has_the_forwards_alone() -> None:
    grid = with_communication(Grid.parse(TWO_STAGES), BOTH, reduced=(0, 1))
    assert grid.first(2, backward=False) == Grid.parse(TWO_STAGES).first(2, backward=False)
    forwards = with_communication(Grid.parse("device 0: 0F0\ndevice 1: 1F0"), BOTH[:1])
    with pytest.raises(ScheduleError, match="the schedule has no backward"):
        make_grid(Grids((forwards,)), (0, 1), 1)


@pytest.mark.parametrize("text", ["0F0S1", "12R3W4", "7C"])
def test_communication_prints_and_parses_back(text: str) -> None:
    assert str(Action.parse(text)) == text


@pytest.mark.parametrize("text", ["0F0S0", "0R0F0", "1R0F0S2", "0FS1", "0S1", "0C0", "1R0C"])
def test_what_is_no_communication_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match=f"'{text}' is no action"):
        Action.parse(text)
    with pytest.raises(ScheduleError, match=f"'{text}' is no action"):
        Grid.parse(f"device 0: {text}")


def test_an_action_that_contradicts_itself_is_refused() -> None:
    for fields in [(0, "F", 0, 1, "F"), (0, "S", 0), (0, "S", 0, 1, "C"), (0, "C", 1), (0, "R", 0, -1, "F")]:
        with pytest.raises(ScheduleError, match="is no action"):
            Action(*fields)  # type: ignore[arg-type]


def test_transfers_with_one_end_or_within_a_device_are_all_shown() -> None:
    with pytest.raises(ScheduleError) as refused:
        check_grid(Grid.parse("device 0: 0F0 0F0S1 1F0 1B0 0B0\ndevice 1: 2F0 2R0F0 2B0 2B0S9"))
    assert str(refused.value) == "\n".join(
        [
            "the schedule does not run every action exactly once.",
            "  device 0: 0F0 >0F0S1< 1F0 1B0 0B0",
            "  device 1: 2F0 >2R0F0< 2B0 >2B0S9<",
            "  not of 3 stages and 1 micro-batches: 2B0S9",
            "  between stages of one device: 0F0S1",
            "  without the other end: 2R0F0",
            "  Write F and B (or F, I and W) of every stage and micro-batch once, each stage on one device; "
            'S and R of a transfer both or neither, and only between devices; or use schedule="1f1b".',
        ]
    )


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("0F0S1 0F0 0B0 | 1R0F0 1F0 1B0", "device 0 waits at 0F0S1 for 0F0, which it runs later"),
        ("0F0 0F0S1 0B0 | 1F0 1R0F0 1B0", "device 1 waits at 1F0 for 1R0F0, which it runs later"),
        ("0F0 0C 0B0 | 1F0 1B0", "device 0 waits at 0C for 0B0, which it runs later"),
    ],
)
def test_communication_at_a_wrong_place_is_refused_with_its_cell(rows: str, told: str) -> None:
    grid = Grid.parse("\n".join(f"device {n}: {row}" for n, row in enumerate(rows.split("|"))))
    with pytest.raises(ScheduleError) as refused:
        with_communication(grid, BOTH, reduced=(0,))
    assert told in str(refused.value)
    assert f">{told.split()[4]}<" in str(refused.value)


def test_a_transfer_that_the_step_does_not_have_is_refused() -> None:
    grid = Grid.parse("device 0: 0F0 0F0S1 0B0\ndevice 1: 1R0F0 1F0 1B0")
    with pytest.raises(ScheduleError) as refused:
        with_communication(grid, BOTH[1:])
    assert str(refused.value) == "\n".join(
        [
            "the schedule has transfers that the step does not have.",
            "  device 0: 0F0 >0F0S1< 0B0",
            "  device 1: >1R0F0< 1F0 1B0",
            "  nothing is transferred by 0F0S1 1R0F0",
            "  Leave it out: what the step needs and the schedule does not say is inserted.",
        ]
    )
