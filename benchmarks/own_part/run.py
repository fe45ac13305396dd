"""Own part: seconds and bytes that one process takes to plan and build its part of a job of up to 1,024 processes.

The cluster is made up: a device in each process. Eight stages, one in each process, and as many replicas of them as
there are processes for; 32 micro-batches. What is measured is all that follows the capture of the step: its states, the
plan, the program of the replicas that the process takes part in, its proof, and the process's own part of it.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import keras
import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import MEBIBYTES, SECONDS, Claim, Measured, arguments, report
from whale_tf import parallelize
from whale_tf.plan.strategy import Strategy
from whale_tf.rewrite.localize import localize
from whale_tf.run.signature import take_apart
from whale_tf.run.step import Options
from whale_tf.start import Session

PROCESSES = (2, 32, 256, 1024)
SMALL_PROCESSES = (2, 16)
STAGES, MICRO_BATCHES, LAYERS, WIDTH, EXAMPLES = 8, 32, 24, 16, 2
LIMIT_SECONDS, LIMIT_BYTES = 5.0, 200 * 2**20


@dataclass(frozen=True)
class Built:
    """One process's part.

    Attributes:
      seconds: from the end of capture until it is there.
      peak_bytes: of Python's objects meanwhile; 0 if they were not traced.
      actions, nodes: of the process itself.
    """

    seconds: float
    peak_bytes: int
    actions: int
    nodes: int


class Training:
    """Dense layers in stages, trained by Adam."""

    def __init__(self) -> None:
        self.layers = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(LAYERS)]
        for layer in self.layers:
            layer.build((None, WIDTH))
        self.variables = [variable for layer in self.layers for variable in layer.trainable_variables]
        self.optimizer = keras.optimizers.Adam()
        self.optimizer.build(self.variables)

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """One step; returns the loss."""
        each = LAYERS // STAGES
        with tf.GradientTape() as tape, whale.replica():
            for stage in range(STAGES):
                with whale.stage(name=str(stage)):
                    for layer in self.layers[stage * each :][:each]:
                        x = layer(x)
                    if stage == STAGES - 1:
                        loss = tf.reduce_mean(tf.square(x - y))
        gradients = tape.gradient(loss, self.variables)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        return loss


def made_up(processes: int) -> Session:
    """The devices of so many processes, as `whale.init` would find them: at least one for each stage."""
    each = max(1, STAGES // processes)
    named = (whale.Device.named(f"CPU:{index}", process=rank) for rank in range(processes) for index in range(each))
    cluster = whale.Cluster(tuple(named))
    return Session(cluster, chosen=True)


def build(processes: int, *, traced: bool) -> Built:
    """Builds the part of process 0.

    Args:
      traced: whether memory is measured, which takes longer.
    """
    session, training = made_up(processes), Training()
    batch = tf.zeros([EXAMPLES * MICRO_BATCHES * max(1, processes // STAGES), WIDTH])
    given = take_apart(training.step, (batch, batch), {}, ())
    compiler = parallelize.Compiler(Strategy(micro_batches=MICRO_BATCHES), Options())
    start = 0.0
    resolve = parallelize.resolve

    def resolved(*args: object) -> object:
        nonlocal start
        gc.collect()
        if traced:
            tracemalloc.start()
        start = time.perf_counter()
        return resolve(*args)  # type: ignore[arg-type]

    with mock.patch.object(parallelize, "resolve", resolved):
        parts, _ = parallelize._compile(training.step, given, compiler, session)
    own = localize(parts.program, 0)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] if traced else 0
    tracemalloc.stop()
    calls = sum(node.op == "Call" for node in own.main)
    return Built(seconds, peak, calls, len(own.main))


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=5, steps=1).parse_args()
    whale.init(devices=1)
    sizes = SMALL_PROCESSES if options.small else PROCESSES
    build(sizes[0], traced=False)  # what is imported and cached only once
    rounds = [{count: build(count, traced=False) for count in sizes} for _ in range(options.rounds)]
    memory = {count: build(count, traced=True) for count in sizes}
    print(*_counts(memory), sep="\n")
    names = {count: f"{count} processes" for count in sizes}
    seconds = [Measured(name, tuple(each[count].seconds for each in rounds)) for count, name in names.items()]
    limit = [Measured("limit", (LIMIT_SECONDS,) * options.rounds)]
    last, first = names[sizes[-1]], names[sizes[0]]
    report(
        "Seconds of one process after capture",
        [*seconds, *limit],
        [Claim(last, first, at_most=1.3), Claim(last, "limit", at_most=1.0)],
        SECONDS,
    )
    peaks = [Measured(name, (float(memory[count].peak_bytes),)) for count, name in names.items()]
    report(
        "Bytes of one process after capture",
        [*peaks, Measured("limit", (float(LIMIT_BYTES),))],
        [Claim(last, first, at_most=1.3), Claim(last, "limit", at_most=1.0)],
        MEBIBYTES,
    )


def _counts(memory: dict[int, Built]) -> Sequence[str]:
    return [
        f"{count} processes: {built.actions} actions of its own, {built.nodes / max(1, built.actions):.1f} nodes each"
        for count, built in memory.items()
    ]


if __name__ == "__main__":
    main()
