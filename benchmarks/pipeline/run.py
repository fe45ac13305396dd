"""A pipeline in one process: 2 stages × 8 micro-batches against hand-written gradient accumulation on one device.

Two peers accumulate, one in a Python loop that the trace unrolls and one in a `tf.while_loop`; the claim is against the
faster.
"""

from __future__ import annotations

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SMALL, Claim, alternate, arguments, report, timed, warm_up
from benchmarks.model import Size, StepFunction, Training, pipelined, tokens

STAGES = 2
MICRO_BATCHES = 8
TOLERANCE = 1e-2  # Keras' Adam squares a token's occurrences one by one, but in a dense sum their total


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


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "", rounds=15, steps=5)
    parser.add_argument("--schedule", default="1f1b", help="whale's schedule")
    options = parser.parse_args()
    whale.init(devices=STAGES)
    size = SMALL if options.small else Size()
    x, y = tokens(size)
    ours = pipelined(Training(size, parts=STAGES), MICRO_BATCHES, options.schedule)
    unrolled, looped = unrolled_step(Training(size)), looped_step(Training(size))
    steps = {
        "unrolled loop": lambda: unrolled(x, y),
        "whale": lambda: ours(x, y),
        "while loop": lambda: looped(x, y),
    }
    warm_up(steps, tolerance=TOLERANCE)
    measured = alternate(
        {name: timed(step) for name, step in steps.items()}, rounds=options.rounds, steps=options.steps
    )
    peer = min((one for one in measured if one.name != "whale"), key=lambda one: one.median)
    title = f"Pipeline, {STAGES} stages x {MICRO_BATCHES} micro-batches, {options.schedule}: {size}"
    report(title, measured, [Claim("whale", peer.name, at_most=1.05)])


if __name__ == "__main__":
    main()
