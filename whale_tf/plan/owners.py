"""Who updates what: every variable has one owner, and what runs once per step runs where it moves the fewest bytes.

A gradient is reduced on its variable's owner, the update is computed there once, and the new value goes to all who use
the variable. So replicas cannot drift apart, and the update's work and slots are divided over them.

Replicas that have no process in common keep a copy each: their owners get the same reduced gradient and compute the
same update, since sending new values and slots to and fro would cost more than that. Only the first of these groups
runs what must not be run twice, operations with effects, and sums, whose order may differ between machines with other
numbers of cores: so the copies stay the same, bit for bit.

Source: Xu et al. 2020, Automatic Cross-Replica Sharding of Weight Update.
"""

from __future__ import annotations

from collections.abc import Mapping

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import Roles, variable_of

SUMMING = frozenset(
    {
        "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "BiasAddGrad", "Cholesky", "Cumprod", "Cumsum", "Einsum",
        "EuclideanNorm", "L2Loss", "MatMul", "Mean", "Prod", "Qr", "SegmentSum", "SegmentSumV2", "Sum", "Svd",
        "UnsortedSegmentSum",
    }
)  # fmt: skip


def assign_owners(
    graph: Graph, roles: Roles, stage_of: Mapping[str, int], layout: Layout
) -> dict[str, tuple[int, ...]]:
    """For each trained variable the devices that own it, one in each group of replicas, as indices.

    It is in the variable's stage, on the replica that owns the fewest bytes there; the largest variables choose first.
    """
    stage = owning_stages(graph, roles, stage_of)
    size = dict.fromkeys(stage, 0)
    for node in graph:
        if node.name in roles.markers:
            size[variable_of(node)] = max(size[variable_of(node)], tensor_bytes(node.outputs[0]))
    owned: dict[tuple[int, int], int] = {}
    owner: dict[str, tuple[int, ...]] = {}
    for name in sorted(size, key=lambda name: -size[name]):
        replicas = [min(group, key=lambda r: owned.get((stage[name], r), 0)) for group in layout.groups]
        for replica in replicas:
            owned[stage[name], replica] = owned.get((stage[name], replica), 0) + max(1, size[name])
        owner[name] = tuple(layout.device_of(replica, stage[name]) for replica in replicas)
    return {name: owner[name] for name in size}


def owning_stages(graph: Graph, roles: Roles, stage_of: Mapping[str, int]) -> dict[str, int]:
    """For each trained variable the stage that owns it: the earliest that contributes to its gradient."""
    stage: dict[str, int] = {}
    for node in graph:
        if node.name in roles.markers:
            source = stage_of.get(node.inputs[0].node, 0)
            stage[variable_of(node)] = min(source, stage.get(variable_of(node), source))
    return stage


def place_update(
    graph: Graph,
    roles: Roles,
    stage_of: Mapping[str, int],
    layout: Layout,
    owner: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """The devices of every operation that runs once per step: for a gradient its owner's, else its largest input's.

    There is one for each group of replicas, but only the first for what is stateful, and for sums.
    """
    device: dict[str, tuple[int, ...]] = {}
    for node in graph:
        if node.name in roles.markers:
            device[node.name] = owner[variable_of(node)]
        elif roles.per_step(node.name):
            groups = range(1 if node.stateful or node.op in SUMMING else len(layout.groups))
            device[node.name] = tuple(_largest(graph, node, device, stage_of, layout, group) for group in groups)
    return device


def _largest(
    graph: Graph,
    node: Node,
    device: Mapping[str, tuple[int, ...]],
    stage_of: Mapping[str, int],
    layout: Layout,
    group: int,
) -> int:
    first = layout.groups[group][0]
    if any(graph.type_of(ref).dtype == "resource" for ref in node.inputs):
        return layout.hosts[layout.process_of(layout.device_of(first, 0))]  # a table is only reached where it is
    placed = [ref for ref in node.inputs if ref.node in device and group < len(device[ref.node])]
    if placed:
        return device[max(placed, key=lambda ref: _bytes(graph, ref)).node][group]
    stages = [stage_of[ref.node] for ref in node.inputs if ref.node in stage_of]
    if not stages and group == 0:
        return 0
    return layout.device_of(first, stages[0] if stages else 0)


def _bytes(graph: Graph, ref: Ref) -> int:
    return tensor_bytes(graph.type_of(ref))
