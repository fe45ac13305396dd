"""Makes of a stage function what each member of the stage's mesh runs: one function for all of them.

    Before:  1F(h, w [8,32], v [32,8])    y = Relu(h w);            z = y v
    After:   1F(h, w [8,16], v [16,8])    y = Relu(h w) [.,16];     z' = y v;  z = AllReduce(place, z')

Who a member is comes as an argument: its place, for collectives, and its number. Arguments that are cut come as the
member's own piece of them. What another stage or the update takes of the results is whole, or, of a gradient, said
by its state: the members' pieces are put together, or their sums are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from whale_tf.ir.graph import Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Split, State
from whale_tf.ir.sizes import Array, Sizes
from whale_tf.plan.kinds import TypedNode
from whale_tf.plan.shard_forms import SHAPES_OF_RESULTS, Form, Operands, form_of, whole_form
from whale_tf.plan.shard_rules import divides, mesh_rule
from whale_tf.plan.shard_stage import StageMesh
from whale_tf.rewrite.cut import Source, StageFunction
from whale_tf.rewrite.member_insides import INSIDES
from whale_tf.rewrite.member_ops import MemberGraph, Moved
from whale_tf.rewrite.member_states import bring, local_type
from whale_tf.rewrite.program import OF_MEMBERS


@dataclass(frozen=True)
class Agreed:
    """How what leaves one function of a stage lies, for the other functions and sizes.

    Attributes:
      passed: of tensors that functions of one size hand on.
      sums: of the gradients' sums, by marker.
    """

    passed: dict[Ref, State] = field(default_factory=dict)
    sums: dict[str, State] = field(default_factory=dict)


@dataclass(frozen=True)
class Sharded:
    """A member's function.

    Attributes:
      function: it has the arguments of the whole one, and then the member's place and number where it needs them.
      moved: its collectives.
      gathered: operations that cannot be cut, and take whole what was cut.
    """

    function: StageFunction
    moved: tuple[Moved, ...]
    gathered: tuple[str, ...]


def shard(function: StageFunction, sizes: Sizes, mesh: StageMesh, agreed: Agreed) -> Sharded:
    """A member's function.

    Args:
      function: at its size.
      sizes: what planning knows of the step's operands.
      agreed: added to.
    """
    return _Sharding(function, sizes, mesh, agreed).run()


class _Sharding:
    """One function under construction."""

    def __init__(self, function: StageFunction, sizes: Sizes, mesh: StageMesh, agreed: Agreed) -> None:
        self.whole, self.sizes, self.mesh, self.agreed = function, sizes, mesh, agreed
        self.graph = MemberGraph(mesh.members, list(function.arguments), function.graph.nodes)
        self.state: dict[Ref, State] = {}
        self.at: dict[Ref, Ref] = {}
        self.brought: dict[tuple[Ref, State], Ref] = {}
        self.gathered: list[str] = []
        self.uses: dict[Ref, int] = {}
        self.arguments: set[str] = set()

    def run(self) -> Sharded:
        function, graph = self.whole, self.whole.graph
        for node in graph:
            for ref in node.inputs:
                self.uses[ref] = self.uses.get(ref, 0) + 1
        for ref in graph.outputs:
            self.uses[ref] = self.uses.get(ref, 0) + 1
        for node in graph:
            if node.op == "Argument":
                self._argument(node)
            else:
                self._operation(node)
        lies = [self._leaves_as(ref, wanted) for ref, wanted in zip(graph.outputs, function.results, strict=False)]
        given = graph.outputs[len(function.results) :]
        lies += [self._sums_as(ref, marker) for ref, marker in zip(given, function.sums, strict=True)]
        outputs = [self._given(ref, state) for ref, state in zip(graph.outputs, lies, strict=True)]
        cut = {index: state for index, state in enumerate(lies) if state != WHOLE}
        together = [node.name for node in self.graph.nodes.values() if node.op in OF_MEMBERS]
        member_graph = graph.of(_in_order(self.graph.nodes), outputs, [*graph.effects, *together])
        computed = {ref: (self.at[ref], state) for ref, state in self.state.items() if ref.node not in self.arguments}
        arguments = tuple(self.graph.arguments)
        member = replace(function, graph=member_graph, arguments=arguments, whole=function, lies=cut, computed=computed)
        return Sharded(member, tuple(self.graph.moved), tuple(self.gathered))

    # What it takes

    def _argument(self, node: Node) -> None:
        source, ref = self.whole.arguments[node.attrs["index"]], Ref(node.name)
        state: State = WHOLE
        if source.kind == "sum":
            state = self.agreed.sums.get(source.name, WHOLE)
        elif source.kind == "micro" and source.ref in self.mesh.inner:
            state = self.agreed.passed[source.ref]
        elif source.kind == "step":
            split = self.mesh.wishes.get(source.ref)
            if split is not None and divides(node.outputs[0].shape, split, self.mesh.members):
                state = split
                self.graph.arguments[node.attrs["index"]] = Source("piece", source.ref, str(split))
        kind = local_type(node.outputs[0], state, self.mesh.members)
        self.graph.keep(node.with_(outputs=(kind,)))
        self.at[ref], self.state[ref] = ref, state
        self.arguments.add(node.name)

    # What it does

    def _operation(self, node: Node) -> None:
        operands = self._operands(node)
        pinned = Ref(node.name) in self.mesh.pinned
        form = whole_form(operands) if pinned else form_of(operands)
        if not (form.letter or pinned) and any(isinstance(state, Split) for state in operands.given):
            self.gathered.append(node.name)
        inputs = [self._taken(ref, state, node) for ref, state in zip(node.inputs, form.takes, strict=True)]
        refs = [Ref(node.name, index) for index in range(len(node.outputs))]
        made = self._made(node, form, inputs)
        for ref, there, state in zip(refs, made, form.gives, strict=True):
            self.at[ref], self.state[ref] = there, state

    def _operands(self, node: Node) -> Operands:
        kinds = tuple(self.whole.graph.type_of(ref) for ref in node.inputs)
        typed = TypedNode(node, kinds, tuple(self._value(node, at) for at in range(len(kinds))))
        refs = [Ref(node.name, index) for index in range(len(node.outputs))]
        return Operands(
            typed,
            mesh_rule(typed),
            tuple(self.state[ref] for ref in node.inputs),
            tuple(self.mesh.wishes.get(ref) for ref in refs),
            tuple(self.uses[ref] == 1 for ref in node.inputs),
            tuple(self._is_parameter(ref) for ref in node.inputs),
            any(ref in self.mesh.gradients for ref in refs),
            self.mesh.members,
            tuple(self.mesh.wishes.get(ref) if self.state[ref] == SUMS else None for ref in node.inputs),
        )

    def _value(self, node: Node, at: int) -> Array | None:
        """What planning knows of an operand: a constant of this size, or of the step."""
        source = self.whole.graph[node.inputs[at].node]
        if source.op == "Const" and isinstance(source.attrs.get("value"), int | float | tuple):
            return _elements(source.attrs["value"], source.outputs[0].shape)
        known = self.sizes.graph.nodes.get(node.name)
        return None if known is None or at >= len(known.inputs) else self.sizes.values.get(known.inputs[at])

    def _is_parameter(self, ref: Ref) -> bool:
        node = self.whole.graph[ref.node]
        if node.op == "Argument":
            return self.whole.arguments[node.attrs["index"]].ref in self.mesh.parameters
        return ref in self.mesh.parameters

    def _taken(self, ref: Ref, state: State, node: Node) -> Ref:
        self.graph.wanting = node.name
        return self._given(ref, state)

    def _made(self, node: Node, form: Form, inputs: list[Ref]) -> list[Ref]:
        if form.inside:
            return INSIDES[node.op](self.graph, node, form, inputs)
        kinds = tuple(map(self._local, node.outputs, form.gives))
        if form.letter:
            inputs = self._told_shapes(node, kinds[0], inputs)
        control = tuple(name for name in node.control if name in self.graph.nodes)
        self.graph.keep(node.with_(inputs=tuple(inputs), outputs=kinds, control=control))
        if node.op == "Mean" and isinstance(form.gives[0], Partial):
            share = self.graph.number(1 / self.mesh.members, kinds[0].dtype)
            return [self.graph.binary(node.name, "Mul", Ref(node.name), share)]
        return [Ref(node.name, index) for index in range(len(kinds))]

    def _told_shapes(self, node: Node, kind: TensorType, inputs: list[Ref]) -> list[Ref]:
        """The operands, where the one that says the result's shape says the member's."""
        position = SHAPES_OF_RESULTS.get(node.op)
        if position is not None:
            dtype = self.whole.graph.type_of(node.inputs[position]).dtype
            inputs[position] = self.graph.number(kind.shape.sizes, dtype)
        elif node.op == "Tile":
            given = self.graph.type_of(inputs[0]).shape.sizes
            times = tuple(a // b for a, b in zip(kind.shape.sizes, given, strict=True))
            inputs[1] = self.graph.number(times, self.whole.graph.type_of(node.inputs[1]).dtype)
        return inputs

    def _local(self, kind: TensorType, state: State) -> TensorType:
        return local_type(kind, state, self.mesh.members)

    # What it gives

    def _leaves_as(self, ref: Ref, wanted: Ref) -> State:
        """Sums are put together where they are made: who takes them later need not do it again."""
        if wanted not in self.mesh.inner or isinstance(self.state[ref], Partial):
            return self.agreed.passed.setdefault(wanted, WHOLE)
        return self.agreed.passed.setdefault(wanted, self.state[ref])

    def _sums_as(self, ref: Ref, marker: str) -> State:
        state = self.state[ref]
        if isinstance(state, Partial) and state != SUMS:
            state = WHOLE
        return self.agreed.sums.setdefault(marker, state)

    def _given(self, ref: Ref, state: State) -> Ref:
        if (ref, state) not in self.brought:
            kind, have = self.whole.graph.type_of(ref), self.state[ref]
            self.brought[ref, state] = bring(self.graph, f"{ref.node}/given", self.at[ref], kind, have, state)
        return self.brought[ref, state]


def _elements(value: int | float | tuple[int | float, ...], shape: Shape) -> Array:
    """The elements of a constant, which has one number for all where they are alike."""
    numbers = np.asarray(value)
    return np.broadcast_to(numbers.reshape(() if numbers.size == 1 else shape.sizes), shape.sizes)


def _in_order(nodes: Mapping[str, Node]) -> list[Node]:
    """Arguments come first; the rest were added after what they take."""
    arguments = sorted((node for node in nodes.values() if node.op == "Argument"), key=lambda node: node.attrs["index"])
    return [*arguments, *(node for node in nodes.values() if node.op != "Argument")]
