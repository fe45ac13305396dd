"""What a mesh can cut besides what the table of rules says: reshapes, and dims that operations search or sum up inside.

    Reshape [4, 6, 8] -> [4, 48]    Split(1) becomes Split(1), and back; Split(2) becomes Split(1, 6)
    Softmax av -> av                v is cut: members agree on the largest and on the sum
    GatherV2 pd, q -> qd            p is cut: each member finds its own rows, and zeros; their sum is the answer

Such a letter is *inside*: `rewrite/member_insides.py` says how a member does its part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whale_tf.ir.graph import Shape
from whale_tf.ir.sharding import SUMS, WHOLE, Split, State
from whale_tf.plan.kinds import LETTERS, OTHER_LETTERS, Rule, TypedNode
from whale_tf.plan.rules import rule_of

RESHAPES = frozenset({"Reshape", "ExpandDims", "Squeeze"})
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
    if axes is None or typed.attribute("batch_dims", 0) or typed.node.outputs[0].dtype not in _NUMBERS:
        return None
    (axis,) = axes
    name = rule.inputs[0]
    letter = LETTERS[rank]
    found = Rule((name[:axis] + letter + name[axis + 1 :], *rule.inputs[1:]), rule.outputs, shapes=rule.shapes)
    return MeshRule(found, {letter: SUMS})


def _segments(typed: TypedNode, rule: Rule) -> MeshRule:
    """The segments: each member sums those of its own."""
    letter = OTHER_LETTERS[-1]
    return MeshRule(_with_results(rule, letter + rule.outputs[0][1:]), {letter: WHOLE})


def _one_hot(typed: TypedNode, rule: Rule) -> MeshRule:
    axis = typed.attribute("axis", -1) % len(typed.output())
    letter = OTHER_LETTERS[-1]
    result = rule.outputs[0]
    return MeshRule(_with_results(rule, result[:axis] + letter + result[axis + 1 :]), {letter: WHOLE})


def _arg_extreme(typed: TypedNode, rule: Rule) -> MeshRule | None:
    rank = len(typed.input(0))
    axes = typed.axes(1, rank)
    if axes is None or len(axes) != 1 or typed.inputs[0].dtype not in _NUMBERS:
        return None
    (axis,) = axes
    letter = OTHER_LETTERS[-1]
    name = rule.inputs[0]
    found = Rule((name[:axis] + letter + name[axis + 1 :], *rule.inputs[1:]), rule.outputs, shapes=rule.shapes)
    return MeshRule(found, {letter: WHOLE})


def _in_top_k(typed: TypedNode, rule: Rule) -> MeshRule:
    return MeshRule(Rule(("av", "a", *rule.inputs[2:]), ("a",)), {"v": WHOLE})


def _with_results(rule: Rule, result: str) -> Rule:
    return Rule(rule.inputs, (result,), rule.reduction, rule.linear, rule.additive, rule.powers, rule.shapes)


_NUMBERS = frozenset({"float16", "bfloat16", "float32", "float64", "int32", "int64"})
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
