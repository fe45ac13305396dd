"""The plain values that ir.graph carries as TensorFlow's attribute values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, node_def_pb2
from tensorflow.python.framework import op_def_registry  # private; tried with 2.21

from whale_tf.ir.graph import DType, Function, Opaque, Shape


def set_attrs(proto: node_def_pb2.NodeDef, op: str, attrs: dict[str, Any], renamed: Mapping[str, str]) -> None:
    """Gives an operation its attributes, and the default of those that it has not.

    Args:
      renamed: the names that functions have where it runs.
    """
    types = _attr_types(op)
    for name, default in _defaults(op).items():
        if name not in attrs:
            proto.attr[name].CopyFrom(default)
    for name, value in attrs.items():
        if name in types or name.startswith("_"):
            set_attr(proto.attr[name], value, types.get(name, ""), attrs, renamed)


def set_attr(
    attr: attr_value_pb2.AttrValue, value: Any, kind: str, attrs: Mapping[str, Any], renamed: Mapping[str, str]
) -> None:
    """Writes one attribute; `kind` is its type in the operation's definition, empty where there is none."""
    if isinstance(value, Opaque):
        attr.ParseFromString(value)
    elif kind == "tensor":
        attr.tensor.CopyFrom(tf.make_tensor_proto(value, _type(attrs["dtype"]), attrs.get("shape")))
    elif isinstance(value, Function):
        _set_function(attr.func, value, renamed)
    elif isinstance(value, DType):
        attr.type = enum_of(value)
    elif isinstance(value, Shape):
        set_shape(attr.shape, value)
    elif isinstance(value, tuple):
        _set_list(attr.list, value, renamed)
    elif isinstance(value, bool):
        attr.b = value
    elif isinstance(value, int) and kind != "float":
        attr.i = value
    elif isinstance(value, (float, int)):
        attr.f = value
    else:
        attr.s = value


def _set_list(proto: attr_value_pb2.AttrValue.ListValue, values: tuple[Any, ...], renamed: Mapping[str, str]) -> None:
    proto.SetInParent()
    for value in values:
        if isinstance(value, Opaque):
            proto.tensor.add().CopyFrom(attr_value_pb2.AttrValue.FromString(value).tensor)
        elif isinstance(value, Function):
            _set_function(proto.func.add(), value, renamed)
        elif isinstance(value, DType):
            proto.type.append(enum_of(value))
        elif isinstance(value, Shape):
            set_shape(proto.shape.add(), value)
        elif isinstance(value, bool):
            proto.b.append(value)
        elif isinstance(value, int):
            proto.i.append(value)
        elif isinstance(value, float):
            proto.f.append(value)
        else:
            proto.s.append(value)


def _set_function(proto: attr_value_pb2.NameAttrList, value: Function, renamed: Mapping[str, str]) -> None:
    proto.name = renamed.get(value.name, value.name)
    for name, attr in value.attrs:
        set_attr(proto.attr[name], attr, "", {}, renamed)


def set_shape(proto: Any, shape: Shape) -> None:
    """Writes a shape."""
    if shape == Shape.unknown:
        proto.unknown_rank = True
    else:
        proto.SetInParent()
        for size in shape:
            proto.dim.add(size=size)


@functools.cache
def _type(dtype: str) -> tf.DType:
    return tf.dtypes.as_dtype(str(dtype))


@functools.cache
def enum_of(dtype: str) -> int:
    """The number of an element type."""
    return int(_type(dtype).as_datatype_enum)


@functools.cache
def _attr_types(op: str) -> dict[str, str]:
    definition = op_def_registry.get(op)
    return {attr.name: attr.type for attr in definition.attr}


@functools.cache
def _defaults(op: str) -> dict[str, attr_value_pb2.AttrValue]:
    definition = op_def_registry.get(op)
    return {attr.name: attr.default_value for attr in definition.attr if attr.HasField("default_value")}
