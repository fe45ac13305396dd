"""Labels say where a call is in the program, and not when it was traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from whale_tf.run.labels import label_here, label_of_message


class Found:
    """Labels in the order in which they were made; no list, which functions must not change while they are traced."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def add(self, label: str) -> None:
        self.labels.append(label)


def labels_in(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """What a function that adds its labels to its first argument gives when it is traced."""
    found = Found()
    tf.function(function).get_concrete_function(found, *arguments)
    return found.labels


def helper(found: Found) -> None:
    found.add(label_here(0, None))


def line_of(function: Callable[..., Any], offset: int) -> str:
    return f"test_labels.py:{function.__code__.co_firstlineno + offset}"


def test_outside_a_function_a_label_is_function_and_line() -> None:
    found = Found()
    helper(found)
    helper(found)
    assert found.labels == [f"helper at {line_of(helper, 1)}"] * 2


def test_a_function_counts_how_often_it_comes_to_a_line() -> None:
    def step(found: Found) -> None:
        found.add(label_here(0, None))
        for _ in range(2):
            helper(found)

    at = f"step, helper at {line_of(helper, 1)}"
    assert labels_in(step) == [f"step at {line_of(step, 1)}", at, f"{at} #2"]


def test_another_trace_has_the_same_labels() -> None:
    def step(found: Found, x: Any) -> Any:
        helper(found)
        return x

    assert labels_in(step, tf.constant(1)) == labels_in(step, tf.constant([1.0]))


def test_each_rank_of_a_process_counts_by_itself() -> None:
    def step(found: Found) -> None:
        for rank in (0, 1):
            found.add(label_here(rank, None))

    first, second = labels_in(step)
    assert first == second


def test_loops_and_branches_are_part_of_their_function() -> None:
    def step(found: Found, x: Any) -> Any:
        for _ in tf.range(3):
            if x > 0:
                helper(found)
            else:
                helper(found)
        return x

    at = f"step, helper at {line_of(helper, 1)}"
    assert labels_in(step, tf.constant(1)) == [at, f"{at} #2"]


def test_an_inner_function_does_not_depend_on_who_calls_it_first() -> None:
    def inner_after(calls: int) -> str:
        inside = Found()

        @tf.function
        def inner() -> None:
            helper(inside)

        def outer(found: Found) -> None:
            for _ in range(calls):
                helper(found)
            inner()

        labels_in(outer)
        return inside.labels[0]

    assert inner_after(0) == inner_after(2) == f"inner, helper at {line_of(helper, 1)}"


def test_both_ends_of_a_message_have_one_label() -> None:
    def step(found: Found) -> None:
        found.add(label_of_message("from 0 to 1", 0, None))
        found.add(label_of_message("from 0 to 1", 1, None))
        found.add(label_of_message("from 1 to 0", 0, None))

    assert labels_in(step) == ["step, message from 0 to 1"] * 2 + ["step, message from 1 to 0"]
    assert label_of_message("from 0 to 1", 0, None) == "message from 0 to 1"


def test_ends_that_are_known_only_when_it_runs_have_one_label_too() -> None:
    def step(found: Found) -> None:
        for end in ("sender", "receiver", "sender", "receiver"):
            found.add(label_of_message("", end, None))

    assert labels_in(step) == ["step, message"] * 2 + ["step, message #2"] * 2
    assert label_of_message("", "sender", None) == "message"


def test_a_label_that_is_given_is_kept_and_counted() -> None:
    def step(found: Found) -> None:
        found.add(label_here(0, "mine"))
        found.add(label_here(0, "mine"))
        found.add(label_of_message("from 0 to 1", 0, "yours"))

    assert labels_in(step) == ["mine", "mine #2", "yours"]
    assert label_here(0, "mine") == "mine"
