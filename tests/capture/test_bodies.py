"""Bodies of loops, branches and calls as graphs: their names, what they keep, what is known of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import function  # private; tried with 2.21
from tensorflow.python.ops import functional_ops  # private; tried with 2.21

import whale_tf as whale
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Graph, Ref, Shape
from whale_tf.ir.text import parse_graph, print_graph
from whale_tf.ir.verify import verify

WIDTH = 4


def capture(step: Callable[..., Any], examples: int = 8) -> CapturedStep:
    """A step of one argument [examples, WIDTH]; every body of it is a graph that reads back from its text."""
    specs = [tf.TensorSpec([examples, WIDTH], tf.float32)]
    trace = record(step, lambda tensors: (tuple(tensors), {}), specs, "step", examples=examples)
    captured = translate(trace, [True], Outside())
    for name, body in captured.calls.items():
        verify(body, after=name)
        assert parse_graph(print_graph(body, name)) == body
    return captured


def only(graph: Graph, op: str) -> Any:
    (node,) = [node for node in graph if node.op == op]
    return node


def recurrence(x: tf.Tensor) -> tf.Tensor:
    """A state [examples, WIDTH] over positions, which are written into a TensorArray [examples, WIDTH] each."""
    array = tf.TensorArray(tf.float32, size=3)
    state = tf.zeros_like(x)
    for i in tf.range(3):
        state = tf.tanh(state + x)
        array = array.write(i, state)
    return array.stack()


def nested(x: tf.Tensor) -> tf.Tensor:
    for _ in tf.range(3):
        if tf.reduce_sum(x) > 0:
            x = tf.switch_case(tf.cast(x[0, 0], tf.int32) % 2, [lambda x=x: x + 1, lambda x=x: x - 1])
    return x


def test_a_body_is_named_after_its_node_and_attribute() -> None:
    captured = capture(recurrence)
    node = only(captured.graph, "StatelessWhile")
    assert functions_of(node) == {"body": "while/body", "cond": "while/cond"}
    assert set(captured.calls) == {"while/body", "while/cond"}


def test_a_body_in_a_body_has_both_names_and_comes_first() -> None:
    captured = capture(nested)
    inner = "while/body/while/cond/then_branch"
    cases = [f"{inner}/while/cond/switch_case/indexed_case/branches_{index}" for index in range(2)]
    names = list(captured.calls)
    assert [name for name in names if name.startswith(inner)] == [*cases, inner]
    assert names.index("while/body") > names.index(inner)
    case = only(captured.calls[inner], "StatelessCase")
    assert list(functions_of(case).values()) == cases


def clipped(x: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def clip(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return x, lambda dy: tf.clip_by_value(dy, -1.0, 1.0)

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, clip(tf.cond(x[0, 0] > 0, lambda: x, lambda: -x))), (0, x)
        )[1]
    return tape.gradient(y, x)


def aligned(x: tf.Tensor) -> tf.Tensor:
    """Losses of sequences, by two loops of TensorFlow 1."""
    logits = x[:, None] * tf.reshape(tf.range(6 * WIDTH, dtype=tf.float32) / 10.0, [6, WIDTH])
    labels = tf.tile(tf.cast(tf.abs(x[:, :1]), tf.int32) % 3 + 1, [1, 2])
    lengths = tf.fill([tf.shape(x)[0]], 2), tf.fill([tf.shape(x)[0]], 6)
    return tf.nn.ctc_loss(labels, logits, *lengths, logits_time_major=False, blank_index=0)


@pytest.mark.parametrize("step", [recurrence, nested, clipped, aligned])
def test_traces_at_two_sizes_differ_in_nothing_but_shapes(step: Callable[[tf.Tensor], tf.Tensor]) -> None:
    first = capture(step, 8)
    for _ in range(7):
        tf.function(lambda x: tf.cond(x > 0, lambda: x, lambda: -x)).get_concrete_function(
            tf.TensorSpec([], tf.float32)
        )
    other, again = capture(step, 3), capture(step, 8)
    assert list(first.calls) == list(other.calls)
    for name, body in first.calls.items():
        twin = other.calls[name]
        assert [(n.name, n.op, n.inputs, n.control, functions_of(n)) for n in body] == [
            (n.name, n.op, n.inputs, n.control, functions_of(n)) for n in twin
        ]
        assert (body.outputs, body.effects, body.attrs) == (twin.outputs, twin.effects, twin.attrs)
        assert print_graph(body) == print_graph(again.calls[name])


def test_shapes_in_a_body_are_known() -> None:
    body = capture(recurrence).calls["while/body"]
    assert only(body, "Tanh").outputs[0].shape == Shape((8, WIDTH))
    written = only(body, "TensorListSetItem")
    assert body.type_of(written.inputs[2]).shape == Shape((8, WIDTH))
    assert Shape((8, WIDTH)) in [node.outputs[0].shape for node in body if node.op == "Argument"]


def test_a_constant_in_a_body_tells_its_numbers() -> None:
    body = capture(recurrence).calls["while/body"]
    assert all("numbers" in node.attrs for node in body if node.op == "Const")


def test_a_body_keeps_its_effects_and_their_order() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        for i in tf.range(2):
            tf.print("first", i)
            tf.print("second", i)
        return x

    body = capture(step).calls["while/body"]
    first, second = [node.name for node in body if node.op == "PrintV2"]
    assert set(body.effects) >= {first, second}
    assert first in body[second].control


def test_a_loop_over_variables_is_called_with_the_same_names() -> None:
    weight = tf.Variable(tf.ones([WIDTH, WIDTH]))

    def step(x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(2):
            x = tf.matmul(x, weight)
        return x

    captured = capture(step)
    call = next(node for node in captured.graph if node.op == "StatefulPartitionedCall")
    assert functions_of(call) == {"f": "while/scratch"}
    assert functions_of(captured.calls["while/scratch"]["operation"]) == {"body": "while/body", "cond": "while/cond"}
    assert list(captured.calls) == ["while/body", "while/cond", "while/scratch"]
    read = only(captured.calls["while/body"], "ReadVariableOp")
    assert read.outputs[0].shape == Shape((WIDTH, WIDTH))


def test_each_call_of_a_function_has_a_body_of_its_own() -> None:
    @tf.function(jit_compile=True)
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.sin(x)

    captured = capture(lambda x: inner(inner(x)))
    assert list(captured.calls) == ["PartitionedCall/f", "PartitionedCall_1/f"]
    assert print_graph(captured.calls["PartitionedCall/f"]) == print_graph(captured.calls["PartitionedCall_1/f"])


def test_a_call_gives_its_body_the_shapes_it_was_made_without() -> None:
    @tf.function(jit_compile=True, input_signature=[tf.TensorSpec([None, WIDTH], tf.float32)])
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.sin(x) * tf.cast(tf.shape(x)[0], tf.float32)

    body = capture(inner).calls["PartitionedCall/f"]
    assert only(body, "Argument").outputs[0].shape == Shape((8, WIDTH))
    assert body.type_of(body.outputs[0]).shape == Shape((8, WIDTH))


def test_what_tensorflow_is_told_of_a_function_stays() -> None:
    @tf.function(jit_compile=True)
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.sin(x)

    captured = capture(inner)
    assert captured.calls["PartitionedCall/f"].attrs == {"_XlaMustCompile": True, "_noinline": True}
    assert only(captured.graph, "PartitionedCall").attrs["_XlaMustCompile"] is True


def test_a_step_without_functions_has_no_bodies() -> None:
    assert not capture(tf.sin).calls


@function.Defun(tf.float32)
def doubled(x: tf.Tensor) -> tf.Tensor:
    return x * 2.0


@function.Defun(tf.float32)
def with_its_double(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    tf.print("in", "a function of TensorFlow 1")
    return tf.identity(x), tf.stack([doubled(x), doubled(doubled(x))])


def looped(step: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The step three times over."""

    def loop(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.ensure_shape(step(x), x.shape)), (0, x))[1]

    return loop


def equals_one_device(fn: Callable[[tf.Tensor], tf.Tensor], x: np.ndarray) -> None:
    whale.init(2)

    @whale.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with whale.replica(2):
            return fn(x)

    np.testing.assert_allclose(step(x), tf.function(fn)(x), rtol=1e-6)  # XLA and the kernels round differently


def test_a_function_of_tensorflow_1_is_called() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        same, others = with_its_double(x)
        return same + tf.reduce_sum(others, axis=0)

    captured = capture(looped(step))
    inner = "while/body/while/StatefulPartitionedCall/f"
    twice = [f"{inner}/{name}/f" for name in ("PartitionedCall", "PartitionedCall_1", "PartitionedCall_2")]
    assert set(captured.calls) == {*twice, inner, "while/body", "while/cond"}
    call = only(captured.calls["while/body"], "StatefulPartitionedCall")
    assert functions_of(call) == {"f": inner}
    assert (call.attrs["Tin"], call.attrs["Tout"], call.stateful) == (("float32",), ("float32",) * 2, True)
    assert call.outputs[1].shape == Shape((2, 8, WIDTH))
    assert only(captured.calls["while/body"], "Sum").inputs[0] == Ref(call.name, 1)
    assert [only(captured.calls[name], "Mul").outputs[0].shape for name in twice] == [Shape((8, WIDTH))] * 3
    equals_one_device(looped(step), np.ones([4, WIDTH], np.float32))


def test_a_function_of_tensorflow_1_that_has_a_loop_stays_as_it_is() -> None:
    tf.compat.v1.disable_control_flow_v2()
    tf.compat.v1.disable_tensor_equality()
    try:

        @function.Defun(tf.float32)
        def power(x: tf.Tensor) -> tf.Tensor:
            return tf.compat.v1.while_loop(lambda x: tf.reduce_sum(x) < 100.0, lambda x: x * 2.0, [x])

        assert any(node.op == "NextIteration" for node in power.definition.node_def)
    finally:
        tf.compat.v1.enable_control_flow_v2()
        tf.compat.v1.enable_tensor_equality()
    captured = capture(looped(power))
    assert list(captured.calls) == ["while/body", "while/cond"]
    assert functions_of(only(captured.calls["while/body"], "PartitionedCall")) == {"f": power.name}
    equals_one_device(looped(lambda x: power(x) / 4.0), np.ones([4, WIDTH], np.float32))


def test_shapes_in_a_loop_of_tensorflow_1_are_those_that_stay() -> None:
    calls = capture(aligned).calls
    assert Shape((7, 8, 6)) in [kind.shape for kind in calls["ctc_loss_dense/While_1/body"]["PartitionedCall"].outputs]
    assert all(kind.shape.known for body in calls.values() for node in body for kind in node.outputs)


def test_shapes_that_a_loop_of_tensorflow_1_changes_are_not_known() -> None:
    @function.Defun(tf.float32, tf.float32)
    def goes_on(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.size(x) < 100

    @function.Defun(tf.float32, tf.float32)
    def grown(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.concat([x, y], axis=1), y

    captured = capture(lambda x: functional_ops.While([x, x], goes_on, grown)[0])
    arguments = [node for node in captured.calls["While/body"] if node.op == "Argument"]
    assert [node.outputs[0].shape for node in arguments] == [Shape((8, -1)), Shape((8, WIDTH))]


def through_datasets(x: tf.Tensor) -> tf.Tensor:
    total = tf.data.Dataset.range(5).map(lambda v: v + 1).reduce(np.int64(0), lambda a, b: a + b)
    return x + tf.cast(total, tf.float32)


def through_python(x: tf.Tensor) -> tf.Tensor:
    for _ in tf.range(2):
        x = tf.ensure_shape(tf.numpy_function(lambda x: x + np.float32(1), [x], tf.float32), x.shape)
    return x


def through_a_table(x: tf.Tensor) -> tf.Tensor:
    for i in tf.range(2):
        x = x + TABLE.lookup(tf.cast(i, tf.int64))
    return x


def through_names(x: tf.Tensor) -> tf.Tensor:
    @tf.function(jit_compile=True)
    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.identity(tf.identity(tf.sin(x, name="a0"), name="r0"), name="argument_0")

    return inner(tf.identity(x, name="body/then_branch"))


def through_random_numbers(x: tf.Tensor) -> tf.Tensor:
    for i in tf.range(2):
        x += tf.random.stateless_uniform([WIDTH], [i, 1]) + tf.cond(
            i > 0, lambda x=x: tf.reduce_mean(x, 1, True), lambda x=x: 0.0 * x[:, :1]
        )
    return x


TABLE = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([1.5, 2.5])), 0.0
)
STEPS = [
    recurrence,
    nested,
    through_datasets,
    through_python,
    through_a_table,
    through_names,
    through_random_numbers,
    aligned,
]


@pytest.mark.parametrize("fn", STEPS, ids=lambda fn: fn.__name__)
def test_a_step_with_bodies_equals_one_device(fn: Callable[[tf.Tensor], tf.Tensor]) -> None:
    x = np.tile(np.array([[0.5, -1.0, 2.0, 3.0]], np.float32), [8, 1])
    batch_first = [1, 0, 2] if fn is recurrence else [0] if fn is aligned else [0, 1]
    equals_one_device(lambda x: tf.transpose(fn(x), batch_first), x)


def test_a_function_of_tensorflow_1_in_the_step_is_called() -> None:
    @function.Defun(tf.float32)
    def doubled(value: tf.Tensor) -> tf.Tensor:
        return 2.0 * value

    step = capture(lambda x: doubled(x) + 1.0)
    call = only(step.graph, "PartitionedCall")
    assert functions_of(call) == {"f": f"{call.name}/f"}
    assert [node.op for node in step.calls[f"{call.name}/f"]][-1] == "Mul"
