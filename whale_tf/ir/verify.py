"""Says whether a graph is one: every pass's result goes through here, so that a fault is found where it was made.

It knows nothing of what the operations compute; it takes time linear in nodes and edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from whale_tf.errors import InternalError
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, Graph, Node, Ref

_SHOWN_OFFENDERS = 10


def verify(graph: Graph, *, after: str) -> None:
    """Refuses a graph that breaks a rule of `whale_tf.ir.graph`.

    Args:
      graph: what to look at.
      after: the pass that made it, for the message.
    Raises:
      InternalError: with the first ten offenders and how many there are.
    """
    offenders = list(
        chain(
            _wrong_names(graph),
            _wrong_references(graph),
            _wrong_roots(graph),
            _wrong_operations(graph),
            _shared_arguments(graph),
        )
    )
    if not offenders:
        return
    details = offenders[:_SHOWN_OFFENDERS]
    if len(offenders) > len(details):
        details.append(f"and {len(offenders) - len(details)} more")
    places = "1 place" if len(offenders) == 1 else f"{len(offenders)} places"
    raise InternalError(
        f"the graph is broken in {places} after pass '{after}'",
        details=details,
        way_out=f"This is a fault of whale_tf, not of your step: please report it with the graph before '{after}'.",
    )


def _wrong_names(graph: Graph) -> Iterator[str]:
    for key, node in graph.nodes.items():
        if key != node.name:
            yield f"the node under '{key}' calls itself '{node.name}'"


def _wrong_references(graph: Graph) -> Iterator[str]:
    """References of nodes to nothing, to an output that is not there, or to what comes later."""
    earlier: set[str] = set()
    for key, node in graph.nodes.items():
        for position, ref in enumerate(node.inputs):
            where = f"input {position} of '{key}' ({node.op})"
            yield from _wrong_ref(graph, ref, where)
            if ref.node in graph and ref.node not in earlier:
                yield f"{where} is '{ref}', which does not come before it"
        for name in node.control:
            if name not in graph:
                yield f"'{key}' ({node.op}) waits for '{name}', which is missing"
            elif name not in earlier:
                yield f"'{key}' ({node.op}) waits for '{name}', which does not come before it"
        earlier.add(key)


def _wrong_roots(graph: Graph) -> Iterator[str]:
    for position, ref in enumerate(graph.outputs):
        yield from _wrong_ref(graph, ref, f"output {position} of the graph")
    seen: set[str] = set()
    for name in graph.effects:
        if name not in graph:
            yield f"effect '{name}' is missing"
        if name in seen:
            yield f"effect '{name}' is listed twice"
        seen.add(name)


def _wrong_operations(graph: Graph) -> Iterator[str]:
    for node in graph:
        if node.op in BOUNDARY_OPS and node.inputs:
            yield f"{_title(node)} takes '{node.inputs[0]}', and {node.op} takes nothing"
        if node.op in ALIAS_OPS and not node.inputs:
            yield f"{_title(node)} has no input, and {node.op} needs one"
        if node.op == "Variable" and "variable" not in node.attrs:
            yield f"{_title(node)} does not say of which variable: attribute 'variable' is missing"


def _shared_arguments(graph: Graph) -> Iterator[str]:
    owners: dict[object, str] = {}
    for node in graph:
        if node.op == "Argument":
            index = node.attrs.get("index")
            owner = owners.setdefault(index, node.name)
            if owner != node.name:
                yield f"{_title(node)} has index {index}, as '{owner}' has"


def _wrong_ref(graph: Graph, ref: Ref, where: str) -> Iterator[str]:
    if ref.node not in graph:
        yield f"{where} is '{ref}', which is missing"
    elif not 0 <= ref.index < len(graph[ref.node].outputs):
        yield f"{where} is '{ref}', and '{ref.node}' has {len(graph[ref.node].outputs)} output(s)"


def _title(node: Node) -> str:
    return f"'{node.name}' ({node.op})"
