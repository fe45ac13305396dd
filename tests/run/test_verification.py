"""`verify`: both runs start from one state and leave it as it was; every number is compared by what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.errors import PlanError
from whale_tf.run.compiled import Compiled
from whale_tf.run.signature import take_apart
from whale_tf.run.verification import SHOWN_ROWS, Difference, Verification, verify

TOLERANCE = 1e-5  # float32 sums in another order
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


class Comparison:
    """A step, its plan, and its plain function, for calls of `verify` that are alike."""

    def __init__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> None:
        whale.init(devices=8)
        self.step = whale.function(**options)(function)
        self.arguments = take_apart(function, inputs, {}, ())
        self.step.prepare(*inputs)
        self.compiled: Compiled = self.step.compiled
        self.plain = tf.function(function)

    def __call__(self, steps: int = 1) -> Verification:
        return verify(self.plain, self.compiled, self.arguments, steps)


class Broken:
    """A plan that runs something else in the place of its program."""

    def __init__(self, compiled: Compiled, run: Callable[..., Any]) -> None:
        self.parts, self.program = compiled.parts, compiled.program
        self.run, self.gather, self.variant = run, compiled.gather, compiled.variant

    def __call__(self, tensors: Any) -> Any:
        return self.run(tensors)


def rows(verification: Verification) -> dict[str, Difference]:
    return {row.name: row for row in verification.rows}


def training(optimizer: Any) -> tuple[Callable[..., Any], list[tf.Variable]]:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    optimizer.build(model.trainable_variables)

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(model(x) - 1))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {"loss": loss}

    return step, [*model.variables, *optimizer.variables]


def test_plan_and_plain_step_agree_and_the_state_stays() -> None:
    step, variables = training(keras.optimizers.Adam(0.01))
    comparison = Comparison(step, X, micro_batches=2)
    before = [variable.numpy() for variable in variables]
    for steps in (1, 3):
        found = comparison(steps)
        assert found.largest < TOLERANCE
        assert found.steps == steps
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert rows(found)["output['loss']"].kind == "output"
    assert {row.name for row in found.rows if row.kind == "variable"} == set(comparison.compiled.parts.variables)


def test_the_plain_step_is_traced_once() -> None:
    traces = []
    weight = tf.Variable(2.0)

    def step(x: tf.Tensor) -> tf.Tensor:
        traces.append(x)
        return weight * x

    comparison = Comparison(step, X)
    made = len(traces)
    for _ in range(3):
        comparison()
    assert len(traces) == made + 1


def test_a_wrong_plan_is_seen_in_outputs_and_variables() -> None:
    weight, count = tf.Variable([2.0, 4.0], name="weight"), tf.Variable(0, name="count")

    def step(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weight.assign_sub([1.0, 1.0])
        count.assign_add(1)
        return tf.reduce_sum(x), x

    def wrong(tensors: Any) -> tuple[tf.Tensor, tf.Tensor]:
        weight.assign_sub([1.0, 2.5])
        return tf.reduce_sum(tensors[0]), tensors[0] + 1

    comparison = Comparison(step, X)
    found = rows(verify(comparison.plain, Broken(comparison.compiled, wrong), comparison.arguments))  # type: ignore[arg-type]
    assert (found["output[0]"].absolute, found["output[0]"].relative) == (0, 0)
    assert found["output[1]"].absolute == pytest.approx(1)
    assert found["weight"] == Difference("weight", "variable", (2,), 1.5, 0.5)  # [1, 1.5] is [1, 3]: 1.5 of 3
    assert found["count"] == Difference("count", "variable", (), 1.0, np.inf)
    assert (weight.numpy().tolist(), count.numpy()) == ([2.0, 4.0], 0)


@pytest.mark.parametrize("fails", ["plan", "plain"])
def test_a_failure_restores_the_state(fails: str) -> None:
    weight = tf.Variable(2.0, name="weight")

    def step(x: tf.Tensor) -> tf.Tensor:
        weight.assign_add(tf.reduce_sum(x) + 1)
        return x

    def failing(*_: Any) -> Any:
        weight.assign(9.0)
        raise RuntimeError("stop")

    comparison = Comparison(step, X)
    compiled: Any = Broken(comparison.compiled, failing) if fails == "plan" else comparison.compiled
    plain = comparison.plain
    if fails == "plain":
        plain = tf.function(lambda x: step(x) + tf.numpy_function(failing, [x], tf.float32))
    with pytest.raises((RuntimeError, tf.errors.OpError), match="stop"):
        verify(plain, compiled, comparison.arguments)
    assert weight.numpy() == 2.0


def test_a_variable_that_only_the_plain_step_touches_is_compared_and_restored() -> None:
    weight, unknown = tf.Variable(2.0, name="weight"), tf.Variable(3.0, name="weight")

    def step(x: tf.Tensor) -> tf.Tensor:
        return weight * x

    def plain(x: tf.Tensor) -> tf.Tensor:
        unknown.assign_add(1.0)
        return weight * x

    comparison = Comparison(step, X)
    found = rows(verify(tf.function(plain), comparison.compiled, comparison.arguments))
    assert found["weight"].absolute == 0
    assert found["weight_1"] == Difference("weight_1", "variable", (), 1.0, 0.25)
    assert unknown.numpy() == 3.0


def test_seed_generators_advance_alike() -> None:
    """A dropout's generator is a variable: both runs leave the same seed, though masks differ."""
    dropout = keras.layers.Dropout(0.5, seed=3)

    def step(x: tf.Tensor) -> tf.Tensor:
        with whale.replica(2):
            return tf.reduce_mean(dropout(x, training=True))

    before = dropout.seed_generator.state.numpy()
    found = rows(Comparison(step, X)(2))
    assert all(row.absolute == 0 for row in found.values() if row.kind == "variable")
    np.testing.assert_array_equal(dropout.seed_generator.state.numpy(), before)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("planned", "plain", "absolute", "relative"),
    [
        ([1.0, 2.0], [1.0, 4.0], 2.0, 0.5),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0.0, 0.0),
        ([NAN, 1.0], [1.0, 1.0], INF, INF),
        ([INF, 1.0], [-INF, 1.0], INF, INF),
        ([0.0], [0.0], 0.0, 0.0),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 0.0, 0.0),
        (np.array([1, 5]), np.array([1, 3]), 2.0, INF),
        (np.array([2**64 - 1], np.uint64), np.array([2**64 - 1], np.uint64), 0.0, 0.0),
        ([True, False], [True, True], 1.0, INF),
        (["a", "b"], ["a", "b"], 0.0, 0.0),
        (["a", "b"], ["a", "c"], INF, INF),
        ("a", "b", INF, INF),
        ([1.0], [1.0, 1.0], INF, INF),
        ([1], [1.0], INF, INF),
        (tf.constant([1.0, 1.5], tf.bfloat16), tf.constant([1.0, 2.0], tf.bfloat16), 0.5, 0.25),
        (tf.constant([6e4], tf.float16), tf.constant([-6e4], tf.float16), 120000.0, 2.0),
        (np.array([1 + 1j], np.complex64), np.array([1 - 1j], np.complex64), 2.0, 2**0.5),
    ],
)
def test_the_distance_of_two_tensors(planned: Any, plain: Any, absolute: float, relative: float) -> None:
    comparison = Comparison(lambda x: x, X)
    compiled: Any = Broken(comparison.compiled, lambda _: tf.constant(planned))
    (row,) = verify(tf.function(lambda x: tf.constant(plain)), compiled, comparison.arguments).rows
    assert (row.name, row.absolute) == ("output", absolute)
    assert row.relative == pytest.approx(relative)


def test_outputs_are_named_by_their_place() -> None:
    def step(x: tf.Tensor) -> Any:
        return {"parts": (x, [tf.reduce_sum(x), None]), "count": 3}

    comparison = Comparison(step, X)
    assert set(rows(comparison())) == {"output['parts'][0]", "output['parts'][1][0]", "output['count']"}


def test_an_output_of_only_one_is_infinitely_far() -> None:
    comparison = Comparison(lambda x: (x, x), X)
    compiled: Any = Broken(comparison.compiled, lambda tensors: tensors[0])
    found = verify(comparison.plain, compiled, comparison.arguments)
    assert {row.name for row in found.rows} == {"output", "output[0]", "output[1]"}
    assert found.largest == np.inf


@pytest.mark.parametrize("steps", [0, -1, 1.0, True])
def test_steps_are_counted_from_one(steps: Any) -> None:
    comparison = Comparison(lambda x: x, X)
    with pytest.raises(PlanError) as caught:
        comparison(steps)
    assert str(caught.value).split("\n") == [
        "verify needs a whole number of steps from 1 on.",
        f"  steps is {steps!r}",
        "  Use verify(..., steps=1), or leave steps out.",
    ]


def test_it_prints_the_worst_first() -> None:
    found = Verification(
        2,
        (
            Difference("output['loss']", "output", (), 1e-7, 2e-8),
            Difference("dense/kernel", "variable", (3, 4), 0.25, 0.5),
        ),
    )
    assert str(found).split("\n") == [
        "name            kind      shape  absolute  relative",
        "dense/kernel    variable  [3,4]      0.25       0.5",
        "output['loss']  output    []        1e-07     2e-08",
        "1 outputs and 1 variables after 2 steps: largest relative difference 0.5",
    ]


def test_it_prints_the_first_rows_only_and_no_colours() -> None:
    found = Verification(1, tuple(Difference(f"v{n}", "variable", (), n, n) for n in range(SHOWN_ROWS + 5)))
    lines = str(found).split("\n")
    assert len(lines) == 1 + SHOWN_ROWS + 2
    assert lines[1].startswith("v24 ")
    assert lines[-2] == "… and 5 more that differ less"
    assert "\x1b" not in str(found)
    assert str(Verification(1, ())) == "0 outputs and 0 variables after 1 step: largest relative difference 0"
