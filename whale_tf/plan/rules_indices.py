"""Rules of operations that find elements by indices: gather, scatter, segments, one-hot.

`q` stands for the dims of the indices, `rest` for those of what one index finds. What is searched is whole where an
index points; what indices are added to becomes a sum over them.
"""

from __future__ import annotations

from collections.abc import Mapping

from whale_tf.ir.sharding import Reduction
from whale_tf.plan.kinds import LETTERS, OTHER_LETTERS, WHOLE_DIM, Kind, Rule, RuleOf, TypedNode, blocked, table
from whale_tf.plan.work import free, per_input


def _gather(typed: TypedNode) -> Rule | None:
    """params[batch, before, axis, after] and indices[batch, q] give [batch, before, q, after]."""
    rank = len(typed.input(0))
    axes = typed.axes(2, rank) if len(typed.inputs) > 2 else frozenset({0})
    if axes is None:
        return None
    (axis,) = axes
    batch = typed.attribute("batch_dims", 0) % max(1, len(typed.input(1)) + 1)
    name = blocked(rank, axes)
    found = OTHER_LETTERS[: len(typed.input(1)) - batch]
    result = name[:axis] + found + name[axis + 1 :]
    return Rule((name, name[:batch] + found, *typed.wholes(2)), (result,))


def _gather_nd(typed: TypedNode) -> Rule | None:
    """params[index, rest] and indices[q, length of an index] give [q, rest]."""
    length = typed.input(1)[-1]
    if length is None or length < 0:
        return None
    q, rest = LETTERS[: len(typed.input(1)) - 1], OTHER_LETTERS[: len(typed.input(0)) - length]
    return Rule((WHOLE_DIM * length + rest, q + WHOLE_DIM), (q + rest,))


def _resource_gather(nested: bool) -> RuleOf:
    """The table is a variable's: only what the indices say can be cut."""

    def rule(typed: TypedNode) -> Rule:
        rank, batch = len(typed.input(1)), typed.attribute("batch_dims", 0)
        q = WHOLE_DIM * batch + LETTERS[: rank - batch - nested]
        return Rule((typed.whole(0), q.ljust(rank, WHOLE_DIM)), (q.ljust(len(typed.output()), WHOLE_DIM),))

    return rule


def _lookup(typed: TypedNode) -> Rule:
    keys = LETTERS[: len(typed.input(1))]
    return Rule((typed.whole(0), keys, typed.whole(2)), (keys.ljust(len(typed.output()), WHOLE_DIM),))


def _scatter(typed: TypedNode) -> Rule | None:
    """indices[q, length of an index] and updates[q, rest] give [index, rest]."""
    length, q = typed.input(0)[-1], LETTERS[: len(typed.input(0)) - 1]
    if length is None or length < 0:
        return None
    rest = OTHER_LETTERS[: len(typed.input(1)) - len(q)]
    return Rule((q + WHOLE_DIM, q + rest, typed.whole(2)), (WHOLE_DIM * length + rest,))


def _tensor_scatter(reduction: Reduction | None) -> RuleOf:
    """tensor[index, rest], indices[q, length of an index] and updates[q, rest] give [index, rest]."""

    def rule(typed: TypedNode) -> Rule | None:
        length, q = typed.input(1)[-1], LETTERS[: len(typed.input(1)) - 1]
        if length is None or length < 0:
            return None
        rest = OTHER_LETTERS[: len(typed.input(2)) - len(q)]
        name = WHOLE_DIM * length + rest
        return Rule((name, q + WHOLE_DIM, q + rest), (name,), reduction)

    return rule


def _segments(reduction: Reduction) -> RuleOf:
    """data[q, rest] and the ids[q] of segments give [segment, rest]."""

    def rule(typed: TypedNode) -> Rule:
        q = LETTERS[: len(typed.input(1))]
        rest = OTHER_LETTERS[: len(typed.input(0)) - len(q)]
        return Rule((q + rest, q, ""), (WHOLE_DIM + rest,), reduction)

    return rule


def _one_hot(typed: TypedNode) -> Rule:
    rank = len(typed.output())
    axis = typed.attribute("axis", -1) % rank
    name = LETTERS[: rank - 1]
    return Rule((name, "", "", ""), (name[:axis] + WHOLE_DIM + name[axis:],))


INDICES: Mapping[str, Kind] = table(
    {
        "OneHot": Kind(_one_hot, additive=(2, 3), shapes=(1,), work=free),
        "Gather": Kind(_gather, linear=(0,), increasing=True, work=free),
        "GatherV2": Kind(_gather, linear=(0,), shapes=(2,), increasing=True, work=free),
        "GatherNd": Kind(_gather_nd, linear=(0,), increasing=True, work=free),
        "ResourceGather": Kind(_resource_gather(nested=False), work=free),
        "ResourceGatherNd": Kind(_resource_gather(nested=True), work=free),
        "LookupTableFind LookupTableFindV2": Kind(_lookup),
        "ScatterNd": Kind(_scatter, linear=(1,), shapes=(2,), work=per_input(1)),
        "TensorScatterAdd TensorScatterSub": Kind(_tensor_scatter(Reduction.SUM), additive=(0, 2), work=per_input(2)),
        "TensorScatterMax": Kind(_tensor_scatter(Reduction.MAX), work=per_input(2)),
        "TensorScatterMin": Kind(_tensor_scatter(Reduction.MIN), work=per_input(2)),
        "TensorScatterUpdate": Kind(_tensor_scatter(None), additive=(0, 2), work=free),
        "UnsortedSegmentSum": Kind(_segments(Reduction.SUM), linear=(0,), shapes=(2,), work=per_input(0)),
        "UnsortedSegmentMax": Kind(_segments(Reduction.MAX), shapes=(2,), work=per_input(0)),
        "UnsortedSegmentMin": Kind(_segments(Reduction.MIN), shapes=(2,), work=per_input(0)),
        "UnsortedSegmentProd": Kind(_segments(Reduction.PROD), shapes=(2,), work=per_input(0)),
    }
)
