"""How many devices each stage's mesh has, where the step has split scopes; and which.

stage(devices=2), split()           2 in each replica
split() without a stage             all that a replica has: of 4 devices and replica(2), 2
Strategy(devices=((0, (1, 2)),))    as it says: stage 1 on devices 1 and 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise

from whale_tf.annotate.cluster import Cluster, VirtualDevice
from whale_tf.errors import DeviceError, PlanError, ScopeError
from whale_tf.plan.layout import meshes_of
from whale_tf.plan.request import Request
from whale_tf.plan.strategy import Place, Strategy


def refuse_wide_stages(given: Strategy, request: Request) -> None:
    """Refuses meshes of several devices for stages in which nothing is cut.

    Raises:
      PlanError: a scope or the strategy asks for one.
    """
    split = request.split_stages
    wide = [
        scope
        for stage, scope in enumerate(request.stages)
        if stage not in split and isinstance(scope.devices, int) and scope.devices != 1
    ]
    said = [
        f"the strategy has {place} for stage {stage}"
        for row in given.devices
        for stage, place in enumerate(row)
        if isinstance(place, tuple) and len(place) > 1 and stage not in split
    ]
    if wide or said:
        raise PlanError(
            "a stage on several devices has no split() inside, which says what is cut",
            details=[*(f"{scope.label} asks for {scope.devices}" for scope in wide), *dict.fromkeys(said)],
            scope=[str(scope) for scope in wide],
            way_out="Open it as `with whale.stage(devices=2), whale.split():`, or give it one device and put replica() "
            "around the stages to use more."
            if wide
            else "Open split() in that stage, or write one device for it.",
        )


def mesh_devices(
    request: Request, cluster: Cluster, replicas: int | None, advise: Callable[[int], str]
) -> tuple[tuple[Place, ...], ...]:
    """The devices of every replica's stages, of which some are cut: replica by replica, in the cluster's order.

    Args:
      replicas: how many; None if the step asks for as many as fit.
    Raises:
      DeviceError: the devices do not suffice, or do not divide.
      ScopeError, PlanError: what is asked for contradicts itself.
    """
    named = [scope for scope in request.stages if isinstance(scope.devices, VirtualDevice)]
    if named:
        raise ScopeError(
            "a virtual device names one device for each replica, and a stage that is cut takes several",
            scope=[str(scope) for scope in (*named, *request.splits)],
            way_out="Give the stages numbers of devices, or say all devices: Strategy(devices=((0, (1, 2)),)).",
        )
    widths = [int(scope.devices) for scope in request.stages if isinstance(scope.devices, int)]
    if not widths:
        widths = [_shared_out(request, len(cluster), replicas)]
    each, total = sum(widths), len(cluster)
    count = replicas or max(1, total // each)
    if count * each > total:
        raise DeviceError(
            f"the step asks for {count * each} devices and there {'is' if total == 1 else 'are'} {total}",
            details=[f"{count} replica{'s' * (count > 1)} x {' + '.join(map(str, widths))} devices = {count * each}"],
            scope=[str(scope) for scope in (request.replica, *request.stages) if scope is not None][:4],
            way_out=advise(count * each),
        )
    starts = list(accumulate(widths, initial=0))
    return tuple(
        tuple(tuple(range(replica * each + start, replica * each + end)) for start, end in pairwise(starts))
        for replica in range(count)
    )


def _shared_out(request: Request, total: int, replicas: int | None) -> int:
    """The devices of one replica, where no stage says how many."""
    if replicas is None:
        raise ScopeError(
            "replica() and split() both ask for all devices",
            scope=[str(scope) for scope in (request.replica, *request.splits) if scope is not None][:4],
            way_out="Write how many replicas there are, as replica(2): the split takes the devices of each.",
        )
    return max(1, total // replicas)


def refuse_mixed_meshes(devices: Sequence[Sequence[Place]], stages: int, cluster: Cluster) -> None:
    """Refuses meshes whose members cannot call together, or that differ from replica to replica.

    Raises:
      PlanError: one has several devices of one process and some of another, or one stage has meshes of other sizes.
    """
    owners, mixed = [device.process for device in cluster], list[str]()
    meshes = meshes_of(devices, stages)
    for mesh in dict.fromkeys(chain.from_iterable(meshes)):
        processes = [owners[device] for device in mesh]
        if len({*processes}) not in (1, len(mesh)):
            mixed.append(f"devices {mesh} are of processes {processes}")
    if mixed:
        raise PlanError(
            "the devices of a stage that is cut are of one process, or each of another",
            details=mixed,
            way_out="Choose devices of one process for each mesh, or one device of each process.",
        )
    sizes = [set(map(len, of_stage)) for of_stage in zip(*meshes, strict=True)]
    unlike = [
        f"stage {stage} has meshes of {sorted(found)} devices" for stage, found in enumerate(sizes) if len(found) > 1
    ]
    if unlike:
        raise PlanError(
            "a stage that is cut has as many devices in every replica",
            details=unlike,
            way_out="Give the stage meshes of the same size.",
        )
