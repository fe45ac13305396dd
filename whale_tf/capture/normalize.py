"""Writes in operations that parts can share what TensorFlow writes in one, where the number of rows is not known.

    Before:  m = Mean(rows [?])                                  rows = GatherV2(losses, chosen): some of the examples
    After:   s = Sum(rows);  n = Prod(Shape(chosen));  m = RealDiv(s, n)

A mean over a known number of examples stays: each part divides by its own number, which is its share of all. What
TensorFlow's gradients find out about shapes when they run is written down, as far as `capture.symbolic` knows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from whale_tf.capture.fold import fold
from whale_tf.capture.symbolic import INTEGERS, OVER_AXES, Number, Symbols, reduced_by
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
INT32 = DType("int32")
SCALAR = TensorType(INT32, Shape())


def normalize(graph: Graph) -> Graph:
    """The step with means over an unknown number of rows as quotients, and shapes taken where they are decided."""
    ragged = any(-1 in kind.shape for node in graph for kind in node.outputs)
    if not ragged and not any(node.op == "TensorListStack" for node in graph):
        return graph
    writer = _Writer(Symbols(fold(graph) if ragged else {}))
    for node in graph:
        writer.write(node.with_(inputs=tuple(writer.moved.get(ref, ref) for ref in node.inputs)))
    outputs = tuple(writer.moved.get(ref, ref) for ref in graph.outputs)
    return Graph(writer.symbols.nodes, outputs, graph.effects, graph.attrs)


class _Writer:
    """A graph under construction.

    Attributes:
      moved: tensors that are results of another node now.
    """

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.moved: dict[Ref, Ref] = {}

    def write(self, node: Node) -> None:
        """Adds what the node becomes."""
        for made in self._written(node):
            self.symbols.add(made)

    def _written(self, node: Node) -> Iterator[Node]:
        symbols = self.symbols
        if node.op == "TensorListStack":  # how many it must have is said of the whole batch
            yield node.with_(attrs={**node.attrs, "num_elements": -1})
        elif node.outputs and Ref(node.name) in symbols.values:
            yield node
        elif node.op == "Shape" and not symbols.type_of(node.inputs[0]).shape.known:
            yield from self._shape(node, node.inputs[0])
        elif node.op == "Size" and not symbols.type_of(node.inputs[0]).shape.known:
            dims = symbols.shape_of(node.inputs[0])
            yield from [node] if dims is None else self._elements(node, dims)
        elif node.op == "Mean" and node.outputs[0].dtype in FLOATS and -1 in symbols.type_of(node.inputs[0]).shape:
            yield from self._quotient(node)
        elif node.op == "BroadcastGradientArgs":
            yield from self._reduced(node)
        elif node.op == "FloorDiv" and node.outputs[0].dtype in INTEGERS and node.outputs[0].shape == ():
            yield self._number(node)
        elif node.op == "DynamicStitch" and node.outputs[0].dtype in INTEGERS:
            symbols.add(node)
            numbers = symbols.numbers_of(Ref(node.name))
            yield from [node] if numbers is None or numbers.ndim != 1 else self._vector(node, numbers.tolist())
        else:
            yield self._typed(node)

    def _number(self, node: Node) -> Node:
        """A quotient of sizes as a constant, if it is one."""
        self.symbols.add(node)
        numbers = self.symbols.numbers_of(Ref(node.name))
        if numbers is None or numbers.item().rows:
            return node
        return _constant(node, node.name, numbers.item().factor, node.outputs[0].dtype)

    def _typed(self, node: Node) -> Node:
        """The node, with what its shape operand, or what it reduces, tells of its shape."""
        if len(node.outputs) != 1 or node.outputs[0].shape.known:
            return node
        shape = node.outputs[0].shape
        if node.op in ("Reshape", "BroadcastTo"):
            numbers = self.symbols.numbers_of(node.inputs[1])
            if numbers is not None and numbers.ndim == 1:
                shape = Shape(-1 if number.rows else number.factor for number in numbers)
        elif node.op in OVER_AXES:
            axes, before = self.symbols.values.get(node.inputs[1]), self.symbols.type_of(node.inputs[0]).shape
            if axes is not None and before != Shape.unknown:
                dims = {int(axis) % len(before) for axis in axes.ravel()}
                kept = [1 if dim in dims else size for dim, size in enumerate(before)]
                keeps = node.attrs.get("keep_dims", False)
                shape = Shape(kept if keeps else [size for dim, size in enumerate(before) if dim not in dims])
        return node.with_(outputs=(TensorType(node.outputs[0].dtype, shape),))

    def _reduced(self, node: Node) -> Iterator[Node]:
        """Over which dims the gradients of two operands are summed, as constants."""
        first, second = (self.symbols.numbers_of(ref) for ref in node.inputs)
        found = None if first is None or second is None else reduced_by(first.tolist(), second.tolist())
        if found is None:
            yield node
            return
        for index, (axes, kind) in enumerate(zip(found, node.outputs, strict=True)):
            name = f"{node.name}/{index}" if index else node.name
            self.moved[Ref(node.name, index)] = Ref(name)
            yield _constant(node, name, tuple(axes), kind.dtype)

    def _shape(self, like: Node, ref: Ref) -> Iterator[Node]:
        """The shape of a tensor, under the name of `like`, from what decides how many rows it has."""
        numbers = self.symbols.shape_of(ref)
        if numbers is None or numbers[0].rows == (ref,):
            yield self._shape_node(like, like.name, ref)
        else:
            yield from self._vector(like, numbers)

    def _vector(self, like: Node, numbers: Sequence[Number]) -> Iterator[Node]:
        """Numbers of which one is a number of rows, under the name of `like`; else the node as it is."""
        at = [position for position, number in enumerate(numbers) if number.rows]
        if len(at) != 1 or numbers[at[0]].factor != 1 or len(numbers[at[0]].rows) != 1:
            yield like
            return
        name, dtype, (source,) = like.name, like.outputs[0].dtype, numbers[at[0]].rows
        if len(numbers) == 1:
            yield from self._rows(like, name, source)
            return
        yield from self._rows(like, f"{name}/rows", source)
        parts: list[Ref] = [Ref(f"{name}/rows")]
        for side, others in enumerate((numbers[: at[0]], numbers[at[0] + 1 :])):
            if others:
                yield _constant(like, f"{name}/others{side}", tuple(number.factor for number in others), dtype)
                parts.insert(side * len(parts), Ref(f"{name}/others{side}"))
        yield _constant(like, f"{name}/axis", 0, INT32)
        attrs = {"T": dtype, "Tidx": INT32, "N": len(parts)}
        yield like.with_(
            op="ConcatV2", inputs=(*parts, Ref(f"{name}/axis")), attrs=attrs, outputs=(_vector_of(dtype, len(numbers)),)
        )

    def _rows(self, like: Node, name: str, source: Ref) -> Iterator[Node]:
        """How many rows a tensor has, as a vector of one number."""
        if len(self.symbols.type_of(source).shape) == 1:
            yield self._shape_node(like, name, source)
            return
        dtype = like.outputs[0].dtype
        yield self._shape_node(like, f"{name}/of", source)
        bounds = {"begin": 0, "end": 1, "strides": 1}
        for bound, number in bounds.items():
            yield _constant(like, f"{name}/{bound}", (number,), INT32)
        masks = {f"{mask}_mask": 0 for mask in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")}
        inputs = (Ref(f"{name}/of"), *(Ref(f"{name}/{bound}") for bound in bounds))
        attrs = {"T": dtype, "Index": INT32, **masks}
        yield like.with_(name=name, op="StridedSlice", inputs=inputs, attrs=attrs, outputs=(_vector_of(dtype, 1),))

    def _shape_node(self, like: Node, name: str, ref: Ref) -> Node:
        source, dtype = self.symbols.type_of(ref), like.outputs[0].dtype
        kind = TensorType(dtype, Shape.unknown if source.shape == Shape.unknown else Shape((len(source.shape),)))
        return like.with_(
            name=name, op="Shape", inputs=(ref,), attrs={"T": source.dtype, "out_type": dtype}, outputs=(kind,)
        )

    def _quotient(self, node: Node) -> Iterator[Node]:
        """Sum, number of elements, and the one by the other, if the mean is over the rows."""
        value, axes = node.inputs
        shape, over = self.symbols.shape_of(value), self.symbols.values.get(axes)
        dims = set() if over is None else {int(axis) % len(shape or (0,)) for axis in over.ravel()}
        if shape is None or 0 not in dims:
            yield self._typed(node)
            return
        kind, name = node.outputs[0], node.name
        yield node.with_(name=f"{name}/sum", op="Sum")
        like = node.with_(name=f"{name}/elements", attrs={}, inputs=(), outputs=(SCALAR,))
        yield from self._elements(like, [shape[dim] for dim in dims])
        cast = {"SrcT": INT32, "DstT": kind.dtype, "Truncate": False}
        number = (TensorType(kind.dtype, Shape()),)
        yield like.with_(name=f"{name}/number", op="Cast", inputs=(Ref(like.name),), attrs=cast, outputs=number)
        yield node.with_(op="RealDiv", inputs=(Ref(f"{name}/sum"), Ref(f"{name}/number")), attrs={"T": kind.dtype})

    def _elements(self, like: Node, dims: Sequence[Number]) -> Iterator[Node]:
        """How many elements these dims have, of which one is a number of rows, under the name of `like`."""
        number, name, dtype = math.prod(dims, start=Number(1)), like.name, like.outputs[0].dtype
        yield from self._rows(like, f"{name}/rows", number.rows[0])
        yield _constant(like, f"{name}/every", (0,), INT32)
        yield _constant(like, f"{name}/each", number.factor, dtype)
        many = (Ref(f"{name}/rows"), Ref(f"{name}/every"))
        attrs = {"T": dtype, "Tidx": INT32, "keep_dims": False}
        yield like.with_(name=f"{name}/many", op="Prod", inputs=many, attrs=attrs)
        yield like.with_(op="Mul", inputs=(Ref(f"{name}/many"), Ref(f"{name}/each")), attrs={"T": dtype})


def _constant(like: Node, name: str, value: int | tuple[int, ...], dtype: DType) -> Node:
    kind = TensorType(dtype, Shape(() if isinstance(value, int) else (len(value),)))
    attrs = {"dtype": dtype, "value": value, "shape": kind.shape}
    return like.with_(name=name, op="Const", inputs=(), attrs=attrs, outputs=(kind,))


def _vector_of(dtype: DType, size: int) -> TensorType:
    return TensorType(dtype, Shape((size,)))
