"""Cuts the stages whose operators are split, at each size of micro-batch: each member's functions.

The step is looked at with the shapes of each size of micro-batch, since what a dim can be cut into depends on them.
What functions of one stage hand on to each other stays as it lies; all else that leaves one is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from whale_tf.errors import PlanError
from whale_tf.ir.functions import BRANCHES, functions_of
from whale_tf.ir.graph import Graph, Node
from whale_tf.ir.sharding import WHOLE, State, Value
from whale_tf.plan.mesh_use import Exchange, MeshUse
from whale_tf.plan.plan import Plan
from whale_tf.plan.shard import parameter_of
from whale_tf.plan.shard_stage import Cutting, mesh_of_stage
from whale_tf.rewrite.cut import Key, StageFunction
from whale_tf.rewrite.shard import Agreed, Sharded, shard
from whale_tf.rewrite.step_program import Functions

# What every member may do for itself although it is called stateful.
HARMLESS = frozenset(
    {"Assert", "Print", "PrintV2", "LookupTableFind", "LookupTableFindV2", "LookupTableSizeV2", "CheckNumerics"}
)


def shard_stages(
    variants: Mapping[int, Functions], cutting: Cutting, at_size: Callable[[int], Graph]
) -> tuple[dict[int, dict[Key, StageFunction]], Plan]:
    """The functions of all sizes, of the stages that are cut those of a member; and the plan with what that comes to.

    Args:
      at_size: the step with the shapes of a size of micro-batch.
    Raises:
      PlanError: what is annotated cannot be cut, or must not be run by each member.
    """
    found: dict[int, dict[Key, StageFunction]] = {size: {**functions} for size, functions in variants.items()}
    largest: dict[Key, Sharded] = {}
    stages = cutting.plan.layout.wide
    if not stages:
        return found, cutting.plan
    # Rows of a gradient are put after those of other micro-batches, beside their numbers: each leaves whole.
    rows = [name for name in cutting.roles.markers if cutting.graph[name].attrs["part"] != b"dense"]
    for stage in stages:
        _refuse_effects(cutting, [function for key, function in variants[max(variants)].items() if key.stage == stage])
        sums: dict[str, State] = dict.fromkeys(rows, WHOLE)
        for size in sorted(variants, reverse=True):
            mesh = mesh_of_stage(cutting, at_size(size), stage)
            agreed = Agreed(sums=sums)
            for key in sorted((key for key in variants[size] if key.stage == stage), key=_first_to_last):
                made = shard(variants[size][key], cutting.sizes, mesh, agreed)
                found[size][key] = made.function
                if size == max(variants) and not (key.first and key._replace(first=False) in variants[size]):
                    largest[key] = made
    meshes = tuple(
        _use(cutting, stage, [each for key, each in largest.items() if key.stage == stage]) for stage in stages
    )
    states = {
        ref: state
        for each in largest.values()
        for ref, (_, state) in each.function.computed.items()
        if ref.node in cutting.graph
    }
    lies = {ref: Value(state) for ref, state in states.items() if state != WHOLE}
    return found, replace(cutting.plan, meshes=meshes, lies=lies)


def _refuse_effects(cutting: Cutting, functions: Sequence[StageFunction]) -> None:
    """Refuses what each member would do, where one device does it once."""
    nodes = {node.name: node for function in functions for node in function.graph}
    found = [node for node in nodes.values() if node.stateful and not _is_harmless(node, cutting.calls)]
    if found:
        raise PlanError(
            "each member of a mesh would run what has an effect or a hidden state",
            details=[f"'{node.name}' ({node.op})" for node in found],
            at=[cutting.line_of(node.name) for node in found],
            scope=[str(scope) for scope in cutting.request.splits][:4],
            way_out="Run it outside the step, or put it in a stage() of its own, without split().",
        )


def _is_harmless(node: Node, calls: Mapping[str, Graph]) -> bool:
    """Whether members may run it all: checks and prints, and branches with nothing else."""
    names = functions_of(node).values() if node.op in BRANCHES else ()
    if not names:
        return node.op in HARMLESS
    bodies = [calls[name] for name in names if name in calls]
    inside = [each for body in bodies for each in body if each.stateful]
    return len(bodies) == len(names) and all(_is_harmless(each, calls) for each in inside)


def _first_to_last(key: Key) -> tuple[int, int, bool]:
    """Functions after those that they take from, and what says how a sum lies before what adds to it."""
    return key.phase, "FBIW".index(key.kind), not key.first


def _use(cutting: Cutting, stage: int, functions: Sequence[Sharded]) -> MeshUse:
    """What cutting a stage comes to, by the functions of its largest micro-batch."""
    graph, scopes = cutting.graph, {scope.key: str(scope) for scope in cutting.request.splits}
    said: dict[tuple[str, bool, str], list[int]] = {}
    for function in functions:
        for moved in function.moved:
            backward = function.function.key.kind != "F"
            said.setdefault((scopes.get(_scope_of(graph, moved.node), ""), backward, moved.op), []).append(moved.bytes)
    parameters = {
        parameter_of(graph, source.ref) or str(source.ref): source.name
        for function in functions
        for source in function.function.arguments
        if source.kind == "piece"
    }
    exchanges = tuple(Exchange(*which, len(sizes), sum(sizes)) for which, sizes in said.items())
    gathered = tuple(dict.fromkeys(name for each in functions for name in each.gathered if name in graph))
    return MeshUse(stage, len(cutting.plan.layout.mesh_of(0, stage)), parameters, exchanges, gathered)


def _scope_of(graph: Graph, name: str) -> str:
    """The scope of an operation; of a backward one that of its forward twin."""
    node = graph.nodes.get(name)
    if node is not None and not node.scope and node.twin in graph:
        node = graph[node.twin]
    return node.scope if node is not None else ""
