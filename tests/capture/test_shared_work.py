"""Results share work where a tensor with dims goes into both; numbers join nothing, and are handed over."""

from __future__ import annotations

from whale_tf.capture.shared_work import Shared, find_shared
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph

ARGUMENTS = """
    w = Argument() {index=0} : float32[4]
    b = Argument() {index=1} : float32[2]
    rate = Argument() {index=2} : float32[]
    dw = Argument() {index=3} : float32[4]
    db = Argument() {index=4} : float32[2]
"""
SAME = "graph else(out: w, b) {" + ARGUMENTS + "}"


def body(outputs: str, *lines: str) -> Graph:
    return parse_graph("\n".join([f"graph then(out: {outputs}) {{", ARGUMENTS, *lines, "}"]))


def shared(then: Graph, other: str = SAME) -> Shared:
    return find_shared([then, parse_graph(other)], len(then.outputs))


def test_updates_of_two_variables_share_nothing_though_both_use_a_number() -> None:
    found = shared(
        body(
            "nw, nb",
            "twice = AddV2(rate, rate) : float32[]",
            "sw = Mul(dw, twice) : float32[4]",
            "sb = Mul(db, twice) : float32[2]",
            "nw = Sub(w, sw) : float32[4]",
            "nb = Sub(b, sb) : float32[2]",
        )
    )
    assert found == Shared(((0,), (1,)), ())


def test_a_tensor_with_dims_joins_what_it_goes_into() -> None:
    both = "graph else(out: w, b, w) {" + ARGUMENTS + "}"
    made = body("m, b, nw", "m = AddV2(w, dw) : float32[4]", "nw = Mul(m, dw) : float32[4]")
    assert shared(made, both) == Shared(((0, 2), (1,)), ())


def test_what_is_joined_in_one_body_is_joined() -> None:
    made = body("nw, nb", "nw = Sub(w, dw) : float32[4]", "nb = Sub(b, db) : float32[2]")
    other = (
        "graph else(out: w, s) {"
        + ARGUMENTS
        + "two = Const() {value=(2)} : int32[1]\n start = Const() {value=(0)} : int32[1]\n"
        + "s = Slice(w, start, two) : float32[2]\n}"
    )
    assert shared(made, other) == Shared(((0, 1),), ())


def test_results_that_are_numbers_made_of_numbers_are_one_set() -> None:
    made = body("w, rate, half", "half = Square(rate) : float32[]")
    assert shared(made, "graph else(out: w, rate, rate) {" + ARGUMENTS + "}") == Shared(((0,), (1, 2)), ())


NORM = (
    "axis = Const() {value=(0)} : int32[1]",
    "s = Sum(dw, axis) : float32[]",
    "t = Sum(db, axis) : float32[]",
    "norm = AddV2(s, t) : float32[]",
)


def test_numbers_that_others_use_are_handed() -> None:
    made = body("nw, nb", *NORM, "nw = Mul(dw, norm) : float32[4]", "nb = Mul(db, norm) : float32[2]")
    assert shared(made) == Shared(((0,), (1,)), ((0, "s"), (0, "t")))


def test_a_number_that_only_its_own_tensors_use_is_not() -> None:
    made = body("nw, b", *NORM[:2], "nw = Mul(dw, s) : float32[4]")
    assert shared(made) == Shared(((0,), (1,)), ())


def test_a_number_that_is_a_result_stays_with_what_it_is_made_of() -> None:
    made = body(
        "nw, nb, twice",
        *NORM[:2],
        "nw = Mul(dw, s) : float32[4]",
        "nb = Neg(db) : float32[2]",
        "twice = AddV2(s, s) : float32[]",
    )
    assert shared(made, "graph else(out: w, b, rate) {" + ARGUMENTS + "}") == Shared(((0, 2), (1,)), ())
