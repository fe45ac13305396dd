"""Resources that are no variables: tables, queues. What the step changes is used in the order of the program."""

from __future__ import annotations

from whale_tf.ir.graph import Graph, Node

READERS = frozenset(
    {"LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2", "LookupTableExportV2"}
)


def written_resources(graph: Graph) -> frozenset[str]:
    """The resources that are no variables and that the step changes: all that uses one takes its turn."""
    found: set[str] = set()
    for node in graph:
        if node.op not in READERS and node.stateful:
            found |= {ref.node for ref in node.inputs if graph[ref.node].op == "Handle"}
    return frozenset(found)


def written_resource(graph: Graph, node: Node, written: frozenset[str]) -> str:
    """Which of these a node uses; empty if none."""
    return next((ref.node for ref in node.inputs if ref.node in written), "")
