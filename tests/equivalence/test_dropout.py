"""Dropout: the masks of one device, of which every part has its own piece."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.equivalence.harness import (
    TOLERANCE,
    Case,
    Layout,
    Scopes,
    Training,
    array,
    check,
    differences,
    fresh,
    numbers,
    parallel,
)
from tests.equivalence.models import classified, classifier, cross_entropy, optimized, rows, training_of

RATE = 0.25
WIDE = 64
EXAMPLES = 16


def dropped(scopes: Scopes) -> Training:
    """The usual classifier with Dropout in two stages."""
    blocks = classifier()
    dropouts = [keras.layers.Dropout(RATE, seed=i) for i in (1, 2)]

    def second(h: tf.Tensor) -> tf.Tensor:
        return blocks[1](dropouts[0](h, training=True))

    def last(h: tf.Tensor) -> tf.Tensor:
        return blocks[3](dropouts[1](h, training=True))

    def forward(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(y, scopes.through([blocks[0], second, blocks[2], last], x))

    usual = training_of(scopes, blocks, forward, classified(scopes.examples))
    return Training(usual.step, usual.batches, [*usual.owners, *dropouts])


def shown(scopes: Scopes) -> Training:
    """Returns what Dropout makes of ones, and the gradient of its sum; the weights it multiplies are updated too."""
    dropout = keras.layers.Dropout(RATE, seed=3)
    scale = keras.Variable(np.ones([WIDE], np.float32), name="scale")
    blocks = [lambda x: x * scale, tf.identity, lambda x: dropout(x, training=True), tf.identity]
    optimizer = optimized(keras.optimizers.SGD(0.0), [scale])

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape, scopes.replica:
            tape.watch(x)
            kept = scopes.through(blocks, x)
            sums = tf.reduce_sum(kept, axis=1)
            loss = tf.reduce_mean(sums)
        of_examples = tape.gradient(sums, x)
        optimizer.apply_gradients([(tape.gradient(loss, scale.value), scale)])
        return kept, of_examples

    ones = np.ones([scopes.examples, WIDE], np.float32)
    return Training(step, [(ones,)] * 3, [dropout, scale, optimizer])


SHOWN = Case(shown)
DIVIDED = (
    Layout(replicas=2),
    Layout(micro_batches=4),
    Layout(replicas=2, stages=2, micro_batches=4),
    Layout(replicas=2, stages=4, micro_batches=2, schedule="zero_bubble"),
    Layout(stages=4, devices=2, micro_batches=4, schedule="interleaved"),
)


UNEVEN = (Layout(replicas=2, micro_batches=2, examples=13), Layout(micro_batches=4, examples=4))


@pytest.mark.parametrize("layout", [Layout(), Layout(stages=2), *DIVIDED, *UNEVEN], ids=str)
def test_masks_are_those_of_one_device(layout: Layout) -> None:
    check(Case(dropped), layout)


@pytest.mark.parametrize("layout", DIVIDED, ids=str)
def test_parts_get_masks_of_their_own(layout: Layout) -> None:
    step, training = parallel(SHOWN, layout)
    masks = [array(step(*batch)[0]) > 0 for batch in training.batches]
    parts = layout.replicas * layout.micro_batches
    for mask in masks:
        rows_of_parts = mask.reshape(parts, EXAMPLES // parts, WIDE)
        assert len({part.tobytes() for part in rows_of_parts}) == parts
        # 1,024 draws: the kept part is within 5 standard deviations of 0.0135.
        assert abs(mask.mean() - (1 - RATE)) < 0.07
    assert len({mask.tobytes() for mask in masks}) == len(masks)


@pytest.mark.parametrize("layout", DIVIDED, ids=str)
def test_backward_drops_what_the_forward_dropped(layout: Layout) -> None:
    step, training = parallel(SHOWN, layout)
    for batch in training.batches:
        kept, gradient = map(array, step(*batch))
        np.testing.assert_allclose(kept[kept > 0], 1 / (1 - RATE), rtol=1e-6)
        np.testing.assert_array_equal(kept > 0, gradient > 0)


@pytest.mark.parametrize("layout", DIVIDED, ids=str)
def test_same_seed_gives_the_same_masks(layout: Layout) -> None:
    case = Case(dropped)
    runs = []
    for _ in range(2):
        step, training = parallel(case, layout)
        runs.append(numbers(training, step))
    assert not differences(runs[0], runs[1], TOLERANCE)


@pytest.mark.parametrize("layout", DIVIDED, ids=str)
def test_seeds_advance_as_on_one_device(layout: Layout) -> None:
    """So that a checkpoint of the seeds says which step it was, however the batch was divided."""
    step, training = parallel(SHOWN, layout)
    plain = fresh(SHOWN, Layout())
    one_device = tf.function(plain.step)
    for batch in training.batches:
        step(*batch)
        one_device(*batch)
        np.testing.assert_array_equal(array(training.owners[0].variables[0]), array(plain.owners[0].variables[0]))


@pytest.mark.parametrize("shape", [(), (3,), (4,)], ids=str)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.int32])
def test_draws_from_a_seed_are_those_of_one_device(shape: tuple[int, ...], dtype: tf.DType) -> None:
    """Also where a part begins in the middle of what the generator draws at once."""

    def noise(scopes: Scopes) -> Training:
        blocks = classifier()
        limits = {"maxval": 99} if dtype == tf.int32 else {}

        def step(x: tf.Tensor, seed: tf.Tensor) -> Any:
            with scopes.replica:
                h = scopes.through(blocks, x)
                size = [tf.shape(h)[0], *shape]
                drawn = tf.random.stateless_uniform(size, seed, dtype=dtype, **limits)
                return drawn, tf.random.stateless_truncated_normal(tf.shape(h), [3, 4]), h

        return Training(step, [(x, np.array([5, 7])) for x in rows(scopes.examples)], blocks)

    check(Case(noise, whole=("seed",)), Layout(replicas=2, stages=2, micro_batches=2, examples=13))
