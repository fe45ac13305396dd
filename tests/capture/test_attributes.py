"""TensorFlow's attribute values as plain ones, which print, compare, and become TensorFlow's again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, types_pb2

from whale_tf.capture.attributes import attributes_of, dtype, numbers_of, shape, tensor_type, value_of
from whale_tf.ir.graph import DType, Function, Opaque, Shape

AttrValue = attr_value_pb2.AttrValue


def list_of(**fields: Any) -> Any:
    return AttrValue(list=AttrValue.ListValue(**fields))


@pytest.mark.parametrize(
    ("proto", "value"),
    [
        (AttrValue(i=-3), -3),
        (AttrValue(f=0.5), 0.5),
        (AttrValue(b=False), False),
        (AttrValue(s=b"SAME"), b"SAME"),
        (AttrValue(type=types_pb2.DT_FLOAT), DType("float32")),
        (AttrValue(type=types_pb2.DT_RESOURCE), DType("resource")),
        (AttrValue(shape=tf.TensorShape([2, None]).as_proto()), Shape((2, -1))),
        (AttrValue(shape=tf.TensorShape(None).as_proto()), Shape.unknown),
        (AttrValue(func=attr_value_pb2.NameAttrList(name="body")), Function("body")),
        (list_of(i=[1, 2]), (1, 2)),
        (list_of(), ()),
        (list_of(b=[True]), (True,)),
        (list_of(type=[types_pb2.DT_HALF, types_pb2.DT_INT32]), (DType("float16"), DType("int32"))),
        (list_of(shape=[tf.TensorShape([3]).as_proto()]), (Shape((3,)),)),
        (list_of(func=[attr_value_pb2.NameAttrList(name=name) for name in "ab"]), (Function("a"), Function("b"))),
    ],
)
def test_a_value_is_a_plain_one(proto: Any, value: Any) -> None:
    found = value_of(proto)
    assert found == value
    assert type(found) is type(value)


def test_a_constant_is_carried_as_it_is() -> None:
    proto = AttrValue(tensor=tf.make_tensor_proto([1.0, 2.0]))
    found = value_of(proto)
    assert isinstance(found, Opaque)
    assert AttrValue.FromString(found) == proto


def test_a_function_has_its_attributes_in_order() -> None:
    attrs = {"b": AttrValue(i=1), "a": AttrValue(type=types_pb2.DT_FLOAT)}
    proto = AttrValue(func=attr_value_pb2.NameAttrList(name="f", attr=attrs))
    assert value_of(proto) == Function("f", (("a", DType("float32")), ("b", 1)))


def test_private_attributes_are_left_out_but_for_those_that_change_what_runs() -> None:
    attrs = {
        "T": AttrValue(type=types_pb2.DT_FLOAT),
        "_output_shapes": AttrValue(i=1),
        "_XlaMustCompile": AttrValue(b=True),
        "_lower_using_switch_merge": AttrValue(b=True),
    }
    assert list(attributes_of(attrs).items()) == [
        ("T", DType("float32")),
        ("_XlaMustCompile", True),
        ("_lower_using_switch_merge", True),
    ]


@pytest.mark.parametrize(
    ("array", "numbers"),
    [
        (np.array([1, 2], np.int32), (1.0, 2.0)),
        (np.float32(0.5), (0.5,)),
        (np.array([], np.int64), ()),
        (np.zeros([2, 4], np.float64), (0.0,) * 8),
    ],
)
def test_a_few_real_numbers_are_told(array: Any, numbers: tuple[float, ...]) -> None:
    assert numbers_of(tf.make_tensor_proto(array)) == {"numbers": numbers}


@pytest.mark.parametrize("array", [np.zeros(9, np.float32), np.array([True]), np.array(["a"]), np.array([1j])])
def test_others_are_not(array: Any) -> None:
    assert numbers_of(tf.make_tensor_proto(array)) == {}


@pytest.mark.parametrize("kind", [tf.float32, tf.bfloat16, tf.float16, tf.bool, tf.string, tf.complex64, tf.variant])
def test_types_have_the_names_of_tensorflow(kind: tf.DType) -> None:
    assert dtype(kind.as_datatype_enum) == kind.name
    assert tf.as_dtype(str(dtype(kind.as_datatype_enum))) == kind


def test_the_type_of_a_tensor_and_of_a_variable() -> None:
    with tf.Graph().as_default():
        tensor = tf.compat.v1.placeholder(tf.int32, [None, 3])
        anything = tf.compat.v1.placeholder(tf.int32, None)
    assert tensor_type(tensor) == (DType("int32"), Shape((-1, 3)))
    assert tensor_type(anything) == (DType("int32"), Shape.unknown)
    assert tensor_type(tf.Variable([1.0, 2.0])) == (DType("float32"), Shape((2,)))


def test_a_shape_of_rank_zero_is_known() -> None:
    assert shape(tf.TensorShape([]).as_proto()) == Shape()
