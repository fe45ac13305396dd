"""Lists are what their elements are, element by element without the dim that the list has taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, states_of, trace
from whale_tf.ir.graph import Ref

raw = tf.raw_ops
SHAPE = tf.constant([WIDTH], tf.int32)


def state_of(function: Callable[[Any], Any]) -> str:
    return states_of(lambda x: {"y": function(x)}, ROWS)["y"]


def of_rows(x: tf.Tensor) -> tf.Tensor:
    """A list of WIDTH elements of [examples]."""
    return raw.TensorListFromTensor(tensor=tf.transpose(x), element_shape=tf.shape(x)[:1])


def stacked(handle: tf.Tensor, shape: Any) -> tf.Tensor:
    return raw.TensorListStack(input_handle=handle, element_shape=shape, element_dtype=tf.float32)


def test_a_list_of_the_rows_of_a_transposed_batch_is_cut_as_they_are() -> None:
    assert state_of(lambda x: stacked(of_rows(x), tf.shape(x)[:1])) == "Split(1)"


def test_an_element_is_cut_where_it_was() -> None:
    def element(x: tf.Tensor) -> tf.Tensor:
        return raw.TensorListGetItem(
            input_handle=of_rows(x), index=1, element_shape=tf.shape(x)[:1], element_dtype=tf.float32
        )

    assert state_of(element) == "Split(0)"


def test_the_shape_of_an_element_has_each_parts_own_number_of_rows() -> None:
    def shape(x: tf.Tensor) -> tf.Tensor:
        return raw.TensorListElementShape(input_handle=of_rows(x), shape_type=tf.int32)

    assert state_of(shape) == "Extent(0)"


def test_each_part_has_a_list_of_its_own_examples() -> None:
    traced = trace(lambda x: {"y": stacked(raw.TensorListFromTensor(tensor=x, element_shape=SHAPE), SHAPE)})
    assert traced.told(traced.derived()) == {"y": "Split(0)"}


def test_a_list_of_examples_of_which_one_is_read_is_made_once() -> None:
    """A list cannot be merged: it is made of the merged tensor."""

    def first(x: tf.Tensor) -> dict[str, tf.Tensor]:
        handle = raw.TensorListFromTensor(tensor=x, element_shape=SHAPE)
        row = raw.TensorListGetItem(input_handle=handle, index=0, element_shape=SHAPE, element_dtype=tf.float32)
        return {"y": row}

    traced = trace(first)
    states = traced.derived()
    assert traced.told(states) == {"y": "once"}
    assert any(reason.startswith("TensorListGetItem takes it whole") for reason in states.why.values())


def filled(x: tf.Tensor, *items: Any) -> tf.Tensor:
    """A list of items, one after another, as one tensor."""
    shape = tf.shape(items[0])
    handle = raw.TensorListReserve(element_shape=shape, num_elements=len(items), element_dtype=tf.float32)
    for index, item in enumerate(items):
        handle = raw.TensorListSetItem(input_handle=handle, index=index, item=item)
    return stacked(handle, shape)


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: filled(x, x, 2 * x), "Split(1)"),
        (lambda x: filled(x, tf.reduce_sum(x, 0), tf.reduce_sum(2 * x, 0)), "Partial(sum)"),
        (lambda x: filled(x, x, tf.ones_like(x)), "Split(1)"),
        (lambda x: filled(x, tf.reduce_sum(x, 0), tf.reduce_max(x, 0)), "once"),
    ],
    ids=["pieces", "totals", "a constant among pieces", "totals of several kinds"],
)
def test_an_empty_list_becomes_what_is_put_into_it(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


def test_an_empty_list_is_blank_and_free() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        return {"y": filled(x, x)}

    traced = trace(step)
    states = traced.derived()
    (empty,) = [node.name for node in traced.sizes.graph if node.op == "TensorListReserve"]
    assert str(states.value(Ref(empty))) == "Blank"
    assert states.level[empty] == -1


def test_how_long_a_list_is_does_not_depend_on_examples() -> None:
    assert state_of(lambda x: raw.TensorListLength(input_handle=of_rows(x))) == "Whole"
