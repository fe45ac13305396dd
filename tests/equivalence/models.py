"""Small models and batches that the cases are made of, always the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Scopes, Training

STEPS = 3
WIDTH = 8
CLASSES = 5
WORDS = 11
LENGTH = 6


def rows(examples: int, *shape: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """For each step, normal numbers [examples, *shape]; without a shape, [examples, WIDTH]."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(examples, *(shape or (WIDTH,)))).astype(np.float32) for _ in range(STEPS)]


def labels(examples: int, *, classes: int = CLASSES, seed: int = 1) -> list[np.ndarray[Any, Any]]:
    """For each step, class numbers [examples]."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, classes, size=examples).astype(np.int32) for _ in range(STEPS)]


def words(examples: int, *, length: int = LENGTH, seed: int = 2) -> list[np.ndarray[Any, Any]]:
    """For each step, word numbers [examples, length]; the first of each example is never 0."""
    generator = np.random.default_rng(seed)
    found = [generator.integers(0, WORDS, size=(examples, length)).astype(np.int32) for _ in range(STEPS)]
    for batch in found:
        batch[:, 0] = np.maximum(batch[:, 0], 1)
    return found


def classified(examples: int, *shape: int) -> list[tuple[Any, ...]]:
    """For each step, rows and their labels."""
    return list(zip(rows(examples, *shape), labels(examples), strict=True))


def dense(units: int, inputs: int = WIDTH, activation: str | None = "tanh", **options: Any) -> Any:
    """A built Dense layer."""
    layer = keras.layers.Dense(units, activation=activation, **options)
    layer.build((None, inputs))
    return layer


def classifier(**options: Any) -> list[Any]:
    """Four Dense layers from rows to logits."""
    return [*(dense(WIDTH, **options) for _ in range(3)), dense(CLASSES, activation=None, **options)]


def variables_of(layers: Sequence[Any]) -> list[Any]:
    """The trainable variables of all layers, in order and each once."""
    found = {id(variable): variable for layer in layers for variable in layer.trainable_variables}
    return list(found.values())


def cross_entropies(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The loss of each example, never in half precision."""
    precise = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, precise)


def cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The mean loss."""
    return tf.reduce_mean(cross_entropies(y, logits))


def optimized(optimizer: Any, variables: Sequence[Any]) -> Any:
    """The optimizer, with slots for these variables."""
    optimizer.build(list(variables))
    return optimizer


def descend(variables: Sequence[Any], gradients: Sequence[tf.Tensor], rate: float = 0.1) -> None:
    """Plain gradient descent by hand."""
    for variable, gradient in zip(variables, gradients, strict=True):
        weight = variable.value if isinstance(variable, keras.Variable) else variable
        weight.assign_sub(rate * gradient)


def training_of(
    scopes: Scopes,
    blocks: Sequence[Any],
    forward: Callable[..., tf.Tensor],
    batches: Sequence[tuple[Any, ...]],
    *,
    optimizer: Any = None,
) -> Training:
    """The usual step: `forward` gives the loss of a batch, inside the replica scope; all of `blocks` is trained."""
    variables = variables_of(blocks)
    optimizer = optimized(optimizer or keras.optimizers.SGD(0.1, momentum=0.9), variables)

    def step(*batch: Any) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = forward(*batch)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return Training(step, batches, [*blocks, optimizer])


def classifying(scopes: Scopes, optimizer: Any = None, **options: Any) -> Training:
    """The usual step for a classifier of Dense layers with these options."""
    blocks = classifier(**options)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through(blocks, x))

    return training_of(scopes, blocks, forward, classified(scopes.examples), optimizer=optimizer)
