"""The part of `check` that multiplies out the sums of a main graph, to see what every micro-batch contributes.

    gradient of w  =  Mul(AddN(r0/0B1:2, r1/0B1:2), 0.25)  =  ¼ (r0, 0) + ¼ (r0, 1) + ¼ (r1, 0) + ¼ (r1, 1)

It goes through the operations that may put such parts together, Mul by a constant, transfers, and the sums that calls
hand on. A sum must have each micro-batch of each replica once, with its weight: its share of the examples for a mean,
1 for a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from types import MappingProxyType
from typing import NamedTuple

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.sharding import Reduction, Split
from whale_tf.rewrite.check_calls import WEIGHT_TOLERANCE, Called, Calls, Part
from whale_tf.rewrite.check_transfers import meeting_of
from whale_tf.rewrite.combine import BETWEEN, FOLDS
from whale_tf.rewrite.program import BETWEEN_GROUPS, COLLECTIVES


@dataclass(frozen=True)
class Way:
    """How parts may be put together.

    Attributes:
      ops: operations that do it.
      reduction: what AllReduce does; empty if it must not stand in the way.
      along: the operation that does it along a dim, to what AllGather has brought.
    """

    ops: frozenset[str]
    reduction: str = ""
    along: str = ""


ADDED = Way(frozenset({"AddV2", "AddN"}), *BETWEEN[Reduction.SUM])
JOINED = Way(frozenset({"ConcatV2"}))
FOLDED: Mapping[Reduction, Way] = MappingProxyType(
    {reduction: Way(frozenset({op}), *BETWEEN[reduction]) for reduction, op in FOLDS.items()}
)
# What changes how pieces lie, but not which are there.
MOVED = frozenset({"Transpose", "ExpandDims"})


class Term(NamedTuple):
    """One summand: a micro-batch's value, times a weight; and how often it is reduced over all groups on its way.

    Of a stage that is cut it is what one member has.
    """

    part: Part
    weight: float
    times: int = 0
    member: int = 0


class _Place(NamedTuple):
    """A tensor on the way: of the main graph, or of the function of a call; times a weight."""

    call: Called | None
    ref: Ref
    weight: float
    times: int = 0


@dataclass(frozen=True)
class Sum:
    """A sum to multiply out.

    Attributes:
      title: what it is, for messages.
      given: the tensor of the main graph.
      wanted: the tensor of the step of which each micro-batch contributes its own.
      by: how its parts may be put together.
      marker: the gradient marker whose sums calls hand on; empty if it is no gradient.
    """

    title: str
    given: Ref
    wanted: Ref
    by: Way
    marker: str = ""

    def terms(self, calls: Calls) -> Iterator[Term | str]:
        """Its summands in order, and in words what is none."""
        stack = [_Place(None, self.given, 1.0)]
        for _ in range(16 * len(calls.parts) + 16):  # far more than a sound sum has nodes
            if not stack:
                return
            place = stack.pop()
            found = self._in_main(calls, place) if place.call is None else self._in_call(calls, place.call, place)
            if found is None:
                where = "the main graph" if place.call is None else f"'{place.call.node.name}'"
                yield f"{self.title} adds '{place.ref}' of {where}, which is no part of it"
            elif isinstance(found, Term):
                yield found
            else:
                stack += reversed(found)
        yield f"{self.title} is a sum without end"

    def _in_main(self, calls: Calls, place: _Place) -> Term | list[_Place] | None:
        """A summand, or what the tensor is made of; None if it is neither."""
        ref, weight = calls.origin(place.ref), place.weight
        node = calls.main[ref.node]
        if node.op == "Call":
            return self._given_by(calls.by_name.get(node.name), place._replace(ref=ref))
        items = self._items(calls, node, ref)
        if items is not None:
            return [place._replace(ref=item) for item in items]
        scale = scaled(calls.main, node)
        if scale is not None:
            return [place._replace(ref=scale[0], weight=weight * scale[1])]
        if node.op == "WhaleSum":
            parts, number = node.attrs["parts"], node.attrs["scale"]
            items = node.inputs[ref.index * parts :][:parts]
            return [place._replace(ref=item, weight=weight * number) for item in items]
        if node.op in COLLECTIVES:
            return self._in_collective(calls, node, place._replace(ref=ref))
        if node.op == "Const":
            return [] if node.attrs["value"] == 0 else None
        part = calls.slice_of(node, calls.graph[self.wanted.node])
        return None if part is None else Term(part, weight, place.times)

    def _items(self, calls: Calls, node: Node, ref: Ref) -> Sequence[Ref] | None:
        """What an operation that only puts parts together takes; None for another one."""
        if isinstance(calls.step.sums_lie.get(self.marker), Split) and node.op in ("ConcatV2", "Reshape"):
            return node.inputs[:-1]  # the pieces of a mesh's members
        if node.op in self.by.ops and not (node.op == "Mul" and scaled(calls.main, node)):
            return node.inputs[:-1] if node.op == "ConcatV2" else node.inputs
        if self.by == JOINED:
            whole = node.op == "Reshape" and calls.slice_of(node, calls.graph[self.wanted.node]) is None
            counted = node.op == "AddV2"  # positions, as the whole batch counts them
            if whole or counted or node.op in MOVED:
                return node.inputs[:1]
            return [] if node.op == "Slice" and 0 in _numbers(calls.main, node.inputs[2]) else None
        gathered = node.op == self.by.along and calls.main[node.inputs[0].node].op == "AllGather"
        if gathered or node.op == "ExpandDims":
            return node.inputs[:1]
        return node.inputs[:1] if node.op == "Mul" and _numbers(calls.main, node.inputs[1]) else None  # rows of a shape

    def _in_collective(self, calls: Calls, node: Node, place: _Place) -> list[_Place] | None:
        """What all nodes of a collective take, in the order of their processes."""
        between, joins = node.op in BETWEEN_GROUPS, node.op == "AllGather"
        adds = node.op == "Reduce" or node.attrs.get("reduction") == self.by.reduction.encode()
        if not (joins or (adds and self.by.reduction)):
            return None
        peers = calls.meetings[meeting_of(node)]
        if between:
            peers = sorted(peers, key=lambda peer: calls.group_of(Ref(peer.name)))
        weight, times = place.weight * node.attrs.get("scale", 1.0), place.times + between
        return [_Place(None, peer.inputs[place.ref.index], weight, times) for peer in peers]

    def _given_by(self, called: Called | None, place: _Place) -> Term | list[_Place] | None:
        if called is None:
            return None
        ref, results, sums = place.ref, called.function.results, called.function.sums
        if ref.index < len(results):
            is_it = not self.marker and results[ref.index] == self.wanted
            return Term(called.part, place.weight, place.times) if is_it else None
        if sums[ref.index - len(results)] != self.marker:
            return None
        return [place._replace(call=called, ref=(called.function.whole or called.function).graph.outputs[ref.index])]

    def _in_call(self, calls: Calls, call: Called, place: _Place) -> Term | list[_Place] | None:
        """The same inside a stage function, where the micro-batch's own gradient is added to the sum so far."""
        function, ref, wanted = call.function.whole or call.function, place.ref, self.wanted
        node, term = function.graph[ref.node], Term(call.part, place.weight, place.times, call.member)
        if ref == wanted:
            return term
        if node.op == "Argument":
            source = function.arguments[node.attrs["index"]]
            if source.kind == "sum" and source.name == self.marker:
                return [place._replace(call=None, ref=call.node.inputs[node.attrs["index"]])]
            return term if source.ref == wanted else None
        if node.op == "AddV2":
            return [place._replace(ref=item) for item in node.inputs]
        return None


def differences_of_members(
    title: str, terms: Sequence[Term], expected: Mapping[Part, float], members: int, *, times: int = 0
) -> Iterator[str]:
    """The same for what the members of a mesh have together: each member's once, of each part in their order."""
    for member in range(members):
        own = [term for term in terms if term.member == member]
        yield from differences(f"{title}, of member {member}," if members > 1 else title, own, expected, times=times)
    for part in expected:
        order = [term.member for term in terms if term.part == part]
        if order != list(range(members)):
            yield f"{title} has of replica {part[0]}, micro-batch {part[1]} what members {order} have"


def differences(title: str, terms: Sequence[Term], expected: Mapping[Part, float], *, times: int = 0) -> Iterator[str]:
    """In what a sum is not the expected one: every part once, with its weight, so often reduced between groups."""
    if any(term.times != times for term in terms):
        found = terms[0].times
        yield f"{title} is put together {found} times between the groups of replicas, and should be {times} times"
    counts: dict[Part, int] = {}
    weights: dict[Part, float] = {}
    for term in terms:
        counts[term.part] = counts.get(term.part, 0) + 1
        weights[term.part] = weights.get(term.part, 0.0) + term.weight
    for part in {**expected, **counts}:
        name = f"replica {part[0]}, micro-batch {part[1]}"
        count, wanted = counts.get(part, 0), int(part in expected)
        if not wanted or count != 1:
            yield f"{title} has {count} times {name}, and should have it {wanted} times"
        elif not isclose(weights.get(part, 0.0), expected[part], rel_tol=WEIGHT_TOLERANCE):
            yield f"{title} weighs {name} by {weights.get(part, 0.0):.9g}, and should by {expected[part]:.9g}"


def _numbers(main: Graph, ref: Ref) -> tuple[int, ...]:
    """The elements of a constant vector that a pass put there; none of anything else."""
    value = main[ref.node].attrs.get("value") if main[ref.node].op == "Const" else None
    return value if isinstance(value, tuple) else ()


def scaled(main: Graph, node: Node) -> tuple[Ref, float] | None:
    """Of a Mul by a number that a pass put there: the other factor and the number."""
    if node.op == "Mul":
        for value, factor in (node.inputs, reversed(node.inputs)):
            number = main[factor.node].attrs.get("value") if main[factor.node].op == "Const" else None
            if isinstance(number, (int, float)):
                return value, float(number)
    return None
