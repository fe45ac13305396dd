"""What a part gets of a function: only what needs nothing of other parts inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from whale_tf.ir.graph import Graph, Ref, Shape
from whale_tf.ir.sharding import BLANK, SUMS, WHOLE, Split, Value
from whale_tf.ir.sizes import Sizes
from whale_tf.ir.text import parse_graph
from whale_tf.plan.bodies import OUTPUTS, Body, derive_body
from whale_tf.plan.local import AS_IS, Use

ROWS = Value(Split(0))


def body_of(nodes: str, out: str = "y", values: Mapping[str, Any] | None = None) -> Sizes:
    """A function of x [8,3], traced at 8 and at 4 examples, of which some constants are known."""
    graph: Graph = parse_graph(f"graph f(out: {out}) {{\n x = Argument() {{index=0}} : float32[8,3]\n {nodes}\n}}")
    refs = [Ref(node.name, index) for node in graph for index in range(len(node.outputs))]
    shapes = {ref: Shape((4, *graph.type_of(ref).shape[1:])) for ref in refs if graph.type_of(ref).shape[:1] == (8,)}
    known = {Ref(name): np.asarray(value) for name, value in (values or {}).items()}
    return Sizes(graph, 8, 4, shapes, known)


def derived(sizes: Sizes | None, *arguments: Value, wanted: list[Value] | None = None) -> Body | str:
    return derive_body(sizes, arguments or (ROWS,), {}, wanted)


def test_a_function_of_pieces_gives_pieces() -> None:
    assert derived(body_of("y = Relu(x) : float32[8,3]")) == Body((ROWS,), {})


def test_a_function_of_what_is_whole_gives_what_is_whole() -> None:
    sizes = body_of("y = Sqrt(x) : float32[8,3]")
    graph = sizes.graph.rewritten(
        lambda node: node.with_(outputs=tuple(kind._replace(shape=Shape((3,))) for kind in node.outputs))
    )
    assert derived(Sizes(graph, 8, 4), Value(WHOLE)) == Body((Value(WHOLE),), {})


def test_a_total_comes_out_and_is_not_used_inside() -> None:
    total = "axis = Const() : int32[]\n s = Sum(x, axis) : float32[3]\n"
    axis = {"axis": np.array(0, np.int32)}
    assert derived(body_of(total, "s", axis)) == Body((Value(SUMS),), {})
    assert derived(body_of(total + "y = Sub(x, s) : float32[8,3]", values=axis)) == (
        "inside it, Sub needs the total over all examples"
    )


def test_what_would_have_to_be_cut_or_scaled_is_refused_but_for_constants_that_are_alike() -> None:
    twos, counts = np.full([8, 3], 2.0), np.arange(24.0).reshape(8, 3)
    nodes = "k = Const() : float32[8,3]\n y = Mul(x, k) : float32[8,3]"
    assert derived(body_of(nodes, values={"k": twos})) == Body((ROWS,), {("y", 1): Use(Split(0), alike=True)})
    assert derived(body_of(nodes, values={"k": counts})) == (
        "inside it, Mul takes a value that would have to be cut or scaled"
    )


def test_a_function_that_is_not_known_is_refused() -> None:
    assert derived(None) == "a function that cannot be looked into"


def test_random_numbers_from_a_seed_are_refused() -> None:
    nodes = """seed = Const() : int32[2]
      s = Const() : int32[2]
      y = StatelessRandomUniform(s, seed) {dtype=float32} : float32[8,3]"""
    found = derived(body_of(nodes, values={"seed": [1, 2], "s": [8, 3]}))
    assert found == "inside it, random numbers are drawn from a seed"


@pytest.mark.parametrize("wanted", [ROWS, Value(SUMS)])
def test_a_constant_result_becomes_what_is_wanted(wanted: Value) -> None:
    """The other branch gives pieces, or a sum; zeros are both."""
    shape = "8,3" if wanted == ROWS else "3"
    sizes = body_of(f"y = Const() : float32[{shape}]", values={"y": np.zeros([8, 3] if wanted == ROWS else [3])})
    use = Use(Split(0), alike=True) if wanted == ROWS else AS_IS
    assert derived(sizes, wanted=[wanted]) == Body((wanted,), {(OUTPUTS, 0): use})


def test_a_constant_that_is_no_zero_is_no_term_of_a_sum() -> None:
    sizes = body_of("y = Const() : float32[3]", values={"y": np.ones(3)})
    assert derived(sizes, wanted=[Value(SUMS)]) == (
        "inside it, a result depends on the batch in another way than is wanted"
    )


def test_a_list_that_is_empty_is_whatever_is_wanted() -> None:
    sizes = body_of("n = Const() : int32[]\n y = TensorListReserve(n, n) : variant[]", values={"n": 3})
    assert derived(sizes, wanted=[ROWS]) == Body((Value(BLANK),), {})
