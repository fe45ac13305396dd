"""Each change of state among members gives what numpy gives, and moves what its table says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.rewrite.mesh import KEY, parts_of, run_members, together
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Reduction, Split, State
from whale_tf.rewrite.cut import Source, StageFunction
from whale_tf.rewrite.member_ops import MemberGraph
from whale_tf.rewrite.member_states import bring, local_type

HIGHEST, LOWEST = Partial(Reduction.MAX), Partial(Reduction.MIN)
SHAPE = (12, 6, 24)
CUT = (Split(0), Split(1), Split(2), Split(0, 2), Split(2, 4))
EXCHANGES = [(a, b) for a in CUT for b in CUT if a != b]
# The collective that brings from one state to the other.
MOVES: list[tuple[State, State, list[str]]] = [
    *((have, WHOLE, ["AllReduce"]) for have in (SUMS, HIGHEST, LOWEST)),
    *((SUMS, want, ["ReduceScatter"]) for want in CUT),
    *((HIGHEST, want, ["AllReduce"]) for want in CUT[1:3]),
    *((have, WHOLE, ["AllGather"]) for have in CUT),
    *((have, want, ["AllToAll" if have.dim != want.dim else "AllGather"]) for have, want in EXCHANGES),
    *((have, SUMS, ["AllGather"]) for have in CUT[1:2]),
    *((WHOLE, want, []) for want in (*CUT, SUMS, WHOLE)),
    (SUMS, SUMS, []),
]


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(
    ("have", "want", "ops"), MOVES, ids=lambda each: str(each) if not isinstance(each, list) else ""
)
def test_a_tensor_is_brought_from_state_to_state(have: State, want: State, ops: list[str], members: int) -> None:
    value = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    kind = TensorType(DType("float32"), Shape(SHAPE))
    graph = MemberGraph(members, [Source("micro", Ref("x"))])
    graph.keep(Node("x", "Argument", attrs={"index": 0}, outputs=(local_type(kind, have, members),)))
    brought = bring(graph, "y", Ref("x"), kind, have, want)
    assert graph.type_of(brought) == local_type(kind, want, members)
    assert [each.op for each in graph.moved] == ops
    nodes = sorted(graph.nodes.values(), key=lambda node: node.op != "Argument")
    function = StageFunction(KEY, Graph.of(nodes, [brought]), tuple(graph.arguments), (Ref("y"),), ())
    found = run_members(function, members, [[part] for part in parts_of(value, have, members)])
    parts = [outputs[0] for outputs in found]
    np.testing.assert_array_equal(together(parts, want), value)
    if isinstance(want, Split):
        for part, expected in zip(parts, parts_of(value, want, members), strict=True):
            np.testing.assert_array_equal(part, expected)
