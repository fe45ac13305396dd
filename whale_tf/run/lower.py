"""Program → TensorFlow FunctionDefs: one for the main graph, one for each stage function."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context  # private; tried with 2.21
from tensorflow.python.framework import op_def_registry  # private; tried with 2.21

from whale_tf.ir.functions import NOT_INLINED, called
from whale_tf.ir.graph import ALIAS_OPS, DType, Function, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names
from whale_tf.rewrite.check_transfers import meeting_of, meetings
from whale_tf.rewrite.program import BETWEEN_GROUPS, COLLECTIVES, OF_MEMBERS, Program
from whale_tf.run.attributes import enum_of, set_attr, set_attrs, set_shape
from whale_tf.run.collectives import Expansion, Group
from whale_tf.run.communicator import NOT_NUMBERED, make_communicator

HOST = "/job:localhost/replica:0/task:0/device:CPU:0"
FORBIDDEN = re.compile(r"[^A-Za-z0-9_.>-]")


@dataclass(frozen=True)
class Lowered:
    """FunctionDefs ready to be registered.

    Attributes:
      main: takes the step's arguments, the tensors from outside, then the variables' handles.
      functions: what it calls, callees first.
      arguments: the indices of the step's arguments that main takes.
      outside: the same for tensors from outside.
      variables: the names of the variables whose handles it takes.
      config: how TensorFlow is to optimize it, a serialized ConfigProto.
      groups: the devices that reduce together, by the key of their group; they are to be formed before it runs.
    """

    main: function_pb2.FunctionDef
    functions: tuple[function_pb2.FunctionDef, ...]
    arguments: tuple[int, ...]
    outside: tuple[int, ...]
    variables: tuple[str, ...]
    config: bytes
    groups: Mapping[int, Group] = field(default_factory=dict)


def lower(
    program: Program,
    calls: Mapping[str, Graph],
    prefix: str,
    label: str = "",
    instances: Mapping[int, int] = MappingProxyType({}),
) -> Lowered:
    """Lowers a program: of several processes, the part of one.

    Args:
      calls: functions that the program's nodes refer to, by the name they use, with those that these refer to.
      prefix: makes the functions' names unique in the process.
      label: how the labels of what crosses processes begin; the same in all of them.
      instances: of TensorFlow's own collectives, by the number of their Reduce: each is used once in this process.
    """
    needed = called([program.main, *(function.graph for function in program.functions.values())], calls)
    names, renamed = Names(), dict[str, str]()
    for name in needed:
        legal = FORBIDDEN.sub("_", f"{prefix}_call_{name}")
        renamed[name] = names.unused(legal, renamed.values())
    bodies = [_called_function(renamed[name], graph, renamed) for name, graph in needed.items()]
    attrs = {} if program.inline else NOT_INLINED
    for name, function in program.functions.items():
        bodies.append(_stage_function(_named(prefix, name), function.graph, renamed, attrs, f"{label}, {name}"))
    return _Main(program, prefix, renamed, label, instances).lower(bodies)


def optimize_once() -> bytes:
    """A serialized ConfigProto: TensorFlow's own for functions, with one round of Grappler in the place of two.

    The second round finds little, and takes as long as the first (benchmarks/build_time). Its memory optimizer is
    off: it may recompute by itself, and knows no sizes behind a Recv, which it says in thousands of lines.
    """
    config = config_pb2.ConfigProto.FromString(context.context().function_call_options.config_proto_serialized)
    options = config.graph_options.rewrite_options
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    return bytes(config.SerializeToString(deterministic=True))


def _named(prefix: str, name: str) -> str:
    return f"{prefix}_{name.replace('/', '_')}"


def _stage_function(
    name: str, graph: Graph, renamed: Mapping[str, str], attrs: Mapping[str, Any], label: str
) -> function_pb2.FunctionDef:
    """A function whose Argument nodes, by index, are its arguments; what takes a resource runs on the host.

    What makes its results is a control output as its effects are: where a call is inlined, what waits for the call
    waits for its control outputs.
    """
    writer = _Writer(name, renamed)
    arguments = _add_arguments(writer, graph)
    handles = {node.name for node in arguments if node.outputs[0].dtype == "resource"}
    for node in graph:
        if node.op in OF_MEMBERS:
            labelled = {**node.attrs, "label": f"{label}, {node.name}".encode()}
            writer.node(node, "", op=f"Whale{node.op}", attrs=labelled)
        elif node.op != "Argument":
            host = any(ref.node in handles for ref in node.inputs)
            writer.node(node, HOST if host else "")
    proto = writer.finish(graph, attrs)
    for maker in dict.fromkeys(text.partition(":")[0] for text in proto.ret.values()):
        if maker in writer.ops and maker not in graph.effects:
            writer.control(maker)
    return proto


def _called_function(name: str, graph: Graph, renamed: Mapping[str, str]) -> function_pb2.FunctionDef:
    """The same for a body: it runs where its caller does, and TensorFlow is told the shapes of its arguments."""
    writer = _Writer(name, renamed)
    arguments = _add_arguments(writer, graph)
    for node in graph:
        if node.op != "Argument":
            writer.node(node, "")
    proto = writer.finish(graph, graph.attrs)
    proto.signature.is_stateful = any(node.stateful for node in graph)
    for position, kind in enumerate(node.outputs[0] for node in arguments):
        if kind.dtype != "resource" and kind.shape != Shape.unknown:
            set_shape(proto.arg_attr[position].attr["_output_shapes"].list.shape.add(), kind.shape)
    return proto


def _add_arguments(writer: _Writer, graph: Graph) -> list[Node]:
    arguments = sorted((node for node in graph if node.op == "Argument"), key=lambda node: node.attrs["index"])
    names = Names()
    for position, node in enumerate(arguments):
        writer.argument(Ref(node.name), node.outputs[0], names.unused(f"a{position}", graph.nodes))
    return arguments


class _Writer:
    """One FunctionDef under construction."""

    def __init__(self, name: str, renamed: Mapping[str, str]) -> None:
        self.proto = function_pb2.FunctionDef()
        self.proto.signature.name = name
        self.proto.signature.is_stateful = True
        self.renamed = renamed
        self.arguments: dict[str, str] = {}
        self.ops: dict[str, Node] = {}
        self.aliases: dict[str, Ref] = {}
        self.parts: dict[Ref, Ref] = {}

    def argument(self, ref: Ref, kind: TensorType, name: str) -> None:
        """Adds an argument that stands for a tensor."""
        self.proto.signature.input_arg.add(name=name, type=enum_of(kind.dtype))
        self.arguments[ref.node] = name

    def node(
        self,
        node: Node,
        device: str,
        *,
        op: str = "",
        attrs: Mapping[str, Any] | None = None,
        extra: Sequence[str] = (),
    ) -> Any:
        """Adds a NodeDef; `extra` inputs come first. A Write or Gradient is only another name for what it takes."""
        if node.op in ALIAS_OPS:
            self.aliases[node.name] = node.inputs[0]
            return None
        kind = op or node.op
        proto = self.proto.node_def.add(name=node.name, op=kind, device=device)
        proto.input.extend(extra)
        proto.input.extend(self.name_of(ref) for ref in node.inputs)
        proto.input.extend(f"^{name}" for name in dict.fromkeys(node.control))
        set_attrs(proto, kind, dict(node.attrs if attrs is None else attrs), self.renamed)
        self.ops[node.name] = node if not op else node.with_(op=op, attrs=attrs or {})
        return proto

    def name_of(self, ref: Ref) -> str:
        """A tensor as FunctionDefs name it."""
        while ref.node in self.aliases:
            ref = self.aliases[ref.node]
        ref = self.parts.get(ref, ref)
        if ref.node in self.arguments:
            return self.arguments[ref.node]
        return f"{ref.node}:{output_name(self.ops[ref.node], ref.index)}"

    def finish(self, graph: Graph, attrs: Mapping[str, Any]) -> function_pb2.FunctionDef:
        """Adds results, effects, and the function's own attributes."""
        for index, ref in enumerate(graph.outputs):
            self.proto.signature.output_arg.add(name=f"r{index}", type=enum_of(graph.type_of(ref).dtype))
            self.proto.ret[f"r{index}"] = self.name_of(ref)
        for name in graph.effects:
            self.control(name)
        for name, value in attrs.items():
            set_attr(self.proto.attr[name], value, "", {}, self.renamed)
        return self.proto

    def control(self, name: str) -> None:
        """Makes a node run even if nothing takes what it gives."""
        self.proto.signature.control_output.append(f"c{len(self.proto.control_ret)}")
        self.proto.control_ret[f"c{len(self.proto.control_ret)}"] = name


class _Main:
    """The lowering of a program's main graph."""

    def __init__(
        self, program: Program, prefix: str, renamed: Mapping[str, str], label: str, instances: Mapping[int, int]
    ) -> None:
        self.program = program
        self.prefix = prefix
        self.label = label
        self.instances = instances
        self.config = optimize_once()
        self.groups: dict[int, Group] = {}
        self.constants: dict[tuple[DType, int | tuple[int, ...], str], str] = {}
        self.meshes: dict[tuple[int, ...], int] = {}
        self.places: dict[tuple[int, ...] | None, tuple[int, ...]] = {}
        self.peers = {meeting: [node.name for node in nodes] for meeting, nodes in meetings(program.main).items()}
        self.writer = _Writer(f"{prefix}_main", renamed)

    def lower(self, bodies: list[function_pb2.FunctionDef]) -> Lowered:
        main, writer = self.program.main, self.writer
        taken = [node for node in main if node.op == "Take"]
        outside = [node for node in main if node.op == "Outside"]
        variables = list(
            dict.fromkeys(node.attrs["variable"].decode() for node in main if node.op in ("Read", "Assign"))
        )
        for position, node in enumerate([*taken, *outside]):
            writer.argument(Ref(node.name), node.outputs[0], f"a{position}")
        handle = TensorType(DType("resource"), Shape())
        self.handles = {name: f"v{position}" for position, name in enumerate(variables)}
        for name, argument in self.handles.items():
            writer.argument(Ref(f"handle of {name}"), handle, argument)
        for node in main:
            if node.op not in ("Take", "Outside"):
                self._node(node)
        proto = writer.finish(main, {})
        for node in main:
            # Others wait for these, whether or not something is done with them here.
            if node.op in COLLECTIVES | {"Send"} or self._meets_others(node):
                writer.control(node.name)
        indices = [tuple(node.attrs["index"] for node in nodes) for nodes in (taken, outside)]
        return Lowered(proto, tuple(bodies), indices[0], indices[1], tuple(variables), self.config, self.groups)

    def _meets_others(self, node: Node) -> bool:
        """Whether a call is that of a member of a mesh."""
        return node.op == "Call" and self.program.functions[node.attrs["function"].decode()].whole is not None

    def _node(self, node: Node) -> None:
        device = self.program.devices[node.device]
        if node.op == "Call":
            function = Function(_named(self.prefix, node.attrs["function"].decode()))
            kinds = [self.program.main.type_of(ref).dtype for ref in node.inputs]
            attrs = {
                "Tin": tuple(kinds),
                "Tout": tuple(kind.dtype for kind in node.outputs),
                "f": function,
                "config_proto": self.config,
            }
            self.writer.node(node, device, op="StatefulPartitionedCall", attrs=attrs)
        elif node.op in ("Send", "Recv"):
            (self._message if self.program.crosses(node) else self._transfer)(node, device)
        elif node.op in BETWEEN_GROUPS:
            device = _beside(device)
            attrs = {**node.attrs, "label": f"{self.label}, {node.attrs['label'].decode()}".encode()}
            place = self._place(node.attrs["ranks"], device)
            self.writer.node(node, device, op=f"Whale{node.op}", attrs=attrs, extra=[place])
        elif node.op == "Reduce":
            self._collective(node, device)
        elif node.op == "Place":
            self.writer.node(node, device, op="Const", attrs={"dtype": DType("int64"), "value": self._member(node)})
        elif node.op == "Read":
            attrs = {"dtype": node.outputs[0].dtype}
            self.writer.node(node, device, op="ReadVariableOp", attrs=attrs, extra=[self._handle(node)])
        elif node.op == "Assign":
            attrs = {"dtype": node.attrs["dtype"]}
            self.writer.node(node, device, op="AssignVariableOp", attrs=attrs, extra=[self._handle(node)])
        else:
            self.writer.node(node, device)

    def _collective(self, node: Node, device: str) -> None:
        devices = tuple(self.program.devices[index] for index in node.attrs["devices"])
        group = Group(devices)
        self.groups.setdefault(group.key, group)
        expansion = Expansion(node, group, self.instances[node.attrs["id"]], self.peers[meeting_of(node)])
        for each in expansion.nodes:
            self.writer.node(each, device)
        self.writer.parts |= expansion.parts

    def _handle(self, node: Node) -> str:
        return self.handles[node.attrs["variable"].decode()]

    def _transfer(self, node: Node, device: str) -> None:
        other = self.program.devices[node.attrs["to" if node.op == "Send" else "source"]]
        ends = (device, other) if node.op == "Send" else (other, device)
        attrs = {
            "T" if node.op == "Send" else "tensor_type": node.attrs["T"],
            "tensor_name": node.attrs["key"],
            "send_device": ends[0].encode(),
            "recv_device": ends[1].encode(),
            "send_device_incarnation": 1,
            "client_terminated": False,
        }
        self.writer.node(node, device, op=f"_{node.op}", attrs=attrs)

    def _message(self, node: Node, device: str) -> None:
        """A transfer to or from another process."""
        label, device = f"{self.label}, {node.attrs['key'].decode()}".encode(), _beside(device)
        peer = self.program.processes[node.attrs["to" if node.op == "Send" else "source"]]
        extra = [self._place(None, device), self._constant(DType("int32"), peer, device)]
        if node.op == "Send":
            attrs = {"T": node.attrs["T"], "label": label, "detached": True}
            self.writer.node(node, device, op="WhaleSend", attrs=attrs, extra=extra)
        else:
            kind = node.outputs[0]
            attrs = {"dtype": kind.dtype, "shape": kind.shape, "label": label}
            self.writer.node(node, device, op="WhaleReceive", attrs=attrs, extra=extra)

    def _member(self, node: Node) -> tuple[int, ...]:
        """The place of a mesh's member: among processes, or in the memory of this one."""
        mesh, processes = node.attrs["mesh"], self.program.processes
        if mesh not in self.meshes:
            owners = [processes[device] if processes else 0 for device in mesh]
            apart = len({*owners}) > 1
            made = make_communicator(owners) if apart else make_communicator(range(len(mesh)), f"mesh {mesh}")
            self.meshes[mesh] = made.handle
        return self.meshes[mesh], node.attrs["member"], node.attrs["number"]

    def _place(self, ranks: tuple[int, ...] | None, device: str) -> str:
        """This process among `ranks`, or all, as an operation takes it; labels tell its calls apart, not numbers."""
        if ranks not in self.places:
            members = make_communicator(ranks)
            self.places[ranks] = members.handle, members.ranks.index(self.program.present[0]), NOT_NUMBERED
        return self._constant(DType("int64"), self.places[ranks], device)

    def _constant(self, dtype: DType, value: int | tuple[int, ...], device: str) -> str:
        """A constant of the host as an input, one for each device that takes it."""
        key = (dtype, value, device)
        if key not in self.constants:
            name, shape = (
                f"whale_tf/constant{len(self.constants)}",
                Shape((len(value),) if isinstance(value, tuple) else ()),
            )
            attrs = {"dtype": dtype, "value": value}
            self.writer.node(Node(name, "Const", attrs=attrs, outputs=(TensorType(dtype, shape),)), device)
            self.constants[key] = f"{name}:output:0"
        return self.constants[key]


def _beside(device: str) -> str:
    """The device for what MPI reads and writes: of a GPU the host, where TensorFlow copies it to and from."""
    return device if "/device:CPU:" in device else HOST


def output_name(node: Node, index: int) -> str:
    """`name:position` of an output, as the op's definition names it."""
    start = 0
    for name, length in _outputs_of(node):
        if index < start + length:
            return f"{name}:{index - start}"
        start += length
    raise IndexError(f"'{node.name}' ({node.op}) has no output {index}")


def _outputs_of(node: Node) -> Iterable[tuple[str, int]]:
    for name, number_attr, list_attr in _output_args(node.op):
        if list_attr:
            yield name, len(node.attrs[list_attr])
        else:
            yield name, node.attrs[number_attr] if number_attr else 1


@functools.cache
def _output_args(op: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((arg.name, arg.number_attr, arg.type_list_attr) for arg in op_def_registry.get(op).output_arg)
