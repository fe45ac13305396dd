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
from whale_tf.plan.grid import Grid
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
    if request.splits:
        devices = mesh_devices(given, request, cluster, replicas, advise)
        replicas = len(devices)
    else:
        rows = _rows(given, request, schedule, (replicas or 1, len(cluster)))
        replicas = replicas or _as_many_as_fit(request, rows, len(cluster))
        devices = given.devices or _places(request, cluster, replicas, rows, advise)
    _refuse_missing(devices, len(cluster), advise)
    refuse_mixed_meshes(devices, cluster)
    return replace(
        given,
        replicas=replicas,
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
