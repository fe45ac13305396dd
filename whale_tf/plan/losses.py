"""What a differentiated loss is over the examples, where the step says it and the graph tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import SUMS, Split
from whale_tf.plan.states import States

# Of totals over the batch; what they reduce are other dims.
LINEAR = frozenset(
    {
        "Neg", "Cast", "Reshape", "Squeeze", "ExpandDims", "Identity", "Sum", "Mean", "Transpose", "StridedSlice",
        "Slice", "Unpack", "Tile", "BroadcastTo",
    }
)  # fmt: skip
ADDING = frozenset({"Add", "AddV2", "AddN", "Sub", "Pack", "ConcatV2"})
BY_A_NUMBER = frozenset({"Mul", "RealDiv", "Div", "DivNoNan"})


def refuse_wrong_losses(
    states: States, said: str, targets: Mapping[int, Sequence[str]], line_of: Callable[[str], Line]
) -> None:
    """A loss that is a sum where a mean was said, or the other way round.

    Args:
      said: what the step says it is: `mean` or `sum`.
      targets: for each gradient call, the operations it differentiates.
      line_of: the user's line of an operation.
    Raises:
      PlanError: the loss is visibly the other kind.
    """
    graph = states.sizes.graph
    for name in dict.fromkeys(name for names in targets.values() for name in names if name in graph):
        found = _kind(states, Ref(name))
        if found and found != said and graph[name].outputs[0].dtype.startswith(("float", "bfloat")):
            raise PlanError(
                f"the loss is a {found} over the examples, and the step says loss={said!r}",
                details=[f"'{name}' is differentiated; gradients are added over parts of the batch as it is written"],
                at=[line_of(name)],
                way_out=f"Differentiate tf.reduce_{said} of the losses, or say loss={found!r}, or leave loss out.",
            )


def _kind(states: States, ref: Ref) -> str:
    """`sum`, `mean`, or empty where the graph does not tell; terms that follow from no example do not count."""
    graph, value = states.sizes.graph, states.value(ref)
    node = graph[ref.node]
    if isinstance(value.state, Split):
        return "sum"
    following = [each for each in node.inputs if states.known[each].level >= 0]
    totals = [each for each in following if not isinstance(states.value(each).state, Split)]
    if node.op in LINEAR and totals == [node.inputs[0]]:
        return _kind(states, totals[0])
    if node.op in ADDING and totals == following:
        kinds = {_kind(states, each) for each in totals}
        return kinds.pop() if len(kinds) == 1 else ""
    if node.op in BY_A_NUMBER and len(totals) == 1 and totals == following:
        changes = any((node.name, position) in states.sizes.operands for position in range(len(node.inputs)))
        return "" if changes else _kind(states, totals[0])
    if totals or value.state != SUMS:
        return ""
    return "mean" if value.degree == -1 else "sum"
