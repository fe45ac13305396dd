"""What becomes of a cut dim where elements are arranged anew: reshapes, blocks behind each other, slices of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.plan.traced import WIDTH, states_of, trace
from whale_tf.ir.graph import Shape
from whale_tf.ir.sharding import Split
from whale_tf.plan.shapes import regrouped

CUBE = tf.TensorSpec([None, 4, 6], tf.float32)
VARIABLE = tf.Variable(tf.ones([WIDTH]))


def state_of(function: Callable[[Any], Any], spec: tf.TensorSpec = CUBE) -> str:
    return states_of(lambda x: {"y": function(x)}, spec)["y"]


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.reshape(x, [-1, 24]), "Split(0)"),
        (lambda x: tf.reshape(x, [-1]), "Split(0)"),
        (lambda x: tf.reshape(x, [1, -1, 24]), "Split(1)"),
        (lambda x: tf.reshape(x, [-1, 2, 2, 6]), "Split(0)"),
        (lambda x: tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, 6]), "Split(0, 4)"),
        (lambda x: tf.reshape(tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, 6]), [4, -1, 6]), "Split(1)"),
        (lambda x: x[:, tf.newaxis], "Split(0)"),
        (lambda x: tf.expand_dims(x, 0), "Split(1)"),
        (lambda x: tf.squeeze(tf.reduce_sum(x, [1, 2], keepdims=True)), "Split(0)"),
        (lambda x: tf.reshape(tf.reduce_sum(x, axis=0), [-1]), "Partial(sum)"),
        (lambda x: tf.reshape(x, [6, -1]), "once"),
    ],
)
def test_a_reshape_keeps_the_pieces_or_is_done_once(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.concat([x, x], axis=0), "Split(0, 2)"),
        (lambda x: tf.concat([x, 2 * x, x], axis=0), "Split(0, 3)"),
        (lambda x: tf.concat([tf.concat([x, x], 0), x], axis=0), "Split(0, 3)"),
        (lambda x: tf.concat([x, x], axis=1), "Split(0)"),
        (lambda x: tf.stack([x, x]), "Split(1)"),
        (lambda x: tf.tile(x, [2, 1, 1]), "Split(0, 2)"),
        (lambda x: tf.tile(x, [1, 3, 1]), "Split(0)"),
        (lambda x: tf.concat([x, x[:, :2]], axis=1), "Split(0)"),
        (lambda x: tf.concat([x, tf.zeros([1, 4, 6])], axis=0), "once"),
        (lambda x: tf.repeat(x, 2, axis=0), "Split(0)"),
    ],
)
def test_pieces_behind_each_other_lie_in_blocks(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


def twice(x: tf.Tensor) -> tf.Tensor:
    return tf.concat([x, x], axis=0)


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.split(twice(x), 2)[1], "Split(0)"),
        (lambda x: twice(x)[: tf.shape(x)[0]], "Split(0)"),
        (lambda x: twice(x)[tf.shape(x)[0] :], "Split(0)"),
        (lambda x: tf.slice(twice(x), [0, 0, 0], [tf.shape(x)[0], 4, 6]), "Split(0)"),
        (lambda x: tf.split(tf.concat([twice(x), twice(x)], 0), 2)[0], "Split(0, 2)"),
        (lambda x: twice(x)[1 : 1 + tf.shape(x)[0]], "once"),
        (lambda x: x[:, 1:3], "Split(0)"),
        (lambda x: x[:2], "once"),
    ],
)
def test_whole_blocks_are_pieces_again(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.zeros_like(x) + x, "Split(0)"),
        (lambda x: tf.fill([tf.shape(x)[0], 2], tf.reduce_sum(tf.ones([3]))), "early"),
        (lambda x: tf.broadcast_to(VARIABLE, [tf.shape(x)[0], WIDTH]), "Split(0)"),
        (lambda x: tf.fill([tf.shape(x)[0], 2], VARIABLE[0]), "Split(0)"),
    ],
)
def test_rows_that_follow_the_batch_are_made_by_each_part(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


def test_a_reshape_of_a_total_to_rows_of_examples_is_refused_to_the_parts() -> None:
    traced = trace(lambda x: {"y": tf.reshape(tf.reduce_sum(x, [0]), [24])}, CUBE)
    assert traced.told() == {"y": "Partial(sum)"}


DIMS = st.lists(st.integers(1, 4), min_size=0, max_size=3)


@given(before=DIMS, behind=DIMS, batch=st.integers(2, 6), order=st.randoms(use_true_random=False))
def test_a_regrouped_split_takes_the_same_elements(
    before: list[int], behind: list[int], batch: int, order: Any
) -> None:
    """Of any reshape: the elements of one example, by their number in the flat tensor, are those it had."""
    shape = Shape((*before, batch, *behind))
    total = _product(shape)
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    first = order.choice(divisors)
    after = Shape((first, total // first))
    found = regrouped(shape, after, Split(len(before)), batch)
    assume(found is not None)
    assert found is not None
    for example in range(batch):
        assert _elements(shape, Split(len(before)), batch, example) == _elements(after, found, batch, example)


def _product(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _elements(shape: Shape, split: Split, batch: int, example: int) -> set[int]:
    """The flat positions of one example's elements."""
    behind, length = _product(shape[split.dim + 1 :]), shape[split.dim] or 0
    chunk = length // split.outer // batch
    found = set()
    for flat in range(_product(shape)):
        place = flat // behind % length % (length // split.outer)
        if place // chunk == example:
            found.add(flat)
    return found
