"""What is said of ranks that do not agree."""

from __future__ import annotations

import pytest

from whale_tf.world.agreement import PENDING_REPORTS, Reports, difference, first_difference, ranks_text


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([2], "rank 2"),
        ([1, 0], "ranks 0 and 1"),
        ([0, 1, 5], "ranks 0, 1 and 5"),
        (range(8), "ranks 0 to 7"),
        ([0, 1, 2, 3, 9], "ranks 0 to 3 and 9"),
    ],
)
def test_ranks_are_listed_shortly(ranks: list[int], text: str) -> None:
    assert ranks_text(ranks) == text


def test_equal_reports_are_dropped() -> None:
    reports = Reports(2)
    for number in range(3 * PENDING_REPORTS):
        assert reports.add(0, "step", number, f"digest {number}") == {}
        assert reports.add(1, "step", number, f"digest {number}") == {}
    assert reports.pending() == 0


def test_reports_of_one_rank_alone_do_not_pile_up() -> None:
    reports = Reports(2)
    for number in range(3 * PENDING_REPORTS):
        reports.add(0, "step", number, "digest")
    assert reports.pending() == PENDING_REPORTS


def test_reports_of_other_topics_and_numbers_are_not_compared() -> None:
    reports = Reports(2)
    assert not reports.add(0, "plan", 0, "a")
    assert not reports.add(1, "plan", 1, "b")
    assert not reports.add(1, "graph", 0, "c")
    assert reports.add(1, "plan", 0, "d") == {0: "a", 1: "d"}


def test_the_first_line_that_differs_is_shown() -> None:
    refusal = difference("plan", 3, {0: "same\nx = 1\nend", 1: "same\nx = 2\nother", 2: "same\nx = 1\nend"})
    assert refusal.rule == "ranks differ in plan 3"
    assert refusal.details == ("ranks 0 and 2: line 2: x = 1", "rank 1: line 2: x = 2")
    assert first_difference({0: "a\nb", 1: "a"}) == {0: "line 2: b", 1: "line 2: (nothing)"}
    assert first_difference({0: "a", 1: "b"}) == {0: "a", 1: "b"}
