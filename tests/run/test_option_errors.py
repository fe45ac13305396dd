"""Mistakes with the step itself: options that cannot be, and calls from places where there can be none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def mean_of(x: Any, mask: Any = None) -> Any:
    with whale.replica(2):
        return tf.reduce_mean(x)


DEFINED = Source(mean_of).at("def mean_of", function="mean_of")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"schedule": "1f2b"},
            whale.errors.ScheduleError,
            "there is no schedule '1f2b'.\n"
            "  Did you mean '1f1b'? Use one of 'gpipe', '1f1b', 'interleaved', 'zero_bubble'.",
        ),
        (
            {"micro_batches": 0, "schedule": 3, "gather_bytes": -1},
            whale.errors.PlanError,
            "a strategy has values that cannot be.\n"
            "  micro_batches is 0, and must be a whole number from 1 on\n"
            "  schedule is 3, and must be a name or a grid\n"
            "  gather_bytes is -1, and must be a whole number of bytes from 0 on\n"
            f"  at {DEFINED}\n"
            '  Use for example micro_batches=1, schedule="1f1b", gather_bytes=268435456, or leave out what you have '
            "not decided.",
        ),
        (
            {"micro_batches": 2.0, "schedule": "1f2b"},
            whale.errors.PlanError,
            "a strategy has values that cannot be.\n"
            "  micro_batches is 2.0, and must be a whole number from 1 on\n"
            "  there is no schedule '1f2b'\n"
            f"  at {DEFINED}\n"
            '  Use for example micro_batches=1, schedule="1f1b", or leave out what you have not decided.',
        ),
        (
            {"loss": "max"},
            whale.errors.PlanError,
            "the loss must be a mean or a sum over the examples.\n"
            "  loss is 'max'\n"
            f"  at {DEFINED}\n"
            '  Use loss="mean" or loss="sum" to have it checked, or leave loss out.',
        ),
        (
            {"coupling": "always"},
            whale.errors.PlanError,
            "a strategy has values that cannot be.\n"
            '  coupling is \'always\', and must be "auto" or "exact"\n'
            f"  at {DEFINED}\n"
            '  Use for example coupling="exact", or leave out what you have not decided.',
        ),
        (
            {"batch_norm": "synchronized"},
            whale.errors.PlanError,
            "a strategy has values that cannot be.\n"
            '  batch_norm is \'synchronized\', and must be "local" or "global"\n'
            f"  at {DEFINED}\n"
            '  Use for example batch_norm="global", or leave out what you have not decided.',
        ),
        (
            {"whole": ("masks", "y")},
            whale.errors.PlanError,
            "whole names no argument of 'mean_of': masks, y.\n"
            "  its arguments are x, mask\n"
            f"  at {DEFINED}\n"
            "  Use the names of the step's own arguments.",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_is_refused_at_once(
    options: dict[str, Any], kind: type[whale.WhaleError], message: str
) -> None:
    with pytest.raises(kind) as refused:
        whale.function(mean_of, **options)
    assert str(refused.value) == message


def test_whole_arguments_are_not_cut() -> None:
    @whale.function(micro_batches=2, whole="table")
    def step(x: Any, table: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(x @ table)

    table = np.ones((4, 3), np.float32)
    assert float(step(batch(), table)) == pytest.approx(2.0)


@pytest.mark.parametrize("around", [tf.function, whale.function])
def test_a_step_inside_another_graph(around: Callable[..., Any]) -> None:
    step = whale.function(mean_of)
    message = (
        "the step 'mean_of' is called inside a tf.function or another step.\n"
        "  a step brings its own plan over all devices and cannot be part of another graph\n"
        f"  at {DEFINED}\n"
        "  Call it from Python, once for each batch."
    )

    @around
    def outer(x: Any) -> Any:
        return step(x)

    with pytest.raises(whale.errors.CaptureError) as refused:
        outer(batch())
    assert str(refused.value) == message
    assert float(step(batch())) == pytest.approx(0.5)


@pytest.mark.parametrize("ask", [lambda step: step.plan, lambda step: step.schedule], ids=["plan", "schedule"])
def test_a_plan_before_the_first_call(ask: Callable[[Any], Any]) -> None:
    step = whale.function(mean_of)
    with pytest.raises(whale.errors.PlanError) as refused:
        ask(step)
    assert str(refused.value) == (
        "the step 'mean_of' has no plan yet.\n"
        "  a plan is made at the first call, from the shapes of its inputs\n"
        f"  at {DEFINED}\n"
        "  Call the step, or plan it without running: step.prepare(*inputs)."
    )
    step(batch())
    assert str(ask(step))


def test_arguments_that_do_not_fit_are_told_as_python_tells_them() -> None:
    step = whale.function(mean_of)
    with pytest.raises(TypeError, match=r"^mean_of\(\): too many positional arguments$"):
        step(batch(), None, 3)
    with pytest.raises(TypeError, match=r"^mean_of\(\): missing a required argument: 'x'$"):
        step()
    assert float(step(batch())) == pytest.approx(0.5)
