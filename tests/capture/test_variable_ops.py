"""Operations on variables are operations on values, or run on scratch variables; all do what TensorFlow does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import WIDTH, captured, only
from whale_tf.capture.variable_ops import RULES, has_effects
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import DType, Function, Graph, Node, Ref, TensorType
from whale_tf.ir.graph import Shape as GraphShape

ROWS = np.array([1, 0, 1], np.int32)

Change = Callable[[tf.Variable, tf.Tensor], Any]

# What the step does to a variable [WIDTH, WIDTH], and the operations that it is in the graph.
CHANGES: dict[str, tuple[Change, list[str]]] = {
    "assign": (lambda v, x: v.assign(x[:WIDTH]), ["Write"]),
    "assign_add": (lambda v, x: v.assign_add(x[:WIDTH]), ["AddV2", "Write"]),
    "assign_sub": (lambda v, x: v.assign_sub(x[:WIDTH]), ["Sub", "Write"]),
    "scatter_nd_update": (
        lambda v, x: v.scatter_nd_update([[0], [2]], x[:2]),
        ["TensorScatterUpdate", "Write"],
    ),
    "scatter_nd_add": (lambda v, x: v.scatter_nd_add(ROWS[:, None], x[:3]), ["TensorScatterAdd", "Write"]),
    "scatter_nd_sub": (lambda v, x: v.scatter_nd_sub(ROWS[:, None], x[:3]), ["TensorScatterSub", "Write"]),
    "scatter_add": (lambda v, x: v.scatter_add(tf.IndexedSlices(x[:3], ROWS)), ["TensorScatterAdd", "Write"]),
    "scatter_max": (lambda v, x: v.scatter_max(tf.IndexedSlices(x[:3], ROWS)), ["TensorScatterMax", "Write"]),
    "scatter_update": (
        lambda v, x: v.scatter_update(tf.IndexedSlices(x[:2], [2, 0])),
        ["TensorScatterUpdate", "Write"],
    ),
    "scatter_mul": (lambda v, x: v.scatter_mul(tf.IndexedSlices(x[:3], ROWS)), []),  # on scratch variables
    "one number for all": (
        lambda v, x: tf.raw_ops.ResourceScatterAdd(resource=v.handle, indices=ROWS, updates=2.0),
        [],
    ),
}
READS: dict[str, tuple[Change, str]] = {
    "read": (lambda v, x: x @ v, "MatMul"),
    "gather": (lambda v, x: tf.gather(v, ROWS), "GatherV2"),
    "gather_nd": (lambda v, x: tf.gather_nd(v, ROWS[:, None]), "GatherNd"),
    "sparse_read": (lambda v, x: v.sparse_read(ROWS), "GatherV2"),
    "shape": (lambda v, x: tf.raw_ops.VariableShape(input=v.handle), "Shape"),
}
NEW = {"Write", "AddV2", "Sub"} | {f"TensorScatter{kind}" for kind in ("Add", "Sub", "Update", "Max")}


def fresh() -> tf.Variable:
    return tf.Variable(np.arange(WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH), name="v", trainable=False)


@pytest.mark.parametrize("change", [name for name, (_, ops) in CHANGES.items() if ops])
def test_a_change_is_a_new_value(change: str) -> None:
    variable, (apply, ops) = fresh(), CHANGES[change]

    def step(x: tf.Tensor) -> Any:
        apply(variable, x)
        return tf.nn.relu(x)

    graph = captured(step).graph
    assert [node.op for node in graph if node.op in NEW] == ops
    assert not any(node.outputs and node.outputs[0].dtype == "resource" for node in graph)
    write = only(graph, "Write")
    assert graph.effects == (write.name,)
    assert write.attrs == {"variable": b"v"}


@pytest.mark.parametrize("read", READS)
def test_a_read_takes_the_value(read: str) -> None:
    variable, (apply, op) = fresh(), READS[read]
    graph = captured(lambda x: apply(variable, x)).graph
    node = only(graph, op)
    assert Ref(only(graph, "Variable").name) in node.inputs
    assert not any(node.op == "StatefulPartitionedCall" for node in graph)


@pytest.mark.parametrize("name", [*CHANGES, *READS])
def test_a_step_does_what_tensorflow_does(name: str) -> None:
    whale.init(2)
    apply = CHANGES[name][0] if name in CHANGES else READS[name][0]
    x = np.linspace(-1, 1, 8 * WIDTH, dtype=np.float32).reshape(8, WIDTH)

    def results(make: Callable[..., Any]) -> list[Any]:
        variable = fresh()

        def step(x: tf.Tensor) -> Any:
            given = apply(variable, x)
            return (variable + 0.0) if name in CHANGES else given

        return [make(step)(x), variable.numpy()]

    for mine, plain in zip(results(whale.function), results(tf.function), strict=True):
        np.testing.assert_array_equal(mine, plain)


def test_every_rule_is_of_an_operation_that_tensorflow_has() -> None:
    for op in RULES:
        assert hasattr(tf.raw_ops, op), op


# Scratch variables.


def looped(variable: tf.Variable, *, writes: bool) -> Callable[[tf.Tensor], Any]:
    def step(x: tf.Tensor) -> Any:
        for _ in tf.range(2):
            x = tf.tanh(x @ variable)
            if writes:
                variable.assign(0.5 * variable)
        return x

    return step


def test_a_loop_over_a_variable_is_a_call_of_its_value() -> None:
    step = captured(looped(fresh(), writes=False))
    call = only(step.graph, "StatefulPartitionedCall")
    assert call.inputs[0] == Ref("v")
    assert not call.stateful
    assert functions_of(call) == {"f": "while/scratch"}
    assert not any(node.op == "Write" for node in step.graph)


def test_a_loop_that_writes_a_variable_gives_its_new_value() -> None:
    step = captured(looped(fresh(), writes=True))
    call, write = only(step.graph, "StatefulPartitionedCall"), only(step.graph, "Write")
    assert write.inputs == (Ref(call.name, len(call.outputs) - 1),)
    body = step.calls["while/scratch"]
    assert [node.op for node in body if node.stateful][:2] == ["VarHandleOp", "AssignVariableOp"]
    assert body["operation"].control == ("assign_v",)
    assert body[body.outputs[-1].node].op == "ReadVariableOp"
    assert body[body.outputs[-1].node].control == ("operation",)


@pytest.mark.parametrize("writes", [False, True])
def test_a_loop_over_a_variable_equals_one_device(writes: bool) -> None:
    whale.init(2)
    x = np.linspace(-1, 1, 8 * WIDTH, dtype=np.float32).reshape(8, WIDTH)
    mine, plain = fresh(), fresh()
    got, wanted = whale.function(looped(mine, writes=writes))(x), tf.function(looped(plain, writes=writes))(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)  # as the kernels of a loop round
    np.testing.assert_allclose(mine, plain, rtol=1e-6)


# Effects.


def test_what_leaves_the_step_has_effects_also_inside_of_what_a_node_calls() -> None:
    inner = Graph.of([Node("p", "PrintV2", stateful=True)], effects=["p"])
    outer = Graph.of([Node("call", "PartitionedCall", attrs={"f": Function("inner")})])
    calls = {"inner": inner, "outer": outer, "quiet": Graph.of([])}

    def call(name: str) -> Node:
        kind = TensorType(DType("float32"), GraphShape())
        return Node("n", "PartitionedCall", attrs={"f": Function(name)}, outputs=(kind,))

    assert has_effects(Node("p", "PrintV2"), {})
    assert has_effects(call("inner"), calls) and has_effects(call("outer"), calls)
    assert not has_effects(call("quiet"), calls)
    assert not has_effects(call("unknown"), calls)
