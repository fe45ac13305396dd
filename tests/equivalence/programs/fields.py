"""Programs whose losses have terms of their own: a physics-informed network, autoencoders, a custom train_step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Scopes, Training
from tests.equivalence.models import CLASSES, WIDTH, classified, dense, optimized, rows
from tests.equivalence.programs.adversaries import network
from tests.equivalence.programs.precision import float64

LATENT = 2


def physics_informed_network(scopes: Scopes) -> Training:
    """Burgers' equation: first and second derivatives by inputs are in the loss, and are differentiated."""
    with float64():
        model = network(2, WIDTH, WIDTH, 1)
        optimizer = optimized(keras.optimizers.Adam(0.01), model.trainable_variables)

    def residual(points: tf.Tensor) -> tf.Tensor:
        time, place = points[:, :1], points[:, 1:]
        with tf.GradientTape() as second:
            second.watch(place)
            with tf.GradientTape(persistent=True) as first:
                first.watch([time, place])
                u = model(tf.concat([time, place], axis=1))
            by_time, by_place = first.gradient(u, time), first.gradient(u, place)
        return by_time + u * by_place - 0.01 * second.gradient(by_place, place)

    def step(points: tf.Tensor, border: tf.Tensor, values: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            inside = tf.reduce_mean(residual(points) ** 2)
            outside = tf.reduce_mean((model(border) - values) ** 2)
            loss = inside + outside
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, inside, outside

    points, border = rows(scopes.examples, 2), rows(scopes.examples, 2, seed=4)
    batches = [
        (np.float64(inner), np.float64(outer), -np.sin(np.float64(outer[:, 1:])))
        for inner, outer in zip(points, border, strict=True)
    ]
    return Training(step, batches, [model, optimizer])


def autoencoder(scopes: Scopes, *, seeded: bool) -> Training:
    """A VAE: reconstruction and divergence, the noise an argument or drawn from a seed."""
    with float64():
        encoder, decoder = network(WIDTH, WIDTH, 2 * LATENT), network(LATENT, WIDTH, WIDTH)
        variables = [*encoder.trainable_variables, *decoder.trainable_variables]
        optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, noise: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            mean, log_variance = tf.split(encoder(x), 2, axis=1)
            if seeded:
                noise = tf.random.stateless_normal(tf.shape(mean), [7, 8], dtype=tf.float64)
            found = decoder(mean + tf.exp(0.5 * log_variance) * noise)
            reconstruction = tf.reduce_mean(tf.reduce_sum((found - x) ** 2, axis=1))
            divergence = -0.5 * tf.reduce_mean(tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance), axis=1))
            loss = reconstruction + divergence
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss, "reconstruction": reconstruction, "divergence": divergence, "code": mean}

    noise = rows(scopes.examples, LATENT, seed=11)
    batches = [tuple(map(np.float64, batch)) for batch in zip(rows(scopes.examples), noise, strict=True)]
    return Training(step, batches, [encoder, decoder, optimizer])


def variational_autoencoder(scopes: Scopes) -> Training:
    """Its noise is an argument, and cut as the examples are."""
    return autoencoder(scopes, seeded=False)


def variational_autoencoder_with_a_seed(scopes: Scopes) -> Training:
    """Its noise is stateless: the same for the whole batch, however that is cut."""
    return autoencoder(scopes, seeded=True)


class Custom(keras.Sequential):  # type: ignore[misc]  # Keras has no types
    """A model with the train_step of the Keras guide."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=logits)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, logits)
        return {metric.name: metric.result() for metric in self.metrics}


def custom_train_step(scopes: Scopes) -> Training:
    """A compiled model, regularized; the metrics of compile() make their variables in the first call."""
    body = dense(WIDTH, kernel_regularizer=keras.regularizers.L2(0.01))
    model = Custom([keras.Input((WIDTH,)), body, dense(CLASSES, activation=None)])
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["sparse_categorical_accuracy"],
    )

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with scopes.replica:
            return model.train_step((x, y))

    return Training(step, classified(scopes.examples), [model, model.optimizer, *model.metrics])


PROGRAMS = (
    physics_informed_network,
    variational_autoencoder,
    variational_autoencoder_with_a_seed,
    custom_train_step,
)
