"""How reshapes move what is cut, and which operations search inside a dim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.mesh import parts_of
from whale_tf.ir.graph import DType, Node, Shape, TensorType
from whale_tf.ir.sharding import Split
from whale_tf.plan.kinds import TypedNode
from whale_tf.plan.shard_rules import mesh_rule, moved

MOVES: list[tuple[tuple[int, ...], tuple[int, ...], Split, Split | None]] = [
    ((4, 6, 8), (4, 48), Split(1), Split(1)),
    ((4, 48), (4, 6, 8), Split(1), Split(1)),
    ((4, 6, 8), (4, 48), Split(2), Split(1, 6)),
    ((4, 48), (4, 6, 8), Split(1, 6), Split(2)),
    ((4, 6, 8), (24, 8), Split(1), Split(0, 4)),
    ((4, 6, 8), (24, 8), Split(0), Split(0)),
    ((4, 6, 8), (192,), Split(2), Split(0, 24)),
    ((6, 8), (6, 1, 8), Split(1), Split(2)),
    ((6, 1, 8), (6, 8), Split(2), Split(1)),
    ((4, 6), (6, 4), Split(0), Split(0)),
    ((4, 6), (6, 4), Split(1), None),
    ((4, 7), (28,), Split(1), None),
    ((4, -1), (8,), Split(0), None),
    ((4, 6), (24,), Split(1, 3), Split(0, 12)),
]


@pytest.mark.parametrize(("shape", "other", "split", "result"), MOVES)
def test_a_reshape_moves_what_is_cut(
    shape: tuple[int, ...], other: tuple[int, ...], split: Split, result: Split | None
) -> None:
    assert moved(Shape(shape), Shape(other), split, 2) == result


SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)


@given(SIZES, SIZES, st.integers(0, 3), st.sampled_from([1, 2, 3]), st.sampled_from([2, 3]))
def test_members_reshape_what_they_have(
    sizes: list[int], others: list[int], dim: int, outer: int, members: int
) -> None:
    """Whatever `moved` says, each member's piece in its new shape is its piece of the reshaped tensor."""
    total, rest = int(np.prod(sizes)), int(np.prod(others))
    other = (*others, total // rest) if total % rest == 0 else (*sizes, 1)
    split = Split(dim % len(sizes), outer)
    found = moved(Shape(sizes), Shape(other), split, members)
    if found is None:
        return
    value = np.arange(total).reshape(sizes)
    for piece, expected in zip(
        parts_of(value, split, members), parts_of(value.reshape(other), found, members), strict=True
    ):
        np.testing.assert_array_equal(piece.reshape(expected.shape), expected)


def typed(
    op: str, *kinds: tuple[str, tuple[int, ...]], result: tuple[int, ...], axis: int = 0, **attrs: int
) -> TypedNode:
    types = tuple(TensorType(DType(dtype), Shape(shape)) for dtype, shape in kinds)
    values = tuple(np.asarray(axis) if not shape else None for _, shape in kinds)
    node = Node("node", op, attrs=attrs, outputs=(TensorType(types[0].dtype, Shape(result)),))
    return TypedNode(node, types, values)


@pytest.mark.parametrize(
    ("node", "letters"),
    [
        (typed("GatherV2", ("float32", (8, 4)), ("int32", (5,)), ("int32", ()), result=(5, 4)), "c"),
        (typed("GatherV2", ("bool", (8, 4)), ("int32", (5,)), ("int32", ()), result=(5, 4)), ""),
        (
            typed(
                "GatherV2", ("float32", (4, 8)), ("int32", (4, 5)), ("int32", ()), result=(4, 5), axis=1, batch_dims=1
            ),
            "",
        ),
        (typed("ArgMax", ("float32", (4, 8)), ("int32", ()), result=(4,), axis=1), "Z"),
        (typed("ArgMax", ("bool", (4, 8)), ("int32", ()), result=(4,), axis=1), ""),
        (typed("Softmax", ("float32", (4, 5, 8)), result=(4, 5, 8)), "c"),
    ],
)
def test_what_members_search_inside(node: TypedNode, letters: str) -> None:
    rule = mesh_rule(node)
    assert rule is not None
    assert "".join(rule.inside) == letters
