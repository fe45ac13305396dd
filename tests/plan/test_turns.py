"""Loops whose turns are the examples: each part takes its own turns, and what relates turns runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, states_of, trace

Loop = Callable[[tf.Tensor], Any]


def state_of(function: Loop) -> str:
    return states_of(lambda x: {"y": function(x)}, ROWS)["y"]


def why(function: Loop) -> list[str]:
    """Why what is computed once is not done by parts."""
    return list(trace(lambda x: {"y": function(x)}, ROWS).derived().why.values())


def loop(
    x: tf.Tensor, turn: Callable[..., Any], start: Any, *, first: int = 0, goes_on: Callable[..., Any] | None = None
) -> Any:
    """`start = turn(i, rows, start)` for each row, of which `rows` is the list."""
    count = tf.shape(x)[0]
    rows = tf.TensorArray(tf.float32, count, clear_after_read=False).unstack(x)
    ends = goes_on or (lambda i, carried: i < count)
    return tf.while_loop(ends, lambda i, carried: (i + 1, turn(i, rows, carried)), (first, start))[1]


def test_what_each_turn_makes_of_its_row_is_cut_as_the_rows_are() -> None:
    assert state_of(lambda x: tf.map_fn(lambda row: row * tf.reduce_max(row), x)) == "Split(0)"


def test_several_tensors_are_mapped_together() -> None:
    def both(x: tf.Tensor) -> tf.Tensor:
        kinds = (tf.float32, tf.int64)
        made = tf.map_fn(lambda pair: (pair[0] + pair[1], tf.argmax(pair[0])), (x, 2.0 * x), fn_output_signature=kinds)
        return made[0] * tf.cast(made[1], tf.float32)[:, None]

    assert state_of(both) == "Split(0)"


def test_what_turns_add_up_is_a_sum() -> None:
    assert state_of(lambda x: loop(x, lambda i, rows, total: total + tf.exp(rows.read(i)), tf.zeros(WIDTH))) == (
        "Partial(sum)"
    )


def test_turns_that_count_count_the_examples() -> None:
    def counted(x: tf.Tensor) -> tf.Tensor:
        return loop(x, lambda i, rows, made: (made[0] + 1.0, made[1] + rows.read(i)), (0.0, tf.zeros(WIDTH)))[0]

    assert state_of(counted) == "Partial(sum)"


def test_a_list_of_a_constant_as_long_as_the_batch_is_cut_with_it() -> None:
    def numbered(x: tf.Tensor) -> tf.Tensor:
        numbers = tf.range(x.shape[0], dtype=tf.float32)
        return tf.map_fn(lambda one: one[0] * one[1], (x, numbers), fn_output_signature=tf.float32)

    assert state_of(numbered) == "Split(0)"


def test_gradients_go_back_through_the_turns() -> None:
    def gradient(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.map_fn(lambda row: tf.reduce_sum(tf.sin(row)), x))
        return tape.gradient(loss, x)

    assert state_of(gradient) == "Split(0)"


def test_the_gradient_of_what_all_turns_take_is_a_sum() -> None:
    weight = tf.constant([[1.0, 2.0, 3.0]] * WIDTH)

    def gradient(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            taken = weight * 1.0
            tape.watch(taken)
            loss = tf.reduce_sum(tf.map_fn(lambda row: tf.linalg.matvec(taken, row) ** 2, x))
        return tape.gradient(loss, taken)

    assert state_of(gradient) == "Partial(sum)"


def test_a_loop_inside_a_turn_is_the_examples_own() -> None:
    def powers(row: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, value: i < 3, lambda i, value: (i + 1, value * row), (0, row))[1]

    assert state_of(lambda x: tf.map_fn(powers, x)) == "Split(0)"


def test_a_branch_inside_a_turn_is_the_examples_own() -> None:
    def either(row: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_sum(row) > 0, lambda: row, lambda: -row)

    assert state_of(lambda x: tf.map_fn(either, x)) == "Split(0)"


def swapped(x: tf.Tensor) -> tf.Tensor:
    """Where the turn's number is odd, what a part adds to is the other sum."""
    return loop(x, lambda i, rows, sums: (sums[1] + tf.reduce_sum(rows.read(i)), sums[0]), (2.0, 0.0))[0]


def lists_that_change_places(x: tf.Tensor) -> tf.Tensor:
    count = tf.shape(x)[0]
    lists = [tf.TensorArray(tf.float32, count, clear_after_read=False).unstack(each) for each in (x, 2.0 * x)]

    def turn(i: tf.Tensor, first: Any, second: Any, total: tf.Tensor) -> Any:
        return i + 1, second, first, total + first.read(i)

    start = (0, *lists, tf.zeros(WIDTH))
    return tf.while_loop(lambda i, first, second, total: i < count, turn, start)[3]


def doubled(x: tf.Tensor) -> tf.Tensor:
    """The first half of the list is not the first half of each part's."""
    count = tf.shape(x)[0]
    rows = tf.TensorArray(tf.float32, 2 * count).unstack(tf.repeat(x, 2, axis=0))
    turn = lambda i, total: (i + 1, total + rows.read(i))  # noqa: E731
    return tf.while_loop(lambda i, total: i < count, turn, (0, tf.zeros(WIDTH)))[1]


def list_in_a_list(x: tf.Tensor) -> tf.Tensor:
    """Of a list of all rows each part has another one: it is no row's own."""
    rows = tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.constant([WIDTH]))
    kept = tf.raw_ops.EmptyTensorList(
        element_shape=tf.constant([], tf.int32), max_num_elements=-1, element_dtype=tf.variant
    )

    def turn(i: tf.Tensor, lists: tf.Tensor, total: tf.Tensor) -> Any:
        row = tf.raw_ops.TensorListGetItem(
            input_handle=rows, index=i, element_shape=tf.constant([WIDTH]), element_dtype=tf.float32
        )
        return i + 1, tf.raw_ops.TensorListPushBack(input_handle=lists, tensor=rows), total + row

    return tf.while_loop(lambda i, lists, total: i < tf.shape(x)[0], turn, (0, kept, tf.zeros(WIDTH)))[2]


RELATED: dict[str, Loop] = {
    "what a turn reads another has made": lambda x: tf.scan(lambda before, row: tf.tanh(before + row), x),
    "a product": lambda x: loop(x, lambda i, rows, total: total * rows.read(i), tf.ones(WIDTH)),
    "a sum that is read": lambda x: loop(x, lambda i, rows, total: total + total * rows.read(i), tf.zeros(WIDTH)),
    "the next row": lambda x: loop(
        x, lambda i, rows, total: total + rows.read((i + 1) % tf.shape(x)[0]), tf.zeros(WIDTH)
    ),
    "from the second row on": lambda x: loop(x, lambda i, rows, total: total + rows.read(i), tf.zeros(WIDTH), first=1),
    "up to half of the rows": lambda x: loop(
        x,
        lambda i, rows, total: total + rows.read(i),
        tf.zeros(WIDTH),
        goes_on=lambda i, total: i < tf.shape(x)[0] // 2,
    ),
    "until something is large": lambda x: loop(
        x,
        lambda i, rows, total: total + rows.read(i),
        tf.zeros(WIDTH),
        goes_on=lambda i, total: tf.logical_and(i < tf.shape(x)[0], tf.reduce_sum(total) < 3.0),
    ),
    "the number of the row": lambda x: loop(
        x, lambda i, rows, total: total + rows.read(i) * tf.cast(i, tf.float32), tf.zeros(WIDTH)
    ),
    "two sums that change places": swapped,
    "two lists that change places": lists_that_change_places,
    "a list of all rows in a list": list_in_a_list,
    "a list with two elements for each example": doubled,
    "the last row": lambda x: loop(x, lambda i, rows, last: rows.read(i), tf.zeros(WIDTH)),
    "all rows": lambda x: tf.map_fn(lambda row: row * tf.reduce_max(x), x),
    "a draw": lambda x: tf.map_fn(lambda row: row * tf.random.uniform([]), x),
}


@pytest.mark.parametrize("related", RELATED)
def test_what_relates_turns_is_computed_once(related: str) -> None:
    assert state_of(RELATED[related]) == "once"
    assert why(RELATED[related])


def test_the_reason_says_which_operation_of_the_turn() -> None:
    (reason,) = why(RELATED["the number of the row"])
    assert reason == (
        "StatelessWhile takes it whole: inside it, Cast relates the turns of a loop, which are examples, to each other"
    )
