"""How far two results of one operation, computed from the same numbers in another order, may be from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sizes import Array, Sizes
from whale_tf.plan.kinds import Rule
from whale_tf.plan.rules import rule_of

# Of the largest number, by type: some hundred roundings of one operation, a few of those of half precision.
TOLERANCE: Mapping[str, float] = MappingProxyType(
    {
        "bfloat16": 5e-2,
        "float16": 1e-2,
        "float32": 1e-5,
        "float64": 1e-10,
        "complex64": 1e-5,
        "complex128": 1e-10,
    }
)


def allowed(sizes: Sizes, node: Node, expected: Array, parts: Sequence[Array], operands: Mapping[Ref, Array]) -> float:
    """The largest difference that is rounding only; 0 for what is no float.

    It is relative to the largest number of the result, of the terms that add up to it, and of what the parts add to it:
    a sum of large terms may be small, and is then mostly rounding. The coarsest type of all operands counts.

    Args:
      sizes: the step.
      node: the operation.
      expected: one of its results.
      parts: what the parts have of that.
      operands: the values of what it takes, as far as they are known.
    """
    if expected.dtype.name not in TOLERANCE:
        return 0.0
    taken = (sizes.type_of(ref).dtype for ref in node.inputs)
    tolerance = max(TOLERANCE.get(dtype, 0.0) for dtype in (expected.dtype.name, *taken))
    largest = max(largest_of(expected), *map(largest_of, parts), _terms(sizes, node, expected, operands))
    return tolerance * largest + float(np.finfo(np.float32).tiny)


def largest_of(values: Array) -> float:
    """The largest absolute value among the finite ones; 0 for what are no numbers."""
    if values.dtype.kind in "OSUb" or not values.size:
        return 0.0
    real = np.abs(values.astype(np.float64) if values.dtype.kind not in "c" else values)
    return float(np.max(real, where=np.isfinite(real), initial=0))


def _terms(sizes: Sizes, node: Node, expected: Array, operands: Mapping[Ref, Array]) -> float:
    """The size of the terms that an operation adds."""
    found = [operands.get(ref) for ref in node.inputs]
    sizes_of = [0.0 if values is None else largest_of(values) for values in found]
    if functions_of(node):
        return max(sizes_of, default=0.0)  # what is added within, nobody knows
    rule = rule_of(node, [sizes.type_of(ref) for ref in node.inputs], [sizes.values.get(ref) for ref in node.inputs])
    if rule is None:
        return 0.0
    terms = max((sizes_of[position] for position in rule.additive), default=0.0)
    if _contracts(rule) and rule.linear:
        count = max((values.size for values in found if values is not None), default=1) / max(1, expected.size)
        terms = max(terms, math.prod(sizes_of[position] for position in rule.linear) * math.sqrt(max(1.0, count)))
    return terms


def _contracts(rule: Rule) -> bool:
    """Whether it adds elements along a dim: a letter of an input, or a dim that must be whole, has no result."""
    return any(set(letters) - set(output) for letters in rule.inputs for output in rule.outputs) or any(
        letters.count(".") > output.count(".") for letters in rule.inputs for output in rule.outputs
    )
