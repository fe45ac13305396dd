"""Finds or makes the devices of this process.

TensorFlow fixes its devices when it starts, that is with the first operation or the first question for them; each
function here is such a question.
"""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

from whale_tf.annotate.cluster import Cluster, Device
from whale_tf.errors import DeviceError

PROCESSES_HERE = "MPI_LOCALNRANKS"  # how many processes of the run share this machine; set by mpiexec


def find_devices(count: int | None) -> Cluster:
    """This process's GPUs, or logical CPU devices; `count` of them, or all there are.

    Raises:
      DeviceError: there are fewer, and they cannot be made because TensorFlow has started.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise DeviceError(
            "the number of devices must be a whole number from 1 on",
            details=[f"devices is {count!r}"],
            way_out="Call whale.init() without a number for all devices there are.",
        )
    if tf.config.get_visible_devices("GPU"):
        return _first_gpus(count)
    if count is not None:
        _make_cpus(count)
    return Cluster(_existing("CPU")[:count])


def _first_gpus(count: int | None) -> Cluster:
    gpus = _existing("GPU")
    if count is not None and count > len(gpus):
        raise DeviceError(
            f"there are not {count} GPUs",
            details=[f"TensorFlow sees {len(gpus)}: {', '.join(gpu.label for gpu in gpus)}"],
            way_out=f"Use whale.init({len(gpus)}), or start again with CUDA_VISIBLE_DEVICES=-1 for CPU devices.",
        )
    return Cluster(gpus[:count])


def advise_devices(count: int) -> str:
    """What to do for so many devices in this process, one sentence: what can be done in it, or what it takes."""
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        return f"Start the process again where TensorFlow sees {count} GPUs, here {len(gpus)}."
    existing = len(tf.config.list_logical_devices("CPU"))
    if existing >= count:
        return f"Call whale.init({count}) and then the step: TensorFlow has {existing} devices here."
    return start_again(f"whale.init({count})")


def start_again(call: str) -> str:
    """What to do where TensorFlow has fixed already what a call of `init` asks for."""
    return (
        f"Start the process (in a notebook, the kernel) again, and call {call} first, before anything makes a tensor, "
        "a variable or a model: TensorFlow fixes its devices then."
    )


def _make_cpus(count: int) -> None:
    """Sees to it that TensorFlow has `count` logical CPU devices or more; those already configured stay."""
    cpu = tf.config.get_visible_devices("CPU")[0]
    configured = list(tf.config.get_logical_device_configuration(cpu) or [tf.config.LogicalDeviceConfiguration()])
    if len(configured) >= count:
        return
    missing = [tf.config.LogicalDeviceConfiguration()] * (count - len(configured))
    try:
        tf.config.set_logical_device_configuration(cpu, configured + missing)
    except RuntimeError as error:
        existing = len(configured)
        raise DeviceError(
            f"TensorFlow already started with {existing} device{'s' if existing > 1 else ''}",
            details=[f"{count} logical CPU devices are asked for, {count - existing} more than there are"],
            way_out=start_again(f"whale.init({count})"),
        ) from error


def share_cores(threads: int | None, devices: int) -> None:
    """Sets on how many threads an operation runs; without a number, on each device's part of the machine's cores.

    All devices of a process share one pool of threads. If every operation of every device were cut for all cores, they
    would wait for one another's pieces: benchmarks/data_parallel and benchmarks/pipeline have the figures.

    Args:
      devices: how many logical CPU devices this process is to have.
    Raises:
      DeviceError: the number is not possible, or comes after TensorFlow has started with another.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise DeviceError(
            "the number of threads must be a whole number from 1 on",
            details=[f"threads is {threads!r}"],
            way_out="Leave it out for one on each of a device's cores.",
        )
    now = tf.config.threading.get_intra_op_parallelism_threads()
    here = int(os.environ.get(PROCESSES_HERE, "1")) * devices
    if threads is None and here > 1 and now == 0:
        with contextlib.suppress(RuntimeError):  # TensorFlow has started: it stays as it is
            tf.config.threading.set_intra_op_parallelism_threads(max(1, len(os.sched_getaffinity(0)) // here))
    if threads in (None, now):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise DeviceError(
            f"TensorFlow already started with {_written(now)} for an operation",
            details=[f"threads is {threads}"],
            way_out=start_again(f"whale.init(..., threads={threads})"),
        ) from error


def _written(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}" if threads else "as many threads as cores"


def check_cluster(cluster: Cluster, rank: int = 0, size: int = 1) -> Cluster:
    """The part of a cluster that is of this process, number `rank` of `size`, once all its devices exist.

    Raises:
      DeviceError: it has devices of processes that are not there, none of this one, or some that do not exist.
    """
    foreign = [device.label for device in cluster if device.process >= size]
    if foreign:
        processes = "1 process" if size == 1 else f"{size} processes"
        raise DeviceError(
            "the cluster has devices of other processes",
            details=[f"this program is {processes}, and cannot reach {', '.join(foreign)}"],
            way_out=f"Give the devices of process{'' if size == 1 else 'es'} {', '.join(map(str, range(size)))} only.",
        )
    own = tuple(device for device in cluster if device.process == rank)
    if not own:
        raise DeviceError(
            f"the cluster has no device of process {rank}",
            details=[f"its devices are {', '.join(device.label for device in cluster)}"],
            way_out="Give every process one device or more, or start fewer processes.",
        )
    cpus = [device.index for device in own if device.kind == "CPU"]
    if cpus:
        _make_cpus(max(cpus) + 1)
    existing = [device.name for kind in sorted({device.kind for device in own}) for device in _existing(kind)]
    missing = [device.name for device in own if device.name not in existing]
    if missing:
        raise DeviceError(
            "the cluster names devices that do not exist",
            details=[*(f"{name} does not exist" for name in missing), f"there are: {', '.join(existing) or 'none'}"],
            way_out="Use the names that whale.init() prints.",
        )
    return Cluster(own) if size > 1 else cluster


def _existing(kind: str) -> tuple[Device, ...]:
    """TensorFlow's logical devices of a kind, in the order of their index."""
    devices = [Device.named(device.name) for device in tf.config.list_logical_devices(kind)]
    return tuple(sorted(devices, key=lambda device: device.index))
