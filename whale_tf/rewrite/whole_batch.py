"""Gives what runs once per step the size of the whole batch, where the trace has fixed that of a micro-batch.

The size of the batch is a constant of a trace: a step that counts its examples, or divides a sum of gradients by their
number, holds the micro-batch's. Where it is used once per step, the constant is that of a trace at the whole batch.
What runs per micro-batch keeps its own.

    Before:  n = Const {4};  mean = RealDiv(n);  seen = AddV2(v, n)          at the whole batch: n = Const {16}
    After:   n = Const {4};  mean = RealDiv(n);  n/whole = Const {16};  seen = AddV2(v, n/whole)
"""

from __future__ import annotations

from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, Graph, Node, Ref
from whale_tf.plan.roles import FREE, Roles


def depends_on_size(graph: Graph, roles: Roles, examples: int) -> bool:
    """Whether something that runs once per step may hold the size of the micro-batch: a constant that is as large."""
    if examples < 2:
        return False
    wanted = [*_once_per_step(graph, roles), *(ref.node for ref in graph.outputs)]
    wanted = [name for name in wanted if not roles.per_micro_batch(name)]
    cone = graph.ancestors(wanted, stop=lambda node: roles.per_micro_batch(node.name))
    return any(examples in graph[name].attrs.get("numbers", ()) for name in cone if graph[name].op == "Const")


def use_whole_batch(graph: Graph, roles: Roles, whole: Graph) -> Graph:
    """The step with what depends on no example taken from `whole`, where it is used once per step and differs there.

    Args:
      whole: the step traced at the whole batch.
    """
    once = _once_per_step(graph, roles)
    differs: dict[str, bool] = {}
    nodes: dict[str, Node] = {}

    def other(name: str) -> bool:
        """Whether a node and what it is made of are not the same in both traces."""
        stack = [name]
        while stack:
            node, there = graph[stack[-1]], whole.nodes.get(stack[-1])
            free = roles.phase[node.name] == FREE and node.op not in BOUNDARY_OPS | ALIAS_OPS
            if not free or there is None or there.op != node.op:
                differs[node.name] = False
            missing = [ref.node for ref in node.inputs if free and ref.node not in differs]
            if node.name not in differs and missing:
                stack.extend(missing)
                continue
            if node.name not in differs and there is not None:
                differs[node.name] = dict(there.attrs) != dict(node.attrs) or any(
                    differs[ref.node] for ref in node.inputs
                )
            stack.pop()
        return differs[name]

    def replaced(ref: Ref) -> Ref:
        if not other(ref.node):
            return ref
        stack = [ref.node]
        while stack:
            node = whole[stack[-1]]
            missing = [r.node for r in node.inputs if differs.get(r.node) and f"{r.node}/whole" not in nodes]
            if missing:
                stack.extend(missing)
                continue
            inputs = tuple(Ref(f"{r.node}/whole", r.index) if differs.get(r.node) else r for r in node.inputs)
            nodes.setdefault(f"{node.name}/whole", node.with_(name=f"{node.name}/whole", inputs=inputs))
            stack.pop()
        return Ref(f"{ref.node}/whole", ref.index)

    for node in graph:
        if node.name in once:
            node = node.with_(inputs=tuple(replaced(ref) for ref in node.inputs))
        nodes[node.name] = node
    return Graph(nodes, tuple(replaced(ref) for ref in graph.outputs), graph.effects)


def _once_per_step(graph: Graph, roles: Roles) -> set[str]:
    """What runs once per step and is used so: not what a later round's micro-batches take."""
    once: set[str] = set()
    for name in reversed(list(graph.nodes)):
        node = graph[name]
        if roles.per_step(name) and name not in roles.markers:
            if all(user in once or user in roles.markers or graph[user].op == "Write" for user in graph.users[name]):
                once.add(name)
        elif node.op == "Write" and roles.phase[name] == FREE:
            once.add(name)
    return once
