"""States of values print as one would write them, and read back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whale_tf.errors import InternalError
from whale_tf.ir.sharding import (
    APART,
    BLANK,
    COUNT,
    LISTED,
    SUMS,
    WHOLE,
    Carried,
    Each,
    Extent,
    Owned,
    Partial,
    Placed,
    Reduction,
    Split,
    State,
    Turn,
    Value,
    parse_state,
)

STATES: st.SearchStrategy[State] = st.one_of(
    st.just(WHOLE),
    st.just(APART),
    st.just(BLANK),
    st.builds(Split, st.integers(0, 9), st.integers(1, 99)),
    st.builds(Split, st.integers(0, 9), st.integers(1, 99), st.integers(-9, 9).filter(bool)),
    st.builds(Partial, st.sampled_from(Reduction)),
    st.builds(Owned, st.integers(0, 99)),
    st.builds(Extent, st.integers(0, 9)),
    st.builds(Each, st.booleans()),
    st.builds(Turn, st.integers(-9, 9), st.booleans()),
    st.just(COUNT),
    st.just(LISTED),
    st.builds(Carried, st.integers(0, 99), st.sampled_from(["sum", "nothing", "each", "turn", "count"])),
    st.builds(Placed),
)
DEGREES = st.fractions(-3, 3, max_denominator=4)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (WHOLE, "Whole"),
        (Split(0), "Split(0)"),
        (Split(1, 4), "Split(1, 4)"),
        (Split(0, 1, 3), "Split(0, 1, 3)"),
        (SUMS, "Partial(sum)"),
        (Partial(Reduction.MAX), "Partial(max)"),
        (Owned(3), "Owned(3)"),
        (APART, "Apart"),
        (BLANK, "Blank"),
        (Extent(1), "Extent(1)"),
        (LISTED, "Split(-1)"),
        (Each(back=True), "Each(back)"),
        (Turn(1), "Turn(1)"),
        (Turn(0, back=True), "Turn(0, back)"),
        (COUNT, "Count"),
        (Carried(2, "sum"), "Carried(2, sum)"),
        (Placed(), "Placed"),
    ],
)
def test_a_state_prints_as_one_would_write_it(state: State, text: str) -> None:
    assert str(state) == text
    assert parse_state(text) == state


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value(SUMS, Fraction(-1)), "Partial(sum) of degree -1"),
        (Value(Split(0), Fraction(1, 2)), "Split(0) of degree 1/2"),
        (Value(WHOLE), "Whole"),
    ],
)
def test_a_value_prints_its_degree_where_it_has_one(value: Value, text: str) -> None:
    assert str(value) == text
    assert Value.parse(text) == value


@given(state=STATES, degree=DEGREES)
def test_every_value_reads_back(state: State, degree: Fraction) -> None:
    value = Value(state, degree)
    assert Value.parse(str(value)) == value
    assert parse_state(str(state)) == state


@given(first=STATES, second=STATES)
def test_states_that_differ_print_differently(first: State, second: State) -> None:
    assert (str(first) == str(second)) == (first == second)


@pytest.mark.parametrize("text", ["", "Hole", "Split", "Split(a)", "Partial(mean)", "Partial", "Owned()", "Whole(1)"])
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(InternalError) as refused:
        parse_state(text)
    assert str(refused.value) == (
        f"'{text}' is no state.\n"
        "  a state is written as Whole, Split(0), Split(0, 4), Partial(sum), Owned(1) or Apart\n"
        "  This is a fault of whale_tf, or of a plan that was changed by hand."
    )


@pytest.mark.parametrize("text", ["Split(0) of degree x", "Whole of degree"])
def test_a_degree_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InternalError, match="is no state"):
        Value.parse(text)
