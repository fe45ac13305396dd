"""Brings a tensor from one state to another among the members of a mesh, by their collectives.

    Partial -> Whole      all-reduce             Whole   -> Split      the member's own piece, nothing is moved
    Partial -> Split      reduce-scatter         Whole   -> Partial    member 0 holds it, the others zeros
    Split   -> Whole      all-gather             Split   -> Split      all-to-all

A Split(dim, outer) of n members sees its dim as (outer, n, piece). Collectives work on the first dim, so that n is
brought to the front, and back.
"""

from __future__ import annotations

from collections.abc import Sequence

from whale_tf.ir.graph import Ref, Shape, TensorType
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Reduction, Split, State
from whale_tf.rewrite.member_ops import BOOL, INT32, MemberGraph

REDUCTIONS = {Reduction.SUM: "sum", Reduction.MAX: "max", Reduction.MIN: "min", Reduction.PROD: "product"}


def local_type(kind: TensorType, state: State, members: int) -> TensorType:
    """The type of what a member has of a tensor."""
    if not isinstance(state, Split):
        return kind
    size = kind.shape.sizes[state.dim] // members
    return TensorType(kind.dtype, Shape((*kind.shape[: state.dim], size, *kind.shape[state.dim + 1 :])))


def bring(graph: MemberGraph, name: str, ref: Ref, kind: TensorType, have: State, want: State) -> Ref:
    """The tensor in another state.

    Args:
      name: of what it is for.
      ref: what the member has.
      kind: the type of the whole tensor.
    """
    if have == want or (want == WHOLE and graph.members == 1):
        return ref
    if isinstance(have, Partial):
        if isinstance(want, Split) and have == SUMS:
            return _scattered(graph, name, ref, kind, want)
        ref, have = graph.all_reduced(name, ref, REDUCTIONS[have.op]), WHOLE
        return bring(graph, name, ref, kind, have, want)
    if isinstance(have, Split):
        if isinstance(want, Split) and want.dim != have.dim:
            return _exchanged(graph, name, ref, kind, have, want)
        return bring(graph, name, _gathered(graph, name, ref, kind, have), kind, WHOLE, want)
    if isinstance(want, Split):
        return _piece(graph, name, ref, kind, want)
    return _held_by_first(graph, name, ref)


def _seen(shape: Shape, split: Split, members: int) -> tuple[tuple[int, ...], int]:
    """The shape with the dim as (outer, members, piece), and where members are."""
    sizes, size = shape.sizes, shape.sizes[split.dim]
    apart = (split.outer, members, size // split.outer // members)
    return (*sizes[: split.dim], *apart, *sizes[split.dim + 1 :]), split.dim + 1


def _to_front(rank: int, at: int) -> list[int]:
    return [at, *(dim for dim in range(rank) if dim != at)]


def _from_front(rank: int, at: int) -> list[int]:
    return [*range(1, at + 1), 0, *range(at + 1, rank)]


def _piece(graph: MemberGraph, name: str, ref: Ref, kind: TensorType, split: Split) -> Ref:
    local = local_type(kind, split, graph.members).shape.sizes
    if split.outer == 1:
        return graph.sliced(name, ref, split.dim, local[split.dim])
    seen, at = _seen(kind.shape, split, graph.members)
    apart = graph.sliced(name, graph.reshaped(name, ref, seen), at, 1)
    return graph.reshaped(name, apart, local)


def _scattered(graph: MemberGraph, name: str, ref: Ref, kind: TensorType, split: Split) -> Ref:
    local = local_type(kind, split, graph.members).shape.sizes
    attrs = {"K": 0, "reduction": b"sum", "scale": 1.0, "members": graph.members}
    if split.outer == 1 and split.dim == 0:
        return graph.collective(name, "ReduceScatter", ref, local, **attrs)
    seen, at = _seen(kind.shape, split, graph.members)
    turned = graph.transposed(name, graph.reshaped(name, ref, seen), _to_front(len(seen), at))
    rest = graph.type_of(turned).shape[1:]
    return graph.reshaped(name, graph.collective(name, "ReduceScatter", turned, (1, *rest), **attrs), local)


def _gathered(graph: MemberGraph, name: str, ref: Ref, kind: TensorType, split: Split) -> Ref:
    whole = kind.shape.sizes
    if split.outer == 1 and split.dim == 0:
        return graph.collective(name, "AllGather", ref, whole)
    seen, at = _seen(kind.shape, split, graph.members)
    own = (*seen[:at], *seen[at + 1 :])
    row = graph.reshaped(name, ref, (1, *own))
    rows = graph.collective(name, "AllGather", row, (graph.members, *own))
    return graph.reshaped(name, graph.transposed(name, rows, _from_front(len(seen), at)), whole)


def _exchanged(graph: MemberGraph, name: str, ref: Ref, kind: TensorType, have: Split, want: Split) -> Ref:
    """Cuts what the member has along the other dim, and puts together along the first what comes back."""
    members = graph.members
    local = local_type(kind, have, members)
    cut, at = _seen(local.shape, want, members)
    turned = graph.transposed(name, graph.reshaped(name, ref, cut), _to_front(len(cut), at))
    swapped = graph.collective(name, "AllToAll", turned, graph.type_of(turned).shape, members=members)
    rest = _seen_with(local_type(kind, want, members).shape.sizes, have, members)
    where = have.dim + 1
    front = (members, *rest[:where], *rest[where + 1 :])
    placed = graph.transposed(name, graph.reshaped(name, swapped, front), _from_front(len(rest), where))
    return graph.reshaped(name, placed, local_type(kind, want, members).shape.sizes)


def _seen_with(sizes: Sequence[int], split: Split, members: int) -> tuple[int, ...]:
    return _seen(Shape(sizes), split, members)[0]


def _held_by_first(graph: MemberGraph, name: str, ref: Ref) -> Ref:
    first = graph.known.get("first")
    if first is None:
        first = graph.binary("mesh/first", "Equal", graph.member, graph.number(0, INT32), BOOL)
        graph.known["first"] = first
    return graph.chosen(name, first, ref, graph.zeros(name, ref))
