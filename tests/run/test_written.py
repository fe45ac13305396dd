"""Variables that examples change without a gradient: every part's changes arrive, as if one device had made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import WIDTH, batch, descend, values

ROUNDING = 1e-6  # of float32 sums that are taken in another order
CLASSES = 5


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def check_written(made: Callable[[], tuple[Callable[..., Any], list[Any]]], micro_batches: int, **options: Any) -> Any:
    """Three calls with batches of two sizes give one device's outputs and variables: whole numbers exactly."""
    (planned, variables), (plain, wanted) = made(), made()
    step, reference = whale.function(micro_batches=micro_batches, **options)(planned), tf.function(plain)
    for examples in (8, 8, 13):
        pairs = [*zip(values(variables), values(wanted), strict=True)]
        pairs += zip(tf.nest.flatten(step(batch(examples))), tf.nest.flatten(reference(batch(examples))), strict=True)
        pairs += zip(values(variables), values(wanted), strict=True)
        for got, want in pairs:
            if np.asarray(want).dtype.kind == "f":
                np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
            else:
                np.testing.assert_array_equal(got, want)
    return step


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("aggregation", [tf.VariableAggregation.NONE, tf.VariableAggregation.SUM])
def test_a_whole_number_that_every_part_changes(micro_batches: int, aggregation: tf.VariableAggregation) -> None:
    """It needs no rule of aggregation, and one that it has changes nothing."""

    def made() -> tuple[Callable[..., Any], list[Any]]:
        count = tf.Variable(1, trainable=False, aggregation=aggregation)
        largest = tf.Variable(0, trainable=False, aggregation=aggregation)

        def step(x: Any) -> Any:
            with whale.replica(2):
                found = tf.reduce_sum(tf.cast(x > 0.3, tf.int32))
                count.assign(2 * count + found)
                largest.assign(tf.maximum(largest, tf.reduce_max(tf.cast(10 * x, tf.int32))))
                return count + 1

        return step, [count, largest]

    check_written(made, micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_a_variable_of_two_stages_that_every_micro_batch_changes(micro_batches: int, schedule: str) -> None:
    """All of them read what it was before the step, as on one device."""

    def made() -> tuple[Callable[..., Any], list[Any]]:
        seen, weight = tf.Variable(1.0, trainable=False), tf.Variable(tf.eye(WIDTH))

        def step(x: Any) -> Any:
            with tf.GradientTape() as tape, whale.replica(2):
                with whale.stage():
                    h = x @ weight * seen
                with whale.stage():
                    seen.assign_add(tf.reduce_sum(h))
                    loss = tf.reduce_mean(h) / seen
            descend(tape, loss, [weight])
            return loss, seen.read_value()

        return step, [seen, weight]

    check_written(made, micro_batches, schedule=schedule, coupling="exact")


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_weight_that_examples_change_without_a_gradient(micro_batches: int) -> None:
    def made() -> tuple[Callable[..., Any], list[Any]]:
        weight, other = tf.Variable(1.0), tf.Variable(tf.eye(WIDTH))

        def step(x: Any) -> Any:
            with tf.GradientTape() as tape, whale.replica(2):
                h = x @ other * weight
                loss = tf.reduce_mean(h)
                weight.assign_sub(0.1 * tf.reshape(h, [-1])[3])
            descend(tape, loss, [other])
            return loss

        return step, [weight, other]

    check_written(made, micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_queues_counts_and_averages(micro_batches: int) -> None:
    def made() -> tuple[Callable[..., Any], list[Any]]:
        queue = tf.Variable(tf.zeros([20, WIDTH]), trainable=False)
        counts = tf.Variable(tf.zeros([CLASSES], tf.int64), trainable=False)
        table = tf.Variable(tf.ones([CLASSES, WIDTH]), trainable=False)
        average = tf.Variable(tf.zeros([WIDTH]), trainable=False)

        def step(x: Any) -> Any:
            with whale.replica(2):
                codes = tf.cast(x[:, 0] * (CLASSES - 1), tf.int64)
                queue.assign(tf.concat([x, queue], axis=0)[:20])
                counts.assign_add(tf.math.bincount(codes, minlength=CLASSES, dtype=tf.int64))
                table.scatter_sub(tf.IndexedSlices(x, codes))
                average.assign(0.9 * average + 0.1 * tf.reduce_mean(x, axis=0))
                return tf.reduce_max(average)

        return step, [queue, counts, table, average]

    check_written(made, micro_batches)


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_metrics(micro_batches: int) -> None:
    def made() -> tuple[Callable[..., Any], list[Any]]:
        metrics = [keras.metrics.MeanSquaredError(), keras.metrics.AUC(num_thresholds=7), keras.metrics.Recall()]

        def step(x: Any) -> Any:
            with whale.replica(2):
                for metric in metrics:
                    metric.update_state(tf.round(x[:, 0]), x[:, 1])
                return [metric.result() for metric in metrics]

        return step, [variable for metric in metrics for variable in metric.variables]

    check_written(made, micro_batches)
