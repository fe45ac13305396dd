"""Numbers that say where examples are: each part counts from its own first example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, trace
from whale_tf.ir.graph import DType, Ref, Shape, TensorType
from whale_tf.ir.sharding import WHOLE, Split, Value
from whale_tf.ir.sizes import Array
from whale_tf.plan.local import Given
from whale_tf.plan.positions import columns_ahead, progression
from whale_tf.plan.states import States

FLAGS = tf.TensorSpec([None], tf.bool)


def states_of(function: Callable[..., Any], *specs: tf.TensorSpec) -> tuple[str, States, Ref]:
    traced = trace(lambda *given: {"y": function(*given)}, *specs)
    states = traced.derived()
    return traced.told(states)["y"], states, traced.outputs["y"]


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda m, x: tf.where(m), "Split(0, 1, 1)"),
        (lambda m, x: tf.boolean_mask(x, m), "Split(0)"),
        (lambda m, x: tf.reduce_sum(tf.boolean_mask(x, m)), "Partial(sum)"),
        (lambda m, x: tf.where(m) + 1, "Split(0, 1, 1)"),
        (lambda m, x: tf.where(m) * 3, "Split(0, 1, 3)"),
        (lambda m, x: tf.cast(tf.where(m), tf.int32), "Split(0, 1, 1)"),
        (lambda m, x: tf.gather(tf.constant([1.0, 2.0]), tf.where(m)[:, 0] % 2), "Split(0)"),
        (lambda m, x: tf.gather(x, tf.argsort(x[:, 0])), "once"),
        (lambda m, x: tf.where(tf.logical_and(m[:, tf.newaxis], x > 0)), "Split(0, 1, 1, column)"),
        (lambda m, x: tf.where(tf.transpose(x) > 0), "once"),
    ],
)
def test_positions_of_examples_are_counted_by_each_part(function: Callable[..., Any], state: str) -> None:
    assert states_of(function, FLAGS, ROWS)[0] == state


def test_what_else_is_made_of_positions_is_made_of_the_true_ones() -> None:
    told, states, output = states_of(lambda m: tf.sqrt(tf.cast(tf.where(m)[:, 0], tf.float32)), FLAGS)
    assert told == "Split(0)"
    assert [use.shift for use in states.uses.values() if use.shift] == [(1,)]
    assert states.value(output).state == Split(0)


def test_a_difference_of_positions_needs_no_true_ones() -> None:
    told, states, _ = states_of(lambda m: tf.sqrt(tf.cast(tf.where(m)[:, 0] - tf.where(m)[:, 0], tf.float32)), FLAGS)
    assert told == "Split(0)"
    assert not any(use.shift for use in states.uses.values())


def given_of(number: Array | None, following: tuple[int, ...] | None = (0,), batch: int = 4) -> Given:
    shape = Shape(number.shape if number is not None else (batch,))
    kind = TensorType(DType(number.dtype.name if number is not None else "int32"), shape)
    return Given(Ref("k"), kind, Value(WHOLE), following, number, lambda dim, outer: True, batch)


@pytest.mark.parametrize(
    ("number", "unit"),
    [
        (np.arange(4), 1),
        (3 * np.arange(4) + 7, 3),
        (np.arange(12).reshape(4, 3), 3),
        (np.arange(8), 2),
        (np.array([0, 1, 2, 4]), 0),
        (np.array([5, 5, 5, 5]), 0),
        (np.arange(4.0), 0),
    ],
)
def test_a_progression_grows_by_the_same_for_each_example(number: Array, unit: int) -> None:
    assert progression(given_of(number)) == unit


@pytest.mark.parametrize("following", [(), None, (0, 1)])
def test_what_does_not_follow_the_batch_is_no_progression(following: tuple[int, ...] | None) -> None:
    assert progression(given_of(np.arange(4), following)) == 0


def test_an_unknown_number_is_no_progression() -> None:
    assert progression(given_of(None)) == 0


def test_positions_in_several_dims_count_examples_in_the_first_column_only() -> None:
    rows = np.stack([np.arange(4), np.full(4, 2)], axis=1)
    assert columns_ahead(given_of(rows)) == 1
    assert columns_ahead(given_of(np.stack([np.arange(4), np.arange(4)], axis=1))) == 0
