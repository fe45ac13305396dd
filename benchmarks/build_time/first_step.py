"""Prints the seconds from the call to the end of the first step, of one contender in a process of its own.

With `--last` it is the first step of another batch size, after a step that is not counted.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SMALL
from benchmarks.model import Size, Training, pipelined, replicated, tokens

BATCH = 32  # divisible by every number of micro-batches that is compared


def main() -> None:
    """Builds the model, then measures the first call of its step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="store_true", help="under tf.function, on one device")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--last", action="store_true", help="a second batch, of half the size, as at an epoch's end")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    whale.init(devices=options.replicas * options.stages)
    size = replace(SMALL if options.small else Size(), batch=BATCH)
    x, y = tokens(size)
    training = Training(size, parts=options.stages)
    if options.peer:
        step = tf.function(training.step)
    elif options.stages > 1:
        step = pipelined(training, options.micro_batches)
    else:
        step = replicated(training, options.replicas)
    if options.last:
        step(x, y).numpy()
        x, y = x[: BATCH // 2], y[: BATCH // 2]
    start = time.perf_counter()
    step(x, y).numpy()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
