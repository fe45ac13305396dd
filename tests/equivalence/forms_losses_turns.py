"""Losses by loops whose turns are the examples: each part takes the turns of its own examples."""

from __future__ import annotations

import tensorflow as tf

from tests.equivalence.forms import LENGTH, Net, forms, squares


def mapped_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Each example by itself in a tf.map_fn."""
    return tf.reduce_sum(tf.map_fn(lambda row: tf.reduce_sum(row**2), h)) / 16.0


def mapped_through_a_layer(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The gradient of a weight is a sum over the turns."""
    rows = tf.map_fn(lambda row: tf.tanh(tf.linalg.matvec(net.weight, row)), h)
    return tf.reduce_mean(squares(rows, y))


def mapped_pairs(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Several tensors in, several out, of which one is no float."""

    def of_one(one: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        row, label = one
        return row * tf.nn.softmax(row), tf.cast(tf.argmax(row), tf.int32) + label

    rows, chosen = tf.map_fn(of_one, (h, y), fn_output_signature=(tf.float32, tf.int32))
    return tf.reduce_mean(squares(rows, y) * tf.cast(chosen, tf.float32))


def mapped_rows_of_a_table(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The gradient of a table inside the loop."""
    words = tf.map_fn(lambda ids: tf.reduce_sum(tf.gather(net.table, ids), axis=0), net.tokens, tf.float32)
    return tf.reduce_mean(squares(h + words, y))


def mapped_in_a_map(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Examples, and the numbers of each."""
    cubes = tf.map_fn(lambda row: tf.map_fn(lambda number: number**3 * net.weight[0, 0], row), h)
    return tf.reduce_mean(squares(cubes, y))


def mapped_with_a_loop_inside(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A recurrence over the words of each example."""

    def of_one(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        row, ids = one
        for position in tf.range(LENGTH):
            row = tf.tanh(tf.linalg.matvec(net.weight, row) + tf.gather(net.table, ids[position]))
        return row

    return tf.reduce_mean(squares(tf.map_fn(of_one, (h, net.tokens), fn_output_signature=tf.float32), y))


def mapped_with_a_branch_inside(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Each example takes its own branch."""

    def of_one(row: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_sum(row) > 0, lambda: row * net.weight[0], lambda: tf.sin(row))

    return tf.reduce_mean(squares(tf.map_fn(of_one, h), y))


def mapped_over_chosen_numbers(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Of each example as many numbers as are large."""

    def of_one(row: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.reduce_sum(tf.boolean_mask(row, row > 0)), tf.reduce_max(tf.abs(row)))

    return tf.reduce_mean(tf.map_fn(of_one, h) * tf.reduce_sum(h, axis=1))


def mapped_by_a_function_of_its_own(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The loop inside a tf.function."""

    @tf.function
    def rows(values: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda row: tf.cumsum(row), values)

    return tf.reduce_mean(squares(rows(h), y))


def added_by_a_fold_to_something(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """What the loop begins with counts once, not in each part."""
    first = tf.reduce_sum(net.weight)
    return tf.foldl(lambda total, loss: total + tf.sqrt(loss + 1.0), squares(h, y), initializer=first) / 16.0


def losses_of_a_map_against_positions(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """One of the loop's lists is a constant of the batch's length: the number of each example."""
    count = h.shape[0]
    weights = tf.range(count, dtype=tf.float32) / 16.0
    rows = tf.map_fn(lambda one: one[0] * one[1], (h, weights), fn_output_signature=tf.float32)
    return tf.reduce_mean(squares(rows, y))


TURNS = forms(
    mapped_examples,
    mapped_through_a_layer,
    mapped_pairs,
    mapped_rows_of_a_table,
    mapped_in_a_map,
    mapped_with_a_loop_inside,
    mapped_with_a_branch_inside,
    mapped_over_chosen_numbers,
    mapped_by_a_function_of_its_own,
    added_by_a_fold_to_something,
    losses_of_a_map_against_positions,
)
