"""Mistakes with gradients and losses: gradients that reach nothing, losses that are not what the step says."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, weights


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def test_a_loss_outside_the_tape() -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(x @ variables[0])
        if wrong:
            loss = tf.reduce_mean(x @ variables[0])
        descend(tape, loss, variables)
        return loss

    message = (
        "the gradient reaches no variable.\n"
        "  every gradient of the call is None\n"
        f"  at {Source(descend).at('for variable, gradient', function='descend')}\n"
        "  Compute the loss inside the GradientTape, from the variables that are given to tape.gradient."
    )
    check_refused(
        whale.errors.CaptureError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables
    )


def test_gradients_that_are_never_applied() -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(x @ variables[0])
        if wrong:
            tape.gradient(loss, variables)
        else:
            descend(tape, loss, variables)
        return loss

    message = (
        "the gradient reaches no variable.\n"
        "  what tape.gradient returned is used by nothing the step writes or returns\n"
        f"  at {Source(test_gradients_that_are_never_applied).at('loss = tf.reduce_mean')}\n"
        "  Apply it: optimizer.apply_gradients(zip(gradients, variables))."
    )
    check_refused(whale.errors.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


@pytest.mark.parametrize(("said", "found", "name"), [("mean", "sum", "Sum"), ("sum", "mean", "Mean")])
def test_a_loss_that_is_not_what_is_said(said: str, found: str, name: str) -> None:
    variables = weights(1)

    @whale.function(loss=said)
    def step(x: Any, kind: str) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            each = tf.linalg.trace(x[:, :, tf.newaxis] @ x[:, tf.newaxis] @ variables[0])
            loss = {"sum": tf.reduce_sum, "mean": tf.reduce_mean}[kind](each)
        descend(tape, loss, variables)
        return loss

    message = (
        f"the loss is a {found} over the examples, and the step says loss='{said}'.\n"
        f"  '{name}' is differentiated; gradients are added over parts of the batch as it is written\n"
        f"  at {Source(test_a_loss_that_is_not_what_is_said).at('loss = ')}\n"
        f"  Differentiate tf.reduce_{said} of the losses, or say loss='{found}', or leave loss out."
    )
    check_refused(whale.errors.PlanError, message, lambda: step(batch(), found), lambda: step(batch(), said), variables)
