"""The part of `check` that multiplies out the sums of a main graph, to see what every micro-batch contributes.

    gradient of w  =  Mul(AddN(r0/0B1:2, r1/0B1:2), 0.25)  =  ¼ (r0, 0) + ¼ (r0, 1) + ¼ (r1, 0) + ¼ (r1, 1)

It goes through the operations that may put such parts together, Mul by a constant, transfers, and the sums that calls
hand on. A sum must have each micro-batch of each replica once, with its weight: its share of the examples for a mean,
1 for a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from typing import NamedTuple

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.rewrite.check_calls import WEIGHT_TOLERANCE, Called, Calls, Part
from whale_tf.rewrite.check_transfers import REDUCTIONS

ADDED = frozenset({"AddV2", "AddN"})
JOINED = frozenset({"ConcatV2"})


class Term(NamedTuple):
    """One summand: a micro-batch's value, times a weight."""

    part: Part
    weight: float


class _Place(NamedTuple):
    """A tensor on the way: of the main graph, or of the function of a call; times a weight."""

    call: Called | None
    ref: Ref
    weight: float


@dataclass(frozen=True)
class Sum:
    """A sum to multiply out.

    Attributes:
      title: what it is, for messages.
      given: the tensor of the main graph.
      wanted: the tensor of the step of which each micro-batch contributes its own.
      by: the operations that may put its parts together.
      marker: the gradient marker whose sums calls hand on; empty if it is no gradient.
    """

    title: str
    given: Ref
    wanted: Ref
    by: frozenset[str]
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
            return self._given_by(calls.by_name.get(node.name), ref, weight)
        scale = scaled(calls.main, node)
        if scale is not None:
            return [_Place(None, scale[0], weight * scale[1])]
        if node.op in self.by:
            items = node.inputs[:-1] if node.op == "ConcatV2" else node.inputs
            return [_Place(None, item, weight) for item in items]
        if node.op == "Reshape" and self.by == JOINED and calls.slice_of(node, calls.graph[self.wanted.node]) is None:
            return [_Place(None, node.inputs[0], weight)]
        if node.op == "WhaleSum":
            parts, scale = node.attrs["parts"], node.attrs["scale"]
            return [_Place(None, item, weight * scale) for item in node.inputs[ref.index * parts :][:parts]]
        if node.op in REDUCTIONS:
            peers = calls.reductions[node.attrs["id"]]
            return [_Place(None, peer.inputs[ref.index], weight * node.attrs["scale"]) for peer in peers]
        if node.op == "Mul" and isinstance(main_value(calls.main, node.inputs[1]), tuple):  # the rows of a shape
            return [_Place(None, node.inputs[0], weight)]
        if node.op == "AddV2" and self.by == JOINED:  # positions, as the whole batch counts them
            return [_Place(None, node.inputs[0], weight)]
        if node.op == "Const":
            return [] if node.attrs["value"] == 0 else None
        part = calls.slice_of(node, calls.graph[self.wanted.node])
        return None if part is None else Term(part, weight)

    def _given_by(self, called: Called | None, ref: Ref, weight: float) -> Term | list[_Place] | None:
        if called is None:
            return None
        results, sums = called.function.results, called.function.sums
        if ref.index < len(results):
            is_it = not self.marker and results[ref.index] == self.wanted
            return Term(called.part, weight) if is_it else None
        if sums[ref.index - len(results)] != self.marker:
            return None
        return [_Place(called, called.function.graph.outputs[ref.index], weight)]

    def _in_call(self, calls: Calls, call: Called, place: _Place) -> Term | list[_Place] | None:
        """The same inside a stage function, where the micro-batch's own gradient is added to the sum so far."""
        function, ref, weight, wanted = call.function, place.ref, place.weight, self.wanted
        node = function.graph[ref.node]
        if ref == wanted:
            return Term(call.part, weight)
        if node.op == "Argument":
            source = function.arguments[node.attrs["index"]]
            if source.kind == "sum" and source.name == self.marker:
                return [_Place(None, call.node.inputs[node.attrs["index"]], weight)]
            return Term(call.part, weight) if source.ref == wanted else None
        if node.op == "AddV2":
            return [_Place(call, item, weight) for item in node.inputs]
        return None


def differences(title: str, terms: Iterable[Term], expected: Mapping[Part, float]) -> Iterator[str]:
    """In what a sum is not the expected one: every part once, times its weight."""
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


def main_value(main: Graph, ref: Ref) -> object:
    """The value of a constant that a pass put there; None for anything else."""
    return main[ref.node].attrs.get("value") if main[ref.node].op == "Const" else None


def scaled(main: Graph, node: Node) -> tuple[Ref, float] | None:
    """Of a Mul by a number that a pass put there: the other factor and the number."""
    if node.op == "Mul":
        for value, factor in (node.inputs, reversed(node.inputs)):
            number = main[factor.node].attrs.get("value") if main[factor.node].op == "Const" else None
            if isinstance(number, (int, float)):
                return value, float(number)
    return None
