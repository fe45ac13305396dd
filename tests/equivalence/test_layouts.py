"""One small transformer under every layout: replicas, stages, micro-batches, schedules, uneven batches and shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.equivalence.harness import Case, Layout, Scopes, Training, check
from tests.equivalence.models import LENGTH, STEPS, WIDTH, WORDS, cross_entropies, dense, training_of

SCHEDULES = ("1f1b", "gpipe", "interleaved", "zero_bubble")
DEVICES = 8
HEADS = 2


class Block(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Causal self-attention and a dense layer, each with a residual; [examples, LENGTH, WIDTH] in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention, self.projection = (
            dense(3 * WIDTH, activation=None, use_bias=False),
            dense(WIDTH, activation=None),
        )
        self.wide, self.narrow = dense(2 * WIDTH, activation="gelu"), dense(WIDTH, 2 * WIDTH, activation=None)
        self.before.build((None, LENGTH, WIDTH))
        self.between.build((None, LENGTH, WIDTH))
        self.built = True

    def call(self, h: tf.Tensor) -> tf.Tensor:
        parts = tf.reshape(self.attention(self.before(h)), [-1, LENGTH, 3, HEADS, WIDTH // HEADS])
        query, key, value = tf.unstack(parts, axis=2)
        scores = tf.einsum("bihd,bjhd->bhij", query, key) / (WIDTH // HEADS) ** 0.5
        later = np.triu(np.full([LENGTH, LENGTH], -1e9, np.float32), 1)
        mixed = tf.einsum("bhij,bjhd->bihd", tf.nn.softmax(scores + later), value)
        h += self.projection(tf.reshape(mixed, [-1, LENGTH, WIDTH]))
        return h + self.narrow(self.wide(self.between(h)))


class Words(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Embedding of words and places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = self.add_weight(shape=(WORDS, WIDTH), initializer="random_normal", name="table")
        self.places = self.add_weight(shape=(LENGTH, WIDTH), initializer="random_normal", name="places")
        self.built = True

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.table.value, tokens) + self.places


def transformer(scopes: Scopes) -> Training:
    """Words, two blocks, and a head; predicts the next word."""
    blocks: list[Any] = [Words(), Block(), Block(), dense(WORDS, activation=None)]
    generator = np.random.default_rng(2)
    tokens = [generator.integers(0, WORDS, size=(scopes.examples, LENGTH + 1)).astype(np.int32) for _ in range(STEPS)]

    def forward(batch: tf.Tensor) -> tf.Tensor:
        logits = scopes.through(blocks, batch[:, :-1])
        return tf.reduce_mean(cross_entropies(batch[:, 1:], logits))

    return training_of(scopes, blocks, forward, [(batch,) for batch in tokens])


TRANSFORMER = Case(transformer)


def even_layouts() -> Iterator[Layout]:
    """Every combination that the devices allow; a single stage has only one order."""
    for replicas in (1, 2, 4):
        for stages in (1, 2, 4):
            if replicas * stages > DEVICES:
                continue
            for micro_batches in (1, 4):
                for schedule in SCHEDULES if stages > 1 else SCHEDULES[:1]:
                    yield Layout(replicas, stages, micro_batches, schedule)


UNEVEN = (
    Layout(replicas=2, stages=2, micro_batches=2, examples=13),
    Layout(replicas=2, micro_batches=4, examples=10),
    Layout(replicas=4, stages=2, micro_batches=2, examples=9, schedule="zero_bubble"),
    Layout(micro_batches=3),
    Layout(stages=4, micro_batches=16),
    Layout(replicas=4, micro_batches=4),
    Layout(replicas=2, stages=2, micro_batches=4, shares=(3, 1)),
    Layout(replicas=2, shares=(3, 1), examples=13),
    Layout(replicas=3, stages=2, micro_batches=2, shares=(1, 2, 1.5), examples=17),
    Layout(replicas=4, stages=2, shares=(4, 3, 2, 1), examples=11, schedule="gpipe"),
)
FOLDED = (
    Layout(stages=4, devices=2, micro_batches=4, schedule="interleaved"),
    Layout(stages=4, devices=2, micro_batches=2, schedule="interleaved", examples=13),
    Layout(replicas=2, stages=4, devices=4, micro_batches=4, schedule="interleaved"),
    Layout(replicas=2, stages=4, devices=4, micro_batches=4, shares=(3, 1), schedule="interleaved"),
)
# Replicas that are pipelines of other numbers of devices.
UNLIKE = (
    Layout(replicas=2, stages=4, micro_batches=4, shares=(1, 2), places=((0, 0, 1, 1), (2, 3, 4, 5)), examples=13),
    Layout(
        replicas=3, stages=4, micro_batches=2, places=((0, 0, 1, 1), (2, 3, 4, 5), (6, 6, 6, 7)), schedule="zero_bubble"
    ),
    Layout(replicas=2, stages=4, shares=(2, 3), places=((0, 1, 0, 1), (2, 2, 2, 3)), schedule="gpipe"),
    Layout(
        replicas=2, stages=4, micro_batches=4, places=((0, 1, 0, 1), (2, 3, 3, 2)), schedule="interleaved", examples=13
    ),
)


def unlike_layouts() -> Iterator[Layout]:
    """One device, two and three beside four, in every schedule."""
    for few in ((0, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 2), (0, 1, 2, 0)):
        used = len({*few})
        for micro_batches in (1, 3):
            for schedule in SCHEDULES:
                places = (tuple(range(used, used + 4)), few)
                yield Layout(2, 4, micro_batches, schedule, shares=(2, 1), places=places)


@pytest.mark.parametrize("layout", list(even_layouts()), ids=str)
def test_even_layout_equals_one_device(layout: Layout) -> None:
    check(TRANSFORMER, layout)


@pytest.mark.parametrize("layout", UNEVEN, ids=str)
def test_uneven_layout_equals_one_device(layout: Layout) -> None:
    check(TRANSFORMER, layout)


@pytest.mark.parametrize("layout", FOLDED, ids=str)
def test_stages_that_share_devices_equal_one_device(layout: Layout) -> None:
    check(TRANSFORMER, layout)


@pytest.mark.parametrize(
    "layout",
    [*UNLIKE, *(pytest.param(layout, marks=pytest.mark.long) for layout in unlike_layouts())],
    ids=str,
)
def test_replicas_that_are_cut_differently_equal_one_device(layout: Layout) -> None:
    step, _ = check(TRANSFORMER, layout)
    assert len(step.plan.layout.classes) == len(layout.places)
    assert len({sum(sizes) for sizes in step.plan.sizes}) == len({*layout.shares}) or not layout.shares


@pytest.mark.parametrize("layout", [UNEVEN[0], UNEVEN[6], FOLDED[0], UNLIKE[0]], ids=str)
def test_verify_finds_no_difference(layout: Layout) -> None:
    step, training = check(TRANSFORMER, layout)
    assert step.verify(*training.batches[0]).largest < 1e-4  # of single gradients, which cancel more than weights do


def test_batches_of_changing_size_equal_one_device() -> None:
    """A smaller last batch makes a new trace, and goes on from the same weights."""

    def changing(scopes: Scopes) -> Training:
        training = transformer(scopes)
        batches = [
            (batch[: scopes.examples - less],) for (batch,), less in zip(training.batches, (0, 5, 0), strict=True)
        ]
        return Training(training.step, batches, training.owners)

    check(Case(changing), Layout(replicas=2, stages=2, micro_batches=2))
