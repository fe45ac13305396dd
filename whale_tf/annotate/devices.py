"""`init`: finds or makes the devices, and remembers which ones were asked for.

TensorFlow fixes its devices when it starts, that is with the first operation or the first question for them; `init` is
such a question. Only `_current` is state here, and it holds one value: the cluster of the last `init`.
"""

from __future__ import annotations

import tensorflow as tf

from whale_tf.annotate.cluster import Cluster, Device
from whale_tf.errors import DeviceError

# The cluster of the last `init`, if there was one. TensorFlow knows all devices, but not how many were asked for.
_current: list[Cluster] = []


def init(devices: int | None = None, *, cluster: Cluster | None = None) -> Cluster:
    """The devices that steps run on from here on. Starts TensorFlow.

    On a machine with visible GPUs they are its GPUs; elsewhere logical CPU devices, which share the machine's cores.

    Args:
      devices: how many; by default all GPUs, or the logical CPU devices there are (one, unless configured otherwise).
      cluster: the devices by name, with what is known of their speed and memory, in the place of a number.
    Raises:
      DeviceError: there are fewer, and they cannot be made because TensorFlow has started.
    """
    if devices is not None and cluster is not None:
        raise DeviceError(
            "init takes a number of devices or a cluster, not both",
            details=[f"devices is {devices}, and the cluster has {len(cluster)}"],
            way_out="Leave out one of the two.",
        )
    found = _find(devices) if cluster is None else _check(cluster)
    _current[:] = [found]
    return found


def current_cluster() -> Cluster:
    """The cluster of the last `init`; without one, what `init()` would find."""
    return _current[0] if _current else _find(None)


def _find(count: int | None) -> Cluster:
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
            way_out=f"Use whale.init({len(gpus)}), or set CUDA_VISIBLE_DEVICES=-1 for logical CPU devices.",
        )
    return Cluster(gpus[:count])


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
            way_out=f"Call whale.init({count}) before the first TensorFlow operation and before any other whale.init.",
        ) from error


def _check(cluster: Cluster) -> Cluster:
    """The cluster itself, once all its devices exist."""
    foreign = [device.label for device in cluster if device.process != 0]
    if foreign:
        raise DeviceError(
            "the cluster has devices of other processes",
            details=[f"this program is one process, 0, and cannot reach {', '.join(foreign)}"],
            way_out="Give the devices of process 0 only.",
        )
    cpus = [device.index for device in cluster if device.kind == "CPU"]
    if cpus:
        _make_cpus(max(cpus) + 1)
    existing = [device.name for kind in sorted({device.kind for device in cluster}) for device in _existing(kind)]
    missing = [device.name for device in cluster if device.name not in existing]
    if missing:
        raise DeviceError(
            "the cluster names devices that do not exist",
            details=[*(f"{name} does not exist" for name in missing), f"there are: {', '.join(existing) or 'none'}"],
            way_out="Use the names that whale.init() prints.",
        )
    return cluster


def _existing(kind: str) -> tuple[Device, ...]:
    """TensorFlow's logical devices of a kind, in the order of their index."""
    devices = [Device.named(device.name) for device in tf.config.list_logical_devices(kind)]
    return tuple(sorted(devices, key=lambda device: device.index))
