"""Pipeline schedules by name: in which order each device of one replica runs its stages' micro-batches.

Stages that follow each other on one device are run as one: the schedule is made for a *coarse* pipeline, and each of
its actions is expanded into those of its stages.

    stages 0 1 2 3 on devices 0 0 1 1     coarse 0F0 = 0F0 1F0     coarse 0B0 = 1B0 0B0

Each schedule is a closed form, one row at a time. `check_schedule.check_grid` proves a grid free of deadlock and says
what it costs; S stages, M micro-batches and D devices below, bubbles in clock steps of `grid.CLOCK_STEPS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain, groupby, pairwise

from whale_tf.errors import ScheduleError
from whale_tf.plan.grid import Action, Grid, dependencies, pattern_of, place, rows_text
from whale_tf.plan.grids import Grids

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")


def make_grid(schedule: str | Grids, devices: Sequence[Hashable], micro_batches: int, *, backward: bool = True) -> Grid:
    """The order of one step under a named schedule.

    Where a device has several coarse stages that take turns, as on devices 0 1 0 1, `interleaved` is made for it. Else
    such a schedule is made for one device per coarse stage and folded, which keeps the order, and so the memory, of
    every stage.

    Args:
      schedule: one of SCHEDULES; or grids, of which one is for these devices and for as many micro-batches or more.
      devices: of each stage its device, or what stands for it; rows are in the order of their first stages.
      micro_batches: 1 or more.
      backward: whether there is one; an evaluation step has forwards only, the same under every schedule.
    Raises:
      ScheduleError: an unknown schedule, numbers below 1, or a grid without the backward.
    """
    pattern = pattern_of(devices)
    if isinstance(schedule, Grids):
        return _of_grid(schedule.of(pattern), micro_batches, backward)
    _refuse_wrong_arguments(schedule, len(pattern), micro_batches)
    runs = [(device, [*stages]) for device, stages in groupby(range(len(pattern)), key=pattern.__getitem__)]
    coarse = _coarse(schedule, [device for device, _ in runs], micro_batches, backward)
    return _expanded(coarse, [stages for _, stages in runs])


def _coarse(schedule: str, rows: Sequence[int], micro_batches: int, backward: bool) -> Grid:
    """The grid of stages of which no two that follow each other are on one device.

    Args:
      rows: of each stage its device.
    """
    stages, devices = len(rows), len({*rows})
    in_turns = stages % devices == 0 and all(row == stage % devices for stage, row in enumerate(rows))
    if backward and schedule == "interleaved" and in_turns and devices < stages:
        made = tuple(_interleaved(device, devices, stages, micro_batches) for device in range(devices))
        return Grid(made, stages, micro_batches)
    row_of = _ROWS[schedule] if backward else _forwards
    made = tuple(row_of(stage, stages, micro_batches) for stage in range(stages))
    return _folded(Grid(made, stages, micro_batches), rows)


def _expanded(coarse: Grid, stages: Sequence[Sequence[int]]) -> Grid:
    """A grid of coarse stages as one of their stages: forwards in order, backwards, of whatever kind, in reverse.

    What an action of a coarse stage needs ends before it, so what one of its stages needs from others does too.
    """
    rows = tuple(
        tuple(
            Action(stage, action.kind, action.micro_batch)
            for action in row
            for stage in stages[action.stage][:: 1 if action.kind == "F" else -1]
        )
        for row in coarse.rows
    )
    return Grid(rows, sum(map(len, stages)), coarse.micro_batches)


def _of_grid(grid: Grid, micro_batches: int, backward: bool) -> Grid:
    found = grid.first(micro_batches, backward=backward)
    if backward and all(action.kind == "F" or not action.computes for action in chain.from_iterable(grid.rows)):
        raise ScheduleError(
            "the schedule has no backward, and the step takes gradients",
            details=rows_text(grid),
            way_out='Write B (or I and W) of every stage and micro-batch after its F; or use schedule="1f1b".',
        )
    return found


def _forwards(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    return tuple(Action(stage, "F", i) for i in range(micro_batches))


def _gpipe(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """All forwards, then all backwards: every stage holds every micro-batch.

    Bubble: (S - 1) / (M + S - 1). Source: Huang et al. 2019, GPipe, section 2.3.
    """
    return tuple(Action(stage, kind, i) for kind in "FB" for i in range(micro_batches))


def _one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """As few forwards ahead as keep the pipeline full, then a backward after each forward.

    Bubble as gpipe's; stage j holds min(M, S - j) micro-batches.
    Source: Narayanan et al. 2019, PipeDream, section 3.2; with a flush per step Narayanan et al. 2021, section 2.2.1.
    """
    forwards = [Action(stage, "F", i) for i in range(micro_batches)]
    backwards = [Action(stage, "B", i) for i in range(micro_batches)]
    return _alternating(forwards, backwards, ahead=stages - 1 - stage)


def _zero_bubble(stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """1f1b whose backward is split; stage j computes weight gradients j micro-batches late.

    Input gradients then reach the stages before without the weight gradients' time between, and the late weight
    gradients fill the end: for M >= S the bubble is (S - 1) / (3 M + S - 1), a third of 1f1b's clock steps. A stage
    holds S - j micro-batches before their I and j more before their W: min(M, S) in all, what 1f1b's first stage holds.
    Source: Qi et al. 2023, Zero Bubble Pipeline Parallelism, schedule ZB-H1, section 2.2.
    """
    row = [Action(stage, "F", i) for i in range(min(micro_batches, stages - stage))]
    for i in range(micro_batches):
        row.append(Action(stage, "I", i))
        if i >= stage:
            row.append(Action(stage, "W", i - stage))
        if i + stages - stage < micro_batches:
            row.append(Action(stage, "F", i + stages - stage))
    late = range(max(0, micro_batches - stage), micro_batches)
    return (*row, *(Action(stage, "W", i) for i in late))


# Interleaved with one stage per device is 1f1b.
_ROWS: Mapping[str, Callable[[int, int, int], tuple[Action, ...]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved": _one_forward_one_backward,
    "zero_bubble": _zero_bubble,
}


def _interleaved(device: int, devices: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """1f1b in rounds of micro-batches, each round through the device's stages one after the other.

    Bubble: (D - 1) / (M S / D + D - 1) for M >= D. A round shorter than D would let the pipeline run dry, so M that D
    does not divide makes longer rounds, the longest first.
    Source: Narayanan et al. 2021, Efficient Large-Scale Language Model Training, section 2.2.2 (there M % D = 0).
    """
    mine = range(device, stages, devices)
    count = max(1, micro_batches // devices)
    ends = [-(-micro_batches * n // count) for n in range(count + 1)]
    rounds = [range(first, end) for first, end in pairwise(ends)]
    forwards = [Action(stage, "F", i) for batch in rounds for stage in mine for i in batch]
    backwards = [Action(stage, "B", i) for batch in rounds for stage in reversed(mine) for i in batch]
    return _alternating(forwards, backwards, ahead=2 * (devices - 1 - device) + (len(mine) - 1) * len(rounds[0]))


def _alternating(forwards: Sequence[Action], backwards: Sequence[Action], *, ahead: int) -> tuple[Action, ...]:
    """`ahead` forwards, then one forward and one backward in turn, then the backwards that are left."""
    ahead = min(ahead, len(forwards))
    steady = chain.from_iterable(zip(forwards[ahead:], backwards, strict=False))
    return (*forwards[:ahead], *steady, *backwards[len(forwards) - ahead :])


def _folded(grid: Grid, devices: Sequence[int]) -> Grid:
    """A grid of one stage per device, on these: rows that fall on one device merge by clock step.

    What an action needs starts at an earlier clock step, so the merged order still has it before, and never deadlocks.
    """
    starts = place(grid, dependencies(grid))
    rows = []
    for device in range(max(devices) + 1):
        timed = [
            (start, -stage, action)
            for stage in range(grid.stages)
            if devices[stage] == device
            for start, action in zip(starts[stage], grid.rows[stage], strict=True)
        ]
        # At the same clock step the later stage goes first: more devices wait for it.
        rows.append(tuple(action for _, _, action in sorted(timed, key=lambda entry: entry[:2])))
    return Grid(tuple(rows), grid.stages, grid.micro_batches)


def _refuse_wrong_arguments(schedule: str, stages: int, micro_batches: int) -> None:
    if schedule not in SCHEDULES:
        near = difflib.get_close_matches(str(schedule).lower(), SCHEDULES, n=1, cutoff=0.5)
        question = f"Did you mean {near[0]!r}? " if near else ""
        raise ScheduleError(
            f"there is no schedule {schedule!r}",
            way_out=question + "Use one of " + ", ".join(map(repr, SCHEDULES)) + ".",
        )
    counts = {"stages": stages, "micro_batches": micro_batches}
    small = [f"{name} is {count}" for name, count in counts.items() if count < 1]
    if small:
        raise ScheduleError("a schedule needs at least one of each", details=small, way_out="Use 1 or more.")
