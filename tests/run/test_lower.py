"""Bodies as FunctionDefs: what TensorFlow gets back is what it gave."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

from whale_tf.capture.attributes import KEPT_PRIVATE
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import record
from whale_tf.capture.translate import translate
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Function, Graph, Node
from whale_tf.rewrite.program import Program
from whale_tf.run.lower import lower

UNKNOWN = "list {\n  shape {\n    unknown_rank: true\n  }\n}\n"


def recurrent() -> Callable[[tf.Tensor], Any]:
    """A gradient through an LSTM: loops with lists of tensors and variables."""
    layer = keras.layers.LSTM(3)
    layer.build([None, 5, 2])

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(x))
        return tape.gradient(loss, layer.trainable_variables)

    return step


def branching() -> Callable[[tf.Tensor], Any]:
    """Branches with effects in a loop, and a compiled call."""

    @tf.function(jit_compile=True)
    def compiled(x: tf.Tensor) -> tf.Tensor:
        return tf.sin(x) + tf.while_loop(lambda i: i < 2.0, lambda i: i + 1.0, [0.0])[0]

    def step(x: tf.Tensor) -> tf.Tensor:
        for i in tf.range(3):
            tf.debugging.assert_less(i, 5)
            if tf.reduce_sum(x) > 0:
                tf.print("turn", i)
                x, y = tf.split(compiled(x), [1, 4], axis=1)
                x = tf.concat([y, x], 1)
        return x

    return step


def comparable(function: Any, names: dict[str, str]) -> tuple[Any, ...]:
    """What a FunctionDef computes, without the names of its arguments, results and functions."""
    arguments = {argument.name: f"argument {i}" for i, argument in enumerate(function.signature.input_arg)}
    nodes = {}
    for node in function.node_def:
        inputs = [arguments.get(text, text) for text in node.input]
        attrs = {}
        for key, value in node.attr.items():
            if not key.startswith("_") or key in KEPT_PRIVATE:
                text = re.sub(r'name: "(\w+)"', lambda match: f"name: {names.get(match[1], match[1])}", str(value))
                attrs[key] = text
        data = [text for text in inputs if text[0] != "^"]
        nodes[node.name] = (node.op, node.device, data, sorted(set(inputs) - set(data)), attrs)
    results = [
        arguments.get(function.ret[each.name], function.ret[each.name]) for each in function.signature.output_arg
    ]
    types = [[each.type for each in args] for args in (function.signature.input_arg, function.signature.output_arg)]
    shapes = [str(function.arg_attr[i].attr["_output_shapes"]).replace(UNKNOWN, "") for i in range(len(arguments))]
    effects = [function.control_ret[name] for name in function.signature.control_output]
    attrs = {key: str(value) for key, value in function.attr.items() if key != "_construction_context"}
    return nodes, results, types, shapes, effects, attrs, function.signature.is_stateful


def pairs(graph: Graph, protos: Any, calls: dict[str, Graph], inner: Any) -> dict[str, str]:
    """From the names that TensorFlow gave to the functions of nodes to whale's."""
    found: dict[str, str] = {}
    for proto in protos:
        if proto.name not in graph:
            continue
        given = functions_of(graph[proto.name])
        for attribute, value in proto.attr.items():
            for i, each in enumerate([value.func] if value.func.name else value.list.func):
                name = given.get(attribute if value.func.name else f"{attribute}_{i}")
                if name is not None and name in calls and each.name in inner:
                    found[each.name] = name
                    found |= pairs(calls[name], inner[each.name].node_def, calls, inner)
    return found


@pytest.mark.parametrize("make", [recurrent, branching])
def test_a_lowered_body_is_the_one_that_tensorflow_made(make: Callable[[], Any]) -> None:
    spec = tf.TensorSpec([4, 5, 2] if make is recurrent else [4, 5], tf.float32)
    trace = record(make(), lambda tensors: (tuple(tensors), {}), [spec], "step", examples=4)
    captured = translate(trace, [True], Outside())
    definition = trace.graph.as_graph_def()
    library = {function.signature.name: function for function in definition.library.function}
    nodes = {**captured.graph.nodes}
    for name, body in captured.calls.items():  # an operation on variables has its functions in there
        if name.endswith("/scratch"):
            nodes[name.removesuffix("/scratch")] = body["operation"]
    names = pairs(Graph(nodes), definition.node, captured.calls, library)
    assert len(names) >= 4
    assert set(names.values()) == {name for name in captured.calls if not name.endswith("/scratch")}
    every = {"all": tuple(Function(name) for name in captured.calls)}
    program = Program(Graph.of([Node("refers", "NoOp", attrs=every, device=0)]), {}, ("",), inline=True, ordered=False)
    lowered = {each.signature.name: each for each in lower(program, captured.calls, "whale_0").functions}
    mine = {f"whale_0_call_{name.replace('/', '_')}": name for name in captured.calls}
    for original, name in names.items():
        got = lowered[f"whale_0_call_{name.replace('/', '_')}"]
        assert comparable(got, mine) == comparable(library[original], names)
