"""Failures as TensorFlow tells them, of calls that were inlined into the main graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, descend, weights
from whale_tf.run.failure import run_error
from whale_tf.run.parts import Parts


def parts_of_a_step() -> Parts:
    """Those of a step of two replicas with two stages each, whose calls are inlined."""
    whale.init(4)
    variables = weights()

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage():
                h = tf.matmul(x, variables[0], name="first")
            with whale.stage():
                loss = tf.reduce_mean(tf.matmul(h, variables[1], name="second"))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    step.prepare(batch(8))
    parts: Parts = step.compiled.parts
    assert parts.program.inline
    return parts


@pytest.fixture
def parts() -> Parts:
    return parts_of_a_step()


@pytest.mark.parametrize(
    ("node", "operation", "place", "code"),
    [
        ("r1/0F0/first", "first", "replica 1, stage 0, forward: examples 4 to 7 of 8", "h = tf.matmul"),
        ("r0/1F0/second", "second", "replica 0, stage 1, forward: examples 0 to 3 of 8", "loss = tf.reduce_mean"),
        ("r1/1B0/gradient_tape/second/MatMul_1", "gradient_tape/second/MatMul_1",
         "replica 1, stage 1, backward: examples 4 to 7 of 8", "loss = tf.reduce_mean"),
    ],
)  # fmt: skip
def test_a_node_of_a_inlined_call_tells_its_call_and_its_line(
    parts: Parts, node: str, operation: str, place: str, code: str
) -> None:
    message = "{{function_node whale_7_main}} not to be done\n\t [[{{node " + node + "}}]] [Op:whale_7_main]"
    error = run_error(tf.errors.InvalidArgumentError(None, None, message), parts)
    line = Source(parts_of_a_step).at(code)
    assert str(error) == (
        "not to be done.\n"
        f"  InvalidArgumentError in '{operation}'\n"
        f"  {place}, counted from 0\n"
        f"  at {line}\n"
        "  The variables are as before this call, and the next one runs normally."
    )


def test_what_a_inlined_call_took_or_gave_tells_its_call(parts: Parts) -> None:
    message = "cannot be placed: {{colocation_node Func/r1/0F0/output/_3}} and {{colocation_node Func/r1/0B0/input/_9}}"
    error = run_error(tf.errors.InvalidArgumentError(None, None, message), parts)
    assert "  replica 1, stage 0, forward: examples 4 to 7 of 8, counted from 0\n" in str(error)


def told(step: Any, *args: Any) -> str:
    with pytest.raises(whale.errors.RunError) as failed:
        step(*args)
    return failed.value.details[-1]


def test_each_round_of_a_step_with_two_updates_is_told() -> None:
    variables = weights()

    @whale.function(micro_batches=2)
    def step(x: Any, limits: Any) -> Any:
        losses = []
        for number, variable in enumerate(variables):
            with tf.GradientTape() as tape, whale.replica(2):
                h = x @ variables[0] @ variable  # the second round reads what the first one wrote
                loss = tf.reduce_mean(tf.debugging.check_numerics(h / limits[:, number, None], "it is not finite"))
            variable.assign_sub(0.1 * tape.gradient(loss, variable))
            losses.append(loss)
        return losses

    limits = np.ones([8, 2], np.float32)
    for number in range(2):
        wrong = limits.copy()
        wrong[5, number] = 0
        wanted = f"replica 1, round {number + 1} of 2, forward of micro-batch 0: examples 4 to 5 of 8, counted from 0"
        assert told(step, batch(), wrong) == wanted
    step(batch(), limits)


def test_what_fails_before_the_parts_is_told_as_that() -> None:
    variables = weights(1)

    @whale.function(micro_batches=2)
    def step(x: Any, mask: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            checked = tf.debugging.check_numerics(1 / mask, "a mask is zero")
            total = tf.debugging.check_numerics(1 / tf.reduce_sum(checked), "they add up to zero")
            loss = tf.reduce_sum((x @ variables[0])[:, 0]) * total
        descend(tape, loss, variables)
        return loss

    one, none, balanced = np.ones(8, np.float32), np.ones(8, np.float32), np.ones(8, np.float32)
    none[2], balanced[4:] = 0, -1
    assert told(step, batch(), balanced) == "in what is computed once, of the whole batch, before its parts go on"
    early = "replica 0, totals of arguments, before the first forward of micro-batch 1: examples 2 to 3 of 8"
    assert told(step, batch(), none) == f"{early}, counted from 0"
    step(batch(), one)


def test_what_fails_after_the_parts_is_told_as_that() -> None:
    variables = weights(1)

    @whale.function(micro_batches=2)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = x @ variables[0]
            loss = tf.reduce_mean(h)
            largest = tf.debugging.check_numerics(1 / tf.sort(h[:, 0])[0], "the smallest is zero")
        descend(tape, loss, variables)
        return loss, largest

    assert told(step, batch()) == "in what is computed once, of the whole batch, after its parts"
    step(batch() + 1)
