"""`resize`: stage functions at the size of a micro-batch: shapes follow, and data stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, Traced, trace
from tests.rewrite.steps import TRAINING, resolved
from whale_tf.errors import InternalError
from whale_tf.ir.graph import Graph, Node, Shape
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.stages import assign_stages
from whale_tf.plan.states import States
from whale_tf.rewrite.cut import Cut, Key, StageFunction, cut
from whale_tf.rewrite.reshard import Resharded, reshard
from whale_tf.rewrite.resize import Resized, at_size, number_of, resize

FORWARD = Key(0, 0, "F")
ONE = Cut(accumulate=False, split_backward=False)

SHAPED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,4]
  flat = Const() {value=(TWICE, 2)} : int32[2]
  count = Const() {value=(BATCH.0)} : float32[]
  h = Reshape(x, flat) : float32[TWICE,2]
  y = RealDiv(h, count) : float32[TWICE,2]
}
"""


def functions(states: States) -> tuple[Resharded, dict[Key, StageFunction]]:
    changed = reshard(states)
    stage_of = assign_stages(changed.graph, changed.roles, {}, 1, lambda _: pytest.fail("there is one stage"))
    return changed, cut(changed.graph, changed.roles, stage_of, ONE)


def resized(states: States, size: int, key: Key = FORWARD) -> Resized:
    changed, found = functions(states)
    made = resize(found[key], states, changed.made_of, size)
    verify(made.function.graph, after="resize")
    return made


def of(traced: Traced, size: int) -> Resized:
    return resized(traced.resolved().states, size)


def only(graph: Graph, op: str) -> Node:
    (node,) = [node for node in graph if node.op == op]
    return node


def test_shapes_and_operands_that_say_shapes_follow_and_data_stays() -> None:
    text = print_graph(resized(resolved(SHAPED, 16), 5).function.graph, "0F")
    assert text.splitlines() == [
        "graph 0F(out: y) {",
        "  argument/0 = Argument() {index=0} : float32[5,4]",
        "  flat = Const() {value=(32, 2)} : int32[2]",
        "  h/operand1 = Const() {dtype=int32, value=(10, 2), shape=[2]} : int32[2]",
        "  h = Reshape(argument/0, h/operand1) : float32[10,2]",
        "  count = Const() {value=(16.0)} : float32[]",
        "  y = RealDiv(h, count) : float32[10,2]",
        "}",
    ]


def test_the_global_batch_is_left_alone() -> None:
    states = resolved(TRAINING, 8)
    changed, found = functions(states)
    for function in found.values():
        assert resize(function, states, changed.made_of, 8) == Resized(function, {})


@pytest.mark.parametrize("size", [1, 3, 7])
def test_all_that_follows_the_batch_has_the_size_and_what_does_not_keeps_its_own(size: int) -> None:
    states = resolved(TRAINING, 8)
    for key in (FORWARD, Key(0, 0, "B")):
        for node in resized(states, size, key).function.graph:
            for kind in node.outputs:
                assert 8 not in kind.shape
    backward = resized(states, size, Key(0, 0, "B")).function
    assert backward.graph["d1"].outputs[0].shape == Shape((2, 1))
    assert (backward.key, backward.sums) == (Key(0, 0, "B"), ("g0", "g1"))


def test_a_constant_that_is_alike_everywhere_is_made_at_the_size() -> None:
    made = of(trace(lambda x: {"y": x * tf.fill(tf.shape(x), 3.0)}), 5)
    constant = only(made.function.graph, "Mul").inputs[1]
    assert made.function.graph[constant.node].attrs == {"dtype": "float32", "value": 3.0, "shape": Shape((5, WIDTH))}


def test_a_random_draw_follows() -> None:
    made = of(trace(lambda x: {"y": x + tf.random.uniform(tf.shape(x))}), 2)
    draw = only(made.function.graph, "RandomUniform")
    assert draw.outputs[0].shape == Shape((2, WIDTH))
    assert made.function.graph[draw.inputs[0].node].attrs["value"] == (2, WIDTH)


@tf.function(jit_compile=True)
def layer(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(x, [-1]) * tf.fill([tf.size(x)], 2.0)


def test_what_a_node_calls_has_the_size_in_its_name() -> None:
    made = of(trace(lambda x: {"y": layer(x)}), 5)
    call = only(made.function.graph, "PartitionedCall")
    assert call.attrs["f"].name == "PartitionedCall/f@5"
    ((name, body),) = made.calls.items()
    assert name == "PartitionedCall/f@5"
    verify(body, after="resize")
    assert only(body, "Reshape").outputs[0].shape == Shape((5 * WIDTH,))
    assert body.attrs == {"_XlaMustCompile": True, "_noinline": True}
    shapes = [kind.shape for node in body.pruned() for kind in node.outputs]
    assert Shape((8, WIDTH)) not in shapes and Shape((8 * WIDTH,)) not in shapes


def test_a_body_is_made_once_for_all_that_call_it() -> None:
    def twice(x: tf.Tensor) -> Mapping[str, Any]:
        h = tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, tf.tanh(h)), (0, x))[1]
        return {"y": h}

    made = of(trace(twice), 3)
    assert sorted(made.calls) == ["while/body@3", "while/cond@3"]


def test_a_shape_that_is_no_whole_number_at_a_size_keeps_its_rank() -> None:
    """Every second example: run once, its shape is of no part."""
    traced = trace(lambda x: {"y": x[::2]}, ROWS, examples=8, other=4)
    assert traced.told() == {"y": "once"}


def test_an_operand_that_is_no_whole_number_at_a_size_is_a_fault() -> None:
    text = SHAPED.replace("TWICE, 2", "BATCH, 4").replace("[TWICE,2]", "[BATCH,4]")
    states = resolved(text, 16)
    changed, found = functions(states)
    states.sizes.operands["h", 1] = np.array([16, 4, 1], np.int32)  # type: ignore[index]  # as a wrong rule might let it
    with pytest.raises(InternalError) as fault:
        resize(found[FORWARD], states, changed.made_of, 5)
    assert str(fault.value) == (
        "operand 1 of 'h' (Reshape) is no whole number for 5 examples.\n"
        "  This is a fault of whale_tf: plan.states let parts run it."
    )


def test_the_step_itself_has_the_shapes_of_a_micro_batch_where_parts_run_it() -> None:
    states = resolved(TRAINING, 8)
    changed = reshard(states)
    micro = at_size(changed.graph, states, changed.made_of, 2)
    assert micro["h"].outputs[0].shape == Shape((2, 2))
    assert micro["n0"] == changed.graph["n0"]
    assert at_size(changed.graph, states, changed.made_of, 8) is changed.graph


def test_the_number_that_all_elements_are() -> None:
    assert number_of(np.full([3, 2], 4.0)) == 4.0
    assert number_of(np.array([1, 2])) is None
    assert isinstance(number_of(np.array([2], np.int32)), int)
