"""A fused normalization in training is its parts where its statistics are those of the global batch; else it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import captured
from whale_tf.capture.unfuse import BACKWARD, FORWARD, unfuse
from whale_tf.ir.graph import Graph
from whale_tf.ir.sharding import SUMS
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify

EXAMPLES, WIDTH, MOMENTUM = 8, 3, 0.9


class Network:
    """A layer, a fused normalization with moving averages, and a loss."""

    def __init__(
        self, dtype: str = "float32", *, momentum: float = 0.0, training: bool = True, channels_first: bool = False
    ) -> None:
        rng = np.random.default_rng(0)
        self.weights = tf.Variable(rng.normal(size=(WIDTH, 8)).astype(np.float32), name="weights")
        self.scale, self.offset = tf.Variable([1.0, 2.0], name="scale"), tf.Variable([0.5, -0.5], name="offset")
        self.mean, self.variance = tf.Variable([0.0, 0.0], trainable=False), tf.Variable([1.0, 1.0], trainable=False)
        self.dtype, self.momentum, self.training, self.channels_first = dtype, momentum, training, channels_first

    @property
    def variables(self) -> list[tf.Variable]:
        return [self.weights, self.scale, self.offset, self.mean, self.variance]

    def step(self, x: tf.Tensor) -> tf.Tensor:
        trained = self.variables[:3]
        with tf.GradientTape() as tape, whale.replica(2):
            images = tf.reshape(tf.cast(x @ self.weights, self.dtype), [-1, 2, 2, 2])
            if self.channels_first:
                images = tf.transpose(images, [0, 3, 1, 2])
            y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=images, scale=self.scale, offset=self.offset, mean=self.mean, variance=self.variance,
                epsilon=0.01, exponential_avg_factor=1.0 - self.momentum, is_training=self.training,
                data_format="NCHW" if self.channels_first else "NHWC",
            )  # fmt: skip
            y = tf.cast(y, tf.float32)
            loss = tf.reduce_mean(y * tf.square(y))
        rate = 1.0 if self.momentum else 1.0 - MOMENTUM
        if self.training:
            self.mean.assign(self.mean + rate * (mean - self.mean))
            self.variance.assign(self.variance + rate * (variance - self.variance))
        for variable, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss


def unfused(step: Callable[[tf.Tensor], Any]) -> tuple[Graph, Graph]:
    before = captured(step).graph
    after = unfuse(before)
    verify(after, after="unfuse")
    return before, after


def test_a_normalization_and_its_gradient_are_their_parts() -> None:
    before, after = unfused(Network().step)
    assert {node.op for node in before} & (FORWARD | BACKWARD)
    assert not {node.op for node in after} & (FORWARD | BACKWARD)
    made = [node for node in after if node.name not in before]
    assert {node.scope for node in made if not node.call} != {""}
    assert all(node.twin in after for node in made if node.call)


def test_a_normalization_by_given_statistics_is_left_alone() -> None:
    before, after = unfused(Network(training=False).step)
    assert print_graph(after) == print_graph(before)


def batches() -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
@pytest.mark.parametrize("options", [{"batch_norm": "global", "micro_batches": 2}, {"coupling": "exact"}], ids=str)
def test_training_equals_one_device(options: dict[str, Any], momentum: float) -> None:
    whale.init(2)
    mine, plain = Network(momentum=momentum), Network(momentum=momentum)
    step, one = whale.function(**options)(mine.step), tf.function(plain.step)
    for x in batches():
        np.testing.assert_allclose(step(x), one(x), rtol=1e-5)
    for got, wanted in zip(mine.variables, plain.variables, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert {value.state for value in step.plan.merges.values()} == {SUMS}  # no examples are brought together


def test_channels_may_come_first() -> None:
    """TensorFlow's own operation takes them last on a CPU; the loss does not tell."""
    whale.init(2)
    mine, plain = Network(channels_first=True), Network()
    step, one = whale.function(batch_norm="global", micro_batches=2)(mine.step), tf.function(plain.step)
    for x in batches():
        np.testing.assert_allclose(step(x), one(x), rtol=1e-5)
    for got, wanted in zip(mine.variables, plain.variables, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_is_normalized_in_float32() -> None:
    whale.init(2)
    mine, plain = Network("float16"), Network("float16")
    step, one = whale.function(batch_norm="global")(mine.step), tf.function(plain.step)
    for x in batches():
        np.testing.assert_allclose(step(x), one(x), rtol=5e-3)  # as float16 rounds what goes in and what comes out
    for got, wanted in zip(mine.variables, plain.variables, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=5e-3, atol=5e-3)
