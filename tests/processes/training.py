"""A small training that goes wrong in the way it is told, on rank 1: `training.py FAULT`.

    replicated()   2 replicas in 2 processes; one of the two gradients is large, and so is its all-reduce
    staged()       2 stages in 2 processes and 8 micro-batches: activations and gradients go to and fro

Faults strike before step 3, where their functions do not say otherwise. Each step that is done is printed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import whale_tf as whale
from whale_tf.errors import WhaleError
from whale_tf.world import read_environment

FAULT = sys.argv[1]
SICK = read_environment(os.environ).rank == 1
STEPS = 6
STRIKES = 4  # the step; not one before which variables are compared
LARGE = 8 << 20  # numbers: 32 MiB of gradient
MICRO_BATCHES = 8
STAGED = ("killed_between_micro_batches", "not_finite_in_a_stage", "does_not_fit")
LONG = 50.0  # seconds: longer than any test waits

micro_batches_seen = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def strike(seconds: float) -> None:
    """What happens on the sick rank before a step; `seconds` is how long the step before took."""
    match FAULT:
        case "killed_before":
            die()
        case "killed_inside":  # the large all-reduce takes most of a step
            threading.Timer(seconds / 2, die).start()
        case "raises":
            raise ValueError("there is no such file")
        case "exits":
            sys.exit(3)
        case "ends_early":
            sys.exit()
        case "late":
            time.sleep(LONG)


def pass_on(values: Any) -> Any:
    """Runs in the second stage's forward of each micro-batch."""
    global micro_batches_seen
    micro_batches_seen += 1
    if SICK and micro_batches_seen == STRIKES * MICRO_BATCHES + 4:
        die()
    return values


def replicated() -> Any:
    width = 24 if SICK and FAULT == "other_width" else 16
    factor = 0.5 if SICK and FAULT == "other_constant" else 1.0
    first, large = tf.Variable(tf.ones([4, width])), tf.Variable(tf.zeros([LARGE]))

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = tf.debugging.check_numerics(tf.matmul(x, first), "h")
            loss = factor * tf.reduce_mean(h) + tf.reduce_mean(tf.reduce_mean(h, axis=1)[:, None] * large)
        gradients = tape.gradient(loss, (first, large))
        first.assign_sub(0.01 * gradients[0])
        large.assign_sub(0.01 * gradients[1])
        return loss

    return step


def staged() -> Any:
    first, second = tf.Variable(tf.ones([4, 16])), tf.Variable(tf.ones([16, 1]))
    replicas = 2 if FAULT == "does_not_fit" else 1
    accepted = ("PyFunc", "EnsureShape") if FAULT == "killed_between_micro_batches" else ()

    @whale.function(micro_batches=MICRO_BATCHES, accept=accepted)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(replicas):
            with whale.stage():
                h = tf.matmul(x, first)
            with whale.stage():
                if FAULT == "killed_between_micro_batches":
                    h += 0.0 * tf.ensure_shape(tf.numpy_function(pass_on, [tf.stop_gradient(h)], tf.float32), h.shape)
                h = tf.debugging.check_numerics(h, "h")
                loss = tf.reduce_mean(tf.matmul(h, second))
        gradients = tape.gradient(loss, (first, second))
        first.assign_sub(0.01 * gradients[0])
        second.assign_sub(0.01 * gradients[1])
        return loss

    return step


def evaluation() -> Any:
    variable = tf.Variable(tf.ones([4, 1]))

    @whale.function
    def evaluate(x: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(tf.matmul(x, variable))

    return evaluate


def main() -> None:
    """Trains."""
    whale.init()
    rng = np.random.default_rng(1 if SICK and FAULT == "other_shuffle" else 0)
    step = staged() if FAULT in STAGED else replicated()
    evaluate, seconds = evaluation(), 0.0
    for k in range(STEPS):
        if SICK and k == STRIKES:
            strike(seconds)
        x = rng.normal(size=(24 if SICK and FAULT == "other_batch" else 16, 4)).astype(np.float32)
        if FAULT.startswith("not_finite") and k == STRIKES:
            x[12] = np.nan  # an example of the second replica, which rank 1 holds
        turned = SICK and FAULT.startswith("other_order") and k == STRIKES
        evaluates = FAULT == "other_order" or (FAULT == "other_order_untraced" and k == STRIKES)
        if evaluates and turned:
            evaluate(x)
        start = time.monotonic()
        loss = step(x)
        seconds = time.monotonic() - start
        if evaluates and not turned:
            evaluate(x)
        print(f"step {k} loss {float(loss):.4f}", flush=True)
    if SICK and FAULT == "killed_after":
        die()


def go_on() -> None:
    """Calls a step after the run has ended; prints how long that took and what it said."""
    whale.init()
    step, x = replicated(), np.ones((16, 4), np.float32)
    step(x)
    if SICK:
        die()
    for _ in range(2):
        start = time.monotonic()
        try:
            step(x)
        except WhaleError as error:
            print(f"after {time.monotonic() - start:.1f} s: {error}", flush=True)


if __name__ == "__main__":
    go_on() if FAULT == "goes_on" else main()
