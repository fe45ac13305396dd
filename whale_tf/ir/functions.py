"""The functions that nodes refer to by an attribute: `body` of a While, `f` of a call, `branches` of a Case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from whale_tf.ir.graph import Function, Graph, Node

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
LOOPS = frozenset({"While", "StatelessWhile"})
CALLING = CALLS | BRANCHES | LOOPS
# What keeps Grappler from inlining a function, and from copying and optimizing it for every call.
NOT_INLINED: Mapping[str, Any] = MappingProxyType({"_noinline": True, "_nospecialize": True})


def functions_of(node: Node) -> dict[str, str]:
    """The names of the functions that a node refers to, by attribute; those of a list as `branches_0`, `branches_1`."""
    found: dict[str, str] = {}
    for attribute, value in node.attrs.items():
        if isinstance(value, Function):
            found[attribute] = value.name
        elif isinstance(value, tuple) and any(isinstance(each, Function) for each in value):
            found |= {f"{attribute}_{index}": each.name for index, each in enumerate(value)}
    return found


def with_functions(node: Node, rename: Callable[[str, str], str]) -> Node:
    """The node with other functions.

    Args:
      rename: from an attribute, as `functions_of` has it, and the function's name to the new name.
    """
    changed: dict[str, Any] = {}
    for attribute, value in node.attrs.items():
        if isinstance(value, Function):
            changed[attribute] = value._replace(name=rename(attribute, value.name))
        elif isinstance(value, tuple) and any(isinstance(each, Function) for each in value):
            changed[attribute] = tuple(
                each._replace(name=rename(f"{attribute}_{index}", each.name)) for index, each in enumerate(value)
            )
    return node.with_(attrs={**node.attrs, **changed}) if changed else node


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with each function called as `names` says; one that is not in it stays."""
    return graph.rewritten(lambda node: with_functions(node, lambda _, name: names.get(name, name)))


def called(graphs: Iterable[Graph], calls: Mapping[str, Graph]) -> dict[str, Graph]:
    """Those of `calls` that the graphs refer to, directly or through each other; callees first."""
    found: dict[str, Graph] = {}
    entered: set[str] = set()

    def enter(graph: Graph) -> None:
        for node in graph:
            for name in functions_of(node).values():
                if name in calls and name not in entered:
                    entered.add(name)
                    enter(calls[name])
                    found[name] = calls[name]

    if calls:
        for graph in graphs:
            enter(graph)
    return found
