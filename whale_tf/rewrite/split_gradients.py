"""Takes out of each gradient what depends on no example, so that it is added once and not once for each part.

A loss that is a sum over the examples plus a regularizer has such gradients. (Where the loss is a mean, averaging the
parts comes to the same.)

    Before:  g = AddN(a, r);  m = Gradient(g)                             a depends on examples, r on the weights alone
    After:   m/examples = Gradient(a);  m = AddN(m/examples, r)
"""

from __future__ import annotations

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.reductions import RANDOM

SUMS = frozenset({"AddN", "AddV2"})


def split_gradients(graph: Graph) -> Graph:
    """The step with dense gradients divided where they are sums with terms of both kinds."""
    dependent: set[str] = set()
    nodes: list[Node] = []
    for node in graph:
        batch = node.op == "Input" and node.attrs["batch"]
        if batch or node.op in RANDOM or any(ref.node in dependent for ref in node.inputs):
            dependent.add(node.name)
        terms = _terms(graph, node.inputs[0]) if node.op == "Gradient" and node.attrs["part"] == b"dense" else []
        constant = [term for term in terms if term.node not in dependent]
        if not constant or len(constant) == len(terms):
            nodes.append(node)
            continue
        nodes += _divided(node, [term for term in terms if term.node in dependent], constant)
    return Graph.of(nodes, graph.outputs, graph.effects).pruned()


def _terms(graph: Graph, ref: Ref) -> list[Ref]:
    terms, stack = [], [ref]
    while stack:
        here = stack.pop()
        node = graph[here.node]
        if node.op in SUMS and all(graph.type_of(r) == graph.type_of(ref) for r in node.inputs):
            stack.extend(node.inputs)
        else:
            terms.append(here)
    return terms[::-1]


def _divided(marker: Node, examples: list[Ref], constant: list[Ref]) -> list[Node]:
    kind = marker.outputs[0]
    nodes: list[Node] = []
    source = examples[0]
    if len(examples) > 1:
        attrs = {"T": kind.dtype, "N": len(examples)}
        total = Node(f"{marker.name}/sum_of_examples", "AddN", tuple(examples), attrs=attrs, outputs=(kind,))
        nodes.append(total.with_(call=marker.attrs["call"]))
        source = Ref(total.name)
    nodes.append(marker.with_(name=f"{marker.name}/examples", inputs=(source,)))
    attrs = {"T": kind.dtype, "N": 1 + len(constant)}
    terms = (Ref(nodes[-1].name), *constant)
    nodes.append(Node(marker.name, "AddN", terms, attrs=attrs, outputs=(kind,)))
    return nodes
