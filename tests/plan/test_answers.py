"""Answers of single kinds of operations: random numbers, normalization, assertions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.plan.traced import LABELS, ROWS, states_of, trace
from whale_tf.ir.graph import Ref
from whale_tf.plan.states import Choices

IMAGES = tf.TensorSpec([None, 4, 4, 2], tf.float32)
SEED = tf.TensorSpec([2], tf.int32)


def state_of(function: Callable[..., Any], *specs: tf.TensorSpec) -> str:
    return states_of(lambda *given: {"y": function(*given)}, *(specs or (ROWS,)))["y"]


# Random numbers.


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (lambda x: tf.random.uniform(tf.shape(x)), "Split(0)"),
        (lambda x: tf.random.normal([tf.shape(x)[0], 5]), "Split(0)"),
        (lambda x: tf.random.normal([5, tf.shape(x)[0]]), "Split(1)"),
        (lambda x: tf.nn.dropout(x, 0.5), "Split(0)"),
        (lambda x: tf.random.shuffle(x), "once"),
        (lambda x: tf.random.categorical(x, 1), "Split(0)"),
    ],
)
def test_rows_that_follow_the_batch_are_drawn_by_each_part(function: Callable[..., Any], state: str) -> None:
    assert state_of(function) == state


def test_what_does_not_follow_the_batch_is_drawn_once() -> None:
    traced = trace(lambda x: {"y": x * tf.random.normal([3])})
    states = traced.derived()
    (draw,) = [node.name for node in traced.sizes.graph if "Normal" in node.op]
    assert not states.known[Ref(draw)].micro


def test_a_draw_from_a_seed_follows_too() -> None:
    assert state_of(lambda x, seed: tf.random.stateless_uniform(tf.shape(x), seed), ROWS, SEED) == "Split(0)"
    assert state_of(lambda x, seed: tf.random.stateless_uniform([3], seed), ROWS, SEED) == "early"


def test_a_draw_that_follows_in_two_dims_is_drawn_once() -> None:
    assert state_of(lambda x: tf.random.uniform([tf.shape(x)[0], tf.shape(x)[0]])) == "early"


# Normalization.


def normalized(x: tf.Tensor, *, training: bool) -> Any:
    ones, zeros = tf.ones([2]), tf.zeros([2])
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=ones, offset=zeros, mean=zeros, variance=ones, is_training=training, epsilon=0.001
    )


def test_with_given_statistics_each_part_normalizes_its_examples() -> None:
    assert state_of(lambda x: normalized(x, training=False).y, IMAGES) == "Split(0)"


def test_with_those_of_the_batch_it_does_so_where_each_parts_own_are_accepted() -> None:
    traced = trace(lambda x: {"y": normalized(x, training=True).y}, IMAGES)
    (name,) = [node.name for node in traced.sizes.graph if node.op == "FusedBatchNormV3"]
    assert traced.told() == {"y": "once"}
    assert traced.derived().why[name] == "FusedBatchNormV3 normalizes over the batch"
    assert traced.told(traced.derived(Choices(accepted=frozenset({name})))) == {"y": "Split(0)"}


def test_layer_normalization_is_by_example() -> None:
    layer = keras.layers.LayerNormalization()
    layer.build((None, 3))
    assert state_of(layer) == "Split(0)"


# Assertions.


@pytest.mark.parametrize(
    "asserted",
    [
        lambda labels: tf.debugging.assert_less(labels, 10),
        lambda labels: tf.debugging.assert_non_negative(labels),
        lambda labels: tf.debugging.Assert(tf.reduce_all(labels < 10), [labels]),
    ],
)
def test_each_part_asserts_what_it_has(asserted: Callable[[tf.Tensor], Any]) -> None:
    def step(labels: tf.Tensor) -> dict[str, Any]:
        asserted(labels)
        return {"y": labels + 1}

    states = trace(step, LABELS).derived()
    levels = {states.level[node.name] for node in states.sizes.graph if node.op in ("Assert", "If", "StatelessIf")}
    assert levels == {0}


def test_an_assertion_about_a_total_is_made_once() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        tf.debugging.assert_less(tf.reduce_sum(x), 10.0)
        return {"y": x + 1}

    states = trace(step).derived()
    assert {states.level[n.name] for n in states.sizes.graph if n.op in ("Assert", "If")} == {1}
