"""Gradients with respect to examples, which the loss goes through, the step returns, or a sum is made of."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    LENGTH,
    WIDTH,
    classified,
    classifier,
    cross_entropies,
    cross_entropy,
    dense,
    descend,
    rows,
    training_of,
    variables_of,
)


def penalty_on_time_major(scopes: Scopes) -> Training:
    """A gradient penalty on sequences [time, examples, width], of which dim 1 is the batch."""
    blocks = [dense(WIDTH), dense(WIDTH), dense(WIDTH), dense(1, activation=None)]

    def forward(x: tf.Tensor) -> tf.Tensor:
        h = scopes.through(blocks[:3], x)
        with scopes.stage_of(3):
            sequences = tf.transpose(h, [1, 0, 2])
            with tf.GradientTape() as inner:
                inner.watch(sequences)
                scores = tf.reduce_mean(tf.tanh(blocks[3](sequences)), axis=[0, 2])
            slopes = inner.gradient(scores, sequences)
            lengths = tf.sqrt(tf.reduce_sum(slopes**2, axis=[0, 2]) + 1e-6)
            return tf.reduce_mean(scores) + tf.reduce_mean((lengths - 1.0) ** 2)

    return training_of(scopes, blocks, forward, [(x,) for x in rows(scopes.examples, LENGTH, WIDTH)])


def inner_gradient_of_a_mean(scopes: Scopes) -> Training:
    """The last stage differentiates its mean loss by each example, which holds one over the size of the batch."""
    blocks = classifier()

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        h = scopes.through(blocks[:3], x)
        with scopes.stage_of(3):
            with tf.GradientTape() as inner:
                inner.watch(h)
                loss = cross_entropy(y, blocks[3](h))
            slopes = inner.gradient(loss, h)
            return loss + tf.reduce_mean(tf.reduce_sum(tf.abs(slopes), axis=1)) + tf.reduce_mean(slopes**2)

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def returned_gradient_of_a_mean(scopes: Scopes) -> Training:
    """The mean loss differentiated by its inputs and by its weights; both gradients are returned."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape, scopes.replica:
            tape.watch(x)
            loss = cross_entropy(y, scopes.through(blocks, x))
        of_inputs, of_weights = tape.gradient(loss, [x, variables])
        del tape
        descend(variables, of_weights)
        return loss, of_inputs, tf.norm(of_inputs, axis=1), of_weights[0]

    return Training(step, classified(scopes.examples), blocks)


def negated_sum(scopes: Scopes) -> Training:
    """A likelihood to be raised: minus the sum of its logarithms over the examples."""
    blocks = classifier()

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return -tf.reduce_sum(-cross_entropies(y, scopes.through(blocks, x)))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def half_a_sum(scopes: Scopes) -> Training:
    """Half the sum of squares over the examples, the gradient by the inputs returned beside it."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            tape.watch(x)
            logits = scopes.through(blocks, x)
            loss = 0.5 * tf.reduce_sum((logits - tf.one_hot(y, 5)) ** 2)
        of_inputs, of_weights = tape.gradient(loss, [x, variables])
        descend(variables, of_weights, 0.01)
        return loss, of_inputs

    return Training(step, classified(scopes.examples), blocks)


CASES = (
    Case(penalty_on_time_major),
    Case(inner_gradient_of_a_mean),
    Case(returned_gradient_of_a_mean),
    Case(negated_sum, loss="sum"),
    Case(half_a_sum, loss="sum"),
)
