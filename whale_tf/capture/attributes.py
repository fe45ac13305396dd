"""TensorFlow's attribute values as the plain values that ir.graph carries."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, tensor_shape_pb2, types_pb2

from whale_tf.ir.graph import DType, Function, Opaque, Shape, TensorType

DTYPE_NAMES = {number: name.removeprefix("DT_").lower() for name, number in types_pb2.DataType.items()} | {
    types_pb2.DT_HALF: "float16",
    types_pb2.DT_FLOAT: "float32",
    types_pb2.DT_DOUBLE: "float64",
}
FEW = 8
KEPT_PRIVATE = frozenset({"_lower_using_switch_merge", "_XlaMustCompile"})


def attributes_of(attr: Any) -> dict[str, Any]:
    """A NodeDef's attributes, without the private ones that only steer TensorFlow's own bookkeeping."""
    return {
        name: value_of(value)
        for name, value in sorted(attr.items())
        if not name.startswith("_") or name in KEPT_PRIVATE
    }


def value_of(value: attr_value_pb2.AttrValue) -> Any:
    """One attribute's value."""
    kind = value.WhichOneof("value")
    if kind == "type":
        return dtype(value.type)
    if kind == "shape":
        return shape(value.shape)
    if kind == "func":
        return function(value.func)
    if kind == "list":
        return _list(value.list)
    if kind in ("i", "f", "b", "s"):
        return getattr(value, kind)
    return Opaque(value.SerializeToString(deterministic=True))


def numbers_of(tensor: Any) -> dict[str, tuple[float, ...]]:
    """{"numbers": …} for a constant of a few real numbers, so that a printed graph tells them. Else nothing."""
    real = {types_pb2.DT_INT32, types_pb2.DT_INT64, types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF}
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype not in real or math.prod(sizes) > FEW:
        return {}
    return {"numbers": tuple(float(number) for number in tf.make_ndarray(tensor).ravel())}


def dtype(number: int) -> DType:
    """The name of a DataType."""
    return DType(DTYPE_NAMES[number])


def shape(proto: tensor_shape_pb2.TensorShapeProto) -> Shape:
    """A shape, `Shape.unknown` where the rank is."""
    return Shape.unknown if proto.unknown_rank else Shape(dim.size for dim in proto.dim)


def tensor_type(tensor: Any) -> TensorType:
    """What TensorFlow knows of a tensor of a graph, or of a variable."""
    sizes = None if tensor.shape.rank is None else tensor.shape.as_list()
    known = Shape.unknown if sizes is None else Shape(-1 if size is None else size for size in sizes)
    return TensorType(DType(tensor.dtype.base_dtype.name), known)


def function(proto: attr_value_pb2.NameAttrList) -> Function:
    """A function's name with its attributes."""
    return Function(proto.name, tuple((name, value_of(value)) for name, value in sorted(proto.attr.items())))


def _list(values: attr_value_pb2.AttrValue.ListValue) -> tuple[Any, ...]:
    return (
        *values.s,
        *values.i,
        *values.f,
        *values.b,
        *(dtype(number) for number in values.type),
        *(shape(proto) for proto in values.shape),
        *(Opaque(attr_value_pb2.AttrValue(tensor=tensor).SerializeToString()) for tensor in values.tensor),
        *(function(proto) for proto in values.func),
    )
