"""What a node costs: floating point operations of one run, and bytes of its tensors.

Both come from static shapes; an unknown dim or rank counts as 1, so they are lower bounds there. One multiplication,
addition, comparison or transcendental function is one operation. A fused multiply-add is two, as in the peak rates that
vendors publish.

The operations are in the table of kinds, whale_tf/plan/rules.py. An op that is not in it costs one operation per
output element. That is meant for elementwise ops. It also meets those that call functions (`While`, `If`,
`PartitionedCall`): a Graph does not hold the functions' bodies, so their work is underestimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from whale_tf.errors import InternalError
from whale_tf.ir.graph import Graph, Node, TensorType
from whale_tf.plan.rules import KINDS
from whale_tf.plan.work import elements, one_per_output

__all__ = ["BYTES_PER_ELEMENT", "elements", "flops", "graph_flops", "tensor_bytes"]


def flops(graph: Graph, node: Node) -> float:
    """Floating point operations of one run of a node of the graph."""
    kind = KINDS.get(node.op)
    work = one_per_output if kind is None else kind.work
    return work(node, [graph.type_of(ref) for ref in node.inputs])


def graph_flops(graph: Graph, names: Iterable[str]) -> float:
    """Floating point operations of one run of each named node."""
    return math.fsum(flops(graph, graph[name]) for name in names)


def tensor_bytes(kind: TensorType) -> int:
    """Bytes of a tensor in memory.

    A handle (`resource`, `variant`) counts as nothing, because what it names is counted where it lives; a string counts
    without its characters, which no static shape tells.

    Raises:
      InternalError: the element type is not in BYTES_PER_ELEMENT.
    """
    size_bytes = BYTES_PER_ELEMENT.get(kind.dtype)
    if size_bytes is None:
        raise InternalError(
            f"the size of element type '{kind.dtype}' is not known",
            way_out="Add it to BYTES_PER_ELEMENT in whale_tf/plan/cost.py.",
        )
    return size_bytes * elements(kind.shape)


BYTES_PER_ELEMENT: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("resource", "variant"), 0),
        **dict.fromkeys(("bool", "int8", "uint8", "qint8", "quint8"), 1),
        # TensorFlow keeps one element of less than a byte in a byte of its own.
        **dict.fromkeys(("int2", "uint2", "int4", "uint4", "float4_e2m1fn"), 1),
        **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
        "float8_e4m3b11fnuz": 1,
        **dict.fromkeys(("int16", "uint16", "qint16", "quint16", "float16", "bfloat16"), 2),
        **dict.fromkeys(("int32", "uint32", "qint32", "float32"), 4),
        **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
        "complex128": 16,
        "string": 24,  # one tstring, which points to its characters
    }
)
