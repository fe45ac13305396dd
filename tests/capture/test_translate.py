"""A trace as a graph: variables are values that are handed on, and an order of side effects is data flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import EXAMPLES, WIDTH, captured, only, recorded
from whale_tf.capture.outside import LARGE_BYTES, Outside
from whale_tf.capture.translate import translate
from whale_tf.ir.graph import Ref, Shape
from whale_tf.ir.text import parse_graph, print_graph


@pytest.fixture
def counter() -> tf.Variable:
    return tf.Variable(tf.zeros([WIDTH]), name="counter", trainable=False)


def test_inputs_know_whether_they_are_the_batch() -> None:
    trace = recorded(tf.nn.relu)
    for batch in (True, False):
        graph = translate(trace, [batch], Outside()).graph
        assert only(graph, "Input").attrs == {"index": 0, "batch": batch}
        assert only(graph, "Input").outputs[0].shape == Shape((EXAMPLES, WIDTH))


def test_a_graph_reads_back_from_its_text(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        counter.assign_add(tf.reduce_sum(x, axis=0))
        return tf.nn.relu(x), counter * 2.0

    graph = captured(step).graph
    assert parse_graph(print_graph(graph)) == graph


def test_reads_see_what_was_written_before_them(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        before = tf.add(counter, 1.0, name="before")
        counter.assign(x[0])
        after = tf.add(counter, 1.0, name="after")
        return before, after

    graph = captured(step).graph
    variable, write = only(graph, "Variable"), only(graph, "Write")
    assert graph["before"].inputs[0] == Ref(variable.name)
    assert graph["after"].inputs[0] == Ref(write.name)
    assert graph.effects == (write.name,)


def test_of_several_writes_the_last_is_the_effect(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        for index in range(3):
            counter.assign_add(x[index])
        return counter + 0.0

    graph = captured(step).graph
    writes = [node.name for node in graph if node.op == "Write"]
    assert len(writes) == 3
    assert graph.effects == (writes[-1],)
    adds = [node for node in graph if node.op == "AddV2"]
    assert [node.inputs[0].node for node in adds][1:3] == writes[:2]


def test_a_variable_knows_what_the_planner_asks(counter: tf.Variable) -> None:
    trained = tf.Variable(2.0, name="w", aggregation=tf.VariableAggregation.MEAN)
    step = captured(lambda x: x * trained + counter)
    attrs = {node.attrs["variable"]: node.attrs for node in step.graph if node.op == "Variable"}
    assert attrs == {
        b"w": {"variable": b"w", "trainable": True, "aggregation": b"MEAN"},
        b"counter": {"variable": b"counter", "trainable": False, "aggregation": b"NONE"},
    }
    assert set(step.variables) == {"w", "counter"}
    assert step.variables["w"] is trained and step.variables["counter"] is counter


def test_variables_of_one_name_are_told_apart() -> None:
    first, second = tf.Variable(1.0, name="w"), tf.Variable(2.0, name="w")
    assert len(captured(lambda x: x * first + second).variables) == 2


def test_a_variable_that_is_only_written_stays_known(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        counter.assign(x[0])
        return tf.nn.relu(x)

    graph = captured(step).graph
    assert only(graph, "Variable").attrs["variable"] == b"counter"


def test_what_nothing_needs_is_left_out(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        tf.exp(x, name="unused")
        return tf.nn.relu(x)

    assert [node.op for node in captured(step).graph] == ["Input", "Relu"]


def test_identities_are_other_names_of_what_they_take() -> None:
    graph = captured(lambda x: tf.stop_gradient(tf.identity(tf.nn.relu(x, name="h")))).graph
    assert graph.outputs == (Ref("h"),)


def test_a_gradient_is_a_marker_of_its_variable() -> None:
    weights = tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.matmul(x, weights, name="product"))
        return tape.gradient(loss, weights)

    graph = captured(step).graph
    marker = only(graph, "Gradient")
    assert marker.attrs == {"call": 1, "part": b"dense", "variable": b"w", "partner": b""}
    assert graph.outputs == (Ref(marker.name),)
    source = graph[marker.inputs[0].node]
    assert (source.call, source.twin) == (1, "product")


def test_scopes_are_stamped_on_operations() -> None:
    def step(x: tf.Tensor) -> Any:
        with whale.stage(name="first"):
            h = tf.nn.relu(x)
        return tf.nn.tanh(h)

    step_graph = captured(step)
    (scope,) = step_graph.trace.opened
    assert (only(step_graph.graph, "Relu").scope, only(step_graph.graph, "Tanh").scope) == (scope.key, "")


def test_what_leaves_the_step_is_an_effect() -> None:
    def step(x: tf.Tensor) -> Any:
        tf.print(tf.reduce_sum(x))
        return tf.nn.relu(x)

    graph = captured(step).graph
    assert [graph[name].op for name in graph.effects] == ["PrintV2"]


def test_tensors_from_outside_have_an_index_and_large_constants_too() -> None:
    outside = tf.constant(np.ones([WIDTH, LARGE_BYTES // 8], np.float32))
    table = np.arange(LARGE_BYTES, dtype=np.float32)
    step = captured(lambda x: (x @ outside, tf.constant(table)[0]))
    indices = {node.name: node.attrs["index"] for node in step.graph if node.op == "Captured"}
    assert sorted(indices.values()) == [0, 1]
    assert len(step.captured) == 2


def test_tables_are_handles() -> None:
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2.0]), 0.0)
    step = captured(lambda x: table.lookup(tf.cast(x[:, 0], tf.int32)))
    handle = only(step.graph, "Handle")
    assert handle.outputs[0].dtype == "resource"
    assert only(step.graph, "LookupTableFindV2").inputs[0] == Ref(handle.name)


def test_shapes_are_those_of_the_trace() -> None:
    graph = captured(lambda x: tf.transpose(x)).graph
    assert only(graph, "Transpose").outputs[0].shape == Shape((WIDTH, EXAMPLES))


def test_two_traces_of_one_step_have_the_same_nodes(counter: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        counter.assign_add(tf.reduce_sum(x, axis=0))
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)

    assert print_graph(captured(step).graph) == print_graph(captured(step).graph)
