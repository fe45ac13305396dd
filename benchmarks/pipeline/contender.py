"""One contender, in a process of its own with all cores: makes the model and its step, and takes steps in its turns.

python -m benchmarks.pipeline.contender {whale,unrolled,looped} [--small] [--schedule 1f1b]
"""

from __future__ import annotations

import argparse

import tensorflow as tf

import whale_tf as whale
from benchmarks.groups import serve
from benchmarks.measure import SMALL
from benchmarks.model import Size, StepFunction, Training, pipelined, tokens

STAGES = 2
MICRO_BATCHES = 8


def _loss_and_gradients(training: Training, x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        loss = training.loss(x, y) / MICRO_BATCHES
    gradients = tape.gradient(loss, training.variables)
    return [loss, *(tf.convert_to_tensor(gradient) for gradient in gradients)]  # an embedding's is dense in a sum


def unrolled_step(training: Training) -> StepFunction:
    """Accumulation as a Python loop: the trace holds every micro-batch; TensorFlow may run parts of them at once."""

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        pairs = zip(tf.split(x, MICRO_BATCHES), tf.split(y, MICRO_BATCHES), strict=True)
        parts = [_loss_and_gradients(training, *pair) for pair in pairs]
        loss, *gradients = [tf.add_n(terms) for terms in zip(*parts, strict=True)]
        training.update(gradients)
        return loss

    compiled: StepFunction = tf.function(step)
    return compiled


def looped_step(training: Training) -> StepFunction:
    """Accumulation as a `tf.while_loop`: the trace holds one micro-batch."""

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        xs, ys = tf.stack(tf.split(x, MICRO_BATCHES)), tf.stack(tf.split(y, MICRO_BATCHES))

        def accumulate(i: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            terms = _loss_and_gradients(training, xs[i], ys[i])
            return [i + 1, *(total + term for total, term in zip(sums, terms, strict=True))]

        zeros = [tf.zeros(()), *(tf.zeros(variable.shape) for variable in training.variables)]
        _, loss, *gradients = tf.while_loop(
            lambda i, *_: i < MICRO_BATCHES, accumulate, [tf.constant(0), *zeros], maximum_iterations=MICRO_BATCHES
        )
        training.update(gradients)
        return loss

    compiled: StepFunction = tf.function(step)
    return compiled


def whale_step(size: Size, schedule: str) -> StepFunction:
    """Two stages of equal depth."""
    whale.init(devices=STAGES)
    return pipelined(Training(size, parts=STAGES), MICRO_BATCHES, schedule)


def main() -> None:
    """Serves turns until the benchmark ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=["whale", "unrolled", "looped"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--schedule", default="1f1b", help="whale's schedule")
    options = parser.parse_args()
    size = SMALL if options.small else Size()
    if options.contender == "whale":
        step = whale_step(size, options.schedule)
    else:
        step = (unrolled_step if options.contender == "unrolled" else looped_step)(Training(size))
    x, y = tokens(size)
    serve({"step": lambda: step(x, y)})


if __name__ == "__main__":
    main()
