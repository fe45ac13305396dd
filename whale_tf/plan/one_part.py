"""The phases of a step that one part runs whole."""

from __future__ import annotations

from collections.abc import Sequence

from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.sharding import WHOLE, Value
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.answers import RANDOM
from whale_tf.plan.resources import written_resource, written_resources
from whale_tf.plan.states import FREE, Known, States


def undivided(sizes: Sizes) -> States:
    """The states of a step that one part runs whole: nothing is merged, and only the phases are left to tell."""
    graph, level, markers = sizes.graph, dict[str, int](), set[str]()
    written, turns = written_resources(graph), dict[str, int]()
    updates = _behind([node.name for node in graph if node.op == "Gradient"], graph)
    for node in graph:
        latest = max((level[ref.node] for ref in node.inputs), default=FREE)
        if node.op == "Input":
            latest = 0 if node.attrs["batch"] else FREE
        elif node.op == "Gradient" and node.attrs["variable"]:
            latest += latest >= 0 and latest % 2 == 0
            markers.add(node.name)
        elif node.op in RANDOM and node.name not in updates:
            latest = max(0, latest + (latest > 0 and latest % 2))
        elif written_resource(graph, node, written):
            resource = written_resource(graph, node, written)
            latest = turns[resource] = max(latest + (latest >= 0 and latest % 2 == 0), turns.get(resource, 1))
        elif any(level[ref.node] >= 0 and level[ref.node] % 2 == 0 for ref in node.inputs):
            latest += latest % 2
        level[node.name] = latest
    known = {
        Ref(node.name, index): Known(Value(WHOLE), level[node.name])
        for node in graph
        for index in range(max(1, len(node.outputs)))
    }
    return States(sizes, known, level, {}, {}, frozenset(markers), frozenset(), {}, frozenset())


def _behind(names: Sequence[str], graph: Graph) -> set[str]:
    """What depends on these nodes, and what nothing else than that uses."""
    reached, stack = set[str](), list(names)
    while stack:
        for user in graph.users[stack.pop()]:
            if user not in reached:
                reached.add(user)
                stack.append(user)
    for node in reversed(list(graph)):
        users = graph.users[node.name]
        if node.op in RANDOM and users and all(_only(graph, user, reached) for user in users):
            reached.add(node.name)
    return reached


def _only(graph: Graph, name: str, reached: set[str]) -> bool:
    """Whether a node, or all that uses it, is behind the gradients."""
    stack, seen = [name], set[str]()
    while stack:
        here = stack.pop()
        if here in reached or here in seen:
            continue
        seen.add(here)
        if not graph.users[here]:
            return False
        stack.extend(graph.users[here])
    return True
