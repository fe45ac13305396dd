"""A pipeline schedule as a value: the actions of each device of one replica, in order.

    clock     0   1   2   3   4   5   6   7   8   9   10  11
    device 0: 0F0 0F1 .   .   0B0 -   0F2 0B1 -   .   0B2 -
    device 1: .   1F0 1B0 -   1F1 1B1 -   1F2 1B2 -   .   .

A clock step is one forward of one micro-batch; F, I and W take one, B takes two (it is an I and a W). Communication
takes none: what devices send and receive, and the reduction of a stage's gradients, which
`communication.with_communication` inserts. A grid that has it prints as bare rows:

    device 0: 0F0 0F0S1 0R1B0 0B0     stage 0 sends what 0F0 made to stage 1, and receives what 1B0 made
    device 1: 1R0F0 1F0 1B0 1B0S0
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from whale_tf._protos import plan_pb2
from whale_tf.errors import ScheduleError

CLOCK_STEPS: Mapping[str, int] = {"F": 1, "B": 2, "I": 1, "W": 1, "S": 0, "R": 0, "C": 0}
COMPUTE = frozenset("FBIW")
_BUBBLE, _CONTINUED = ".", "-"


@dataclass(frozen=True, slots=True)
class Action:
    """What a device does in one go: prints as `2F0`, stage 2, forward, micro-batch 0.

    Attributes:
      stage: counted from 0.
      kind: F forward, B backward; or, in the place of B, I input gradients and W weight gradients. S send, prints as
        `0F0S1`; R receive, as `1R0F0`; C reduce the stage's gradients over the replicas, as `0C`.
      micro_batch: counted from 0; of C, which is for all of them, 0.
      peer: the stage that an S goes to, or an R comes from; of others None.
      made_by: the kind of the action that made what S and R transfer; of others empty.
    """

    stage: int
    kind: str
    micro_batch: int
    peer: int | None = None
    made_by: str = ""

    def __post_init__(self) -> None:
        transfers = self.peer is not None and self.peer >= 0 and self.peer != self.stage and self.made_by in COMPUTE
        computes_alone = self.peer is None and not self.made_by
        fits = transfers if self.kind in ("S", "R") else computes_alone and self.kind in CLOCK_STEPS
        if not fits or min(self.stage, self.micro_batch) < 0 or (self.kind == "C" and self.micro_batch):
            raise _unreadable([f"'{self}' is no action"])

    def __str__(self) -> str:
        if self.kind == "S":
            return f"{self.stage}{self.made_by}{self.micro_batch}S{self.peer}"
        if self.kind == "R":
            return f"{self.stage}R{self.peer}{self.made_by}{self.micro_batch}"
        return f"{self.stage}C" if self.kind == "C" else f"{self.stage}{self.kind}{self.micro_batch}"

    @property
    def clock_steps(self) -> int:
        """How many clock steps it takes."""
        return CLOCK_STEPS[self.kind]

    @property
    def computes(self) -> bool:
        """Whether it runs a stage function, and is no communication."""
        return self.kind in COMPUTE

    @property
    def made(self) -> Action:
        """The action that made what an S or R transfers."""
        assert self.peer is not None
        return Action(self.stage if self.kind == "S" else self.peer, self.made_by, self.micro_batch)

    @property
    def other_end(self) -> Action:
        """The R of an S, the S of an R."""
        assert self.peer is not None
        return Action(self.peer, "R" if self.kind == "S" else "S", self.micro_batch, self.stage, self.made_by)

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that prints as `text`.

        Raises:
          ScheduleError: nothing prints so.
        """
        found = _ACTION.fullmatch(text.strip())
        if found is None:
            raise _unreadable([f"'{text}' is no action"])
        given = found.groupdict()
        if given["reducer"]:
            return cls(int(given["reducer"]), "C", 0)
        made = cls(int(given["stage"]), given["kind"], int(given["micro_batch"]))
        if given["to"]:
            return cls(made.stage, "S", made.micro_batch, int(given["to"]), made.kind)
        if given["receiver"]:
            return cls(int(given["receiver"]), "R", made.micro_batch, made.stage, made.kind)
        return made


@dataclass(frozen=True)
class Grid:
    """The actions of each device of one replica, in order.

    Attributes:
      rows: one per device; a device without work has an empty row.
      stages: how many there are over all devices.
      micro_batches: how many there are in one step.
    """

    rows: tuple[tuple[Action, ...], ...]
    stages: int
    micro_batches: int

    def __str__(self) -> str:
        """A table by clock step; the bare rows if it has communication or never ends. All parse back."""
        starts = place(self, dependencies(self))
        never_ends = any(len(row) > len(placed) for row, placed in zip(self.rows, starts, strict=True))
        if never_ends or self.communicates:
            return "\n".join(rows_text(self))
        cells = [_cells(row, placed) for row, placed in zip(self.rows, starts, strict=True)]
        makespan = max(map(len, cells), default=0)
        cells = [row + [_BUBBLE] * (makespan - len(row)) for row in cells]
        clock = [str(k) for k in range(makespan)]
        width = max(map(len, chain(clock, *cells)), default=0)
        heads = ["clock", *(f"device {device}:" for device in range(len(self.rows)))]
        head_width = max(map(len, heads))
        return "\n".join(
            " ".join([head.ljust(head_width), *(cell.ljust(width) for cell in row)]).rstrip()
            for head, row in zip(heads, [clock, *cells], strict=True)
        )

    @property
    def splits_backward(self) -> bool:
        """Whether a backward is an I and a W."""
        return any(action.kind == "W" for action in chain.from_iterable(self.rows))

    @property
    def communicates(self) -> bool:
        """Whether it has communication."""
        return not all(action.computes for action in chain.from_iterable(self.rows))

    def first(self, micro_batches: int, *, backward: bool = True) -> Grid:
        """The actions of the first micro-batches in their order; without a backward, their forwards alone.

        An action waits for others of its micro-batch only, and a forward for forwards: so it ends if this one does.
        """
        rows = tuple(
            tuple(action for action in row if action.micro_batch < micro_batches and (backward or action.kind == "F"))
            for row in self.rows
        )
        return Grid(rows, self.stages, min(micro_batches, self.micro_batches))

    def device_of(self, stage: int) -> int:
        """The row that runs a stage.

        Raises:
          ScheduleError: none does.
        """
        if stage not in self._devices:
            raise ScheduleError(
                f"no device runs stage {stage}", details=rows_text(self), way_out=f"Use a stage below {self.stages}."
            )
        return self._devices[stage]

    @cached_property
    def _devices(self) -> dict[int, int]:
        """The row of each stage that there is."""
        return {action.stage: device for device, row in reversed([*enumerate(self.rows)]) for action in row}

    @cached_property
    def pattern(self) -> tuple[int, ...]:
        """Which stages share a device, as `pattern_of` tells it.

        Raises:
          ScheduleError: no device runs one of them.
        """
        return pattern_of([self.device_of(stage) for stage in range(self.stages)])

    @classmethod
    def parse(cls, text: str) -> Grid:
        """The grid that `text` shows: what `str` gives, or rows typed as `device 0: 0F0 0F1 0B0 0B1`.

        The numbers of stages and micro-batches are those that occur.

        Raises:
          ScheduleError: lines or actions that cannot be read, all of them named; devices out of order.
        """
        rows: list[tuple[Action, ...]] = []
        faults: list[str] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.split()[0] == "clock":
                continue
            found = _ROW.fullmatch(line)
            words = found[2].split() if found else []
            wrong = [word for word in words if word not in (_BUBBLE, _CONTINUED) and not _ACTION.fullmatch(word)]
            if found is None:
                faults.append(f"line {number}: '{line.strip()}' is not 'device <number>: <actions>'")
            elif int(found[1]) != len(rows) and not faults:
                faults.append(f"line {number}: device {int(found[1])} stands where device {len(rows)} must")
            faults += [f"line {number}: '{word}' is no action" for word in wrong]
            rows.append(tuple(Action.parse(word) for word in words if _ACTION.fullmatch(word)))
        if faults:
            raise _unreadable(faults)
        actions = list(chain.from_iterable(rows))
        stages = max((action.stage + 1 for action in actions), default=0)
        return cls(tuple(rows), stages, max((action.micro_batch + 1 for action in actions), default=0))

    def to_proto(self) -> plan_pb2.Grid:
        """The message of this grid."""
        rows = [" ".join(map(str, row)) for row in self.rows]
        return plan_pb2.Grid(rows=rows, stages=self.stages, micro_batches=self.micro_batches)

    @classmethod
    def from_proto(cls, message: plan_pb2.Grid) -> Grid:
        """The grid of a message.

        Raises:
          ScheduleError: an action cannot be read.
        """
        rows = tuple(tuple(map(Action.parse, row.split())) for row in message.rows)
        return cls(rows, message.stages, message.micro_batches)


def pattern_of(devices: Sequence[Hashable]) -> tuple[int, ...]:
    """Which stages share a device: (4, 4, 7, 4) is (0, 0, 1, 0).

    Args:
      devices: of each stage its device, or what stands for it.
    Returns:
      for each stage the number of its device, in the order of the devices' first stages.
    """
    numbers = {device: number for number, device in enumerate(dict.fromkeys(devices))}
    return tuple(numbers[device] for device in devices)


def dependencies(grid: Grid) -> dict[Action, tuple[Action, ...]]:
    """What each action of a grid needs to have ended.

    F: F of the stage before. B and I: F of its own stage, and B or I of the stage after. W: its I. S: what made its
    value. R: its S. C: every B, I and W of its stage.
    """
    actions = dict.fromkeys(chain.from_iterable(grid.rows))
    needs: dict[Action, tuple[Action, ...]] = {}
    for action in actions:
        j, i = action.stage, action.micro_batch
        if action.kind == "C":
            needs[action] = tuple(each for each in actions if each.stage == j and each.kind in "BIW")
        elif action.kind == "S":
            needs[action] = (action.made,)
        elif action.kind == "R":
            needs[action] = (action.other_end,)
        elif action.kind == "W":
            needs[action] = (Action(j, "I", i),)
        elif action.kind == "F":
            needs[action] = (Action(j - 1, "F", i),) if j > 0 else ()
        elif j + 1 >= grid.stages:
            needs[action] = (Action(j, "F", i),)
        else:
            split = Action(j + 1, "I", i)
            needs[action] = (Action(j, "F", i), split if split in actions else Action(j + 1, "B", i))
    return needs


def place(grid: Grid, needs: Mapping[Action, Iterable[Action]]) -> tuple[tuple[int, ...], ...]:
    """The clock step at which each action starts, if each starts as early as it can.

    Returns:
      One row per device; shorter than the grid's where a device waits for ever.
    """
    ends: dict[Action, int] = {}
    starts: list[list[int]] = [[] for _ in grid.rows]
    free = [0] * len(grid.rows)
    moved = True
    while moved:
        moved = False
        for device, row in enumerate(grid.rows):
            while len(starts[device]) < len(row):
                action = row[len(starts[device])]
                needed = [ends.get(need) for need in needs.get(action, ())]
                ready = [end for end in needed if end is not None]
                if len(ready) < len(needed):
                    break
                start = max([free[device], *ready])
                starts[device].append(start)
                free[device] = start + action.clock_steps
                ends.setdefault(action, free[device])
                moved = True
    return tuple(map(tuple, starts))


def rows_text(grid: Grid, marked: Iterable[tuple[int, int]] = ()) -> list[str]:
    """The rows without clock steps, one line per device; cells at the marked (device, position) as `>1B0<`."""
    bad = set(marked)
    return [
        " ".join([f"device {device}:", *(f">{a}<" if (device, n) in bad else str(a) for n, a in enumerate(row))])
        for device, row in enumerate(grid.rows)
    ]


_ACTION = re.compile(
    r"(?:(?P<receiver>\d+)R)?(?P<stage>\d+)(?P<kind>[FBIW])(?P<micro_batch>\d+)(?(receiver)|(?:S(?P<to>\d+))?)"
    r"|(?P<reducer>\d+)C"
)
_ROW = re.compile(r"\s*device\s+(\d+)\s*:(.*)")


def _cells(row: Sequence[Action], starts: Sequence[int]) -> list[str]:
    cells: list[str] = []
    for action, start in zip(row, starts, strict=True):
        cells += [_BUBBLE] * (start - len(cells))
        cells += [str(action), *[_CONTINUED] * (action.clock_steps - 1)]
    return cells


def _unreadable(faults: Sequence[str]) -> ScheduleError:
    return ScheduleError(
        "cannot read the schedule",
        details=faults,
        way_out="Write one line per device from 0 on, 'device 0: 0F0 0B0': stage, one of F B I W, micro-batch.",
    )
