"""What a mesh can cut besides what the table of rules says: reshapes, and dims that operations search or sum up inside.

    Reshape [4, 6, 8] -> [4, 48]    Split(1) becomes Split(1), and back; Split(2) becomes Split(1, 6)
    Softmax av -> av                v is cut: members agree on the largest and on the sum
    GatherV2 pd, q -> qd            p is cut: each member finds its own rows, and zeros; their sum is the answer

Such a letter is *inside*: `rewrite/member_insides.py` says how a member does its part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from whale_tf.ir.graph import Shape
from whale_tf.ir.sharding import SUMS, WHOLE, Split, State
from whale_tf.plan.kinds import LETTERS, OTHER_LETTERS, WHOLE_DIM, Rule, TypedNode
from whale_tf.plan.rules import rule_of

RESHAPES = frozenset({"Reshape", "ExpandDims", "Squeeze"})
# What the members' values of a Partial can be reduced in.
REDUCED = frozenset({"float16", "bfloat16", "float32", "float64", "int32", "int64"})
# Changes of state over the batch, which cut no dim: element by element.
OF_BATCH = frozenset({"Scale", "Shift", "Merge", "Write", "Gradient"})


@dataclass(frozen=True)
class MeshRule:
    """A rule and its letters that are inside: for each the state of results without the letter."""

    rule: Rule
    inside: Mapping[str, State] = field(default_factory=dict)


def mesh_rule(typed: TypedNode) -> MeshRule | None:
    """How a mesh may cut an operation; None if it cannot. Reshapes have no letters: see `moved`."""
    node = typed.node
    if node.op in OF_BATCH:
        shape = typed.input(0)
        return None if shape == Shape.unknown else MeshRule(Rule((LETTERS[: len(shape)],), (LETTERS[: len(shape)],)))
    rule = rule_of(node, typed.inputs, typed.values)
    if rule is None:
        return None
    found = _INSIDE[node.op](typed, rule) if node.op in _INSIDE else None
    return found or MeshRule(rule)


def divides(shape: Shape, split: Split, members: int) -> bool:
    """Whether a tensor of this shape can be cut so in equal pieces."""
    if not shape.known or split.dim >= len(shape):
        return False
    size = shape.sizes[split.dim]
    return size > 0 and size % (split.outer * members) == 0


def cut_letters(names: Sequence[str], states: Sequence[State | None]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Of tensors with these letters and states: the position, letter and outer of those that are cut along a letter."""
    for position, (name, state) in enumerate(zip(names, states, strict=True)):
        if isinstance(state, Split) and state.dim < len(name) and name[state.dim] != WHOLE_DIM:
            yield position, (name[state.dim], state.outer)


def moved(shape: Shape, other: Shape, split: Split, members: int) -> Split | None:
    """How a tensor is cut after a reshape from one shape to another; None if it is in no way that a Split says."""
    if not (shape.known and other.known):
        return None
    a, b = shape.sizes, other.sizes
    before = math.prod(a[: split.dim]) * split.outer
    if before * members == 0 or a[split.dim] % (split.outer * members):
        return None
    chunk = a[split.dim] // split.outer // members * math.prod(a[split.dim + 1 :])
    for dim, size in enumerate(b):
        ahead, after = math.prod(b[:dim]), math.prod(b[dim + 1 :])
        if size <= 1 or not ahead or not after or before % ahead or chunk % after:
            continue
        outer = before // ahead
        if size % (outer * members) == 0 and size // outer // members * after == chunk:
            return Split(dim, outer)
    return None


def _softmax(typed: TypedNode, rule: Rule) -> MeshRule:
    name = LETTERS[: len(typed.input(0))]
    return MeshRule(Rule((name,), (name,)), {name[-1:]: WHOLE})


def _cross_entropy(typed: TypedNode, rule: Rule) -> MeshRule | None:
    """The loss, which has no classes, is the same on all members; the gradient is cut as the logits."""
    logits, labels = typed.input(0), typed.input(1)
    if len(logits) != 2 or (len(labels) == 2 and labels != logits):
        return None
    sparse = typed.node.op.startswith("Sparse")
    return MeshRule(Rule(("av", "a" if sparse else "av"), ("a", "av")), {"v": WHOLE})


def _gather(typed: TypedNode, rule: Rule) -> MeshRule | None:
    """The axis that indices point into."""
    rank = len(typed.input(0))
    axes = typed.axes(2, rank) if len(typed.inputs) > 2 else frozenset({0})
    if axes is None or typed.attribute("batch_dims", 0) or typed.node.outputs[0].dtype not in REDUCED:
        return None
    (axis,) = axes
    return MeshRule(_along(rule, axis, LETTERS[rank]), {LETTERS[rank]: SUMS})


def _segments(typed: TypedNode, rule: Rule) -> MeshRule:
    """The segments: each member sums those of its own."""
    return MeshRule(replace(rule, outputs=(_LAST + rule.outputs[0][1:],)), {_LAST: WHOLE})


def _one_hot(typed: TypedNode, rule: Rule) -> MeshRule:
    axis = typed.attribute("axis", -1) % len(typed.output())
    result = rule.outputs[0]
    return MeshRule(replace(rule, outputs=(result[:axis] + _LAST + result[axis + 1 :],)), {_LAST: WHOLE})


def _arg_extreme(typed: TypedNode, rule: Rule) -> MeshRule | None:
    rank = len(typed.input(0))
    axes = typed.axes(1, rank)
    if axes is None or len(axes) != 1 or typed.inputs[0].dtype not in REDUCED:
        return None
    (axis,) = axes
    return MeshRule(_along(rule, axis, _LAST), {_LAST: WHOLE})


def _in_top_k(typed: TypedNode, rule: Rule) -> MeshRule:
    return MeshRule(Rule(("av", "a", *rule.inputs[2:]), ("a",)), {"v": WHOLE})


def _along(rule: Rule, axis: int, letter: str) -> Rule:
    """The rule with a letter for an axis of input 0 that is whole without it."""
    name = rule.inputs[0]
    return replace(rule, inputs=(name[:axis] + letter + name[axis + 1 :], *rule.inputs[1:]))


_LAST = OTHER_LETTERS[-1]
_INSIDE: Mapping[str, Callable[[TypedNode, Rule], MeshRule | None]] = MappingProxyType(
    {
        "Softmax": _softmax,
        "LogSoftmax": _softmax,
        "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
        "SoftmaxCrossEntropyWithLogits": _cross_entropy,
        "GatherV2": _gather,
        "UnsortedSegmentSum": _segments,
        "OneHot": _one_hot,
        "ArgMax": _arg_extreme,
        "ArgMin": _arg_extreme,
        "InTopKV2": _in_top_k,
    }
)
