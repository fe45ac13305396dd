"""Two traces side by side: what follows the batch, and what makes them two programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, Traced, trace
from whale_tf.capture.pair import UnlikeError, alone, pair
from whale_tf.ir.graph import Ref, Shape
from whale_tf.ir.sizes import Sizes
from whale_tf.ir.text import parse_graph


def of(step: Callable[[tf.Tensor], Any], examples: int = 8, other: int = 3) -> Traced:
    return trace(lambda x: {"y": step(x)}, ROWS, examples=examples, other=other)


def texts(here: str, there: str) -> Sizes:
    """Two graphs as text, at 8 and 4 examples; `x` is the input of both."""
    graphs = [
        parse_graph(f"graph g(out: y) {{\n x = Input() {{index=0, batch=true}} : float32[{size}]\n {nodes}\n}}")
        for size, nodes in ((8, here), (4, there))
    ]
    return pair(graphs[0], {}, graphs[1], {}, 8, 4)


def unlike(here: str, there: str) -> tuple[tuple[str, ...], str]:
    with pytest.raises(UnlikeError) as error:
        texts(here, there)
    return error.value.nodes, error.value.why


# What follows the batch.


def test_shapes_that_follow_are_known_at_both_sizes() -> None:
    traced = of(lambda x: tf.transpose(x))
    assert traced.sizes.shapes[traced.outputs["y"]] == Shape((WIDTH, 3))
    assert traced.sizes.following(traced.outputs["y"]) == (1,)
    assert (traced.sizes.batch, traced.sizes.other) == (8, 3)


def test_shapes_that_only_look_as_if_they_followed_do_not() -> None:
    traced = of(lambda x: tf.zeros([8, 2]) + tf.reduce_sum(x))
    assert traced.sizes.following(traced.outputs["y"]) == ()


def test_operands_that_say_shapes_are_known_at_both_sizes() -> None:
    traced = of(lambda x: tf.reshape(x, [tf.shape(x)[0] * WIDTH]))
    name = traced.outputs["y"].node
    np.testing.assert_array_equal(traced.sizes.values[traced.sizes.graph[name].inputs[1]], [8 * WIDTH])
    np.testing.assert_array_equal(traced.sizes.operands[name, 1], [3 * WIDTH])


def test_numbers_made_of_the_batch_are_known_at_both_sizes() -> None:
    traced = of(lambda x: x * (0.5 * x.shape[0]))
    ((name, position),) = traced.sizes.operands
    assert (name, position) == (traced.outputs["y"].node, 1)
    assert float(traced.sizes.operands[name, position]) == 1.5


def test_the_same_constant_in_other_nodes_is_the_same() -> None:
    """TensorFlow writes ones as a Const or as a Fill, by how many there are."""
    traced = of(lambda x: x * tf.ones_like(x), examples=2000, other=3)
    assert traced.sizes.following(traced.outputs["y"]) == (0,)


def test_attributes_that_are_shapes_follow() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(x, [x.shape[0], WIDTH])

    traced = of(step)
    assert traced.sizes.attributes[traced.outputs["y"].node, "shape"] == Shape((3, WIDTH))


def test_bodies_are_laid_side_by_side_too() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, tf.tanh(h)), (0, x))[1]

    bodies = of(step).sizes.bodies
    assert set(bodies) == {"while/body", "while/cond"}
    body = bodies["while/body"]
    (tanh,) = [node.name for node in body.graph if node.op == "Tanh"]
    assert body.following(Ref(tanh)) == (0,)


def test_a_step_traced_once_follows_nothing() -> None:
    graph = parse_graph(
        "graph g(out: y) {\n x = Input() {index=0, batch=true} : float32[8]\n y = Neg(x) : float32[8]\n}"
    )
    sizes = alone(graph, {}, 8)
    assert (sizes.batch, sizes.other, sizes.shapes, sizes.operands) == (8, 8, {}, {})


def test_a_value_that_only_one_trace_knows_is_known_in_none() -> None:
    """It was too large to be computed at the other size."""
    traced = of(lambda x: tf.cast(tf.range(tf.shape(x)[0]), tf.float32)[:, tf.newaxis] * x, examples=2**15, other=4)
    assert traced.sizes.following(traced.outputs["y"]) == (0,)
    assert not any(ref.node.startswith("range") and node.op == "Range" for ref, node in
                   ((ref, traced.sizes.graph[ref.node]) for ref in traced.sizes.values))  # fmt: skip


def test_a_node_with_as_many_operands_as_examples_is_of_no_part() -> None:
    traced = of(lambda x: tf.add_n(tf.unstack(x)))
    fixed = {traced.sizes.graph[name].op for name in traced.sizes.fixed}
    assert fixed == {"Unpack", "AddN"}


# What makes two programs of them.


def test_a_node_that_only_one_trace_has_is_named() -> None:
    assert unlike("y = Neg(x) : float32[8]", "z = Abs(x) : float32[4]\n y = Neg(z) : float32[4]") == (
        ("z",),
        "it differs in 'z' (Abs)",
    )


def test_another_operation_under_one_name_is_named() -> None:
    assert unlike("y = Neg(x) : float32[8]", "y = Abs(x) : float32[4]") == (("y",), "it differs in 'y' (Neg)")


def test_few_of_many_differences_are_shown() -> None:
    nodes = "".join(f"z{i} = Abs(x) : float32[4]\n" for i in range(5))
    names, why = unlike("y = Neg(x) : float32[8]", nodes + "y = Neg(x) : float32[4]")
    assert names == ("z0", "z1", "z2", "z3", "z4")
    assert why == "it differs in 'z0' (Abs), 'z1' (Abs), 'z2' (Abs)"


def test_another_input_is_named() -> None:
    both = "a = Abs(x) : float32[{0}]\n b = Neg(x) : float32[{0}]\n y = Exp({1}) : float32[{0}]"
    assert unlike(both.format(8, "a"), both.format(4, "b")) == (
        ("y",),
        "'y' takes 'a' at 8 examples and 'b' at 4",
    )


def test_a_constant_at_one_size_only_is_named() -> None:
    both = (
        "c = Const() {{dtype=float32, value=2.0, shape=[]}} : float32[]\n"
        "a = Sum(x, c) : float32[]\n y = Mul(x, {1}) : float32[{0}]"
    )
    assert unlike(both.format(8, "c"), both.format(4, "a")) == (
        ("y",),
        "'y' takes a constant at 8 examples only",
    )


def test_another_number_of_outputs_is_told() -> None:
    here, there = (
        parse_graph(f"graph g(out: {outputs}) {{\n x = Input() {{index=0, batch=true}} : float32[4]\n}}")
        for outputs in ("x", "x, x")
    )
    with pytest.raises(UnlikeError, match="it differs in its outputs"):
        pair(here, {}, there, {}, 8, 4)


def test_a_function_that_captures_a_tensor_is_the_same_program_at_both_sizes() -> None:
    """TensorFlow names what a function captures by a number that counts up in the process."""
    table = tf.constant(np.ones([WIDTH, WIDTH], np.float32))

    @tf.function(jit_compile=True)
    def layer(x: tf.Tensor) -> tf.Tensor:
        return x @ table

    assert of(layer).told() == {"y": "Split(0)"}
