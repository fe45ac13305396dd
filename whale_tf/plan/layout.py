"""Cuts the devices and the batch as a strategy says: who runs what, and how many examples each micro-batch holds.

Each stage of each replica runs on a *mesh*: devices that run it together, the members of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain

from whale_tf.annotate.cluster import Cluster
from whale_tf.errors import BatchError, Line
from whale_tf.plan.grid import pattern_of
from whale_tf.plan.groups import Groups, find_groups
from whale_tf.plan.strategy import Place, Strategy, members_of

HOST_SEAT = 0  # the first device of the process where a group's first replica has its first stage


@dataclass(frozen=True)
class Layout:
    """The devices of every replica and stage.

    Attributes:
      shares: for each replica its part of the batch; they sum to 1.
      stages: the stages' names; one without a name if the step has no stage.
      meshes: for each replica and each of its stages the members of its mesh, as indices into `devices`. Stages may
        have the same mesh.
      devices: full names of all devices, in the order of the cluster; those of two processes may have the same name.
      processes: the process of each device; empty if there is only one.
    """

    shares: tuple[float, ...]
    stages: tuple[str, ...]
    meshes: tuple[tuple[tuple[int, ...], ...], ...]
    devices: tuple[str, ...]
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
            meshes=tuple(self.meshes[replica] for replica in kept),
        )

    def mesh_of(self, replica: int, stage: int) -> tuple[int, ...]:
        """The devices that run a stage of a replica together."""
        return self.meshes[replica][stage]

    def device_of(self, replica: int, stage: int) -> int:
        """The first device of a stage's mesh."""
        return self.meshes[replica][stage][0]

    @cached_property
    def wide(self) -> tuple[int, ...]:
        """The stages whose meshes have several members."""
        return tuple(stage for stage in range(len(self.stages)) if len(self.mesh_of(0, stage)) > 1)

    def devices_of(self, replica: int) -> tuple[int, ...]:
        """The devices of a replica, each once, in the order of its stages."""
        return tuple(dict.fromkeys(chain.from_iterable(self.meshes[replica])))

    @cached_property
    def classes(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The replicas of each pipeline class, by which stages share a mesh, as `pattern_of` tells it."""
        found: dict[tuple[int, ...], list[int]] = {}
        for replica, meshes in enumerate(self.meshes):
            found.setdefault(pattern_of(meshes), []).append(replica)
        return {pattern: tuple(replicas) for pattern, replicas in found.items()}

    @cached_property
    def idle(self) -> tuple[int, ...]:
        """The devices that no replica uses."""
        used = {device for replica in range(self.replicas) for device in self.devices_of(replica)}
        return tuple(device for device in range(len(self.devices)) if device not in used)

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
        return find_groups([self.devices_of(replica) for replica in range(self.replicas)], self.processes)

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


def lay_out(strategy: Strategy, cluster: Cluster) -> Layout:
    """The layout that a strategy describes.

    Args:
      strategy: complete, as `choose` gives it.
    """
    shares, stages = strategy.shares or (1.0,) * len(strategy.devices), strategy.stages or ("",)
    processes = tuple(device.process for device in cluster)
    return Layout(
        shares=tuple(share / sum(shares) for share in shares),
        stages=stages,
        meshes=meshes_of(strategy.devices, len(stages)),
        devices=tuple(device.name for device in cluster),
        processes=processes if any(processes) else (),
    )


def meshes_of(devices: Sequence[Sequence[Place]], stages: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The meshes of each replica and stage.

    Args:
      devices: those of a strategy; of a row with fewer entries than stages, stage j has entry j % their number.
    """
    rows = [[tuple(members_of(place)) for place in row] for row in devices]
    return tuple(tuple(row[stage % len(row)] for stage in range(stages)) for row in rows)


def fit_batch(
    layout: Layout,
    micro_batches: int,
    examples: int,
    inputs: Sequence[str] = (),
    *,
    at: Sequence[Line] = (),
    scope: Sequence[str] = (),
) -> tuple[Layout, tuple[tuple[int, ...], ...]]:
    """As many replicas and micro-batches as there are examples for, and how many examples each micro-batch holds.

    Args:
      micro_batches: of each replica, at most.
      examples: the global batch; 0 if no input carries one, which only one part can take.
      inputs: names of the tensors that carry the batch.
      at: where the step is defined.
      scope: the replica scope, if there is one.
    Raises:
      BatchError: no input carries a batch, or it has no example.
    """
    for replicas, count in _smaller(layout.replicas, micro_batches, examples):
        fewer = layout if replicas == layout.replicas else layout.with_replicas(replicas)
        sizes = cut_batch(examples, fewer.shares, count)
        if all(size for row in sizes for size in row):
            return fewer, sizes
    if inputs:
        raise BatchError(
            "the batch has no example",
            details=[f"{name} has dim 0 = 0" for name in inputs],
            at=at,
            scope=scope,
            way_out="Give one example or more: a batch with fewer examples than parts runs with fewer parts.",
        )
    if layout.replicas * micro_batches == 1:
        return layout, ((0,),)
    several = f"{layout.replicas} replica{'s' * (layout.replicas > 1)} x {micro_batches} micro-batch"
    several += "es" * (micro_batches > 1)
    raise BatchError(
        "no input carries a batch that could be cut",
        details=[f"the step has {several}, and no argument that is cut is a tensor of rank 1 or more"],
        at=at,
        scope=scope,
        way_out="Pass the batch to the step as tensors or arrays.",
    )


def _smaller(replicas: int, micro_batches: int, examples: int) -> Iterator[tuple[int, int]]:
    """Numbers of replicas and micro-batches, from those that are asked for down to one part."""
    for fewer in range(min(replicas, examples), 0, -1):
        yield from ((fewer, count) for count in range(min(micro_batches, examples // fewer), 0, -1))


def cut_batch(examples: int, shares: Sequence[float], micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """How many examples each micro-batch of each replica holds: as even as whole numbers allow, the larger ones first.

    A micro-batch of a small batch may get none.

    Args:
      examples: the global batch.
      shares: for each replica its part of the batch; they sum to 1.
    """
    ends = [round(end * examples) for end in accumulate(shares)]
    ends[-1] = examples
    parts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if all(abs(share - shares[0]) < 1e-9 for share in shares):
        parts = _even(examples, len(shares))
    return tuple(tuple(_even(part, micro_batches)) for part in parts)


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]
