"""Operations that search or sum up inside a cut dim give what TensorFlow gives on one device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.rule_cases import Array, Case, case
from tests.plan.rule_checks import node_of, run
from tests.rewrite.mesh import answers
from whale_tf.ir.sharding import WHOLE, Split, State

DRAWN = np.random.default_rng(2)


def real(*shape: int, dtype: Any = np.float32) -> Array:
    return np.asarray(3 * DRAWN.normal(size=shape), dtype)


def below(limit: int, *shape: int, dtype: Any = np.int32, least: int = 0) -> Array:
    return np.asarray(DRAWN.integers(least, limit, shape), dtype)


TIES = np.asarray([[1, 3, 2, 3, 3, 0], [5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 1], [2, 1, 1, 1, 1, 2]], np.float32)
STRANGE = np.asarray([[1, np.inf, 2, 0, 4, 5], [1, 3, -np.inf, 0, 4, 5], [-1, -2, -3, -4, -5, -6]], np.float32)
IMAGE = real(6, 4, 12)
ODD_ONES = [np.asarray(values, np.float32) for values in (2.5, -1.5)]
# The case, and the operand or result of which a dim is cut.
Cut = tuple[Case, tuple[State, ...], dict[int, Split]]


def cut(given: Case, *states: State, wished: Split | None = None) -> Cut:
    rest = (WHOLE,) * (len(given.inputs) - len(states))
    return given, (*states, *rest), {} if wished is None else {0: wished}


CASES: list[Cut] = [
    *(cut(case(op, real(4, 5, 6)), Split(2)) for op in ("Softmax", "LogSoftmax")),
    *(cut(case(op, real(4, 6) + 100), Split(1)) for op in ("Softmax", "LogSoftmax")),
    cut(case("Softmax", real(6)), Split(0)),
    *(
        cut(case("SparseSoftmaxCrossEntropyWithLogits", real(5, 12), below(12, 5, dtype=dtype)), Split(1))
        for dtype in (np.int32, np.int64)
    ),
    cut(case("SoftmaxCrossEntropyWithLogits", real(5, 12), np.abs(real(5, 12))), Split(1), Split(1)),
    cut(case("SoftmaxCrossEntropyWithLogits", real(5, 12), np.abs(real(5, 12))), Split(1), WHOLE),
    *(cut(case("GatherV2", IMAGE, below(IMAGE.shape[d], 3, 5), d, batch_dims=0), Split(d)) for d in (0, 2)),
    cut(case("GatherV2", IMAGE, below(12, 3, 5, dtype=np.int64), -1, batch_dims=0), Split(2)),
    cut(case("GatherV2", below(9, 6, 4), below(6), 0, batch_dims=0), Split(0)),
    *(
        cut(case("UnsortedSegmentSum", real(8, 3), below(6, 8, dtype=dtype, least=-2), 6), wished=Split(0))
        for dtype in (np.int32, np.int64)
    ),
    cut(case("UnsortedSegmentSum", real(2, 4, 3), below(6, 2, 4), 6), wished=Split(0)),
    *(
        cut(case("OneHot", below(9, 4, 5, dtype=dtype), 6, *ODD_ONES, axis=axis), wished=Split(at))
        for axis, at, dtype in ((-1, 2, np.int32), (0, 0, np.int64), (1, 1, np.uint8))
    ),
    *(
        cut(case(op, values, axis, output_type=kind), Split(axis % 2))
        for op in ("ArgMax", "ArgMin")
        for values, axis, kind in ((TIES, 1, tf.int64), (-TIES, -1, tf.int32), (TIES.T.copy(), 0, tf.int64))
    ),
    cut(case("ArgMax", below(4, 5, 6, 3), 1, output_type=tf.int64), Split(1)),
    *(
        cut(case("InTopKV2", values, below(6, len(values), dtype=dtype), np.asarray(k, dtype)), Split(1))
        for values in (TIES, real(7, 6))
        for k, dtype in ((1, np.int32), (3, np.int64))
    ),
    cut(case("InTopKV2", STRANGE, [4, 5, 0], 3), Split(1)),
    cut(case("InTopKV2", -np.abs(real(4, 6)), [-1, 6, 7, 0], 2), Split(1)),
]


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(("given", "states", "wished"), CASES, ids=[str(each[0]) for each in CASES])
def test_members_give_what_one_device_gives(
    given: Case, states: tuple[State, ...], wished: dict[int, Split], members: int
) -> None:
    node, kinds, values = node_of(given)
    constant = [at for at, value in enumerate(values) if value is not None]
    made, found = answers(node, kinds, given.inputs, constant, states, members, wished=wished)
    assert made.gathered == ()
    assert all(each.op != "AllGather" for each in made.moved)
    for there, here in zip(found, run(given, given.inputs), strict=True):
        assert there.dtype == here.dtype
        np.testing.assert_allclose(there, here, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("wrong", [-1, 6, 9])
def test_a_row_that_does_not_exist_fails_as_on_one_device(wrong: int) -> None:
    given = case("GatherV2", real(6, 4), [0, wrong], 0, batch_dims=0)
    good = case("GatherV2", real(6, 4), [0, 5], 0, batch_dims=0)
    node, kinds, _ = node_of(good)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"indices\[1\] = {wrong} is not in"):
        answers(node, kinds, given.inputs, [2], (Split(0), WHOLE, WHOLE), 2)


def test_a_segment_that_does_not_exist_fails_as_on_one_device() -> None:
    node, kinds, _ = node_of(case("UnsortedSegmentSum", real(3, 4), [0, 1, 5], 6))
    operands = [real(3, 4), np.asarray([0, 1, 6], np.int32), np.asarray(6, np.int32)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of range"):
        answers(node, kinds, operands, [2], (WHOLE,) * 3, 2, wished={0: Split(0)})


def test_a_label_that_no_class_has_gives_no_number() -> None:
    node, kinds, _ = node_of(case("SparseSoftmaxCrossEntropyWithLogits", real(3, 6), [0, 1, 5]))
    operands = [real(3, 6), np.asarray([0, 6, -1], np.int32)]
    _, (loss, gradient) = answers(node, kinds, operands, [], (Split(1), WHOLE), 2)
    assert np.isnan(loss).tolist() == [False, True, True]
    assert np.isnan(gradient).all(-1).tolist() == [False, True, True]
