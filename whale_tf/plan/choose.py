"""Completes a strategy for a step: what it leaves open follows from the step's scopes, then from the devices there are.

Devices are handed out replica by replica, in the cluster's order, so that one replica stays close together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from whale_tf.annotate.cluster import Cluster, VirtualDevice
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import DeviceError, PlanError, ScopeError
from whale_tf.plan.grid import Grid
from whale_tf.plan.strategy import Place, Strategy, members_of

DEFAULT_SCHEDULE = "1f1b"


@dataclass(frozen=True)
class Request:
    """What the user's scopes ask for.

    Attributes:
      replica: the replica scope, if there is one.
      stages: the stage scopes in the order of the pipeline; empty if the step has none.
    """

    replica: Opened | None
    stages: tuple[Opened, ...]

    @property
    def stage_of_scope(self) -> dict[str, int]:
        """The number of each stage, by the key of its scope."""
        return {scope.key: index for index, scope in enumerate(self.stages)}

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names; of one without a name its number."""
        return tuple(scope.name or str(index) for index, scope in enumerate(self.stages))


def read_scopes(opened: Sequence[Opened]) -> Request:
    """Sorts the scopes into one replica scope and a pipeline.

    Raises:
      ScopeError: scopes that this version cannot combine.
    """
    replicas = [scope for scope in opened if scope.kind == "replica"]
    stages = [scope for scope in opened if scope.kind == "stage"]
    if len({(scope.count, scope.shares) for scope in replicas}) > 1:
        raise ScopeError(
            "the step has replica scopes that differ",
            scope=[str(scope) for scope in replicas],
            way_out="The batch is cut once: give all of them the same count and shares, or write replica() for all but "
            "one.",
        )
    keys = {scope.key for scope in stages}
    inside = [scope for scope in replicas if scope.parent in keys]
    if inside:
        raise ScopeError(
            "a stage cannot be replicated by itself",
            scope=[str(scope) for scope in inside],
            way_out="Put replica() around all the stages: every replica is then a pipeline of its own.",
        )
    if replicas and any(not scope.parent for scope in stages) and any(scope.parent for scope in stages):
        raise ScopeError(
            "some stages are inside replica() and some are not",
            scope=[str(scope) for scope in stages if not scope.parent],
            way_out="Put replica() around all of them.",
        )
    return Request(replicas[0] if replicas else None, tuple(_in_order(stages)))


def _in_order(stages: Sequence[Opened]) -> list[Opened]:
    numbered = [scope for scope in stages if scope.index is not None]
    if numbered and len(numbered) != len(stages):
        raise ScopeError(
            "stages are both annotated and opened with `with`",
            scope=[str(scope) for scope in stages],
            way_out="Use annotate for all of them, or stage() for all of them.",
        )
    return sorted(stages, key=lambda scope: scope.index or 0) if numbered else list(stages)


def choose(given: Strategy, request: Request, cluster: Cluster, advise: Callable[[int], str]) -> Strategy:
    """A strategy with nothing left open that the plan needs: replicas, stages, devices, micro-batches, schedule.

    Args:
      given: what is decided already; it counts for more than the scopes.
      advise: what to do so that there are so many devices.
    Raises:
      DeviceError: the devices do not suffice, or do not divide.
      PlanError: the strategy is for other stages than the step's.
    """
    _refuse_wide_stages(given, request)
    _refuse_other_stages(given, request)
    schedule, scope = given.schedule or DEFAULT_SCHEDULE, request.replica
    replicas, shares = given.replicas, given.shares
    if replicas is None:
        replicas, shares = (scope.count, scope.shares or ()) if scope is not None else (1, ())
    rows = _rows(given, request, schedule, (replicas or 1, len(cluster)))
    replicas = replicas or _as_many_as_fit(request, rows, len(cluster))
    devices = given.devices or _places(request, cluster, replicas, rows, advise)
    _refuse_missing(devices, len(cluster), advise)
    return replace(
        given,
        replicas=replicas,
        shares=shares,
        stages=request.names,
        devices=devices,
        micro_batches=given.micro_batches or 1,
        schedule=schedule,
    )


def _refuse_wide_stages(given: Strategy, request: Request) -> None:
    wide = [scope for scope in request.stages if scope.devices != 1 and isinstance(scope.devices, int)]
    said = [place for place in chain.from_iterable(given.devices) if isinstance(place, tuple)]
    if wide or said:
        raise PlanError(
            "a stage runs on one device of each replica",
            details=[
                *(f"{scope.label} asks for {scope.devices}" for scope in wide),
                *(f"the strategy has {place} for a stage" for place in said),
            ],
            scope=[str(scope) for scope in wide],
            way_out="Write stage(), and replica() around the stages to use more devices."
            if wide
            else "Write one device for each stage, and one row for each replica.",
        )


def _refuse_other_stages(given: Strategy, request: Request) -> None:
    stages = max(1, len(request.stages))
    wrong, open_again = [], set[str]()
    if given.stages and given.stages != request.names:
        wrong.append(f"its stages are {', '.join(map(repr, given.stages))}")
        open_again.add("stages")
    if given.devices and stages % len(given.devices[0]):
        wrong.append(f"each replica has {len(given.devices[0])} devices for the stages, which must divide their number")
        open_again.add("devices")
    if isinstance(given.schedule, Grid) and given.schedule.stages != stages:
        wrong.append(f"its schedule is for {given.schedule.stages} stage{'s' * (given.schedule.stages > 1)}")
        open_again.add("schedule")
    if wrong:
        own = ", ".join(map(repr, request.names)) or "no stage scope"
        kept = Strategy(**{name: value for name, value in given.said.items() if name not in open_again})
        raise PlanError(
            "the strategy is for other stages than the step's",
            details=[*wrong, f"the step has {own}"],
            scope=[str(scope) for scope in request.stages],
            way_out=f"Open stages as in the strategy, or leave these to the step: {kept}.",
        )


def _rows(given: Strategy, request: Request, schedule: str | Grid, counts: tuple[int, int]) -> int:
    """Devices per replica: one per stage, fewer if stages share devices.

    Args:
      counts: of replicas, at least, and of devices.
    """
    if given.devices:
        return len(given.devices[0])
    if isinstance(schedule, Grid):
        return len(schedule.rows)
    virtual = {str(scope.devices) for scope in request.stages if isinstance(scope.devices, VirtualDevice)}
    stages, (replicas, total) = max(1, len(request.stages)), counts
    if virtual or schedule != "interleaved":
        return len(virtual) or stages
    return max((rows for rows in range(1, stages + 1) if stages % rows == 0 and rows * replicas <= total), default=1)


def _as_many_as_fit(request: Request, rows: int, total: int) -> int:
    if total > rows and total % rows:
        raise DeviceError(
            f"{total} devices cannot be divided into replicas of {rows}",
            details=[f"a replica takes {rows} devices, one for each stage, and {total} % {rows} = {total % rows}"],
            scope=str(request.replica),
            way_out=f"Write replica({total // rows}), which leaves {total % rows} idle, "
            f"or call whale.init({total - total % rows}).",
        )
    return max(1, total // rows)


def _refuse_missing(devices: Sequence[Sequence[Place]], total: int, advise: Callable[[int], str]) -> None:
    named = [
        (replica, device)
        for replica, row in enumerate(devices)
        for device in dict.fromkeys(chain.from_iterable(map(members_of, row)))
    ]
    missing = [f"replica {replica} has device {device}" for replica, device in named if device >= total]
    if missing:
        raise DeviceError(
            "the strategy names devices that are not there",
            details=[*missing, f"there {'is' if total == 1 else 'are'} {total}, counted from 0"],
            way_out=f"{advise(1 + max(device for _, device in named))} Or leave devices= out.",
        )


def _places(
    request: Request, cluster: Cluster, count: int, rows: int, advise: Callable[[int], str]
) -> tuple[tuple[int, ...], ...]:
    """The devices of each replica: those that the stage scopes name, else in the order of the cluster."""
    total, needed = len(cluster), count * rows
    if needed > total:
        scope = [str(scope) for scope in (request.replica, *request.stages) if scope is not None]
        raise DeviceError(
            f"the step asks for {needed} devices and there {'is' if total == 1 else 'are'} {total}",
            details=[
                f"{count} replica{'s' * (count > 1)} x {rows} device{'s' * (rows > 1)} each = {needed}",
                *_repeated(request.stages),
            ],
            scope=scope[:4],
            way_out=advise(needed),
        )
    if any(isinstance(scope.devices, VirtualDevice) for scope in request.stages):
        return _virtual_places(request, cluster, count, rows)
    return tuple(tuple(range(replica * rows, (replica + 1) * rows)) for replica in range(count))


def _repeated(stages: Sequence[Opened]) -> list[str]:
    """Stages that may have been meant to be one: opened several times at one line, without a name."""
    times = Counter((scope.label, scope.line) for scope in stages if not scope.name and scope.index is None)
    return [
        f"{label} at {line.file}:{line.number} was opened {count} times, and is {count} stages; with a name it is one"
        for (label, line), count in times.items()
        if count > 1
    ]


def _virtual_places(request: Request, cluster: Cluster, count: int, rows: int) -> tuple[tuple[int, ...], ...]:
    virtual = [scope.devices for scope in request.stages]
    indices = [devices.indices(cluster) if isinstance(devices, VirtualDevice) else () for devices in virtual]
    wrong = [scope for scope, found in zip(request.stages, indices, strict=True) if len(found) != count]
    if wrong:
        raise DeviceError(
            f"a stage's virtual device must name one device for each of the {count} replicas",
            details=[f"{scope.label} has {len(found)}" for scope, found in zip(request.stages, indices, strict=True)],
            scope=[str(scope) for scope in wrong],
            way_out="Give every stage a VirtualDevice with as many devices as there are replicas.",
        )
    if any(found != indices[stage % rows] for stage, found in enumerate(indices)):
        raise DeviceError(
            "stages that share devices must take turns",
            details=[f"{scope.label} is on {found}" for scope, found in zip(request.stages, indices, strict=True)],
            way_out=f"Give stage j the devices of stage j % {rows}.",
        )
    places = tuple(tuple(indices[row][replica] for row in range(rows)) for replica in range(count))
    twice = [place for place, times in Counter(chain.from_iterable(places)).items() if times > 1]
    if twice:
        raise DeviceError(
            "virtual devices that differ must have no device in common",
            details=[f"{scope.label} is on {found}" for scope, found in zip(request.stages, indices, strict=True)],
            scope=[str(scope) for scope, found in zip(request.stages, indices, strict=True) if {*twice} & {*found}],
            way_out="Give two stages the same VirtualDevice, or two without a common device.",
        )
    return places
