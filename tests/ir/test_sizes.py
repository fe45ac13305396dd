"""A graph at every size of the batch: dims, operands and attributes on the line through two traces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from whale_tf.ir.graph import Graph, Ref, Shape
from whale_tf.ir.sizes import Array, Sizes, uniform
from whale_tf.ir.text import parse_graph

SIZE = st.integers(1, 40)


def at_two(here: str, there: str, batch: int = 16, other: int = 4) -> Sizes:
    """One tensor `x` of a shape at two sizes."""
    shapes = [parse_graph(f"graph g(out: x) {{\n x = Captured() : float32[{shape}]\n}}") for shape in (here, there)]
    kinds = [graph.type_of(Ref("x")).shape for graph in shapes]
    return Sizes(shapes[0], batch, other, {} if kinds[0] == kinds[1] else {Ref("x"): kinds[1]})


def with_operand(here: Array, there: Array | None, batch: int = 16, other: int = 4) -> Sizes:
    """A Reshape whose shape is this at two sizes."""
    graph: Graph = parse_graph("graph g(out: r) {\n s = Const() : int32[2]\n r = Reshape(s, s) : float32[?,?]\n}")
    operands = {} if there is None else {("r", 1): there}
    return Sizes(graph, batch, other, values={Ref("s"): here}, operands=operands)


def test_a_shape_that_does_not_follow_the_batch_is_the_same_at_every_size() -> None:
    sizes = at_two("16,4", "16,4")
    assert sizes.following(Ref("x")) == ()
    assert sizes.shape_at(Ref("x"), 5) == Shape((16, 4))


def test_dims_that_follow_the_batch_are_found_by_the_other_size_and_not_by_their_own() -> None:
    """Both dims are as long as the batch, and one of them by chance."""
    sizes = at_two("16,16", "4,16")
    assert sizes.following(Ref("x")) == (0,)
    assert sizes.shape_at(Ref("x"), 5) == Shape((5, 16))


@given(slope=st.integers(1, 9), base=st.integers(0, 9), batch=SIZE, other=SIZE, size=SIZE)
def test_a_dim_is_on_the_line_through_both_sizes(slope: int, base: int, batch: int, other: int, size: int) -> None:
    assume(batch != other)
    sizes = at_two(f"{slope * batch + base},4", f"{slope * other + base},4", batch, other)
    assert sizes.shape_at(Ref("x"), size) == Shape((slope * size + base, 4))
    assert sizes.shape_at(Ref("x"), batch) == sizes.graph.type_of(Ref("x")).shape


def test_a_dim_that_is_no_whole_number_or_negative_at_a_size_is_not_known() -> None:
    halves = at_two("8,4", "2,4")
    assert halves.shape_at(Ref("x"), 6) == Shape((3, 4))
    assert halves.shape_at(Ref("x"), 5) is None
    fewer = at_two("14", "2")  # two less than the batch
    assert fewer.shape_at(Ref("x"), 2) == Shape((0,))
    assert fewer.shape_at(Ref("x"), 1) is None


def test_another_rank_has_no_dims_and_no_shape() -> None:
    sizes = at_two("16,4", "4")
    assert sizes.following(Ref("x")) is None
    assert sizes.shape_at(Ref("x"), 5) is None


def test_a_dim_that_is_unknown_at_one_size_is_not_known_between() -> None:
    assert at_two("16,4", "?,4").shape_at(Ref("x"), 5) is None


@pytest.mark.parametrize(
    ("here", "there", "outer", "holds"),
    [("16", "4", 1, True), ("32", "8", 1, True), ("32", "8", 2, True), ("48", "12", 2, False), ("17", "5", 1, False),
     ("24", "6", 1, False), ("16", "16", 1, False)],
)  # fmt: skip
def test_a_dim_is_proportional_if_it_holds_equal_pieces(here: str, there: str, outer: int, holds: bool) -> None:
    assert at_two(here, there).proportional(Ref("x"), 0, outer) == holds


def test_an_operand_is_on_the_line_too_and_keeps_its_type() -> None:
    sizes = with_operand(np.array([64, 4], np.int32), np.array([16, 4], np.int32))
    found = sizes.operand_at("r", 1, 5)
    assert found is not None and found.dtype == np.int32
    np.testing.assert_array_equal(found, [20, 4])
    at_batch = sizes.operand_at("r", 1, 16)
    np.testing.assert_array_equal(at_batch, [64, 4])


def test_an_operand_that_is_the_same_at_both_sizes_stays() -> None:
    found = with_operand(np.array([64, 4], np.int32), None).operand_at("r", 1, 5)
    np.testing.assert_array_equal(found, [64, 4])


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (np.array([8, 4], np.int32), np.array([2, 4], np.int32)),  # 2.5 for 5 examples
        (np.array([16.0], np.float32), np.array([4.0], np.float32)),  # data, no shape
        (np.arange(16), np.arange(4)),  # as many numbers as examples
    ],
)
def test_an_operand_that_no_whole_number_of_elements_gives_is_not_known(here: Array, there: Array) -> None:
    assert with_operand(here, there).operand_at("r", 1, 5) is None


def test_attributes_that_are_shapes_follow_as_well() -> None:
    graph = parse_graph("graph g(out: l) {\n l = EmptyTensorList() {shape=[16,3], kind=float32} : variant[]\n}")
    sizes = Sizes(graph, 16, 4, attributes={("l", "shape"): Shape((4, 3))})
    assert sizes.attribute_at("l", "shape", 5) == Shape((5, 3))
    assert str(sizes.attribute_at("l", "kind", 5)) == "float32"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.array([2, 2, 2]), 2),
        (np.array(3.0), 3.0),
        (np.broadcast_to(np.float32(7), (10**6, 10**6)), 7),
        (np.array([1, 2]), None),
        (np.array([]), None),
        (np.array([float("nan")] * 2), None),
        (np.array(["a", "a"], object), None),
    ],
    ids=["alike", "scalar", "large", "others", "nothing", "no number", "text"],
)
def test_elements_that_are_all_the_same_are_one_number(value: Array, number: float | None) -> None:
    found = uniform(value)
    assert (found is None) if number is None else (found is not None and found.shape == () and found == number)
