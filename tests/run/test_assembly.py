"""What the parts of a tensor stand for: one text of a state, what two parts have, and the whole value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from whale_tf.ir.sharding import Value
from whale_tf.run.assembly import Piece, Unassembled, assembled

SHARES, FIRSTS = (0.25, 0.75), (0, 1)  # a batch of four examples: one, and three


def pieces(*values: Any, dtype: type = np.float32) -> list[Piece]:
    arrays = [np.asarray(each, dtype if not isinstance(each, np.ndarray) else each.dtype) for each in values]
    return [Piece(*each) for each in zip(arrays, SHARES, FIRSTS, strict=True)]


@pytest.mark.parametrize(
    ("state", "first", "second", "whole"),
    [
        ("Split(0)", [[1, 2]], [[3, 4], [5, 6], [7, 8]], [[1, 2], [3, 4], [5, 6], [7, 8]]),
        ("Split(1)", [[1], [2]], [[3, 4], [5, 6]], [[1, 3, 4], [2, 5, 6]]),
        ("Split(0, 2)", [1, 5], [2, 3, 4, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]),
        ("Split(0) of degree 1", [1], [3, 3, 6], [4, 4, 4, 8]),
        ("Split(0, 1, 2)", [0], [0, 2, 4], [0, 2, 4, 6]),
        ("Split(0, 1, 1, column)", [[0, 5]], [[0, 6], [1, 7], [2, 8]], [[0, 5], [1, 6], [2, 7], [3, 8]]),
        ("Partial(sum)", [1, 2], [10, 20], [11, 22]),
        ("Partial(sum) of degree -1", [4, 8], [4, 4], [4, 5]),
        ("Partial(max)", [1, 7], [5, 2], [5, 7]),
        ("Partial(min)", [1, 7], [5, 2], [1, 2]),
        ("Partial(prod)", [2, 7], [5, 2], [10, 14]),
        ("Extent(0)", [1, 9], [3, 9], [4, 9]),
        ("Extent(0)", [-1, 9], [-1, 9], [-1, 9]),
        ("Apart", [4, 8], [4, 4], [4, 5]),
    ],
)
def test_the_parts_make_the_whole(state: str, first: Any, second: Any, whole: Any) -> None:
    (found,) = assembled(Value.parse(state), pieces(first, second))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(whole, np.float32))


@pytest.mark.parametrize(("state", "whole"), [("Partial(all)", False), ("Partial(any)", True)])
def test_truth_values_come_together(state: str, whole: bool) -> None:
    (found,) = assembled(Value.parse(state), pieces(True, False, dtype=np.bool_))
    assert found.dtype == np.bool_
    assert found == whole


def test_a_value_that_every_part_has_is_there_as_often() -> None:
    found = assembled(Value.parse("Whole"), pieces([1, 2], [1, 3]))
    assert [each.tolist() for each in found] == [[1, 2], [1, 3]]


def test_a_sum_is_rounded_once() -> None:
    values = [np.float32(1 / 3), np.float32(1e-8)]
    (found,) = assembled(Value.parse("Partial(sum)"), pieces(*values))
    assert found == np.float32(np.float64(values[0]) + np.float64(values[1]))


def test_pieces_without_elements_fit() -> None:
    (found,) = assembled(Value.parse("Split(0)"), pieces(np.zeros((0, 2), np.float32), [[1, 2]]))
    assert found.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("state", "first", "second", "why"),
    [
        ("Split(0)", [[1, 2]], [[1, 2, 3]], "must match exactly"),
        ("Split(0, 2)", [1, 2, 3], [1, 2], "dim 0 is not 2 times as long as a piece"),
        ("Partial(sum)", [1, 2], [1, 2, 3], r"parts of a total have the shapes \[2\], \[3\]"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(state: str, first: Any, second: Any, why: str) -> None:
    with pytest.raises(Unassembled, match=why):
        assembled(Value.parse(state), pieces(first, second))
