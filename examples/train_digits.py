"""Trains a convolutional network on handwritten digits with data parallelism: one `with` line around the forward pass.

    python examples/train_digits.py

What to look at: layers with state. Dropout draws other masks on each replica, BatchNormalization's moving averages and
the metric's counts are merged, and a second step gives one prediction per example, in order, for a batch of any size.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import whale_tf as whale


def main() -> None:
    """Trains, printing loss and metric of each epoch, then tests."""
    options = read_options()
    whale.init(devices=options.devices)
    keras.utils.set_random_seed(20)
    images, digits = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    x, x_test, y, y_test = train_test_split(images, digits.astype(np.int32), test_size=450, random_state=20)

    model = network()
    optimizer = keras.optimizers.Adam(2e-3)
    optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    seen_right = keras.metrics.SparseCategoricalAccuracy()

    @whale.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            with whale.replica():
                logits = model(x, training=True)
                loss = cross_entropy(y, logits)
                seen_right.update_state(y, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @whale.function
    def predict_step(x: tf.Tensor) -> tf.Tensor:
        with whale.replica():
            return tf.argmax(model(x, training=False), axis=-1)

    for epoch in range(1, options.epochs + 1):
        seen_right.reset_state()
        losses = [float(train_step(*batch)) for batch in shuffled(x, y, options.batch, seed=epoch)]
        print(
            f"epoch {epoch:2}   loss {np.mean(losses):.3f}   accuracy while training {float(seen_right.result()):.1%}"
        )

    print(train_step.plan)
    predicted = predict_step(tf.constant(x_test)).numpy()
    print(f"test accuracy {np.mean(predicted == y_test):.1%} of {len(y_test)} digits")


def network() -> keras.Model:
    """Logits [batch, 10] of images [batch, 8, 8, 1]."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10),
        ],
        name="digits",
    )


def shuffled(x: np.ndarray, y: np.ndarray, batch: int, *, seed: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """One epoch of whole batches; the few examples that are left over wait for another epoch."""
    order = np.random.default_rng(seed).permutation(len(x))
    for start in range(0, len(x) - batch + 1, batch):
        chosen = order[start : start + batch]
        yield tf.constant(x[chosen]), tf.constant(y[chosen])


def read_options() -> argparse.Namespace:
    """The command line; the defaults take well under a minute on two cores."""
    parser = argparse.ArgumentParser(
        description="Trains a convolutional network on handwritten digits, replicated over devices.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=12, help="times through the training images")
    parser.add_argument("--batch", type=int, default=64, help="examples in a global batch")
    parser.add_argument("--devices", type=int, default=2, help="devices, one replica each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
