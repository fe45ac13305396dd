"""GraphDef → ir.Graph: one flat step without variables.

A variable becomes a value that is handed on. Reading it gives the value it has at that place of the program, writing
it makes a `Write` that later reads see, so that what was an order of side effects is plain data flow, and any part of
the step can run anywhere. TensorFlow's automatic control dependencies are what this order came from, and are dropped.
What remains an effect is what leaves the step: prints, summaries, assertions.

    Before:  w = VarHandleOp; r = ReadVariableOp(w); y = MatMul(x, r); a = AssignSubVariableOp(w, g); r2 =
      ReadVariableOp(w, ^a)
    After:   w = Variable;  y = MatMul(x, w);  a = Sub(w, g);  a/write = Write(a);  … users of r2 take a/write
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import handle_data_util  # private; tried with 2.21

from whale_tf.capture import attributes
from whale_tf.capture.bodies import Bodies
from whale_tf.capture.branches import on_values
from whale_tf.capture.outside import Outside, is_large
from whale_tf.capture.record import Marker, Trace
from whale_tf.capture.variable_ops import Emit, has_effects
from whale_tf.ir.functions import called, functions_of
from whale_tf.ir.graph import Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names


@dataclass(frozen=True)
class CapturedStep:
    """A captured step.

    Attributes:
      graph: outputs are the tensors the step returns; effects are the last Write of each variable and what leaves the
        step.
      variables: the user's variables by the name they have in `graph`.
      captured: tensors from outside, by the index of `Captured` and `Handle` nodes; those of all traces of the step.
      calls: the functions that nodes refer to, by name, callees first: bodies of control flow and of calls that stay
        calls, and those of operations that run on scratch variables.
      trace: where it came from.
    """

    graph: Graph
    variables: dict[str, Any]
    captured: Sequence[Any]
    calls: dict[str, Graph]
    trace: Trace


def translate(trace: Trace, batch: Sequence[bool], outside: Outside) -> CapturedStep:
    """Turns a trace into a step.

    Args:
      trace: what `record` gave.
      batch: for each tensor argument, whether its dim 0 is the batch.
      outside: what the step's traces so far take from outside; added to.
    """
    return _Translation(trace, batch, outside).run()


@dataclass(frozen=True)
class BareVariable:
    """A variable of which the step only holds the handle (it is assigned and never read through its object)."""

    handle: Any
    name: str
    dtype: tf.DType
    shape: tf.TensorShape
    trainable: bool = False
    aggregation: Any = tf.VariableAggregation.NONE

    @classmethod
    def behind(cls, handle: Any, name: str) -> BareVariable | None:
        """None if the handle is not a variable's."""
        data = getattr(handle, "_handle_data", None)  # private; tried with 2.21
        if data is None or not data.is_set or len(data.shape_and_type) != 1:
            return None
        kind = data.shape_and_type[0]
        return cls(handle, name, tf.dtypes.as_dtype(kind.dtype), tf.TensorShape(kind.shape))


class _Translation:
    """The state of one translation: where each TensorFlow tensor has gone, and each variable's value so far."""

    def __init__(self, trace: Trace, batch: Sequence[bool], outside: Outside) -> None:
        self.trace = trace
        self.outside = outside
        self.batch = batch
        self.graph_def = trace.graph.as_graph_def()
        self.calls: dict[str, Graph] = {}
        self.call_names = Names()
        library = {function.signature.name: function for function in self.graph_def.library.function}
        self.bodies = Bodies(trace.graph, library, self.calls, self.call_names)
        self.nodes: dict[str, Node] = {}
        self.tensors: dict[tuple[str, int], Ref] = {}
        self.handles: dict[str, str] = {}
        self.variables: dict[str, Any] = {}
        self.variable_names, self.node_names = Names(), Names()
        self.current: dict[str, Ref] = {}
        self.writes: dict[str, str] = {}
        self.captures = {placeholder.op.name: external for external, placeholder in trace.graph.captures}
        self.markers = {marker.operation: marker for marker in trace.markers}

    def run(self) -> CapturedStep:
        """Translates node by node, in the order of the program."""
        arguments = {name: index for index, name in enumerate(self.trace.arguments)}
        self.keys = {id(variable.handle): variable for variable in self.trace.graph.variables}
        for name, index in arguments.items():
            self._boundary(name, "Input", index=index, batch=bool(self.batch[index]))
        for name, external in self.captures.items():
            self._capture(name, external)
        effects = []
        for node in _in_program_order(self.graph_def.node, self._roots()):
            if (node.name, 0) in self.tensors or node.name in self.handles:
                continue
            if self._translate(node):
                effects.append(node.name)
        outputs = [self.tensors[tensor] for tensor in self.trace.outputs]
        graph = _with_written(Graph.of(self.nodes.values(), outputs, [*self.writes.values(), *effects]))
        return CapturedStep(graph, self.variables, self.outside.tensors, called([graph], self.calls), self.trace)

    def _roots(self) -> list[str]:
        roots = [name for name, _ in self.trace.outputs] + [op.name for op in self.trace.graph.control_outputs]
        roots += [name for names in self.trace.targets.values() for name in names]
        return roots + [marker.tensor[0] for marker in self.trace.markers if marker.tensor is not None]

    def _translate(self, proto: Any) -> bool:
        """Adds one node; whether it is an effect that must run even if unused."""
        inputs: list[Ref | None] = []
        handles: dict[int, str] = {}
        for position, tensor in enumerate(_data_inputs(proto)):
            if tensor[0] in self.handles:
                handles[position] = self.handles[tensor[0]]
                inputs.append(None)
            else:
                inputs.append(self.tensors[tensor])
        operation = self.trace.graph.get_operation_by_name(proto.name)
        if handles:
            return self._translate_variable_op(proto, operation, inputs, handles)
        if proto.name in self.markers:
            self._marker(proto, inputs, operation)
            return False
        if proto.op in PASS_THROUGH and not _is_pinned(proto):
            self.tensors.update({(proto.name, index): ref for index, ref in enumerate(inputs) if ref is not None})
            return False
        if proto.op == "VariableShape":
            self._shape_of_handle(proto, operation)
            return False
        if proto.op == "Const" and is_large(proto.attr["value"].tensor):
            self._boundary(proto.name, "Captured", index=self.outside.index_of_constant(proto.attr["value"].tensor))
            return False
        node = self._node(proto, operation, [ref for ref in inputs if ref is not None])
        self._add(node)
        return (node.stateful and not node.outputs) or has_effects(node, self.calls)

    def _shape_of_handle(self, proto: Any, operation: Any) -> None:
        """The shape of a variable whose handle a loop gives back: that is known."""
        data = handle_data_util.get_resource_handle_data(operation.inputs[0]).shape_and_type[0].shape
        kind = attributes.tensor_type(operation.outputs[0])
        value = tuple(dim.size for dim in data.dim)
        attrs = {"dtype": kind.dtype, "value": value, "shape": Shape((len(value),))}
        self._add(Node(proto.name, "Const", attrs=attrs, outputs=(TensorType(kind.dtype, Shape((len(value),))),)))

    def _translate_variable_op(
        self, proto: Any, operation: Any, inputs: list[Ref | None], handles: dict[int, str]
    ) -> bool:
        if proto.op == "Identity":
            self.handles[proto.name] = handles[0]
            return False
        node = self._node(proto, operation, [ref for ref in inputs if ref is not None])
        return on_values(Emit(self, node), inputs, handles)

    def _marker(self, proto: Any, inputs: list[Ref | None], operation: Any) -> None:
        marker: Marker = self.markers[proto.name]
        variable = self.keys.get(id(marker.source))
        names = [key for key, value in self.variables.items() if value is variable]
        attrs = {
            "call": marker.call,
            "part": marker.part.encode(),
            "variable": (names or [""])[0].encode(),
            "partner": marker.partner.encode(),
        }
        given = self.nodes[inputs[0].node].outputs[inputs[0].index]  # type: ignore[union-attr]
        made_by = self.trace.calls.get(proto.name, 0) if marker.part == "adjoint" else 0
        node = Node(proto.name, "Gradient", (inputs[0],), attrs=attrs, outputs=(given,), call=made_by)  # type: ignore[arg-type]
        self._add(node)

    def _node(self, proto: Any, operation: Any, inputs: list[Ref]) -> Node:
        proto = self.bodies.as_call(proto)
        call = self.trace.calls.get(proto.name, 0)
        scope = proto.attr["_whale_scope"].s.decode() if "_whale_scope" in proto.attr else ""
        attrs = attributes.attributes_of(proto.attr)
        if proto.op == "Const":
            attrs |= attributes.numbers_of(proto.attr["value"].tensor)
        node = Node(
            proto.name,
            proto.op,
            tuple(inputs),
            attrs=attrs,
            outputs=tuple(attributes.tensor_type(tensor) for tensor in operation.outputs),
            stateful=operation.op_def.is_stateful,
            scope=scope,
            call=call,
            twin=self._twin(proto.name) if call else "",
        )
        if functions_of(node):
            node = self.bodies.named_after(node, [attributes.tensor_type(tensor) for tensor in operation.inputs])
        return node

    def _twin(self, name: str) -> str:
        """The forward operation in a backward operation's name."""
        for prefix, suffix in (("gradient_tape/", ""), ("gradients/", "_grad")):
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for length in range(len(parts) - 1, 0, -1):
                twin = "/".join(parts[:length]).removesuffix(suffix)
                if (twin, 0) in self.tensors:
                    source = self.tensors[twin, 0].node
                    return twin if twin in self.nodes else source
        return ""

    def _capture(self, name: str, external: Any) -> None:
        variable = self.keys.get(id(external))
        if variable is None and external.dtype == tf.resource:
            variable = BareVariable.behind(external, name)
        if variable is not None:
            key = self.variable_names.unused(variable.name.removesuffix(":0"), self.variables)
            self.variables[key] = variable
            self.keys[id(external)] = variable
            self.handles[name] = key
            kind = attributes.tensor_type(variable)
            node_name = self.node_names.unused(key, self.nodes)
            attrs = {
                "variable": key.encode(),
                "aggregation": variable.aggregation.name.encode(),
                "trainable": bool(variable.trainable),
            }
            self.nodes[node_name] = Node(node_name, "Variable", attrs=attrs, outputs=(kind,))
            self.current[key] = Ref(node_name)
            return
        op = "Handle" if external.dtype in (tf.resource, tf.variant) else "Captured"
        index = self.outside.index_of(external)
        kind = attributes.tensor_type(self.trace.graph.get_operation_by_name(name).outputs[0])
        named = self.node_names.unused(f"{op.lower()}_{index}", self.nodes)  # TensorFlow's name counts all captures
        self.nodes[named] = Node(named, op, attrs={"index": index}, outputs=(kind,))
        self.tensors[name, 0] = Ref(named)

    def _boundary(self, name: str, op: str, **attrs: Any) -> None:
        operation = self.trace.graph.get_operation_by_name(name)
        self._add(
            Node(name, op, attrs=attrs, outputs=tuple(attributes.tensor_type(tensor) for tensor in operation.outputs))
        )

    def _add(self, node: Node) -> None:
        self.nodes[node.name] = node
        for index in range(max(1, len(node.outputs))):
            self.tensors[node.name, index] = Ref(node.name, index)


def _with_written(graph: Graph) -> Graph:
    """Without what nothing needs; a variable that is written stays known, though nothing reads it."""
    pruned = graph.pruned()
    written = {node.attrs["variable"] for node in pruned if node.op == "Write"}
    first = [node for node in graph if node.op == "Variable" and node.attrs["variable"] in written]
    nodes = {node.name: node for node in (*first, *pruned)}
    return Graph(nodes, pruned.outputs, pruned.effects)


def _is_pinned(proto: Any) -> bool:
    """Whether `whale.whole` made it, which says something of the value."""
    return proto.attr["_whale_scope"].s.startswith(b"w") if "_whale_scope" in proto.attr else False


PASS_THROUGH = frozenset({"Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot"})


def _in_program_order(nodes: Sequence[Any], roots: Sequence[str]) -> Iterator[Any]:
    """The nodes that the roots need, as they were made, but each after what it takes.

    Taking a While's gradient adds inputs to it, which are made after it.
    """
    by_name = {node.name: node for node in nodes}
    needed: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack.extend(source.lstrip("^").split(":")[0] for source in by_name[name].input)
    done: set[str] = set()
    for node in nodes:
        if node.name not in needed:
            continue
        stack = [node.name]
        while stack:
            name = stack[-1]
            if name in done:
                stack.pop()
                continue
            waiting = [source for source, _ in _data_inputs(by_name[name]) if source not in done]
            if waiting:
                stack.extend(waiting)
                continue
            done.add(name)
            stack.pop()
            yield by_name[name]


def _data_inputs(proto: Any) -> list[tuple[str, int]]:
    refs = []
    for text in proto.input:
        if not text.startswith("^"):
            name, _, index = text.partition(":")
            refs.append((name, int(index or 0)))
    return refs
