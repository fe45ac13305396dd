"""What each stage holds, computes and moves, from the graph and the stages of its operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whale_tf.ir.graph import Graph, Ref
from whale_tf.plan.cost import elements, graph_flops, tensor_bytes
from whale_tf.plan.owners import owning_stages
from whale_tf.plan.roles import Roles, variable_of


@dataclass(frozen=True)
class StageCost:
    """What one stage holds and moves, for one replica.

    Attributes:
      name: the user's; its number if it has none; empty if the step has no stage.
      ops: operations, forward and backward.
      parameters: elements of the trained variables that it owns.
      parameter_bytes: their bytes.
      flops: floating-point operations of one micro-batch, forward and backward.
      bytes_in: bytes of activations and gradients received per micro-batch.
      bytes_out: the same, sent.
      residual_bytes: bytes that one micro-batch's forward keeps for its backward.
      peak_live: micro-batches whose residuals are kept at the same time, at most, in any pipeline class.
    """

    name: str
    ops: int
    parameters: int
    parameter_bytes: int
    flops: float
    bytes_in: int
    bytes_out: int
    residual_bytes: int
    peak_live: int

    @property
    def peak_bytes(self) -> int:
        """Bytes of activations kept at the same time, at most."""
        return self.residual_bytes * self.peak_live


def stage_costs(
    graph: Graph, roles: Roles, stage_of: Mapping[str, int], names: Sequence[str], peak_live: Sequence[int]
) -> tuple[StageCost, ...]:
    """The cost of each stage, in the order of the pipeline.

    Args:
      stage_of: the stage of every operation that runs per micro-batch.
      names: the stages' names.
      peak_live: for each stage, micro-batches whose residuals are kept at the same time, at most.
    """
    members: list[list[str]] = [[] for _ in names]
    for name, stage in stage_of.items():
        members[stage].append(name)
    parameters, parameter_bytes = _owned(graph, owning_stages(graph, roles, stage_of))
    received, sent = _moved(graph, stage_of)
    kept = _kept(graph, roles, stage_of)
    return tuple(
        StageCost(
            name,
            len(members[stage]),
            parameters[stage],
            parameter_bytes[stage],
            graph_flops(graph, members[stage]),
            received[stage],
            sent[stage],
            kept[stage],
            peak_live[stage],
        )
        for stage, name in enumerate(names)
    )


def _owned(graph: Graph, owning: Mapping[str, int]) -> tuple[Counter[int], Counter[int]]:
    """Elements and bytes of the trained variables, by the stage that owns them."""
    count: Counter[int] = Counter()
    size_bytes: Counter[int] = Counter()
    for node in graph:
        if node.op == "Variable" and variable_of(node) in owning:
            stage = owning[variable_of(node)]
            count[stage] += elements(node.outputs[0].shape)
            size_bytes[stage] += tensor_bytes(node.outputs[0])
    return count, size_bytes


def _moved(graph: Graph, stage_of: Mapping[str, int]) -> tuple[Counter[int], Counter[int]]:
    """Bytes received and sent by each stage per micro-batch; a value goes once to each stage that takes it."""
    received: Counter[int] = Counter()
    sent: Counter[int] = Counter()
    for ref, target in set(_taken(graph, stage_of)):
        source = stage_of[ref.node]
        if source != target:
            received[target] += tensor_bytes(graph.type_of(ref))
            sent[source] += tensor_bytes(graph.type_of(ref))
    return received, sent


def _taken(graph: Graph, stage_of: Mapping[str, int]) -> Iterator[tuple[Ref, int]]:
    for node in graph:
        if node.name in stage_of:
            yield from ((ref, stage_of[node.name]) for ref in node.inputs if ref.node in stage_of)


def _kept(graph: Graph, roles: Roles, stage_of: Mapping[str, int]) -> Counter[int]:
    """Bytes that each stage's forward leaves for its backward, per micro-batch; each value once."""
    left = {
        (ref, stage_of[name])
        for name in roles.backward
        if name in stage_of
        for ref in graph[name].inputs
        if ref.node in stage_of and ref.node not in roles.backward
    }
    kept: Counter[int] = Counter()
    for ref, stage in left:
        kept[stage] += tensor_bytes(graph.type_of(ref))
    return kept
