"""How the values of all micro-batches become the one value of the step.

    concat            per-example values, in the caller's order
    sum, max, …       by the reduction over examples that made it
    mean              other floats, weighted by share of the examples
    state             what each replica's last micro-batch left in a variable, by the variable's aggregation

A value that none of these fits is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from whale_tf.errors import Line, PlanError, VariableError
from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.reductions import FLOATS, accumulates, reduction_of
from whale_tf.plan.roles import Roles, variable_of


def decide_merges(
    graph: Graph,
    roles: Roles,
    examples: int,
    other: tuple[Graph, int] | None,
    line_of: Callable[[str], Line],
    *,
    replicas: int,
) -> dict[Ref, str]:
    """The merge of every per-micro-batch tensor that is wanted once per step.

    Args:
      examples: the size of the micro-batch that `graph` was traced at.
      other: the same step traced at another size, with that size, to tell which dims follow the batch; None if dim 0
        decides.
      line_of: the user's line of an operation.
      replicas: how many replicas there are; with one, states need no merge.
    Raises:
      PlanError: a value that no merge fits.
      VariableError: the same for a variable.
    """
    merges: dict[Ref, str] = {}
    for ref in _wanted(graph, roles):
        node = graph[ref.node]
        if node.op == "Write":
            merges[ref] = _state(graph, node, replicas, line_of)
            continue
        merges[ref] = reduction_of(graph, ref, examples, other)
        if not merges[ref]:
            raise _unknown(graph, ref, line_of)
    return merges


def _wanted(graph: Graph, roles: Roles) -> Iterator[Ref]:
    for node in graph:
        if roles.per_step(node.name) and node.name not in roles.markers:
            yield from (ref for ref in node.inputs if _differs(graph, roles, ref))
    yield from (ref for ref in graph.outputs if _differs(graph, roles, ref))
    yield from (Ref(name) for name in graph.effects if graph[name].op == "Write" and roles.per_micro_batch(name))


def _differs(graph: Graph, roles: Roles, ref: Ref) -> bool:
    """Whether micro-batches have values of their own; what a variable had before the first of them is one value."""
    return roles.per_micro_batch(ref.node) and graph[ref.node].op != "Variable"


def _state(graph: Graph, node: Node, replicas: int, line_of: Callable[[str], Line]) -> str:
    start = next(n for n in graph if n.op == "Variable" and variable_of(n) == variable_of(node))
    aggregation, kind = start.attrs["aggregation"].decode(), node.outputs[0]
    made_by = graph[node.inputs[0].node]
    if aggregation != "ONLY_FIRST_REPLICA" and made_by.op in ("Maximum", "Minimum"):
        return f"state {made_by.op.lower()}"
    if aggregation == "SUM" or (aggregation == "NONE" and accumulates(graph, made_by, start.name)):
        return "state sum"
    if aggregation == "ONLY_FIRST_REPLICA" or replicas == 1:
        return "state first"
    if kind.dtype in FLOATS:
        return "state mean"
    raise VariableError(
        f"variable '{variable_of(node)}' is changed by every replica, and no rule says how to merge the changes",
        details=[f"it is {kind.dtype} with aggregation {aggregation}; only floats are averaged without being told"],
        at=[line_of(node.name)],
        way_out="Make it with aggregation=tf.VariableAggregation.SUM, or ONLY_FIRST_REPLICA.",
    )


def _unknown(graph: Graph, ref: Ref, line_of: Callable[[str], Line]) -> PlanError:
    kind = graph.type_of(ref)
    return PlanError(
        f"'{ref}' has one value for each micro-batch, and no rule says what they are together",
        details=[
            f"it is {kind.dtype}{kind.shape}: no scalar float, no per-example value, no reduction over the examples"
        ],
        at=[line_of(ref.node)],
        way_out="Return per-example values or a scalar float, "
        "or compute it by tf.reduce_sum, reduce_max or reduce_min over the batch.",
    )
