"""The program of a step as a file that TensorBoard's graph page opens: a scope is a replica's stage, a node an action.

    replica_0/stage_0/0F0               one action; its stage function is in the graph's library
    replica_0/stage_0/transfers/…       what is sent and received
    replica_0/stage_0/begin/…           what is read and cut before the first action
    replica_0/stage_0/update/…          what runs once per step
    inputs/…  outside/…  variables/…    what the step takes
    whale_tf/…                          who calls and whom, between processes

A device that runs several stages has `replica_0/device_1/` for what is no action; one that runs none has `device_1/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2, node_def_pb2
from tensorflow.python.framework import function_def_to_graph  # private; tried with 2.21

from whale_tf.ir.graph import Node, Shape
from whale_tf.plan.grid import Action
from whale_tf.plan.layout import Layout
from whale_tf.run.compiled import Compiled

FORBIDDEN = re.compile(r"[^A-Za-z0-9_.\\/>-]")
PARTS = {"Send": "transfers", "Recv": "transfers", "Read": "begin", "Slice": "begin"}


def save_graph(compiled: Compiled, path: str | os.PathLike[str]) -> None:
    """Writes an event file into a folder: `tensorboard --logdir <path>` shows it."""
    writer = tf.summary.create_file_writer(os.fspath(path))
    with writer.as_default(step=0):
        tf.summary.graph(program_graph(compiled))
    writer.close()


def program_graph(compiled: Compiled) -> graph_pb2.GraphDef:
    """The main function as a graph, with the functions it calls.

    A receive waits for its send here, though the rendezvous that joins them when the step runs is no edge: the page
    would show devices that have nothing to do with each other.
    """
    main = compiled.lowered.main
    graph, _ = function_def_to_graph.function_def_to_graph_def(main)
    names = dict(zip((argument.name for argument in main.signature.input_arg), _argument_names(compiled), strict=True))
    names |= _node_names(compiled)
    names = {proto.name: _allowed(proto.name) for proto in graph.node} | names
    for proto in graph.node:
        node = compiled.program.main.nodes.get(proto.name)
        if node is not None:
            _describe(proto, node)
        proto.name = names[proto.name]
        proto.input[:] = [_renamed(text, names) for text in proto.input]
    graph.library.function.extend(compiled.lowered.functions)
    return graph


def _argument_names(compiled: Compiled) -> Iterator[str]:
    """For each argument of the main function a name that says what it is."""
    for op, scope in (("Take", "inputs"), ("Outside", "outside")):
        yield from (f"{scope}/{node.name}" for node in compiled.program.main if node.op == op)
    yield from (f"variables/{_allowed(name)}" for name in compiled.lowered.variables)


def _node_names(compiled: Compiled) -> dict[str, str]:
    """For each node of the main graph its name with scopes; a constant is where it is used."""
    main, layout = compiled.program.main, compiled.plan.layout
    scopes = {device: _scope(layout, device) for device in range(len(layout.devices))}
    names: dict[str, str] = {}
    parts: dict[str, str] = {}
    for node in reversed(list(main)):
        if node.op == "Call":
            action, phase = Action.parse(node.attrs["action"].decode()), node.attrs["phase"]
            scope = f"replica_{node.attrs['replica']}/{_stage(layout, action.stage)}"
            names[node.name] = f"{scope}/{action}" + (f"p{phase}" if phase else "")
            continue
        used = next((parts[user] for user in main.users[node.name] if user in parts), "begin")
        parts[node.name] = PARTS.get(node.op, used if node.op == "Const" else "update")
        names[node.name] = f"{scopes[node.device]}/{parts[node.name]}/{_allowed(node.name)}"
    return names


def _scope(layout: Layout, device: int) -> str:
    for replica, meshes in enumerate(layout.meshes):
        stages = [stage for stage, members in enumerate(meshes) if device in members]
        if len(stages) == 1:
            return f"replica_{replica}/{_stage(layout, stages[0])}"
        if stages:
            return f"replica_{replica}/device_{device}"
    return f"device_{device}"


def _stage(layout: Layout, stage: int) -> str:
    name = layout.stages[stage]
    return f"stage_{stage}_{_allowed(name)}" if name and name != str(stage) else f"stage_{stage}"


def _describe(proto: node_def_pb2.NodeDef, node: Node) -> None:
    """Adds what the page shows beside a node: the shapes on its edges, and from where a value comes."""
    proto.attr.pop("_class", None)  # names other nodes by their old names
    if node.op == "Recv" and node.twin:
        proto.input.append(f"^{node.twin}")
    if node.outputs:
        shapes = attr_value_pb2.AttrValue.ListValue()
        for kind in node.outputs:
            _write_shape(shapes, kind.shape)
        proto.attr["_output_shapes"].list.CopyFrom(shapes)


def _write_shape(shapes: attr_value_pb2.AttrValue.ListValue, shape: Shape) -> None:
    proto = shapes.shape.add(unknown_rank=shape == Shape.unknown)
    sizes: Iterable[int | None] = () if shape == Shape.unknown else shape
    for size in sizes:
        proto.dim.add(size=-1 if size is None else size)


def _renamed(text: str, names: dict[str, str]) -> str:
    control, name, index = re.fullmatch(r"(\^?)([^:]*)(:\d+)?", text).groups(default="")  # type: ignore[union-attr]
    return control + names[name] + index


def _allowed(name: str) -> str:
    return FORBIDDEN.sub("_", name)
