"""`init`: finds or makes this process's devices and joins the other processes; both are a `Session`.

Devices of all processes make one cluster, ordered by process. With `whale run` the processes find one another before
MPI starts, so that one that dies then is noticed; otherwise MPI brings the address of the first to the others.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # private; tried with 2.21

from whale_tf._protos import cluster_pb2
from whale_tf.annotate.cluster import Cluster
from whale_tf.annotate.devices import advise_devices, check_cluster, find_devices, share_cores
from whale_tf.errors import DeviceError
from whale_tf.run import communicator
from whale_tf.run.ops import broadcast
from whale_tf.run.processes import World
from whale_tf.world import Address, Environment, Hub, Member, join, read_address, read_environment, read_timeout

ADDRESS_BYTES = 4096


@dataclass(frozen=True)
class Session:
    """What there is to run on, from one `init` to the next.

    Attributes:
      cluster: the devices of all processes.
      chosen: whether the script has called `init` itself.
      world: the processes of this run; None if this one is alone.
    """

    cluster: Cluster
    chosen: bool = False
    world: World | None = None

    def advise(self, devices: int) -> str:
        """What to do so that there are so many devices in all: what has been forgotten, and a way that leads there."""
        if self.world is not None:
            return (
                f"Give each of the {self.world.size} processes more devices, or start more processes, for {devices} in "
                "all, or ask for fewer replicas or stages."
            )
        forgotten = "" if self.chosen else "whale.init was not called. "
        return f"{forgotten}{advise_devices(devices)} Or ask for fewer replicas or stages."


# That of the last `init`, if there was one: TensorFlow knows all devices, but not how many were asked for.
_current: list[Session] = []


def init(devices: int | None = None, *, cluster: Cluster | None = None, threads: int | None = None) -> Cluster:
    """The devices that steps run on from here on. Starts TensorFlow.

    On a machine with visible GPUs they are its GPUs; elsewhere logical CPU devices, which share the machine's cores.
    Under `whale run`, `mpiexec` or `srun` every process calls it, and gets the devices of all.

    Args:
      devices: how many in this process; by default all GPUs, or the logical CPU devices there are (one, unless
        configured otherwise).
      cluster: the devices by name, with what is known of their speed and memory, in the place of a number. Of several
        processes it names those of all.
      threads: on how many threads one operation runs. By default on each device's part of this machine's cores, where
        there are several devices or processes here and the script has not set intra-op threads itself; else on one for
        each core, as TensorFlow does.
    Raises:
      DeviceError: there are fewer, and they cannot be made because TensorFlow has started; MPI is needed and missing.
      RunError: another process did not come.
    """
    if devices is not None and cluster is not None:
        raise DeviceError(
            "init takes a number of devices or a cluster, not both",
            details=[f"devices is {devices}, and the cluster has {len(cluster)}"],
            way_out="Leave out one of the two.",
        )
    cpus = devices if cluster is None else sum(device.kind == "CPU" for device in cluster)
    share_cores(threads, cpus if isinstance(cpus, int) else 1)
    environment = read_environment(os.environ)
    rank, size = environment.rank, environment.size
    local = find_devices(devices) if cluster is None else check_cluster(cluster, rank, size)
    if size == 1:
        return _begin(Session(local, chosen=True)).cluster
    world = (_current[0].world if _current else None) or _join(environment)
    _begin(Session(local, world=world))  # whatever comes next, a process joins once
    return _begin(Session(_gathered(world, local, cluster), chosen=True, world=world)).cluster


def current() -> Session:
    """The session of the last `init`; without one, that of `init()`."""
    if not _current:
        init()
        _begin(replace(_current[0], chosen=False))
    return _current[0]


def _begin(session: Session) -> Session:
    _current[:] = [session]
    return session


def _join(environment: Environment) -> World:
    timeout = read_timeout(os.environ)
    communicator.set_timeout(timeout)
    address = read_address(os.environ)
    if address is not None:
        member = join(environment, on_abort=communicator.abort_world, address=address, timeout=timeout)
        _start_mpi(environment)
    else:
        _start_mpi(environment)
        hub = Hub(environment.size) if environment.rank == 0 else None
        address = _from_first(hub.start() if hub else None)
        member = join(environment, on_abort=communicator.abort_world, address=address, hub=hub, timeout=timeout)
    assert member is not None  # of a world of one there is nothing to join
    atexit.register(_stop, member)  # before the member leaves: until then it is told of the others' ends
    world = World(environment.rank, environment.size, member, timeout)
    _share_seed(world)
    return world


def _stop(member: Member) -> None:
    """At exit: waits for the other ranks, but for none that still needs this one."""
    member.finish()
    communicator.stop_world()


def _start_mpi(environment: Environment) -> None:
    found = communicator.start_world()
    if found != (environment.rank, environment.size):
        raise DeviceError(
            "MPI does not know the processes that the environment speaks of",
            details=[f"the environment says {environment}", f"MPI says rank {found[0]} of {found[1]}"],
            way_out="Start the processes with `whale run -n N script.py`, with `mpiexec`, or with `srun --mpi=pmi2`.",
        )


def _from_first(address: Address | None) -> Address:
    """The address that the first process has, in all of them."""
    text = str(address or "").encode().ljust(ADDRESS_BYTES)
    (shared,) = broadcast([tf.constant(np.frombuffer(text, np.int32))], label="the address of the hub")
    return Address.parse(shared.numpy().tobytes().decode().strip())


def _gathered(world: World, local: Cluster, given: Cluster | None) -> Cluster:
    """The devices of all processes, each with the number of its process."""
    own = Cluster(tuple(replace(device, process=world.rank) for device in local), local.links)
    clusters = [
        Cluster.from_proto(cluster_pb2.Cluster.FromString(each))
        for each in world.exchange("the devices of whale.init", own.to_proto().SerializeToString())
    ]
    found = given or Cluster(tuple(device for each in clusters for device in each))
    return replace(found, rank=world.rank)


def _share_seed(world: World) -> None:
    """One global seed for all processes, so that datasets are shuffled alike; a seed that was set stays."""
    given = context.global_seed()
    own = int.from_bytes(os.urandom(4), "little") >> 1 if given is None else given
    first = world.exchange("the global seed", str(own).encode())[0]
    if given is None:
        tf.random.set_seed(int(first))
