"""Which differences of variables are called rounding: where both gradients are the rounding of zero, and no others."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import WIDTH, batch, descend, weights
from whale_tf.run import precision as programs
from whale_tf.run import verification
from whale_tf.run.precision import Pair
from whale_tf.run.verification import VERIFIED

ROUNDING64 = 1e-7  # constants that a step was traced with, as 1/3, keep the value they have in float32
LENGTH, WORDS = 6, 8
# A key's bias adds the same to all logits of a softmax, and the others the same to all that is then normalized.
ZERO_GRADIENTS = {"attention/key/bias", "attention/value/bias", "attention/attention_output/bias", "before/bias"}


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def attention(optimizer: Any, *, replicas: int = 2, **options: Any) -> tuple[Any, keras.Model]:
    """A step with biases whose true gradient is zero: of a key before a softmax, and what is before a normalization."""
    inputs = keras.Input((LENGTH, WORDS))
    h = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    h = keras.layers.Dense(5, name="before")(h)
    h = keras.layers.BatchNormalization(name="normalization")(h)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(h)))
    optimizer.build(model.trainable_variables)

    @whale.function(coupling="exact", **options)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(replicas):
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step, model


def data(examples: int = 8) -> tuple[Any, Any]:
    numbers = np.random.default_rng(3)
    return numbers.normal(size=(examples, LENGTH, WORDS)).astype(np.float32), np.arange(examples) % 3


def test_a_gradient_that_is_rounding_is_named_and_all_else_agrees() -> None:
    step, _ = attention(keras.optimizers.Adam(0.01, name="adam"))
    found = step.verify(*data())
    assert found.largest > 0.01, "no rounding to explain"
    biases = {suspect.name for suspect in found.suspects if not suspect.name.startswith("adam/")}
    assert biases == ZERO_GRADIENTS
    slots = {f"adam/{name.replace('/', '_')}_{slot}" for name in ZERO_GRADIENTS for slot in ("momentum", "velocity")}
    assert {suspect.name for suspect in found.suspects} == biases | slots
    assert found.unexplained < VERIFIED
    assert all(suspect.gradient < 1e-6 < suspect.largest for suspect in found.suspects)
    lines = str(found).splitlines()[-3:]
    assert lines[0].startswith("rounding of zero gradients, which an optimizer such as Adam amplifies: ")
    assert lines[1].startswith("  where they differ, both gradients are ")
    way_out = 'to be sure, compare where rounding is 1e8 times smaller: step.verify(..., precision="float64")'
    assert lines[2] == f"  {way_out}"


@pytest.mark.parametrize("steps", [1, 3])
def test_in_float64_the_same_step_agrees(steps: int) -> None:
    step, model = attention(keras.optimizers.Adam(0.01))
    before = [variable.numpy() for variable in model.variables]
    found = step.verify(*data(), steps=steps, precision="float64")
    assert found.unexplained < ROUNDING64
    absolute = {row.name: row.absolute for row in found.rows}
    assert max(absolute[name] for name in ZERO_GRADIENTS) < 1e-11
    assert (found.precision, found.kept) == ("float64", ())
    assert f"after {steps} step{'s' * (steps > 1)} in float64: largest" in str(found)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
        assert variable.value.dtype == tf.float32


def test_verifying_the_first_step_is_not_misled_by_rounding() -> None:
    step, _ = attention(keras.optimizers.Adam(0.01), verify_first=True)
    assert np.isfinite(step(*data()))


def test_with_plain_descent_the_same_differences_stay_as_small_as_they_are() -> None:
    step, _ = attention(keras.optimizers.SGD(0.01))
    found = step.verify(*data())
    assert {suspect.name for suspect in found.suspects} <= ZERO_GRADIENTS, "they begin at zero"
    assert max(row.absolute for row in found.rows) < 1e-6


def test_where_all_agrees_there_are_no_suspects() -> None:
    (weight,) = weights(1)

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(x @ weight))
        descend(tape, loss, [weight])
        return loss

    found = step.verify(batch())
    assert found.suspects == ()
    assert len(str(found).splitlines()) == 4  # the heading, two rows, the summary


def wrong(step: Any, change: Any, monkeypatch: pytest.MonkeyPatch, *args: Any) -> Any:
    """Verifies a plan that does something else after each step."""
    original = programs.as_it_is

    def pair(*arguments: Any) -> Pair:
        made = original(*arguments)

        def planned() -> Any:
            outputs = made.planned()
            change()
            return outputs

        return Pair(made.compiled, planned, *(getattr(made, name) for name in list(Pair.__dataclass_fields__)[2:]))

    monkeypatch.setattr(verification, "as_it_is", pair)
    return step.verify(*args)


def test_a_wrong_update_is_not_called_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    step, model = attention(keras.optimizers.Adam(0.01))
    kernel = next(variable for variable in model.trainable_variables if variable.path == "head/kernel")
    found = wrong(step, lambda: kernel.assign_add(tf.fill(kernel.shape, 0.02)), monkeypatch, *data())
    assert "head/kernel" not in {suspect.name for suspect in found.suspects}
    assert found.unexplained > VERIFIED


def test_a_small_gradient_that_is_right_in_one_of_both_is_not_called_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable is trained by a gradient of 1e-3 of the other's: it is small, and no rounding."""
    large, small = weights(2)

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(x @ large) + 1e-3 * tf.square(x @ small))
        descend(tape, loss, [large, small])
        return loss

    found = wrong(step, lambda: small.assign_add(tf.ones([WIDTH, WIDTH])), monkeypatch, batch())
    assert (found.suspects, found.unexplained > VERIFIED) == ((), True)


def test_a_variable_that_is_written_from_no_gradient_is_not_called_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    (weight,) = weights(1)
    mean = tf.Variable(tf.zeros([WIDTH]), name="mean")

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(x @ weight))
            mean.assign(tf.reduce_mean(x, axis=0))
        descend(tape, loss, [weight])
        return loss

    found = wrong(step, lambda: mean.assign_add(tf.ones([WIDTH])), monkeypatch, batch())
    assert (found.suspects, found.unexplained > VERIFIED) == ((), True)


def test_what_differs_where_both_gradients_are_nothing_is_not_called_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of an embedding that no example takes: a plan that changes them is wrong."""
    table = tf.Variable(tf.ones([5, WIDTH]), name="table")

    @whale.function
    def step(tokens: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(tf.gather(table, tokens)))
        gradient = tape.gradient(loss, table)
        table.scatter_sub(tf.IndexedSlices(gradient.values, gradient.indices))
        return loss

    def change() -> None:
        table.scatter_add(tf.IndexedSlices(tf.ones([2, WIDTH]), tf.constant([3, 4])))

    found = wrong(step, change, monkeypatch, np.array([0, 1, 1, 2]))
    assert (found.suspects, found.unexplained > VERIFIED) == ((), True)


def test_gradients_that_are_no_numbers_explain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = weights(2)

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(x @ first)) + tf.reduce_mean(tf.math.log(x @ second - 2))
        descend(tape, loss, [first, second])
        return loss

    found = wrong(step, lambda: first.assign_add(tf.ones([WIDTH, WIDTH])), monkeypatch, batch())
    assert found.suspects == ()
    assert found.unexplained > VERIFIED


def test_statistics_of_each_part_differ_in_float64_as_well() -> None:
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3, activation="tanh")(inputs)))

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(model(x, training=True) - 1))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    for precision in (None, "float64"):
        assert step.verify(batch(), precision=precision).unexplained > 0.01


def test_operations_that_stay_are_named() -> None:
    (weight,) = weights(1)

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = x @ weight
            loss = tf.reduce_mean(tf.square(h))
        descend(tape, loss, [weight])
        return loss, tf.bitcast(h, tf.int32)

    found = step.verify(batch(), precision="float64")
    assert found.kept == ("Bitcast",)
    assert str(found).splitlines()[-1] == "not in float64, and rounded as before: Bitcast"


def test_half_precision_is_verified_in_float64() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        step, _ = attention(keras.optimizers.SGD(0.01), micro_batches=2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert step.verify(*data(), precision="float64").unexplained < ROUNDING64


def test_another_precision_is_refused() -> None:
    (weight,) = weights(1)
    step = whale.function(lambda x: x @ weight)
    with pytest.raises(whale.errors.PlanError) as refused:
        step.verify(batch(), precision="float16")
    assert str(refused.value) == (
        "verify compares a step as it is, or in float64.\n"
        "  precision is 'float16'\n"
        '  Use verify(..., precision="float64"), or leave precision out.'
    )
    assert step.verify(batch(), precision="float64").largest == 0
