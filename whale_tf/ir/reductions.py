"""What a per-micro-batch tensor is over the examples, read off the operation that made it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from whale_tf.ir.graph import BOUNDARY_OPS, Graph, Node, Ref, Shape

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
REDUCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "Sum": "sum",
        "L2Loss": "sum",
        "Mean": "mean",
        "Max": "max",
        "Min": "min",
        "Prod": "prod",
        "All": "all",
        "Any": "any",
    }
)
RANDOM = frozenset(
    {
        "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle", "Multinomial",
        "RandomGammaV2", "RandomGamma", "RandomPoissonV2", "ParameterizedTruncatedNormal",
        "SampleDistortedBoundingBoxV2",
        "StatelessRandomGetKeyCounter", "StatelessRandomUniform", "StatelessRandomUniformInt", "StatelessRandomNormal",
        "StatelessTruncatedNormal", "StatelessMultinomial", "StatelessRandomBinomial", "StatelessRandomPoisson",
        "StatelessRandomGammaV2", "StatelessRandomGammaV3", "StatelessRandomUniformFullInt",
        "StatelessParameterizedTruncatedNormal", "StatelessShuffle", "StatelessSampleDistortedBoundingBox",
    }
)  # fmt: skip
SAME_VALUE = frozenset({"Cast", "Reshape", "Squeeze", "ExpandDims", "Write"})
CHOOSES = frozenset({"GatherV2", "GatherNd"})  # boolean_mask: some of the examples, in their order
DIVISIONS = frozenset({"RealDiv", "DivNoNan", "Div"})


def reduction_of(graph: Graph, ref: Ref, examples: int, other: tuple[Graph, int] | None = None) -> str:
    """How parts of a tensor come together: `concat` (`concat 1` along dim 1), the reduction that made it, else `mean`.

    Empty if none of these fits: an integer that is no reduction over the examples.

    Args:
      examples: the size of the micro-batch that the graph was traced at.
      other: the same step at another size, with that size, to tell which dims follow the batch.
    """
    dim = batch_dim(graph, ref, examples, other)
    if dim is not None:
        return f"concat {dim}" if dim else "concat"
    if other is not None and ref.node in other[0] and other[0].type_of(ref).shape != graph.type_of(ref).shape:
        return ""
    node = graph[ref.node]
    while node.op in SAME_VALUE:
        node = graph[node.inputs[0].node]
    if node.op in REDUCTIONS and reduces_examples(graph, node, examples, other):
        return REDUCTIONS[node.op]
    kind = graph.type_of(ref)
    return "mean" if kind.dtype in FLOATS and kind.shape == Shape() else ""


def reduces_examples(graph: Graph, node: Node, examples: int, other: tuple[Graph, int] | None = None) -> bool:
    """Whether a node takes per-example values together."""
    if node.op not in REDUCTIONS or batch_dim(graph, Ref(node.name), examples, other) is not None:
        return False
    return batch_dim(graph, node.inputs[0], examples, other) is not None


def is_mean(graph: Graph, node: Node, examples: int) -> bool:
    """Whether a node divides a sum over examples by a count that the trace has fixed: `sum(losses) / len(losses)`."""
    if node.op not in DIVISIONS and node.op != "Mul":
        return False
    total, count = node.inputs
    while graph[total.node].op in SAME_VALUE:
        total = graph[total.node].inputs[0]
    source = graph[total.node]
    if source.op != "Sum" or not reduces_examples(graph, source, examples):
        return False
    cone = graph.ancestors([count.node])
    if any(graph[name].op in BOUNDARY_OPS or graph[name].stateful for name in cone):
        return False
    value = constant(graph, count)
    if value is None:
        return True
    value = 1 / value if node.op == "Mul" and value else value
    return value >= 1 and abs(value / examples - round(value / examples)) < 1e-4


def loss_kind(graph: Graph, ref: Ref, examples: int) -> str:
    """`sum` for a loss that is a sum over the examples, or several, times constants; else `mean`.

    One loss per example counts as a sum, since that is what differentiating it differentiates.
    """
    node, shape = graph[ref.node], graph.type_of(ref).shape
    if shape[:1] == (examples,) or (node.op != "Mean" and reduces_examples(graph, node, examples)):
        return "sum" if node.op in ("Sum", "L2Loss") or shape[:1] == (examples,) else "mean"
    if node.op in SAME_VALUE or node.op == "Neg":
        return loss_kind(graph, node.inputs[0], examples)
    if node.op in ("AddV2", "Add", "Sub", "AddN"):
        terms = [term for term in node.inputs if depends_on_examples(graph, term.node)]
        return "sum" if terms and all(loss_kind(graph, term, examples) == "sum" for term in terms) else "mean"
    if node.op in DIVISIONS or node.op == "Mul":
        factors = [factor for factor in node.inputs if depends_on_examples(graph, factor.node)]
        if len(factors) == 1 and not is_mean(graph, node, examples):
            return loss_kind(graph, factors[0], examples)
    return "mean"


def accumulates(graph: Graph, node: Node, variable: str) -> bool:
    """Whether a node adds to the value of a variable, or takes from it, something that does not depend on it.

    Args:
      variable: the node of the variable's first value.
    """
    if node.op not in ("AddV2", "Sub"):
        return False
    name = graph[variable].attrs["variable"]
    values = [
        ref
        for ref in node.inputs
        if ref.node == variable or (graph[ref.node].op == "Write" and graph[ref.node].attrs["variable"] == name)
    ]
    terms = [ref for ref in node.inputs if ref not in values]
    if node.op == "Sub" and values[:1] != list(node.inputs[:1]):
        return False
    return len(values) == 1 and variable not in graph.ancestors(ref.node for ref in terms)


def depends_on_examples(graph: Graph, name: str) -> bool:
    """Whether a node is computed from the batch, or drawn at random."""
    nodes = (graph[ancestor] for ancestor in graph.ancestors([name]))
    return any((node.op == "Input" and node.attrs["batch"]) or node.op in RANDOM for node in nodes)


def constant(graph: Graph, ref: Ref) -> float | None:
    """The value of a scalar constant; None for anything else."""
    node = graph[ref.node]
    while node.op == "Cast":
        node = graph[node.inputs[0].node]
    numbers = node.attrs.get("numbers", ())
    return float(numbers[0]) if len(numbers) == 1 else None


def batch_dim(graph: Graph, ref: Ref, examples: int, other: tuple[Graph, int] | None = None) -> int | None:
    """The dim along which parts are concatenated; None if there is none, or more than one.

    With another size to compare, it is the one dim that grows with the batch; without, dim 0 if it is as long as the
    batch.
    """
    shape = graph.type_of(ref).shape
    if shape[:1] == (-1,) and graph[ref.node].op in CHOOSES:
        return 0
    if other is None or ref.node not in other[0]:
        return 0 if shape[:1] == (examples,) else None
    there = other[0].type_of(ref).shape
    if len(there) != len(shape):
        return None
    grows = [dim for dim, (a, b) in enumerate(zip(shape, there, strict=True)) if a != b]
    if len(grows) != 1:
        return None
    here, more = shape[grows[0]] or 0, there[grows[0]] or 0
    return grows[0] if here > 0 and here * other[1] == more * examples else None
