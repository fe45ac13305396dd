"""A step on one device of which each operation takes values that are given, in the place of its predecessors' results.

    Before:  h = MatMul(x, w);  y = Relu(h);  l = TensorListFromTensor(y);  s = TensorListStack(l)    h, y, s are given
    After:   h = MatMul(x, w);  y = Relu(given h);  l = TensorListFromTensor(given y);  s = TensorListStack(l)

What it computes from the values of a plan tells of every operation by itself whether the plan computed the same: no
rounding is passed on, and what follows from a wrong value is not wrong as well. By induction, where all agree each
value is one device's. It changes nothing: it has no assignments, and leaves out what has side effects, draws from a
hidden counter, or takes its turn with what changes a table.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from whale_tf.ir.graph import ALIAS_OPS, Graph, Node, Ref
from whale_tf.ir.sharding import Apart
from whale_tf.plan.local import AS_IS
from whale_tf.plan.resources import written_resource, written_resources
from whale_tf.plan.states import FREE, States
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import NO_VALUES

DEVICE = 0  # the only one


@dataclass(frozen=True)
class Isolated:
    """A step whose operations do not wait for each other.

    Attributes:
      program: its argument k is the k-th of `given`, its output k the k-th of `compared`.
      given: the tensors of the step that it takes.
      compared: the tensors of the step that it computes.
    """

    program: Program
    given: tuple[Ref, ...]
    compared: tuple[Ref, ...]


def isolate(states: States, given: Collection[Ref], device: str) -> Isolated:
    """The step with each operation by itself.

    Args:
      states: those of the plan. What each part has of its own is not compared, and neither is what follows from it.
      given: the tensors whose values are known, arguments and variables included.
      device: the name of the one that it runs on.
    """
    graph = states.sizes.graph
    left_out, known = _left_out(states), set(given)
    nodes: list[Node] = []
    computed: set[str] = set()
    compared: list[Ref] = []
    taken: dict[Ref, Ref] = {}

    def take(ref: Ref) -> Ref:
        if ref not in known:
            return ref
        if ref not in taken:
            name = f"given/{len(taken)}"
            attrs = {"index": len(taken), "batch": False}
            nodes.append(Node(name, "Take", attrs=attrs, outputs=(graph.type_of(ref),), device=DEVICE))
            taken[ref] = Ref(name)
        return taken[ref]

    for node in graph:
        if node.op in ("Captured", "Handle"):
            nodes.append(node.with_(op="Outside", device=DEVICE))
            computed.add(node.name)
        elif node.name not in left_out and all(ref in known or ref.node in computed for ref in node.inputs):
            made = node.with_(inputs=tuple(map(take, node.inputs)), control=(), device=DEVICE)
            nodes.append(made)
            computed.add(node.name)
            if states.level[node.name] != FREE:
                refs = [Ref(node.name, index) for index in range(len(node.outputs))]
                compared += [ref for ref in refs if ref in known and graph.type_of(ref).dtype not in NO_VALUES]
    main = Graph.of(nodes, compared).pruned()
    return Isolated(Program(main, {}, (device,), inline=False, ordered=False), tuple(taken), tuple(compared))


def _left_out(states: States) -> set[str]:
    """The nodes that cannot be run once more, or of which each part has its own results."""
    graph = states.sizes.graph
    written = written_resources(graph)
    return {
        node.name
        for node in graph
        if node.op in ("Input", "Variable")
        or node.stateful
        or not node.outputs
        or written_resource(graph, node, written)
        or node.name in states.accepted
        or _takes_own(node, states)
    }


def _takes_own(node: Node, states: States) -> bool:
    """Whether a part takes, or makes, what each part has of its own; the mean of that is taken by what runs once."""
    if node.op in ALIAS_OPS or states.level[node.name] % 2:
        return False
    taken = [
        ref for position, ref in enumerate(node.inputs) if not states.uses.get((node.name, position), AS_IS).merged
    ]
    made = [Ref(node.name, index) for index in range(len(node.outputs))]
    return any(isinstance(states.value(ref).state, Apart) for ref in (*taken, *made))
