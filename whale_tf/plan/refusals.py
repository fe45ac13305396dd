"""What no plan can do rightly, refused before one is made: each check is one rule about the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph
from whale_tf.plan.roles import Roles

LineOf = Callable[[str], Line]
LINES_SHOWN = 3


def refuse_unused_gradients(graph: Graph, targets: Mapping[int, Sequence[str]], line_of: LineOf) -> None:
    """A step that takes gradients and uses none of them would train nothing, in silence.

    Args:
      graph: without the operations that nothing uses.
      targets: for each gradient call, the operations it differentiates.
      line_of: the user's line of an operation.
    Raises:
      PlanError: no gradient is left in the graph.
    """
    if targets and not any(node.op == "Gradient" for node in graph):
        differentiated = [name for names in targets.values() for name in names]
        raise PlanError(
            "the gradient reaches no variable",
            details=["what tape.gradient returned is used by nothing the step writes or returns"],
            at=[line_of(name) for name in differentiated[:LINES_SHOWN]],
            way_out="Apply it: optimizer.apply_gradients(zip(gradients, variables)).",
        )


def refuse_losses_outside_stages(
    graph: Graph, roles: Roles, stages: Sequence[Opened], targets: Mapping[int, Sequence[str]], line_of: LineOf
) -> None:
    """A pipeline whose loss needs none of its stages would run everything on one device.

    Args:
      stages: the stage scopes; without any there is nothing to check.
      targets: for each gradient call, the operations it differentiates.
      line_of: the user's line of an operation.
    Raises:
      PlanError: a differentiated operation depends on nothing made in a scope.
    """
    if not stages:
        return
    scoped = {node.name for node in graph if node.scope}
    for call in sorted({graph[name].attrs["call"] for name in roles.markers}):
        losses = [name for name in targets[call] if name in graph]
        if losses and not scoped & graph.ancestors(losses):
            raise PlanError(
                "the loss depends on no operation of any stage",
                details=[f"'{losses[0]}' is differentiated, and nothing it is computed from was made in a stage"],
                at=[line_of(losses[0])],
                scope=[str(scope) for scope in stages],
                way_out="Compute the model inside the stages, or leave the stages out.",
            )


def refuse_own_data(graph: Graph, line_of: LineOf) -> None:
    """A step that pulls its batch from an iterator gets it whole: nothing in it could be cut.

    Args:
      line_of: the user's line of an operation.
    Raises:
      PlanError: an operation of the step takes the next element of a dataset.
    """
    pulls = [
        node.name
        for node in graph
        if node.op in ("IteratorGetNext", "IteratorGetNextSync", "IteratorGetNextAsOptional")
    ]
    if pulls:
        raise PlanError(
            "the step takes its batch from an iterator, so that it cannot be cut",
            details=["replicas, stages and micro-batches need the batch as an argument"],
            at=[line_of(pulls[0])],
            way_out="Call next(iterator) outside, and pass what it gives: for x, y in dataset: step(x, y).",
        )
