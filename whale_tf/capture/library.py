"""TensorFlow's functions by name, with each operation that is a function's name as a call of it.

An operation of TensorFlow 1 may itself be a function's name (`tf.nn.ctc_loss` has them). The name is a hash of what the
function holds, which may be another at another size, and nodes are named after it:

    Before:  body_JyWEzKApHfs = body_JyWEzKApHfs(argument_0)         its results: body_JyWEzKApHfs:sub:0
    After:   PartitionedCall = PartitionedCall(argument_0) {f=@while/body/PartitionedCall/f}
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tensorflow.core.framework import function_pb2, node_def_pb2, op_def_pb2
from tensorflow.python.framework import op_def_registry  # private; tried with 2.21

from whale_tf.ir.names import Names

LOOPS_BACK = "NextIteration"


class Library:
    """TensorFlow's functions, with each operation that is a function's name as a call of it."""

    def __init__(self, definitions: Mapping[str, function_pb2.FunctionDef]) -> None:
        self._definitions = definitions
        self._plain: dict[str, function_pb2.FunctionDef] = {}

    def graph_of(self, name: str) -> function_pb2.FunctionDef | None:
        """A function; None if there is none, or it is no acyclic graph of registered operations and calls."""
        if name in self._definitions and name not in self._plain:
            definition = self._definitions[name]
            ops = {proto.op for proto in definition.node_def}
            by_name = [op for op in ops if op_def_registry.get(op) is None]
            if LOOPS_BACK not in ops and all(self._is_callable(op) for op in by_name):
                self._plain[name] = _with_calls(definition, {op: self._definitions[op] for op in by_name})
        return self._plain.get(name)

    def signature_of(self, op: str) -> op_def_pb2.OpDef | None:
        """Of an operation that is a function's name, what the function takes and gives."""
        definition = self._definitions.get(op)
        return None if definition is None or op_def_registry.get(op) is not None else definition.signature

    def called_by_name(self, definition: function_pb2.FunctionDef) -> list[function_pb2.FunctionDef]:
        """All that a function calls, directly or through others, if it calls one by an operation of that name."""
        known = self._definitions[definition.signature.name]
        if known is definition:
            return []
        return [self.graph_of(name) or self._definitions[name] for name in sorted(self._called(known))]

    def _is_callable(self, name: str) -> bool:
        """Whether a call can take the place of an operation: of a function of known types, without recursion."""
        if name not in self._definitions or self._definitions[name].signature.attr:
            return False
        names = {name} | self._called(self._definitions[name])
        return not any(each in self._called(self._definitions[each]) for each in names)

    def _called(self, definition: function_pb2.FunctionDef) -> set[str]:
        found: set[str] = set()
        stack = [definition]
        while stack:
            for proto in stack.pop().node_def:
                lists = [[value.func, *value.list.func] for value in proto.attr.values()]
                names = {proto.op, *(each.name for functions in lists for each in functions)}
                new = (names & self._definitions.keys()) - found
                found |= new
                stack += [self._definitions[name] for name in new]
        return found


def _with_calls(
    definition: function_pb2.FunctionDef, functions: Mapping[str, function_pb2.FunctionDef]
) -> function_pb2.FunctionDef:
    """The function with calls in the place of the operations that are functions' names."""
    if not functions:
        return definition
    made = function_pb2.FunctionDef.FromString(definition.SerializeToString())
    names = _renamed(definition, functions)
    places = {
        proto.name: {result.name: index for index, result in enumerate(functions[proto.op].signature.output_arg)}
        for proto in definition.node_def
        if proto.op in functions
    }

    def moved(text: str) -> str:
        if text[0] == "^":
            return f"^{names.get(text[1:], text[1:])}"
        node, *output = text.split(":")
        if node in places and output:
            output = ["output", str(places[node][output[0]])]
        return ":".join([names[node] if output else node, *output])

    for proto in made.node_def:
        proto.input[:] = [moved(text) for text in proto.input]
        proto.name = names[proto.name]
        proto.attr.pop("_class", None)  # refers to nodes by their old names
        if proto.op in functions:
            become_call(proto, functions[proto.op].signature)
    for result, text in definition.ret.items():
        made.ret[result] = moved(text)
    for effect, name in definition.control_ret.items():
        made.control_ret[effect] = names.get(name, name)
    return made


def become_call(proto: node_def_pb2.NodeDef, signature: op_def_pb2.OpDef) -> None:
    proto.op = _call_of(signature)
    proto.attr.pop("_disable_call_shape_inference", None)
    proto.attr["f"].func.name = signature.name
    proto.attr["Tin"].list.type.extend(argument.type for argument in signature.input_arg)
    proto.attr["Tout"].list.type.extend(result.type for result in signature.output_arg)


def _call_of(signature: op_def_pb2.OpDef) -> str:
    return "StatefulPartitionedCall" if signature.is_stateful else "PartitionedCall"


def _renamed(definition: function_pb2.FunctionDef, functions: Mapping[str, function_pb2.FunctionDef]) -> dict[str, str]:
    """The nodes' new names: with none of the functions' names in them, nor how TensorFlow counts its uses."""
    longest_first = "|".join(re.escape(name) for name in sorted(functions, reverse=True))
    pattern = re.compile(rf"(?<![^/])({longest_first})(_\d+)*(?=[_/]|$)")
    old = [proto.name for proto in definition.node_def]
    names, taken = Names(), {*old, *(argument.name for argument in definition.signature.input_arg)}
    renamed: dict[str, str] = {}
    for name in old:
        new = pattern.sub(lambda found: _call_of(functions[found[1]].signature), name)
        renamed[name] = name if name == new else names.unused(new, taken)
        taken.add(renamed[name])
    return renamed
