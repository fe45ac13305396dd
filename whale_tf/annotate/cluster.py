"""What there is to run on: devices, the links between them, and virtual devices. Values only; imports no TensorFlow.

    Cluster((Device('/job:localhost/replica:0/task:0/device:CPU:0', 'CPU', 0),
             Device('/job:localhost/replica:0/task:0/device:CPU:1', 'CPU', 1, flops_per_second=20000000000.0)),
            links=(Link(0, 1, 10000000000.0, 1e-06),))

Each value prints as one would write it, and goes to and from a message of protos/cluster.proto.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from whale_tf._protos import cluster_pb2
from whale_tf.errors import DeviceError

LOCAL_TASK = "/job:localhost/replica:0/task:0"
NAME = re.compile(r"(?P<task>/job:\w+/replica:\d+/task:\d+)?(?:/device:)?(?P<kind>[A-Z][A-Z_]*):(?P<index>\d+)")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Device:
    """One device of one process.

    Attributes:
      name: TensorFlow's name; kept in full also where it is given short, as `CPU:1` or `/device:CPU:1`.
      kind: `CPU` or `GPU`.
      index: its number among the devices of this kind in its process.
      process: the number of the process that owns it.
      flops_per_second: None if not known.
      memory_bytes: None if not known.
    Raises:
      DeviceError: the name is no TensorFlow name or says otherwise than kind and index, or a rate is not positive.
    """

    name: str
    kind: str
    index: int
    process: int = 0
    flops_per_second: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        task, kind, index = _parse(self.name)
        object.__setattr__(self, "name", f"{task}/device:{kind}:{index}")
        wrong = []
        if (kind, index) != (self.kind, self.index):
            wrong.append(f"the name says {kind} {index}; kind and index say {self.kind} {self.index}")
        if self.process < 0:
            wrong.append(f"process is {self.process}")
        if self.flops_per_second is not None and not self.flops_per_second > 0:
            wrong.append(f"flops_per_second is {self.flops_per_second}")
        if self.memory_bytes is not None and not self.memory_bytes > 0:
            wrong.append(f"memory_bytes is {self.memory_bytes}")
        if wrong:
            raise DeviceError(
                f"device '{self.name}' contradicts itself",
                details=wrong,
                way_out="Use Device.named(name) to take kind and index from the name; leave out what is not known.",
            )

    @classmethod
    def named(
        cls,
        name: str,
        *,
        process: int = 0,
        flops_per_second: float | None = None,
        memory_bytes: int | None = None,
    ) -> Device:
        """The device of a name, full or short: kind and index are taken from it."""
        _, kind, index = _parse(name)
        return cls(name, kind, index, process, flops_per_second, memory_bytes)

    @property
    def label(self) -> str:
        """A short name for tables: `CPU:1`, and `2/CPU:1` in process 2."""
        own = f"{self.kind}:{self.index}"
        return f"{self.process}/{own}" if self.process else own

    def __repr__(self) -> str:
        return _written(self)

    def to_proto(self) -> cluster_pb2.Device:
        """The message of this device."""
        return cluster_pb2.Device(
            name=self.name,
            kind=self.kind,
            index=self.index,
            process=self.process,
            flops_per_second=self.flops_per_second,
            memory_bytes=self.memory_bytes,
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.Device) -> Device:
        """The device of a message."""
        flops_per_second = message.flops_per_second if message.HasField("flops_per_second") else None
        memory_bytes = message.memory_bytes if message.HasField("memory_bytes") else None
        return cls(message.name, message.kind, message.index, message.process, flops_per_second, memory_bytes)


@dataclass(frozen=True)
class Link:
    """A way from one device to another.

    Attributes:
      source: the device that sends, as an index into the cluster's devices.
      target: the device that receives, likewise.
      bytes_per_second: of one large message.
      latency_seconds: until the first byte has arrived.
    """

    source: int
    target: int
    bytes_per_second: float
    latency_seconds: float

    def __repr__(self) -> str:
        return _written(self)

    def to_proto(self) -> cluster_pb2.Link:
        """The message of this link."""
        return cluster_pb2.Link(
            source=self.source,
            target=self.target,
            bytes_per_second=self.bytes_per_second,
            latency_seconds=self.latency_seconds,
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.Link) -> Link:
        """The link of a message."""
        return cls(message.source, message.target, message.bytes_per_second, message.latency_seconds)


@dataclass(frozen=True)
class Cluster:
    """The devices of a run, in the order they are handed out, and the known links between them.

    Attributes:
      rank: the number of the process that asks, of which its devices have the number too; not a part of the value.
    Raises:
      DeviceError: no device, a device or a link twice, or a link that is none.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
    rank: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))
        object.__setattr__(self, "links", tuple(self.links))
        wrong = [] if self.devices else ["it has no device"]
        wrong += [f"device {name} of process {process} is there twice" for process, name in _repeated(self._places)]
        wrong += [f"link {ends[0]} -> {ends[1]} is there twice" for ends in _repeated(self._ends)]
        wrong += [f"{link} {fault}" for link in self.links for fault in self._faults(link)]
        if wrong:
            raise DeviceError(
                "these devices and links make no cluster",
                details=wrong,
                way_out="Name each device once; a Link joins two different devices by their index in the cluster.",
            )

    @property
    def _places(self) -> list[tuple[int, str]]:
        return [(device.process, device.name) for device in self.devices]

    @property
    def _ends(self) -> list[tuple[int, int]]:
        return [(link.source, link.target) for link in self.links]

    def _faults(self, link: Link) -> Iterator[str]:
        count = len(self.devices)
        if link.source == link.target:
            yield "joins a device to itself"
        if not (0 <= link.source < count and 0 <= link.target < count):
            yield f"leaves the cluster, whose devices are 0 to {count - 1}"
        if not (link.bytes_per_second > 0 and link.latency_seconds >= 0):
            yield "needs bytes_per_second above 0 and latency_seconds of at least 0"

    def __len__(self) -> int:
        return len(self.devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self.devices)

    def link(self, source: int, target: int) -> Link | None:
        """The link between two devices, or where only the other direction is known, that one turned round."""
        known = {(link.source, link.target): link for link in self.links}
        there, back = known.get((source, target)), known.get((target, source))
        if there is None and back is not None:
            return Link(source, target, back.bytes_per_second, back.latency_seconds)
        return there

    def __repr__(self) -> str:
        return _written(self)

    def to_proto(self) -> cluster_pb2.Cluster:
        """The message of this cluster."""
        return cluster_pb2.Cluster(
            devices=[device.to_proto() for device in self.devices], links=[link.to_proto() for link in self.links]
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.Cluster) -> Cluster:
        """The cluster of a message."""
        return cls(
            tuple(Device.from_proto(device) for device in message.devices),
            tuple(Link.from_proto(link) for link in message.links),
        )


@dataclass(frozen=True)
class VirtualDevice:
    """The devices that one replica of one subgroup runs on: each a Device, or its index in the cluster's devices.

    Raises:
      DeviceError: no device, or one twice.
    """

    devices: tuple[Device | int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", tuple(self.devices))
        wrong = [] if self.devices else ["it has no device"]
        wrong += [f"{device!r} is there twice" for device in _repeated(self.devices)]
        if wrong:
            raise DeviceError(
                f"{self} is no virtual device", details=wrong, way_out="Name at least one device, and each one once."
            )

    def __len__(self) -> int:
        return len(self.devices)

    def indices(self, cluster: Cluster) -> tuple[int, ...]:
        """Where its devices stand in a cluster.

        Raises:
          DeviceError: a device is not in the cluster, or an index and a device name the same one.
        """
        places = {place: index for index, place in enumerate(cluster._places)}
        found = [
            places.get((member.process, member.name), -1) if isinstance(member, Device) else member
            for member in self.devices
        ]
        wrong = [
            f"{member!r} is not in it"
            for member, index in zip(self.devices, found, strict=True)
            if not 0 <= index < len(cluster)
        ]
        wrong += [f"device {index} is named twice" for index in _repeated(found) if index >= 0]
        if wrong:
            raise DeviceError(
                f"{self} does not fit a cluster of {len(cluster)} devices",
                details=wrong,
                way_out=f"Use indices from 0 to {len(cluster) - 1}, or devices of the cluster itself.",
            )
        return tuple(found)

    def __repr__(self) -> str:
        return _written(self)

    def to_proto(self) -> cluster_pb2.VirtualDevice:
        """The message of this virtual device."""
        member = cluster_pb2.VirtualDevice.Member
        return cluster_pb2.VirtualDevice(
            devices=[
                member(device=device.to_proto()) if isinstance(device, Device) else member(index=device)
                for device in self.devices
            ]
        )

    @classmethod
    def from_proto(cls, message: cluster_pb2.VirtualDevice) -> VirtualDevice:
        """The virtual device of a message."""
        return cls(
            tuple(
                Device.from_proto(member.device) if member.HasField("device") else member.index
                for member in message.devices
            )
        )


def _parse(name: str) -> tuple[str, str, int]:
    """Task, kind and index of a device's name, full or short."""
    match = NAME.fullmatch(name)
    if match is None:
        raise DeviceError(
            f"'{name}' is no device name",
            way_out=f"Write it as TensorFlow does: {LOCAL_TASK}/device:CPU:1, or CPU:1 for short.",
        )
    return match["task"] or LOCAL_TASK, match["kind"], int(match["index"])


def _repeated(values: Iterable[Value]) -> list[Value]:
    """The values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _written(value: Any) -> str:
    """The expression that makes a dataclass: required fields by position, others by name if they say something."""
    parts = []
    for each in filter(lambda each: each.repr, fields(value)):
        content = getattr(value, each.name)
        if each.default is MISSING:
            parts.append(repr(content))
        elif content != each.default:
            parts.append(f"{each.name}={content!r}")
    return f"{type(value).__name__}({', '.join(parts)})"
