"""Batches that have fewer examples than the step asks for parts: they run with fewer, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import batch, descend, values, weights

ROUNDING = 1e-6  # of float32 sums that are taken in another order


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def training(variables: list[tf.Variable], stages: int, **replica: Any) -> Callable[..., Any]:
    """A step of as many stages with one weight each, not yet decorated; it returns the examples, too."""

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(**replica):
            if stages == 1:
                h = x @ variables[0]
            else:
                with whale.stage():
                    h = x @ variables[0]
                with whale.stage():
                    h = h @ variables[1]
            loss = tf.reduce_mean(tf.square(h - 1))
        descend(tape, loss, variables)
        return loss, h

    return step


def check_equal(step: Callable[..., Any], plain: Callable[..., Any], pairs: Any, examples: int) -> None:
    """One more call of each with such a batch gives the same outputs and variables."""
    for got, want in zip(step(batch(examples)), plain(batch(examples)), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    for got, want in zip(*map(values, pairs), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    ("examples", "sizes"),
    [
        (1, ((1,),)),
        (2, ((1,), (1,))),
        (3, ((2,), (1,))),
        (4, ((1, 1), (1, 1))),
        (7, ((2, 1, 1), (1, 1, 1))),
        (8, ((1,) * 4, (1,) * 4)),
        (9, ((2, 1, 1, 1), (1,) * 4)),
    ],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_there_are_as_many_parts_as_examples_at_most(stages: int, examples: int, sizes: Any) -> None:
    pairs = weights(stages), weights(stages)
    step = whale.function(micro_batches=4)(training(pairs[0], stages, count=2))
    check_equal(step, tf.function(training(pairs[1], stages, count=2)), pairs, examples)
    assert step.plan.sizes == sizes
    assert (step.plan.layout.replicas, step.plan.micro_batches) == (len(sizes), len(sizes[0]))
    assert step.plan.layout.idle == tuple(range(stages * len(sizes), 8))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_an_epoch_may_end_with_a_batch_of_any_size(schedule: str) -> None:
    pairs = weights(2), weights(2)
    step = whale.function(micro_batches=4, schedule=schedule)(training(pairs[0], 2, count=2))
    plain = tf.function(training(pairs[1], 2, count=2))
    for examples in (16, 3, 16, 1, 5):
        check_equal(step, plain, pairs, examples)


@pytest.mark.parametrize(
    ("shares", "examples", "sizes"),
    [([1, 99], 8, ((8,),)), ([1, 99], 100, ((1,), (99,))), ([3, 1], 2, ((2,),)), ([3, 1], 3, ((2,), (1,)))],
)
def test_a_replica_whose_share_is_less_than_an_example_gets_none(shares: Any, examples: int, sizes: Any) -> None:
    pairs = weights(1), weights(1)
    step = whale.function(training(pairs[0], 1, shares=shares))
    check_equal(step, tf.function(training(pairs[1], 1, shares=shares)), pairs, examples)
    assert step.plan.sizes == sizes


def test_replicas_without_a_count_are_at_most_as_many_as_examples() -> None:
    pairs = weights(1), weights(1)
    step = whale.function(micro_batches=2)(training(pairs[0], 1))
    check_equal(step, tf.function(training(pairs[1], 1)), pairs, 5)
    assert step.plan.sizes == ((1,),) * 5
    assert step.plan.layout.idle == (5, 6, 7)


def test_the_batch_after_a_small_one_has_all_its_parts_again() -> None:
    step = whale.function(micro_batches=2)(training(weights(1), 1, count=4))
    sizes = []
    for examples in (8, 3, 8):
        step(batch(examples))
        sizes.append((step.plan.layout.replicas, step.plan.micro_batches))
    assert sizes == [(4, 2), (3, 1), (4, 2)]


def test_the_replica_with_the_largest_share_is_kept() -> None:
    step = whale.function(training(weights(1), 1, shares=[1, 9, 90]))
    step(batch(8))
    assert str(step.plan.sizes) == "((1,), (7,))"
    assert step.plan.layout.shares == pytest.approx((9 / 99, 90 / 99))
    assert str(step.plan.layout.meshes) == "(((1,),), ((2,),))", "the first one's share is less than an example"
    step(batch(1))
    assert str(step.plan.sizes) == "((1,),)"
    assert str(step.plan.layout.meshes) == "(((2,),),)"


def test_a_step_is_planned_again_for_other_devices() -> None:
    step = whale.function(training(weights(1), 1))
    for devices in (2, 4, 2):
        whale.init(devices)
        step(batch(8))
        assert step.plan.layout.replicas == devices
