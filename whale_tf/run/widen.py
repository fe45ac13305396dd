"""Functions of TensorFlow with every float in float64: the same program, with 29 more bits in each number.

    Before:  r = ReadVariableOp[float32](v);  y = MatMul[float32](x, r);  b = Bitcast[float32, int32](y)
    After:   r = ReadVariableOp[float64](v);  y = MatMul[float64](x, r);  b = Bitcast[float32, int32](Cast(y))

Every tensor between operations is wide. An operation that cannot be stays as it is, between casts: those of which
TensorFlow has no kernel for float64, those whose meaning is in the width (`Bitcast`, draws of random numbers), those
that call Python, and those that use a resource which is no variable.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, function_pb2, node_def_pb2, types_pb2
from tensorflow.python.framework import kernels, op_def_registry  # private; tried with 2.21

from whale_tf.ir.functions import CALLING
from whale_tf.plan.answers import RANDOM

WIDER: Mapping[int, int] = {
    types_pb2.DT_HALF: types_pb2.DT_DOUBLE,
    types_pb2.DT_BFLOAT16: types_pb2.DT_DOUBLE,
    types_pb2.DT_FLOAT: types_pb2.DT_DOUBLE,
    types_pb2.DT_COMPLEX64: types_pb2.DT_COMPLEX128,
}
BY_WIDTH = frozenset({"Bitcast", "DecodeRaw", "DecodePaddedRaw", "ParseTensor", "SerializeTensor"})
PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


class Widened(NamedTuple):
    """Functions in float64.

    Attributes:
      functions: in the order they were given, under other names.
      kept: operations with floats that stay as they are, but for draws, which lose nothing.
    """

    functions: tuple[function_pb2.FunctionDef, ...]
    kept: frozenset[str]


def widen(functions: Sequence[function_pb2.FunctionDef], suffix: str) -> Widened:
    """The functions in float64, each called as before with a suffix.

    Args:
      functions: they may call one another; what else they call stays as it is.
    """
    named, kept = rename(functions, suffix), set[str]()
    return Widened(tuple(_Widening(function, kept).run() for function in named), frozenset(kept))


def rename(functions: Sequence[function_pb2.FunctionDef], suffix: str) -> tuple[function_pb2.FunctionDef, ...]:
    """The functions with a suffix to their names, also where they call one another."""
    names = {function.signature.name: function.signature.name + suffix for function in functions}
    renamed = []
    for function in functions:
        copy = function_pb2.FunctionDef()
        copy.CopyFrom(function)
        copy.signature.name = names[function.signature.name]
        for node in copy.node_def:
            for called in _called(node):
                called.name = names.get(called.name, called.name)
        renamed.append(copy)
    return tuple(renamed)


def _called(node: node_def_pb2.NodeDef) -> Iterator[attr_value_pb2.NameAttrList]:
    for attr in node.attr.values() if node.op in CALLING else ():
        if attr.WhichOneof("value") == "func":
            yield attr.func
        elif attr.WhichOneof("value") == "list":
            yield from attr.list.func


def wider(dtype: tf.DType) -> tf.DType:
    """The type that stands for this one: float64 for float32, and itself for what is no float."""
    return tf.as_dtype(WIDER.get(dtype.as_datatype_enum, dtype.as_datatype_enum))


def is_wider(dtype: tf.DType) -> bool:
    """Whether another type stands for this one."""
    return dtype.as_datatype_enum in WIDER


class _Widening:
    """One function on its way."""

    def __init__(self, function: function_pb2.FunctionDef, kept: set[str]) -> None:
        self.function, self.kept = function, kept
        self.moved: dict[str, str] = {}
        self.nodes: list[node_def_pb2.NodeDef] = []

    def run(self) -> function_pb2.FunctionDef:
        function = self.function
        for each in (*function.signature.input_arg, *function.signature.output_arg):
            each.type = WIDER.get(each.type, each.type)
        narrow = {node.name for node in function.node_def if not self._widen(node)}
        for node in function.node_def:
            self._widen_results(node)
        for node in function.node_def:
            self._narrow_operands(node)
        for node in function.node_def:
            if node.name in narrow and node.op not in RANDOM:
                self.kept.add(node.op)
        for name, ref in function.ret.items():
            function.ret[name] = self.moved.get(ref, ref)
        function.node_def.extend(self.nodes)
        return function

    def _widen(self, node: node_def_pb2.NodeDef) -> bool:
        """Gives the node float64 where it can have it; whether it could."""
        types = {name: attr for name, attr in _with_defaults(node).items() if _types_of(attr) & WIDER.keys()}
        fixed = {arg.type for arg in _arguments(node.op)} & WIDER.keys()
        if not types:
            return not fixed
        changed = {name: _wide(attr) for name, attr in types.items()}
        if not _can_be_wide(node, {name: _types_of(attr) for name, attr in changed.items()}):
            return False
        for name, attr in changed.items():
            node.attr[name].CopyFrom(attr)
        return not fixed

    def _widen_results(self, node: node_def_pb2.NodeDef) -> None:
        """Casts what it gives in another type than the others take."""
        for name, dtype in _results(node):
            if dtype in WIDER:
                ref = f"{node.name}:{name}"
                cast = self._cast(f"{node.name}/{name.replace(':', '_')}/wide", ref, dtype, WIDER[dtype], node.device)
                self.moved[ref] = f"{cast}:y:0"

    def _narrow_operands(self, node: node_def_pb2.NodeDef) -> None:
        for position, dtype in enumerate(_operands(node)):
            ref = self.moved.get(node.input[position], node.input[position])
            if dtype in WIDER:
                ref = self._cast(f"{node.name}/{position}/narrow", ref, WIDER[dtype], dtype, node.device) + ":y:0"
            node.input[position] = ref

    def _cast(self, name: str, ref: str, source: int, target: int, device: str) -> str:
        cast = node_def_pb2.NodeDef(name=name, op="Cast", device=device, input=[ref])
        cast.attr["SrcT"].type, cast.attr["DstT"].type = source, target
        self.nodes.append(cast)
        return name


def _can_be_wide(node: node_def_pb2.NodeDef, types: Mapping[str, set[int]]) -> bool:
    if node.op in RANDOM | BY_WIDTH | PYTHON:
        return False
    if node.op not in CALLING and (
        _uses_resource(node.op) or any(attr.HasField("func") for attr in node.attr.values())
    ):
        return False
    for attr in op_def_registry.get(node.op).attr:
        allowed = set(attr.allowed_values.list.type)
        if attr.name in types and allowed and not types[attr.name] <= allowed:
            return False
    constraints = _constraints(node.op)
    return not constraints or any(
        all(types[name] <= allowed for name, allowed in each.items() if name in types) for each in constraints
    )


def _uses_resource(op: str) -> bool:
    """Whether it uses a resource that is no variable: what is in it has the type that it was made with."""
    if op.startswith(("Resource", "Var")) or "VariableOp" in op:
        return False
    return any(arg.type == types_pb2.DT_RESOURCE for arg in op_def_registry.get(op).input_arg)


@functools.cache
def _constraints(op: str) -> tuple[dict[str, set[int]], ...]:
    """For each of an operation's kernels on CPUs, the types that its attributes may have."""
    return tuple(
        {each.name: set(each.allowed_values.list.type) for each in kernel.constraint}
        for kernel in kernels.get_registered_kernels_for_op(op).kernel
        if kernel.device_type == "CPU"
    )


@functools.cache
def _arguments(op: str) -> tuple[Any, ...]:
    definition = op_def_registry.get(op)
    return (*definition.input_arg, *definition.output_arg)


def _with_defaults(node: node_def_pb2.NodeDef) -> dict[str, attr_value_pb2.AttrValue]:
    definition = op_def_registry.get(node.op)
    given = {attr.name: attr.default_value for attr in definition.attr if attr.HasField("default_value")}
    return {**given, **{attr.name: node.attr[attr.name] for attr in definition.attr if attr.name in node.attr}}


def _types_of(attr: attr_value_pb2.AttrValue) -> set[int]:
    kind = attr.WhichOneof("value")
    if kind == "type":
        return {attr.type}
    if kind == "tensor":
        return {attr.tensor.dtype}
    return set(attr.list.type) if kind == "list" else set()


def _wide(attr: attr_value_pb2.AttrValue) -> attr_value_pb2.AttrValue:
    kind = attr.WhichOneof("value")
    if kind == "type":
        return attr_value_pb2.AttrValue(type=WIDER.get(attr.type, attr.type))
    if kind == "tensor":
        dtype = tf.as_dtype(WIDER[attr.tensor.dtype])
        value = tf.make_ndarray(attr.tensor).astype(dtype.as_numpy_dtype)
        return attr_value_pb2.AttrValue(tensor=tf.make_tensor_proto(value, dtype))
    types = [WIDER.get(each, each) for each in attr.list.type]
    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(type=types))


def _operands(node: node_def_pb2.NodeDef) -> Iterator[int]:
    """The type of each operand, in order."""
    for arg in op_def_registry.get(node.op).input_arg:
        yield from _types_of_argument(arg, node)


def _results(node: node_def_pb2.NodeDef) -> Iterator[tuple[str, int]]:
    """Each result as FunctionDefs name it, `y:0`, with its type."""
    for arg in op_def_registry.get(node.op).output_arg:
        yield from ((f"{arg.name}:{index}", dtype) for index, dtype in enumerate(_types_of_argument(arg, node)))


def _types_of_argument(arg: Any, node: node_def_pb2.NodeDef) -> Iterable[int]:
    attrs = _with_defaults(node)
    if arg.type_list_attr:
        return list(attrs[arg.type_list_attr].list.type)
    dtype = attrs[arg.type_attr].type if arg.type_attr else arg.type
    return [dtype] * (attrs[arg.number_attr].i if arg.number_attr else 1)
