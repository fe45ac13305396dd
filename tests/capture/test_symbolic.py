"""Numbers of rows that are known when a step runs are symbols before: shapes, sizes and quotients of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, trace
from whale_tf.capture.fold import fold
from whale_tf.capture.symbolic import Number, Symbols, reduced_by
from whale_tf.ir.graph import Ref

N, M = Number(1, (Ref("n"),)), Number(1, (Ref("m"),))
ONE, THREE = Number(1), Number(3)


def chosen(x: tf.Tensor) -> tf.Tensor:
    return tf.boolean_mask(x, x[:, 0] > 0)


def symbols(function: Callable[[tf.Tensor], tf.Tensor]) -> tuple[Symbols, Ref]:
    """All that is known of a step that returns one tensor, and that tensor."""
    traced = trace(lambda x: {"y": function(x)}, ROWS)
    graph = traced.sizes.graph
    found = Symbols(fold(graph))
    for node in graph:
        found.add(node)
    return found, traced.outputs["y"]


def shape_of(function: Callable[[tf.Tensor], tf.Tensor]) -> list[tuple[int, int]]:
    """Of each dim of the result the factor and how many symbols it is multiplied by."""
    known, ref = symbols(function)
    return [(number.factor, len(number.rows)) for number in known.shape_of(ref) or []]


def numbers(function: Callable[[tf.Tensor], tf.Tensor]) -> list[tuple[int, int]] | None:
    """The same of the elements of an integer result."""
    known, ref = symbols(function)
    found = known.numbers_of(ref)
    return None if found is None else [(number.factor, len(number.rows)) for number in found.ravel()]


SAME_ROWS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "elementwise": lambda rows: tf.tanh(rows) * 2.0 + rows,
    "a layer": lambda rows: tf.nn.bias_add(rows @ tf.ones((3, 3)), tf.ones(3)),
    "softmax": tf.nn.log_softmax,
    "a sum inside rows": lambda rows: tf.reduce_sum(rows, axis=1, keepdims=True) * tf.ones((1, 3)),
    "reshaped there and back": lambda rows: tf.reshape(tf.reshape(rows, [-1]), tf.shape(rows)),
}


@pytest.mark.parametrize("how", SAME_ROWS)
def test_what_is_computed_row_by_row_has_the_same_rows(how: str) -> None:
    known, ref = symbols(lambda x: SAME_ROWS[how](chosen(x)) + chosen(x))
    shape = known.shape_of(ref)
    (where,) = {known.alike[node.name] for node in known.nodes.values() if node.op == "Where"}
    assert shape is not None
    assert shape[1:] == [THREE]
    (source,) = shape[0].rows
    assert where in _behind(known, source.node)


def _behind(known: Symbols, name: str) -> set[str]:
    found = {name}
    for ref in known.nodes[name].inputs:
        found |= _behind(known, ref.node)
    return found


def test_rows_of_two_unlike_masks_are_unlike() -> None:
    first, _ = symbols(lambda x: tf.stack([tf.size(chosen(x)), tf.size(tf.boolean_mask(x, x[:, 1] > 0))]))
    (pack,) = (node for node in first.nodes.values() if node.op == "Pack" and node.outputs[0].shape == (2,))
    a, b = (number.item() for number in map(first.numbers_of, pack.inputs) if number is not None)
    assert (a.factor, b.factor) == (3, 3)
    assert a.rows != b.rows


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: tf.size(chosen(x)), [(3, 1)]),
        (lambda x: tf.shape(chosen(x)), [(1, 1), (3, 0)]),
        (lambda x: tf.reduce_prod(tf.shape(chosen(x))) * 2, [(6, 1)]),
        (lambda x: tf.size(chosen(x)) // tf.shape(chosen(x))[0], [(3, 0)]),
        (lambda x: tf.reverse(tf.shape(chosen(x)), [0]) // 2, None),
        (lambda x: tf.maximum(tf.shape(chosen(x))[0], 1), None),  # of no rows it is another number
    ],
)  # fmt: skip
def test_numbers_that_are_made_of_it(
    function: Callable[[tf.Tensor], tf.Tensor], wanted: list[tuple[int, int]] | None
) -> None:
    assert numbers(function) == wanted


@pytest.mark.parametrize(
    ("first", "second", "reduced"),
    [
        ([N, THREE], [N, THREE], ([], [])),
        ([N, THREE], [THREE], ([], [0])),
        ([N, ONE], [N, THREE], ([1], [])),
        ([ONE, THREE], [N, THREE], ([0], [])),
        ([], [N], ([0], [])),
        ([N], [M], None),
        ([N], [THREE], None),
    ],
)  # fmt: skip
def test_over_which_dims_gradients_are_summed(
    first: list[Number], second: list[Number], reduced: tuple[list[int], list[int]] | None
) -> None:
    assert reduced_by(first, second) == reduced


def test_quotients() -> None:
    assert (N * THREE).over(N) == THREE
    assert (N * THREE).over(THREE) == N
    assert N.over(THREE) is None
    assert THREE.over(N) is None
    assert (N * M).over(N) == M
