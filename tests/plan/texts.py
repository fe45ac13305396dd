"""Steps as text for the tests of the planner: their phases as one part that runs the whole step has them."""

from __future__ import annotations

from whale_tf.ir.graph import Graph
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.one_part import undivided
from whale_tf.plan.roles import Roles, find_roles


def roles_of(graph: Graph, examples: int = 4) -> Roles:
    """The roles of a step, whatever its operations do with the examples."""
    states = undivided(Sizes(graph, examples, examples))
    return find_roles(graph, states.level, states.markers)
