"""What the differentiated losses are over the examples, as far as the graph tells.

Gradients of parts are averaged or added as the step's `loss` option says, so a loss that is visibly the other kind
would train with wrong numbers. A loss that is a mean over a count of its own (valid tokens, say) is a mean of means
once it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph, Node, Ref, Shape
from whale_tf.ir.reductions import FLOATS, reduction_of
from whale_tf.plan.roles import Roles

DIVISIONS = frozenset({"RealDiv", "DivNoNan", "Div"})


def refuse_wrong_losses(
    graph: Graph,
    roles: Roles,
    loss: str,
    examples: int,
    targets: Mapping[int, Sequence[str]],
    line_of: Callable[[str], Line],
) -> None:
    """A loss that is a sum where a mean was said, or the other way round.

    Args:
      loss: what the step says it is.
      examples: the size of the micro-batch that the graph was traced at.
      targets: for each gradient call, the operations it differentiates.
      line_of: the user's line of an operation.
    Raises:
      PlanError: the loss is visibly the other kind.
    """
    for name in _differentiated(graph, roles, targets):
        found = _kind(graph, roles, name, examples)
        if found and found != loss:
            whole = (
                "one loss per example, whose sum is differentiated" if graph[name].outputs[0].shape else f"a {found}"
            )
            raise PlanError(
                f"the loss is {whole}, and the step says loss={loss!r}",
                details=[
                    "gradients of micro-batches and replicas would be " + ("averaged" if loss == "mean" else "added")
                ],
                at=[line_of(name)],
                way_out=f'Use whale.function(loss="{found}"), or differentiate tf.reduce_{loss} of the losses.',
            )


def varying_means(graph: Graph, roles: Roles, targets: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """The divisions in the losses whose divisor is counted from the examples."""
    for name in _differentiated(graph, roles, targets):
        stack, seen = [name], set[str]()
        while stack:
            node = graph[stack.pop()]
            if node.name in seen or not roles.per_micro_batch(node.name) or not _scalar(node):
                continue
            seen.add(node.name)
            if node.op in DIVISIONS and roles.per_micro_batch(node.inputs[1].node):
                yield node.name
            stack.extend(ref.node for ref in node.inputs)


def _differentiated(graph: Graph, roles: Roles, targets: Mapping[int, Sequence[str]]) -> list[str]:
    # A gradient call inside another (a recomputed forward's) is given gradients, and differentiates no loss.
    markers = [graph[name] for name in roles.markers]
    inner = {node.attrs["call"] for node in markers if graph[node.inputs[0].node].call not in (0, node.attrs["call"])}
    calls = sorted({node.attrs["call"] for node in markers} - inner)
    return [name for call in calls for name in targets[call] if name in graph and roles.per_micro_batch(name)]


def _kind(graph: Graph, roles: Roles, name: str, examples: int) -> str:
    """`sum`, `mean`, or empty where the graph does not tell."""
    found = reduction_of(graph, Ref(name), examples)
    if found in ("sum", "concat"):
        return "sum"
    node = graph[name]
    averaged = node.op == "Mean" and graph.type_of(node.inputs[0]).shape[:1] == (examples,) and _scalar(node)
    return "mean" if averaged and roles.per_micro_batch(node.inputs[0].node) else ""


def _scalar(node: Node) -> bool:
    return bool(node.outputs) and node.outputs[0].shape == Shape() and node.outputs[0].dtype in FLOATS
