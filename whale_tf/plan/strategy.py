"""What a user or a search decides about a step, and nothing that follows from it.

    Strategy(replicas=2, devices=((0, 1), (2, 3)), micro_batches=4, schedule="1f1b")

What is left open is decided for each step by `choose`. A strategy prints as one would write it, without what it leaves
open; the text reads back, from a file too, and there is a message of protos/strategy.proto.
"""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from whale_tf._protos import plan_pb2, strategy_pb2
from whale_tf.errors import Line, PlanError, ScheduleError
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grid import pattern_of, rows_text
from whale_tf.plan.grids import Grids
from whale_tf.plan.schedule import make_grid

Place: TypeAlias = int | tuple[int, ...]  # where a stage runs: a device; or several, which run it together


def members_of(place: Any) -> Sequence[Any]:
    """The devices of a place."""
    return place if _is_row(place) and place else (place,)


@dataclass(frozen=True)
class Strategy:
    """How a step is cut, where its parts run, and in which order.

    Attributes:
      replicas: how many; left open, as the step's replica scope says.
      shares: relative parts of the batch, one per replica; left open, as the scope says where it says how many
        replicas, else equal.
      stages: the names of the stages in the order of the pipeline; one without a name is called by its number. They
        are the step's own: a strategy with others does not fit it.
      devices: for each replica where its stages run, as indices into the cluster: for each stage a device, or a tuple
        of those that run it together. Stages may share a device, and in each replica others may. Where there are fewer
        entries than stages, the stages take turns: stage j is on entry j % their number. Left open, as the stage scopes
        say, else in the order of the cluster.
      micro_batches: parts that each replica cuts its examples into; left open, as a schedule that is a grid says,
        else 1. A batch that is too small has fewer.
      schedule: `gpipe`, `1f1b`, `interleaved` or `zero_bubble`; or the order of actions on each device of a replica, as
        `step.schedule` has it, or as it prints: a grid for each way in which the stages of a replica share devices.
        Left open, 1f1b.
      coupling: `auto`, or `exact`: whether what relates examples of several parts is computed over the global batch.
      batch_norm: `local`, or `global`: whether BatchNormalization takes its statistics over the global batch.
      accept: operations, kinds of operation or lines of which each part's own value is taken.
      gather_bytes: how much is gathered at most for what is computed once; left open, 256 MiB.
    Raises:
      PlanError: values that cannot be, or that contradict each other.
      ScheduleError: a schedule that is not known, or a grid that does not run every action once, or never ends.
    """

    replicas: int | None = None
    shares: tuple[float, ...] = ()
    stages: tuple[str, ...] = ()
    devices: tuple[tuple[Place, ...], ...] = ()
    micro_batches: int | None = None
    schedule: str | Grids | None = None
    coupling: str | None = None
    batch_norm: str | None = None
    accept: tuple[str, ...] = ()
    gather_bytes: int | None = None

    def __post_init__(self) -> None:
        refuse_wrong(vars(self))
        for name in ("replicas", "micro_batches", "gather_bytes"):
            value = getattr(self, name)
            self._set(name, None if value is None else int(value))
        if isinstance(self.schedule, str) and ":" in self.schedule:
            self._set("schedule", Grids.parse(self.schedule))
        self._set("shares", tuple(map(float, self.shares)))
        self._set("stages", tuple(self.stages))
        self._set("devices", tuple(tuple(map(_place, row)) for row in self.devices))
        self._set("accept", (self.accept,) if isinstance(self.accept, str) else tuple(self.accept))
        if self.replicas is None and (self.shares or self.devices):
            self._set("replicas", len(self.shares or self.devices))
        if isinstance(self.schedule, Grids):
            _refuse_grids(self.schedule)
            if self.micro_batches is None:
                self._set("micro_batches", self.schedule.by_class[0].micro_batches)
        wrong = list(self._contradictions())
        if wrong:
            raise PlanError(
                "the strategy contradicts itself",
                details=wrong,
                way_out="Let them agree, or leave open all but one of what disagrees.",
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _contradictions(self) -> Iterator[str]:
        grids = self.schedule if isinstance(self.schedule, Grids) else None
        grid = grids.by_class[0] if grids else None
        counts: dict[str, dict[str, int | None]] = {
            "replicas": {"replicas": self.replicas, "shares": len(self.shares), "devices": len(self.devices)},
            "stages": {"stages": len(self.stages), "schedule": grid.stages if grid else 0},
            "micro-batches": {"micro_batches": self.micro_batches, "schedule": grid.micro_batches if grid else 0},
        }
        for what, said in counts.items():
            known = {name: count for name, count in said.items() if count}
            if len({*known.values()}) > 1:
                yield f"{what}: {', '.join(f'{count} in {name}=' for name, count in known.items())}"
        stages = grid.stages if grid else len(self.stages)
        for count in dict.fromkeys(len(row) for row in self.devices if stages % len(row)):
            yield f"{stages} stage{'s' * (stages > 1)} cannot take turns on the {count} devices of a replica"
        for replica, row in enumerate(self.devices):
            times = stages // len(row)
            if grids and times * len(row) == stages and pattern_of(row * times) not in grids.patterns:
                yield f"the stages of replica {replica} are on {_written(row)}, and no grid in schedule= is for that"

    @property
    def said(self) -> dict[str, Any]:
        """What is not left open, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}

    def beside(self, other: Strategy, at: Sequence[Line] = ()) -> Strategy:
        """This strategy with what another says that it leaves open.

        Args:
          at: where the other was said.
        Raises:
          PlanError: both say the same thing differently.
        """
        own, given = self.said, other.said
        differing = [name for name in own if name in given and given[name] != own[name]]
        if differing:
            raise PlanError(
                "the strategy and what is said beside it differ",
                details=[
                    f"{name} is {_written(own[name])} in it, and {_written(given[name])} beside it"
                    for name in differing
                ],
                at=at,
                way_out=f"Leave out {' and '.join(f'{name}=' for name in differing)} beside the strategy, or in it.",
            )
        return replace(self, **{name: value for name, value in given.items() if name not in own})

    def __str__(self) -> str:
        return f"Strategy({', '.join(f'{name}={_written(value)}' for name, value in self.said.items())})"

    __repr__ = __str__

    @classmethod
    def parse(cls, text: str, *, file: str = "") -> Strategy:
        """The strategy that `text` shows: `Strategy(...)` with its values written out. Nothing is evaluated.

        Args:
          file: where the text is from, for errors.
        Raises:
          PlanError, ScheduleError: it cannot be read, or a value cannot be.
        """
        values = _read(text, file)
        refuse_wrong(values, [Line(file, 1)] if file else [])
        return cls(**values)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Strategy:
        """The strategy in a file, written there by `Path(path).write_text(str(strategy))`.

        Raises:
          OSError: there is no such file.
          PlanError, ScheduleError: as `parse`.
        """
        return cls.parse(Path(path).read_text(encoding="utf-8"), file=os.fspath(path))

    def to_proto(self) -> strategy_pb2.Strategy:
        """The message of this strategy."""
        return strategy_pb2.Strategy(
            replicas=self.replicas,
            shares=self.shares,
            stages=self.stages,
            devices=[
                plan_pb2.Meshes(stages=[plan_pb2.Mesh(devices=members_of(place)) for place in row])
                for row in self.devices
            ],
            micro_batches=self.micro_batches,
            name=self.schedule if isinstance(self.schedule, str) else None,
            grids=self.schedule.to_proto() if isinstance(self.schedule, Grids) else None,
            coupling=self.coupling,
            batch_norm=self.batch_norm,
            accept=self.accept,
            gather_bytes=self.gather_bytes,
        )

    @classmethod
    def from_proto(cls, message: strategy_pb2.Strategy) -> Strategy:
        """The strategy of a message.

        Raises:
          PlanError, ScheduleError: a value cannot be.
        """
        schedule = {"name": message.name, "grids": message.grids, None: None}[message.WhichOneof("schedule")]
        return cls(
            replicas=message.replicas if message.HasField("replicas") else None,
            shares=tuple(message.shares),
            stages=tuple(message.stages),
            devices=tuple(tuple(tuple(mesh.devices) for mesh in row.stages) for row in message.devices),
            micro_batches=message.micro_batches if message.HasField("micro_batches") else None,
            schedule=Grids.from_proto(schedule) if isinstance(schedule, plan_pb2.Grids) else schedule,
            coupling=message.coupling if message.HasField("coupling") else None,
            batch_norm=message.batch_norm if message.HasField("batch_norm") else None,
            accept=tuple(message.accept),
            gather_bytes=message.gather_bytes if message.HasField("gather_bytes") else None,
        )


class _Rule(NamedTuple):
    """What a value must be.

    Attributes:
      holds: whether a value is so.
      text: what follows `must`.
      example: a value that is, for the way out.
    """

    holds: Callable[[Any], bool]
    text: str
    example: object


def _is_count(value: object, least: int = 1) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _are_shares(value: Any) -> bool:
    return _is_row(value) and all(
        isinstance(share, Real) and not isinstance(share, bool) and 0 < float(share) < math.inf for share in value
    )


def _are_names(value: Any) -> bool:
    return _is_row(value) and all(isinstance(name, str) and name for name in value)


def _are_places(value: Any) -> bool:
    if not _is_row(value) or not all(_is_row(row) and row for row in value):
        return False
    rows = [[members_of(place) for place in row] for row in value]
    if not all(_is_count(device, 0) for row in rows for members in row for device in members):
        return False
    places = {(replica, *members) for replica, row in enumerate(rows) for members in row}
    devices = [device for _, *members in places for device in members]
    return len({*devices}) == len(devices)


def _place(value: Any) -> Place:
    """A place as one writes it: one device without its tuple."""
    members = tuple(map(int, members_of(value)))
    return members if len(members) > 1 else members[0]


def _is_row(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


_RULES: Mapping[str, _Rule] = {
    "replicas": _Rule(_is_count, "be a whole number from 1 on", 2),
    "shares": _Rule(_are_shares, "be finite numbers above 0, one per replica", (2.0, 1.0)),
    "stages": _Rule(_are_names, "be names, none of them empty", ("encoder", "decoder")),
    "devices": _Rule(_are_places, "be rows of indices, no device in two rows", ((0, 1), (2, 3))),
    "micro_batches": _Rule(_is_count, "be a whole number from 1 on", 1),
    "schedule": _Rule(lambda value: isinstance(value, str | Grids), "be a name or a grid", "1f1b"),
    "coupling": _Rule(lambda value: value in ("auto", "exact"), 'be "auto" or "exact"', "exact"),
    "batch_norm": _Rule(lambda value: value in ("local", "global"), 'be "local" or "global"', "global"),
    "accept": _Rule(
        lambda value: isinstance(value, str) or (_is_row(value) and all(isinstance(name, str) for name in value)),
        "be names of operations, kinds or lines",
        ("Mean",),
    ),
    "gather_bytes": _Rule(lambda value: _is_count(value, 0), "be a whole number of bytes from 0 on", 2**28),
}


def refuse_wrong(values: Mapping[str, object], at: Sequence[Line] = ()) -> None:
    """Checks each value of a strategy by itself; None is left open.

    Args:
      at: where they were said.
    Raises:
      PlanError: values that cannot be, all of them named.
      ScheduleError: only the schedule is wrong, and is none that is known.
    """
    wrong = {name: value for name, value in values.items() if value is not None and not _RULES[name].holds(value)}
    schedule = values.get("schedule")
    if isinstance(schedule, str) and ":" not in schedule:
        try:
            make_grid(schedule, (0,), 1)
        except ScheduleError as error:
            if not wrong:
                raise
            wrong["schedule"] = error
    if wrong:
        raise PlanError(
            "a strategy has values that cannot be",
            details=[
                value.rule if isinstance(value, ScheduleError) else f"{name} is {value!r}, and must {_RULES[name].text}"
                for name, value in wrong.items()
            ],
            at=at,
            way_out=f"Use for example {_joined(wrong)}, or leave out what you have not decided.",
        )


def _joined(names: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_written(_RULES[name].example)}" for name in names)


def _refuse_grids(grids: Grids) -> None:
    """Refuses grids that were written by hand and cannot run.

    Raises:
      ScheduleError: one has not every action once, never ends, or orders what stage functions cannot do; or they are
        not of one step.
    """
    for grid in grids.by_class:
        check_grid(grid)
    faults = []
    rows = [row for grid in grids.by_class for row in grid.rows]
    backwards = {action.kind for row in rows for action in row} - {"F"}
    if {"B", "W"} <= backwards:
        faults.append("some backwards are B, and some are I and W: all must be of one kind")
    if not all(rows) or not rows:
        faults.append("a device has nothing to do")
    if len({(grid.stages, grid.micro_batches) for grid in grids.by_class}) > 1:
        faults.append("the grids have other stages or micro-batches than each other")
    if len({grid.pattern for grid in grids.by_class}) < len(grids.by_class):
        faults.append("two grids are for the same devices")
    if faults:
        raise ScheduleError(
            "the schedule cannot be run",
            details=[*chain.from_iterable(map(rows_text, grids.by_class)), *faults],
            way_out='Write for each device what it does, and either B, or I and W; or use schedule="1f1b".',
        )


def _read(text: str, file: str) -> dict[str, Any]:
    """The values that `Strategy(...)` is written with."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _unreadable(file, [f"it is no expression: {error}"]) from None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("Strategy", "whale.Strategy") or call.args:
        raise _unreadable(file, ["it is not Strategy(name=value, ...)"])
    values: dict[str, Any] = {}
    wrong = []
    for keyword in call.keywords:
        name = keyword.arg or "**"
        if name not in _RULES or name in values:
            wrong.append(f"line {keyword.value.lineno}: {name} is {'there twice' if name in values else 'no field'}")
            continue
        try:
            values[name] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            wrong.append(f"line {keyword.value.lineno}: {name} is no value that is written out")
    if wrong:
        raise _unreadable(file, wrong)
    return values


def _unreadable(file: str, wrong: Sequence[str]) -> PlanError:
    return PlanError(
        f"cannot read the strategy in '{file}'" if file else "cannot read the strategy",
        details=wrong,
        way_out="Write what print(step.strategy) shows, such as "
        f"{Strategy(replicas=2, micro_batches=4, schedule='1f1b')}; its fields are {', '.join(_RULES)}.",
    )


def _written(value: Any) -> str:
    """A value as it is written in Python, with double quotes; grids as their rows."""
    if isinstance(value, Grids):
        return '"""\n' + "\n\n".join("\n".join(rows_text(grid)) for grid in value.by_class) + '\n"""'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' * (len(value) == 1)})"
    return repr(value)
