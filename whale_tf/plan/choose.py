"""Completes a strategy for a step: what it leaves open follows from the step's scopes, then from the devices there are.

Devices are handed out replica by replica, in the cluster's order, so that one replica stays close together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from whale_tf.annotate.cluster import Cluster, VirtualDevice
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import DeviceError, PlanError
from whale_tf.plan.grids import Grids
from whale_tf.plan.request import Request
from whale_tf.plan.strategy import Place, Strategy, members_of
from whale_tf.plan.widths import mesh_devices, refuse_mixed_meshes, refuse_wide_stages

DEFAULT_SCHEDULE = "1f1b"


def choose(given: Strategy, request: Request, cluster: Cluster, advise: Callable[[int], str]) -> Strategy:
    """A strategy with nothing left open that the plan needs: replicas, stages, devices, micro-batches, schedule.

    Args:
      given: what is decided already; it counts for more than the scopes.
      advise: what to do so that there are so many devices.
    Raises:
      DeviceError: the devices do not suffice, or do not divide.
      PlanError: the strategy is for other stages than the step's.
    """
    refuse_wide_stages(given, request)
    _refuse_other_stages(given, request)
    schedule, scope = given.schedule or DEFAULT_SCHEDULE, request.replica
    replicas, shares = given.replicas, given.shares
    if replicas is None:
        replicas, shares = (scope.count, scope.shares or ()) if scope is not None else (1, ())
    devices = given.devices
    if not devices and request.splits:
        devices = mesh_devices(request, cluster, replicas, advise)
    elif not devices and any(isinstance(scope.devices, VirtualDevice) for scope in request.stages):
        devices = _virtual_places(request, cluster, replicas)
    elif not devices:
        row = _row(request, schedule, (replicas or 1, len(cluster)))
        devices = _places(request, len(cluster), replicas, row, advise)
    _refuse_missing(devices, len(cluster), advise)
    refuse_mixed_meshes(devices, len(request.names) or 1, cluster)
    return replace(
        given,
        replicas=len(devices),
        shares=shares,
        stages=request.names,
        devices=devices,
        micro_batches=given.micro_batches or 1,
        schedule=schedule,
    )


def _refuse_other_stages(given: Strategy, request: Request) -> None:
    stages = max(1, len(request.stages))
    wrong, open_again = [], set[str]()
    if given.stages and given.stages != request.names:
        wrong.append(f"its stages are {', '.join(map(repr, given.stages))}")
        open_again.add("stages")
    counts = dict.fromkeys(len(row) for row in given.devices if stages % len(row))
    if counts:
        listed = " or ".join(map(str, counts))
        wrong.append(f"each replica has {listed} devices for the stages, which must divide their number")
        open_again.add("devices")
    scheduled = given.schedule.by_class[0].stages if isinstance(given.schedule, Grids) else stages
    if scheduled != stages:
        wrong.append(f"its schedule is for {scheduled} stage{'s' * (scheduled > 1)}")
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


def _row(request: Request, schedule: str | Grids, counts: tuple[int, int]) -> tuple[int, ...]:
    """The devices of one replica, counted from 0: one per stage, fewer if stages share devices.

    Args:
      counts: of replicas, at least, and of devices.
    """
    stages, (replicas, total) = max(1, len(request.stages)), counts
    if isinstance(schedule, Grids):
        return _row_of(schedule)
    if schedule != "interleaved":
        return tuple(range(stages))
    fitting = (rows for rows in range(1, stages + 1) if stages % rows == 0 and rows * replicas <= total)
    return tuple(range(max(fitting, default=1)))


def _row_of(grids: Grids) -> tuple[int, ...]:
    """The devices that a grid is for."""
    grid, *others = grids.by_class
    if others:
        raise PlanError(
            f"the schedule has grids for {len(grids.by_class)} ways to share devices, and the strategy has no devices",
            way_out="Write devices= too, one row for each replica; or one grid.",
        )
    return _of_one_turn([grid.device_of(stage) for stage in range(grid.stages)])


def _of_one_turn(row: Sequence[int]) -> tuple[int, ...]:
    """The devices of a replica without those that follow because stages take turns: (1, 0) of (1, 0, 1, 0)."""
    stages = len(row)
    turns = (size for size in range(1, stages + 1) if stages % size == 0)
    return next(tuple(row[:size]) for size in turns if [*row] == [*row[:size]] * (stages // size))


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
    request: Request, total: int, replicas: int | None, row: Sequence[int], advise: Callable[[int], str]
) -> tuple[tuple[int, ...], ...]:
    """The devices of each replica, in the order of the cluster.

    Args:
      total: how many devices there are.
      replicas: how many; None for as many as fit.
      row: those of the first replica.
    """
    rows = len({*row})
    count = replicas or _as_many_as_fit(request, rows, total)
    needed = count * rows
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
    return tuple(tuple(replica * rows + device for device in row) for replica in range(count))


def _repeated(stages: Sequence[Opened]) -> list[str]:
    """Stages that may have been meant to be one: opened several times at one line, without a name."""
    times = Counter((scope.label, scope.line) for scope in stages if not scope.name and scope.index is None)
    return [
        f"{label} at {line.file}:{line.number} was opened {count} times, and is {count} stages; with a name it is one"
        for (label, line), count in times.items()
        if count > 1
    ]


def _virtual_places(request: Request, cluster: Cluster, replicas: int | None) -> tuple[tuple[int, ...], ...]:
    """The devices of each replica that the stage scopes name."""
    virtual = [scope.devices for scope in request.stages]
    indices = [devices.indices(cluster) if isinstance(devices, VirtualDevice) else () for devices in virtual]
    count = replicas or max(map(len, indices))
    wrong = [scope for scope, found in zip(request.stages, indices, strict=True) if len(found) != count]
    if wrong:
        raise DeviceError(
            f"a stage's virtual device must name one device for each of the {count} replicas",
            details=[f"{scope.label} has {len(found)}" for scope, found in zip(request.stages, indices, strict=True)],
            scope=[str(scope) for scope in wrong],
            way_out="Give every stage a VirtualDevice with as many devices as there are replicas.",
        )
    places = tuple(map(_of_one_turn, zip(*indices, strict=True)))
    twice = [device for device, times in Counter(chain.from_iterable(map(set, places))).items() if times > 1]
    if twice:
        raise DeviceError(
            "two replicas must have no device in common",
            details=[f"{scope.label} is on {found}" for scope, found in zip(request.stages, indices, strict=True)],
            scope=[str(scope) for scope, found in zip(request.stages, indices, strict=True) if {*twice} & {*found}],
            way_out="Let the stages name other devices for each replica; stages of one replica may share a device.",
        )
    return places
