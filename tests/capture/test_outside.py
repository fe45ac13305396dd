"""Tensors from outside the step, and large constants that are handed over like them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.capture.outside import LARGE_BYTES, Outside, is_large


def constant(*shape: int, fill: float = 1.0) -> Any:
    """The message of an array, as a graph holds it."""
    return tf.make_tensor_proto(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) * fill)


def test_a_tensor_has_one_index_however_often_it_is_captured() -> None:
    outside, tensors = Outside(), [tf.constant(1.0), tf.constant(1.0)]
    assert [outside.index_of(tensor) for tensor in (*tensors, *tensors)] == [0, 1, 0, 1]
    assert [each is tensor for each, tensor in zip(outside.tensors, tensors, strict=True)] == [True, True]


def test_equal_constants_share_an_index() -> None:
    outside = Outside()
    assert [outside.index_of_constant(constant(2, 3, fill=fill)) for fill in (1.0, 2.0, 1.0)] == [0, 1, 0]
    np.testing.assert_array_equal(outside.tensors[1], [[0, 2, 4], [6, 8, 10]])
    assert outside.tensors[1].device.endswith("CPU:0")


def test_only_large_constants_are_handed_over() -> None:
    many = LARGE_BYTES // 4
    assert is_large(constant(2, many))
    assert not is_large(constant(many // 2))
    assert not is_large(tf.make_tensor_proto(1.0, shape=[2 * many]))  # one number and a shape


def test_each_part_takes_its_own_rows_of_a_large_constant_that_is_as_long_as_the_batch() -> None:
    whale.init(8)
    examples = 13
    rows = np.arange(examples * LARGE_BYTES // 4, dtype=np.float32).reshape(examples, -1)

    def plain(x: Any) -> Any:
        with whale.replica(2):
            table = tf.constant(rows)[: x.shape[0]]
            return x * table[:, -1:], tf.reduce_sum(x[:, 0] * table[:, 0])

    step = whale.function(micro_batches=2)(plain)
    x = np.ones([examples, 2], np.float32)
    for got, want in zip(step(x), tf.function(plain)(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # a sum of parts is rounded otherwise
    np.testing.assert_array_equal(step.compiled.parts.outside[0], rows)


@pytest.mark.parametrize("examples", [16, 13])
def test_a_large_constant_is_in_no_function(examples: int) -> None:
    whale.init(8)
    table = np.arange(LARGE_BYTES, dtype=np.float32)

    @whale.function(micro_batches=2)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return x * tf.constant(table)[3], tf.reduce_mean(x + tf.constant(table)[5])

    x = np.ones([examples, 2], np.float32)
    scaled, mean = step(x)
    np.testing.assert_allclose(scaled, 3 * x)
    assert float(mean) == pytest.approx(6)
    lowered = step.compiled.lowered
    assert max(function.ByteSize() for function in (lowered.main, *lowered.functions)) < LARGE_BYTES
    assert len(step.compiled.parts.outside) == 1
