"""How a stage's tensors lie over the members of its mesh, found from few annotations.

    annotated    up/kernel Split(1)                              with whale.split(): the first product with a parameter
    follows      up/bias Split(0), h Split(1), down/kernel Split(0), and their gradients

Each annotation goes as far as the letters of the operations take it: forward and backward, over both ends of a reshape,
from a variable to its gradient. What was cut before is left as it is. These are wishes: what an operation takes and
gives is decided where it is written for a member (`form_of`), and a wrong wish costs messages and never a number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.sharding import Split
from whale_tf.ir.sizes import Array
from whale_tf.plan.kinds import TypedNode
from whale_tf.plan.roles import variable_of
from whale_tf.plan.shard_rules import RESHAPES, MeshRule, cut_letters, divides, mesh_rule, moved

# Through these a parameter stays one.
PASSING = RESHAPES | {"Cast", "Transpose", "Identity", "Scale"}
CONTRACTIONS = frozenset(
    {
        "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum", "Conv2D", "Conv3D", "Conv",
        "DepthwiseConv2dNative",
    }
)  # fmt: skip
LOOKUPS = frozenset({"GatherV2"})


@dataclass
class Propagation:
    """The wishes for one stage.

    Attributes:
      graph: the step with the shapes of a micro-batch.
      inside: the operations of the stage, and what is computed once per step for them.
      members: of the stage's mesh.
      value_of: what planning knows of a tensor's value.
      pinned: tensors that no wish is for.
      wishes: how tensors are to be cut; added to.
    """

    graph: Graph
    inside: frozenset[str]
    members: int
    value_of: Callable[[Ref], Array | None]
    pinned: frozenset[Ref] = frozenset()
    wishes: dict[Ref, Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rules: dict[str, MeshRule | None] = {}
        self.waiting: deque[str] = deque()
        self.ties: dict[str, list[Ref]] = {}
        for node in self.graph:
            if _speaks_of_variable(node):
                self.ties.setdefault(variable_of(node), []).append(Ref(node.name))

    def typed(self, node: Node) -> TypedNode:
        """A node with what is known of its operands."""
        kinds = tuple(self.graph.type_of(ref) for ref in node.inputs)
        return TypedNode(node, kinds, tuple(self.value_of(ref) for ref in node.inputs))

    def rule(self, node: Node) -> MeshRule | None:
        """How a mesh may cut a node."""
        if node.name not in self.rules:
            self.rules[node.name] = mesh_rule(self.typed(node))
        return self.rules[node.name]

    def divides(self, ref: Ref, split: Split) -> bool:
        """Whether a tensor can be cut so in equal pieces."""
        return divides(self.graph.type_of(ref).shape, split, self.members)

    def wish(self, ref: Ref, split: Split) -> None:
        """Wishes a tensor cut, and what follows from it."""
        self._note(ref, split)
        while self.waiting:
            self._visit(self.graph[self.waiting.popleft()])

    def _note(self, ref: Ref, split: Split) -> None:
        if ref in self.wishes or ref in self.pinned or ref.node not in self.inside or not self.divides(ref, split):
            return
        node = self.graph[ref.node]
        if node.op == "Const":
            return
        self.wishes[ref] = split
        self.waiting.append(ref.node)
        self.waiting.extend(name for name in self.graph.users[ref.node] if name in self.inside)
        if _speaks_of_variable(node):
            for tied in self.ties.get(variable_of(node), ()):
                self._note(tied, split)

    def _visit(self, node: Node) -> None:
        outputs = [Ref(node.name, index) for index in range(len(node.outputs))]
        if node.op in RESHAPES:
            self._pass(node.inputs[0], outputs[0])
            self._pass(outputs[0], node.inputs[0])
            return
        found = self.rule(node) if node.inputs else None
        if found is None:
            return
        names, refs = (*found.rule.inputs, *found.rule.outputs), (*node.inputs, *outputs)
        cut = next(cut_letters(names, [self.wishes.get(ref) for ref in refs]), None)
        if cut is None:
            return
        letter, outer = cut[1]
        for name, ref in zip(names, refs, strict=True):
            if letter in name:
                self._note(ref, Split(name.index(letter), outer))

    def _pass(self, source: Ref, target: Ref) -> None:
        split = self.wishes.get(source)
        if split is not None and target not in self.wishes:
            shapes = self.graph.type_of(source).shape, self.graph.type_of(target).shape
            found = moved(*shapes, split, self.members)
            if found is not None:
                self._note(target, found)


def _speaks_of_variable(node: Node) -> bool:
    """Whether it has the dims of a variable: its value, a new one, or a gradient that is no IndexedSlices."""
    if node.op not in ("Variable", "Write", "Gradient"):
        return False
    return bool(variable_of(node)) and node.attrs.get("part", b"dense") == b"dense"


def parameter_of(graph: Graph, ref: Ref) -> str:
    """The variable that a tensor is a form of; empty if it is none."""
    node = graph[ref.node]
    while node.op in PASSING and node.inputs:
        node = graph[node.inputs[0].node]
    return variable_of(node) if node.op in ("Variable", "Write") else ""


def products(propagation: Propagation, nodes: Iterable[Node]) -> Iterator[tuple[Node, int, str]]:
    """Among some operations the products with a parameter, else its lookups: the operand, and the letters to cut.

    Yields:
      the operation, the position of the parameter, and the letters of its dims that the result has and nothing else
      that it takes; of a lookup, that of its rows.
    """
    found = [
        (node, position)
        for node in nodes
        if node.op in CONTRACTIONS | LOOKUPS
        for position, ref in enumerate(node.inputs[:2])
        if parameter_of(propagation.graph, ref)
    ]
    wanted = CONTRACTIONS if any(node.op in CONTRACTIONS for node, _ in found) else LOOKUPS
    for node, position in found:
        rule = propagation.rule(node)
        if node.op not in wanted or rule is None or (node.op in LOOKUPS and position):
            continue
        name, other = rule.rule.inputs[position], rule.rule.inputs[1 - position]
        if node.op in LOOKUPS:
            letters = "".join(letter for letter in name if letter in rule.inside)
        else:
            letters = "".join(c for c in name if c != "." and c in rule.rule.outputs[0] and c not in other)
        if letters or node.op == "DepthwiseConv2dNative":
            yield node, position, letters or name.strip(".")
