"""Graph size: seconds to make a plan and a program from steps of 1,000 to 30,000 nodes.

Dense layers are stacked until the captured graph is that large, and trained by Adam in 2 stages × 4 micro-batches.
Capture, which is mostly TensorFlow's own tracing, is measured apart from the phases after it: plan, rewrite, lower.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import keras
import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SECONDS, Claim, Measured, arguments, report
from whale_tf import traces
from whale_tf.capture.record import record
from whale_tf.capture.translate import translate

NODES = (1_000, 3_000, 10_000, 30_000)
SMALL_NODES = (300, 1_000)
NODES_PER_LAYER = 81  # forward, backward and Adam
LIMIT_SECONDS = 10.0
STAGES = 2
MICRO_BATCHES = 4
WIDTH = 8


class Stopwatch:
    """A function, with the seconds that its calls took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0
        self.result: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        self.result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return self.result


@dataclass(frozen=True)
class Compilation:
    """How long one compilation took, and of how many nodes."""

    nodes: int
    capture_seconds: float
    compile_seconds: float


def stacked_step(layers: int) -> whale.Step:
    """A step that trains `layers` dense layers, the first half of them in the first stage."""
    parts = [
        keras.Sequential([keras.layers.Dense(WIDTH, activation="relu") for _ in range(count)])
        for count in (layers // STAGES, layers - layers // STAGES)
    ]
    for part in parts:
        part.build((None, WIDTH))
    variables = [variable for part in parts for variable in part.trainable_variables]
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(variables)

    @whale.function(micro_batches=MICRO_BATCHES)
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            with whale.stage():
                h = parts[0](x)
            with whale.stage():
                loss = tf.reduce_mean(tf.square(parts[1](h)))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def compile_once(layers: int) -> Compilation:
    """Compiles a new step, without running it."""
    step = stacked_step(layers)
    gc.collect()
    recording, translation = Stopwatch(record), Stopwatch(translate)
    with mock.patch.multiple(traces, record=recording, translate=translation):
        start = time.perf_counter()
        step.prepare(tf.ones((2 * MICRO_BATCHES, WIDTH)))
        whole = time.perf_counter() - start
    capture = recording.seconds + translation.seconds
    return Compilation(len(translation.result.graph), capture, whole - capture)


def in_proportion(smaller: Sequence[Compilation], larger: Sequence[Compilation]) -> Measured:
    """What the larger graph would take if each of its nodes took what a node of the smaller one does."""
    times = larger[0].nodes / smaller[0].nodes
    name = f"{times:.1f} x {smaller[0].nodes:,} nodes"
    return Measured(name, tuple(run.compile_seconds * times for run in smaller))


def main() -> None:
    """Measures the sizes in turn and prints."""
    options = arguments(__doc__ or "", rounds=3, steps=1).parse_args()
    whale.init(devices=STAGES)
    targets = SMALL_NODES if options.small else NODES
    compile_once(4)  # loads what is loaded once
    found: dict[int, list[Compilation]] = {target: [] for target in targets}
    for _ in range(options.rounds * options.steps):
        for target in targets:
            found[target].append(compile_once(math.ceil(target / NODES_PER_LAYER)))

    measured: list[Measured] = []
    for runs in found.values():
        name = f"{runs[0].nodes:,} nodes"
        measured.append(Measured(f"{name}, capture", tuple(run.capture_seconds for run in runs)))
        measured.append(Measured(name, tuple(run.compile_seconds for run in runs)))
    last = measured[-1]
    limit = Measured(f"{LIMIT_SECONDS:g} seconds", (LIMIT_SECONDS,) * options.rounds * options.steps)
    linear = in_proportion(found[targets[-3] if len(targets) > 2 else targets[0]], found[targets[-1]])
    claims = [Claim(last.name, limit.name, at_most=1.0), Claim(last.name, linear.name, at_most=1.25)]
    report("Seconds after capture, by nodes of the captured graph", [*measured, linear, limit], claims, SECONDS)


if __name__ == "__main__":
    main()
