"""Loops and branches: on tensors, around variables, in the forward and in the update, by hand and by AutoGraph."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.cases_stages import embedding
from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    LENGTH,
    WIDTH,
    classified,
    classifier,
    cross_entropy,
    dense,
    descend,
    labels,
    optimized,
    rows,
    training_of,
    variables_of,
    words,
)


def sequences(examples: int) -> list[tuple[Any, ...]]:
    """For each step, rows [examples, LENGTH, WIDTH] and labels."""
    return list(zip(rows(examples, LENGTH, WIDTH), labels(examples), strict=True))


def while_loop(scopes: Scopes) -> Training:
    """A loop on tensors only, in the second block's stage."""
    blocks = classifier()

    def iterated(h: tf.Tensor) -> tf.Tensor:
        loop = tf.while_loop(lambda i, value: i < 3, lambda i, value: (i + 1, tf.tanh(value * 1.1 - 0.1)), (0, h))
        return blocks[1](loop[1])

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([blocks[0], iterated, *blocks[2:]], x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def while_loop_with_variables(scopes: Scopes) -> Training:
    """The body multiplies by a weight that it captures, written as AutoGraph would have it."""
    weight = tf.Variable(np.random.normal(scale=0.4, size=(WIDTH, WIDTH)).astype(np.float32), name="weight")
    blocks = classifier()
    variables = [weight, *variables_of(blocks)]

    def iterated(h: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(3):
            h = tf.tanh(tf.matmul(h, weight))
        return blocks[1](h)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through([blocks[0], iterated, *blocks[2:]], x))
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), [weight, *blocks])


def branches(scopes: Scopes) -> Training:
    """A branch by the number of the step, around weights; another by a scalar argument, around tensors."""
    blocks, other = classifier(), dense(WIDTH, activation="relu")
    owners = [*blocks, other]
    variables = variables_of(owners)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor, strong: tf.Tensor) -> tf.Tensor:
        even = optimizer.iterations.value % 2 == 0

        def branch(h: tf.Tensor) -> tf.Tensor:
            return tf.cond(even, lambda: blocks[1](h), lambda: other(h))

        def scaled(h: tf.Tensor) -> tf.Tensor:
            return blocks[2](tf.cond(strong, lambda: 2.0 * h, lambda: tf.sin(h)))

        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through([blocks[0], branch, scaled, blocks[3]], x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    batches = [
        (*batch, np.array(strong))
        for batch, strong in zip(classified(scopes.examples), (True, False, True), strict=True)
    ]
    return Training(step, batches, [*owners, optimizer])


def automatic_branches(scopes: Scopes) -> Training:
    """`if` and `break` on tensors, turned into graph by AutoGraph."""
    blocks = classifier()
    count = tf.Variable(0, name="count", trainable=False)
    variables = variables_of(blocks)

    def branch(h: tf.Tensor) -> tf.Tensor:
        if count > 1:
            h = tf.abs(h)
        elif count > 0:
            h = -h
        return blocks[1](h)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through([blocks[0], branch, *blocks[2:]], x))
        descend(variables, tape.gradient(loss, variables))
        rate = 1.0
        for _ in tf.range(5):
            rate *= 0.9
            if rate < 0.8:
                break
        count.assign_add(1)
        return loss * rate

    return Training(step, classified(scopes.examples), [*blocks, count])


def array_of_tensors(scopes: Scopes) -> Training:
    """A recurrence that writes each position into a TensorArray."""
    cell, blocks = dense(WIDTH, 2 * WIDTH), [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def unrolled(x: tf.Tensor) -> tf.Tensor:
        array = tf.TensorArray(tf.float32, size=LENGTH)
        state = tf.zeros_like(x[:, 0])
        for i in tf.range(LENGTH):
            state = cell(tf.concat([x[:, i], state], axis=1))
            array = array.write(i, state)
        return tf.reduce_mean(tf.transpose(array.stack(), [1, 0, 2]), axis=1)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([unrolled, *blocks], x))

    return training_of(scopes, [cell, *blocks], forward, sequences(scopes.examples))


def mapped_examples(scopes: Scopes) -> Training:
    """tf.map_fn over the examples of a batch, and tf.scan over positions, whose lengths differ between parts."""
    blocks = classifier()

    def mapped(x: tf.Tensor) -> tf.Tensor:
        squares = tf.map_fn(lambda one: tf.matmul(one, one, transpose_a=True)[0] / LENGTH, x)
        last = tf.scan(lambda state, now: 0.5 * state + now, tf.transpose(x, [1, 0, 2]))[-1]
        return blocks[0](squares + last)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([mapped, *blocks[1:]], x))

    return training_of(scopes, blocks, forward, sequences(scopes.examples))


def lstm(scopes: Scopes) -> Training:
    """Embedding, a masked LSTM, a GRU, a classifier."""
    table = embedding()
    layers = [keras.layers.LSTM(WIDTH, return_sequences=True), keras.layers.GRU(WIDTH), dense(CLASSES, activation=None)]
    layers[0].build((None, LENGTH, WIDTH))
    layers[1].build((None, LENGTH, WIDTH))

    def forward(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            h, mask = table(tokens), tokens > 0
        with scopes.stage_of(1):
            h = layers[0](h, mask=mask)
        return cross_entropy(y, scopes.through(layers[1:], h, first=2))

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return training_of(scopes, [table, *layers], forward, batches, optimizer=keras.optimizers.Adam(0.01))


def accumulation_by_hand(scopes: Scopes) -> Training:
    """Gradients added up in variables; every second step a branch applies and clears them."""
    blocks = classifier()
    variables = variables_of(blocks)
    sums = [tf.Variable(tf.zeros(variable.shape), trainable=False, name="sum") for variable in variables]
    count = tf.Variable(0, trainable=False, name="count")

    def apply() -> tf.Tensor:
        descend(variables, [total / 2 for total in sums])
        for total in sums:
            total.assign(tf.zeros_like(total))
        return tf.constant(1)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        for total, gradient in zip(sums, tape.gradient(loss, variables), strict=True):
            total.assign_add(gradient)
        applied = tf.cond(count.assign_add(1) % 2 == 0, apply, lambda: tf.constant(0))
        return loss, applied

    return Training(step, classified(scopes.examples), [*blocks, *sums, count])


def skipped_update(scopes: Scopes) -> Training:
    """The update is left out where the gradient is too long: once below the limit, and twice above."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor, limit: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        gradients = tape.gradient(loss, variables)
        norm = tf.linalg.global_norm(gradients)
        if norm < limit:
            descend(variables, gradients)
        return loss, norm

    limits = [np.float32(limit) for limit in (1e-3, 1e3, 1e-3)]
    batches = [(*batch, limit) for batch, limit in zip(classified(scopes.examples), limits, strict=True)]
    return Training(step, batches, blocks)


CASES = (
    Case(while_loop),
    Case(while_loop_with_variables),
    Case(branches),
    Case(automatic_branches),
    Case(array_of_tensors),
    Case(mapped_examples),
    Case(lstm),
    Case(accumulation_by_hand),
    Case(skipped_update),
)
