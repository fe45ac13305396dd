"""Graph size: seconds to make a plan and a program from steps of 1,000 to 30,000 nodes.

Dense layers are stacked until the captured graph is that large, and trained by Adam in 2 stages × 4 micro-batches.
Capture, which is mostly TensorFlow's own tracing, is measured apart from the phases after it: plan, rewrite, lower. Of
these, how every value depends on the batch (`plan.states`) is measured by itself as well.
How their work grows is counted in function calls, which do not depend on caches or on what else the machine does.
"""

from __future__ import annotations

import cProfile
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
from benchmarks.measure import SECONDS, Claim, Measured, Unit, arguments, report
from whale_tf import parallelize
from whale_tf.capture import sized
from whale_tf.capture.record import record
from whale_tf.capture.translate import translate

NODES = (1_000, 3_000, 10_000, 30_000)
SMALL_NODES = (300, 1_000)
NODES_PER_LAYER = 81  # forward, backward and Adam
LIMIT_SECONDS = 10.0
STATES_SECONDS = 2.0
STAGES = 2
MICRO_BATCHES = 4
WIDTH = 8


class Stopwatch:
    """A function, with the seconds that its calls took."""

    def __init__(self, function: Callable[..., Any], profile: cProfile.Profile | None) -> None:
        self.function = function
        self.profile = profile  # what counts calls, but none of these
        self.seconds = 0.0
        self.result: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.profile is not None:
            self.profile.disable()
        start = time.perf_counter()
        self.result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        if self.profile is not None:
            self.profile.enable()
        return self.result


@dataclass(frozen=True)
class Compilation:
    """How long one compilation took, of how many nodes, and how many function calls came after capture, if counted."""

    nodes: int
    capture_seconds: float
    compile_seconds: float  # after capture, states_seconds among them
    states_seconds: float
    calls: int = 0


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


def compile_once(layers: int, profile: cProfile.Profile | None = None) -> Compilation:
    """Compiles a new step, without running it; a profile that counts calls makes it slower."""
    step = stacked_step(layers)
    gc.collect()
    recording, translation = Stopwatch(record, profile), Stopwatch(translate, profile)
    deriving = Stopwatch(parallelize.resolve, None)
    with (
        mock.patch.multiple(sized, record=recording, translate=translation),
        mock.patch.object(parallelize, "resolve", deriving),
    ):
        start = time.perf_counter()
        if profile is not None:
            profile.enable()
        step.prepare(tf.ones((2 * MICRO_BATCHES, WIDTH)))
        if profile is not None:
            profile.disable()
        whole = time.perf_counter() - start
    capture = recording.seconds + translation.seconds
    calls = sum(entry.callcount for entry in profile.getstats()) if profile is not None else 0
    return Compilation(len(translation.result.graph), capture, whole - capture, deriving.seconds, calls)


def report_growth(smaller: Sequence[Compilation], larger: Sequence[Compilation]) -> None:
    """Compares work and time of the larger graph with what they would be in proportion to the smaller one."""
    times = larger[0].nodes / smaller[0].nodes
    layers = [math.ceil(run[0].nodes / NODES_PER_LAYER) for run in (smaller, larger)]
    few, many = (compile_once(count, cProfile.Profile()) for count in layers)
    times_calls = many.nodes / few.nodes
    calls = [
        Measured(f"{many.nodes:,} nodes", (float(many.calls),)),
        Measured(f"{times_calls:.1f} x {few.nodes:,} nodes", (few.calls * times_calls,)),
    ]
    growth = [Claim(calls[0].name, calls[1].name, at_most=1.05)]
    report("Function calls after capture", calls, growth, Unit("calls", 1.0, 0))
    seconds = [
        Measured(f"{larger[0].nodes:,} nodes", tuple(run.compile_seconds for run in larger)),
        Measured(f"{times:.1f} x {smaller[0].nodes:,} nodes", tuple(run.compile_seconds * times for run in smaller)),
    ]
    report("Seconds after capture", seconds, [Claim(seconds[0].name, seconds[1].name)], SECONDS)


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
        measured.append(Measured(f"{name}, states", tuple(run.states_seconds for run in runs)))
        measured.append(Measured(name, tuple(run.compile_seconds for run in runs)))
    states, last = measured[-2:]
    limits = [
        Measured(f"{limit:g} seconds", (limit,) * options.rounds * options.steps)
        for limit in (LIMIT_SECONDS, STATES_SECONDS)
    ]
    claims = [Claim(last.name, limits[0].name, at_most=1.0), Claim(states.name, limits[1].name, at_most=1.0)]
    report("Seconds after capture, by nodes of the captured graph", [*measured, *limits], claims, SECONDS)
    report_growth(found[targets[-3] if len(targets) > 2 else targets[0]], found[targets[-1]])


if __name__ == "__main__":
    main()
