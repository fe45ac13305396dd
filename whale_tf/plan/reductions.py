"""What a per-micro-batch tensor is over the examples, read off the operation that made it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from whale_tf.ir.graph import Graph, Ref

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
REDUCTIONS: Mapping[str, str] = MappingProxyType(
    {"Sum": "sum", "L2Loss": "sum", "Max": "max", "Min": "min", "Prod": "prod", "All": "all", "Any": "any"}
)
SAME_VALUE = frozenset({"Cast", "Reshape", "Squeeze", "ExpandDims", "Write"})


def reduction_of(graph: Graph, ref: Ref, examples: int, other: tuple[Graph, int] | None = None) -> str:
    """`concat` for per-example values, the reduction that took them together, else `mean`; empty if that is no float.

    Args:
      examples: the size of the micro-batch that the graph was traced at.
      other: the same step at another size, with that size, to tell which dims follow the batch.
    """
    if _per_example(graph, ref, examples, other):
        return "concat"
    node = graph[ref.node]
    while node.op in SAME_VALUE:
        node = graph[node.inputs[0].node]
    if node.op in REDUCTIONS:
        reduced = not _per_example(graph, Ref(node.name), examples, other)
        if reduced and _per_example(graph, node.inputs[0], examples, other):
            return REDUCTIONS[node.op]
    return "mean" if graph.type_of(ref).dtype in FLOATS else ""


def _per_example(graph: Graph, ref: Ref, examples: int, other: tuple[Graph, int] | None) -> bool:
    """Whether dim 0 is the batch: it is as long as the batch, and at the other size too where that is known."""
    if graph.type_of(ref).shape[:1] != (examples,):
        return False
    return other is None or ref.node not in other[0] or other[0].type_of(ref).shape[:1] == (other[1],)
