"""Writes into the step where values change their state over the parts of the batch, as `plan.states` has found.

    Before:  m = Mean(h)  Partial(sum);  c = Sub(h, m);  g = Mul(n Whole, h Split(0))
    After:   m = Mean(h);  m/merged = Merge(m);  c = Sub(h, m/merged);  n/piece = Piece(n);  g = Mul(n/piece, h)

`Merge` makes one value of the parts', `Piece` is each part's own piece of a whole value, `Scale` multiplies by the
part's share of the examples to a power. A piece of a constant whose elements are all the same is a Const of the part's
shape. What is wanted whole by something that runs once is merged there, and needs no node.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.plan.local import AS_IS, Use
from whale_tf.plan.roles import Roles, find_roles
from whale_tf.plan.states import FREE, States
from whale_tf.rewrite.resize import number_of


@dataclass(frozen=True)
class Resharded:
    """A step with its changes of state.

    Attributes:
      graph: the step; new nodes are named after the tensor they take.
      roles: when each node runs, the new ones included.
      made_of: for each new node the tensor of the step that it is a form of.
    """

    graph: Graph
    roles: Roles
    made_of: dict[str, Ref]


def reshard(states: States) -> Resharded:
    """The step with its changes of state."""
    writer = _Writer(states)
    graph = writer.write()
    return Resharded(graph, find_roles(graph, writer.level, states.markers), writer.made_of)


@dataclass
class _Writer:
    states: States
    nodes: dict[str, Node] = field(default_factory=dict)
    level: dict[str, int] = field(default_factory=dict)
    made_of: dict[str, Ref] = field(default_factory=dict)
    constants: dict[Ref, Ref] = field(default_factory=dict)

    def write(self) -> Graph:
        graph = self.states.sizes.graph
        self.level.update(self.states.level)
        for node in graph:
            if self._is_known(node):
                self._constants(node)
                continue
            inputs = tuple(
                self._used(node, ref, self.states.uses.get((node.name, position), AS_IS))
                for position, ref in enumerate(node.inputs)
            )
            self.nodes[node.name] = node if inputs == node.inputs else node.with_(inputs=inputs)
        outputs = [self.constants.get(ref, ref) for ref in graph.outputs]
        return Graph.of(self.nodes.values(), outputs, graph.effects)

    def _is_known(self, node: Node) -> bool:
        """Whether it is known when planning, of operands that are not: the shape of something."""
        known = bool(node.outputs) and Ref(node.name) in self.states.sizes.values
        return known and self.states.level[node.name] == FREE and any(self.level[r.node] != FREE for r in node.inputs)

    def _constants(self, node: Node) -> None:
        """What it gives, as constants."""
        for index, kind in enumerate(node.outputs):
            value = self.states.sizes.values[Ref(node.name, index)]
            number = number_of(value)
            given = tuple(value.ravel().tolist()) if number is None or (value.size == 1 and value.ndim) else number
            name = f"{node.name}/{index}" if index else node.name
            shape = Shape(value.shape)
            attrs = {"dtype": kind.dtype, "value": given, "shape": shape}
            self.nodes[name] = Node(name, "Const", attrs=attrs, outputs=(TensorType(kind.dtype, shape),))
            self.level[name] = FREE
            if index:
                self.constants[Ref(node.name, index)] = Ref(name)

    def _used(self, node: Node, ref: Ref, use: Use) -> Ref:
        made = self.constants.get(ref, ref)
        if use == AS_IS:
            return made
        if use.merged:
            made = self._add(f"{ref}/merged", "Merge", made, ref, self.states.level[ref.node] + 1)
        if use.piece is not None:
            suffix = f"{use.piece.dim}_{use.piece.outer}"
            if use.prefix:
                made = self._prefix(f"{ref}/first", ref)
            elif use.alike:
                made = self._alike(f"{ref}/alike{suffix}", ref)
            else:
                level = self.states.level[node.name] - self.states.level[node.name] % 2
                name, piece = f"{ref}/piece{suffix}/{level}", use.piece
                made = self._add(name, "Piece", made, ref, level, dim=piece.dim, outer=piece.outer)
        if use.shift:
            name, level = f"{made}/shift/in/{node.name}", self.states.level[node.name]
            made = self._add(name, "Shift", made, ref, level - level % 2, like=node, ahead=use.shift)
        if use.power:
            name, level = f"{made}/share{use.power}/in/{node.name}", self.states.level[node.name]
            made = self._add(name, "Scale", made, ref, level - level % 2, like=node, power=str(use.power))
        return made

    def _alike(self, name: str, ref: Ref) -> Ref:
        """A constant of the part's shape; `resize` gives it its size."""
        name = name.replace(":", "/")
        kind, number = self.states.sizes.type_of(ref), number_of(self.states.sizes.values[ref])
        if name not in self.nodes:
            attrs = {"dtype": kind.dtype, "value": number, "shape": kind.shape}
            self.nodes[name] = Node(name, "Const", attrs=attrs, outputs=(kind,))
            self.level[name], self.made_of[name] = FREE, ref
        return Ref(name)

    def _prefix(self, name: str, ref: Ref) -> Ref:
        """The first part's piece of a constant; `resize` cuts it."""
        name = name.replace(":", "/")
        kind, value = self.states.sizes.type_of(ref), self.states.sizes.values[ref]
        if name not in self.nodes:
            attrs = {"dtype": kind.dtype, "value": tuple(value.ravel().tolist()), "shape": kind.shape, "first": True}
            self.nodes[name] = Node(name, "Const", attrs=attrs, outputs=(kind,))
            self.level[name], self.made_of[name] = FREE, ref
        return Ref(name)

    def _add(
        self, name: str, op: str, given: Ref, ref: Ref, level: int, *, like: Node | None = None, **attrs: Any
    ) -> Ref:
        name = name.replace(":", "/")
        if name not in self.nodes:
            kind = self.states.sizes.type_of(ref)
            new = Node(name, op, (given,), attrs=attrs, outputs=(TensorType(DType(kind.dtype), kind.shape),))
            if like is not None:
                call = like.attrs["call"] if like.op == "Gradient" else like.call
                new = replace(new, scope=like.scope, call=call, twin=like.twin)
            self.nodes[name] = new
            self.level[name], self.made_of[name] = level, ref
        return Ref(name)
