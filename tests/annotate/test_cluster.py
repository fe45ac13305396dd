"""Values of whale_tf.annotate.cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from whale_tf._protos import cluster_pb2
from whale_tf.annotate.cluster import Cluster, Device, Link, VirtualDevice
from whale_tf.errors import DeviceError

FULL = "/job:localhost/replica:0/task:0/device:CPU:1"


def cpus(count: int) -> tuple[Device, ...]:
    return tuple(Device.named(f"CPU:{index}") for index in range(count))


VALUES = [
    Device(FULL, "CPU", 1),
    Device.named("GPU:3", process=2, flops_per_second=1.5e13, memory_bytes=16 * 2**30),
    Link(0, 1, 1e10, 1e-6),
    Cluster(cpus(2)),
    Cluster(cpus(2), links=(Link(0, 1, 1e10, 0.0), Link(1, 0, 2e10, 0.0))),
    VirtualDevice((0, 3)),
    VirtualDevice((Device.named("GPU:0"), 0)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_prints_as_one_would_write_it(value: object) -> None:
    names = {"Device": Device, "Link": Link, "Cluster": Cluster, "VirtualDevice": VirtualDevice}
    assert eval(repr(value), names) == value


def test_prints_without_what_is_not_known() -> None:
    assert str(Device.named("CPU:1")) == f"Device('{FULL}', 'CPU', 1)"
    assert str(VirtualDevice((0, 3))) == "VirtualDevice((0, 3))"


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_goes_to_and_from_its_message(value: Device | Link | Cluster | VirtualDevice) -> None:
    message = getattr(cluster_pb2, type(value).__name__).FromString(value.to_proto().SerializeToString())
    assert type(value).from_proto(message) == value


def test_zero_and_unknown_stay_apart_in_a_message() -> None:
    member = VirtualDevice((0,)).to_proto().devices[0]
    assert member.HasField("index")
    assert not Device.named("CPU:0").to_proto().HasField("memory_bytes")


@pytest.mark.parametrize("name", [FULL, "/device:CPU:1", "CPU:1"])
def test_a_short_name_becomes_the_full_one(name: str) -> None:
    assert Device(name, "CPU", 1).name == FULL
    assert Device.named(name) == Device(FULL, "CPU", 1)


def test_a_name_keeps_its_task() -> None:
    name = "/job:worker/replica:0/task:3/device:GPU:1"
    assert Device.named(name, process=3) == Device(name, "GPU", 1, process=3)


def test_label_tells_processes_apart() -> None:
    assert [Device.named("CPU:1").label, Device.named("CPU:1", process=2).label] == ["CPU:1", "2/CPU:1"]


def test_refuses_a_name_that_is_none() -> None:
    with pytest.raises(DeviceError) as refused:
        Device.named("cpu1")
    assert str(refused.value) == (
        "'cpu1' is no device name.\n"
        "  Write it as TensorFlow does: /job:localhost/replica:0/task:0/device:CPU:1, or CPU:1 for short."
    )


def test_refuses_a_device_that_contradicts_itself() -> None:
    with pytest.raises(DeviceError) as refused:
        Device("CPU:1", "GPU", 0, process=-1, flops_per_second=0.0, memory_bytes=-5)
    assert str(refused.value) == (
        f"device '{FULL}' contradicts itself.\n"
        "  the name says CPU 1; kind and index say GPU 0\n"
        "  process is -1\n"
        "  flops_per_second is 0.0\n"
        "  memory_bytes is -5\n"
        "  Use Device.named(name) to take kind and index from the name; leave out what is not known."
    )


def test_refuses_a_cluster_with_all_offenders_named() -> None:
    wrong = (
        Link(0, 1, 1.0, 0.0),
        Link(0, 1, 1.0, 0.0),
        Link(1, 1, 1.0, 0.0),
        Link(0, 7, 1.0, 0.0),
        Link(1, 0, 0.0, -1.0),
    )
    with pytest.raises(DeviceError) as refused:
        Cluster((*cpus(2), Device.named("CPU:0")), wrong)
    assert refused.value.details == (
        "device /job:localhost/replica:0/task:0/device:CPU:0 of process 0 is there twice",
        "link 0 -> 1 is there twice",
        "Link(1, 1, 1.0, 0.0) joins a device to itself",
        "Link(0, 7, 1.0, 0.0) leaves the cluster, whose devices are 0 to 2",
        "Link(1, 0, 0.0, -1.0) needs bytes_per_second above 0 and latency_seconds of at least 0",
    )


def test_refuses_an_empty_cluster() -> None:
    with pytest.raises(DeviceError, match="it has no device"):
        Cluster(())


def test_the_same_name_in_two_processes_is_two_devices() -> None:
    assert len(Cluster((Device.named("CPU:0"), Device.named("CPU:0", process=1)))) == 2


def test_a_link_stands_for_both_directions_unless_the_other_is_given() -> None:
    one_way, there, back = Link(0, 1, 1e9, 0.0), Link(1, 2, 1e9, 0.0), Link(2, 1, 2e9, 0.0)
    cluster = Cluster(cpus(3), (one_way, there, back))
    assert cluster.link(0, 1) == one_way
    assert cluster.link(1, 0) == Link(1, 0, 1e9, 0.0)
    assert (cluster.link(1, 2), cluster.link(2, 1)) == (there, back)
    assert cluster.link(0, 2) is None


def test_a_virtual_device_finds_its_places() -> None:
    devices = cpus(3)
    assert VirtualDevice((devices[2], 0)).indices(Cluster(devices)) == (2, 0)


def test_refuses_a_virtual_device_that_does_not_fit() -> None:
    with pytest.raises(DeviceError) as refused:
        VirtualDevice((0, Device.named("CPU:0"), 5, Device.named("CPU:9"))).indices(Cluster(cpus(2)))
    assert refused.value.details == (
        "5 is not in it",
        "Device('/job:localhost/replica:0/task:0/device:CPU:9', 'CPU', 9) is not in it",
        "device 0 is named twice",
    )


@pytest.mark.parametrize("devices", [(), (1, 1)])
def test_refuses_a_virtual_device_without_distinct_devices(devices: tuple[int, ...]) -> None:
    with pytest.raises(DeviceError, match="is no virtual device"):
        VirtualDevice(devices)


def test_the_rank_is_no_part_of_a_cluster() -> None:
    cluster = Cluster((Device.named("CPU:0"),))
    third = replace(cluster, rank=2)
    assert third == cluster
    assert repr(third) == repr(cluster)
    assert Cluster.from_proto(third.to_proto()).rank == 0
