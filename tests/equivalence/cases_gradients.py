"""How gradients are taken: several tapes and updates, gradients of gradients, slices, custom gradients."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.cases_stages import embedding
from tests.equivalence.harness import Case, Layout, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    WIDTH,
    classified,
    classifier,
    cross_entropies,
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


def persistent_tape(scopes: Scopes) -> Training:
    """One tape, two losses, two gradients, two optimizers over different variables."""
    blocks, other_head = classifier(), dense(1, activation=None)
    first = variables_of(blocks)
    second = variables_of([blocks[0], other_head])
    adam, sgd = optimized(keras.optimizers.Adam(0.01), first), optimized(keras.optimizers.SGD(0.1), second)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape, scopes.replica:
            h = scopes.through(blocks[:3], x)
            with scopes.stage_of(3):
                entropy = cross_entropy(y, blocks[3](h))
                squared = tf.reduce_mean((other_head(h)[:, 0] - tf.cast(y, tf.float32)) ** 2)
        of_entropy = tape.gradient(entropy, first)
        of_squared = tape.gradient(squared, second)
        del tape
        adam.apply_gradients(zip(of_entropy, first, strict=True))
        sgd.apply_gradients(zip(of_squared, second, strict=True))
        return entropy, squared

    return Training(step, classified(scopes.examples), [*blocks, other_head, adam, sgd])


def several_gradient_calls(scopes: Scopes) -> Training:
    """tf.gradients, gradients added up from two calls, gradients returned, and a variable that has none."""
    blocks, unused = classifier(), dense(2)
    variables = variables_of([*blocks, unused])
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            entropy = cross_entropy(y, logits)
            size = 0.1 * tf.reduce_mean(logits**2)
        values = [variable.value for variable in variables]
        with_zeros = tape.gradient(entropy, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        with_nones = tape.gradient(size, values)
        both = [a if b is None else a + b for a, b in zip(with_zeros, with_nones, strict=True)]
        optimizer.apply_gradients(zip(both, variables, strict=True))
        return entropy, both[0], tf.linalg.global_norm(with_nones)

    return Training(step, classified(scopes.examples), [*blocks, unused, optimizer])


def tf_gradients(scopes: Scopes) -> Training:
    """tf.gradients in the place of a tape."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        gradients = tf.gradients(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def gradient_of_examples(scopes: Scopes) -> Training:
    """No update: what each input contributes to its own score, [examples, width]."""
    blocks = classifier()

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            tape.watch(x)
            score = tf.reduce_max(scopes.through(blocks, x), axis=1)
        return tape.gradient(score, x), score

    return Training(step, [(x,) for x in rows(scopes.examples)], blocks)


def adversarial_hidden(scopes: Scopes) -> Training:
    """The last stage takes an inner gradient of its own, and trains on inputs moved along its sign."""
    blocks = classifier()

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        h = scopes.through(blocks[:3], x)
        with scopes.stage_of(3):
            with tf.GradientTape() as inner:
                inner.watch(h)
                losses = cross_entropies(y, blocks[3](h))
            moved = h + 0.1 * tf.sign(inner.gradient(losses, h))
            return tf.reduce_mean(losses) + cross_entropy(y, blocks[3](tf.stop_gradient(moved)))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


@tf.custom_gradient
def reversed_gradient(x: tf.Tensor) -> Any:
    """The same forward, the opposite direction backward."""
    return tf.identity(x), lambda gradient: -0.5 * gradient


def custom_gradient(scopes: Scopes) -> Training:
    """Domain adaptation: a head whose gradient is reversed before it reaches the features."""
    blocks, domain = classifier(), dense(1, activation=None)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        h = scopes.through(blocks[:3], x)
        with scopes.stage_of(3):
            guess = domain(reversed_gradient(h))[:, 0]
            return cross_entropy(y, blocks[3](h)) + tf.reduce_mean((guess - tf.cast(y > 2, tf.float32)) ** 2)

    return training_of(scopes, [*blocks, domain], forward, classified(scopes.examples))


def recompute_grad(scopes: Scopes) -> Training:
    """Two blocks whose activations TensorFlow computes again in the backward."""
    first = [tf.Variable(np.random.normal(scale=0.4, size=(WIDTH, WIDTH)).astype(np.float32)) for _ in range(2)]
    blocks = classifier()[2:]
    variables = [*first, *variables_of(blocks)]

    def recomputed(weight: tf.Variable) -> Any:
        return tf.recompute_grad(lambda x: tf.tanh(tf.matmul(x, weight)))

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through([*map(recomputed, first), *blocks], x))
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), [*first, *blocks])


def recomputing_custom_gradient(scopes: Scopes) -> Training:
    """A block whose own gradient takes one of a forward that it computes again, with a tape of its own."""
    blocks = classifier()

    @tf.custom_gradient
    def recomputed(h: tf.Tensor) -> Any:
        def backward(upstream: tf.Tensor, variables: Any = None) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(h)
                again = blocks[1](h)
            of_h, *of_weights = tape.gradient(again, [h, *variables], output_gradients=upstream)
            return of_h, of_weights

        return blocks[1](h), backward

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([blocks[0], recomputed, *blocks[2:]], x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def jacobian_of_the_loss(scopes: Scopes) -> Training:
    """tape.jacobian in the place of tape.gradient: of one number they are the same."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        descend(variables, tape.jacobian(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), blocks)


def contractive(scopes: Scopes) -> Training:
    """A penalty on each example's Jacobian of the last block, and that Jacobian as an output."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            h = scopes.through(blocks[:3], x)
            with scopes.stage_of(3):
                with tf.GradientTape() as inner:
                    inner.watch(h)
                    logits = tf.tanh(blocks[3](h))
                jacobian = inner.batch_jacobian(logits, h)
                loss = cross_entropy(y, logits) + tf.reduce_mean(jacobian**2)
        descend(variables, tape.gradient(loss, variables))
        return loss, jacobian

    return Training(step, classified(scopes.examples), blocks)


def gradients_of_each_example(scopes: Scopes) -> Training:
    """DP-SGD: the gradient of each example is clipped before the mean, by tape.jacobian and by tf.vectorized_map."""
    first, second = (tf.Variable(np.random.normal(size=(WIDTH, CLASSES)).astype(np.float32)) for _ in range(2))

    def of_one(example: Any) -> tf.Tensor:
        x, y = example
        with tf.GradientTape() as tape:
            loss = cross_entropy(y[tf.newaxis], x[tf.newaxis] @ second)
        return tf.clip_by_norm(tape.gradient(loss, second), 1.0)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            losses = cross_entropies(y, x @ first)
        clipped = tf.clip_by_norm(tape.jacobian(losses, first), 1.0, axes=[1, 2])
        first.assign_sub(0.1 * tf.reduce_mean(clipped, axis=0))
        second.assign_sub(0.1 * tf.reduce_mean(tf.vectorized_map(of_one, (x, y)), axis=0))
        return tf.reduce_mean(losses)

    return Training(step, classified(scopes.examples), [first, second])


def slices(scopes: Scopes) -> Training:
    """An Embedding whose gradient stays slices up to the optimizer, with words that occur twice."""
    table, blocks = embedding(), [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def forward(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            h = tf.reduce_mean(table(tokens), axis=1)
        return cross_entropy(y, scopes.through(blocks, h, first=1))

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return training_of(scopes, [table, *blocks], forward, batches, optimizer=keras.optimizers.Adagrad(0.1))


def scattered_slices(scopes: Scopes) -> Training:
    """tf.nn.embedding_lookup, whose gradient's rows are subtracted by hand."""
    table = tf.Variable(np.random.normal(scale=0.3, size=(11, WIDTH)).astype(np.float32), name="table")
    blocks = [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            with scopes.stage_of(0):
                h = tf.reduce_mean(tf.nn.embedding_lookup(table, tokens), axis=1)
            loss = cross_entropy(y, scopes.through(blocks, h, first=1))
        of_table, of_blocks = tape.gradient(loss, [table, variables])
        table.scatter_sub(tf.IndexedSlices(0.1 * of_table.values, of_table.indices))
        optimizer.apply_gradients(zip(of_blocks, variables, strict=True))
        return loss

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return Training(step, batches, [table, *blocks, optimizer])


def nested_function(scopes: Scopes) -> Training:
    """The tape, the scopes and the update stand in tf.functions that the step calls, one of them twice."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    @tf.function
    def middle(h: tf.Tensor) -> tf.Tensor:
        return blocks[1](h)

    @tf.function
    def loss_and_gradients(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through([blocks[0], lambda h: middle(middle(h)), *blocks[2:]], x))
        return loss, tape.gradient(loss, variables)

    @tf.function
    def update(gradients: list[tf.Tensor]) -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        loss, gradients = loss_and_gradients(x, y)
        update(gradients)
        return loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


CASES = (
    Case(persistent_tape),
    Case(several_gradient_calls),
    Case(tf_gradients),
    Case(gradient_of_examples),
    Case(adversarial_hidden),
    Case(custom_gradient),
    Case(recompute_grad),
    Case(recomputing_custom_gradient),
    Case(jacobian_of_the_loss),
    Case(contractive),
    Case(gradients_of_each_example, layouts=(Layout(),)),
    Case(slices),
    Case(scattered_slices),
    Case(nested_function),
)
