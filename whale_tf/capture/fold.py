"""Folds what constants and known shapes determine, so that the planner knows axes, shapes and counts as numbers.

    Before:  s = Shape(x [16,4]);  n = StridedSlice(s, 0, 1);  m = Mul(n, 4)       after:  s = [16, 4];  n = 16;  m = 64

TensorFlow computes each node; what is large and the same everywhere (zeros as long as the batch) is held as one number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import context, execute  # private; tried with 2.21
from tensorflow.python.framework import op_def_registry  # private; tried with 2.21

from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, DType, Function, Graph, Node, Opaque, Ref, Shape
from whale_tf.ir.sizes import Array, uniform

LARGEST = 2**14  # elements: larger values are no shapes, and are computed where they are used
LARGEST_INPUT = 2**20
OF_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
ALIKE = {"ZerosLike": 0, "OnesLike": 1}
OPAQUE = frozenset({"resource", "variant", "string"})
ELEMENTWISE = frozenset({"Cast", "Mul", "RealDiv", "AddV2", "Sub", "Neg", "DivNoNan", "Maximum", "Minimum", "Square"})
SPREAD = frozenset({"Reshape", "Tile", "BroadcastTo", "ExpandDims", "Squeeze", "Transpose"})


def fold(graph: Graph, known: Mapping[Ref, Array] | None = None) -> dict[Ref, Array]:
    """The value of every tensor that constants and shapes determine.

    Args:
      known: values of tensors that come from outside the graph.
    """
    values: dict[Ref, Array] = dict(known or {})
    with tf.init_scope(), tf.device("CPU:0"):
        for node in graph:
            if node.op in BOUNDARY_OPS or node.op in ALIAS_OPS or node.stateful or "Random" in node.op:
                continue
            found = _folded(graph, node, values)
            if found is not None:
                values.update((Ref(node.name, index), value) for index, value in enumerate(found))
    return values


def _folded(graph: Graph, node: Node, values: Mapping[Ref, Array]) -> Sequence[Array] | None:
    if not node.outputs or any(kind.dtype in OPAQUE for kind in node.outputs):
        return None
    if node.op == "Const":
        return constant(node)
    if node.op in OF_SHAPES or node.op in ALIKE:
        return _of_shapes(graph, node)
    if node.op == "Equal" and node.inputs[0] == node.inputs[1]:
        return _equal_to_itself(graph, node)
    if not node.inputs or any(ref not in values for ref in node.inputs):
        return None
    if node.op == "Fill":
        dims, number = values[node.inputs[0]], values[node.inputs[1]]
        return [np.broadcast_to(number, tuple(int(size) for size in dims))]
    if any(isinstance(value, Function) for value in node.attrs.values()):
        return None
    small = all(not kind.shape.known or math.prod(kind.shape.sizes) <= LARGEST for kind in node.outputs)
    if small and all(values[ref].size <= LARGEST_INPUT for ref in node.inputs):
        return computed(node, [values[ref] for ref in node.inputs])
    return _spread(node, [values[ref] for ref in node.inputs])


def constant(node: Node) -> Sequence[Array] | None:
    kind, value = node.outputs[0], node.attrs["value"]
    if not kind.shape.known:
        return None
    if not isinstance(value, Opaque):
        return [np.asarray(value, tf.as_dtype(str(kind.dtype)).as_numpy_dtype).reshape(kind.shape)]
    proto = attr_value_pb2.AttrValue.FromString(value).tensor
    if math.prod(kind.shape.sizes) <= LARGEST:
        return [np.asarray(tf.make_ndarray(proto))]
    if len(proto.tensor_content) or math.prod(kind.shape.sizes) == 0:
        return None
    del proto.tensor_shape.dim[:]  # one number, repeated
    fields = [values for field, values in proto.ListFields() if field.name.endswith("_val")]
    return [np.broadcast_to(tf.make_ndarray(proto), kind.shape.sizes)] if fields and len(fields[0]) == 1 else None


def _of_shapes(graph: Graph, node: Node) -> Sequence[Array] | None:
    kinds = [graph.type_of(ref) for ref in node.inputs]
    if not all(kind.shape.known for kind in kinds):
        return None
    number = np.dtype(node.outputs[0].dtype) if node.op not in ALIKE else None
    if node.op in ALIKE:
        like = tf.as_dtype(str(kinds[0].dtype)).as_numpy_dtype
        return [np.broadcast_to(np.asarray(ALIKE[node.op], like), kinds[0].shape.sizes)]
    if node.op == "Size":
        return [np.asarray(math.prod(kinds[0].shape.sizes), number)]
    if node.op == "Rank":
        return [np.asarray(len(kinds[0].shape), number)]
    return [np.asarray(kind.shape, number) for kind in kinds]


def _equal_to_itself(graph: Graph, node: Node) -> Sequence[Array] | None:
    """True, of what is no float: `tf.recompute_grad` waits for a value in this way."""
    kind = graph.type_of(node.inputs[0])
    if kind.dtype not in ("bool", "int32", "int64") or not kind.shape.known:
        return None
    return [np.broadcast_to(np.asarray(True), kind.shape.sizes)]


def _spread(node: Node, inputs: Sequence[Array]) -> Sequence[Array] | None:
    """The value of a large tensor whose elements are all the same number."""
    if len(node.outputs) != 1 or not node.outputs[0].shape.known or 0 in node.outputs[0].shape:
        return None
    numbers = [uniform(value) for value in inputs[:1] if node.op in SPREAD] or [uniform(value) for value in inputs]
    if node.op not in ELEMENTWISE | SPREAD or any(number is None for number in numbers):
        return None
    found = numbers if node.op in SPREAD else computed(node, [number for number in numbers if number is not None])
    return None if not found or found[0] is None else [np.broadcast_to(found[0], node.outputs[0].shape.sizes)]


def computed(node: Node, inputs: Sequence[Array]) -> Sequence[Array] | None:
    try:
        given = [tf.constant(np.ascontiguousarray(value).reshape(value.shape)) for value in inputs]
        result = execute.execute(node.op.encode(), len(node.outputs), given, _attributes(node), context.context())
    except (tf.errors.OpError, TypeError, ValueError):
        return None  # what cannot be computed now is computed where it is used, and fails there
    results = result if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(each) for each in results]


def _attributes(node: Node) -> tuple[Any, ...]:
    names = {attr.name for attr in op_def_registry.get(node.op).attr}
    flat: list[Any] = []
    for name, value in node.attrs.items():
        if name in names:
            flat += [name, [_plain(each) for each in value] if _is_list(value) else _plain(value)]
    return tuple(flat)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple) and not isinstance(value, (Shape, Function))


def _plain(value: Any) -> Any:
    if isinstance(value, DType):
        return int(tf.as_dtype(str(value)).as_datatype_enum)
    if isinstance(value, Shape):
        return None if value == Shape.unknown else [None if size is None or size < 0 else size for size in value]
    return value
