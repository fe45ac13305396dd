"""Cuts the resources and the batch: which devices each replica's stages get, and how many examples each micro-batch.

Devices are handed out replica by replica, in the cluster's order, so that one replica stays close together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain

from whale_tf.annotate.cluster import Cluster, VirtualDevice
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import BatchError, DeviceError, Line, PlanError, ScopeError
from whale_tf.plan.groups import Groups, find_groups

HOST_SEAT = 0  # the first device of the process where a group's first replica has its first stage


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


@dataclass(frozen=True)
class Layout:
    """The devices of every replica and stage.

    Attributes:
      shares: for each replica its part of the batch; they sum to 1.
      stages: the stages' names; one without a name if the step has no stage.
      places: for each replica, the device of each of its rows, as indices into `devices`.
      devices: full names of all devices, in the order of the cluster; those of two processes may have the same name.
      idle: how many are left idle.
      processes: the process of each device; empty if there is only one.
    """

    shares: tuple[float, ...]
    stages: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    devices: tuple[str, ...]
    idle: int = 0
    processes: tuple[int, ...] = ()

    @property
    def replicas(self) -> int:
        """How many replicas there are."""
        return len(self.shares)

    def with_replicas(self, count: int) -> Layout:
        """The layout with those replicas only that have the largest shares, the first ones of equal shares.

        Their shares sum to 1 again; the other devices are left idle.
        """
        kept = sorted(sorted(range(self.replicas), key=lambda replica: -self.shares[replica])[:count])
        total = sum(self.shares[replica] for replica in kept)
        return replace(
            self,
            shares=tuple(self.shares[replica] / total for replica in kept),
            places=tuple(self.places[replica] for replica in kept),
            idle=self.idle + (self.replicas - count) * self.rows,
        )

    @property
    def rows(self) -> int:
        """Devices of one replica."""
        return len(self.places[0])

    def device_of(self, replica: int, stage: int) -> int:
        """The device that runs a stage of a replica."""
        return self.places[replica][stage % self.rows]

    def label(self, device: int) -> str:
        """A short name of a device: `CPU:1`, and `2/CPU:1` in process 2."""
        own, process = self.devices[device].rsplit("device:", 1)[-1], self.process_of(device)
        return f"{process}/{own}" if process else own

    def kind_of(self, device: int) -> str:
        """`CPU` or `GPU`."""
        return self.devices[device].rsplit(":", 2)[-2]

    def process_of(self, device: int) -> int:
        """The process that owns a device."""
        return self.processes[device] if self.processes else 0

    @cached_property
    def own_devices(self) -> tuple[tuple[int, ...], ...]:
        """The devices of each process."""
        found: list[list[int]] = [[] for _ in range(max(self.processes, default=0) + 1)]
        for index in range(len(self.devices)):
            found[self.process_of(index)].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def hosts(self) -> tuple[int, ...]:
        """The first device of each process: where its arguments, tables and variables are."""
        return tuple(own[0] for own in self.own_devices)

    def counterpart(self, device: int, process: int) -> int:
        """The device of a process that has the name of another's; its first one if none has."""
        if self.process_of(device) == process:
            return device
        own = self.own_devices[process]
        return next((index for index in own if self.devices[index] == self.devices[device]), own[0])

    @cached_property
    def groups(self) -> Groups:
        """The replicas that keep one copy of every variable together."""
        return find_groups(self.places, self.processes)

    def seat(self, member: int, stage: int) -> int:
        """The seat of a stage on a group's replica with this number in the group; HOST_SEAT is no replica's."""
        return 1 + member * len(self.stages) + stage

    def device_at(self, group: int, seat: int) -> int:
        """The device that has a seat in a group of replicas."""
        members = self.groups.members[group]
        if seat == HOST_SEAT:
            return self.hosts[self.process_of(self.device_of(members[0], 0))]
        member, stage = divmod(seat - 1, len(self.stages))
        return self.device_of(members[member], stage)


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


def lay_out(request: Request, cluster: Cluster, schedule: str, advise: Callable[[int], str]) -> Layout:
    """Binds replicas and stages to devices.

    Args:
      advise: what to do so that there are so many devices.
    Raises:
      DeviceError: the devices do not suffice, or do not divide.
    """
    total, stages = len(cluster), max(1, len(request.stages))
    _refuse_wide_stages(request)
    rows = _rows(request, stages, total, schedule)
    count = _count(request, rows, cluster)
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
    places = _places(request, cluster, count, rows)
    shares = request.replica.shares if request.replica is not None and request.replica.shares else (1.0,) * count
    names = tuple(scope.name or str(index) for index, scope in enumerate(request.stages)) or ("",)
    whole = sum(shares)
    devices = tuple(device.name for device in cluster)
    idle = total - len(set(chain.from_iterable(places)))
    processes = tuple(device.process for device in cluster)
    return Layout(
        tuple(share / whole for share in shares), names, places, devices, idle, processes if any(processes) else ()
    )


def _repeated(stages: Sequence[Opened]) -> list[str]:
    """Stages that may have been meant to be one: opened several times at one line, without a name."""
    times = Counter((scope.label, scope.line) for scope in stages if not scope.name and scope.index is None)
    return [
        f"{label} at {line.file}:{line.number} was opened {count} times, and is {count} stages; with a name it is one"
        for (label, line), count in times.items()
        if count > 1
    ]


def fit_batch(
    layout: Layout, micro_batches: int, examples: int, cut: Callable[[Layout, int], tuple[tuple[int, ...], ...]]
) -> tuple[Layout, tuple[tuple[int, ...], ...]]:
    """As many replicas and micro-batches as there are examples for, and how many examples each micro-batch holds.

    Args:
      micro_batches: of each replica, at most.
      examples: the global batch.
      cut: divides the batch for a layout and a number of micro-batches.
    Raises:
      BatchError: no input carries a batch.
    """
    replicas = max(1, min(layout.replicas, examples)) if examples else layout.replicas
    while True:
        fewer = layout if replicas == layout.replicas else layout.with_replicas(replicas)
        for count in range(max(1, min(micro_batches, examples // replicas if examples else micro_batches)), 0, -1):
            try:
                return fewer, cut(fewer, count)
            except BatchError:
                if not examples or (replicas, count) == (1, 1):
                    raise
        replicas -= 1


def cut_batch(
    examples: int,
    shares: Sequence[float],
    micro_batches: int,
    inputs: Sequence[str] = (),
    *,
    at: Sequence[Line] = (),
    scope: Sequence[Opened] = (),
) -> tuple[tuple[int, ...], ...]:
    """How many examples each micro-batch of each replica holds: as even as whole numbers allow, the larger ones first.

    Args:
      examples: the global batch; 0 if no input carries one, which only one part can take.
      inputs: names of the tensors that carry the batch.
      at: where the step is defined.
      scope: the replica scope, if there is one.
    Raises:
      BatchError: a micro-batch would be empty.
    """
    replicas = len(shares)
    parts_text = f"{replicas} replica{'s' * (replicas > 1)} x {micro_batches} micro-batch{'es' * (micro_batches > 1)}"
    if not examples and not inputs:
        if replicas * micro_batches == 1:
            return ((0,),)
        raise BatchError(
            "no input carries a batch that could be cut",
            details=[f"the step has {parts_text}, and no argument that is cut is a tensor of rank 1 or more"],
            at=at,
            scope=[str(opened) for opened in scope],
            way_out="Pass the batch to the step as tensors or arrays.",
        )
    ends = [round(end * examples) for end in accumulate(shares)]
    ends[-1] = examples
    parts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if all(abs(share - shares[0]) < 1e-9 for share in shares):
        parts = _even(examples, len(shares))
    sizes = tuple(tuple(_even(part, micro_batches)) for part in parts)
    if any(size < 1 for row in sizes for size in row):
        raise BatchError(
            f"a batch of {examples} is too small for {parts_text}",
            details=[f"replica {r} gets {part} examples" for r, part in enumerate(parts)],
            at=at,
            scope=[str(opened) for opened in scope],
            way_out="Use a larger batch or fewer micro_batches: each micro-batch needs at least one example.",
        )
    return sizes


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _in_order(stages: Sequence[Opened]) -> list[Opened]:
    numbered = [scope for scope in stages if scope.index is not None]
    if numbered and len(numbered) != len(stages):
        raise ScopeError(
            "stages are both annotated and opened with `with`",
            scope=[str(scope) for scope in stages],
            way_out="Use annotate for all of them, or stage() for all of them.",
        )
    return sorted(stages, key=lambda scope: scope.index or 0) if numbered else list(stages)


def _refuse_wide_stages(request: Request) -> None:
    wide = [scope for scope in request.stages if scope.devices != 1 and isinstance(scope.devices, int)]
    if wide:
        raise PlanError(
            "a stage runs on one device of each replica",
            details=[f"{scope.label} asks for {scope.devices}" for scope in wide],
            scope=[str(scope) for scope in wide],
            way_out="Write stage(), and replica() around the stages to use more devices.",
        )


def _rows(request: Request, stages: int, total: int, schedule: str) -> int:
    """Devices per replica: one per stage, fewer if stages share devices (interleaved)."""
    virtual = [scope.devices for scope in request.stages if isinstance(scope.devices, VirtualDevice)]
    if virtual:
        return len({str(devices) for devices in virtual})
    if schedule != "interleaved":
        return stages
    count = _asked(request) or 1
    return max((rows for rows in range(1, stages + 1) if stages % rows == 0 and rows * count <= total), default=1)


def _asked(request: Request) -> int | None:
    return 1 if request.replica is None else request.replica.count


def _count(request: Request, rows: int, cluster: Cluster) -> int:
    asked, total = _asked(request), len(cluster)
    if asked is not None:
        return asked
    if total > rows and total % rows:
        raise DeviceError(
            f"{total} devices cannot be divided into replicas of {rows}",
            details=[f"a replica takes {rows} devices, one for each stage, and {total} % {rows} = {total % rows}"],
            scope=str(request.replica),
            way_out=f"Write replica({total // rows}), which leaves {total % rows} idle, "
            f"or call whale.init({total - total % rows}).",
        )
    return max(1, total // rows)


def _places(request: Request, cluster: Cluster, count: int, rows: int) -> tuple[tuple[int, ...], ...]:
    virtual = [scope.devices for scope in request.stages]
    if not any(isinstance(devices, VirtualDevice) for devices in virtual):
        return tuple(tuple(range(replica * rows, (replica + 1) * rows)) for replica in range(count))
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
