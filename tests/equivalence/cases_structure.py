"""How a step is called, what it returns, and how its model is built."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    STEPS,
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
)


class Parts(NamedTuple):
    """What a step returns besides its loss."""

    mean: Any
    of_examples: Any
    nothing: None


def nested_structures(scopes: Scopes) -> Training:
    """Dicts, lists, named tuples and None, going in and coming out."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(batch: dict[str, Any], rest: Parts) -> dict[str, Any]:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, batch["x"] + rest.of_examples[0])
            losses = cross_entropies(batch["targets"][0], logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        parts = Parts(tf.reduce_mean(tf.abs(logits)) * rest.mean, losses, None)
        return {"loss": loss, "parts": parts, "lists": [logits, (tf.argmax(logits, 1), None)]}

    batches = [
        ({"x": x, "targets": (y, None)}, Parts(np.float32(3.0), [more], None))
        for (x, y), more in zip(classified(scopes.examples), rows(scopes.examples, seed=9), strict=True)
    ]
    return Training(step, batches, [*blocks, optimizer])


def python_arguments(scopes: Scopes) -> Training:
    """Constants by position, by keyword and by default, of which one changes before the last step."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(
        x: tf.Tensor, y: tf.Tensor, scale: float, power: int = 2, *, kind: str = "plain", decay: bool = False
    ) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = tf.reduce_mean(cross_entropies(y, scopes.through(blocks, x)) ** power) * scale
            if decay:
                loss += 0.01 * tf.add_n([tf.nn.l2_loss(variable) for variable in variables])
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss if kind == "plain" else (loss, scale)

    batches = [(*batch, scale) for batch, scale in zip(classified(scopes.examples), (0.5, 0.5, 2.0), strict=True)]
    return Training(step, batches, [*blocks, optimizer], [{}, {}, {"kind": "both", "decay": True, "power": 1}])


class Affine(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    """A module of raw variables."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = tf.Variable(np.random.normal(scale=0.4, size=(inputs, outputs)).astype(np.float32))
        self.bias = tf.Variable(tf.zeros(outputs))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(tf.matmul(x, self.weight) + self.bias)


def modules(scopes: Scopes) -> Training:
    """tf.Module and tf.Variable with no Keras layer."""
    blocks = [*(Affine(WIDTH, WIDTH) for _ in range(3)), Affine(WIDTH, CLASSES)]
    temperature = tf.Variable(1.5, name="temperature")
    variables = [*variables_of(blocks), temperature]

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x) * temperature)
        descend(variables, tape.gradient(loss, variables))
        return loss

    return Training(step, classified(scopes.examples), [*blocks, temperature])


def annotated_model(scopes: Scopes) -> Training:
    """A functional Keras model with a skip connection, its stages given from outside."""
    inputs = keras.Input((WIDTH,))
    h = first = keras.layers.Dense(WIDTH, activation="tanh", name="block_0")(inputs)
    for i in range(1, 3):
        h = keras.layers.Dense(WIDTH, activation="tanh", name=f"block_{i}")(h)
    outputs = keras.layers.Dense(CLASSES, name="block_3")(keras.layers.Add(name="skip")([h, first]))
    model = keras.Model(inputs, outputs)
    if scopes.stages > 1:
        stages = {f"block_{i}": i * scopes.stages // 4 for i in range(4)}
        whale.annotate(model, {"skip": scopes.stages - 1, **stages})

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, model(x, training=True))

    return training_of(scopes, [model], forward, classified(scopes.examples))


def model_in_one_stage(scopes: Scopes) -> Training:
    """A Sequential model that is one stage, and a loss computed outside all scopes."""
    encoder = [dense(WIDTH) for _ in range(3)]
    head = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(WIDTH, "relu"), keras.layers.Dense(CLASSES)])
    variables = variables_of([*encoder, head])
    optimizer = optimized(keras.optimizers.SGD(0.1), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            with scopes.replica:
                logits = scopes.through([*encoder, head], x)
            loss = cross_entropy(y, logits)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return Training(step, classified(scopes.examples), [*encoder, head, optimizer])


def layer_called_twice(scopes: Scopes) -> Training:
    """One layer twice in one stage, its output feeding itself."""
    blocks = classifier()

    def twice(x: tf.Tensor) -> tf.Tensor:
        return blocks[1](blocks[1](x))

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([blocks[0], twice, *blocks[2:]], x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def convolutions(scopes: Scopes) -> Training:
    """A small conv net on uint8 images: conv, depthwise conv, pooling, dense."""
    blocks = [
        keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, activation="relu")]
        ),
        keras.Sequential(
            [keras.Input((6, 6, 4)), keras.layers.DepthwiseConv2D(3, padding="same"), keras.layers.MaxPooling2D()]
        ),
        keras.Sequential(
            [keras.Input((3, 3, 4)), keras.layers.Conv2D(8, 2, strides=2, padding="same", activation="tanh")]
        ),
        keras.Sequential([keras.Input((2, 2, 8)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]),
    ]
    generator = np.random.default_rng(5)
    images = [generator.integers(0, 256, size=(scopes.examples, 8, 8, 3)).astype(np.uint8) for _ in range(STEPS)]

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through(blocks, tf.cast(x, tf.float32)))

    return training_of(scopes, blocks, forward, list(zip(images, labels(scopes.examples), strict=True)))


def whole_argument(scopes: Scopes) -> Training:
    """Arguments that are no batch: a table that has as many rows as one, and class weights that have fewer."""
    blocks = classifier()

    def forward(x: tf.Tensor, y: tf.Tensor, table: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        prior = tf.reduce_mean(table, axis=0)
        losses = cross_entropies(y, scopes.through(blocks, x + prior))
        return tf.reduce_mean(losses * tf.gather(weights, y))

    def step(x: tf.Tensor, y: tf.Tensor, table: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return usual.step(x, y, table, weights)

    weights = np.linspace(0.5, 1.5, CLASSES).astype(np.float32)
    tables = rows(scopes.examples, seed=4)
    batches = [(*batch, table, weights) for batch, table in zip(classified(scopes.examples), tables, strict=True)]
    usual = training_of(scopes, blocks, forward, batches)
    return Training(step, batches, usual.owners)


def loss_that_is_a_sum(scopes: Scopes) -> Training:
    """reduce_sum in the place of reduce_mean, with outputs that are sums too."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.01, momentum=0.9), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = scopes.through(blocks, x)
            losses = cross_entropies(y, logits)
            loss = tf.reduce_sum(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, losses, tf.reduce_sum(logits**2)

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def evaluation(scopes: Scopes) -> Training:
    """No gradient: metrics are updated over all steps, and their results returned."""
    blocks = classifier()
    loss_mean = keras.metrics.Mean()
    accuracy = keras.metrics.SparseCategoricalAccuracy()

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with scopes.replica:
            logits = scopes.through(blocks, x)
            losses = cross_entropies(y, logits)
            loss_mean.update_state(losses)
            accuracy.update_state(y, logits)
        return {"loss": loss_mean.result(), "accuracy": accuracy.result()}

    return Training(step, classified(scopes.examples), [*blocks, loss_mean, accuracy])


def prediction(scopes: Scopes) -> Training:
    """No gradient and no variable written: outputs of examples, of several types and ranks."""
    blocks = classifier()

    def step(x: tf.Tensor) -> Any:
        with scopes.replica:
            logits = scopes.through(blocks, x)
            values, classes = tf.math.top_k(logits, 2)
        return classes, values, logits > 0, tf.as_string(classes[:, 0]), tf.einsum("bi,bj->bij", logits, logits)

    return Training(step, [(x,) for x in rows(scopes.examples)], blocks)


CASES = (
    Case(nested_structures),
    Case(python_arguments),
    Case(modules),
    Case(annotated_model),
    Case(model_in_one_stage),
    Case(layer_called_twice),
    Case(convolutions),
    Case(whole_argument, whole=("table", "weights")),
    Case(loss_that_is_a_sum, loss="sum"),
    Case(evaluation),
    Case(prediction),
)
