"""What no plan can do rightly, refused before one is made: each check is one rule about the whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, PlanError, VariableError
from whale_tf.ir.graph import Graph
from whale_tf.plan.roles import Roles, variable_of

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


def refuse_inner_reductions(graph: Graph, roles: Roles, line_of: LineOf) -> None:
    """A gradient with respect to a variable that is itself differentiated needs all examples in the middle of the
    forward.

    Args:
      line_of: the user's line of an operation.
    Raises:
      PlanError: an inner gradient is of a variable and depends on examples.
    """
    inner = [
        node
        for node in graph
        if node.op == "Gradient"
        and node.name not in roles.markers
        and variable_of(node)
        and roles.per_micro_batch(node.name)
    ]
    if inner:
        names = list(dict.fromkeys(variable_of(node) for node in inner))
        raise PlanError(
            "a gradient with respect to variables is differentiated again, and cannot be cut over examples",
            details=[
                f"it is of {', '.join(repr(name) for name in names[:LINES_SHOWN])}",
                "each part would see its own examples",
            ],
            at=[line_of(inner[0].name)],
            way_out="Use one replica and micro_batches=1, or take the inner gradient with respect to tensors.",
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


def refuse_untrained_writes(graph: Graph, roles: Roles, line_of: LineOf) -> None:
    """Weights that examples change without a gradient that was seen: averaging what the parts write would be wrong.

    Args:
      line_of: the user's line of an operation.
    Raises:
      VariableError: a trainable variable is written per micro-batch and says no aggregation.
    """
    wrong = {
        variable_of(node)
        for node in graph
        if node.op == "Variable" and node.attrs["trainable"] and node.attrs["aggregation"] == b"NONE"
    } & roles.carried
    first: dict[str, str] = {}
    for node in graph:
        if node.op == "Write" and variable_of(node) in wrong:
            first.setdefault(variable_of(node), node.name)
    if first:
        raise VariableError(
            f"trainable variable{_plural(first)} written from examples, and not through a gradient",
            details=["the step has several parts, and each would write its own value"],
            at=[line_of(write) for write in first.values()],
            way_out="Take the gradient with tf.GradientTape inside the step, "
            "or make the variable with trainable=False.",
        )


def refuse_torn_variables(graph: Graph, roles: Roles, stage_of: Mapping[str, int], line_of: LineOf) -> None:
    """With several micro-batches, what each of them changes must be changed in one stage, the first that uses it.

    Args:
      stage_of: the stage of every operation that runs per micro-batch.
      line_of: the user's line of an operation.
    Raises:
      VariableError: a variable is written in two stages, or read in an earlier one than it is written in.
    """
    uses: dict[str, dict[int, str]] = {}
    writers: dict[str, set[int]] = {}
    for variable, operation, writes in _uses(graph, roles):
        if operation in stage_of:
            uses.setdefault(variable, {})[stage_of[operation]] = operation
            if writes:
                writers.setdefault(variable, set()).add(stage_of[operation])
    torn = {
        variable: stages
        for variable, stages in uses.items()
        if variable in writers and {min(stages)} != writers[variable]
    }
    if torn:
        raise VariableError(
            f"variable{_plural(torn)} changed by every micro-batch, and not only in the first stage that uses it",
            details=[
                *(f"'{variable}' is used in stages {', '.join(map(str, sorted(at)))}" for variable, at in torn.items()),
                "a micro-batch would have to leave the last of them before the next one may enter the first",
            ],
            at=[line_of(at[stage]) for at in torn.values() for stage in sorted(at)],
            way_out="Put everything that uses the variable into one stage, or use micro_batches=1.",
        )


def _uses(graph: Graph, roles: Roles) -> Iterator[tuple[str, str, bool]]:
    """Each use of a variable that every micro-batch changes: the variable, the operation, whether it writes."""
    for node in graph:
        if node.op == "Write" and variable_of(node) in roles.carried:
            yield variable_of(node), node.name, True
        for ref in node.inputs:
            source = graph[ref.node]
            if source.op == "Variable" and variable_of(source) in roles.carried:
                yield variable_of(source), node.name, False


def _plural(names: Mapping[str, object]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f" {listed} is" if len(names) == 1 else f"s {listed} are"
