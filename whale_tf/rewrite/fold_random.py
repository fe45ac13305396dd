"""Gives every micro-batch of every replica its own random draws.

One device draws once for the whole batch. Cut into parts, each part must draw differently, the same again in its
backward, and as many times per step as one device: so the seed the step computed stays what it is, and each part's
number is added to it.
  Part 0 draws what one device would. Stateful random ops, whose hidden counter belongs to one device, become
  stateless ones with a seed drawn once per step.

    Before:  k = StatelessRandomGetKeyCounter(seed)
    After:   k = StatelessRandomGetKeyCounter(seed + draw * [STRIDE, 0])
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.rewrite.cut import Source, StageFunction

# Position of the seed among the inputs.
SEEDS: Mapping[str, int] = MappingProxyType(
    {
        "StatelessRandomGetKeyCounter": 0,
        "StatelessRandomUniform": 1,
        "StatelessRandomUniformInt": 1,
        "StatelessRandomUniformFullInt": 1,
        "StatelessRandomNormal": 1,
        "StatelessTruncatedNormal": 1,
        "StatelessMultinomial": 2,
        "StatelessRandomBinomial": 1,
        "StatelessRandomPoisson": 1,
        "StatelessRandomGammaV2": 1,
        "StatelessParameterizedTruncatedNormal": 1,
        "StatelessSampleDistortedBoundingBox": 3,
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
STRIDE = 1_000_003
INT32 = DType("int32")


def fold_random(function: StageFunction, examples: int) -> StageFunction:
    """A stage function whose random ops draw by micro-batch; the function itself if it has none.

    Args:
      examples: the micro-batch's size: a draw from a constant seed is a constant unless its dim 0 is this size.
    """
    graph = function.graph
    nodes: dict[str, Node] = {}
    arguments = list(function.arguments)

    def argument(source: Source, kind: TensorType) -> Ref:
        name = f"argument/{source.kind}/{source.name}"
        if name not in nodes:
            nodes[name] = Node(name, "Argument", attrs={"index": len(arguments)}, outputs=(kind,))
            arguments.append(source)
        return Ref(name)

    for node in graph:
        if node.op in STATELESS:
            seed = argument(Source("seed", name=node.name), TensorType(INT32, Shape((2,))))
            node = _stateless(node, seed)
        elif node.op not in SEEDS or _fixed(graph, node, examples):
            nodes[node.name] = node
            continue
        draw = argument(Source("draw"), TensorType(INT32, Shape()))
        position = SEEDS[node.op]
        seed = node.inputs[position]
        folded = _folded(node, seed, nodes[seed.node].outputs[seed.index], draw)
        nodes.update((made.name, made) for made in folded)
        inputs = list(node.inputs)
        inputs[position] = Ref(folded[-1].name)
        nodes[node.name] = node.with_(inputs=tuple(inputs))
    if len(nodes) == len(graph):
        return function
    changed = Graph.of(nodes.values(), graph.outputs, graph.effects)
    return StageFunction(function.key, changed, tuple(arguments), function.results, function.sums)


def _folded(node: Node, seed: Ref, kind: TensorType, draw: Ref) -> list[Node]:
    """seed + [draw * STRIDE, 0], in the seed's type."""
    scalar, name = TensorType(kind.dtype, Shape()), node.name
    pair = TensorType(kind.dtype, Shape((2,)))
    like = node.with_(stateful=False, control=(), op="", inputs=(), attrs={})

    def make(suffix: str, op: str, inputs: tuple[Ref, ...], output: TensorType, **attrs: object) -> Node:
        return like.with_(name=f"{name}/draw_{suffix}", op=op, inputs=inputs, attrs=attrs, outputs=(output,))

    number = make("number", "Cast", (draw,), scalar, SrcT=INT32, DstT=kind.dtype, Truncate=False)
    stride = make("stride", "Const", (), pair, dtype=kind.dtype, value=(STRIDE, 0))
    product = make("offset", "Mul", (Ref(number.name), Ref(stride.name)), pair, T=kind.dtype)
    folded = make("seed", "AddV2", (seed, Ref(product.name)), pair, T=kind.dtype)
    return [number, stride, product, folded]


def _stateless(node: Node, seed: Ref) -> Node:
    op = STATELESS[node.op]
    inputs = list(node.inputs)
    inputs.insert(SEEDS[op], seed)
    attrs = {name: value for name, value in node.attrs.items() if name not in ("seed", "seed2")} | {"Tseed": INT32}
    if op == "StatelessRandomUniformInt":
        attrs["dtype"] = attrs.pop("Tout")
    return node.with_(op=op, inputs=tuple(inputs), attrs=attrs, stateful=False)


def _fixed(graph: Graph, node: Node, examples: int) -> bool:
    """Whether it draws from a constant seed something that has no batch dim: the same on all parts."""
    source = graph[node.inputs[SEEDS[node.op]].node]
    if graph.ancestors([source.name]) & {n.name for n in graph if n.op == "Argument"}:
        return False
    drawn = [graph[user] for user in graph.users[node.name]] if node.op == "StatelessRandomGetKeyCounter" else [node]
    shapes = [kind.shape for draw in drawn for kind in draw.outputs]
    return not any(shape and shape[0] == examples for shape in shapes)
