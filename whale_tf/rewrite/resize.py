"""Gives a stage function the size of a micro-batch: its shapes, and the operands that say shapes.

    Before:  r = Reshape(h [16,4], s [64]);  m = Mul(r, n 16)      the global batch, 16 examples
    After:   r = Reshape(h [5,4], s/5 [20]);  m = Mul(r, n 16)     a micro-batch of 5; what is data stays

The functions that nodes call are given the size as well, under a name of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whale_tf.errors import InternalError
from whale_tf.ir.functions import with_functions
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.sizes import Array, Sizes, uniform
from whale_tf.plan.bodies import OUTPUTS
from whale_tf.plan.local import AS_IS, Use
from whale_tf.plan.rules import shape_operands
from whale_tf.plan.states import FREE, States
from whale_tf.rewrite.cut import StageFunction

OF_PARTS = frozenset({"Piece", "Scale", "Shift"})
LISTS = frozenset({"TensorListReserve", "EmptyTensorList"})


@dataclass(frozen=True)
class Resized:
    """A stage function for one size, and the functions it calls that are not those of the step."""

    function: StageFunction
    calls: Mapping[str, Graph]


def resize(function: StageFunction, states: States, made_of: Mapping[str, Ref], size: int) -> Resized:
    """The stage function for micro-batches of `size` examples.

    Args:
      made_of: for each node that the step has not, the tensor of the step that it is a form of.
    """
    sizes = states.sizes
    if size == sizes.batch:
        return Resized(function, {})
    writer = _Writer(sizes, states, size, made_of, _sized(states))
    for node in function.graph:
        if node.op == "Argument":
            source = function.arguments[node.attrs["index"]]
            cut = source.kind in ("slice", "micro")
            writer.node(_typed(node, writer.type_at(source.ref) if cut else node.outputs[0]))
        else:
            writer.micro(node)
    graph = Graph.of(writer.nodes.values(), function.graph.outputs, function.graph.effects)
    changed = StageFunction(function.key, graph, function.arguments, function.results, function.sums)
    return Resized(changed, writer.calls)


def at_size(graph: Graph, states: States, made_of: Mapping[str, Ref], size: int) -> Graph:
    """The step with the shapes that a micro-batch of `size` examples has; what runs once keeps its own."""
    if size == states.sizes.batch:
        return graph
    writer = _Writer(states.sizes, states, size, made_of, _sized(states))

    def sized(node: Node) -> Node:
        level = states.level.get(node.name, FREE)
        if node.op not in OF_PARTS and (level < 0 or level % 2):
            return node
        return node.with_(outputs=tuple(writer.type_at(Ref(node.name, i)) for i in range(len(node.outputs))))

    return graph.rewritten(sized)


@dataclass
class _Writer:
    """A graph under construction: of a stage function, or of a body that it calls."""

    sizes: Sizes
    states: States
    size: int
    made_of: Mapping[str, Ref]
    uses: Mapping[tuple[str, int], Use]
    nodes: dict[str, Node] = field(default_factory=dict)
    calls: dict[str, Graph] = field(default_factory=dict)
    within: bool = False

    def node(self, node: Node) -> None:
        """Adds a node as it is."""
        self.nodes[node.name] = node

    def micro(self, node: Node) -> None:
        """Adds a node at the size, with what its operands become."""
        name = node.name
        if name not in self.sizes.graph:
            self.node(self._form(node))
            return
        runs_by_parts = self._runs_by_parts(node)
        inputs = list(node.inputs)
        for position in range(len(inputs)):
            use = self.uses.get((name, position), AS_IS)
            if use.alike:
                inputs[position] = self._alike(self.sizes.graph[name].inputs[position])
            elif use.sized or (position in shape_operands(node.op) and (name, position) in self.sizes.operands):
                inputs[position] = self._operand(node, position)
        if not runs_by_parts:
            self.node(node)
            return
        outputs = tuple(self.type_at(Ref(name, index)) for index in range(len(node.outputs)))
        attrs = {key: self._attribute(name, key, value) for key, value in node.attrs.items()}
        sized = node.with_(inputs=tuple(inputs), outputs=outputs, attrs=attrs)
        self.node(with_functions(sized, lambda _, function: self._called(function)))

    def _runs_by_parts(self, node: Node) -> bool:
        """Whether it is of a part: what constants determine, and copies of what is computed once, stay as they are."""
        if node.op in LISTS:
            return True
        if self.within:
            return not node.outputs or Ref(node.name) not in self.sizes.values
        return self.states.level[node.name] != FREE

    def type_at(self, ref: Ref) -> TensorType:
        """The type of a tensor at the size; one whose shape is no whole number there keeps only its rank."""
        if ref.node in self.made_of:
            ref = self.made_of[ref.node]
        kind = self.sizes.type_of(ref)
        if ref not in self.sizes.shapes:
            return kind
        shape = self.sizes.shape_at(ref, self.size)
        return TensorType(kind.dtype, shape if shape is not None else Shape(-1 for _ in kind.shape))

    def _form(self, node: Node) -> Node:
        """A node that another pass made: of the tensor that it is a form of, it has the shape."""
        if node.name not in self.made_of:
            return node
        kind = self.type_at(self.made_of[node.name])
        if node.op == "Const" and "first" in node.attrs:
            rows = self.sizes.values[self.made_of[node.name]][tuple(slice(size) for size in kind.shape)]
            attrs = {**node.attrs, "value": tuple(rows.ravel().tolist()), "shape": kind.shape}
            return node.with_(attrs=attrs, outputs=(kind,))
        if node.op == "Const":
            return node.with_(attrs={**node.attrs, "shape": kind.shape}, outputs=(kind,))
        return node.with_(outputs=(kind,))

    def _alike(self, ref: Ref) -> Ref:
        name = f"{ref}/alike".replace(":", "/")
        kind = self.type_at(ref)
        attrs = {"dtype": kind.dtype, "value": number_of(self.sizes.values[ref]), "shape": kind.shape}
        self.node(Node(name, "Const", attrs=attrs, outputs=(kind,)))
        return Ref(name)

    def _operand(self, node: Node, position: int) -> Ref:
        value = self.sizes.operand_at(node.name, position, self.size)
        if value is None:
            raise InternalError(
                f"operand {position} of '{node.name}' ({node.op}) is no whole number for {self.size} examples",
                way_out="This is a fault of whale_tf: plan.states let parts run it.",
            )
        name = f"{node.name}/operand{position}"
        kind = TensorType(DType(value.dtype.name), Shape(value.shape))
        attrs = {"dtype": kind.dtype, "value": tuple(value.ravel().tolist()), "shape": kind.shape}
        self.node(Node(name, "Const", attrs=attrs, outputs=(kind,)))
        return Ref(name)

    def _attribute(self, node: str, key: str, value: Any) -> Any:
        if (node, key) in self.sizes.attributes:
            return self.sizes.attribute_at(node, key, self.size)
        return value

    def _called(self, function: str) -> str:
        """The name of a function at the size."""
        body = self.sizes.bodies.get(function)
        if body is None or function not in self.states.bodies:
            return function
        name = f"{function}@{self.size}"
        if name not in self.calls:
            uses = self.states.bodies[function]
            writer = _Writer(body, self.states, self.size, {}, uses, calls=self.calls, within=True)
            for node in body.graph:
                if node.op == "Argument":
                    writer.node(_typed(node, writer.type_at(Ref(node.name))))
                else:
                    writer.micro(node)
            graph = body.graph
            outputs = [
                writer._alike(ref) if uses.get((OUTPUTS, index), AS_IS).alike else ref
                for index, ref in enumerate(graph.outputs)
            ]
            self.calls[name] = Graph.of(writer.nodes.values(), outputs, graph.effects, attrs=graph.attrs)
        return name


def _sized(states: States) -> Mapping[tuple[str, int], Use]:
    """The operands of the step that become numbers of the size; what else is made of operands is nodes by now."""
    return {at: use for at, use in states.uses.items() if use.sized}


def number_of(value: Array) -> Any:
    """The number that all elements of a constant are."""
    found = uniform(value)
    return None if found is None else found.item()


def _typed(node: Node, kind: TensorType) -> Node:
    return node if node.outputs == (kind,) else node.with_(outputs=(kind,))
