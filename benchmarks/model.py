"""The model all benchmarks train: a causal transformer on random tokens, written as a user of Keras writes it.

    tokens: [batch, length] → Embed → Block × layers → Head → logits: [batch, length, vocabulary]

The layers come as `parts`, runs of consecutive layers, so that each can go into a stage of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import keras
import tensorflow as tf

import whale_tf as whale

HEADS = 4
SEED = 20

StepFunction = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Size:
    """How large the model and its global batch are; the default is what the claims are stated for."""

    layers: int = 4
    width: int = 256
    length: int = 128
    vocabulary: int = 4096
    batch: int = 16

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, sequence {self.length}, vocabulary {self.vocabulary}, "
            f"Adam, global batch {self.batch}"
        )


class Embed(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Tokens and positions as vectors: [batch, length] → [batch, length, width]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = keras.layers.Embedding(size.vocabulary, size.width)
        self.positions = keras.layers.Embedding(size.length, size.width)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.tokens.build(input_shape)
        self.positions.build(input_shape[1:])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.tokens(x) + self.positions(tf.range(tf.shape(x)[1]))


class Block(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Causal attention and a feed-forward layer, each normalized before and added after."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm = keras.layers.LayerNormalization()
        self.attention = keras.layers.MultiHeadAttention(HEADS, size.width // HEADS)
        self.feed_norm = keras.layers.LayerNormalization()
        self.expand = keras.layers.Dense(4 * size.width, activation="gelu")
        self.contract = keras.layers.Dense(size.width)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.feed_norm.build(input_shape)
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.expand.units))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        h = self.attention_norm(x)
        x = x + self.attention(h, h, use_causal_mask=True)
        return x + self.contract(self.expand(self.feed_norm(x)))


def transformer(size: Size, *, parts: int = 1, cuts: Sequence[int] | None = None) -> list[keras.Sequential]:
    """The built model as runs of layers; the same weights at each call.

    Args:
      parts: the number of runs, among which the blocks are dealt evenly.
      cuts: in the place of `parts`, before which blocks a new run begins.
    """
    keras.utils.set_random_seed(SEED)
    blocks = [Block(size) for _ in range(size.layers)]
    inner = cuts if cuts is not None else [size.layers * part // parts for part in range(1, parts)]
    runs: list[list[keras.layers.Layer]] = [blocks[low:high] for low, high in pairwise([0, *inner, size.layers])]
    runs[0] = [Embed(size), *runs[0]]
    runs[-1] = [*runs[-1], keras.layers.LayerNormalization(), keras.layers.Dense(size.vocabulary)]
    built = [keras.Sequential(run) for run in runs]
    for index, part in enumerate(built):
        part.build((None, size.length) if index == 0 else (None, size.length, size.width))
    return built


def loss_of(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The mean over examples of each one's mean over its tokens."""
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))


def tokens(size: Size) -> tuple[tf.Tensor, tf.Tensor]:
    """A global batch: tokens and the tokens that follow them, [batch, length] each; the same at each call."""
    generator = tf.random.Generator.from_seed(SEED)
    drawn = generator.uniform((size.batch, size.length + 1), maxval=size.vocabulary, dtype=tf.int32)
    return drawn[:, :-1], drawn[:, 1:]


class Training:
    """A model and its optimizer, both built."""

    def __init__(self, size: Size, *, parts: int = 1, cuts: Sequence[int] | None = None) -> None:
        self.parts = transformer(size, parts=parts, cuts=cuts)
        self.variables = list(chain.from_iterable(part.trainable_variables for part in self.parts))
        self.optimizer = keras.optimizers.Adam(1e-3)
        self.optimizer.build(self.variables)

    def loss(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """Of one forward through all parts."""
        for part in self.parts:
            x = part(x, training=True)
        return loss_of(x, y)

    def update(self, gradients: Sequence[tf.Tensor]) -> None:
        """Applies one gradient per variable."""
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """A training step as one writes it for one device."""
        with tf.GradientTape() as tape:
            loss = self.loss(x, y)
        self.update(tape.gradient(loss, self.variables))
        return loss


def replicated(training: Training, replicas: int) -> whale.Step:
    """The same step with its forward in `replica`."""

    @whale.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica(replicas):
            loss = training.loss(x, y)
        training.update(tape.gradient(loss, training.variables))
        return loss

    return step


def distributed(strategy: tf.distribute.Strategy, size: Size) -> StepFunction:
    """The same step as the guide of a strategy of `tf.distribute` shows it; takes the parts of its replicas."""
    with strategy.scope():
        training = Training(size)

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:  # the optimizer sums the gradients over replicas
            loss = training.loss(x, y) / strategy.num_replicas_in_sync
        training.update(tape.gradient(loss, training.variables))
        return loss

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        losses = strategy.run(replica_step, args=(x, y))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    compiled: StepFunction = tf.function(step)
    return compiled


def pipelined(training: Training, micro_batches: int, schedule: str = "1f1b") -> whale.Step:
    """The same step with each part of the model in a `stage`."""

    @whale.function(micro_batches=micro_batches, schedule=schedule)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            for part in training.parts[:-1]:
                with whale.stage():
                    x = part(x, training=True)
            with whale.stage():
                loss = loss_of(training.parts[-1](x, training=True), y)
        training.update(tape.gradient(loss, training.variables))
        return loss

    return step
