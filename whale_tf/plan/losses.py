"""What the differentiated losses are over the examples, as far as the graph tells.

Gradients of parts are averaged or added as the step's `loss` option says, so a loss that is visibly the other kind
would train with wrong numbers. A loss that is a mean over a count of its own (valid tokens, say) is a mean of means
once it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph, Node, Ref, Shape
from whale_tf.ir.reductions import FLOATS, is_mean, reduces_examples, reduction_of
from whale_tf.plan.roles import Roles

LINEAR = frozenset({"Add", "AddV2", "AddN", "Sub", "Neg", "Cast", "Reshape", "Squeeze", "ExpandDims"})
ONE_LINEAR = frozenset({"Mul", "RealDiv", "DivNoNan", "Div"})
STEPS_TO_AN_AVERAGE = 6


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


def coupled_examples(graph: Graph, roles: Roles, examples: int, targets: Mapping[int, Sequence[str]]) -> Iterator[str]:
    """Where the losses relate examples to each other in a way that parts of the batch cannot: each does so among its
    own.

    That is a function of means or sums that is not linear, as the root of a mean or a division by a count of the
    examples, and a reduction over the examples that goes back into per-example values. One that a moving average is
    made of is the exception: the statistics of BatchNormalization are those of a micro-batch by definition.
    """
    losses = [name for name in _differentiated(graph, roles, targets) if name in graph]
    stack, seen = list(losses), set[str]()
    while stack:
        node = graph[stack.pop()]
        inputs = [ref.node for ref in node.inputs if roles.phase[ref.node] >= 0]
        if node.name in seen or not inputs or not _scalar(node):
            continue
        seen.add(node.name)
        if reduces_examples(graph, node, examples) or is_mean(graph, node, examples):
            continue
        if node.op in LINEAR or (node.op in ONE_LINEAR and len(inputs) == 1):
            stack.extend(inputs)
        elif all(_scalar(graph[name]) for name in inputs):
            yield node.name
    needed = graph.ancestors(losses)
    for node in graph:
        forward = node.name in needed and not node.call and roles.per_micro_batch(node.name) and _is_float(node)
        if forward and reduces_examples(graph, node, examples) and _goes_back(graph, node):
            yield node.name


def _goes_back(graph: Graph, node: Node) -> bool:
    """Whether a reduction over the examples is used by values with dims, and makes no moving average."""
    users, back = [graph[name] for name in graph.users[node.name]], False
    for _ in range(STEPS_TO_AN_AVERAGE):
        if any(user.op == "Write" for user in users):
            return False
        back = back or any(not user.call and any(kind.shape for kind in user.outputs) for user in users)
        users = [graph[name] for user in users for name in graph.users[user.name]]
    return back


def _differentiated(graph: Graph, roles: Roles, targets: Mapping[int, Sequence[str]]) -> list[str]:
    # A gradient call inside another (a recomputed forward's) is given gradients, and differentiates no loss.
    markers = [graph[name] for name in roles.markers]
    inner = {node.attrs["call"] for node in markers if graph[node.inputs[0].node].call not in (0, node.attrs["call"])}
    calls = sorted({node.attrs["call"] for node in markers} - inner)
    return [name for call in calls for name in targets[call] if name in graph and roles.phase[name] >= 0]


def _kind(graph: Graph, roles: Roles, name: str, examples: int) -> str:
    """`sum`, `mean`, or empty where the graph does not tell."""
    found = reduction_of(graph, Ref(name), examples)
    if found in ("sum", "concat"):
        return "sum"
    node = graph[name]
    averaged = node.op == "Mean" and graph.type_of(node.inputs[0]).shape[:1] == (examples,) and _scalar(node)
    return "mean" if averaged and roles.per_micro_batch(node.inputs[0].node) else ""


def _is_float(node: Node) -> bool:
    return bool(node.outputs) and node.outputs[0].dtype in FLOATS


def _scalar(node: Node) -> bool:
    return bool(node.outputs) and node.outputs[0].shape == Shape() and _is_float(node)
