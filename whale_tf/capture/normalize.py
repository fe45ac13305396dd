"""Writes in operations that parts can share what TensorFlow writes in one, where the number of rows is not known.

    Before:  m = Mean(rows [?])                                  rows = GatherV2(losses, chosen): some of the examples
    After:   s = Sum(rows);  n = Prod(Shape(chosen));  m = RealDiv(s, n)

A mean over a known number of examples stays: each part divides by its own number, which is its share of all.
"""

from __future__ import annotations

from collections.abc import Iterator

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INT32 = DType("int32")
SAME_SHAPE = frozenset({"Identity", "Cast", "Neg", "Abs", "Square", "Sqrt", "Exp", "Log", "Relu", "Tanh", "Sigmoid"})
BROADCAST = frozenset({"AddV2", "Sub", "Mul", "RealDiv", "Pow", "Maximum", "Minimum"})  # with a number


def normalize(graph: Graph) -> Graph:
    """The step with means over an unknown number of rows as quotients, and shapes taken where they are decided."""
    nodes: dict[str, Node] = {}
    for node in graph:
        for each in _written(graph, node):
            nodes[each.name] = each
    return Graph(nodes, graph.outputs, graph.effects, graph.attrs)


def _written(graph: Graph, node: Node) -> Iterator[Node]:
    if node.op == "Shape" and not graph.type_of(node.inputs[0]).shape.known:
        yield from _shape(graph, node, node.inputs[0])
    elif node.op == "Mean" and node.outputs[0].dtype in FLOATS and -1 in graph.type_of(node.inputs[0]).shape:
        yield from _quotient(graph, node)
    elif node.op == "TensorListStack":  # how many it must have is said of the whole batch
        yield node.with_(attrs={**node.attrs, "num_elements": -1})
    else:
        yield node


def _shape(graph: Graph, like: Node, ref: Ref) -> Iterator[Node]:
    """The shape of a tensor, under the name of `like`, from what is there before it: the positions of rows.

    Args:
      like: gives an integer vector.
    """
    kind, tail = like.outputs[0], Shape()
    while True:
        node = graph[ref.node]
        rows = node.op == "GatherV2" and len(graph.type_of(node.inputs[1]).shape) == 1
        if node.op in SAME_SHAPE or (node.op in BROADCAST and graph.type_of(node.inputs[1]).shape == Shape()):
            ref = node.inputs[0]
        elif rows and not node.attrs.get("batch_dims", 0) and node.outputs[0].shape[:1] == (-1,):
            tail = Shape((*node.outputs[0].shape[1:], *tail)) if len(node.outputs[0].shape) > 1 else tail
            ref = node.inputs[1]
        else:
            break
    source = graph.type_of(ref)
    attrs = {"T": source.dtype, "out_type": kind.dtype}
    if not tail or not tail.known or source.shape == Shape.unknown:
        yield like.with_(op="Shape", inputs=(ref,), attrs=attrs)
        return
    first = TensorType(kind.dtype, Shape((len(source.shape),)))
    rest = TensorType(kind.dtype, Shape((len(tail),)))
    shape = like.with_(name=f"{like.name}/rows", op="Shape", inputs=(ref,), attrs=attrs, outputs=(first,))
    others = like.with_(name=f"{like.name}/others", op="Const", inputs=(), outputs=(rest,),
                        attrs={"dtype": kind.dtype, "value": tuple(tail), "shape": rest.shape})  # fmt: skip
    axis = like.with_(name=f"{like.name}/axis", op="Const", inputs=(), outputs=(TensorType(INT32, Shape()),),
                      attrs={"dtype": INT32, "value": 0, "shape": Shape()})  # fmt: skip
    joined = {"T": kind.dtype, "Tidx": INT32, "N": 2}
    yield from (shape, others, axis)
    yield like.with_(op="ConcatV2", inputs=(Ref(shape.name), Ref(others.name), Ref(axis.name)), attrs=joined)


def _quotient(graph: Graph, node: Node) -> Iterator[Node]:
    """Sum, number of elements, and the one by the other."""
    value, axes = node.inputs
    kind, rank = node.outputs[0], len(graph.type_of(value).shape)
    like = node.with_(attrs={}, inputs=())
    number = TensorType(INT32, Shape())

    def make(suffix: str, op: str, inputs: tuple[Ref, ...], output: TensorType, **attrs: object) -> Node:
        return like.with_(name=f"{node.name}/{suffix}", op=op, inputs=inputs, outputs=(output,), attrs=attrs)

    total = node.with_(name=f"{node.name}/sum", op="Sum")
    shape = make("shape", "Shape", (value,), TensorType(INT32, Shape((rank,))))
    axis = make("axis", "Const", (), number, dtype=INT32, value=0, shape=Shape())
    types = {"Tparams": INT32, "Tindices": graph.type_of(axes).dtype, "Taxis": INT32, "batch_dims": 0}
    sizes_kind = TensorType(INT32, graph.type_of(axes).shape)
    sizes = make("sizes", "GatherV2", (Ref(shape.name), axes, Ref(axis.name)), sizes_kind, **types)
    flat = sizes_kind.shape == Shape()
    every = make("every", "Const", (), TensorType(INT32, Shape((0 if flat else 1,))), dtype=INT32,
                 value=() if flat else (0,), shape=Shape((0 if flat else 1,)))  # fmt: skip
    count = make("count", "Prod", (Ref(sizes.name), Ref(every.name)), number, T=INT32, Tidx=INT32, keep_dims=False)
    scalar = TensorType(kind.dtype, Shape())
    cast = make("number", "Cast", (Ref(count.name),), scalar, SrcT=INT32, DstT=kind.dtype, Truncate=False)
    inputs = (Ref(total.name), Ref(cast.name))
    quotient = node.with_(op="RealDiv", inputs=inputs, attrs={"T": kind.dtype})
    yield from _shape(graph, shape, value)
    yield from (total, axis, sizes, every, count, cast, quotient)
