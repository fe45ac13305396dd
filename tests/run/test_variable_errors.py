"""Mistakes with gradients and variables: gradients that reach nothing, variables that no rule keeps one."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import WIDTH, Source, batch, check_refused, descend, values, weights


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
    check_refused(whale.CaptureError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


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
    check_refused(whale.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


def test_a_loss_that_is_a_sum_where_a_mean_is_said() -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            each = tf.reduce_sum(x @ variables[0], axis=1)
            loss = tf.reduce_sum(each) if wrong else tf.reduce_mean(each)
        descend(tape, loss, variables)
        return loss

    message = (
        "the loss is a sum, and the step says loss='mean'.\n"
        "  gradients of micro-batches and replicas would be averaged\n"
        f"  at {Source(test_a_loss_that_is_a_sum_where_a_mean_is_said).at('loss = tf.reduce_sum')}\n"
        '  Use whale.function(loss="sum"), or differentiate tf.reduce_mean of the losses.'
    )
    check_refused(whale.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


def test_a_variable_created_inside_the_step() -> None:
    outside = tf.Variable(1.0, trainable=False)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            factor = tf.Variable(1.0, name="factor") if wrong else outside
            outside.assign_add(1.0)
            return tf.reduce_mean(x) * factor

    message = (
        "variable 'factor' is created inside the step.\n"
        "  a step is traced once and run many times; a variable must exist before\n"
        f"  at {Source(test_a_variable_created_inside_the_step).at('factor = tf.Variable')}\n"
        "  Create it before the step: build a model by calling it on a first batch."
    )
    check_refused(whale.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), [outside])


def test_a_model_that_is_not_built() -> None:
    model = keras.layers.Dense(3)

    @whale.function
    def step(x: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(model(x))

    message = (
        "variable 'kernel' is created inside the step.\n"
        "  a step is traced once and run many times; a variable must exist before\n"
        f"  at {Source(test_a_model_that_is_not_built).at('return tf.reduce_mean')}\n"
        "  Create it before the step: build a model by calling it on a first batch."
    )

    def right() -> Any:
        model(batch())
        return step(batch())

    check_refused(whale.VariableError, message, lambda: step(batch()), right)


def test_an_optimizer_that_is_not_built() -> None:
    model = keras.layers.Dense(3)
    model.build((None, WIDTH))
    variables = model.trainable_variables
    optimizer = keras.optimizers.Adam(0.1, name="adam")

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(model(x)))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    message = (
        "optimizer 'adam' has no variables yet, and the step would create them.\n"
        "  a step is traced once and run many times; a variable must exist before\n"
        f"  at {Source(test_an_optimizer_that_is_not_built).at('optimizer.apply_gradients')}\n"
        "  Call optimizer.build(model.trainable_variables) before the step."
    )

    def right() -> Any:
        optimizer.build(variables)  # the very optimizer that was refused
        return step(batch())

    check_refused(whale.VariableError, message, lambda: step(batch()), right, variables)
    assert int(optimizer.iterations.numpy()) == 1


def test_an_output_that_cannot_be_merged() -> None:
    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            sums = tf.reduce_sum(x, axis=0)
            return tf.argmax(sums) if wrong else sums

    message = (
        "'ArgMax' has one value for each micro-batch, and no rule says what they are together.\n"
        "  it is int64[]: no scalar float, no per-example value, no reduction over the examples\n"
        f"  at {Source(test_an_output_that_cannot_be_merged).at('return tf.argmax')}\n"
        "  Return per-example values or a scalar float, "
        "or compute it by tf.reduce_sum, reduce_max or reduce_min over the batch."
    )
    check_refused(whale.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False))


def test_a_whole_number_that_every_replica_changes() -> None:
    untold = tf.Variable(0, name="count", trainable=False)
    told = tf.Variable(0, name="told", trainable=False, aggregation=tf.VariableAggregation.SUM)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            found = tf.reduce_sum(tf.cast(x >= 0, tf.int32))
            if wrong:
                untold.assign(2 * untold + found)
            else:
                told.assign_add(found)
            return tf.reduce_mean(x)

    message = (
        "variable 'count' is changed by every replica, and no rule says how to merge the changes.\n"
        "  it is int32 with aggregation NONE; only floats are averaged without being told\n"
        f"  at {Source(test_a_whole_number_that_every_replica_changes).at('untold.assign')}\n"
        "  Make it with aggregation=tf.VariableAggregation.SUM, or ONLY_FIRST_REPLICA."
    )
    both = [untold, told]
    check_refused(whale.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), both)
    assert values(both) == [0, batch().size]


def test_a_variable_of_two_stages_that_every_micro_batch_changes() -> None:
    seen = tf.Variable(1.0, name="seen", trainable=False)

    @whale.function(micro_batches=2)
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            with whale.stage():
                h = x * seen if wrong else x
            with whale.stage():
                seen.assign_add(tf.reduce_sum(h))
                return tf.reduce_mean(h)

    source = Source(test_a_variable_of_two_stages_that_every_micro_batch_changes)
    message = (
        "variable 'seen' is changed by every micro-batch, and not only in the first stage that uses it.\n"
        "  'seen' is used in stages 0, 1\n"
        "  a micro-batch would have to leave the last of them before the next one may enter the first\n"
        f"  at {source.at('h = x * seen')}\n"
        f"  at {source.at('seen.assign_add')}\n"
        "  Put everything that uses the variable into one stage, or use micro_batches=1."
    )
    check_refused(whale.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), [seen])


def test_a_weight_that_examples_change_without_a_gradient() -> None:
    weight = tf.Variable(1.0, name="weight")

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(x * weight)
            if wrong:
                weight.assign_sub(0.1 * tf.reshape(x * weight, [-1])[0])
        if not wrong:
            descend(tape, loss, [weight])
        return loss

    message = (
        "trainable variable 'weight' is written from examples, and not through a gradient.\n"
        "  the step has several parts, and each would write its own value\n"
        f"  at {Source(test_a_weight_that_examples_change_without_a_gradient).at('weight.assign_sub')}\n"
        "  Take the gradient with tf.GradientTape inside the step, or make the variable with trainable=False."
    )
    check_refused(whale.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), [weight])
