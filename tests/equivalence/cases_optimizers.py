"""Every optimizer, and what optimizers do besides: clipping, averages, decay, schedules, loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    classified,
    classifier,
    classifying,
    cross_entropies,
    cross_entropy,
    descend,
    optimized,
    rows,
    variables_of,
)


def with_optimizer(make: Callable[[], Any], name: str, tolerance: float = 1e-5) -> Case:
    """The usual classifier with an optimizer."""
    return Case(lambda scopes: classifying(scopes, make()), name=name, tolerance=tolerance)


def manual_sgd(scopes: Scopes) -> Training:
    """assign_sub of every gradient, and a counter of steps that is returned."""
    blocks = classifier()
    variables = variables_of(blocks)
    count = tf.Variable(0, dtype=tf.int64, name="count")

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        descend(variables, tape.gradient(loss, variables))
        return loss, count.assign_add(1)

    return Training(step, classified(scopes.examples), [*blocks, count])


def clip_by_global_norm(scopes: Scopes) -> Training:
    """Clipped by hand; the norm over all stages is returned, and it is above the limit in each step."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), 0.1)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"loss": loss, "norm": norm, "clipped": tf.linalg.global_norm(gradients)}

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def learning_rate_schedule(scopes: Scopes) -> Training:
    """Warm-up and decay; the rate of each step is returned."""
    schedule = keras.optimizers.schedules.CosineDecay(0.01, decay_steps=4, warmup_target=0.1, warmup_steps=2)
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(schedule), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        rate = tf.identity(optimizer.learning_rate)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, rate

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def loss_scale(inner: Callable[[], Any], name: str) -> Case:
    """The weights of the second batch let its gradients overflow: that update is left out, and the scale falls."""

    def build(scopes: Scopes) -> Training:
        blocks = classifier()
        variables = variables_of(blocks)
        optimizer = optimized(
            keras.optimizers.LossScaleOptimizer(inner(), initial_scale=1024.0, dynamic_growth_steps=1), variables
        )
        weights = [abs(weight) for weight in rows(scopes.examples, 1)]
        weights[1][-1] = 1e38

        def step(x: tf.Tensor, y: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape, scopes.replica:
                loss = tf.reduce_mean(cross_entropies(y, scopes.through(blocks, x)) * weight[:, 0])
                scaled = optimizer.scale_loss(loss)
            optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
            return loss

        batches = [(*batch, weight) for batch, weight in zip(classified(scopes.examples), weights, strict=True)]
        return Training(step, batches, [*blocks, optimizer])

    return Case(build, name=name)


def mixed_float16(scopes: Scopes) -> Training:
    """Layers that compute in float16, their loss scaled."""
    blocks = classifier(dtype="mixed_float16")
    variables = variables_of(blocks)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=64.0, dynamic_growth_steps=2
    )
    optimizer = optimized(optimizer, variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def mixed_bfloat16(scopes: Scopes) -> Training:
    """Layers that compute in bfloat16."""
    return classifying(scopes, keras.optimizers.SGD(0.1), dtype="mixed_bfloat16")


def two_optimizers(scopes: Scopes) -> Training:
    """Kernels by Adam, biases by SGD, from one gradient call."""
    blocks = classifier()
    kernels = [variable for variable in variables_of(blocks) if variable.name == "kernel"]
    biases = [variable for variable in variables_of(blocks) if variable.name == "bias"]
    adam, sgd = optimized(keras.optimizers.Adam(0.01), kernels), optimized(keras.optimizers.SGD(0.1), biases)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        of_kernels, of_biases = tape.gradient(loss, [kernels, biases])
        adam.apply_gradients(zip(of_kernels, kernels, strict=True))
        sgd.apply_gradients(zip(of_biases, biases, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, adam, sgd])


OPTIMIZERS = keras.optimizers
LOSS_SCALES = (
    loss_scale(lambda: OPTIMIZERS.Adam(0.01), "loss_scale"),
    loss_scale(lambda: OPTIMIZERS.SGD(0.1, momentum=0.9), "loss_scale_momentum"),
    loss_scale(lambda: OPTIMIZERS.Adam(0.01, global_clipnorm=0.1), "loss_scale_clipped"),
    loss_scale(
        lambda: OPTIMIZERS.SGD(
            0.1, momentum=0.9, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2
        ),
        "loss_scale_accumulated",
    ),
)
CASES = (
    with_optimizer(lambda: OPTIMIZERS.SGD(0.1), "sgd"),
    with_optimizer(lambda: OPTIMIZERS.SGD(0.1, momentum=0.9, nesterov=True), "nesterov"),
    with_optimizer(lambda: OPTIMIZERS.RMSprop(0.01, momentum=0.5, centered=True), "rmsprop"),
    with_optimizer(lambda: OPTIMIZERS.Adam(0.01, amsgrad=True), "adam"),
    with_optimizer(lambda: OPTIMIZERS.AdamW(0.01, weight_decay=0.1), "adamw"),
    with_optimizer(lambda: OPTIMIZERS.Adagrad(0.1), "adagrad"),
    with_optimizer(lambda: OPTIMIZERS.Adadelta(1.0), "adadelta"),
    with_optimizer(lambda: OPTIMIZERS.Nadam(0.01), "nadam"),
    with_optimizer(lambda: OPTIMIZERS.Lamb(0.01), "lamb"),
    with_optimizer(lambda: OPTIMIZERS.Adafactor(0.01), "adafactor"),
    with_optimizer(lambda: OPTIMIZERS.Lion(0.001), "lion"),
    with_optimizer(lambda: OPTIMIZERS.Ftrl(0.1, l1_regularization_strength=0.01), "ftrl"),
    with_optimizer(lambda: OPTIMIZERS.SGD(0.1, clipvalue=0.01), "clipvalue"),
    with_optimizer(lambda: OPTIMIZERS.SGD(0.1, clipnorm=0.05), "clipnorm"),
    with_optimizer(lambda: OPTIMIZERS.Adam(0.01, global_clipnorm=0.1), "global_clipnorm"),
    with_optimizer(lambda: OPTIMIZERS.Adam(0.01, use_ema=True, ema_momentum=0.9), "moving_average_of_weights"),
    with_optimizer(
        lambda: OPTIMIZERS.SGD(0.1, use_ema=True, ema_overwrite_frequency=2), "weights_overwritten_by_average"
    ),
    with_optimizer(lambda: OPTIMIZERS.Adam(0.01, gradient_accumulation_steps=2), "accumulated_over_steps"),
    Case(manual_sgd),
    Case(clip_by_global_norm),
    Case(learning_rate_schedule),
    *LOSS_SCALES,
    # A weight's gradient is a sum over examples in half precision: each micro-batch's is rounded at 2^-11, or 2^-8.
    Case(mixed_float16, tolerance=2e-3),
    Case(mixed_bfloat16, tolerance=2e-2),
    Case(two_optimizers),
)
