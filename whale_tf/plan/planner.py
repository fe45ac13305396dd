"""Makes the plan of a step: the decisions in their order, each by the module of its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from whale_tf.errors import Line
from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.sharding import WHOLE, Value
from whale_tf.plan.buckets import choose_collectives, fill_buckets
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import Layout
from whale_tf.plan.merges import find_merges
from whale_tf.plan.owners import assign_owners, place_update
from whale_tf.plan.plan import Plan
from whale_tf.plan.refusals import (
    refuse_losses_outside_stages,
    refuse_own_data,
    refuse_unused_gradients,
)
from whale_tf.plan.request import Request
from whale_tf.plan.residency import lay_out_variables
from whale_tf.plan.roles import Roles
from whale_tf.plan.schedule import make_grid
from whale_tf.plan.stage_cost import stage_costs
from whale_tf.plan.stages import assign_stages

BY_HAND = "by hand"  # a schedule without a name


@dataclass(frozen=True)
class Facts:
    """What the planner is told besides the graph.

    Attributes:
      request: the user's scopes.
      layout: the devices they get.
      sizes: for each replica, how many examples each micro-batch holds.
      schedule: the schedule's name, or the user's own grid.
      home_of: the device of each of the user's variables.
      line_of: the user's line of an operation.
      targets: for each gradient call, the operations it differentiates.
      micro: the step with the shapes of its largest micro-batch.
      refusable: variables of which a read can be refused in a process where they are not up to date.
      calls: the functions that nodes call.
    """

    request: Request
    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    schedule: str | Grids
    home_of: Mapping[str, int]
    line_of: Callable[[str], Line]
    targets: Mapping[int, tuple[str, ...]]
    micro: Graph
    refusable: frozenset[str] = frozenset()
    calls: Mapping[str, Graph] = field(default_factory=dict)


def make_plan(graph: Graph, roles: Roles, values: Mapping[Ref, Value], facts: Facts) -> Plan:
    """All decisions for a step.

    Args:
      graph: with its changes of state.
      values: the state of each tensor of the step over the parts of the batch.
    Raises:
      PlanError, VariableError, ScheduleError: the step cannot run as annotated.
    """
    layout, stages, micro_batches = facts.layout, len(facts.layout.stages), len(facts.sizes[0])
    parts = layout.replicas * micro_batches

    refuse_unused_gradients(graph, facts.targets, facts.line_of)
    if parts > 1 or stages > 1:
        refuse_own_data(graph, facts.line_of)
    refuse_losses_outside_stages(graph, roles, facts.request.stages, facts.targets, facts.line_of)

    stage_of = assign_stages(graph, roles, facts.request.stage_of_scope, stages, facts.line_of)
    owner = assign_owners(graph, roles, stage_of, layout)
    seat_of, once = place_update(graph, roles, stage_of, layout, owner, facts.calls)
    buckets = fill_buckets(graph, roles, layout, seat_of)

    forward_grids, grids = (_make_grids(facts, backward) for backward in (False, bool(roles.backward)))
    peaks = zip(*(check_grid(grid).peak_live for grid in grids.by_class), strict=True)

    return Plan(
        layout=layout,
        sizes=facts.sizes,
        schedule=facts.schedule if isinstance(facts.schedule, str) else BY_HAND,
        grids=grids,
        forward_grids=forward_grids,
        stage_of=stage_of,
        seat_of=seat_of,
        once=once,
        variables=lay_out_variables(graph, roles, stage_of, seat_of, layout, owner, facts.refusable),
        home_of=facts.home_of,
        merges=find_merges(graph, roles, values) if parts > 1 else {},
        stages=stage_costs(facts.micro, roles, stage_of, layout.stages, [*map(max, peaks)]),
        buckets=buckets,
        collective=choose_collectives(graph, buckets, layout, stage_of, seat_of),
        values={ref: value for ref, value in values.items() if value.state != WHOLE} if parts > 1 else {},
    )


def _make_grids(facts: Facts, backward: bool) -> Grids:
    """A grid for each pipeline class."""
    micro_batches = len(facts.sizes[0])
    made = (make_grid(facts.schedule, row, micro_batches, backward=backward) for row in facts.layout.classes)
    return Grids(tuple(made))
