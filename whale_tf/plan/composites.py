"""Outputs that consist of several tensors: whether the parts of each can be put together at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph
from whale_tf.plan.roles import Roles


class Composite(NamedTuple):
    """One output of the step whose tensors mean something only together.

    Attributes:
      kind: `RaggedTensor`, `SparseTensor` or `IndexedSlices`.
      outputs: the positions of its tensors among the outputs of the graph.
    """

    kind: str
    outputs: tuple[int, ...]


def refuse_cut_composites(
    graph: Graph, roles: Roles, composites: Sequence[Composite], line_of: Callable[[str], Line]
) -> None:
    """Row splits and indices count from the start of a part, so merging tensor by tensor would make another value.

    Args:
      composites: those among the outputs. The gradient of a table of embeddings is one that is merged, by its marker.
      line_of: the user's line of an operation.
    Raises:
      PlanError: the tensors of one are computed per micro-batch.
    """
    cut = {
        each: [graph.outputs[index].node for index in each.outputs]
        for each in composites
        if any(roles.per_micro_batch(graph.outputs[index].node) for index in each.outputs)
    }
    if cut:
        kinds = sorted({each.kind for each in cut})
        made = [next(filter(roles.per_micro_batch, names)) for names in cut.values()]
        raise PlanError(
            f"the step returns {' and '.join(kinds)} of examples, which cannot be put together from parts",
            details=[f"the tensors of a {each.kind} are {', '.join(map(repr, names))}" for each, names in cut.items()],
            at=[line for line in map(line_of, made) if line.number],
            way_out="Return dense tensors whose dim 0 is the batch, as to_tensor() and tf.sparse.to_dense() give, "
            "or use one replica and micro_batches=1.",
        )
