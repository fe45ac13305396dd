"""What a script does with a step beside calling it, in two processes; test_processes.py starts it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.harness import different
from whale_tf.world import read_environment

RANK = read_environment(os.environ).rank
BATCHES = (16, 16, 13, 9, 16)  # a new trace for each size that was not there before
TOLERANCE = 1e-5
LATE = """
device 0: 0F0 0F1 0F0S1 0B0 0B1
device 1: 1R0F0 1F0 1F1 1B0 1B1
"""


class Regression:
    """Two layers; what its variables begin with may depend on the process."""

    def __init__(self, first: float) -> None:
        rng = np.random.default_rng(1)
        self.first = tf.Variable(first + rng.normal(size=(4, 8)).astype(np.float32))
        self.second = tf.Variable(rng.normal(size=(8, 1)).astype(np.float32))

    def step(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2, shares=(3, 1)):
            with whale.stage():
                h = tf.tanh(tf.matmul(x, self.first))
            with whale.stage():
                loss = tf.reduce_mean((tf.matmul(h, self.second) - y) ** 2)
        variables = (self.first, self.second)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss


def batches() -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(2)
    sizes = [(size, 4) for size in BATCHES]
    return [
        (rng.normal(size=size).astype(np.float32), rng.normal(size=(size[0], 1)).astype(np.float32)) for size in sizes
    ]


def train(model: Regression, step: Callable[..., Any], arguments: Any) -> list[np.ndarray[Any, Any]]:
    """The losses and the variables at the end."""
    losses = [step(*args) for args in arguments]
    return [np.array(losses), model.first.numpy(), model.second.numpy()]


def check(what: str, got: list[np.ndarray[Any, Any]], want: list[np.ndarray[Any, Any]]) -> None:
    wrong = [text for pair in zip(got, want, strict=True) if (text := different(*pair, TOLERANCE))]
    assert not wrong, f"{what}: {wrong}"


def main() -> None:
    """Trains in several ways, and compares with one device."""
    whale.init(devices=2)
    alone = Regression(0.0)
    want = train(alone, tf.function(alone.step), batches())

    called = Regression(float(RANK))  # those of the first process count
    step = whale.function(micro_batches=2)(called.step)
    check("called with global batches", train(called, step, batches()), want)

    fed = Regression(float(RANK))
    feeding = whale.function(micro_batches=2)(fed.step)
    shapes = tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None, 1], tf.float32)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=shapes)
    check("fed", train(fed, feeding, ((part,) for part in feeding.feed(dataset))), want)

    sent = Regression(0.0)
    strategy = whale.Strategy(devices=((0, 2), (1, 3)), schedule=LATE)  # each stage in a process of its own
    late = whale.function(strategy=strategy)(sent.step)
    losses = np.array([late(*args) for args in batches()])
    late.gather()
    check("sent late", [losses, sent.first.numpy(), sent.second.numpy()], want)

    before = called.first.numpy()
    report = step.verify(*batches()[0])
    assert "largest relative difference" in str(report), report
    assert step.verify(*batches()[0], precision="float64").largest < 1e-12
    with tempfile.TemporaryDirectory() as folder:
        step.timeline(Path(folder, "trace.json"))
        assert (
            RANK or Path(folder, "trace.json").stat().st_size > 100
        )  # that of all processes, which the first one writes
        step.save_graph(Path(folder, "graph"))
        assert RANK or any(Path(folder, "graph").rglob("*"))
    np.testing.assert_array_equal(called.first.numpy(), before)
    step(*batches()[0])  # and it goes on
    print("all is the same", flush=True)


if __name__ == "__main__":
    main()
