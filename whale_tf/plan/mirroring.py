"""Which variables a step brings up to date in every process, and which only where they are used.

    process 0: stage 0    uses w0 and its slots   ─▶ assigns w0, m0, v0, and the rate
    process 1: stage 1    uses w1 and its slots   ─▶ assigns w1, m1, v1, and the rate

Sending every new value and slot to processes that never read them would cost as much as the gradients, and giant models
would not fit. So what follows from gradients stays where it is used. Numbers (a step's count, a rate, a loss scale) and
what the forward writes (metrics, moving averages) are small: they are up to date everywhere.
"""

from __future__ import annotations

from collections.abc import Collection

from whale_tf.ir.graph import Graph, Shape
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import Roles, variable_of


def find_unmirrored(graph: Graph, roles: Roles, layout: Layout, refusable: Collection[str]) -> tuple[str, ...]:
    """Variables that are up to date only in the processes that use them, in the order of their names.

    Args:
      refusable: variables of which a read can be refused in a process that does not use them.
    """
    if len(layout.hosts) == 1:
        return ()
    first = {variable_of(node): node for node in graph if node.op == "Variable"}
    updated = {variable_of(node) for node in graph if node.op == "Write" and roles.per_step(node.name)}
    return tuple(sorted(name for name in updated & set(refusable) if _has_dims(first[name].outputs[0].shape)))


def _has_dims(shape: Shape) -> bool:
    """Of no number has; and to be gathered, it must have a size that all processes know."""
    return len(shape) > 0 and shape.known
