"""The first call of a step: variables that it creates, and numbers that it compares with one device before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, values, weights
from whale_tf.run.step import Step

ROUNDING = 1e-6  # of float32 sums that are taken in another order; Adam divides by roots, the gradients here are not 0


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


# Variables


class Lazy:
    """A model, an optimizer and a metric that are built by the first step."""

    def __init__(self) -> None:
        initializers = [keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2)]
        self.model = keras.Sequential([keras.layers.Dense(5, "relu", kernel_initializer=initializers[0]),
                                       keras.layers.Dense(1, kernel_initializer=initializers[1])])  # fmt: skip
        self.optimizer = keras.optimizers.Adam(0.1)
        self.metric = keras.metrics.MeanAbsoluteError()
        self.calls: Any = None

    def step(self, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = self.model(x)
            loss = tf.reduce_mean(tf.square(h - y))
            self.metric.update_state(y, h)
        trained = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
        if self.calls is None:
            self.calls = tf.Variable(0, trainable=False, name="calls")
        self.calls.assign_add(1)
        return loss, self.metric.result()

    @property
    def variables(self) -> list[Any]:
        return [*self.model.variables, *self.optimizer.variables, *self.metric.variables, self.calls]


def check_three_calls(step: Any, reference: Any, lazy: Lazy, plain: Lazy) -> None:
    """Both give the same in three calls, of which the last has fewer examples."""
    for examples in (8, 8, 6):
        x = batch(examples)
        y = x.sum(axis=1, keepdims=True)
        for got, want in zip(step(x, y), reference(x, y), strict=True):
            np.testing.assert_allclose(got, want, rtol=10 * ROUNDING)
    assert int(lazy.calls.numpy()) == 3
    for got, want in zip(values(lazy.variables), values(plain.variables), strict=True):
        np.testing.assert_allclose(got, want, rtol=10 * ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_model_its_optimizer_and_a_metric_are_built_by_the_first_call(micro_batches: int) -> None:
    lazy, plain = Lazy(), Lazy()
    step, reference = whale.function(micro_batches=micro_batches)(lazy.step), tf.function(plain.step)
    check_three_calls(step, reference, lazy, plain)


def test_a_step_that_creates_a_variable_is_traced_once_more() -> None:
    traced: list[int] = []
    made: dict[str, tf.Variable] = {}

    @whale.function
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        if not made:
            made["total"] = tf.Variable(lambda: tf.zeros([4]), trainable=False)
            made["calls"] = tf.Variable(0, trainable=False)
        with whale.replica(2):
            made["calls"].assign_add(1)
            return made["total"].assign_add(tf.reduce_sum(x, axis=0))

    x = batch()
    for calls, sizes in ((1, [8, 8, 16]), (2, [8, 8, 16])):
        np.testing.assert_allclose(step(x), calls * x.sum(axis=0), rtol=ROUNDING)
        assert traced == sizes
        assert int(made["calls"].numpy()) == calls


def test_a_variable_that_is_created_at_every_call() -> None:
    outside = tf.Variable(1.0, trainable=False)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            factor = tf.Variable(1.0, name="factor") if wrong else outside
            outside.assign_add(1.0)
            return tf.reduce_mean(x) * factor

    message = (
        "variable 'factor' is created at every call of the step.\n"
        "  a step is traced once and run many times; variables are made in the first call, and kept\n"
        f"  at {Source(test_a_variable_that_is_created_at_every_call).at('factor = tf.Variable')}\n"
        "  Keep it: create it before the step, or only if it is not there yet (`if self.v is None:`)."
    )
    check_refused(
        whale.errors.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), [outside]
    )


def test_a_variable_whose_first_value_is_computed_in_the_step() -> None:
    outside = tf.Variable(1.0, trainable=False)
    made: list[tf.Variable] = []

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            mean = tf.reduce_mean(x)
            if not made:
                made.append(tf.Variable(mean if wrong else 0.5, name="first"))
            outside.assign_add(1.0)
            return mean * made[0]

    message = (
        "variable 'first' is created inside the step, from a value that is computed there.\n"
        "  a step is traced once and run many times; a variable must have its first value before\n"
        f"  at {Source(test_a_variable_whose_first_value_is_computed_in_the_step).at('made.append')}\n"
        "  Give it a function that makes its first value, or create it before the step."
    )
    check_refused(
        whale.errors.VariableError, message, lambda: step(batch(), True), lambda: step(batch(), False), [outside]
    )


# Verification


def of_mean(weight: tf.Variable, **options: Any) -> Callable[..., Any]:
    """A step that divides by the mean of the batch, or of each part of it where that is accepted."""

    @whale.function(micro_batches=2, **options)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = x @ weight
            loss = tf.reduce_mean(tf.square(h / tf.reduce_mean(h)))
        descend(tape, loss, [weight])
        return loss

    return step


@pytest.mark.filterwarnings("ignore:each part of the batch has its own value")
def test_verify_first_refuses_a_step_that_is_not_that_of_one_device() -> None:
    (weight,) = weights(1)
    step: Any = of_mean(weight, accept="Mean", verify_first=True)
    x = batch()
    found = step.verify(x)
    assert found.largest > 0.01
    message = (
        "the first step is not that of one device.\n"
        + "".join(f"  {line}\n" for line in str(found).splitlines())
        + f"  at {Source(of_mean).at('@whale.function')}\n"
        '  Use batch_norm="global" where a step normalizes over parts of the batch, leave verify_first out where it '
        "draws random numbers without a seed; else report it with what WHALE_TF_DUMP=folder writes."
    )
    step = of_mean(weight, accept="Mean", verify_first=True)
    right = of_mean(weight, accept="Mean")
    check_refused(whale.errors.PlanError, message, lambda: step(x), lambda: right(x), [weight])
    with pytest.raises(whale.errors.PlanError, match="the first step is not that of one device"):
        step(x)  # as it was before: refused each time


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_verify_first_runs_a_right_step_once(micro_batches: int) -> None:
    lazy, plain = Lazy(), Lazy()
    step = whale.function(micro_batches=micro_batches, verify_first=True)(lazy.step)
    reference = tf.function(plain.step)
    check_three_calls(step, reference, lazy, plain)


def test_only_the_first_call_with_inputs_of_some_shapes_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[int] = []

    @whale.function(verify_first=True)
    def step(x: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(x)

    verify_first = Step._verify_first

    def noting(self: Any, compiled: Any, arguments: Any) -> None:
        verified.append(arguments.examples)
        verify_first(self, compiled, arguments)

    monkeypatch.setattr(Step, "_verify_first", noting)
    for examples in (8, 8, 6, 8, 6):
        assert float(step(batch(examples))) == pytest.approx(0.5)
    assert verified == [8, 6]
