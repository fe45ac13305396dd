"""Operations that fail while a step runs: told once, with the user's line and the examples; nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import WIDTH, Source, batch, bounded, values, weights

EXAMPLES = 16
NO_FAULT = np.zeros(EXAMPLES, np.int32)
FAULT = NO_FAULT.copy()
FAULT[12] = 100  # replica 1 has examples 8 to 15, and its micro-batch 2 has 12 and 13
WAY_OUT = "The variables are as before this call, and the next one runs normally."


@dataclass(frozen=True)
class Layout:
    """How the step is spread, and where example 12 is then."""

    replicas: int
    micro_batches: int
    schedule: str
    place: str


LAYOUTS = (
    Layout(2, 4, "1f1b", "replica 1, stage 1, {} of micro-batch 2: examples 12 to 13 of 16, counted from 0"),
    Layout(2, 4, "gpipe", "replica 1, stage 1, {} of micro-batch 2: examples 12 to 13 of 16, counted from 0"),
    Layout(1, 16, "1f1b", "stage 1, {} of micro-batch 12: example 12 of 16, counted from 0"),
    Layout(2, 1, "1f1b", "replica 1, stage 1, {}: examples 8 to 15 of 16, counted from 0"),
    Layout(1, 1, "1f1b", "stage 1, {}"),
)


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(4)


def made(
    layout: Layout, last: Callable[[Any, Any], Any], accept: Sequence[str] = ()
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """A pipeline whose last stage is `last(h, code)`, and its variables."""
    variables = weights()

    @whale.function(micro_batches=layout.micro_batches, schedule=layout.schedule, accept=accept)
    def step(x: Any, code: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(layout.replicas):
            with whale.stage():
                h = x @ variables[0]
            with whale.stage():
                loss = tf.reduce_mean(tf.square(last(h @ variables[1], code)))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    return step, variables


def check_fails(step: Callable[..., Any], variables: Sequence[Any], wanted: Callable[[str], str]) -> None:
    """Two calls fail alike and change nothing, then one works; `wanted` makes the whole message from its first line."""
    before = values(variables)
    x = batch(EXAMPLES)
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError) as failed:
            bounded(lambda: step(x, FAULT))
        assert isinstance(failed.value, whale.errors.RunError)
        assert str(failed.value) == wanted(str(failed.value).split("\n")[0])
        for old, new in zip(before, values(variables), strict=True):
            np.testing.assert_array_equal(new, old)
    assert np.isfinite(bounded(lambda: step(x, NO_FAULT)))
    assert any((old != new).any() for old, new in zip(before, values(variables), strict=True))


def asserting(h: Any, code: Any) -> Any:
    tf.debugging.assert_less(code, 50, message="codes must be below 50")
    return h


def checking_numbers(h: Any, code: Any) -> Any:
    faulty = tf.cast(code > 50, tf.float32)[:, tf.newaxis]
    return tf.debugging.check_numerics(h / (1 - faulty), "h is not finite")


def gathering(h: Any, code: Any) -> Any:
    table = tf.ones([60, WIDTH])
    return h * tf.gather(table, code)


def branching(h: Any, code: Any) -> Any:
    """All parts take the branch, since it goes by the largest code of all; one of them has the example that fails."""
    fine = tf.reduce_max(code) < 50
    finite = tf.cast(code < 50, tf.float32)[:, tf.newaxis]
    return tf.cond(fine, lambda: h, lambda: tf.debugging.check_numerics(h / finite, "the branch is not finite"))


def check_codes(code: Any, *_: Any) -> Any:
    if code.max() > 50:
        raise ValueError("codes must be below 50")
    return np.ones([len(code), 1], np.float32)


def calling_python(h: Any, code: Any) -> Any:
    factors = tf.numpy_function(check_codes, [code, tf.stop_gradient(h)], tf.float32)
    factors.set_shape([h.shape[0], 1])
    return h * factors


def calling_python_once(h: Any, code: Any) -> Any:
    factors = tf.numpy_function(check_codes, [code], tf.float32)
    factors.set_shape([h.shape[0], 1])
    return h * factors


# What fails, the start of TensorFlow's message, the operation, the user's line.
FAILURES = {
    asserting: (
        "assertion failed: [codes must be below 50] [Condition x < y did not hold element-wise:]",
        "assert_less/Assert/Assert",
        "tf.debugging.assert_less",
    ),
    checking_numbers: ("h is not finite : Tensor had Inf", "CheckNumerics", "return tf.debugging.check_numerics"),
    gathering: ("indices[", "GatherV2", "return h * tf.gather"),
    branching: ("the branch is not finite : Tensor had ", "cond/CheckNumerics", "return tf.cond"),
    calling_python: ("ValueError: codes must be below 50.", "PyFunc", "factors = "),
    calling_python_once: ("ValueError: codes must be below 50.", "PyFunc", "factors = "),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("last", [asserting, checking_numbers, gathering])
def test_an_operation_that_fails_tells_its_line_and_its_examples(layout: Layout, last: Callable[..., Any]) -> None:
    check_told(layout, last)


def test_what_fails_in_a_branch_is_told_as_well() -> None:
    check_told(LAYOUTS[0], branching)


@pytest.mark.filterwarnings("ignore:each part of the batch has its own value")
def test_what_fails_in_python_that_each_part_runs_is_told_as_well() -> None:
    check_told(LAYOUTS[0], calling_python, accept=("PyFunc",))


def test_what_fails_in_python_that_takes_arguments_alone_is_told_as_well() -> None:
    """It is run once, before the parts."""
    place = "in what is computed once, of the whole batch, before its parts go on"
    check_told(replace(LAYOUTS[0], place=place), calling_python_once)


def test_python_on_the_way_to_a_gradient_is_refused() -> None:
    step, variables = made(LAYOUTS[0], calling_python)
    accepting, _ = made(LAYOUTS[0], calling_python, accept="PyFunc")
    line = Source(calling_python).at("factors = ", function="calling_python")
    before = values(variables)
    with pytest.raises(whale.errors.PlanError) as refused:
        step(batch(EXAMPLES), NO_FAULT)
    assert str(refused.value) == (
        "a gradient needs several parts of the batch at once.\n"
        "  'PyFunc' (PyFunc): no rule says how PyFunc depends on its examples\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {line}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch; '
        "accept=('PyFunc',) takes each part's own value. Or use one replica and micro_batches=1."
    )
    for old, new in zip(before, values(variables), strict=True):
        np.testing.assert_array_equal(new, old)
    with pytest.warns(UserWarning) as warned:
        accepting(batch(EXAMPLES), NO_FAULT)
    assert [str(each.message) for each in warned] == [
        f"each part of the batch has its own value of what accept= names: 'PyFunc' (at {line})"
    ]


def check_told(layout: Layout, last: Callable[..., Any], accept: Sequence[str] = ()) -> None:
    step, variables = made(layout, last, accept)
    start, operation, code = FAILURES[last]

    def wanted(first: str) -> str:
        assert first.startswith(start)
        return (
            f"{first}\n"
            f"  InvalidArgumentError in '{operation}'\n"
            f"  {layout.place.format('forward')}\n"
            f"  at {Source(last).at(code, function=last.__name__)}\n"
            f"  {WAY_OUT}"
        )

    check_fails(step, variables, wanted)


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_a_gradient_that_fails_tells_the_line_of_its_forward_operation(schedule: str) -> None:
    def last(h: Any, code: Any) -> Any:
        h = tf.debugging.check_numerics(h, "h is not finite")
        return 1 + tf.sqrt((h + 1) * tf.cast(code < 50, tf.float32)[:, tf.newaxis])  # the gradient of sqrt(0)

    layout = Layout(2, 4, schedule, LAYOUTS[0].place)
    step, variables = made(layout, last)
    phase = "backward" if schedule == "1f1b" else "input gradients"

    def wanted(first: str) -> str:
        assert first.startswith("Not a number (NaN) or infinity (Inf) values detected in gradient. b'h is not finite'")
        return (
            f"{first}\n"
            "  InvalidArgumentError in 'gradient_tape/CheckNumerics/CheckNumerics'\n"
            f"  {layout.place.format(phase)}\n"
            f"  at {Source(last).at('h = tf.debugging.check_numerics', function='last')}\n"
            f"  {WAY_OUT}"
        )

    check_fails(step, variables, wanted)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_update_that_fails_changes_nothing(micro_batches: int) -> None:
    layer = keras.layers.Dense(3)
    layer.build((None, WIDTH))
    variables = layer.trainable_variables
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(variables)
    metric = keras.metrics.Mean()

    @whale.function(micro_batches=micro_batches)
    def step(x: Any, code: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(layer(x) / tf.cast(code < 50, tf.float32)[:, tf.newaxis])
            metric.update_state(tf.reduce_sum(x, axis=1))
        first, last = tape.gradient(loss, variables)
        last = tf.debugging.check_numerics(last, "the last gradient is not finite")
        optimizer.apply_gradients(zip([first, last], variables, strict=True))
        return loss

    def wanted(first: str) -> str:
        assert first.startswith("the last gradient is not finite : Tensor had ")
        return (
            f"{first}\n"
            "  InvalidArgumentError in 'CheckNumerics'\n"
            "  in the update, which runs once per step\n"
            f"  at {Source(test_an_update_that_fails_changes_nothing).at('last = tf.debugging')}\n"
            f"  {WAY_OUT}"
        )

    check_fails(step, [*variables, *optimizer.variables, *metric.variables], wanted)


def test_an_assertion_holds_a_step_that_writes_nothing() -> None:
    @whale.function
    def step(x: Any, code: Any) -> Any:
        tf.debugging.assert_less(code, 50, message="codes must be below 50")
        return tf.reduce_mean(x)

    with pytest.raises(whale.errors.RunError, match="codes must be below 50"):
        step(batch(EXAMPLES), FAULT)
    assert float(step(batch(EXAMPLES), NO_FAULT)) == pytest.approx(0.5)
