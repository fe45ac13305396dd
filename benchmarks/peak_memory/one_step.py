"""Prints the live bytes of one step, measured and as its schedule predicts, of one schedule in a process of its own.

It runs under the counter of live_bytes.c and without oneDNN, whose allocator hands out parts of blocks of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from statistics import median

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SMALL
from benchmarks.model import Size, Training, pipelined, tokens

MICRO_BATCHES = 8
MEASURED = Size(batch=64)  # what micro-batches leave outweighs the gradients and the update, which no schedule changes
KNOWN_BYTES = 64 * 2**20


class Counter:
    """The preloaded counter of live_bytes.c.

    Raises:
      RuntimeError: it is not preloaded, or does not see TensorFlow's tensors.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(None)
            for name in ("live_bytes", "live_bytes_peak"):
                getattr(self._library, name).restype = ctypes.c_long
        except AttributeError as error:
            raise RuntimeError("the counter is not there; start this through benchmarks.peak_memory.run") from error
        tf.fill((1,), 1.0)  # what the first operation makes stays
        before = self.now()
        tensor = tf.fill((KNOWN_BYTES // 4,), 1.0)
        seen = self.now() - before
        del tensor
        if abs(seen - KNOWN_BYTES) > 0.01 * KNOWN_BYTES:
            raise RuntimeError(f"the counter moved by {seen} bytes where a tensor of {KNOWN_BYTES} was made")

    def now(self) -> int:
        """Live bytes."""
        return int(self._library.live_bytes())

    def peak(self) -> int:
        """The most live bytes since `restart`."""
        return int(self._library.live_bytes_peak())

    def restart(self) -> None:
        """Forgets the peak."""
        self._library.live_bytes_reset_peak()


def main() -> None:
    """Runs a few steps and prints {"measured": bytes above what is live between steps, "predicted": bytes}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedule", required=True)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    whale.init(devices=options.stages)
    counter = Counter()
    size = SMALL if options.small else MEASURED
    x, y = tokens(size)
    step = pipelined(Training(size, parts=options.stages), MICRO_BATCHES, options.schedule)
    step(x, y).numpy()  # builds, and takes what stays for good
    found = []
    for _ in range(options.steps):
        before = counter.now()
        counter.restart()
        step(x, y).numpy()
        found.append(counter.peak() - before)
    predicted = sum(stage.peak_bytes for stage in step.plan.stages)
    print(json.dumps({"measured": median(found), "predicted": predicted}))


if __name__ == "__main__":
    main()
