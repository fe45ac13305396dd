"""Makes the plan of a step: the decisions in their order, each by the module of its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whale_tf.errors import Line
from whale_tf.ir.graph import Graph
from whale_tf.plan.buckets import choose_collectives, fill_buckets
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.composites import Composite, refuse_cut_composites
from whale_tf.plan.layout import Layout, Request
from whale_tf.plan.losses import refuse_wrong_losses
from whale_tf.plan.merges import decide_merges
from whale_tf.plan.mirroring import find_unmirrored
from whale_tf.plan.owners import assign_owners, place_update
from whale_tf.plan.plan import Plan
from whale_tf.plan.refusals import (
    refuse_inner_reductions,
    refuse_losses_outside_stages,
    refuse_own_data,
    refuse_torn_variables,
    refuse_untrained_writes,
    refuse_unused_gradients,
)
from whale_tf.plan.roles import Roles
from whale_tf.plan.schedule import make_grid
from whale_tf.plan.stage_cost import stage_costs
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
      composites: the outputs that consist of several tensors.
      refusable: variables of which a read can be refused in a process where they are not up to date.
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
    composites: tuple[Composite, ...] = ()
    refusable: frozenset[str] = frozenset()


def make_plan(graph: Graph, roles: Roles, facts: Facts) -> Plan:
    """All decisions for a step.

    Raises:
      PlanError, VariableError, ScheduleError: the step cannot run as annotated.
    """
    layout, stages, micro_batches = facts.layout, len(facts.layout.stages), len(facts.sizes[0])
    parts, largest = layout.replicas * micro_batches, max(map(max, facts.sizes))

    refuse_unused_gradients(graph, facts.targets, facts.line_of)
    if parts > 1:
        refuse_wrong_losses(graph, roles, facts.loss, largest, facts.targets, facts.line_of)
        refuse_inner_reductions(graph, roles, facts.line_of)
        refuse_cut_composites(graph, roles, facts.composites, facts.line_of)
    if parts > 1 or stages > 1:
        refuse_own_data(graph, facts.line_of)
    refuse_losses_outside_stages(graph, roles, facts.request.stages, facts.targets, facts.line_of)
    if parts > 1 or stages > 1:
        refuse_untrained_writes(graph, roles, facts.line_of)

    stage_of = assign_stages(graph, roles, facts.request.stage_of_scope, stages, facts.line_of)
    if micro_batches > 1:
        refuse_torn_variables(graph, roles, stage_of, facts.line_of)

    owner = assign_owners(graph, roles, stage_of, layout)
    device_of = place_update(graph, roles, stage_of, layout, owner)
    buckets = fill_buckets(graph, roles, layout, device_of)

    forward_grid = make_grid(facts.schedule, stages, micro_batches, devices=layout.rows, backward=False)
    grid = make_grid(facts.schedule, stages, micro_batches, devices=layout.rows) if roles.backward else forward_grid
    report = check_grid(grid)

    merges = {}
    if parts > 1:
        merges = decide_merges(graph, roles, largest, facts.other, facts.line_of, replicas=layout.replicas)
    return Plan(
        layout,
        facts.sizes,
        facts.schedule,
        facts.loss,
        grid,
        forward_grid,
        stage_of,
        device_of,
        owner,
        facts.home_of,
        merges,
        stage_costs(graph, roles, stage_of, layout.stages, report.peak_live),
        buckets,
        find_unmirrored(graph, roles, layout, facts.refusable),
        choose_collectives(graph, buckets, layout, stage_of, device_of),
    )
