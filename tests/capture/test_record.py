"""A trace remembers what a GraphDef forgets: gradients, who made what, scopes, variables that the step creates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import WIDTH, recorded
from tests.run.mistakes import Source
from whale_tf.capture.record import composites, line_of
from whale_tf.errors import CaptureError, VariableError


@pytest.fixture
def weights() -> tf.Variable:
    return tf.Variable(tf.ones([WIDTH, 1]), name="w")


def mean_loss(tape: tf.GradientTape, x: tf.Tensor, weights: tf.Variable) -> tf.Tensor:
    with tape:
        return tf.reduce_mean(tf.square(tf.matmul(x, weights, name="product")), name="loss")


# Arguments and outputs.


def test_arguments_and_outputs_are_named_by_their_operations() -> None:
    trace = recorded(lambda x: {"a": [tf.nn.relu(x, name="h")], "b": None, "c": x})
    assert trace.arguments == ("argument_0",)
    given = [trace.graph.get_operation_by_name(name).inputs[0].op.name for name, _ in trace.outputs]
    assert given == ["h", "argument_0"]
    assert trace.structure["b"] is None


def test_tensors_that_belong_together_are_told() -> None:
    trace = recorded(lambda x: (x, tf.RaggedTensor.from_tensor(x), tf.sparse.from_dense(x)))
    kinds = dict(composites(trace))
    assert set(kinds) == {"RaggedTensor", "SparseTensor"}
    assert len(trace.outputs) == 1 + sum(map(len, kinds.values()))
    assert 0 not in {position for positions in kinds.values() for position in positions}


# Gradients.


def test_each_gradient_passes_through_a_marker(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        tape = tf.GradientTape(persistent=True)
        loss = mean_loss(tape, x, weights)
        with tape:
            tape.watch(x)
        return tape.gradient(loss, weights)

    trace = recorded(step)
    (marker,) = [marker for marker in trace.markers if marker.part == "dense"]
    assert (marker.call, marker.partner, marker.tensor) == (1, "", None)
    assert marker.source is weights.handle
    ((output, _),) = trace.outputs
    assert trace.graph.get_operation_by_name(output).inputs[0].op.name == marker.operation
    assert trace.targets == {1: ("loss",)}


def test_what_a_gradient_call_made_has_its_number(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        for _ in range(2):
            tape = tf.GradientTape()
            loss = mean_loss(tape, x, weights)
            gradient = tape.gradient(loss, weights)
            weights.assign_sub(gradient)
        return loss

    trace = recorded(step)
    assert [marker.call for marker in trace.markers] == [1, 2]
    assert set(trace.calls.values()) == {1, 2}
    assert "product" not in trace.calls and "loss" not in trace.calls
    assert trace.calls[next(name for name in trace.calls if "MatMul" in name)] == 1


def test_backward_operations_are_named_after_their_forward_twins(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        tape = tf.GradientTape()
        loss = mean_loss(tape, x, weights)
        return tape.gradient(loss, weights)

    made = recorded(step).calls
    assert any(name.startswith("gradient_tape/product/") for name in made)


def test_rows_of_a_table_are_two_markers_that_know_each_other() -> None:
    table = tf.Variable(tf.ones([9, 2]))

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, tf.cast(x[:, 0], tf.int32)))
        return tape.gradient(loss, table)

    values, indices = recorded(step).markers
    assert (values.part, indices.part) == ("values", "indices")
    assert (values.partner, indices.partner) == (indices.operation, values.operation)
    assert values.source is indices.source is table.handle


def test_a_gradient_of_a_tensor_says_of_which() -> None:
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(x)
        return tape.gradient(loss, x)

    (marker,) = recorded(step).markers
    assert (marker.source, marker.tensor) == (None, ("argument_0", 0))


def test_a_second_derivative_marks_what_comes_back_through_the_first(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as outer:
            inner = tf.GradientTape()
            loss = mean_loss(inner, x, weights)
            norm = tf.reduce_sum(tf.square(inner.gradient(loss, weights)))
        return outer.gradient(norm, weights)

    trace = recorded(step)
    assert sorted(marker.part for marker in trace.markers) == ["adjoint", "dense", "dense"]
    (adjoint,) = [marker for marker in trace.markers if marker.part == "adjoint"]
    assert adjoint.call == 1
    assert trace.calls[adjoint.operation] == 2


def test_a_jacobian_of_examples_is_ordinary_code_and_one_of_anything_else_is_marked(weights: tf.Variable) -> None:
    def jacobian_of(target: Callable[[tf.Tensor], tf.Tensor]) -> int:
        def step(x: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                value = target(x @ weights)
            return tape.jacobian(value, weights)

        return len(recorded(step).markers)

    assert jacobian_of(lambda h: h[:, 0]) == 0
    assert jacobian_of(lambda h: tf.reduce_sum(h, axis=0)) == 1


@pytest.mark.parametrize("through", ["nothing", "another variable"])
def test_gradients_that_reach_nothing_are_refused(weights: tf.Variable, through: str) -> None:
    other = tf.Variable(1.0)

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(x) * (other if through == "another variable" else 1.0)
        return tape.gradient(loss, [weights])

    with pytest.raises(CaptureError) as refused:
        recorded(step)
    source = Source(test_gradients_that_reach_nothing_are_refused)
    assert str(refused.value) == (
        "the gradient reaches no variable.\n"
        "  every gradient of the call is None\n"
        f"  at {source.at('return tape.gradient')}\n"
        "  Compute the loss inside the GradientTape, from the variables that are given to tape.gradient."
    )


# Scopes and lines.


def test_scopes_are_told_in_the_order_they_were_opened() -> None:
    def step(x: tf.Tensor) -> Any:
        with whale.replica(2), whale.stage(name="first"):
            h = tf.nn.relu(x)
        with whale.stage(name="second"):
            return tf.nn.tanh(h)

    assert [(scope.kind, scope.name) for scope in recorded(step).opened][1:] == [
        ("stage", "first"),
        ("stage", "second"),
    ]


def test_an_operation_is_the_users_line_and_so_is_what_stands_for_it() -> None:
    def step(x: tf.Tensor) -> Any:
        return tf.nn.relu(x, name="h")

    trace = recorded(step)
    wanted = Source(test_an_operation_is_the_users_line_and_so_is_what_stands_for_it).at("return tf.nn.relu")
    assert str(line_of(trace, "h")) == str(line_of(trace, "h/write/merged")) == wanted
    assert line_of(trace, "nothing").number == 0


def test_functions_inside_are_traced_into_the_step() -> None:
    @tf.function
    def inner(x: tf.Tensor) -> tf.Tensor:
        with whale.stage(name="inside"):
            return tf.nn.relu(x, name="h")

    trace = recorded(lambda x: inner(x) + 1)
    assert trace.graph.get_operation_by_name("h").type == "Relu"
    assert [scope.name for scope in trace.opened] == ["inside"]


def test_tensorflow_is_as_before_after_a_trace() -> None:
    before = (tf.GradientTape.gradient, tf.GradientTape.jacobian, tf.gradients)
    recorded(tf.nn.relu)
    with pytest.raises(ValueError, match="Dimensions must be equal"):
        recorded(lambda x: tf.matmul(x, x))
    assert (tf.GradientTape.gradient, tf.GradientTape.jacobian, tf.gradients) == before


# Variables that the step creates.


def test_variables_that_a_first_call_creates_are_made() -> None:
    layer = keras.layers.Dense(2)
    trace = recorded(layer, may_create=True)
    assert trace.created == 2
    assert [tuple(variable.shape) for variable in layer.variables] == [(WIDTH, 2), (2,)]
    assert recorded(layer).created == 0


def test_variables_that_every_call_creates_are_refused() -> None:
    def step(x: tf.Tensor) -> Any:
        return x * tf.Variable(1.0, name="factor")

    with pytest.raises(VariableError) as refused:
        recorded(step)
    assert str(refused.value) == (
        "variable 'factor' is created at every call of the step.\n"
        "  a step is traced once and run many times; variables are made in the first call, and kept\n"
        f"  at {Source(test_variables_that_every_call_creates_are_refused).at('return x * tf.Variable')}\n"
        "  Keep it: create it before the step, or only if it is not there yet (`if self.v is None:`)."
    )


def test_a_variable_whose_first_value_the_step_computes_is_refused() -> None:
    def step(x: tf.Tensor) -> Any:
        return tf.Variable(tf.reduce_sum(x), name="total") + 0.0

    with pytest.raises(VariableError) as refused:
        recorded(step, may_create=True)
    source = Source(test_a_variable_whose_first_value_the_step_computes_is_refused)
    assert str(refused.value) == (
        "variable 'total' is created inside the step, from a value that is computed there.\n"
        "  a step is traced once and run many times; a variable must have its first value before\n"
        f"  at {source.at('return tf.Variable')}\n"
        "  Give it a function that makes its first value, or create it before the step."
    )
