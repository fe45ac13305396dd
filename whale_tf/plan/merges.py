"""Which values of micro-batches the step needs whole, and what they are over the parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.sharding import Value
from whale_tf.plan.roles import Roles
from whale_tf.plan.states import as_total


def find_merges(graph: Graph, roles: Roles, values: Mapping[Ref, Value]) -> dict[Ref, Value]:
    """The state of every tensor that is merged; of a gradient that is, under the name of its marker.

    Args:
      graph: with its changes of state.
      values: the state of each tensor of the step.
    """
    merges = {ref: as_total(values[ref]) for ref in _wanted(graph, roles)}
    for name in roles.markers:
        (ref,) = graph[name].inputs
        if roles.per_micro_batch(ref.node):
            merges[Ref(name)] = _scaled(graph, values, ref)
    return merges


def _scaled(graph: Graph, values: Mapping[Ref, Value], ref: Ref) -> Value:
    """What a gradient is behind its scale."""
    power = Fraction(0)
    while graph[ref.node].op == "Scale":
        power += Fraction(graph[ref.node].attrs["power"])
        (ref,) = graph[ref.node].inputs
    value = as_total(values[ref])
    return Value(value.state, value.degree + power)


def _wanted(graph: Graph, roles: Roles) -> Iterator[Ref]:
    for node in graph:
        if roles.per_step(node.name) and node.name not in roles.markers:
            yield from (ref for ref in node.inputs if roles.per_micro_batch(ref.node))
    yield from (ref for ref in graph.outputs if roles.per_micro_batch(ref.node))
    yield from (Ref(name) for name in graph.effects if graph[name].op == "Write" and roles.per_micro_batch(name))
