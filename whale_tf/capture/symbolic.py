"""Shapes that are known but for a number of rows: of what a mask or a search finds, as boolean_mask and Where give it.

    rows = GatherV2(h, found [?])     Shape(rows) = [n, 4]     Prod(Shape(rows)) = 4 n     n: the rows of `found`

Tensors that have the same rows, as what is computed of them row by row, have the same n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from whale_tf.capture.fold import computed, constant
from whale_tf.ir.graph import BOUNDARY_OPS, Node, Ref, Shape, TensorType
from whale_tf.ir.sizes import Array

INTEGERS = frozenset({"int32", "int64"})
# Results have the rows of the operands that have as many dims.
ROW_BY_ROW = frozenset(
    {
        "Identity", "StopGradient", "PreventGradient", "Gradient", "Cast", "Neg", "Abs", "Square", "Sqrt", "Rsqrt",
        "Exp", "Expm1", "Log", "Log1p", "Relu", "Relu6", "Elu", "Selu", "Softplus", "Softsign", "Tanh", "Sigmoid",
        "Erf", "Sin", "Cos", "Sign", "Floor", "Reciprocal", "LeakyRelu", "CheckNumerics", "ZerosLike", "OnesLike",
        "AddV2", "Add", "AddN", "Sub", "Mul", "RealDiv", "DivNoNan", "Pow", "Maximum", "Minimum", "SquaredDifference",
        "Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual", "LogicalAnd", "LogicalOr", "LogicalNot",
        "Select", "SelectV2", "TanhGrad", "SigmoidGrad", "ReluGrad", "Relu6Grad", "EluGrad", "SoftplusGrad",
        "RsqrtGrad", "SqrtGrad", "ReciprocalGrad", "MulNoNan", "Xdivy", "Xlogy", "ClipByValue",
    }
)  # fmt: skip
# Results have the rows of operand 0.
OF_THE_FIRST = frozenset(
    {"BiasAdd", "Softmax", "LogSoftmax", "OneHot", "SparseSoftmaxCrossEntropyWithLogits",
     "SoftmaxCrossEntropyWithLogits", "InTopKV2"}
)  # fmt: skip
OVER_AXES = frozenset({"Sum", "Mean", "Max", "Min", "Prod", "All", "Any", "ArgMax", "ArgMin"})
# Operands whose elements the results are, and nothing else.
MOVED: Mapping[str, Callable[[int], Sequence[int]]] = {
    "Identity": lambda count: [0],
    "Cast": lambda count: [0],
    "Reshape": lambda count: [0],
    "ExpandDims": lambda count: [0],
    "Squeeze": lambda count: [0],
    "Slice": lambda count: [0],
    "StridedSlice": lambda count: [0],
    "GatherV2": lambda count: [0],
    "ConcatV2": lambda count: range(count - 1),
    "Pack": range,
    "DynamicStitch": lambda count: range(count // 2, count),
}


@dataclass(frozen=True)
class Number:
    """A whole number: a factor times the rows of some tensors."""

    factor: int
    rows: tuple[Ref, ...] = ()

    def __mul__(self, other: Number) -> Number:
        return Number(self.factor * other.factor, tuple(sorted((*self.rows, *other.rows))))

    def over(self, other: Number) -> Number | None:
        """The quotient; None if it is no such number."""
        rows = list(self.rows)
        for ref in other.rows:
            if ref not in rows:
                return None
            rows.remove(ref)
        whole = other.factor and not self.factor % other.factor
        return Number(self.factor // other.factor, tuple(rows)) if whole else None


ONE = Number(1)
Numbers = np.ndarray  # of Number


@dataclass
class Symbols:
    """What is known of the integers of a graph, node by node.

    Attributes:
      values: what constants and known shapes determine.
      nodes: the graph's nodes so far.
      numbers: integers that are made of numbers of rows.
      alike: for each node the first that computes the same.
    """

    values: dict[Ref, Array]
    nodes: dict[str, Node] = field(default_factory=dict)
    numbers: dict[Ref, Numbers] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    _seen: dict[Hashable, str] = field(default_factory=dict)

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a tensor that is there."""
        return self.nodes[ref.node].outputs[ref.index]

    def numbers_of(self, ref: Ref) -> Numbers | None:
        """The elements of an integer tensor as numbers; None if they are not known."""
        value = self.values.get(ref)
        if value is not None and value.dtype.kind in "iu":
            return _array([Number(int(each)) for each in value.ravel()], value.shape)
        return self.numbers.get(ref)

    def add(self, node: Node) -> None:
        """The next node; its operands are there."""
        self.nodes.pop(node.name, None)  # a node that is written anew comes after what it takes now
        self.nodes[node.name] = node
        taken = tuple(ref._replace(node=self.alike[ref.node]) for ref in node.inputs)
        own = node.name if node.stateful or node.op in BOUNDARY_OPS or "Random" in node.op else ""
        key = (node.op, taken, own, repr(sorted(node.attrs.items())))
        self.alike[node.name] = self._seen.setdefault(key, node.name)
        if node.op == "Const" and Ref(node.name) not in self.values:
            self.values |= {Ref(node.name): value for value in constant(node) or ()}
        if len(node.outputs) != 1 or node.outputs[0].dtype not in INTEGERS or Ref(node.name) in self.values:
            return
        found = self._made(node)
        if found is not None:
            self.numbers[Ref(node.name)] = found

    def _made(self, node: Node) -> Numbers | None:
        if node.op in ("Shape", "Size"):
            dims = self.shape_of(node.inputs[0])
            if dims is None or all(not dim.rows for dim in dims):
                return None
            return _array([math.prod(dims, start=ONE)]) if node.op == "Size" else _array(dims, (len(dims),))
        if node.op in MOVED:
            return self._moved(node)
        given = [self.numbers_of(ref) for ref in node.inputs]
        if not given or any(each is None for each in given):
            return None
        first, *others = (each for each in given if each is not None)
        if node.op == "Prod" and node.outputs[0].shape == () and first.ndim == 1:
            return _array([math.prod(first.tolist(), start=ONE)])
        if len(others) != 1 or first.ndim or others[0].ndim:
            return None
        a, b = first.item(), others[0].item()
        if node.op == "Mul":
            return _array([a * b])
        if node.op == "Maximum" and node.twin and ONE in (a, b):  # of gradients: what is divided by it is empty else
            return _array([a if b == ONE else b])
        quotient = a.over(b) if node.op == "FloorDiv" else None
        return None if quotient is None else _array([quotient])

    def _moved(self, node: Node) -> Numbers | None:
        """Where each element of a result is from: TensorFlow moves their numbers."""
        positions = MOVED[node.op](len(node.inputs))
        inputs: list[Array] = []
        sources: list[Number] = []
        for position, ref in enumerate(node.inputs):
            if position in positions:
                numbers = self.numbers_of(ref)
                if numbers is None:
                    return None
                dtype = np.dtype(str(self.type_of(ref).dtype))
                inputs.append(np.arange(len(sources), len(sources) + numbers.size, dtype=dtype).reshape(numbers.shape))
                sources += numbers.ravel().tolist()
            elif ref in self.values:
                inputs.append(self.values[ref])
            else:
                return None
        found = computed(node, inputs)
        if found is None:
            return None
        return _array([sources[at] for at in found[0].ravel()], found[0].shape)

    # Shapes

    def shape_of(self, ref: Ref) -> list[Number] | None:
        """The dims of a tensor; None if more of it is unknown than its number of rows."""
        shape = self.type_of(ref).shape
        if shape == Shape.unknown or any(size is None or size < 0 for size in shape[1:]):
            return None
        return [Number(1, (self.rows_of(ref),)) if size == -1 else Number(size or 0) for size in shape]

    def rows_of(self, ref: Ref) -> Ref:
        """The tensor that decides how many rows another one has."""
        while True:
            ref = ref._replace(node=self.alike[ref.node])
            source = self._rows_from(self.nodes[ref.node])
            if source is None:
                return ref
            ref = source

    def _rows_from(self, node: Node) -> Ref | None:
        rank = len(node.outputs[0].shape)
        if node.op in ROW_BY_ROW:
            kinds = {ref: self.type_of(ref).shape for ref in node.inputs}
            unknown = {self.rows_of(ref) for ref, shape in kinds.items() if len(shape) == rank and shape[:1] == (-1,)}
            return unknown.pop() if len(unknown) == 1 and Shape.unknown not in kinds.values() else None
        if node.op in OF_THE_FIRST or (node.op == "MatMul" and not node.attrs.get("transpose_a")):
            return self._if_rows(node.inputs[0])
        if node.op == "GatherV2" and not node.attrs.get("batch_dims", 0) and self._is_zero(node.inputs[2]):
            return self._if_rows(node.inputs[1])
        if node.op in OVER_AXES:
            axes = self.values.get(node.inputs[1])
            before = len(self.type_of(node.inputs[0]).shape)
            kept = axes is not None and all(int(axis) % before for axis in axes.ravel())
            return self._if_rows(node.inputs[0]) if kept else None
        if node.op in ("Reshape", "BroadcastTo", "Fill"):
            numbers = self.numbers_of(node.inputs[0 if node.op == "Fill" else 1])
            first = numbers[0] if numbers is not None and numbers.ndim == 1 and numbers.size else None
            return first.rows[0] if first is not None and first.factor == 1 and len(first.rows) == 1 else None
        return None

    def _if_rows(self, ref: Ref) -> Ref | None:
        return ref if self.type_of(ref).shape[:1] == (-1,) else None

    def _is_zero(self, ref: Ref) -> bool:
        value = self.values.get(ref)
        return value is not None and not value.any()


def _array(numbers: Sequence[Number], shape: tuple[int, ...] = ()) -> Numbers:
    found = np.empty(len(numbers), object)
    found[:] = numbers
    return found.reshape(shape)


def reduced_by(shape: Sequence[Number], other: Sequence[Number]) -> tuple[list[int], list[int]] | None:
    """BroadcastGradientArgs: over which dims each of two operands was spread; None if that is not known."""
    rank = max(len(shape), len(other))
    padded = [[ONE] * (rank - len(each)) + list(each) for each in (shape, other)]
    found: tuple[list[int], list[int]] = [], []
    for dim, (a, b) in enumerate(zip(*padded, strict=True)):
        if a != b and ONE not in (a, b):
            return None
        for axes, own, its in ((found[0], a, b), (found[1], b, a)):
            if own == ONE and (its != ONE or dim < rank - len(shape if axes is found[0] else other)):
                axes.append(dim)
    return found
