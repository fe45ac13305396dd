"""Two stages in two processes; what a script does with variables of the other one. test_gathering.py starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import whale_tf as whale
from whale_tf.errors import VariableError
from whale_tf.world import read_environment

RANK = read_environment(os.environ).rank
FOLDER = Path(sys.argv[1])


def refused(variable: Any) -> bool:
    try:
        variable.numpy()
    except VariableError:
        return True
    return False


def main() -> None:
    assert whale.init(devices=1).rank == RANK
    keras.utils.set_random_seed(0)
    first, second = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((4,)), first, second])
    variables, optimizer = model.trainable_variables, keras.optimizers.Adam(0.01)
    optimizer.build(variables)
    mean = keras.metrics.Mean()

    @whale.function(micro_batches=4)
    def train(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            with whale.stage():
                h = first(x)
            with whale.stage():
                loss = tf.reduce_mean((second(h) - y) ** 2)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        mean.update_state(loss)
        return loss

    @whale.function
    def train_replicas(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean((model(x) - y) ** 2)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(gradient)
        return loss

    @whale.function
    def evaluate(x: Any, y: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean((model(x) - y) ** 2)

    def plain(x: Any, y: Any) -> float:
        return float(tf.reduce_mean((model(x) - y) ** 2))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 1)).astype(np.float32)
    own, other = (first, second) if RANK == 0 else (second, first)
    train.gather()  # there is nothing yet
    losses = [float(train(x, y)) for _ in range(3)]
    assert [refused(own.kernel), refused(other.kernel)] == [False, True]
    assert [refused(slot) for slot in optimizer.variables[2:]].count(True) == 4, "the other stage's slots"
    assert int(optimizer.iterations) == 3
    np.testing.assert_allclose(float(mean.result()), np.mean(losses), rtol=1e-6)

    after = float(evaluate(x, y))  # brings them up to date by itself, in both
    assert not refused(other.kernel)
    np.testing.assert_allclose(plain(x, y), after, rtol=1e-5)
    np.testing.assert_allclose(float(train(x, y)), after, rtol=1e-5)  # and the pipeline goes on from there
    train(x[:12], y[:12])  # a new trace, of variables that are away
    assert refused(other.kernel)

    report = train.verify(x, y)
    assert report.largest < 1e-5, str(report)
    train(x, y)
    train.timeline(FOLDER / "trace.json")
    train(x, y)
    train_replicas.timeline(FOLDER / "replicas.json", x, y)  # changes what is away, and nothing in the end
    train.gather()
    before = plain(x, y)
    path = FOLDER / f"{RANK}.weights.h5"
    model.save_weights(path)
    np.testing.assert_allclose(float(train(x, y)), before, rtol=1e-5)
    model.load_weights(path)  # in every process, over variables that are away in one
    optimizer.learning_rate.assign(0.0)
    np.testing.assert_allclose([float(train(x, y)), float(train(x, y))], [before] * 2, rtol=1e-5)
    print("all is as expected", flush=True)


if __name__ == "__main__":
    main()
