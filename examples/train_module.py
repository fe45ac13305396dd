"""Trains a hand-written tf.Module, without Keras, in a pipeline of two stages with four micro-batches.

    python examples/train_module.py

What to look at: nothing here is a layer or an optimizer that whale_tf could know. The step is a function of tensors and
variables; velocities and weights are written with `assign` and `assign_sub`, once per step, each on the device of its
stage. The data are the 569 tumours of the Wisconsin study: 30 measurements each, benign or malignant.
"""

from __future__ import annotations

import argparse

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import whale_tf as whale


class Layer(tf.Module):
    """An affine map: [batch, inputs] to [batch, outputs]."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        scale = (2 / inputs) ** 0.5
        self.weight = tf.Variable(scale * tf.random.stateless_normal([inputs, outputs], [seed, 0]), name="weight")
        self.bias = tf.Variable(tf.zeros([outputs]), name="bias")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, self.weight) + self.bias


class Classifier(tf.Module):
    """A network of two stages; its output is the logit of `benign`, [batch]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lower = [Layer(inputs, width, seed=1), Layer(width, width, seed=2)]
        self.upper = [Layer(width, width, seed=3), Layer(width, 1, seed=4)]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        with whale.stage(name="lower"):
            for layer in self.lower:
                x = tf.nn.relu(layer(x))
        with whale.stage(name="upper"):
            return tf.squeeze(self.upper[1](tf.nn.relu(self.upper[0](x))), axis=1)


def main() -> None:
    """Trains, printing a loss now and then, then tests and shows the schedule."""
    options = read_options()
    whale.init(devices=2)
    x, x_test, y, y_test = measurements()
    model = Classifier(x.shape[1], options.width)
    velocities = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in model.trainable_variables]

    @whale.function(micro_batches=4)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(x)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, velocity, gradient in zip(model.trainable_variables, velocities, gradients, strict=True):
            velocity.assign(options.momentum * velocity + gradient)
            variable.assign_sub(options.rate * velocity)
        return loss

    random = np.random.default_rng(20)
    for i in range(1, options.steps + 1):
        chosen = random.choice(len(x), options.batch, replace=False)
        loss = step(tf.constant(x[chosen]), tf.constant(y[chosen]))
        if i == 1 or i % max(1, options.steps // 6) == 0:
            print(f"step {i:4}   loss {float(loss):.4f}")

    print(step.plan)
    print(step.schedule)
    right = (model(tf.constant(x_test)).numpy() > 0) == (y_test > 0)
    print(f"test accuracy {np.mean(right):.1%} of {len(y_test)} tumours")


def measurements() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x [examples, 30], x for the test, y [examples], y for the test.

    Each measurement is scaled so that in the training part its mean is 0 and its standard deviation 1.
    """
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=169, random_state=20)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    return x.astype(np.float32), x_test.astype(np.float32), y.astype(np.float32), y_test.astype(np.float32)


def read_options() -> argparse.Namespace:
    """The command line; the defaults take some seconds on two cores."""
    parser = argparse.ArgumentParser(
        description="Trains a hand-written tf.Module in a two-stage pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=120, help="training steps")
    parser.add_argument("--batch", type=int, default=64, help="examples in a global batch")
    parser.add_argument("--width", type=int, default=32, help="size of the hidden layers")
    parser.add_argument("--rate", type=float, default=0.03, help="learning rate")
    parser.add_argument("--momentum", type=float, default=0.9, help="how much of the velocity is kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
