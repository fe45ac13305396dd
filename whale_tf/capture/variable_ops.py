"""What each operation on a variable is as an operation on values: the table that `translate` applies.

An operation that is not in the table (a loop over a variable, a fused optimizer kernel) becomes one call of a
function that holds scratch variables: it takes the values, runs the operation, and gives the new values. For branches
see `capture.branches`. To add a rule, add a row to RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from whale_tf.ir.functions import BRANCHES, CALLING, NOT_INLINED, called, functions_of
from whale_tf.ir.graph import DType, Function, Graph, Node, Opaque, Ref, Shape, TensorType
from whale_tf.ir.names import Names

# The shared_name that makes VarHandleOp give a fresh variable at each run, freed with its last handle
# (resource_handle.h).
ANONYMOUS = b"cd2c89b7-88b7-44c8-ad83-06c2a9158347"
READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"})
LEAVES_THE_STEP = frozenset(
    {"PrintV2", "Print", "Assert", "PyFunc", "EagerPyFunc", "WriteSummary", "WriteScalarSummary"}
)


class Translation(Protocol):
    """What the rules use of the translation that is under way."""

    nodes: dict[str, Node]
    tensors: dict[tuple[str, int], Ref]
    current: dict[str, Ref]
    writes: dict[str, str]
    calls: dict[str, Graph]
    call_names: Names


@dataclass(frozen=True)
class Emit:
    """Adds the nodes that stand for one TensorFlow operation, `like`, whose stamps they inherit."""

    translation: Translation
    like: Node

    def __call__(self, op: str, inputs: Sequence[Ref], outputs: Sequence[TensorType], **attrs: Any) -> Ref:
        """One node; its name is that of the operation, with a suffix for all but the first."""
        name, taken = self.like.name, self.translation.nodes
        if name in taken:
            name = Names().unused(f"{name}/{op.lower()}", taken)
        node = self.like.with_(
            name=name, op=op, inputs=tuple(inputs), attrs=attrs, outputs=tuple(outputs), stateful=False, control=()
        )
        self.translation.nodes[name] = node
        return Ref(name)

    def value(self, variable: str) -> Ref:
        """The value the variable has at this place."""
        return self.translation.current[variable]

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a tensor."""
        return self.translation.nodes[ref.node].outputs[ref.index]

    def write(self, variable: str, value: Ref) -> Ref:
        """From here on the variable has this value."""
        written = self("Write", [value], [self.type_of(value)], variable=variable.encode())
        self.translation.current[variable] = written
        self.translation.writes[variable] = written.node
        return written

    def constant(self, value: Any, dtype: tf.DType) -> Ref:
        """A Const."""
        tensor = tf.make_tensor_proto(value, dtype)
        attr = Opaque(attr_value_pb2.AttrValue(tensor=tensor).SerializeToString())
        kind = TensorType(DType(dtype.name), Shape(tf.TensorShape(tensor.tensor_shape).as_list()))
        return self("Const", [], [kind], dtype=kind.dtype, value=attr)


@dataclass(frozen=True)
class Rule:
    """How one operation acts on the value of its variable.

    Attributes:
      apply: (emit, variable, other inputs) → what the operation gives.
      applies: whether this use of the operation is covered.
    """

    apply: Callable[[Emit, str, list[Ref]], Sequence[Ref]]
    applies: Callable[[Emit], bool] = lambda emit: True


def _read(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
    return [emit.value(variable)]


def _assign(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
    emit.write(variable, inputs[0])
    return []


def _arithmetic(op: str) -> Callable[[Emit, str, list[Ref]], Sequence[Ref]]:
    def apply(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
        value = emit.value(variable)
        kind = emit.type_of(value)
        emit.write(variable, emit(op, [value, inputs[0]], [kind], T=kind.dtype))
        return []

    return apply


def _gather(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
    value, (indices,) = emit.value(variable), inputs
    attrs, outputs = emit.like.attrs, emit.like.outputs
    batch_dims = attrs.get("batch_dims", 0)
    axis = emit.constant(batch_dims, tf.int32)
    types = {"Tparams": attrs["dtype"], "Tindices": attrs["Tindices"], "Taxis": DType("int32")}
    return [emit("GatherV2", [value, indices, axis], outputs, batch_dims=batch_dims, **types)]


def _gather_nd(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
    attrs = emit.like.attrs
    types = {"Tparams": attrs["dtype"], "Tindices": attrs["Tindices"]}
    return [emit("GatherNd", [emit.value(variable), *inputs], emit.like.outputs, **types)]


def _shape(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
    value = emit.value(variable)
    attrs = {"T": emit.type_of(value).dtype, "out_type": emit.like.attrs["out_type"]}
    return [emit("Shape", [value], emit.like.outputs, **attrs)]


def _scatter(op: str, *, nd: bool) -> Callable[[Emit, str, list[Ref]], Sequence[Ref]]:
    def apply(emit: Emit, variable: str, inputs: list[Ref]) -> Sequence[Ref]:
        value, (indices, updates) = emit.value(variable), inputs
        kind, index = emit.type_of(value), emit.type_of(indices)
        if not nd:
            last = emit.constant(-1, tf.int32)
            shape = index.shape if index.shape == Shape.unknown else Shape((*index.shape, 1))
            types = {"T": index.dtype, "Tdim": DType("int32")}
            indices = emit("ExpandDims", [indices, last], [TensorType(index.dtype, shape)], **types)
        types = {"T": kind.dtype, "Tindices": index.dtype}
        emit.write(variable, emit(op, [value, indices, updates], [kind], **types))
        return []

    return apply


def _by_rows(emit: Emit) -> bool:
    """Whether there is a row for each index, not one number for all."""
    return emit.type_of(emit.like.inputs[-1]).shape != Shape()


_SCATTERED = ("Update", "Add", "Sub", "Min", "Max")

RULES = MappingProxyType(
    {
        "ReadVariableOp": Rule(_read),
        "AssignVariableOp": Rule(_assign),
        "AssignAddVariableOp": Rule(_arithmetic("AddV2")),
        "AssignSubVariableOp": Rule(_arithmetic("Sub")),
        "ResourceGather": Rule(_gather),
        "ResourceGatherNd": Rule(_gather_nd),
        "VariableShape": Rule(_shape),
        **{f"ResourceScatterNd{kind}": Rule(_scatter(f"TensorScatter{kind}", nd=True)) for kind in _SCATTERED},
        **{f"ResourceScatter{kind}": Rule(_scatter(f"TensorScatter{kind}", nd=False), _by_rows) for kind in _SCATTERED},
    }
)


def scratch_call(emit: Emit, inputs: Sequence[Ref | None], handles: Mapping[int, str]) -> bool:
    """Wraps the operation in a function with scratch variables; whether it also has effects that leave the step.

    Before:  While(h, x) that reads and writes the variable behind h
    After:   w2, y = PartitionedCall(w, x);  Write(w2)      f(w, x): h = scratch; h.assign(w); While(h, x); h.read()
    """
    translation, like = emit.translation, emit.like
    variables = list(dict.fromkeys(handles.values()))
    written = [key for key in variables if may_write(like, key, handles, translation.calls)]
    values = [emit.value(key) for key in variables]
    others = [ref for ref in inputs if ref is not None]
    kinds = {key: emit.type_of(value) for key, value in zip(variables, values, strict=True)}
    kinds |= {f"input {index}": emit.type_of(ref) for index, ref in enumerate(others)}
    outputs = [*like.outputs, *(kinds[key] for key in written)]
    name = translation.call_names.unused(f"{like.name}/scratch", translation.calls)
    translation.calls[name] = _scratch_body(like, inputs, handles, written, kinds)
    effect = has_effects(like, translation.calls)
    types = {"Tin": tuple(kind.dtype for kind in kinds.values()), "Tout": tuple(kind.dtype for kind in outputs)}
    call = emit("StatefulPartitionedCall", [*values, *others], outputs, f=Function(name), **types)
    if effect:
        translation.nodes[call.node] = translation.nodes[call.node].with_(stateful=True)
    for index in range(len(like.outputs)):
        translation.tensors[like.name, index] = Ref(call.node, index)
    for index, key in enumerate(written, len(like.outputs)):
        emit.write(key, Ref(call.node, index))
    return effect


def has_effects(node: Node, calls: Mapping[str, Graph]) -> bool:
    """Whether running the node does something outside the step: prints, writes a summary, calls Python."""
    if node.op in LEAVES_THE_STEP:
        return True
    bodies = called([Graph.of([node])], calls).values()
    return any(inner.op in LEAVES_THE_STEP for body in bodies for inner in body)


def may_write(node: Node, variable: str, handles: Mapping[int, str], calls: Mapping[str, Graph]) -> bool:
    """Whether an operation may write a variable.

    Args:
      handles: the variables that it takes by the position of their handle.
    """
    return _writes(node, [position for position, key in handles.items() if key == variable], calls)


def _writes(node: Node, positions: Sequence[int], calls: Mapping[str, Graph]) -> bool:
    """Whether the operation may write the variable at these inputs."""
    if node.op in READS:
        return False
    if node.op not in CALLING:
        return True
    shift = 1 if node.op in BRANCHES else 0
    return any(_body_writes(calls, name, at - shift) for name in functions_of(node).values() for at in positions)


def _body_writes(calls: Mapping[str, Graph], name: str, position: int) -> bool:
    if name not in calls:
        return True
    aliases = {Ref(node.name) for node in calls[name] if node.op == "Argument" and node.attrs["index"] == position}
    for node in calls[name]:
        positions = [index for index, ref in enumerate(node.inputs) if ref in aliases]
        if positions and node.op == "Identity":
            aliases.add(Ref(node.name))
        elif positions and _writes(node, positions, calls):
            return True
    return False


def _scratch_body(
    node: Node,
    inputs: Sequence[Ref | None],
    handles: Mapping[int, str],
    written: Sequence[str],
    kinds: dict[str, TensorType],
) -> Graph:
    """The body of a scratch call.

    Arguments in order: the variables' values, then the operation's other inputs. Results: its outputs, then new values.
    """
    nodes: list[Node] = []
    assigns: list[str] = []
    for index, (key, kind) in enumerate(kinds.items()):
        nodes.append(Node(f"value_{index}", "Argument", attrs={"index": index}, outputs=(kind,)))
        if key not in handles.values():
            continue
        resource = TensorType(DType("resource"), Shape())
        made = {"dtype": kind.dtype, "shape": kind.shape, "shared_name": ANONYMOUS, "container": b""}
        nodes.append(Node(f"handle_{key}", "VarHandleOp", attrs=made, outputs=(resource,), stateful=True))
        refs = (Ref(f"handle_{key}"), Ref(f"value_{index}"))
        nodes.append(Node(f"assign_{key}", "AssignVariableOp", refs, attrs={"dtype": kind.dtype}, stateful=True))
        assigns.append(f"assign_{key}")
    others = iter(range(len(assigns), len(kinds)))
    taken = [
        Ref(f"handle_{handles[i]}") if ref is None else Ref(f"value_{next(others)}") for i, ref in enumerate(inputs)
    ]
    nodes.append(node.with_(name="operation", inputs=tuple(taken), control=tuple(assigns)))
    outputs = [Ref("operation", index) for index in range(len(node.outputs))]
    for key in written:
        read = Node(
            f"read_{key}",
            "ReadVariableOp",
            (Ref(f"handle_{key}"),),
            ("operation",),
            {"dtype": kinds[key].dtype},
            (kinds[key],),
            True,
        )
        nodes.append(read)
        outputs.append(Ref(read.name))
    return Graph.of(nodes, outputs, ["operation"], attrs=NOT_INLINED)
