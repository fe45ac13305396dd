"""Calls, branches and loops: what their bodies make of the states that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, Traced, states_of, trace
from whale_tf.ir.sharding import Split

SCALAR = tf.TensorSpec([], tf.float32)
COUNT = tf.TensorSpec([], tf.int32)
WEIGHTS = tf.ones([WIDTH, WIDTH])


def state_of(function: Callable[..., Any], *specs: tf.TensorSpec) -> str:
    return states_of(lambda *given: {"y": function(*given)}, *specs)["y"]


def reason_of(function: Callable[..., Any], op: str, *specs: tf.TensorSpec) -> str:
    """Why no part runs the one operation of a type."""
    traced: Traced = trace(lambda *given: {"y": function(*given)}, *specs)
    states = traced.derived()
    (reason,) = [states.why[node.name] for node in traced.sizes.graph if node.op == op]
    return reason


# Calls.


@tf.function(jit_compile=True)
def layer(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(x @ tf.ones([WIDTH, WIDTH]))


@tf.function(jit_compile=True)
def averaged(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(x)


@tf.function(jit_compile=True)
def centered(x: tf.Tensor) -> tf.Tensor:
    return x - tf.reduce_mean(x)


def test_the_results_of_a_call_are_what_its_body_makes() -> None:
    assert state_of(layer, ROWS) == "Split(0)"
    assert state_of(averaged, ROWS) == "Partial(sum) of degree -1"
    assert state_of(lambda x: layer(layer(x)), ROWS) == "Split(0)"


def test_nothing_inside_a_call_can_be_merged() -> None:
    assert state_of(centered, ROWS) == "once"
    assert reason_of(centered, "PartitionedCall", ROWS) == "inside it, Sub needs the total over all examples"


# Branches.


def choose(x: tf.Tensor, at: tf.Tensor, first: Callable[[tf.Tensor], Any], second: Callable[[tf.Tensor], Any]) -> Any:
    return tf.cond(at > 0, lambda: first(x), lambda: second(x))


def test_both_branches_give_pieces() -> None:
    assert state_of(lambda x, at: choose(x, at, tf.nn.relu, tf.nn.tanh), ROWS, SCALAR) == "Split(0)"


def test_constants_of_the_shape_of_the_batch_become_pieces() -> None:
    assert state_of(lambda x, at: choose(x, at, tf.nn.relu, tf.zeros_like), ROWS, SCALAR) == "Split(0)"


def test_a_zero_is_a_term_of_any_sum() -> None:
    assert (
        state_of(lambda x, at: choose(x, at, tf.reduce_sum, lambda x: tf.constant(0.0)), ROWS, SCALAR) == "Partial(sum)"
    )
    assert state_of(lambda x, at: choose(x, at, tf.reduce_sum, lambda x: tf.constant(1.0)), ROWS, SCALAR) == "once"


def test_branches_that_depend_on_the_batch_in_different_ways_are_run_once() -> None:
    def mixed(x: tf.Tensor, at: tf.Tensor) -> Any:
        return choose(x, at, tf.reduce_sum, tf.reduce_mean)

    assert state_of(mixed, ROWS, SCALAR) == "once"
    assert reason_of(mixed, "StatelessIf", ROWS, SCALAR) == (
        "branches whose results depend on the batch in different ways"
    )


def test_a_condition_of_examples_chooses_for_all_at_once() -> None:
    def by_total(x: tf.Tensor) -> Any:
        return choose(x, tf.reduce_sum(x), tf.nn.relu, tf.nn.tanh)

    assert state_of(by_total, ROWS) == "once"


def test_a_switch_is_a_branch_of_several() -> None:
    def switched(x: tf.Tensor, at: tf.Tensor) -> Any:
        return tf.switch_case(at, [lambda: tf.nn.relu(x), lambda: x + 1, lambda: -x])

    assert state_of(switched, ROWS, COUNT) == "Split(0)"


# Loops.


def repeat(body: Callable[..., Any], *start: Any) -> Any:
    return tf.while_loop(lambda i, *_: i < 3, lambda i, *carried: (i + 1, *body(*carried)), (0, *start))[1:]


def test_a_loop_over_positions_carries_pieces() -> None:
    assert state_of(lambda x: repeat(lambda h: (tf.tanh(h @ WEIGHTS + x),), x)[0], ROWS) == "Split(0)"


def test_zeros_of_the_shape_of_the_batch_enter_a_loop_as_pieces() -> None:
    traced = trace(lambda x: {"y": repeat(lambda h: (tf.tanh(h + x),), tf.zeros_like(x))[0]}, ROWS)
    states = traced.derived()
    assert traced.told(states) == {"y": "Split(0)"}
    node = traced.outputs["y"].node
    assert [use.piece for (name, _), use in states.uses.items() if name == node] == [Split(0)]


def test_a_sum_over_turns_is_a_sum_over_parts() -> None:
    assert state_of(lambda x: repeat(lambda s: (s + tf.reduce_sum(x),), tf.constant(0.0))[0], ROWS) == "Partial(sum)"


def test_a_sum_that_begins_with_a_number_is_run_once() -> None:
    """Inside a loop no part can take its share of it."""
    assert state_of(lambda x: repeat(lambda s: (s + tf.reduce_sum(x),), tf.constant(2.0))[0], ROWS) == "once"


def test_a_list_of_what_each_turn_makes_is_cut() -> None:
    def recurrence(x: tf.Tensor) -> tf.Tensor:
        array, state = tf.TensorArray(tf.float32, size=3), tf.zeros_like(x)
        for i in tf.range(3):
            state = tf.tanh(state + x)
            array = array.write(i, state)
        return array.stack()

    assert state_of(recurrence, ROWS) == "Split(1)"


def test_a_loop_that_ends_by_examples_is_run_once() -> None:
    def until(x: tf.Tensor) -> Any:
        return tf.while_loop(lambda h: tf.reduce_all(h < 100.0), lambda h: (h * 2.0,), (x,))[0]

    assert state_of(until, ROWS) == "once"
    assert reason_of(until, "StatelessWhile", ROWS) == "a loop that ends by something that differs between examples"


def test_a_loop_that_relates_examples_is_run_once() -> None:
    def mixing(x: tf.Tensor) -> Any:
        return repeat(lambda h: (h - tf.reduce_mean(h),), x)[0]

    assert state_of(mixing, ROWS) == "once"
    assert reason_of(mixing, "StatelessWhile", ROWS) == "inside it, Sub needs the total over all examples"


@pytest.mark.parametrize("turns", [1, 4])
def test_a_gradient_through_a_loop_is_a_sum_over_parts(turns: int) -> None:
    weights = tf.Variable(WEIGHTS)

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = tf.while_loop(lambda i, _: i < turns, lambda i, h: (i + 1, tf.tanh(h @ weights)), (0, x))[1]
            loss = tf.reduce_mean(h)
        return {"gradient": tape.gradient(loss, weights)}

    traced = trace(step)
    states = traced.derived()
    (marker,) = states.markers
    source = states.known[traced.sizes.graph[marker].inputs[0]]
    assert (str(source.value), source.coupled) == ("Partial(sum)", frozenset())
