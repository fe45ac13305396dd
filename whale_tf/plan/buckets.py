"""Which gradients are reduced together: small ones share a call, large ones have their own.

Gradients become ready from the last layer to the first; a bucket is full before the next one begins, so its reduction
runs beside the rest of the backward.

    ready:     b9 w9 b8 w8 b7 w7 …          bucket:  (b9 w9 b8 w8) (b7 w7 …)

Source: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Mapping

from whale_tf.ir.graph import Graph
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import Roles

BUCKET_BYTES = 2 << 20


def fill_buckets(
    graph: Graph, roles: Roles, layout: Layout, device_of: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[str, ...], ...]:
    """The dense gradients that several replicas contribute to, in the order in which they become ready.

    Those of one bucket have the same element type and the same devices, and are of the same round.
    """
    if layout.replicas == 1:
        return ()
    position = {name: index for index, name in enumerate(graph.nodes)}
    markers = [
        node
        for node in graph
        if node.name in roles.markers and node.attrs["part"] == b"dense" and roles.per_micro_batch(node.inputs[0].node)
    ]
    buckets: list[list[str]] = []
    filling: dict[tuple[object, ...], list[str]] = {}
    size: dict[tuple[object, ...], int] = {}
    for marker in sorted(markers, key=lambda marker: position[marker.inputs[0].node]):
        key = (roles.phase[marker.name], device_of[marker.name], marker.outputs[0].dtype)
        wanted = tensor_bytes(marker.outputs[0])
        if key not in filling or size[key] + wanted > BUCKET_BYTES:
            filling[key], size[key] = [], 0
            buckets.append(filling[key])
        filling[key].append(marker.name)
        size[key] += wanted
    return tuple(map(tuple, buckets))
