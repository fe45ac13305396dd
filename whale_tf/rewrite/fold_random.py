"""Gives every micro-batch of every replica its own random draws.

One device draws once for the whole batch. A draw from a seed is the same wherever it is made: each part keeps its own
piece of what one device draws, and has that device's numbers. Philox numbers its draws in groups of four, so that a
part begins to count where its first example is; where that is in the middle of a group, or where the number of
draws is not known beforehand, it draws for the whole batch.

    Before:  u = StatelessRandomUniformV2(shape [5,8], key, counter)              a part of 5 examples
    After:   u = StatelessRandomUniformV2(shape [5,8], key, counter + [first * 8 / 4, 0])

Stateful random operations have a hidden counter that belongs to one device, and draw other numbers each time anyway.
They become stateless ones, with a seed drawn once per step to which the part's number is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import Split
from whale_tf.plan.states import States
from whale_tf.rewrite.cut import Source, StageFunction

# Position of the seed that the part's number is added to.
SEEDS: Mapping[str, int] = MappingProxyType(
    {
        "StatelessRandomUniform": 1,
        "StatelessRandomNormal": 1,
        "StatelessTruncatedNormal": 1,
        "StatelessRandomUniformInt": 1,
        "StatelessMultinomial": 2,
    }
)
STATELESS: Mapping[str, str] = MappingProxyType(
    {
        "RandomUniform": "StatelessRandomUniform",
        "RandomStandardNormal": "StatelessRandomNormal",
        "TruncatedNormal": "StatelessTruncatedNormal",
        "RandomUniformInt": "StatelessRandomUniformInt",
        "Multinomial": "StatelessMultinomial",
    }
)
COUNTED = frozenset({"StatelessRandomUniformV2", "StatelessRandomNormalV2"})
COUNTED_TYPES = frozenset({"bfloat16", "float16", "float32"})  # of which Philox gives GROUP numbers for one count
GROUP = 4
STRIDE = 1_000_003
INT32, INT64, UINT64 = DType("int32"), DType("int64"), DType("uint64")


def fold_random(function: StageFunction, states: States, *, alike: bool = False) -> StageFunction:
    """A stage function, at its size, whose random operations draw for their part; itself if it has none.

    Args:
      alike: whether several devices run it and must draw the same.
    """
    drawn = [node for node in function.graph if _draws(node, states, alike)]
    if not drawn:
        return function
    return _Folding(function, states, frozenset(node.name for node in drawn)).run()


def _draws(node: Node, states: States, alike: bool) -> bool:
    """Whether each part draws it for itself, or several devices have to draw it alike."""
    if alike and node.op in STATELESS:
        return True
    of_part = states.level.get(node.name, -1) >= 0 and bool(node.outputs)
    cut = of_part and isinstance(states.known[Ref(node.name)].value.state, Split)
    return cut and (node.op in STATELESS or (node.op.startswith("Stateless") and _takes_shape(node)))


def _takes_shape(node: Node) -> bool:
    return node.op not in ("StatelessRandomGetKeyCounter", "StatelessWhile", "StatelessIf", "StatelessCase")


@dataclass
class _Folding:
    """A stage function under construction."""

    function: StageFunction
    states: States
    drawn: frozenset[str]
    nodes: dict[str, Node] = field(default_factory=dict)

    def run(self) -> StageFunction:
        self.arguments = list(self.function.arguments)
        for node in self.function.graph:
            if node.name not in self.drawn:
                self.nodes[node.name] = node
            elif node.op in STATELESS:
                self._numbered(node)
            elif self._counts(node):
                self._counted(node)
            else:
                self._piece(node)
        graph = self.function.graph.of(self.nodes.values(), self.function.graph.outputs, self.function.graph.effects)
        key, results, sums = self.function.key, self.function.results, self.function.sums
        return StageFunction(key, graph, tuple(self.arguments), results, sums)

    def _argument(self, source: Source, kind: TensorType) -> Ref:
        name = f"argument/{source.kind}/{source.name}"
        if name not in self.nodes:
            self.nodes[name] = Node(name, "Argument", attrs={"index": len(self.arguments)}, outputs=(kind,))
            self.arguments.append(source)
        return Ref(name)

    def _make(
        self, like: Node, suffix: str, op: str, inputs: tuple[Ref, ...], kind: TensorType, **attrs: object
    ) -> Ref:
        made = like.with_(
            name=f"{like.name}/{suffix}", op=op, inputs=inputs, attrs=attrs, outputs=(kind,), stateful=False, control=()
        )
        self.nodes[made.name] = made
        return Ref(made.name)

    def _number(self, like: Node, suffix: str, value: object, kind: TensorType) -> Ref:
        return self._make(like, suffix, "Const", (), kind, dtype=kind.dtype, value=value, shape=kind.shape)

    # A draw from a seed

    def _whole_shape(self, node: Node) -> Shape:
        return self.states.sizes.type_of(Ref(node.name)).shape

    def _counts(self, node: Node) -> bool:
        """Whether a part can begin to count at its first example."""
        split, shape = self.states.value(Ref(node.name)).state, self._whole_shape(node)
        row = math.prod(size or 0 for size in shape[1:])
        per_example = row * ((shape[0] or 0) // self.states.sizes.batch)
        alike = node.op in COUNTED and node.outputs[0].dtype in COUNTED_TYPES
        return alike and split == Split(0) and per_example % GROUP == 0

    def _counted(self, node: Node) -> None:
        shape = self._whole_shape(node)
        groups = math.prod(size or 0 for size in shape) // self.states.sizes.batch // GROUP
        pair, scalar = TensorType(UINT64, Shape((2,))), TensorType(UINT64, Shape())
        first = self._argument(Source("first"), TensorType(INT64, Shape()))
        number = self._make(node, "first", "Cast", (first,), scalar, SrcT=INT64, DstT=UINT64, Truncate=False)
        stride = self._number(node, "groups", (groups, 0), pair)
        ahead = self._make(node, "ahead", "Mul", (number, stride), pair, T=UINT64)
        counter = self._make(node, "counter", "AddV2", (node.inputs[2], ahead), pair, T=UINT64)
        inputs = (*node.inputs[:2], counter, *node.inputs[3:])
        self.nodes[node.name] = node.with_(inputs=inputs)

    def _piece(self, node: Node) -> None:
        """The part's piece of what is drawn for the whole batch."""
        state, shape = self.states.value(Ref(node.name)).state, self._whole_shape(node)
        assert isinstance(state, Split)  # _draws
        rank, own = len(shape), node.outputs[0].shape[state.dim] or 0
        whole = TensorType(node.outputs[0].dtype, shape)
        dims = self._number(node, "whole_shape", tuple(shape), TensorType(INT32, Shape((rank,))))
        attrs = {**node.attrs, "T" if "T" in node.attrs else "Tshape": INT32}
        drawn = self._make(node, "whole", node.op, (dims, *node.inputs[1:]), whole, **attrs)
        first = self._argument(Source("first"), TensorType(INT64, Shape()))
        vector = TensorType(INT64, Shape((rank,)))
        chunk = (shape[state.dim] or 0) // self.states.sizes.batch
        unit = self._number(node, "unit", tuple(chunk if dim == state.dim else 0 for dim in range(rank)), vector)
        begin = self._make(node, "begin", "Mul", (first, unit), vector, T=INT64)
        size = self._number(node, "size", tuple(own if dim == state.dim else -1 for dim in range(rank)), vector)
        attrs = {"T": whole.dtype, "Index": INT64}
        self.nodes[node.name] = node.with_(op="Slice", inputs=(drawn, begin, size), attrs=attrs, stateful=False)

    # A draw from a hidden counter

    def _numbered(self, node: Node) -> None:
        seed = self._argument(Source("seed", name=node.name), TensorType(INT32, Shape((2,))))
        self._seeded(_stateless(node, seed))

    def _seeded(self, node: Node) -> None:
        """With seed + [draw * STRIDE, 0], in the seed's type."""
        position = SEEDS[node.op]
        seed = node.inputs[position]
        dtype = self.nodes[seed.node].outputs[seed.index].dtype
        scalar, pair = TensorType(dtype, Shape()), TensorType(dtype, Shape((2,)))
        draw = self._argument(Source("draw"), TensorType(INT32, Shape()))
        number = self._make(node, "draw_number", "Cast", (draw,), scalar, SrcT=INT32, DstT=dtype, Truncate=False)
        stride = self._number(node, "draw_stride", (STRIDE, 0), pair)
        product = self._make(node, "draw_offset", "Mul", (number, stride), pair, T=dtype)
        folded = self._make(node, "draw_seed", "AddV2", (seed, product), pair, T=dtype)
        inputs = list(node.inputs)
        inputs[position] = folded
        self.nodes[node.name] = node.with_(inputs=tuple(inputs))


def _stateless(node: Node, seed: Ref) -> Node:
    op = STATELESS[node.op]
    inputs = list(node.inputs)
    inputs.insert(SEEDS[op], seed)
    attrs = {name: value for name, value in node.attrs.items() if name not in ("seed", "seed2")} | {"Tseed": INT32}
    if op == "StatelessRandomUniformInt":
        attrs["dtype"] = attrs.pop("Tout")
    return node.with_(op=op, inputs=tuple(inputs), attrs=attrs, stateful=False)
