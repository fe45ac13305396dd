"""What constants and known shapes determine is known when planning, by TensorFlow's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from whale_tf.capture.fold import LARGEST, fold
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import record
from whale_tf.capture.translate import translate
from whale_tf.ir.graph import Ref
from whale_tf.ir.sizes import Array
from whale_tf.ir.text import parse_graph

WEIGHTS = tf.Variable(tf.ones([4]))


def folded(step: Callable[[tf.Tensor], Any], shape: tuple[int | None, ...] = (16, 4)) -> Array | None:
    """The value of what a step of x returns; None if it is not known."""
    specs = [tf.TensorSpec(shape, tf.float32)]
    trace = record(step, lambda tensors: (tuple(tensors), {}), specs, "step", examples=shape[0] or 0)
    graph = translate(trace, [True], Outside()).graph
    (output,) = graph.outputs
    return fold(graph).get(output)


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (lambda x: tf.shape(x), [16, 4]),
        (lambda x: tf.shape(x)[0] * 4, 64),
        (lambda x: tf.shape(x, out_type=tf.int64)[0], 16),
        (lambda x: tf.size(x), 64),
        (lambda x: tf.rank(x), 2),
        (lambda x: tf.stack([tf.shape(x)[0], 3]), [16, 3]),
        (lambda x: tf.range(tf.shape(x)[1]), [0, 1, 2, 3]),
        (lambda x: 0.1 * tf.cast(tf.shape(x)[0], tf.float32) / 256, 0.1 * 16 / 256),
        (lambda x: tf.zeros_like(x)[0], [0, 0, 0, 0]),
        (lambda x: tf.ones_like(x, dtype=tf.int32)[1, 1], 1),
        (lambda x: tf.fill([tf.shape(x)[0]], 7)[3], 7),
        (lambda x: tf.constant([1.0, 2.0]) + 1, [2, 3]),
        (lambda x: tf.equal(tf.shape(x)[0], tf.shape(x)[0]), True),
    ],
)
def test_what_shapes_and_constants_determine_is_known(step: Callable[[tf.Tensor], Any], value: Any) -> None:
    found = folded(step)
    assert found is not None
    np.testing.assert_allclose(found, value, rtol=1e-6)  # as float32 rounds
    assert found.shape == np.shape(value)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: tf.nn.relu(x),
        lambda x: tf.reduce_sum(x),
        lambda x: WEIGHTS + 0.0,
        lambda x: tf.random.uniform([3]),
        lambda x: tf.random.stateless_uniform([3], [1, 2]),
        lambda x: tf.cast(tf.constant("a") == "b", tf.float32) * x,
    ],
    ids=["examples", "a total", "a variable", "a draw", "a draw from a seed", "examples times a constant"],
)
def test_what_depends_on_anything_else_is_not(step: Callable[[tf.Tensor], Any]) -> None:
    assert folded(step) is None


def test_an_unknown_dim_is_not_known() -> None:
    assert folded(lambda x: tf.shape(x), (16, None)) is None


def test_large_values_that_are_alike_everywhere_are_held_as_one_number() -> None:
    rows = 4 * LARGEST
    value = folded(lambda x: tf.cast(tf.ones_like(x), tf.float64) * 3.0, (rows, 2))
    assert value is not None
    assert (value.shape, value.dtype, value.strides) == ((rows, 2), np.float64, (0, 0))
    assert value[rows - 1, 1] == 3
    spread = folded(lambda x: tf.reshape(tf.tile(tf.zeros_like(x), [1, 3]), [-1]), (rows, 2))
    assert spread is not None and spread.shape == (6 * rows,) and spread.strides == (0,)


def test_large_values_that_differ_are_computed_where_they_are_used() -> None:
    assert folded(lambda x: tf.range(tf.shape(x)[0]), (LARGEST + 1, 2)) is None
    assert folded(lambda x: tf.range(tf.shape(x)[0]), (LARGEST, 2)) is not None


def test_what_fails_now_is_left_to_fail_where_it_is_used() -> None:
    graph = parse_graph("""
        graph g(out: y) {
          a = Const() {dtype=int32, value=(1, 2)} : int32[2]
          b = Const() {dtype=int32, value=(1, 2, 3)} : int32[3]
          y = AddV2(a, b) {T=int32} : int32[2]
        }
    """)
    assert set(fold(graph)) == {Ref("a"), Ref("b")}


def test_values_from_outside_are_taken_as_they_are_told() -> None:
    graph = parse_graph("""
        graph g(out: y) {
          a = Argument() {index=0} : int32[2]
          y = Neg(a) {T=int32} : int32[2]
        }
    """)
    assert fold(graph) == {}
    np.testing.assert_array_equal(fold(graph, {Ref("a"): np.array([1, 2], np.int32)})[Ref("y")], [-1, -2])


def test_results_of_one_node_are_known_together() -> None:
    graph = parse_graph("""
        graph g(out: s, s:1) {
          a = Const() {dtype=float32, value=(1.0, 2.0)} : float32[2]
          axis = Const() {dtype=int32, value=0, shape=[]} : int32[]
          s = Split(axis, a) {num_split=2, T=float32} : float32[1], float32[1]
        }
    """)
    values = fold(graph)
    np.testing.assert_array_equal(values[Ref("s", 1)], [2.0])


def test_nothing_is_run_that_has_effects() -> None:
    graph = parse_graph("""
        graph g(out: ) effects(p) {
          a = Const() {dtype=float32, value=(1.0)} : float32[1]
          p = PrintV2(a) @stateful
        }
    """)
    assert set(fold(graph)) == {Ref("a")}
