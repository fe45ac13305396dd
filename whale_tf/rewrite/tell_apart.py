"""Gives names of their own to what a step computes from no example, and still not alike at every size of micro-batch.

A shape that was traced at the size of the micro-batch (the first gradient of a mean, say) is a constant of the graph.
Two traces share what is the same in both; what differs must not be taken for one value.

    Before:  ones = Fill(shape, scale)  {4}          in the other trace  {3}
    After:   ones = Fill(shape, scale)                                   ones/at3 = Fill(shape/at3, scale)
"""

from __future__ import annotations

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.plan.roles import FREE, Roles

BOUNDARY = frozenset({"Input", "Variable", "Handle", "Write", "Gradient"})


def tell_apart(graph: Graph, other: Graph, roles: Roles, size: int) -> Graph:
    """`other` with those nodes renamed that depend on no example and differ from `graph`'s of the same name.

    Args:
      roles: those of `other`.
      size: the examples that `other` was traced at.
    """
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for node in other:
        inputs = tuple(Ref(renamed.get(ref.node, ref.node), ref.index) for ref in node.inputs)
        changed = node.with_(inputs=inputs) if inputs != node.inputs else node
        if roles.phase[node.name] == FREE and node.op not in BOUNDARY and not _same(graph, changed):
            renamed[node.name] = f"{node.name}/at{size}"
            changed = changed.with_(name=renamed[node.name])
        nodes.append(changed)
    outputs = [Ref(renamed.get(ref.node, ref.node), ref.index) for ref in other.outputs]
    return Graph.of(nodes, outputs, [renamed.get(name, name) for name in other.effects])


def _same(graph: Graph, node: Node) -> bool:
    twin = graph.nodes.get(node.name)
    return twin is not None and (twin.op, twin.inputs, dict(twin.attrs)) == (node.op, node.inputs, dict(node.attrs))
