"""The second size at which a step is traced: twice the batch, or what the plan has for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import batch, descend, values, weights

GROUP = 4
ROUNDING = 1e-6  # of float32 sums that are taken in another order


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def of_groups(x: Any, variables: list[tf.Variable], traced: list[int]) -> Any:
    """Experts that see the examples in groups: one weight for each group of GROUP, chosen by its first example."""
    traced.append(x.shape[0])
    with tf.GradientTape() as tape, whale.replica(2):
        with whale.stage():
            groups = tf.reshape(x @ variables[0], (-1, GROUP, x.shape[1]))
            h = groups * tf.reduce_mean(groups, axis=1, keepdims=True)
        with whale.stage():
            h = tf.reshape(h, (-1, x.shape[1])) @ variables[1]
            loss = tf.reduce_mean(tf.square(h - 1))
    descend(tape, loss, variables)
    return loss, h


@pytest.mark.parametrize(("examples", "micro_batches"), [(16, 2), (16, 1), (8, 4), (32, 4)])
def test_a_step_may_take_its_examples_in_groups(examples: int, micro_batches: int) -> None:
    """It can be traced for multiples of GROUP only, also where a part holds fewer examples than a group."""
    own, plain, traced = weights(), weights(), list[int]()
    step = whale.function(micro_batches=micro_batches, coupling="exact")(lambda x: of_groups(x, own, traced))
    expected = tf.function(lambda x: of_groups(x, plain, []))
    for got, want in zip(step(batch(examples)), expected(batch(examples)), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    for got, want in zip(values(own), values(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    assert traced == [examples, 2 * examples]


def test_parts_that_hold_whole_groups_may_be_accepted() -> None:
    own, plain = weights(), weights()
    step = whale.function(accept="Reshape")(lambda x: of_groups(x, own, []))
    with pytest.warns(UserWarning, match="each part of the batch has its own value"):
        got = step(batch(16))
    for value, want in zip(got, tf.function(lambda x: of_groups(x, plain, []))(batch(16)), strict=True):
        np.testing.assert_allclose(value, want, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_the_second_size_follows_from_no_plan(micro_batches: int) -> None:
    traced = list[int]()

    @whale.function(micro_batches=micro_batches)
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        with whale.replica(2):
            return tf.reduce_mean(x)

    step(batch(8))
    assert traced == [8, 16]


def test_examples_that_are_a_few_of_the_batch_are_as_many_at_both_sizes() -> None:
    """Of two examples there are no three largest, and of a part no first five: the other size is a larger one."""

    @whale.function(micro_batches=4)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return tf.math.top_k(tf.reduce_sum(x, axis=1), 3).values, x[:5]

    x = batch(8)
    largest, first = step(x)
    np.testing.assert_allclose(largest, np.sort(x.sum(axis=1))[::-1][:3], rtol=ROUNDING)
    np.testing.assert_array_equal(first, x[:5])


def test_a_step_that_cannot_take_more_examples_is_traced_for_fewer() -> None:
    traced = list[int]()

    @whale.function(micro_batches=2)
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        if x.shape[0] > 8:
            raise ValueError("too many")
        with whale.replica(2):
            return tf.reduce_mean(x)

    assert float(step(batch(8))) == pytest.approx(0.5)
    assert traced == [8, 16, 2]
