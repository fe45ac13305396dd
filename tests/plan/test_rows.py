"""How many rows there are, where that is known only when the step runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.plan.traced import ROWS, states_of, trace

FLAGS = tf.TensorSpec([None], tf.bool)


def state_of(function: Callable[..., Any]) -> str:
    return states_of(lambda m, x: {"y": function(tf.boolean_mask(x, m))}, FLAGS, ROWS)["y"]


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda rows: tf.shape(rows), "Extent(0)"),
        (lambda rows: tf.size(rows[:, 0]), "Partial(sum)"),
        (lambda rows: tf.size(rows), "Partial(sum)"),
        (lambda rows: tf.ones_like(rows), "Split(0)"),
        (lambda rows: tf.reshape(rows, [-1, 3]), "Split(0)"),
        (lambda rows: rows * 2, "Split(0)"),
        (lambda rows: tf.reduce_max(rows), "Partial(max)"),
        (lambda rows: tf.reduce_sum(rows, axis=1), "Split(0)"),
        (lambda rows: tf.reduce_mean(rows, axis=1), "Split(0)"),
        (lambda rows: tf.reshape(rows, [3, -1]), "once"),
    ],
)
def test_rows_of_each_part_add_up_to_all(function: Callable[..., Any], state: str) -> None:
    assert state_of(function) == state


def test_a_mean_over_rows_is_a_quotient_of_totals() -> None:
    """Each part has another number of rows: their means could not be averaged."""
    traced = trace(lambda m, x: {"y": tf.reduce_mean(tf.boolean_mask(x, m))}, FLAGS, ROWS)
    states = traced.derived()
    assert traced.told(states) == {"y": "once"}
    output = traced.sizes.graph[traced.outputs["y"].node]
    assert output.op == "RealDiv"
    assert [str(states.value(ref)) for ref in output.inputs] == ["Partial(sum)", "Partial(sum)"]


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: tf.shape(rows),
        lambda rows: tf.shape(rows)[0],
        lambda rows: tf.shape(rows)[1],
        lambda rows: tf.size(rows),
        lambda rows: tf.reduce_sum(rows) / tf.cast(tf.shape(rows)[0], tf.float32),
    ],
)
def test_how_many_rows_there_are_equals_one_device(function: Callable[[tf.Tensor], tf.Tensor]) -> None:
    whale.init(2)
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    chosen = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)

    @whale.function
    def step(x: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        with whale.replica(2):
            return function(tf.boolean_mask(x, chosen))

    np.testing.assert_allclose(step(x, chosen), function(tf.boolean_mask(x, chosen)))
