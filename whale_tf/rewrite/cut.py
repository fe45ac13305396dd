"""Cuts the step into stage functions: one for each (phase, stage, kind), shared by all replicas and micro-batches.

    Before:  h = Relu(x);  y = Mul(h, w);  dh = Mul(dy, w);  dx = ReluGrad(dh, h);  g = Gradient(dx)      stages 0 0 | 1
    After:   0F(x) -> h     1F(h, w) -> …     1B(…, w) -> dh     0B(dh, h, sum of g) -> sum of g + dx
                                                                 0B_first(dh, h) -> dx

What a function takes is described by a Source; where the value comes from is for `bind` to find. Constants and what
is computed from them alone are copied into every function that uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import State
from whale_tf.plan.roles import Roles
from whale_tf.plan.states import FREE


class Key(NamedTuple):
    """Names a stage function; `first` is the one for a replica's first micro-batch, which finds no sum to add to."""

    phase: int
    stage: int
    kind: str
    first: bool = False

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}" + (f"p{self.phase}" if self.phase else "") + "_first" * self.first


class Source(NamedTuple):
    """Where an argument comes from.

    Kinds:
      micro: a value another function computed for the same micro-batch (`ref`).
      slice: the micro-batch's piece of an input, or of what a Piece takes (`ref`).
      step: a value that is the same for all micro-batches (`ref`).
      sum: what a gradient's earlier micro-batches sum to (`name`, its marker).
      weight: the micro-batch's share of the examples, to a power (`name`).
      draw: the micro-batch's number among all of the step, for random draws.
      first: the number of the micro-batch's first example in the global batch.
      seed: what this step draws for one stateful random op (`name`).
      piece: the member's piece of a step's value (`ref`), which is cut as `name` says.
      place: who the member is, as collectives take it: communicator, member, number of the call.
      member: its number in the mesh.
    """

    kind: str
    ref: Ref = Ref("")
    name: str = ""


@dataclass(frozen=True)
class StageFunction:
    """What one action runs.

    Attributes:
      key: its phase, stage and kind.
      graph: Argument nodes carry their `index` in `arguments`; outputs are `results`, then the new sums.
      arguments: where they come from.
      results: tensors of the step that others need.
      sums: the markers whose sums it adds to.
      whole: of what a member of a mesh runs, the function that all members run together.
      lies: of that, the states of results and sums that are not whole, by their index among what it gives.
      computed: of that, for each tensor that the function computes what a member has of it, and its state.
    """

    key: Key
    graph: Graph
    arguments: tuple[Source, ...]
    results: tuple[Ref, ...]
    sums: tuple[str, ...]
    whole: StageFunction | None = None
    lies: Mapping[int, State] = field(default_factory=dict)
    computed: Mapping[Ref, tuple[Ref, State]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """How gradients are summed over micro-batches.

    Attributes:
      accumulate: there are several micro-batches, so sums are handed from one to the next.
      split_backward: B is split into I and W.
    """

    accumulate: bool
    split_backward: bool


def cut(graph: Graph, roles: Roles, stage_of: Mapping[str, int], how: Cut) -> dict[Key, StageFunction]:
    """All stage functions of a step, by key, in topological order.

    Args:
      stage_of: the stage of every operation that runs per micro-batch.
    """
    parts = _parts(graph, roles, stage_of, how)
    wanted = _wanted(graph, roles, parts)
    members: dict[Key, list[Node]] = {}
    for node in graph:
        if node.name in parts:
            members.setdefault(parts[node.name], []).append(node)
    sums: dict[Key, list[Node]] = {}
    for name in graph.nodes:
        if name in roles.markers and graph[name].inputs[0].node in parts:
            sums.setdefault(parts[graph[name].inputs[0].node], []).append(graph[name])
    constant = _constant(graph, roles)
    functions: dict[Key, StageFunction] = {}
    for key, nodes in sorted(members.items()):
        added = how.accumulate and any(marker.attrs["part"] == b"dense" for marker in sums.get(key, []))
        for named in (key, key._replace(first=True)) if added else (key,):
            assembly = _Assembly(graph, roles, parts, constant, added and not named.first, named)
            functions[named] = assembly.function(nodes, wanted.get(key, []), sums.get(key, []))
    return functions


def _parts(graph: Graph, roles: Roles, stage_of: Mapping[str, int], how: Cut) -> dict[str, Key]:
    parts: dict[str, Key] = {}
    for name, stage in stage_of.items():
        if name in graph and name not in roles.markers:
            parts[name] = Key(roles.phase[name], stage, "B" if name in roles.backward else "F")
    if how.split_backward:
        early = _input_gradients(graph, roles, parts)
        parts = {
            name: key._replace(kind="I" if name in early else "W") if key.kind == "B" else key
            for name, key in parts.items()
        }
    return parts


def _input_gradients(graph: Graph, roles: Roles, parts: Mapping[str, Key]) -> set[str]:
    """The backward nodes that an earlier stage waits for; in the first one, those that several gradients need."""
    early: set[str] = set()
    reached: dict[str, set[str]] = {}
    for name in reversed(list(graph.nodes)):
        key = parts.get(name)
        if key is None or key.kind != "B":
            continue
        below: set[str] = set()
        for user in graph.users[name]:
            if user in roles.markers:
                below.add(user)
                continue
            other = parts.get(user)
            if other is None or other.kind != "B":
                continue
            if other != key or user in early:
                early.add(name)
            if len(below) < 2:
                below |= reached.get(user, set())
        reached[name] = set(sorted(below)[:2])
        if key.stage == 0 and len(below) > 1:
            early.add(name)
    return early


def _wanted(graph: Graph, roles: Roles, parts: Mapping[str, Key]) -> dict[Key, list[Ref]]:
    """For each function the tensors that something outside it takes."""
    wanted: dict[Key, dict[Ref, None]] = {}
    for node in graph:
        if node.name in roles.markers:
            continue
        here = parts.get(node.name)
        for ref in node.inputs:
            key = parts.get(ref.node)
            if key is not None and key != here:
                wanted.setdefault(key, {})[ref] = None
    for ref in (*graph.outputs, *(Ref(name) for name in graph.effects if graph[name].op == "Write")):
        if ref.node in parts:
            wanted.setdefault(parts[ref.node], {})[ref] = None
    return {key: list(refs) for key, refs in wanted.items()}


def _constant(graph: Graph, roles: Roles) -> set[str]:
    """The stateless nodes that are computed from constants alone, which any function may have its own copy of."""
    constant: set[str] = set()
    for node in graph:
        pure = roles.phase[node.name] == FREE and node.op not in BOUNDARY_OPS | ALIAS_OPS and not node.stateful
        if pure and all(ref.node in constant for ref in node.inputs):
            constant.add(node.name)
    return constant


@dataclass
class _Assembly:
    """Puts one function together."""

    graph: Graph
    roles: Roles
    parts: Mapping[str, Key]
    constant: set[str]
    accumulate: bool
    key: Key
    nodes: dict[str, Node] = field(default_factory=dict)
    arguments: list[Source] = field(default_factory=list)
    known: dict[Source, Ref] = field(default_factory=dict)

    def function(self, members: list[Node], results: list[Ref], markers: list[Node]) -> StageFunction:
        """The function of `members`, which gives `results` and adds to the sums of `markers`."""
        effects: list[str] = []
        for node in members:
            control = tuple(effects[-1:]) if node.name in self.graph.effects and node.op != "Write" else ()
            inputs = tuple(self._input(ref) for ref in node.inputs)
            if node.op == "Scale":
                self._scaled(node, inputs[0])
            elif node.op == "Shift":
                self._shifted(node, inputs[0])
            else:
                self.nodes[node.name] = node.with_(inputs=inputs, control=control)
            if node.name in self.graph.effects and node.op != "Write":
                effects.append(node.name)
        outputs = [self._input(ref) for ref in results]
        sums = [self._sum(marker) for marker in markers]
        arguments = [node for node in self.nodes.values() if node.op == "Argument"]
        others = [node for node in self.nodes.values() if node.op != "Argument"]
        graph = Graph.of([*arguments, *others], [*outputs, *sums], effects)
        return StageFunction(self.key, graph, tuple(self.arguments), tuple(results), tuple(m.name for m in markers))

    def _input(self, ref: Ref) -> Ref:
        """The tensor as this function sees it."""
        if self.parts.get(ref.node) == self.key._replace(first=False):
            return ref
        if ref.node in self.constant:
            self._copy(ref.node)
            return ref
        return self.argument(self._source(ref), self.graph.type_of(ref))

    def _source(self, ref: Ref) -> Source:
        node = self.graph[ref.node]
        if node.op == "Piece" or (node.op == "Input" and node.attrs["batch"]):
            return Source("slice", ref)
        return Source("micro" if self.roles.per_micro_batch(ref.node) else "step", ref)

    def _copy(self, name: str) -> None:
        stack = [name]
        while stack:
            node = self.graph[stack[-1]]
            missing = [ref.node for ref in node.inputs if ref.node not in self.nodes]
            if missing:
                stack.extend(missing)
                continue
            self.nodes.setdefault(node.name, node)
            stack.pop()

    def argument(self, source: Source, kind: TensorType) -> Ref:
        """The argument for a source, one for all its uses."""
        if source not in self.known:
            name = f"argument/{len(self.arguments)}"
            self.nodes[name] = Node(name, "Argument", attrs={"index": len(self.arguments)}, outputs=(kind,))
            self.arguments.append(source)
            self.known[source] = Ref(name)
        return self.known[source]

    def _sum(self, marker: Node) -> Ref:
        """A dense gradient plus its earlier micro-batches'; parts of IndexedSlices are kept apart."""
        ref = self._input(marker.inputs[0])
        kind = self.graph.type_of(marker.inputs[0])
        part = marker.attrs["part"]
        like = marker.with_(attrs={"T": kind.dtype}, outputs=(kind,))
        if self.accumulate and part == b"dense":
            before = self.argument(Source("sum", name=marker.name), kind)
            self.nodes[f"{marker.name}/sum"] = like.with_(name=f"{marker.name}/sum", op="AddV2", inputs=(before, ref))
            ref = Ref(f"{marker.name}/sum")
        return ref

    def _scaled(self, node: Node, ref: Ref) -> None:
        """A value times the micro-batch's share of the examples to a power."""
        kind, power = node.outputs[0], node.attrs["power"]
        weight = self.argument(Source("weight", name=power), TensorType(DType("float64"), Shape()))
        name = f"weight{power}/{kind.dtype}"
        if name not in self.nodes:
            attrs = {"SrcT": DType("float64"), "DstT": kind.dtype, "Truncate": False}
            self.nodes[name] = Node(name, "Cast", (weight,), attrs=attrs, outputs=(TensorType(kind.dtype, Shape()),))
        self.nodes[node.name] = node.with_(op="Mul", inputs=(ref, Ref(name)), attrs={"T": kind.dtype})

    def _shifted(self, node: Node, ref: Ref) -> None:
        """Positions that the part counts from its first example, as the whole batch counts them."""
        kind, columns = node.outputs[0], node.attrs["ahead"]
        scalar = TensorType(kind.dtype, Shape())
        vector = TensorType(kind.dtype, Shape((len(columns),) if len(columns) > 1 else ()))
        first = self.argument(Source("first"), TensorType(DType("int64"), Shape()))
        casts = {"SrcT": DType("int64"), "DstT": kind.dtype, "Truncate": False}
        number, unit, ahead = (f"{node.name}/{name}" for name in ("first", "unit", "ahead"))
        self.nodes[number] = Node(number, "Cast", (first,), attrs=casts, outputs=(scalar,))
        value = {"dtype": kind.dtype, "value": columns if len(columns) > 1 else columns[0], "shape": vector.shape}
        self.nodes[unit] = Node(unit, "Const", attrs=value, outputs=(vector,))
        self.nodes[ahead] = Node(ahead, "Mul", (Ref(number), Ref(unit)), attrs={"T": kind.dtype}, outputs=(vector,))
        self.nodes[node.name] = node.with_(op="AddV2", inputs=(ref, Ref(ahead)), attrs={"T": kind.dtype})
