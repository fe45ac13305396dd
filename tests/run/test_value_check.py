"""WHALE_TF_CHECK=values: each value is compared, what is right is not reported, and what is wrong is found itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.errors import PlanError, ValueCheckError
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import Reduction, Split, Value
from whale_tf.parallelize import CHECK_VARIABLE
from whale_tf.plan import answers, rules
from whale_tf.plan.local import Local
from whale_tf.rewrite import check_sums, check_values, combine
from whale_tf.run.compiled import Compiled
from whale_tf.run.value_check import Checked

X = np.linspace(-1, 3, 24, dtype=np.float32).reshape(8, 3)


@pytest.fixture(autouse=True)
def values_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECK_VARIABLE, "values")
    whale.init(devices=2)


def trained(forward: Callable[[tf.Tensor, tf.Variable], Any], **options: Any) -> tuple[Any, tf.Variable]:
    """A step of two replicas that trains `w` [3, 2] by what `forward` makes of the inputs and of it."""
    w = tf.Variable(np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(3, 2), name="w")

    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = forward(x, w)
        w.assign_sub(0.1 * tape.gradient(loss, w))
        return loss

    return whale.function(**options)(step), w


def waves(x: tf.Tensor, w: tf.Variable) -> tf.Tensor:
    """A mean, and a function of one."""
    h = tf.tanh(x @ w)
    return tf.reduce_mean(h) + tf.exp(tf.reduce_mean(h * h))


def compared(step: Any) -> list[str]:
    """The ops whose results were compared, one for each result."""
    isolated, _ = step.compiled.alone
    return [step.compiled.states.sizes.graph[ref.node].op for ref in isolated.compared]


def with_kind(op: str, **changes: Any) -> Mapping[str, Any]:
    """The table of rules with another kind for one op."""
    return {**rules.KINDS, op: replace(rules.KINDS[op], **changes)}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_numbers_are_those_of_the_step_without_it(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(x: tf.Tensor, w: tf.Variable) -> tf.Tensor:
        return tf.reduce_mean(tf.tanh(x @ w))

    checked, w = trained(forward, micro_batches=micro_batches)
    losses = [float(checked(X)) for _ in range(3)]
    monkeypatch.delenv(CHECK_VARIABLE)
    usual, v = trained(forward, micro_batches=micro_batches)
    np.testing.assert_allclose([float(usual(X)) for _ in range(3)], losses, rtol=1e-6)
    np.testing.assert_allclose(w.numpy(), v.numpy(), rtol=1e-6)
    assert isinstance(checked.compiled, Checked)
    assert type(usual.compiled) is Compiled


def test_each_value_of_the_step_is_compared() -> None:
    step, _ = trained(waves)
    step(X)
    isolated, _ = step.compiled.alone
    recorded = {record.ref for record in step.compiled.probed.records}
    assert recorded - set(isolated.compared) == {Ref("w")}  # which nothing computes
    assert set(compared(step)) >= {"MatMul", "Tanh", "Mean", "Exp", "Gradient", "Sub", "Write"}


def test_a_wrong_rule_is_found_with_the_whole_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "KINDS", with_kind("Exp", linear=(0,)))
    step, _ = trained(waves)
    with pytest.raises(ValueCheckError) as found:
        step(X)
    lines = str(found.value).splitlines()
    assert lines[0] == "'Exp' (Exp) is not what one device computes."
    assert lines[1].startswith("  float32[], Partial(sum) of degree -1: the largest difference is 0.0")
    assert "; the largest number that one device has is 1." in lines[1]
    assert lines[2] == "  it takes 'Mean_1' float32[], Partial(sum) of degree -1"
    assert lines[-2].startswith("  at ")
    assert lines[-2].endswith(" in waves: return tf.reduce_mean(h) + tf.exp(tf.reduce_mean(h * h))")
    assert lines[-1] == (
        "  This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes."
    )


def test_a_wrong_merge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine, "FOLDS", {**combine.FOLDS, Reduction.MAX: "Minimum"})
    way = check_sums.Way(frozenset({"Minimum"}))  # it refuses the program before it runs, unless it has the same table
    monkeypatch.setattr(check_values, "FOLDED", {**check_sums.FOLDED, Reduction.MAX: way})
    step, _ = trained(lambda x, w: tf.reduce_mean(x @ w) * tf.reduce_max(x))
    with pytest.raises(ValueCheckError, match=r"'Max' \(Max\) is not.*\n.*the largest number that merged, the parts"):
        step(X)


def test_a_result_of_another_shape_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_elsewhere = {"Reshape": lambda operation: Local((Value(Split(1)),))}
    monkeypatch.setattr(answers, "_ANSWERS", {**answers._ANSWERS, **cut_elsewhere})
    step, _ = trained(lambda x, w: tf.reduce_mean(x @ w) + tf.reduce_sum(tf.reshape(x, [-1, 1, 3])))
    with pytest.raises(ValueCheckError, match=r"the parts make a \[4, 2, 3\], and one device a \[8,1,3\]"):
        step(X)


def test_what_draws_another_number_each_time_is_not_reported() -> None:
    step, _ = trained(lambda x, w: tf.reduce_mean(tf.nn.dropout(x @ w, 0.5) * tf.random.normal([2])))
    step(X)
    step(X)


def test_a_draw_from_a_seed_is_compared() -> None:
    step, _ = trained(lambda x, w: tf.reduce_mean((x @ w) * tf.random.stateless_uniform(tf.shape(x @ w), [3, 4])))
    step(X)
    assert "StatelessRandomUniformV2" in compared(step)


def test_the_statistics_of_a_part_are_not_reported_and_what_follows_is_compared() -> None:
    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    step, _ = trained(lambda x, w: tf.reduce_mean(tf.tanh(layer(x @ w, training=True))))
    step(X)
    assert "Tanh" in compared(step)
    assert compared(step).count("Mean") < sum(node.op == "Mean" for node in step.compiled.states.sizes.graph)


def test_numbers_that_are_none_are_equal() -> None:
    step, _ = trained(lambda x, w: tf.reduce_mean(x @ w) + 0.0 * tf.reduce_sum(tf.math.log(x)))
    assert np.isnan(step(X))


def test_stages_alone_are_checked() -> None:
    w, v = tf.Variable(tf.ones([3, 2])), tf.Variable(tf.ones([2, 1]))

    @whale.function
    def step(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            with whale.stage():
                h = tf.tanh(x @ w)
            with whale.stage():
                loss = tf.reduce_mean(h @ v)
        for variable, gradient in zip((w, v), tape.gradient(loss, (w, v)), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    step(X)
    assert {"Tanh", "Mean"} <= set(compared(step))


def test_another_word_is_refused_with_the_ones_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHECK_VARIABLE, "all")
    step, _ = trained(waves)
    with pytest.raises(PlanError) as refused:
        step(X)
    assert str(refused.value) == (
        "WHALE_TF_CHECK must be 'values', or empty.\n"
        "  it is 'all'\n"
        "  Set WHALE_TF_CHECK=values to compare every value of a step with one device's, or unset it."
    )
