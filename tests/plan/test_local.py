"""What a part can run on its own values: pieces, totals, their degrees, and why not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.traced import LABELS, ROWS, WIDTH, states_of, trace
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import Split
from whale_tf.plan.local import Use
from whale_tf.plan.states import States

SQUARE = tf.ones([WIDTH, WIDTH])


def state_of(function: Callable[[Any], Any], *specs: tf.TensorSpec) -> str:
    return states_of(lambda *given: {"y": function(*given)}, *(specs or (ROWS,)))["y"]


def reason_of(function: Callable[[Any], Any], *specs: tf.TensorSpec) -> str:
    """Why no part runs the operation that a function ends with."""
    traced = trace(lambda *given: {"y": function(*given)}, *(specs or (ROWS,)))
    states = traced.derived()
    assert traced.told(states) == {"y": "once"}
    return states.why[traced.outputs["y"].node]


def gradient_of(loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> States:
    """The states of a step that takes the gradient of loss(x, w), w [WIDTH]."""
    weights = tf.Variable(tf.ones([WIDTH]))

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            value = loss(x, weights)
        return {"g": tape.gradient(value, weights)}

    return trace(step).derived()


# Pieces.


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (tf.nn.relu, "Split(0)"),
        (lambda x: x @ SQUARE, "Split(0)"),
        (lambda x: x + tf.ones([WIDTH]), "Split(0)"),
        (lambda x: tf.reduce_sum(x, axis=1), "Split(0)"),
        (lambda x: tf.nn.softmax(x), "Split(0)"),
        (lambda x: tf.transpose(x), "Split(1)"),
        (lambda x: tf.gather(SQUARE, tf.argmax(x, axis=1)), "Split(0)"),
        (lambda x: tf.where(x > 0, x, tf.zeros_like(x)), "Split(0)"),
        (lambda x: tf.einsum("bi,ij->bj", x, SQUARE), "Split(0)"),
    ],
)
def test_an_operation_that_keeps_the_letter_of_the_batch_is_run_on_pieces(
    function: Callable[[Any], Any], state: str
) -> None:
    assert state_of(function) == state


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: tf.cumsum(x, axis=0), "Cumsum relates examples to each other"),
        (lambda x: tf.nn.softmax(tf.transpose(x)), "Softmax relates examples to each other"),
        (lambda x: x @ tf.transpose(x), "MatMul relates examples to each other"),
        (lambda x: tf.reverse(x, [0]), "ReverseV2 relates examples to each other"),
        (lambda x: x[1:], "StridedSlice relates examples to each other"),
    ],
)
def test_one_that_relates_examples_is_not(function: Callable[[Any], Any], reason: str) -> None:
    assert reason_of(function) == reason


def test_a_whole_operand_that_is_as_long_as_the_batch_is_cut_with_the_others() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        rows = tf.cast(tf.range(tf.shape(x)[0]), tf.float32)
        return {"y": x * rows[:, tf.newaxis], "z": x * tf.ones_like(x)}

    traced = trace(step)
    states = traced.derived()
    assert traced.told(states) == {"y": "Split(0)", "z": "Split(0)"}
    uses = {use for (name, _), use in states.uses.items() if name in {ref.node for ref in traced.outputs.values()}}
    assert uses == {Use(Split(0)), Use(Split(0), alike=True)}


# Totals.


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.reduce_sum(x, axis=0), "Partial(sum)"),
        (lambda x: tf.reduce_mean(x), "Partial(sum) of degree -1"),
        (lambda x: tf.reduce_max(x, axis=0), "Partial(max)"),
        (lambda x: tf.reduce_min(x), "Partial(min)"),
        (lambda x: tf.reduce_prod(x), "Partial(prod)"),
        (lambda x: tf.reduce_all(x > 0), "Partial(all)"),
        (lambda x: tf.reduce_any(x > 0, axis=0), "Partial(any)"),
        (lambda x: tf.transpose(x) @ x, "Partial(sum)"),
        (lambda x: tf.nn.l2_loss(x), "Partial(sum)"),
        (lambda x: tf.reduce_mean(tf.cast(x, tf.int32)), "once"),
    ],
)
def test_what_loses_the_letter_of_the_batch_is_a_total(function: Callable[[Any], Any], state: str) -> None:
    assert state_of(function) == state


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: -tf.reduce_sum(x), "Partial(sum)"),
        (lambda x: 3 * tf.reduce_mean(x), "Partial(sum) of degree -1"),
        (lambda x: tf.reshape(tf.reduce_sum(x, axis=0), [WIDTH, 1]), "Partial(sum)"),
        (lambda x: tf.reduce_sum(tf.reduce_sum(x, axis=0)), "Partial(sum)"),
        (lambda x: tf.reduce_sum(x) + tf.nn.l2_loss(x), "Partial(sum)"),
        (lambda x: -tf.reduce_max(x), "Partial(min)"),
        (lambda x: tf.sqrt(tf.reduce_max(x)), "Partial(max)"),
        (lambda x: tf.maximum(tf.reduce_max(x), 0.0), "Partial(max)"),
        (lambda x: tf.logical_not(tf.reduce_all(x > 0)), "Partial(any)"),
    ],
)
def test_what_commutes_with_the_reduction_is_run_on_the_parts_of_a_total(
    function: Callable[[Any], Any], state: str
) -> None:
    assert state_of(function) == state


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf.sqrt(tf.reduce_sum(x)),
        lambda x: tf.reduce_sum(x) * tf.reduce_sum(x),
        lambda x: tf.reduce_sum(x) / tf.reduce_max(x),
        lambda x: tf.square(tf.reduce_max(x)),
        lambda x: -tf.reduce_prod(x),
        lambda x: tf.minimum(tf.reduce_max(x), 1.0),
        lambda x: tf.maximum(tf.reduce_sum(x), 0.0),
    ],
)
def test_what_does_not_needs_the_total(function: Callable[[Any], Any]) -> None:
    assert reason_of(function).endswith("needs the total over all examples")


def test_a_term_that_every_part_has_is_added_once_to_the_total() -> None:
    """`mean + 1`: nothing waits for it, so that it is added to what is merged."""
    assert state_of(lambda x: tf.reduce_mean(x) + 1.0) == "once"


# Degrees.


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.reduce_mean(x) * 2, "Partial(sum) of degree -1"),
        (lambda x: tf.reduce_mean(tf.reduce_mean(x, axis=0)), "Partial(sum) of degree -1"),
        (lambda x: tf.reduce_sum(x) / 8, "Partial(sum)"),
        (lambda x: tf.reduce_sum(x) / tf.cast(tf.shape(x)[0], tf.float32), "Partial(sum)"),
    ],
)
def test_a_mean_has_degree_minus_one_and_a_number_made_of_the_batch_is_the_global_one(
    function: Callable[[Any], Any], state: str
) -> None:
    assert state_of(function) == state


def test_terms_of_a_sum_are_brought_to_the_same_degree() -> None:
    traced = trace(lambda x: {"y": tf.add(tf.reduce_mean(x), tf.reduce_sum(x) + tf.nn.l2_loss(x), name="both")})
    states = traced.derived()
    degree = states.value(traced.outputs["y"]).degree
    used = {position: use.power for (name, position), use in states.uses.items() if name == traced.outputs["y"].node}
    operands = [states.value(ref).degree for ref in traced.sizes.graph[traced.outputs["y"].node].inputs]
    assert sorted(operands) == [-1, 0]
    assert all(has + used.get(position, 0) == degree for position, has in enumerate(operands))


def test_a_regularization_is_a_term_of_each_part() -> None:
    """mean + |w|²: the parts' gradients of the second would be added, so that each takes its share of it."""
    states = gradient_of(lambda x, w: tf.reduce_mean(tf.square(x @ w[:, tf.newaxis])) + tf.nn.l2_loss(w))
    (marker,) = states.markers
    assert str(states.value(states.sizes.graph[marker].inputs[0])).startswith("Partial(sum)")
    assert Fraction(1) in {use.power for use in states.uses.values()}


def test_integers_are_not_scaled() -> None:
    counts = tf.TensorSpec([None], tf.int32)
    assert state_of(lambda n: tf.reduce_sum(n) * 2, counts) == "Partial(sum)"
    assert state_of(lambda n: tf.reduce_sum(n) + 1, counts) == "once"


# What no rule knows.


def test_an_operation_without_a_rule_says_so() -> None:
    assert reason_of(lambda x: tf.unique(x[:, 0])[0]) == "no rule says how Unique depends on its examples"


def test_a_shape_that_examples_determine_is_told() -> None:
    def filled(labels: tf.Tensor) -> tf.Tensor:
        return tf.ones(tf.reshape(tf.reduce_max(labels), [1]))

    assert "Fill" in reason_of(filled, LABELS)


def test_values_as_long_as_the_batch_in_two_dims_are_not_cut() -> None:
    square = trace(lambda x: {"y": x @ tf.transpose(x)})
    assert square.sizes.following(square.outputs["y"]) == (0, 1)
    assert square.told() == {"y": "once"}


def test_numbers_of_examples_are_given_values_of_the_global_batch() -> None:
    traced = trace(lambda x: {"n": tf.shape(x)[0], "y": x / tf.cast(tf.shape(x)[0], tf.float32)})
    assert traced.told() == {"n": "early", "y": "Split(0)"}
    divisor = traced.sizes.graph[traced.outputs["y"].node].inputs[1]
    np.testing.assert_array_equal(traced.sizes.values[divisor], 8.0)
    assert Ref(traced.outputs["y"].node) not in traced.sizes.values
