"""Who updates what: every variable has one owner, and what runs once per step runs where it moves the fewest bytes.

A gradient is reduced on its variable's owner, the update is computed there once, and the new value goes to all who use
the variable. So replicas cannot drift apart, and the update's work and slots are divided over them.

Source: Xu et al. 2020, Automatic Cross-Replica Sharding of Weight Update.
"""

from __future__ import annotations

from collections.abc import Mapping

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import Roles, variable_of


def assign_owners(graph: Graph, roles: Roles, stage_of: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """For each trained variable the device that owns it, as an index.

    It is in the variable's stage, on the replica that owns the fewest bytes there; the largest variables choose first.
    """
    stage = owning_stages(graph, roles, stage_of)
    size = dict.fromkeys(stage, 0)
    for node in graph:
        if node.name in roles.markers and variable_of(node):
            size[variable_of(node)] = max(size[variable_of(node)], tensor_bytes(node.outputs[0]))
    owned: dict[tuple[int, int], int] = {}
    owner: dict[str, int] = {}
    for name in sorted(size, key=lambda name: -size[name]):
        replica = min(range(layout.replicas), key=lambda r: owned.get((stage[name], r), 0))
        owned[stage[name], replica] = owned.get((stage[name], replica), 0) + max(1, size[name])
        owner[name] = layout.device_of(replica, stage[name])
    return {name: owner[name] for name in size}


def owning_stages(graph: Graph, roles: Roles, stage_of: Mapping[str, int]) -> dict[str, int]:
    """For each trained variable the stage that owns it: the earliest that contributes to its gradient."""
    stage: dict[str, int] = {}
    for node in graph:
        if node.name in roles.markers and variable_of(node):
            source = stage_of.get(node.inputs[0].node, 0)
            stage[variable_of(node)] = min(source, stage.get(variable_of(node), source))
    return stage


def place_update(
    graph: Graph, roles: Roles, stage_of: Mapping[str, int], layout: Layout, owner: Mapping[str, int]
) -> dict[str, int]:
    """The device of every operation that runs once per step: for a gradient its owner's, else its largest input's."""
    device: dict[str, int] = {}
    for node in graph:
        if not roles.per_step(node.name) and node.name not in roles.markers:
            continue
        if node.name in roles.markers:
            source = stage_of.get(node.inputs[0].node, 0)
            device[node.name] = owner.get(variable_of(node), layout.device_of(0, source))
        else:
            device[node.name] = _largest(graph, node, device, stage_of, layout)
    return device


def _largest(graph: Graph, node: Node, device: Mapping[str, int], stage_of: Mapping[str, int], layout: Layout) -> int:
    if any(graph.type_of(ref).dtype == "resource" for ref in node.inputs):
        return 0  # a table or a writer can only be reached from where it is
    placed = [ref for ref in node.inputs if ref.node in device]
    if placed:
        return device[max(placed, key=lambda ref: _bytes(graph, ref)).node]
    stages = [stage_of[ref.node] for ref in node.inputs if ref.node in stage_of]
    return layout.device_of(0, stages[0]) if stages else 0


def _bytes(graph: Graph, ref: Ref) -> int:
    return tensor_bytes(graph.type_of(ref))
