"""Operations that are easy to get wrong: tables, checks, strings, complex numbers, sparse and ragged values, Python."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.cases_stages import embedding
from tests.equivalence.harness import Case, Layout, Scopes, Training
from tests.equivalence.models import (
    CLASSES,
    LENGTH,
    STEPS,
    WIDTH,
    WORDS,
    classified,
    classifier,
    cross_entropies,
    cross_entropy,
    dense,
    descend,
    labels,
    rows,
    training_of,
    variables_of,
    words,
)


def lookup_table(scopes: Scopes) -> Training:
    """Strings that a table of the step turns into numbers, in the first stage."""
    vocabulary = [f"word {i}" for i in range(WORDS)]
    initializer = tf.lookup.KeyValueTensorInitializer(vocabulary, tf.range(WORDS))
    numbered, table = tf.lookup.StaticHashTable(initializer, default_value=0), embedding()
    blocks = [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def forward(text: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            h = tf.reduce_mean(table(numbered.lookup(text)), axis=1)
        return cross_entropy(y, scopes.through(blocks, h, first=1))

    texts = [np.array(vocabulary)[batch].astype(object) for batch in words(scopes.examples)]
    return training_of(scopes, [table, *blocks], forward, list(zip(texts, labels(scopes.examples), strict=True)))


def large_constant(scopes: Scopes) -> Training:
    """A fixed projection of more than a megabyte that stands in the step as an array."""
    projection = np.random.default_rng(4).normal(scale=0.1, size=(WIDTH, 40_000)).astype(np.float32)
    blocks = [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def projected(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x @ projection)[:, :WIDTH] + tf.reduce_mean(projection, axis=1)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([projected, *blocks], x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def checks(scopes: Scopes) -> Training:
    """Assertions and checks of numbers, on examples and on the gradient; all of them hold."""
    blocks = classifier()
    variables = variables_of(blocks)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        tf.debugging.assert_less(y, CLASSES)
        with tf.GradientTape() as tape, scopes.replica:
            logits = tf.debugging.check_numerics(scopes.through(blocks, x), "logits")
            loss = cross_entropy(y, logits)
            tf.debugging.assert_non_negative(loss)
        gradients = tape.gradient(loss, variables)
        tf.debugging.assert_positive(tf.linalg.global_norm(gradients))
        descend(variables, gradients)
        return loss

    return Training(step, classified(scopes.examples), blocks)


def attention_layer(scopes: Scopes) -> Training:
    """Keras' own attention, with a mask of each example and a causal one."""
    attention = keras.layers.MultiHeadAttention(2, WIDTH // 2)
    attention.build((None, LENGTH, WIDTH), (None, LENGTH, WIDTH))
    table, blocks = embedding(), [keras.layers.LayerNormalization(), dense(CLASSES, activation=None)]
    blocks[0].build((None, LENGTH, WIDTH))

    def forward(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            h = table(tokens)
        with scopes.stage_of(1):
            h += attention(h, h, attention_mask=(tokens > 0)[:, None], use_causal_mask=True)
        with scopes.stage_of(2):
            h = blocks[0](h)
        with scopes.stage_of(3):
            return cross_entropy(y, blocks[1](tf.reduce_max(h, axis=1)))

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return training_of(scopes, [table, attention, *blocks], forward, batches)


def complex_numbers(scopes: Scopes) -> Training:
    """A Fourier transform whose complex values go from one stage to the next, and a solved system of equations."""
    blocks = classifier()
    mix = dense(WIDTH, use_bias=False, kernel_initializer="orthogonal")

    def first(x: tf.Tensor) -> tf.Tensor:
        return tf.signal.fft(tf.cast(blocks[0](x), tf.complex64))

    def second(h: tf.Tensor) -> tf.Tensor:
        system = 2 * tf.eye(WIDTH) + mix.kernel
        return blocks[1](tf.transpose(tf.linalg.solve(system, tf.transpose(tf.math.real(h) - tf.math.imag(h)))))

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([first, second, *blocks[2:]], x))

    return training_of(scopes, [*blocks, mix], forward, classified(scopes.examples))


def double_precision(scopes: Scopes) -> Training:
    """float64 all the way, except for a head in float32."""
    blocks = [*(dense(WIDTH, dtype="float64") for _ in range(3)), dense(CLASSES, activation=None)]

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through(blocks, x))

    batches = [(x.astype(np.float64), y) for x, y in classified(scopes.examples)]
    return training_of(scopes, blocks, forward, batches)


def ragged_rows(scopes: Scopes) -> Training:
    """Rows of unequal length that are made in the step, whose number of values differs between parts."""
    table, blocks = embedding(), [dense(WIDTH), dense(WIDTH), dense(CLASSES, activation=None)]

    def forward(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            ragged = tf.RaggedTensor.from_tensor(tokens, padding=0)
            vectors = tf.gather(table.embeddings.value, ragged.values)
            h = tf.math.segment_sum(vectors, ragged.value_rowids())
        return cross_entropy(y, scopes.through(blocks, h, first=1))

    filled = [np.sort(batch, axis=1)[:, ::-1].copy() for batch in words(scopes.examples)]
    return training_of(scopes, [table, *blocks], forward, list(zip(filled, labels(scopes.examples), strict=True)))


def chosen_examples(scopes: Scopes) -> Training:
    """The loss only takes examples that a mask chooses; how many those are is known when the step runs."""
    blocks = classifier()

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        logits = scopes.through(blocks, x)
        chosen = tf.boolean_mask(cross_entropies(y, logits), y > 0)
        return tf.reduce_sum(chosen) / tf.cast(tf.shape(y)[0], tf.float32)

    return training_of(scopes, blocks, forward, classified(scopes.examples))


def python_in_the_step(scopes: Scopes) -> Training:
    """Python code that runs with the step: labels are looked up by tf.numpy_function."""
    blocks = classifier()
    swapped = np.arange(CLASSES)[::-1].astype(np.int32)

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        wanted = tf.ensure_shape(tf.numpy_function(lambda values: swapped[values], [y], tf.int32), [None])
        return cross_entropy(wanted, scopes.through(blocks, x))

    return training_of(scopes, blocks, forward, classified(scopes.examples))


class Trainer:
    """A step that is a method, and keeps what it trains in attributes."""

    def __init__(self, scopes: Scopes) -> None:
        self.scopes, self.blocks = scopes, classifier()

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """One step of gradient descent."""
        variables = variables_of(self.blocks)
        with tf.GradientTape() as tape, self.scopes.replica:
            loss = cross_entropy(y, self.scopes.through(self.blocks, x))
        descend(variables, tape.gradient(loss, variables))
        return loss


def method(scopes: Scopes) -> Training:
    """A bound method in the place of a function."""
    trainer = Trainer(scopes)
    return Training(trainer.step, classified(scopes.examples), trainer.blocks)


def unused_parts(scopes: Scopes) -> Training:
    """An argument nobody uses, a result nobody uses, and a block whose output does not reach the loss."""
    blocks, idle = classifier(), dense(WIDTH)

    def forward(x: tf.Tensor, y: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        with scopes.stage_of(0):
            idle(x)
        return cross_entropy(y, scopes.through(blocks, x))

    others = rows(scopes.examples, 2, seed=9)
    batches = [(*batch, other) for batch, other in zip(classified(scopes.examples), others, strict=True)]
    training = training_of(scopes, blocks, forward, batches)
    return Training(training.step, training.batches, [*training.owners, idle])


def images_of_changing_size(scopes: Scopes) -> Training:
    """Dims besides the batch that change from step to step."""
    conv, head = keras.layers.Conv2D(WIDTH, 3, padding="same"), dense(CLASSES, activation=None)
    conv.build((None, None, None, 3))
    blocks = [conv, tf.nn.relu, lambda h: tf.reduce_mean(h, axis=[1, 2]), head]
    generator = np.random.default_rng(5)
    sizes = [(scopes.examples, 4 + 2 * k, 6, 3) for k in (0, 1, 0)]
    images = [generator.normal(size=size).astype(np.float32) for size in sizes][:STEPS]

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through(blocks, x))

    return training_of(scopes, [conv, head], forward, list(zip(images, labels(scopes.examples), strict=True)))


CASES = (
    Case(lookup_table),
    Case(
        lookup_table,
        layouts=(Layout(replicas=2), Layout(replicas=4, stages=2, examples=13)),
        name="lookup_table_without_micro_batches",
    ),
    Case(large_constant),
    Case(
        large_constant,
        layouts=(Layout(replicas=2, micro_batches=2, examples=13),),
        name="large_constant_in_uneven_parts",
    ),
    Case(checks),
    Case(attention_layer),
    Case(complex_numbers),
    Case(double_precision),
    Case(ragged_rows),
    Case(chosen_examples),
    Case(method),
    Case(unused_parts),
    Case(images_of_changing_size),
)
