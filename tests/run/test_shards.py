"""Sharded memory and sums within a process, against numpy."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from whale_tf.errors import DeviceError, PlanError
from whale_tf.run import ops


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([(), (0,), (5,), (3, 7), (40_000,)]), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64]),
)
def test_contributions_are_added(shapes: list[tuple[int, ...]], parts: int, dtype: tf.DType) -> None:
    random = np.random.default_rng(parts)
    arrays = [[random.integers(-9, 10, shape) for _ in range(parts)] for shape in shapes]
    scale = 0.5 if dtype.is_floating else 1.0
    tensors = [[tf.cast(tf.constant(each), dtype) for each in contributions] for contributions in arrays]
    for k, found in enumerate(ops.add_contributions(tensors, scale=scale)):
        assert found.dtype == dtype
        np.testing.assert_array_equal(tf.cast(found, tf.float64), scale * np.sum(arrays[k], axis=0))
    for tensor, contribution in zip(tensors[0], arrays[0], strict=True):
        np.testing.assert_array_equal(tf.cast(tensor, tf.float64), contribution)


def test_a_sum_has_a_gradient() -> None:
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        first, second = ops.add_contributions([[x, 2.0 * x], [x * x, x]], scale=0.5)
        loss = tf.reduce_sum(first + 10.0 * second)
    assert tape.gradient(loss, x).numpy().tolist() == [16.5, 26.5]


def test_contributions_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ops.add_contributions([[tf.zeros([2]), tf.zeros([2])], [tf.zeros([2]), tf.zeros([3])]])
    assert "contribution 1 to sum 1 has shape [3], expected was that of contribution 0, [2]" in str(caught.value)


def test_sums_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(PlanError) as caught:
        ops.add_contributions([[tf.zeros([2])], [tf.zeros([2]), tf.zeros([2])]])
    assert str(caught.value) == (
        "every sum has the same number of contributions.\n  sum 0 has 1\n  sum 1 has 2\n"
        "  Call add_contributions once for each number."
    )


@settings(max_examples=25)
@given(st.sampled_from([(), (0,), (1,), (10,), (3, 5)]), st.integers(1, 6), st.sampled_from([tf.float32, tf.int8]))
def test_shards_are_read_and_written_back(shape: tuple[int, ...], size: int, dtype: tf.DType) -> None:
    values = np.random.default_rng(size).integers(1, 100, shape)
    variable = tf.Variable(tf.cast(tf.constant(values), dtype))
    shards = [ops.read_shard(variable, rank, size) for rank in range(size)]
    padded = np.zeros(size * -(-values.size // size))
    padded[: values.size] = values.ravel()
    np.testing.assert_array_equal(tf.concat(shards, 0), padded)
    np.testing.assert_array_equal(
        tf.concat([ops.read_shard(variable.value(), k, size) for k in range(size)], 0), padded
    )
    ops.assign_shards(variable, tf.concat(shards, 0) + tf.cast(1, dtype), size)
    np.testing.assert_array_equal(variable, values + 1)
    assert variable.shape == shape


def test_a_value_that_was_read_stays() -> None:
    variable = tf.Variable([1.0, 2.0, 3.0])
    before = variable.value()
    ops.assign_shards(variable, tf.constant([4.0, 5.0, 6.0, 0.0]), 2)
    assert before.numpy().tolist() == [1.0, 2.0, 3.0]
    assert variable.numpy().tolist() == [4.0, 5.0, 6.0]


def test_in_a_function_shards_are_read_and_written_in_order() -> None:
    variable = keras.Variable([1.0, 2.0, 3.0])

    @tf.function
    def step() -> tuple[tf.Tensor, tf.Tensor]:
        before = ops.read_shard(variable, 1, 2)
        assert before.shape == [2]
        ops.assign_shards(variable, tf.constant([4.0, 5.0, 6.0, 0.0]), 2)
        return before, ops.read_shard(variable, 1, 2)

    before, after = step()
    assert before.numpy().tolist() == [3.0, 0.0]
    assert after.numpy().tolist() == [6.0, 0.0]


def test_values_that_are_not_all_shards_are_refused() -> None:
    variable = tf.Variable(tf.zeros([3, 3]), name="kernel")
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ops.assign_shards(variable, tf.zeros([9]), 2)
    message = r"values have shape \[9\], expected was \[10\]: 2 shards of the variable \S* of shape \[3,3\]"
    assert re.search(message, str(caught.value))
    with pytest.raises(ValueError, match="values have 9 elements, expected were 10: 2 shards of a variable of 9"):
        tf.function(lambda: ops.assign_shards(variable, tf.zeros([9]), 2))()


def test_shards_are_not_written_to_a_tensor() -> None:
    with pytest.raises(DeviceError) as caught:
        ops.assign_shards(tf.zeros([2]), tf.zeros([2]), 2)
    assert str(caught.value).startswith("shards are written to a variable.\n  a EagerTensor was given\n")
