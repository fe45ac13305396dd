"""Which stage each per-micro-batch operation belongs to.

forward   by its scope; without one it joins its latest producer, and before any producer its earliest consumer.
backward  the stage of its forward twin, but never later than the gradients it takes: gradients only travel towards
          stage 0. Without a twin it joins the gradients it takes; one that takes none moves to its latest consumer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph, Node
from whale_tf.plan.roles import Roles


def assign_stages(
    graph: Graph, roles: Roles, stage_of_scope: Mapping[str, int], stages: int, line_of: Callable[[str], Line]
) -> dict[str, int]:
    """The stage of every operation that runs per micro-batch.

    Args:
      stage_of_scope: for each scope key that is a stage, its number.
      stages: how many there are; 1 if the step has no stage scope.
      line_of: the user's line of an operation.
    Raises:
      PlanError: forward data flows to an earlier stage.
    """
    micro = [node for node in graph if roles.per_micro_batch(node.name) and node.op not in ("Input", "Piece")]
    if stages == 1:
        return {node.name: 0 for node in micro}
    forward = [node for node in micro if node.name not in roles.backward]
    stage = _forward(graph, forward, stage_of_scope, line_of)
    backward = [node for node in micro if node.name in roles.backward or node.name in roles.markers]
    _backward(backward, stage, stages)
    _sink(graph, backward, stage)
    return stage


def _forward(
    graph: Graph, nodes: list[Node], stage_of_scope: Mapping[str, int], line_of: Callable[[str], Line]
) -> dict[str, int]:
    stage: dict[str, int] = {}
    wrong: list[tuple[Node, Node]] = []
    for node in nodes:
        producers = [ref.node for ref in node.inputs if ref.node in stage]
        latest = max(producers, key=stage.__getitem__, default=None)
        if node.scope in stage_of_scope:
            stage[node.name] = stage_of_scope[node.scope]
            if latest is not None and stage[latest] > stage[node.name]:
                wrong.append((node, graph[latest]))
        elif latest is not None:
            stage[node.name] = stage[latest]
    if wrong:
        raise _backwards_error(wrong, stage, line_of)
    for node in reversed(nodes):
        if node.name not in stage:
            consumers = [stage[user] for user in graph.users[node.name] if user in stage]
            stage[node.name] = min(consumers, default=0)
    return stage


def _backward(nodes: list[Node], stage: dict[str, int], stages: int) -> None:
    backward = {node.name for node in nodes}
    for node in nodes:
        latest = min((stage[ref.node] for ref in node.inputs if ref.node in backward), default=stages - 1)
        stage[node.name] = min(latest, stage.get(node.twin, latest))


def _sink(graph: Graph, nodes: list[Node], stage: dict[str, int]) -> None:
    """A backward op that takes no gradient moves down to its latest consumer, so that less is sent."""
    backward = {node.name for node in nodes}
    for node in reversed(nodes):
        if any(ref.node in backward for ref in node.inputs):
            continue
        consumers = [stage[user] for user in graph.users[node.name] if user in backward]
        stage[node.name] = min(stage[node.name], max(consumers, default=stage[node.name]))


def _backwards_error(
    wrong: list[tuple[Node, Node]], stage: Mapping[str, int], line_of: Callable[[str], Line]
) -> PlanError:
    node, source = wrong[0]
    return PlanError(
        f"'{node.name}' of stage {stage[node.name]} needs '{source.name}' of the later stage {stage[source.name]}",
        details=[
            f"{len(wrong)} values flow to an earlier stage"
            if len(wrong) > 1
            else "forward data only flows to later stages"
        ],
        at=[line_of(node.name), line_of(source.name)],
        way_out="Open the stages in the order the data flows, or give both places the same stage name.",
    )
