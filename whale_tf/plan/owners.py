"""Who updates what: every variable has one owner, and what runs once per step runs where it moves the fewest bytes.

A gradient is reduced on its variable's owner, the update is computed there once, and the new value goes to all who use
the variable. So replicas cannot drift apart, and the update's work and slots are divided over them.

Groups of replicas that have no process in common keep a copy each: their owners get the same reduced gradient and
compute the same update, since sending new values and slots to and fro would cost more than that. Only the first group
runs what must not be run twice, operations with effects, and sums, whose order may differ between machines with other
numbers of cores: so the copies stay the same, bit for bit.

Places are seats, which mean the same in all groups of one kind: so there is one for each kind.

Source: Xu et al. 2020, Automatic Cross-Replica Sharding of Weight Update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from whale_tf.ir.functions import called
from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import HOST_SEAT, Layout
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
    """For each trained variable the seats that own it, one for each kind of group.

    It is in the variable's stage, on the replica that owns the fewest bytes there; the largest variables choose first.
    """
    stage = owning_stages(graph, roles, stage_of)
    size = dict.fromkeys(stage, 0)
    for node in graph:
        if node.name in roles.markers:
            size[variable_of(node)] = max(size[variable_of(node)], tensor_bytes(node.outputs[0]))
    owner: dict[str, tuple[int, ...]] = dict.fromkeys(size, ())
    for members in layout.groups.sizes:
        owned: dict[tuple[int, int], int] = {}
        for name in sorted(size, key=lambda name: -size[name]):
            member = min(range(members), key=lambda k: owned.get((stage[name], k), 0))
            owned[stage[name], member] = owned.get((stage[name], member), 0) + max(1, size[name])
            owner[name] = (*owner[name], layout.seat(member, stage[name]))
    return owner


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
    calls: Mapping[str, Graph] = MappingProxyType({}),
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The seats of every operation that runs once per step: for a gradient its owner's, else its largest input's.

    Args:
      calls: the functions that nodes call.
    Returns:
      for each operation a seat for each kind of group, or one in the first group for those that run there only; and
      these: what is stateful, and sums.
    """
    seat: dict[str, tuple[int, ...]] = {}
    once: dict[str, None] = {}
    kinds = range(len(layout.groups.sizes))
    for node in graph:
        if node.name in roles.markers:
            seat[node.name] = owner[variable_of(node)]
        elif roles.per_step(node.name):
            if len(layout.groups) > 1 and (node.stateful or _adds_up(node, calls)):
                once[node.name] = None
            near = [ref for ref in node.inputs if ref.node in seat and (node.name in once or ref.node not in once)]
            seat[node.name] = tuple(
                _largest(graph, node, [(ref, seat[ref.node][kind]) for ref in near], stage_of, layout)
                for kind in (kinds[:1] if node.name in once else kinds)
            )
    return seat, tuple(once)


def _adds_up(node: Node, calls: Mapping[str, Graph]) -> bool:
    """Whether a sum is made by a node, or in what it calls."""
    bodies = called([Graph.of([node])], calls).values()
    return node.op in SUMMING or any(inner.op in SUMMING for body in bodies for inner in body)


def _largest(
    graph: Graph, node: Node, near: Sequence[tuple[Ref, int]], stage_of: Mapping[str, int], layout: Layout
) -> int:
    """Where the largest of some inputs is, each with its seat; without any, where the first micro-batch's is."""
    if any(graph.type_of(ref).dtype == "resource" for ref in node.inputs):
        return HOST_SEAT  # a table is only reached where it is
    if near:
        return max(near, key=lambda each: tensor_bytes(graph.type_of(each[0])))[1]
    stages = [stage_of[ref.node] for ref in node.inputs if ref.node in stage_of]
    return layout.seat(0, stages[0]) if stages else HOST_SEAT
