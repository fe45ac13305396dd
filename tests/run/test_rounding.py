"""What is taken for rounding: relative to the largest of the result, its terms, and what parts add to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.rewrite.steps import sized
from whale_tf.ir.graph import Ref
from whale_tf.run.rounding import TOLERANCE, allowed, largest_of

STEP = """
graph step(out: s, m, t, n, c) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  half = Input() {index=1, batch=true} : float16[BATCH,3]
  axis = Const() {value=(0)} : int32[1]
  s = Sum(x, axis) : float32[3]
  m = MatMul(x, x) {transpose_a=true} : float32[3,3]
  t = Tanh(x) : float32[BATCH,3]
  n = Cast(x) {SrcT=float32, DstT=int32} : int32[BATCH,3]
  c = Cast(half) {SrcT=float16, DstT=float32} : float32[BATCH,3]
}
"""
SIZES = sized(STEP, 4, 2)
SINGLE = TOLERANCE["float32"]


def limit(name: str, expected: Any, *parts: Any, x: Any = 0.0) -> float:
    operands = {Ref("x"): np.full((4, 3), x, np.float32)}
    arrays = [np.asarray(each, np.float32) for each in parts]
    return allowed(SIZES, SIZES.graph[name], np.asarray(expected), arrays, operands)


def test_it_is_relative_to_the_largest_number() -> None:
    assert limit("t", np.array([0.5, -2.0], np.float32)) == pytest.approx(2 * SINGLE)


def test_it_is_relative_to_what_the_parts_add() -> None:
    assert limit("s", np.float32(1e-6), 5.0, -5.0) == pytest.approx(5 * SINGLE)


def test_a_sum_of_large_terms_may_be_rounding_only() -> None:
    assert limit("s", np.zeros(3, np.float32), x=8.0) == pytest.approx(8 * 2 * SINGLE)  # four terms: their root


def test_so_may_a_product_of_matrices() -> None:
    assert limit("m", np.zeros((3, 3), np.float32), x=8.0) >= 64 * SINGLE


def test_an_operation_without_sums_is_not_excused_by_large_operands() -> None:
    assert limit("t", np.float32(1e-6), x=8.0) == pytest.approx(1e-6 * SINGLE)


def test_integers_are_exact() -> None:
    assert limit("n", np.array([7, 9], np.int32)) == 0


def test_the_coarsest_type_counts() -> None:
    assert limit("c", np.float32(1.0)) == pytest.approx(TOLERANCE["float16"])


def test_what_is_not_finite_has_no_size() -> None:
    assert largest_of(np.array([np.inf, np.nan, -3.0])) == 3.0
    assert largest_of(np.array([b"text"], object)) == 0.0
    assert largest_of(np.zeros((0, 2), np.float32)) == 0.0
