"""Variables that a step writes besides weights, losses that layers add, and random numbers."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.equivalence.harness import Case, Layout, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    WIDTH,
    classified,
    classifier,
    classifying,
    cross_entropies,
    cross_entropy,
    descend,
    optimized,
    training_of,
    variables_of,
)


def metrics(scopes: Scopes) -> Training:
    """Metrics updated in the step, one of them by a loss; results so far are returned."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)
    mean, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
    top = keras.metrics.SparseTopKCategoricalAccuracy(2)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            losses = cross_entropies(y, logits)
            loss = tf.reduce_mean(losses)
            mean.update_state(losses)
            accuracy.update_state(y, logits)
            top.update_state(y, logits)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss, "mean": mean.result(), "accuracy": accuracy.result()}

    return Training(step, classified(scopes.examples), [*blocks, optimizer, mean, accuracy, top])


def metric_of_the_gradient(scopes: Scopes) -> Training:
    """A metric that follows the norm of the gradient and so is updated once per step."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)
    norms = keras.metrics.Mean()

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        gradients = tape.gradient(loss, variables)
        norms.update_state(tf.linalg.global_norm(gradients))
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, norms.result()

    return Training(step, classified(scopes.examples), [*blocks, optimizer, norms])


def confusion_matrix(scopes: Scopes) -> Training:
    """Metrics whose variables are arrays: counts per class, and thresholds of an area under a curve."""
    blocks = classifier()
    overlap, area = keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False), keras.metrics.AUC(num_thresholds=10)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with scopes.replica:
            chances = tf.nn.softmax(scopes.through(blocks, x))
            overlap.update_state(y, chances)
            area.update_state(y == 0, chances[:, 0])
        return overlap.result(), area.result()

    return Training(step, classified(scopes.examples), [*blocks, overlap, area])


def sums_of_examples(scopes: Scopes) -> Training:
    """Variables that add up over examples, as their aggregation says: a float total and an integer count."""
    blocks = classifier()
    variables = variables_of(blocks)
    total = tf.Variable(tf.zeros(CLASSES), trainable=False, aggregation=tf.VariableAggregation.SUM, name="total")
    count = tf.Variable(0, trainable=False, aggregation=tf.VariableAggregation.SUM, name="count")

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            loss = cross_entropy(y, logits)
            total.assign_add(tf.reduce_sum(tf.stop_gradient(logits), axis=0))
            count.assign_add(tf.shape(x)[0])
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, total, count])


def moving_average_of_activations(scopes: Scopes) -> Training:
    """A variable that follows a mean over examples; replicas' values are averaged by their examples."""
    blocks = classifier()
    variables = variables_of(blocks)
    average = tf.Variable(tf.zeros(WIDTH), trainable=False, aggregation=tf.VariableAggregation.MEAN, name="average")

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            h = scopes.through(blocks[:3], x)
            average.assign(0.9 * average + 0.1 * tf.reduce_mean(h, axis=0))
            with scopes.stage_of(3):
                loss = cross_entropy(y, blocks[3](h))
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, average])


def regularization(scopes: Scopes) -> Training:
    """Losses that layers add: of their weights, and of their activations."""
    blocks = classifier(kernel_regularizer=keras.regularizers.L2(0.01), bias_regularizer=keras.regularizers.L1(0.01))

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        entropy = cross_entropy(y, scopes.through(blocks, x))
        return entropy + tf.add_n([loss for block in blocks for loss in block.losses])

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def average_of_weights(scopes: Scopes) -> Training:
    """Weights averaged by hand, weighted by a counter, with a copy of the first kernel before its update returned."""
    blocks = classifier()
    variables = variables_of(blocks)
    averages = [tf.Variable(variable, trainable=False, name="average") for variable in variables]
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        before = tf.identity(variables[0].value)
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        count = tf.cast(optimizer.iterations.value, tf.float32)
        for average, variable in zip(averages, variables, strict=True):
            average.assign((average * count + variable) / (count + 1))
        return loss, before, tf.identity(variables[0].value)

    return Training(step, classified(scopes.examples), [*blocks, *averages, optimizer])


def noise_on_gradients(scopes: Scopes) -> Training:
    """Stateless random numbers in the update, seeded by the step: the same ones however examples are divided."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        noisy = []
        for i, gradient in enumerate(tape.gradient(loss, variables)):
            seed = tf.stack([tf.constant(i, tf.int64), tf.cast(optimizer.iterations.value, tf.int64)])
            noisy.append(gradient + 0.01 * tf.random.stateless_normal(gradient.shape, seed))
        optimizer.apply_gradients(zip(noisy, variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def noise_on_activations(scopes: Scopes) -> Training:
    """Stateless random numbers in the forward: one device's, where there is one replica and one micro-batch."""
    blocks = classifier()
    seed = tf.Variable([3, 0], trainable=False, name="seed")
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            h = scopes.through(blocks[:2], x)
            noise = tf.random.stateless_normal(tf.shape(h), seed)
            loss = cross_entropy(y, scopes.through(blocks[2:], h + 0.1 * noise, first=2))
        descend(variables, tape.gradient(loss, variables))
        seed.assign_add([0, 1])
        return loss

    return Training(step, classified(scopes.examples), [*blocks, seed])


def constraints(scopes: Scopes) -> Training:
    """Constraints of layers: weights are projected after each update."""
    constraint = keras.constraints.MaxNorm(0.8)
    return classifying(scopes, keras.optimizers.SGD(0.1), kernel_constraint=constraint)


ONE_PASS = (Layout(), Layout(stages=2), Layout(stages=4, schedule="zero_bubble"))
CASES = (
    Case(metrics),
    Case(metric_of_the_gradient),
    Case(confusion_matrix),
    Case(sums_of_examples),
    # Along the micro-batches of a replica such an average moves once for each, which one device does not.
    Case(moving_average_of_activations, allows=lambda layout: layout.micro_batches == 1),
    Case(regularization),
    Case(average_of_weights),
    Case(noise_on_gradients),
    Case(noise_on_activations, layouts=ONE_PASS),
    Case(constraints),
)
