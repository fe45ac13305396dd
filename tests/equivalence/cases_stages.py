"""What crosses stages besides one activation: skips, masks, tied weights, several losses, frozen parts."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    WIDTH,
    WORDS,
    classified,
    classifier,
    cross_entropies,
    cross_entropy,
    dense,
    labels,
    optimized,
    rows,
    training_of,
    variables_of,
    words,
)


def embedding() -> Any:
    """A built Embedding of words."""
    layer = keras.layers.Embedding(
        WORDS, WIDTH, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=3)
    )
    layer.build((None, None))
    return layer


def skip_connections(scopes: Scopes) -> Training:
    """The first block's output is used by the second and by the last."""
    blocks = [dense(WIDTH), dense(WIDTH), dense(WIDTH), dense(CLASSES, 2 * WIDTH, activation=None)]

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            first = blocks[0](x)
        with scopes.stage_of(1):
            second = blocks[1](first) + first
        with scopes.stage_of(2):
            third = blocks[2](second)
        with scopes.stage_of(3):
            logits = blocks[3](tf.concat([third, first], axis=1))
        return cross_entropy(y, logits)

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def masks(scopes: Scopes) -> Training:
    """Integers and booleans that the first stage makes and later stages use; floats that they do not differentiate."""
    table, blocks = embedding(), [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def forward(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            mask = tokens > 0
            lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
            h = table(tokens)
        with scopes.stage_of(1):
            h = tf.where(mask[:, :, None], blocks[0](h), 0.0)
        with scopes.stage_of(2):
            h = blocks[1](h) * tf.cast(mask, tf.float32)[:, :, None]
        with scopes.stage_of(3):
            logits = blocks[2](tf.reduce_sum(h, axis=1) / tf.cast(lengths, tf.float32)[:, None])
            losses = cross_entropies((y + lengths) % CLASSES, logits)
        return tf.reduce_mean(losses)

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return training_of(scopes, [table, *blocks], forward, batches)


def tied_weights(scopes: Scopes) -> Training:
    """The embedding of the first stage is the output layer of the last: its gradient is slices plus a matrix."""
    table, blocks = embedding(), [dense(WIDTH), dense(WIDTH)]

    def forward(tokens: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            h = table(tokens[:, :-1])
        h = scopes.through(blocks, h, first=1)
        with scopes.stage_of(3):
            logits = tf.einsum("blw,vw->blv", h, table.embeddings)
            losses = cross_entropies(tokens[:, 1:], logits)
        return tf.reduce_mean(losses)

    optimizer = keras.optimizers.Adam(0.01)
    return training_of(scopes, [table, *blocks], forward, [(x,) for x in words(scopes.examples)], optimizer=optimizer)


def layer_in_two_stages(scopes: Scopes) -> Training:
    """One Dense layer called in the second stage and again in the last."""
    blocks = classifier()

    def again(h: tf.Tensor) -> tf.Tensor:
        return blocks[3](blocks[1](h))

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([*blocks[:3], again], x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def several_losses(scopes: Scopes) -> Training:
    """Two inputs that enter at different stages, a head in the middle and one at the end; all parts are returned."""
    left, right, middle = dense(WIDTH), dense(WIDTH, 3), dense(1, activation=None)
    last, blocks = dense(CLASSES, 2 * WIDTH, activation=None), [dense(WIDTH)]
    owners = [left, right, middle, last, *blocks]
    variables = variables_of(owners)
    optimizer = optimized(keras.optimizers.RMSprop(0.01), variables)

    def step(inputs: dict[str, tf.Tensor], targets: tuple[tf.Tensor, tf.Tensor]) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            with scopes.stage_of(0):
                h = left(inputs["left"])
            with scopes.stage_of(1):
                h = blocks[0](h)
                squared = tf.reduce_mean((middle(h)[:, 0] - targets[1]) ** 2)
            with scopes.stage_of(2):
                other = right(inputs["right"])
            with scopes.stage_of(3):
                entropy = cross_entropy(targets[0], last(tf.concat([h, other], axis=1)))
                loss = entropy + 0.5 * squared
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss, "squared": squared, "entropy": entropy}

    count = scopes.examples
    parts = zip(rows(count), rows(count, 3, seed=3), labels(count), rows(count, 1, seed=5), strict=True)
    batches = [({"left": a, "right": b}, (y, z[:, 0])) for a, b, y, z in parts]
    return Training(step, batches, [*owners, optimizer])


def frozen_teacher(scopes: Scopes) -> Training:
    """Distillation: the teacher's stages hold weights that nobody trains, and its last layer is excluded by hand."""
    teacher, student = classifier(), classifier()
    for layer in teacher[:3]:
        layer.trainable = False
    variables = variables_of(student)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            wanted = tf.stop_gradient(scopes.through(teacher, x))
            logits = scopes.through(student, x)
            distance = tf.reduce_mean((tf.nn.softmax(wanted / 2) - tf.nn.softmax(logits / 2)) ** 2)
            loss = distance + cross_entropy(y, logits)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, distance

    return Training(step, classified(scopes.examples), [*teacher, *student, optimizer])


def frozen_first_stage(scopes: Scopes) -> Training:
    """Fine-tuning: only the last two blocks are trained, so the first stages have no backward."""
    blocks = classifier()
    variables = variables_of(blocks[2:])
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape, scopes.replica:
            tape.watch([variable.value for variable in variables])
            loss = cross_entropy(y, scopes.through(blocks, x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def weighted_examples(scopes: Scopes) -> Training:
    """A weight per example, and outputs that come from the first, a middle and the last stage."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            with scopes.stage_of(0):
                h = blocks[0](x)
                size = tf.norm(h, axis=1)
            middle = scopes.through(blocks[1:3], h, first=1)
            with scopes.stage_of(3):
                logits = blocks[3](middle)
                loss = tf.reduce_mean(weight * cross_entropies(y, logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return size, tf.reduce_mean(middle), tf.argmax(logits, axis=1), loss

    weights = [np.abs(weight[:, 0]) for weight in rows(scopes.examples, 1, seed=6)]
    batches = [(*batch, weight) for batch, weight in zip(classified(scopes.examples), weights, strict=True)]
    return Training(step, batches, [*blocks, optimizer])


CASES = (
    Case(skip_connections),
    Case(masks),
    Case(tied_weights),
    Case(layer_in_two_stages),
    Case(several_losses),
    Case(frozen_teacher),
    Case(frozen_first_stage),
    Case(weighted_examples),
)
