"""One process of a contender: makes the model and its step, and takes steps in its turns.

python -m benchmarks.processes_data_parallel.contender {whale,strategy,alone} [--small] [--ports A B]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import tensorflow as tf

import whale_tf as whale
from benchmarks.groups import serve, tf_config, use_one_core
from benchmarks.measure import SMALL
from benchmarks.model import Size, Training, distributed, replicated, tokens

REPLICAS = 2

Step = Callable[[], tf.Tensor]


def whale_step(size: Size) -> Step:
    """`replica(2)` over two processes; the call takes the global batch."""
    whale.init(devices=1)
    x, y = tokens(size)
    step = replicated(Training(size), REPLICAS)
    return lambda: step(x, y)


def strategy_step(size: Size, ports: Sequence[int]) -> Step:
    """MultiWorkerMirroredStrategy as its guide shows it; this worker's part of the batch is cut beforehand."""
    index = tf_config(ports)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    step = distributed(strategy, size)
    x, y = (tf.split(tensor, REPLICAS)[index] for tensor in tokens(size))
    return lambda: step(x, y)


def alone_step(size: Size) -> Step:
    """One replica's part of the batch, on one device, for nobody else."""
    part = replace(size, batch=size.batch // REPLICAS)
    x, y = tokens(part)
    step = tf.function(Training(part).step)
    return lambda: step(x, y)


def main() -> None:
    """Serves turns until the benchmark ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=["whale", "strategy", "alone"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--ports", type=int, nargs=REPLICAS, help="of the workers, for strategy")
    options = parser.parse_args()
    use_one_core()
    size = SMALL if options.small else Size()
    steps: dict[str, Callable[[], Step]] = {
        "whale": lambda: whale_step(size),
        "strategy": lambda: strategy_step(size, options.ports),
        "alone": lambda: alone_step(size),
    }
    serve({"step": steps[options.contender]()})


if __name__ == "__main__":
    main()
