"""Proves a schedule free of deadlock and says what it costs.

A grid ends if every device, running its row in order, always finds in time what its next action needs. A send never
waits for its receiver, nor a reduction for its end, so placing the actions once decides it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from whale_tf.errors import ScheduleError
from whale_tf.plan.grid import CLOCK_STEPS, Action, Grid, dependencies, place, rows_text

_ENOUGH = ({"F", "B"}, {"F", "I", "W"})


@dataclass(frozen=True)
class Report:
    """What a schedule costs, in the clock steps of `grid.CLOCK_STEPS`.

    Attributes:
      start: the clock step at which each action starts.
      makespan: clock steps until the last device has ended.
      peak_live: per stage, the most micro-batches whose F has started and whose B, or W where it is split, has not
        ended; without a backward a micro-batch lives as long as its F.
      busy: per device, the clock steps in which it works.
      bubble: the part of all devices' clock steps in which they idle, 0 to 1.
    """

    start: Mapping[Action, int]
    makespan: int
    peak_live: tuple[int, ...]
    busy: tuple[int, ...]
    bubble: float


def check_grid(grid: Grid, *, edges: Mapping[Action, tuple[Action, ...]] | None = None) -> Report:
    """Checks that a grid has every action once, both ends of each transfer, and ends; and prices it.

    Args:
      grid: one replica's schedule.
      edges: what each action needs to have ended, where that is not `grid.dependencies`; actions that are not in
        it need nothing.
    Raises:
      ScheduleError: actions that are missing, repeated, out of range, or of one stage on several devices; transfers
        with one end, or within a device; or a grid that never ends. It shows the rows with the bad cells marked as
        `>1B0<`.
    """
    _refuse_wrong_actions(grid)
    needs = dependencies(grid) if edges is None else edges
    placed = place(grid, needs)
    if any(len(starts) < len(row) for starts, row in zip(placed, grid.rows, strict=True)):
        raise _deadlock(grid, needs, placed)
    start = dict(zip(chain.from_iterable(grid.rows), chain.from_iterable(placed), strict=True))
    makespan = max((at + action.clock_steps for action, at in start.items()), default=0)
    busy = tuple(sum(action.clock_steps for action in row) for row in grid.rows)
    bubble = 1 - sum(busy) / (makespan * len(busy)) if makespan else 0.0
    return Report(start, makespan, _peak_live(grid), busy, bubble)


def _peak_live(grid: Grid) -> tuple[int, ...]:
    """A stage is on one device, so the order of its row alone says it."""
    live, peak = [0] * grid.stages, [0] * grid.stages
    actions = [action for action in chain.from_iterable(grid.rows) if action.computes]
    forward_only = all(action.kind == "F" for action in actions)
    for action in actions:
        j = action.stage
        if action.kind == "F":
            live[j] += 1
            peak[j] = max(peak[j], live[j])
        if action.kind in "BW" or forward_only:
            live[j] -= 1
    return tuple(peak)


def _refuse_wrong_actions(grid: Grid) -> None:
    cells = [(action, (device, n)) for device, row in enumerate(grid.rows) for n, action in enumerate(row)]
    times = Counter(action for action, _ in cells)
    kinds: dict[tuple[int, int], set[str]] = {}
    homes: dict[int, list[int]] = {}
    for action, (device, _) in cells:
        if action.computes:
            kinds.setdefault((action.stage, action.micro_batch), set()).add(action.kind)
        devices = homes.setdefault(action.stage, [])
        if device not in devices:
            devices.append(device)

    stages, micro_batches = grid.stages, grid.micro_batches
    outside = {a for a in times if max(a.stage, a.peer or 0) >= stages or a.micro_batch >= micro_batches}
    repeated = {action for action, count in times.items() if count > 1}
    doubled = {action for action in times if action.kind in "IW" and "B" in kinds[action.stage, action.micro_batch]}
    transfers = {action for action in times if action.peer is not None} - outside
    within = {action for action in transfers if homes[action.stage] == homes.get(action.other_end.stage)}
    single = {action for action in transfers - within if action.other_end not in times}
    missing = _missing(grid, kinds)
    faults = [
        f"{fault}: {' '.join(map(str, sorted(actions, key=_place_in_step)))}"
        for fault, actions in (
            ("missing", missing),
            ("more than once", repeated),
            ("beside a B of the same micro-batch", doubled),
            (f"not of {stages} stages and {micro_batches} micro-batches", outside),
            ("between stages of one device", within),
            ("without the other end", single),
        )
        if actions
    ]
    astray = {stage: devices for stage, devices in homes.items() if len(devices) > 1}
    for stage, devices in sorted(astray.items()):
        faults.append(f"stage {stage} is on devices {', '.join(map(str, devices))}")
    if not faults:
        return
    first = dict(reversed(cells))
    marked = [
        cell
        for action, cell in cells
        if action in outside | doubled | within | single or cell != first[action] or cell[0] != homes[action.stage][0]
    ]
    raise ScheduleError(
        "the schedule does not run every action exactly once",
        details=[*rows_text(grid, marked), *faults],
        way_out="Write F and B (or F, I and W) of every stage and micro-batch once, each stage on one device; "
        + "S and R of a transfer both or neither, and only between devices; " * bool(within or single)
        + 'or use schedule="1f1b".',
    )


def _missing(grid: Grid, kinds: Mapping[tuple[int, int], set[str]]) -> set[Action]:
    """The actions that are not there; a backward counts as split where there is a part of it."""
    forward_only = all(found <= {"F"} for found in kinds.values())
    missing = set()
    for j in range(grid.stages):
        for i in range(grid.micro_batches):
            found = kinds.get((j, i), set())
            split = bool(found & {"I", "W"}) and "B" not in found
            wanted = {"F"} if forward_only else _ENOUGH[split]
            missing |= {Action(j, kind, i) for kind in wanted - found}
    return missing


def _place_in_step(action: Action) -> tuple[int, int, int, str]:
    return (action.stage, action.micro_batch, [*CLOCK_STEPS].index(action.kind), str(action))


def _deadlock(grid: Grid, needs: Mapping[Action, Iterable[Action]], placed: Sequence[Sequence[int]]) -> ScheduleError:
    where = {action: (device, n) for device, row in enumerate(grid.rows) for n, action in enumerate(row)}
    blocked = [(device, len(starts)) for device, starts in enumerate(placed) if len(starts) < len(grid.rows[device])]
    waits = []
    for device, n in blocked:
        action = grid.rows[device][n]
        lacking = []
        for need in needs.get(action, ()):
            there, position = where.get(need, (-1, 0))
            if there < 0:
                lacking.append(f"{need}, which no device runs")
            elif position >= len(placed[there]):
                lacking.append(f"{need}, which {'it runs later' if there == device else f'device {there} runs later'}")
        waits.append(f"device {device} waits at {action} for {' and '.join(lacking)}")
    left = sum(map(len, grid.rows)) - sum(map(len, placed))
    return ScheduleError(
        f"the schedule never ends: {left} of its {len(where)} actions cannot start",
        details=[*rows_text(grid, blocked), *waits],
        way_out='Move what is waited for in front of what waits for it, or use schedule="1f1b".',
    )
