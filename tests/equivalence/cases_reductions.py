"""What is computed from means and sums over the batch: outputs, variables, and the size of the batch itself."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    WIDTH,
    classified,
    classifier,
    cross_entropies,
    cross_entropy,
    descend,
    optimized,
    variables_of,
)


def functions_of_means(scopes: Scopes) -> Training:
    """Perplexity, a root of a mean square, and a logarithm of a largest number, as outputs."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            loss = cross_entropy(y, logits)
            perplexity = tf.exp(loss)
            root = tf.sqrt(tf.reduce_mean((logits[:, 0] - tf.cast(y, tf.float32)) ** 2))
            largest = tf.math.log(tf.reduce_max(tf.abs(logits)))
        descend(variables, tape.gradient(loss, variables))
        return loss, perplexity, {"root": root, "largest": 2.0 * largest + 1.0}

    return Training(step, classified(scopes.examples), blocks)


def quotients_of_sums(scopes: Scopes) -> Training:
    """Accuracy by hand, a mean over the examples that a mask chooses, precision, recall and F1, as outputs."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            losses = cross_entropies(y, logits)
            loss = tf.reduce_mean(losses)
            guess = tf.argmax(logits, axis=1, output_type=tf.int32)
            ones = tf.ones_like(losses)
            accuracy = tf.reduce_sum(tf.cast(guess == y, tf.float32)) / tf.reduce_sum(ones)
            mask = tf.cast(y > 1, tf.float32)
            masked = tf.math.divide_no_nan(tf.reduce_sum(losses * mask), tf.reduce_sum(mask))
            hits = tf.reduce_sum(tf.cast((guess > 1) & (y > 1), tf.float32))
            precision = tf.math.divide_no_nan(hits, tf.reduce_sum(tf.cast(guess > 1, tf.float32)))
            recall = hits / tf.maximum(tf.reduce_sum(mask), 1.0)
        descend(variables, tape.gradient(loss, variables))
        harmonic = tf.math.divide_no_nan(2 * precision * recall, precision + recall)
        return loss, accuracy, masked, precision, recall, harmonic

    return Training(step, classified(scopes.examples), blocks)


def counted_examples(scopes: Scopes) -> Training:
    """Variables that count examples by the size of the batch, as Python and as the graph know it."""
    blocks = classifier()
    variables = variables_of(blocks)
    seen, fraction = tf.Variable(0, trainable=False, name="seen"), tf.Variable(0.0, trainable=False, name="fraction")

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        seen.assign_add(tf.shape(x)[0])
        fraction.assign_add(x.shape[0] / 100)
        descend(variables, tape.gradient(loss, variables))
        return loss, seen.value(), tf.shape(x)[0]

    return Training(step, classified(scopes.examples), [*blocks, seen, fraction])


def rate_by_the_size_of_the_batch(scopes: Scopes) -> Training:
    """The linear scaling rule: a learning rate in proportion to the size of the batch."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        size = tf.cast(tf.shape(x)[0], tf.float32)
        gradients = tape.gradient(loss, variables)
        descend(variables, [0.1 * size * gradient for gradient in gradients])
        return loss

    return Training(step, classified(scopes.examples), blocks)


def metric_of_this_step(scopes: Scopes) -> Training:
    """Metrics that are reset at the start of the step and so only know its batch."""
    blocks = classifier()
    variables = variables_of(blocks)
    mean, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        mean.reset_state()
        accuracy.reset_state()
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            losses = cross_entropies(y, logits)
            loss = tf.reduce_mean(losses)
            mean.update_state(losses)
            accuracy.update_state(y, logits)
        descend(variables, tape.gradient(loss, variables))
        return loss, mean.result(), accuracy.result()

    return Training(step, classified(scopes.examples), [*blocks, mean, accuracy])


def variables_that_follow_reductions(scopes: Scopes) -> Training:
    """The last loss, its root and a vector of means, assigned; the largest and smallest numbers so far, and a total."""
    blocks = classifier()
    variables = variables_of(blocks)
    last, root, largest, smallest, total, losses = (
        tf.Variable(0.0, trainable=False, name=name)
        for name in ("last", "root", "largest", "smallest", "total", "losses")
    )
    means = tf.Variable(tf.zeros(WIDTH), trainable=False, name="means")

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            loss = cross_entropy(y, logits)
        last.assign(loss)
        root.assign(tf.sqrt(loss))
        means.assign(tf.reduce_mean(x, axis=0))
        losses.assign_add(loss)
        total.assign_add(tf.reduce_sum(x))
        largest.assign(tf.maximum(largest, tf.reduce_max(x)))
        smallest.assign(tf.minimum(smallest, tf.reduce_min(x)))
        descend(variables, tape.gradient(loss, variables))
        return loss

    owners = [*blocks, last, root, means, losses, total, largest, smallest]
    return Training(step, classified(scopes.examples), owners)


def decayed_by_what_was_seen(scopes: Scopes) -> Training:
    """The learning rate follows a sum over all examples before this step, which the step then adds to."""
    blocks = classifier()
    variables = variables_of(blocks)
    seen = tf.Variable(1.0, trainable=False, name="seen")
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        before = seen.read_value()
        seen.assign_add(tf.reduce_sum(tf.abs(x)))
        gradients = [gradient / before for gradient in tape.gradient(loss, variables)]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, seen, optimizer])


def time_major(scopes: Scopes) -> Training:
    """Outputs whose second or last dim is the batch."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            loss = cross_entropy(y, logits)
        descend(variables, tape.gradient(loss, variables))
        return loss, tf.transpose(logits), tf.stack([x, 2 * x]), tf.stack([y, y])[tf.newaxis]

    return Training(step, classified(scopes.examples), blocks)


CASES = (
    Case(functions_of_means),
    Case(quotients_of_sums),
    Case(counted_examples),
    Case(rate_by_the_size_of_the_batch),
    Case(metric_of_this_step),
    Case(variables_that_follow_reductions),
    Case(decayed_by_what_was_seen),
    Case(time_major),
)
