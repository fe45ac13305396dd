"""Lays two traces of a step side by side: what is another at another size of the batch, and that nothing else is.

What constants and shapes determine may be written in other nodes at another size (`tf.ones_like` is a Const or a Fill,
by the number of elements); all other nodes must be the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whale_tf.capture.fold import fold
from whale_tf.ir.functions import CALLS, functions_of
from whale_tf.ir.graph import Function, Graph, Node, Ref, Shape
from whale_tf.ir.sizes import Array, Shapes, Sizes

Bodies = Mapping[str, Graph]
Known = Mapping[Ref, Array]
OF_A_TRACE = frozenset({"token", "seed", "seed2"})  # TensorFlow numbers them anew in each trace


class UnlikeError(Exception):
    """Two traces are different programs.

    Attributes:
      nodes: names of nodes that only one of them has, or that differ.
      why: in what.
    """

    def __init__(self, nodes: tuple[str, ...], why: str) -> None:
        super().__init__(why)
        self.nodes, self.why = nodes, why


def alone(graph: Graph, bodies: Bodies, batch: int) -> Sizes:
    """A step that was traced at one size."""
    return pair(graph, bodies, graph, bodies, batch, batch)


def pair(
    graph: Graph,
    bodies: Bodies,
    other: Graph,
    other_bodies: Bodies,
    batch: int,
    size: int,
    known: tuple[Known, Known] = ({}, {}),
) -> Sizes:
    """A step at every size, from its traces at two.

    Args:
      graph, bodies: at the global batch: the step, and what its nodes call.
      other, other_bodies: at `size` examples.
      known: the values of arguments at both.
    Raises:
      UnlikeError: the traces are different programs.
    """
    values = fold(graph, known[0])
    values_there = values if other is graph else fold(other, known[1])
    _keep_common(graph, other, values, values_there)
    shapes: dict[Ref, Shape] = {}
    operands: dict[tuple[str, int], Array] = {}
    attributes: dict[tuple[str, str], Shapes] = {}
    called: dict[str, Sizes] = {}
    fixed: set[str] = set()
    _refuse_other_nodes(graph, other, values, values_there)
    for node in graph:
        there = other.nodes.get(node.name)
        if node.outputs and Ref(node.name) in values:
            _known_shapes(node, there, shapes)
            continue
        assert there is not None  # _refuse_other_nodes
        shapes |= {
            Ref(node.name, index): kind.shape
            for index, kind in enumerate(there.outputs[: len(node.outputs)])
            if kind.shape != node.outputs[index].shape
        }
        if len(node.inputs) != len(there.inputs) or len(node.outputs) != len(there.outputs):
            fixed.add(node.name)
            continue
        for position, (ref, ref_there) in enumerate(zip(node.inputs, there.inputs, strict=True)):
            if ref in values:
                if ref_there not in values_there:
                    raise UnlikeError((node.name,), f"'{node.name}' takes a constant at {batch} examples only")
                if not _equal(values[ref], values_there[ref_there]):
                    operands[node.name, position] = values_there[ref_there]
                    if values[ref].shape != values_there[ref_there].shape:
                        shapes[ref] = Shape(values_there[ref_there].shape)
            elif ref != ref_there:
                raise UnlikeError(
                    (node.name,), f"'{node.name}' takes '{ref}' at {batch} examples and '{ref_there}' at {size}"
                )
        if not _attributes(node, there, attributes):
            fixed.add(node.name)
        for name in functions_of(node).values():
            if name not in called and name in bodies and name in other_bodies:
                handed = _handed(node, bodies[name], values, there, other_bodies[name], values_there)
                called[name] = pair(bodies[name], bodies, other_bodies[name], other_bodies, batch, size, handed)
    return Sizes(graph, batch, size, shapes, values, operands, attributes, called, frozenset(fixed))


def _handed(
    node: Node, body: Graph, values: Known, there: Node, body_there: Graph, values_there: Known
) -> tuple[Known, Known]:
    """What a call hands to its function, which no other node calls, of known value at both sizes."""
    here, other = dict[Ref, Array](), dict[Ref, Array]()
    if node.op not in CALLS:
        return here, other
    arguments, arguments_there = _arguments(body), _arguments(body_there)
    for position, (ref, ref_there) in enumerate(zip(node.inputs, there.inputs, strict=True)):
        value, value_there = values.get(ref), values_there.get(ref_there)
        if value is not None and value_there is not None and value.shape == value_there.shape:
            here[arguments[position]], other[arguments_there[position]] = value, value_there
    return here, other


def _arguments(body: Graph) -> Mapping[int, Ref]:
    return {node.attrs["index"]: Ref(node.name) for node in body if node.op == "Argument"}


def _keep_common(graph: Graph, other: Graph, values: dict[Ref, Array], values_there: dict[Ref, Array]) -> None:
    """Forgets the values of a node that both graphs have and only one knows (it was too large to compute there)."""
    for ref in values.keys() ^ values_there.keys():
        if ref.node in graph and ref.node in other and graph[ref.node].op == other[ref.node].op:
            values.pop(ref, None)
            values_there.pop(ref, None)


def _refuse_other_nodes(
    graph: Graph, other: Graph, values: Mapping[Ref, Array], values_there: Mapping[Ref, Array]
) -> None:
    here = {node.name: node.op for node in graph if not node.outputs or Ref(node.name) not in values}
    there = {node.name: node.op for node in other if not node.outputs or Ref(node.name) not in values_there}
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing or len(graph.outputs) != len(other.outputs):
        shown = ", ".join(f"'{name}' ({here.get(name) or there.get(name)})" for name in differing[:3])
        raise UnlikeError(tuple(differing), f"it differs in {shown or 'its outputs'}")


def _known_shapes(node: Node, there: Node | None, shapes: dict[Ref, Shape]) -> None:
    if there is not None and there.op == node.op:
        for index, (kind, kind_there) in enumerate(zip(node.outputs, there.outputs, strict=False)):
            if kind.shape != kind_there.shape:
                shapes.setdefault(Ref(node.name, index), kind_there.shape)


def _attributes(node: Node, there: Node, attributes: dict[tuple[str, str], Shapes]) -> bool:
    """Notes shapes that differ; whether nothing else does (the value of a constant is data)."""
    alike = True
    for name, value in node.attrs.items():
        other = there.attrs.get(name)
        if value == other or node.op == "Const" or isinstance(value, Function) or name in OF_A_TRACE:
            continue
        several = isinstance(value, tuple) and any(isinstance(each, Shape) for each in value)
        if several or isinstance(value, Shape):
            attributes[node.name, name] = there.attrs[name]
        elif not (isinstance(value, tuple) and any(isinstance(each, Function) for each in value)):
            alike = False
    return alike


def _equal(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.size > 1 and not any(a.strides) and not any(b.strides):
        a, b = a[(0,) * a.ndim], b[(0,) * b.ndim]
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
