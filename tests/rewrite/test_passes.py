"""The list of passes, and what is said of one that fails."""

from __future__ import annotations

import importlib

import pytest

from whale_tf.errors import InternalError, PlanError
from whale_tf.rewrite import PASSES, Passes


def fails() -> None:
    raise KeyError("h")


def refuses() -> None:
    raise PlanError("it cannot be", way_out="Do otherwise.")


def test_each_pass_is_a_function_of_its_own_file() -> None:
    for name in set(PASSES) - {"bind"}:  # which is a method: its state is the program under construction
        assert callable(getattr(importlib.import_module(f"whale_tf.rewrite.{name}"), name))


def test_a_pass_gives_what_its_function_gives() -> None:
    passes = Passes("")
    assert passes.run("cut", max, 1, 2) == 2
    assert passes.ran == ["cut"]


def test_a_pass_that_fails_is_named_with_those_before_it_and_the_dump() -> None:
    passes = Passes("/dumps")
    passes.run("reshard", max, 1, 2)
    passes.run("cut", max, 1, 2)
    with pytest.raises(InternalError) as failed:
        passes.run("resize", fails)
    assert str(failed.value) == (
        "the pass 'resize' failed.\n"
        "  KeyError: 'h'\n"
        "  before it ran reshard, cut\n"
        "  in /dumps is the program after each of them\n"
        "  This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes."
    )
    assert isinstance(failed.value.__cause__, KeyError)


def test_what_a_pass_refuses_is_passed_on() -> None:
    with pytest.raises(PlanError, match="it cannot be"):
        Passes("").run("check", refuses)
