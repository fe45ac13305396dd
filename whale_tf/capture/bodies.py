"""FunctionDef → ir.Graph: the bodies of loops, branches and calls.

A body is named after the node that refers to it and its attribute, so that two traces of a step name it alike:
TensorFlow's own names count what the process has traced before.

    Before:  while = While(0, h) {body=@while_body_123, cond=@while_cond_122}
    After:   while = While(0, h) {body=@while/body, cond=@while/cond}      while/body: a Graph of Argument nodes

What a body holds stays as it is: its operations with their names, its control edges, and as effects what TensorFlow
would run though nothing takes it. Variables are resources in it, as in TensorFlow.

A function that is no acyclic graph of operations stays TensorFlow's, under its own name, which it has as long as the
trace lasts: one with a loop of TensorFlow 1, as old SavedModels have, or that calls itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2
from tensorflow.python.framework import (
    func_graph,
    function_def_to_graph,
    importer,
    op_def_registry,
)  # private; tried with 2.21

from whale_tf.capture import attributes
from whale_tf.capture.library import Library, become_call
from whale_tf.ir.functions import BRANCHES, CALLS, LOOPS, with_functions
from whale_tf.ir.graph import Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names

SHAPELESS = frozenset({"resource", "variant"})
# Name other functions, or say only where a function was made.
DROPPED = frozenset({"_construction_context", "forward_function_name", "backward_function_name", "api_implements"})


class Bodies:
    """The bodies of one trace, each translated when a node that refers to it is.

    Attributes:
      calls: the bodies by name, added to; those that a body refers to stand before it.
    """

    def __init__(
        self,
        graph: func_graph.FuncGraph,
        definitions: Mapping[str, function_pb2.FunctionDef],
        calls: dict[str, Graph],
        names: Names,
    ) -> None:
        self.calls = calls
        self._names = names
        self._graph = graph
        self._library = Library(definitions)
        self._entered: set[str] = set()

    def as_call(self, proto: node_def_pb2.NodeDef) -> node_def_pb2.NodeDef:
        """The node of the step, as a call if its operation is a function's name."""
        signature = self._library.signature_of(proto.op)
        if signature is None:
            return proto
        made = node_def_pb2.NodeDef.FromString(proto.SerializeToString())
        become_call(made, signature)
        return made

    def named_after(self, node: Node, inputs: Sequence[TensorType], outer: str = "") -> Node:
        """The node with its functions under their new names; their graphs join `calls`.

        Args:
          inputs: the types of what it takes.
          outer: the body that it stands in.
        """
        given = self._given(node, inputs)

        def named(attribute: str, name: str) -> str:
            definition = self._library.graph_of(name)
            if name in self._entered or definition is None:
                return name
            wanted = f"{outer}/{node.name}/{attribute}" if outer else f"{node.name}/{attribute}"
            new = self._names.unused(wanted, self.calls)
            self._entered.add(name)
            self.calls[new] = self._translated(definition, given, new)
            self._entered.remove(name)
            return new

        return with_functions(node, named)

    def _given(self, node: Node, inputs: Sequence[TensorType]) -> Sequence[TensorType]:
        """What a node hands to its functions, as far as that tells more than they know; empty if it does not."""
        if node.op in CALLS:
            return inputs
        if node.op in BRANCHES:
            return inputs[1:]
        if node.op in LOOPS:
            return self._kept(self._library.graph_of(node.attrs["body"].name), inputs)
        return ()

    def _kept(self, body: function_pb2.FunctionDef | None, inputs: Sequence[TensorType]) -> Sequence[TensorType]:
        """What stays true of what a loop hands on from round to round, where its body says no ranks.

        It is what the loop is given, less what the body, given that, does not give back.
        """
        if body is None or not any(_is_rankless(kind) for kind in _argument_types(body, ())):
            return ()
        kinds = _argument_types(body, inputs)
        while True:
            shapes = [attributes.tensor_type(tensor).shape for tensor in self._made(body, kinds).outputs]
            kept = [kind._replace(shape=_common(kind.shape, shape)) for kind, shape in zip(kinds, shapes, strict=True)]
            if kept == kinds:
                return kinds
            kinds = kept

    def _translated(self, definition: function_pb2.FunctionDef, given: Sequence[TensorType], name: str) -> Graph:
        kinds = _argument_types(definition, given)
        operations = self._operations(definition, kinds)
        reader = _Reader(definition)
        nodes = [
            Node(ref.node, "Argument", attrs={"index": index}, outputs=(kind,))
            for index, (ref, kind) in enumerate(zip(reader.arguments.values(), kinds, strict=True))
        ]
        types = {Ref(node.name): node.outputs[0] for node in nodes}
        for proto in definition.node_def:
            outputs = tuple(attributes.tensor_type(tensor) for tensor in operations[proto.name].outputs)
            types |= {Ref(proto.name, index): kind for index, kind in enumerate(outputs)}
            attrs = attributes.attributes_of(proto.attr)
            if proto.op == "Const":
                attrs |= attributes.numbers_of(proto.attr["value"].tensor)
            stateful = _defined(proto.op).stateful
            nodes.append(Node(proto.name, proto.op, *reader.inputs(proto), attrs, outputs, stateful))
        inner = [self.named_after(node, [types[ref] for ref in node.inputs], name) for node in _ordered(nodes)]
        return Graph.of(
            inner,
            [reader.ref(definition.ret[result.name]) for result in definition.signature.output_arg],
            dict.fromkeys(definition.control_ret[each] for each in definition.signature.control_output),
            attrs={
                key: attributes.value_of(value) for key, value in sorted(definition.attr.items()) if key not in DROPPED
            },
        )

    def _operations(self, definition: function_pb2.FunctionDef, kinds: Sequence[TensorType]) -> dict[str, tf.Operation]:
        """The operations of a function as TensorFlow has them in a graph: it knows their shapes.

        The graph that the function was made of is there. It is made anew where a call gives larger tensors a shape.
        """
        if kinds == _argument_types(definition, ()):
            function = self._graph._functions.get(definition.signature.name)  # private; tried with 2.21
            found = _found(definition, function.graph) if hasattr(function, "graph") else None
            if found is not None:
                return found
        made = self._made(definition, kinds)
        return {proto.name: made.get_operation_by_name(proto.name) for proto in definition.node_def}

    def _made(self, definition: function_pb2.FunctionDef, kinds: Sequence[TensorType]) -> func_graph.FuncGraph:
        """A graph of the function, for arguments of these types."""
        bare = function_pb2.FunctionDef.FromString(definition.SerializeToString())
        for argument in bare.arg_attr.values():
            argument.attr.pop("_output_shapes", None)  # would be taken in the place of these
        inner = self._library.called_by_name(definition)
        graph = tf.Graph() if inner else self._graph
        with graph.as_default():
            if inner:  # TensorFlow looks in them for the shapes of what they give
                library = function_pb2.FunctionDefLibrary(function=inner)
                importer.import_graph_def(graph_pb2.GraphDef(library=library), name="")
            shapes = [_tensor_shape(kind) for kind in kinds]
            make = function_def_to_graph.function_def_to_graph
            return make(bare, input_shapes=shapes, include_library_functions=bool(inner))


class _Defined(NamedTuple):
    """What an operation's definition says.

    Attributes:
      outputs: the name of each output, with the attribute that counts its tensors, or that lists their types.
    """

    stateful: bool
    outputs: tuple[tuple[str, str, str], ...]


@functools.cache
def _defined(op: str) -> _Defined:
    definition = op_def_registry.get(op)
    outputs = ((each.name, each.number_attr, each.type_list_attr) for each in definition.output_arg)
    return _Defined(definition.is_stateful, tuple(outputs))


class _Reader:
    """Reads what a FunctionDef calls its tensors: `x` of an argument, `MatMul:product:0` of an operation."""

    def __init__(self, definition: function_pb2.FunctionDef) -> None:
        names, taken = Names(), {proto.name for proto in definition.node_def}
        self.arguments: dict[str, Ref] = {}
        for index, argument in enumerate(definition.signature.input_arg):  # named by position: their own names count
            self.arguments[argument.name] = Ref(names.unused(f"argument_{index}", taken))
        self.first = {(proto.name, name): first for proto in definition.node_def for name, first in _firsts(proto)}

    def ref(self, text: str) -> Ref:
        """The tensor that a text names."""
        if text in self.arguments:
            return self.arguments[text]
        node, output, index = text.split(":")
        return Ref(node, self.first[node, output] + int(index))

    def inputs(self, proto: node_def_pb2.NodeDef) -> tuple[tuple[Ref, ...], tuple[str, ...]]:
        """What an operation takes, and the names of those it waits for; arguments are always there."""
        waits = [text[1:] for text in proto.input if text[0] == "^" and text[1:] not in self.arguments]
        return tuple(self.ref(text) for text in proto.input if text[0] != "^"), tuple(waits)


def _firsts(proto: node_def_pb2.NodeDef) -> Iterator[tuple[str, int]]:
    """Each output of an operation by name, with the position of its first tensor among all."""
    first = 0
    for name, number, types in _defined(proto.op).outputs:
        yield name, first
        first += len(proto.attr[types].list.type) if types else proto.attr[number].i if number else 1


def _found(definition: function_pb2.FunctionDef, graph: tf.Graph) -> dict[str, tf.Operation] | None:
    """The function's operations in a graph; None if it is not the function's."""
    found = {}
    for proto in definition.node_def:
        try:
            operation = graph.get_operation_by_name(proto.name)
        except KeyError:
            return None
        if operation.type != proto.op:
            return None
        found[proto.name] = operation
    return found


def _argument_types(definition: function_pb2.FunctionDef, given: Sequence[TensorType]) -> list[TensorType]:
    """The types of a function's arguments: as it was made, and what it is given where that says more."""
    kinds = []
    for index, argument in enumerate(definition.signature.input_arg):
        shapes = definition.arg_attr[index].attr["_output_shapes"] if index in definition.arg_attr else None
        shape = attributes.shape(shapes.list.shape[0]) if shapes and shapes.list.shape else Shape.unknown
        dtype = attributes.dtype(argument.type)
        if given and dtype not in SHAPELESS:
            shape = _merged(shape, given[index].shape)
        kinds.append(TensorType(dtype, shape))
    return kinds


def _merged(shape: Shape, other: Shape) -> Shape:
    """What two shapes of one tensor say together."""
    if shape.known or other == Shape.unknown:
        return shape
    if shape == Shape.unknown or len(shape) != len(other):
        return other
    return Shape(there if size == -1 else size for size, there in zip(shape, other, strict=True))


def _common(shape: Shape, other: Shape) -> Shape:
    """What is true of both shapes."""
    if Shape.unknown in (shape, other) or len(shape) != len(other):
        return Shape.unknown
    return Shape(size if size == there else -1 for size, there in zip(shape, other, strict=True))


def _is_rankless(kind: TensorType) -> bool:
    return kind.shape == Shape.unknown and kind.dtype not in SHAPELESS


def _tensor_shape(kind: TensorType) -> tf.TensorShape | None:
    if kind.shape == Shape.unknown or kind.dtype in SHAPELESS:
        return None
    return tf.TensorShape([None if size is None or size < 0 else size for size in kind.shape])


def _ordered(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes in the order they have, but each after what it takes and waits for."""
    by_name = {node.name: node for node in nodes}
    done: set[str] = set()
    for name in by_name:
        stack = [name]
        while stack:
            node = by_name[stack[-1]]
            waiting = [each for each in (*(ref.node for ref in node.inputs), *node.control) if each not in done]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node.name not in done:
                done.add(node.name)
                yield node
