"""One contender, in a process of its own with all cores: makes the model and its step, and takes steps in its turns.

python -m benchmarks.data_parallel.contender {one,whale,mirrored} [--small] [--threads 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import tensorflow as tf

import whale_tf as whale
from benchmarks.groups import serve
from benchmarks.measure import SMALL
from benchmarks.model import Size, Training, distributed, replicated, tokens

REPLICAS = 2


def one_device(size: Size, x: tf.Tensor, y: tf.Tensor) -> Callable[[], tf.Tensor]:
    """The step under `tf.function`."""
    step = tf.function(Training(size).step)
    return lambda: step(x, y)


def whale_step(size: Size, x: tf.Tensor, y: tf.Tensor) -> Callable[[], tf.Tensor]:
    """The same step with its forward in `replica(2)`; cutting the batch is part of the time."""
    step = replicated(Training(size), REPLICAS)
    return lambda: step(x, y)


def mirrored_step(size: Size, x: tf.Tensor, y: tf.Tensor) -> Callable[[], tf.Tensor]:
    """MirroredStrategy as its guide shows it; cutting the batch is left out of the time."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{replica}" for replica in range(REPLICAS)])
    step = distributed(strategy, size)

    def part(tensor: tf.Tensor) -> tf.Tensor:
        parts = tf.split(tensor, REPLICAS)
        return strategy.experimental_distribute_values_from_function(lambda r: parts[r.replica_id_in_sync_group])

    parts_x, parts_y = part(x), part(y)
    return lambda: step(parts_x, parts_y)


CONTENDERS = {"one": one_device, "whale": whale_step, "mirrored": mirrored_step}


def make_devices(contender: str, threads: int) -> None:
    """As many logical devices as the contender is for."""
    if contender == "whale":
        whale.init(devices=REPLICAS, threads=threads or None)
    elif threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    if contender == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)


def main() -> None:
    """Serves turns until the benchmark ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="of one operation; 0 is the default")
    options = parser.parse_args()
    make_devices(options.contender, options.threads)
    size = SMALL if options.small else Size()
    step = CONTENDERS[options.contender](size, *tokens(size))
    serve({"step": step})


if __name__ == "__main__":
    main()
