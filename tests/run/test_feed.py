"""Feeding a step part by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from whale_tf.errors import BatchError
from whale_tf.run.feed import Fed, digest

BATCH = 12


def batches(count: int = 3) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(1)
    return [
        (generator.normal(size=(BATCH, 3)).astype(np.float32), generator.normal(size=BATCH).astype(np.float32))
        for _ in range(count)
    ]


def make_step(**options: Any) -> Any:
    weights = tf.Variable(tf.ones([3]))

    @whale.function(**options)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica():
            loss = tf.reduce_mean((tf.linalg.matvec(x, weights) - y) ** 2)
        weights.assign_sub(0.1 * tape.gradient(loss, weights))
        return loss

    return step


def test_fed_steps_give_the_numbers_of_called_ones() -> None:
    whale.init(2)
    called, fed = make_step(micro_batches=2), make_step(micro_batches=2)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches()),
        output_signature=(tf.TensorSpec([BATCH, 3], tf.float32), tf.TensorSpec([BATCH], tf.float32)),
    )
    losses = [float(fed(batch)) for batch in fed.feed(dataset)]
    assert losses == [float(called(x, y)) for x, y in batches()]


def test_a_dict_is_the_steps_one_argument() -> None:
    whale.init(1)

    @whale.function
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(batch["x"])

    dataset = tf.data.Dataset.from_tensor_slices({"x": tf.ones([6])}).batch(4)
    assert [float(step(batch)) for batch in step.feed(dataset)] == [4.0, 2.0]


def test_a_part_says_what_it_is() -> None:
    whale.init(2)
    step = make_step()
    (batch,) = step.feed(batches(1))
    assert isinstance(batch, Fed)
    assert repr(batch) == f"<part of a global batch of {BATCH}: x [{BATCH}, 3], y [{BATCH}]>"


def test_a_batch_without_examples_is_refused_as_in_a_call() -> None:
    whale.init(2)
    step = make_step(micro_batches=4)
    with pytest.raises(BatchError, match="the batch has no example"):
        next(step.feed([(np.ones([0, 3], np.float32), np.ones(0, np.float32))]))


def test_a_batch_that_is_too_small_runs_with_fewer_parts_as_in_a_call() -> None:
    whale.init(2)
    called, fed = make_step(micro_batches=4), make_step(micro_batches=4)
    dataset = [(x[:examples], y[:examples]) for (x, y), examples in zip(batches(), (12, 3, 1), strict=True)]
    sizes = []
    for (x, y), batch in zip(dataset, fed.feed(dataset), strict=True):
        assert float(fed(batch)) == float(called(x, y))
        assert fed.plan.sizes == called.plan.sizes
        sizes.append(fed.plan.sizes)
    assert sizes == [((2, 2, 1, 1), (2, 2, 1, 1)), ((2,), (1,)), ((1,),)]


def test_other_batches_have_other_digests() -> None:
    x = tf.constant(np.arange(4000, dtype=np.float32).reshape(1000, 4))
    shuffled = tf.constant(np.random.default_rng(0).permutation(x.numpy()))
    assert digest([x]) == digest([tf.identity(x)])
    assert digest([x]) != digest([shuffled])
    assert digest([x]) != digest([tf.cast(x, tf.int32)])
    assert digest([x]) != digest([x[:999]])
    assert digest([tf.constant(["a", "b"])]) != digest([tf.constant(["a", "c"])])
    assert digest([tf.constant(1.0)]) != digest([tf.constant(2.0)])
