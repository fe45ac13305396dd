"""Makes the plan of a step: the decisions in their order, each by the module of its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whale_tf.errors import Line, PlanError, VariableError
from whale_tf.ir.graph import Graph, Node
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.cost import elements, flops, tensor_bytes
from whale_tf.plan.layout import Layout, Request
from whale_tf.plan.merges import decide_merges
from whale_tf.plan.owners import assign_owners, place_update
from whale_tf.plan.plan import Plan, StageCost
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.plan.schedule import make_grid
from whale_tf.plan.stages import assign_stages


@dataclass(frozen=True)
class Facts:
    """What the planner is told besides the graph.

    Attributes:
      request: the user's scopes.
      layout: the devices they get.
      sizes: for each replica, how many examples each micro-batch holds.
      schedule: the schedule's name.
      loss: `mean` or `sum`.
      home_of: the device of each of the user's variables.
      other: the step traced at another size of micro-batch, with the size; None if there is none.
      line_of: the user's line of an operation.
      targets: for each gradient call, the operations it differentiates.
    """

    request: Request
    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    schedule: str
    loss: str
    home_of: Mapping[str, int]
    other: tuple[Graph, int] | None
    line_of: Callable[[str], Line]
    targets: Mapping[int, tuple[str, ...]]


def make_plan(graph: Graph, roles: Roles, facts: Facts) -> Plan:
    """All decisions for a step.

    Raises:
      PlanError, VariableError, ScheduleError: the step cannot run as annotated.
    """
    layout, stages = facts.layout, len(facts.layout.stages)
    numbers = {scope.key: index for index, scope in enumerate(facts.request.stages)}
    parts = sum(map(len, facts.sizes))
    _refuse_useless(graph, roles, facts)
    stage_of = assign_stages(graph, roles, numbers, stages, facts.line_of)
    if parts > 1 or stages > 1:
        _refuse_untrained_writes(graph, roles, facts)
        _refuse_torn_variables(graph, roles, stage_of, facts)
    owner = assign_owners(graph, roles, stage_of, layout)
    micro_batches, examples = len(facts.sizes[0]), max(map(max, facts.sizes))
    grid = make_grid(facts.schedule, stages, micro_batches, devices=layout.rows)
    forward = make_grid(facts.schedule, stages, micro_batches, devices=layout.rows, backward=False)
    merges = decide_merges(graph, roles, examples, facts.other, facts.line_of, replicas=layout.replicas) if parts > 1 else {}
    peaks = check_grid(grid if roles.backward else forward).peak_live
    return Plan(
        layout,
        facts.sizes,
        facts.schedule,
        facts.loss,
        grid,
        forward,
        stage_of,
        place_update(graph, roles, stage_of, layout, owner),
        owner,
        facts.home_of,
        merges,
        _costs(graph, roles, stage_of, layout, peaks, owner),
    )


def _refuse_useless(graph: Graph, roles: Roles, facts: Facts) -> None:
    """A gradient that nothing uses, and a loss outside every stage."""
    if facts.targets and not any(node.op == "Gradient" for node in graph):
        raise PlanError(
            "the gradient reaches no variable",
            details=["what tape.gradient returned is used by nothing the step writes or returns"],
            at=[facts.line_of(name) for names in facts.targets.values() for name in names][:3],
            way_out="Apply it: optimizer.apply_gradients(zip(gradients, variables)).",
        )
    scoped = {node.name for node in graph if node.scope}
    if not facts.request.stages or not roles.markers:
        return
    calls = {graph[name].attrs["call"] for name in roles.markers}
    for call in sorted(calls):
        targets = [name for name in facts.targets[call] if name in graph]
        if targets and not scoped & graph.ancestors(targets):
            raise PlanError(
                "the loss depends on no operation of any stage",
                details=[f"'{targets[0]}' is differentiated, and nothing it is computed from was made in a stage"],
                at=[facts.line_of(targets[0])],
                scope=[str(scope) for scope in facts.request.stages],
                way_out="Compute the model inside the stages, or leave the stages out.",
            )


def _refuse_untrained_writes(graph: Graph, roles: Roles, facts: Facts) -> None:
    """Weights that examples change without a gradient whale_tf saw cannot be averaged rightly."""
    for node in graph:
        if node.op == "Variable" and node.attrs["trainable"] and variable_of(node) in roles.carried:
            if node.attrs["aggregation"] != b"NONE":
                continue
            write = next(n.name for n in graph if n.op == "Write" and variable_of(n) == variable_of(node))
            raise VariableError(
                f"trainable variable '{variable_of(node)}' is written from examples, and not through a gradient",
                details=["the step has several parts, and each would write its own value"],
                at=[facts.line_of(write)],
                way_out="Take the gradient with tf.GradientTape inside the step, or make the variable with trainable=False.",
            )


def _refuse_torn_variables(graph: Graph, roles: Roles, stage_of: Mapping[str, int], facts: Facts) -> None:
    places: dict[str, dict[int, str]] = {}
    for node in graph:
        if node.op == "Write" and node.name in stage_of:
            places.setdefault(variable_of(node), {})[stage_of[node.name]] = node.name
        for ref in node.inputs:
            source = graph[ref.node]
            if source.op == "Variable" and variable_of(source) in roles.carried and node.name in stage_of:
                places.setdefault(variable_of(source), {})[stage_of[node.name]] = node.name
    for variable, stages in places.items():
        first = min((stage_of[n.name] for n in graph if n.op == "Write" and variable_of(n) == variable and n.name in stage_of), default=0)
        early = min(stages) < first or len({stage_of[n.name] for n in graph if n.op == "Write" and variable_of(n) == variable}) > 1
        if early and len(facts.sizes[0]) > 1:
            raise VariableError(
                f"variable '{variable}' is changed by every micro-batch and used in stages {sorted(stages)}",
                details=["a micro-batch would have to leave the last stage before the next one may enter the first"],
                at=[facts.line_of(name) for name in stages.values()],
                way_out="Put everything that uses the variable into one stage, or use micro_batches=1.",
            )


def _costs(
    graph: Graph,
    roles: Roles,
    stage_of: Mapping[str, int],
    layout: Layout,
    peaks: tuple[int, ...],
    owner: Mapping[str, int],
) -> tuple[StageCost, ...]:
    owned = {variable_of(n): n for n in graph if n.op == "Variable" and variable_of(n) in owner}
    stage_of_device = {layout.device_of(r, j): j for r in range(layout.replicas) for j in reversed(range(len(layout.stages)))}
    members: list[list[Node]] = [[] for _ in layout.stages]
    for name, stage in stage_of.items():
        members[stage].append(graph[name])
    moved = _moved(graph, roles, stage_of)
    kept = _kept(graph, roles, stage_of)
    costs = []
    for stage, nodes in enumerate(members):
        mine = [node for name, node in owned.items() if stage_of_device[owner[name]] == stage]
        costs.append(
            StageCost(
                layout.stages[stage],
                len(nodes),
                sum(elements(node.outputs[0].shape) for node in mine),
                sum(tensor_bytes(node.outputs[0]) for node in mine),
                sum(flops(graph, node) for node in nodes),
                sum(size for (_, target), size in moved.items() if target == stage),
                sum(size for (source, _), size in moved.items() if source == stage),
                kept[stage],
                peaks[stage],
            )
        )
    return tuple(costs)


def _moved(graph: Graph, roles: Roles, stage_of: Mapping[str, int]) -> dict[tuple[int, int], int]:
    """Bytes from stage to stage per micro-batch, each value once per stage that takes it."""
    seen = set()
    moved: dict[tuple[int, int], int] = {}
    for node in graph:
        for ref in node.inputs:
            source, target = stage_of.get(ref.node), stage_of.get(node.name)
            if node.name in roles.markers or source is None or target is None or source == target or (ref, target) in seen:
                continue
            seen.add((ref, target))
            moved[source, target] = moved.get((source, target), 0) + tensor_bytes(graph.type_of(ref))
    return moved


def _kept(graph: Graph, roles: Roles, stage_of: Mapping[str, int]) -> list[int]:
    """Bytes that each stage's forward leaves for its backward, per micro-batch."""
    kept = {
        (ref, stage_of[node.name])
        for node in graph
        if node.name in roles.backward
        for ref in node.inputs
        if ref.node in stage_of and ref.node not in roles.backward
    }
    return [sum(tensor_bytes(graph.type_of(ref)) for ref, at in kept if at == stage) for stage in range(1 + max(stage_of.values(), default=0))] + [0] * 99
