"""Small data-parallel steps, and the resident memory of this process after the first ones and after all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import whale_tf as whale

SETTLED, STEPS = int(sys.argv[1]), int(sys.argv[2])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Trains on; every tenth batch has another size."""
    whale.init()
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    @whale.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica():
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)).astype(np.float32), rng.normal(size=(32, 1)).astype(np.float32)
    settled = 0
    for k in range(1, STEPS + 1):
        size = 24 if k % 10 == 0 else 32
        step(x[:size], y[:size])
        if k == SETTLED:
            settled = resident_bytes()
    print(f"resident bytes {settled} {resident_bytes()}", flush=True)


if __name__ == "__main__":
    main()
