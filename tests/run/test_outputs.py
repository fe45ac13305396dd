"""Outputs come back as the step returned them: of several tensors, or made of the examples of several parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import batch


class Scores(tf.experimental.ExtensionType):  # type: ignore[misc]  # TensorFlow has no types
    """Per-example and whole values together, and a number of Python."""

    of_examples: tf.Tensor
    count: int
    more: tuple[tf.Tensor, ...]


class Rows(tf.experimental.ExtensionType):  # type: ignore[misc]  # TensorFlow has no types
    """A ragged tensor inside another composite one."""

    rows: tf.RaggedTensor


def ragged(x: tf.Tensor) -> Any:
    return {"rows": [tf.RaggedTensor.from_tensor(x, padding=0.0)], "none": None}


def sparse(x: tf.Tensor) -> Any:
    return tf.sparse.from_dense(x), tf.reduce_mean(x)


def ragged_inside(x: tf.Tensor) -> Any:
    return Rows(tf.RaggedTensor.from_tensor(x))


def slices(x: tf.Tensor) -> Any:
    return tf.IndexedSlices(2 * x, tf.range(tf.shape(x)[0]), None)


def scores(x: tf.Tensor) -> Any:
    return Scores(2 * x, 3, (x[:, 0], tf.reduce_mean(x)))


def check_same(got: Any, want: Any) -> None:
    tf.nest.assert_same_structure(got, want, expand_composites=True)
    leaves = (tf.nest.flatten(each, expand_composites=True) for each in (got, want))
    for one, other in zip(*leaves, strict=True):
        assert (one is None) == (other is None)
        if other is not None and other.dtype.is_floating:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)  # sums are taken in another order
        elif other is not None:
            np.testing.assert_array_equal(one, other)


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(4)


@pytest.mark.parametrize("outputs", [ragged, sparse, ragged_inside, slices, scores])
def test_composite_outputs_of_one_part_are_those_of_one_device(outputs: Callable[[tf.Tensor], Any]) -> None:
    check_same(whale.function(outputs)(batch()), tf.function(outputs)(batch()))


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_tensors_of_an_extension_type_are_merged_each_by_itself(micro_batches: int) -> None:
    @whale.function(micro_batches=micro_batches)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return scores(x)

    check_same(step(batch(14)), scores(tf.constant(batch(14))))
    assert step(batch(14)).count == 3


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_gradient_of_a_table_stays_slices(micro_batches: int) -> None:
    table = tf.Variable(np.ones([9, 2], np.float32))
    words = np.array([1, 3, 3, 8, 0, 1, 1, 2], np.int32)

    def plain(words: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.gather(table, words) ** 2)
        return tape.gradient(loss, table)

    got = whale.function(micro_batches=micro_batches)(plain)(words)
    assert isinstance(got, tf.IndexedSlices)
    np.testing.assert_allclose(tf.convert_to_tensor(got), tf.convert_to_tensor(plain(tf.constant(words))), rtol=1e-6)


def rows_of(x: tf.Tensor) -> Any:
    """As many rows as examples are above a half."""
    return tf.boolean_mask(x, x[:, 0] > 0.5), tf.where(x[:, 1] > 0.5), tf.math.count_nonzero(x, axis=0)


def positions(x: tf.Tensor) -> Any:
    sums = tf.reduce_sum(x, axis=0)
    return tf.argmax(sums), tf.argmin(x, axis=0), tf.argsort(x[:, 0], direction="DESCENDING")


def whole_numbers(x: tf.Tensor) -> Any:
    codes = tf.cast(10 * x, tf.int32)
    return tf.reduce_mean(codes), tf.reduce_mean(codes, axis=0), tf.reduce_prod(codes + 1, axis=0), tf.reduce_max(codes)


def words(x: tf.Tensor) -> Any:
    return tf.strings.as_string(tf.cast(10 * x, tf.int32)), tf.strings.reduce_join(tf.strings.as_string(x[:, 0] > 0.5))


def statistics(x: tf.Tensor) -> Any:
    return tf.math.reduce_std(x, axis=0), tf.math.top_k(x[:, 1], 2), x - tf.reduce_mean(x, axis=0), tf.concat([x, x], 0)


@pytest.mark.parametrize(
    "outputs", [ragged, sparse, ragged_inside, slices, rows_of, positions, whole_numbers, words, statistics]
)
@pytest.mark.parametrize(("micro_batches", "examples"), [(1, 8), (2, 8), (3, 13), (2, 3)])
def test_what_is_made_of_several_parts_together_is_that_of_one_device(
    outputs: Callable[[tf.Tensor], Any], micro_batches: int, examples: int
) -> None:
    """It is computed once, from the examples of all parts."""

    @whale.function(micro_batches=micro_batches)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return outputs(x)

    x = batch(examples)
    x[::3, 2:] = 0  # rows of several lengths
    check_same(step(x), tf.function(outputs)(x))
    assert step.plan.parts == min(2 * micro_batches, 2 * (examples // 2))
