"""What TensorFlow writes in one operation is written in several that parts can share, and means the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.capture.normalize import normalize
from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.text import parse_graph, print_graph
from whale_tf.ir.verify import verify

MEAN = """
graph step(out: m) {
  x = Input() {index=0, batch=true} : float32[8]
  found = Where(x) : int64[?,1]
  chosen = Reshape(found, x) : int64[?]
  axis = Const() {dtype=int32, value=0} : int32[]
  rows = GatherV2(x, chosen, axis) {batch_dims=0} : float32[?]
  axes = Const() {dtype=int32, value=(0)} : int32[1]
  m = Mean(rows, axes) {T=float32} : float32[]
}
"""


def normalized(text: str) -> Graph:
    graph = normalize(parse_graph(text))
    verify(graph, after="normalize")
    return graph


def test_a_mean_over_an_unknown_number_of_rows_is_a_quotient() -> None:
    graph = normalized(MEAN)
    assert (graph["m"].op, graph["m"].inputs) == ("RealDiv", (Ref("m/sum"), Ref("m/number")))
    assert (graph["m/sum"].op, graph["m/sum"].inputs) == ("Sum", (Ref("rows"), Ref("axes")))
    assert graph["m"].outputs == parse_graph(MEAN)["m"].outputs


def test_the_number_of_rows_is_taken_where_it_is_decided() -> None:
    """The positions say how many rows there are, before the rows are made of them."""
    graph = normalized(MEAN)
    (shape,) = [node for node in graph if node.op == "Shape"]
    assert shape.inputs == (Ref("chosen"),)


@pytest.mark.parametrize("text", [MEAN.replace("float32[?]", "float32[8]"), MEAN.replace("m = Mean", "m = Max")])
def test_all_else_is_left_alone(text: str) -> None:
    before = parse_graph(text)
    assert print_graph(normalize(before)) == print_graph(before)


def test_a_mean_of_integers_is_left_alone() -> None:
    """It rounds: no quotient of two sums does so as the kernel does."""
    text = MEAN.replace("float32", "int32")
    assert normalized(text)["m"].op == "Mean"


def test_what_an_operation_is_made_of_keeps_its_stamps() -> None:
    text = MEAN.replace("{T=float32} : float32[]", "{T=float32} : float32[]  @scope=s0 @call=2")
    made = [node for node in normalized(text) if node.name.startswith("m")]
    assert {(node.scope, node.call) for node in made} == {("s0", 2)}
    assert len(made) > 3


def masked_mean(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.boolean_mask(x, x > 0))


def masked_rows(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.boolean_mask(tf.stack([x, 2 * x], axis=1), x > 0), axis=0)


@pytest.mark.parametrize("fn", [masked_mean, masked_rows])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_masked_mean_equals_one_device(fn: Callable[[tf.Tensor], tf.Tensor], parts: int) -> None:
    whale.init(4)
    x = np.array([1, -2, 3, -4, -5, -6, 7, 8], np.float32)

    @whale.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with whale.replica(parts):
            return fn(x)

    np.testing.assert_allclose(step(x), fn(tf.constant(x)), rtol=1e-6)  # another order of addition
