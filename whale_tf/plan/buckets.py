"""Which gradients are reduced together: small ones share a call, large ones have their own.

Gradients become ready from the last layer to the first; a bucket is full before the next one begins, so its reduction
runs beside the rest of the backward.

    ready:     b9 w9 b8 w8 b7 w7 …          bucket:  (b9 w9 b8 w8) (b7 w7 …)

Within a process, GPUs reduce a bucket by a collective, which uses the links between all of them at once; a collective
has no member that is not there, or is there twice. Collectives run in the order of the buckets on every device.

Source: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whale_tf.ir.graph import Graph
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import Roles

BUCKET_BYTES = 2 << 20
COLLECTIVE_KINDS = frozenset({"GPU"})  # CPU devices of a process share its memory: their owner adds without copies
COLLECTIVE_TYPES = frozenset({"bfloat16", "float16", "float32", "float64"})


def fill_buckets(
    graph: Graph, roles: Roles, layout: Layout, seat_of: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[str, ...], ...]:
    """The dense gradients that several replicas contribute to, in the order in which they become ready.

    Those of one bucket have the same element type and the same seats, and are of the same round.
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
    for marker in sorted(markers, key=lambda marker: (roles.phase[marker.name], position[marker.inputs[0].node])):
        key = (roles.phase[marker.name], seat_of[marker.name], marker.outputs[0].dtype)
        wanted = tensor_bytes(marker.outputs[0])
        if key not in filling or size[key] + wanted > BUCKET_BYTES:
            filling[key], size[key] = [], 0
            buckets.append(filling[key])
        filling[key].append(marker.name)
        size[key] += wanted
    return tuple(map(tuple, buckets))


def choose_collectives(
    graph: Graph,
    buckets: Sequence[Sequence[str]],
    layout: Layout,
    stage_of: Mapping[str, int],
    seat_of: Mapping[str, tuple[int, ...]],
) -> tuple[int, ...]:
    """The buckets, by index, that a process's devices reduce by a collective: as many sums as there are groups."""
    found = []
    for index, bucket in enumerate(buckets):
        markers = [graph[name] for name in bucket]
        stages = {stage_of.get(marker.inputs[0].node, 0) for marker in markers}
        whole = all(marker.outputs[0].shape.known and tensor_bytes(marker.outputs[0]) for marker in markers)
        if len(stages) == 1 and whole and markers[0].outputs[0].dtype in COLLECTIVE_TYPES:
            (stage,) = stages
            if _all_may_meet(layout, stage, seat_of[bucket[0]]):
                found.append(index)
    return tuple(found)


def _all_may_meet(layout: Layout, stage: int, seats: Sequence[int]) -> bool:
    """Whether in every group of replicas the devices of a stage can run a collective, and in one there are several."""
    groups = layout.groups
    members = [[layout.device_of(replica, stage) for replica in replicas] for replicas in groups.members]
    return any(len(of_group) > 1 for of_group in members) and all(
        _may_meet(layout, of_group, layout.device_at(group, seats[groups.kind_of(group)]))
        for group, of_group in enumerate(members)
    )


def _may_meet(layout: Layout, members: Sequence[int], owner: int) -> bool:
    """Whether these devices, with the owner among them, can run a collective: each once, all in one process."""
    alike = all(layout.kind_of(device) in COLLECTIVE_KINDS for device in members)
    together = len({layout.process_of(device) for device in members}) == 1
    return alike and together and len(set(members)) == len(members) and owner in members
