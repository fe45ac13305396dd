"""Schedules: what each one looks like, what it costs, and that broken ones are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from whale_tf.errors import ScheduleError
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grid import Action, Grid, dependencies, pattern_of
from whale_tf.plan.schedule import SCHEDULES, make_grid


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, int, int]:
    """(stages, micro_batches, devices), the devices dividing the stages."""
    stages = draw(st.integers(1, 8))
    devices = draw(st.sampled_from([count for count in range(1, stages + 1) if stages % count == 0]))
    return stages, draw(st.integers(1, 16)), devices


def turns(stages: int, devices: int) -> list[int]:
    """The device of each stage, where stages take turns."""
    return [stage % devices for stage in range(stages)]


PATTERNS = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def table(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


# What they look like.


def test_gpipe_runs_all_forwards_before_all_backwards() -> None:
    assert str(make_grid("gpipe", range(2), 2)) == table("""
        clock     0   1   2   3   4   5   6   7   8
        device 0: 0F0 0F1 .   .   .   0B0 -   0B1 -
        device 1: .   1F0 1F1 1B0 -   1B1 -   .   .
    """)


def test_1f1b_alternates_after_its_warmup() -> None:
    assert str(make_grid("1f1b", range(2), 3)) == table("""
        clock     0   1   2   3   4   5   6   7   8   9   10  11
        device 0: 0F0 0F1 .   .   0B0 -   0F2 0B1 -   .   0B2 -
        device 1: .   1F0 1B0 -   1F1 1B1 -   1F2 1B2 -   .   .
    """)


def test_zero_bubble_fills_the_end_with_weight_gradients() -> None:
    assert str(make_grid("zero_bubble", range(2), 3)) == table("""
        clock     0   1   2   3   4   5   6   7   8   9
        device 0: 0F0 0F1 .   0I0 0W0 0F2 0I1 0W1 0I2 0W2
        device 1: .   1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2
    """)


def test_interleaved_runs_a_round_through_each_stage_of_a_device() -> None:
    assert make_grid("interleaved", turns(4, 2), 2) == Grid.parse("""
        device 0: 0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1
        device 1: 1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1
    """)


def test_interleaved_makes_longer_rounds_where_devices_do_not_divide_micro_batches() -> None:
    forwards = [str(action) for action in make_grid("interleaved", turns(4, 2), 5).rows[0] if action.kind == "F"]
    assert forwards == ["0F0", "0F1", "0F2", "2F0", "2F1", "2F2", "0F3", "0F4", "2F3", "2F4"]


def test_evaluation_has_forwards_only() -> None:
    assert str(make_grid("1f1b", range(2), 2, backward=False)) == table("""
        clock     0   1   2
        device 0: 0F0 0F1 .
        device 1: .   1F0 1F1
    """)


@given(placements(), st.sampled_from(SCHEDULES), st.booleans())
def test_a_grid_prints_and_parses_back(placement: tuple[int, int, int], schedule: str, backward: bool) -> None:
    stages, micro_batches, devices = placement
    grid = make_grid(schedule, turns(stages, devices), micro_batches, backward=backward)
    assert Grid.parse(str(grid)) == grid
    assert (grid.stages, grid.micro_batches, len(grid.rows)) == (stages, micro_batches, devices)


def test_a_grid_that_never_ends_prints_its_rows_and_parses_back() -> None:
    text = "device 0: 0B0 0F0\ndevice 1:"
    assert str(Grid.parse(text)) == text


def test_an_action_prints_and_parses_back() -> None:
    assert str(Action(12, "W", 30)) == "12W30"
    assert Action.parse("12W30") == Action(12, "W", 30)


def test_device_of_is_the_row_that_runs_a_stage() -> None:
    grid = make_grid("1f1b", turns(6, 3), 2)
    assert [grid.device_of(stage) for stage in range(6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ScheduleError, match="no device runs stage 6"):
        grid.device_of(6)


# What they cost.


@settings(deadline=None)
@given(placements(), st.sampled_from(SCHEDULES), st.booleans())
def test_every_schedule_ends_and_keeps_each_stage_on_its_device(
    placement: tuple[int, int, int], schedule: str, backward: bool
) -> None:
    stages, micro_batches, devices = placement
    grid = make_grid(schedule, turns(stages, devices), micro_batches, backward=backward)
    report = check_grid(grid)
    needs = dependencies(grid)
    for action, start in report.start.items():
        assert grid.device_of(action.stage) == action.stage % devices
        assert all(report.start[need] + need.clock_steps <= start for need in needs[action])
    assert sum(report.busy) == stages * micro_batches * (3 if backward else 1)
    assert report.bubble == pytest.approx(1 - sum(report.busy) / (devices * report.makespan))


# Stages that share devices as they like.


def test_stages_that_follow_each_other_on_a_device_are_run_as_one() -> None:
    assert make_grid("1f1b", (4, 4, 9, 9), 2) == Grid.parse("""
        device 0: 0F0 1F0 0F1 1F1 1B0 0B0 1B1 0B1
        device 1: 2F0 3F0 3B0 2B0 2F1 3F1 3B1 2B1
    """)
    assert make_grid("zero_bubble", (0, 0, 1), 2) == Grid.parse("""
        device 0: 0F0 1F0 0F1 1F1 1I0 0I0 1W0 0W0 1I1 0I1 1W1 0W1
        device 1: 2F0 2I0 2F1 2I1 2W0 2W1
    """)
    assert make_grid("interleaved", (0, 1, 1, 0, 1), 2, backward=False) == Grid.parse("""
        device 0: 0F0 0F1 3F0 3F1
        device 1: 1F0 2F0 1F1 2F1 4F0 4F1
    """)


def test_a_device_may_have_the_first_stage_and_the_last() -> None:
    assert make_grid("1f1b", "abba", 3) == Grid.parse("""
        device 0: 0F0 0F1 3F0 0F2 3B0 3F1 3B1 0B0 3F2 3B2 0B1 0B2
        device 1: 1F0 2F0 1F1 2F1 2B0 1B0 1F2 2F2 2B1 1B1 2B2 1B2
    """)


@settings(deadline=None)
@given(PATTERNS, st.integers(1, 8), st.sampled_from(SCHEDULES), st.booleans())
def test_every_schedule_ends_however_stages_share_devices(
    devices: list[int], micro_batches: int, schedule: str, backward: bool
) -> None:
    grid = make_grid(schedule, devices, micro_batches, backward=backward)
    report = check_grid(grid)
    assert grid.pattern == pattern_of(devices)
    assert (grid.stages, grid.micro_batches, len(grid.rows)) == (len(devices), micro_batches, len({*devices}))
    assert sum(report.busy) == len(devices) * micro_batches * (3 if backward else 1)
    assert max(report.peak_live) <= max(check_grid(make_grid(schedule, range(len(devices)), micro_batches)).peak_live)


@given(PATTERNS)
def test_a_pattern_says_which_stages_share_a_device(devices: list[int]) -> None:
    pattern = pattern_of(devices)
    assert pattern_of(pattern) == pattern
    for j, k in product(range(len(devices)), repeat=2):
        assert (pattern[j] == pattern[k]) == (devices[j] == devices[k])


@settings(deadline=None)
@given(placements())
def test_1f1b_holds_as_many_micro_batches_as_stages_from_here_on(placement: tuple[int, int, int]) -> None:
    stages, micro_batches, devices = placement
    report = check_grid(make_grid("1f1b", turns(stages, devices), micro_batches))
    coarse = stages if devices > 1 else 1
    assert report.peak_live == tuple(min(micro_batches, max(1, coarse - j)) for j in range(stages))


@settings(deadline=None)
@given(placements())
def test_zero_bubble_holds_on_no_stage_more_than_1f1b_on_its_first(placement: tuple[int, int, int]) -> None:
    stages, micro_batches, devices = placement
    report = check_grid(make_grid("zero_bubble", turns(stages, devices), micro_batches))
    assert report.peak_live == (min(micro_batches, stages if devices > 1 else 1),) * stages


@settings(deadline=None)
@given(placements())
def test_gpipe_holds_every_micro_batch(placement: tuple[int, int, int]) -> None:
    stages, micro_batches, devices = placement
    report = check_grid(make_grid("gpipe", turns(stages, devices), micro_batches))
    assert report.peak_live == (micro_batches,) * stages


def test_forward_only_holds_one_micro_batch() -> None:
    assert check_grid(make_grid("gpipe", range(3), 4, backward=False)).peak_live == (1, 1, 1)


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), st.integers(1, 8), st.integers(1, 16))
def test_the_bubble_of_one_stage_per_device_is_that_of_the_paper(
    schedule: str, stages: int, micro_batches: int
) -> None:
    report = check_grid(make_grid(schedule, range(stages), micro_batches))
    assert report.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@given(st.integers(2, 8), st.integers(0, 8))
def test_zero_bubble_idles_a_third_of_the_clock_steps_of_1f1b(stages: int, more: int) -> None:
    micro_batches = stages + more
    split = check_grid(make_grid("zero_bubble", range(stages), micro_batches))
    whole = check_grid(make_grid("1f1b", range(stages), micro_batches))
    assert split.makespan == 3 * micro_batches + stages - 1
    assert whole.makespan == 3 * micro_batches + 3 * (stages - 1)
    assert split.bubble < whole.bubble


@settings(deadline=None)
@given(placements())
def test_interleaved_idles_no_more_than_1f1b(placement: tuple[int, int, int]) -> None:
    stages, micro_batches, devices = placement
    interleaved = check_grid(make_grid("interleaved", turns(stages, devices), micro_batches))
    assert interleaved.bubble <= check_grid(make_grid("1f1b", turns(stages, devices), micro_batches)).bubble
    if micro_batches >= devices:
        rounds = micro_batches * stages // devices
        assert interleaved.bubble == pytest.approx((devices - 1) / (rounds + devices - 1))
        one_stage_each = check_grid(make_grid("1f1b", range(devices), micro_batches))
        assert interleaved.bubble <= one_stage_each.bubble


def test_interleaved_with_one_stage_per_device_is_1f1b() -> None:
    assert make_grid("interleaved", range(4), 6) == make_grid("1f1b", range(4), 6)


def test_a_report_says_when_each_action_starts() -> None:
    report = check_grid(Grid.parse("device 0: 0F0 0B0\ndevice 1: 1F0 1B0"))
    assert {str(action): start for action, start in report.start.items()} == {"0F0": 0, "1F0": 1, "1B0": 2, "0B0": 4}
    assert (report.makespan, report.busy, report.bubble) == (6, (3, 3), 0.5)


def test_given_edges_replace_the_dependencies() -> None:
    grid = Grid.parse("device 0: 0F0 0B0\ndevice 1: 1F0 1B0")
    assert check_grid(grid, edges={}).makespan == 3
    with pytest.raises(ScheduleError, match="device 1 waits at 1F0 for 9F0, which no device runs"):
        check_grid(grid, edges={Action(1, "F", 0): (Action(9, "F", 0),)})


def test_a_stage_may_split_its_backward_where_others_do_not() -> None:
    grid = Grid.parse("device 0: 0F0 0I0 0W0\ndevice 1: 1F0 1B0\ndevice 2: 2F0 2I0 2W0")
    assert check_grid(grid).makespan == 8


# What is refused.


def test_a_deadlock_shows_the_grid_and_who_waits_for_what() -> None:
    grid = Grid.parse("""
        device 0: 0F0 0F1 0B0 0B1
        device 1: 1B0 1F0 1F1 1B1
    """)
    with pytest.raises(ScheduleError) as refused:
        check_grid(grid)
    assert str(refused.value) == "\n".join(
        [
            "the schedule never ends: 6 of its 8 actions cannot start.",
            "  device 0: 0F0 0F1 >0B0< 0B1",
            "  device 1: >1B0< 1F0 1F1 1B1",
            "  device 0 waits at 0B0 for 1B0, which device 1 runs later",
            "  device 1 waits at 1B0 for 1F0, which it runs later",
            '  Move what is waited for in front of what waits for it, or use schedule="1f1b".',
        ]
    )


def test_missing_and_repeated_actions_are_all_shown() -> None:
    grid = Grid(Grid.parse("device 0: 0F0 0F0 0B0 0F2\ndevice 1: 1F0 1I0 1F1 1B1 0W0").rows, 2, 2)
    with pytest.raises(ScheduleError) as refused:
        check_grid(grid)
    assert str(refused.value) == "\n".join(
        [
            "the schedule does not run every action exactly once.",
            "  device 0: 0F0 >0F0< 0B0 >0F2<",
            "  device 1: 1F0 1I0 1F1 1B1 >0W0<",
            "  missing: 0F1 0B1 1W0",
            "  more than once: 0F0",
            "  beside a B of the same micro-batch: 0W0",
            "  not of 2 stages and 2 micro-batches: 0F2",
            "  stage 0 is on devices 0, 1",
            "  Write F and B (or F, I and W) of every stage and micro-batch once, each stage on one device; "
            'or use schedule="1f1b".',
        ]
    )


@settings(deadline=None)
@given(placements(), st.sampled_from(SCHEDULES), st.data())
def test_a_grid_with_an_action_dropped_repeated_or_run_before_its_own_forward_is_refused(
    placement: tuple[int, int, int], schedule: str, data: st.DataObject
) -> None:
    stages, micro_batches, devices = placement
    assume(stages * micro_batches > 1)  # Without its only B, a grid is a forward-only one.
    grid = make_grid(schedule, turns(stages, devices), micro_batches)
    device = data.draw(st.integers(0, devices - 1))
    row = list(grid.rows[device])
    n = data.draw(st.integers(0, len(row) - 1))
    action = row[n]
    match data.draw(st.sampled_from(["drop", "repeat", "swap"])):
        case "drop":
            del row[n]
        case "repeat":
            row.insert(data.draw(st.integers(0, len(row))), action)
        case _:
            ends = "I" if schedule == "zero_bubble" else "B"
            first = row.index(Action(action.stage, "F", action.micro_batch))
            last = row.index(Action(action.stage, ends, action.micro_batch))
            row[first], row[last] = row[last], row[first]
    rows = (*grid.rows[:device], tuple(row), *grid.rows[device + 1 :])
    with pytest.raises(ScheduleError):
        check_grid(replace(grid, rows=rows))


def test_an_unknown_schedule_names_the_nearest_and_all() -> None:
    with pytest.raises(ScheduleError) as refused:
        make_grid("zerobubble", range(2), 2)
    assert str(refused.value) == (
        "there is no schedule 'zerobubble'.\n"
        "  Did you mean 'zero_bubble'? Use one of 'gpipe', '1f1b', 'interleaved', 'zero_bubble'."
    )


@pytest.mark.parametrize(("stages", "micro_batches"), [(0, 1), (1, 0), (2, -1)])
def test_there_must_be_something_to_run(stages: int, micro_batches: int) -> None:
    with pytest.raises(ScheduleError, match="at least one of each"):
        make_grid("1f1b", range(stages), micro_batches)


def test_unreadable_grids_name_every_fault() -> None:
    with pytest.raises(ScheduleError) as refused:
        Grid.parse("device 0: 0F0 0X0\nnonsense\ndevice 1: B1")
    assert str(refused.value) == "\n".join(
        [
            "cannot read the schedule.",
            "  line 1: '0X0' is no action",
            "  line 2: 'nonsense' is not 'device <number>: <actions>'",
            "  line 3: 'B1' is no action",
            "  Write one line per device from 0 on, 'device 0: 0F0 0B0': stage, one of F B I W, micro-batch.",
        ]
    )
    with pytest.raises(ScheduleError, match="line 1: device 1 stands where device 0 must"):
        Grid.parse("device 1: 0F0")
    with pytest.raises(ScheduleError, match="'0X0' is no action"):
        Action(0, "X", 0)
    with pytest.raises(ScheduleError, match="'F0' is no action"):
        Action.parse("F0")
