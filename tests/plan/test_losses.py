"""What a loss is over the examples is checked where the step says it and the graph tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import WIDTH, Traced, trace
from whale_tf.errors import Line, PlanError
from whale_tf.plan.losses import refuse_wrong_losses

FACTOR = tf.Variable(2.0)


def of(loss: Callable[[tf.Tensor], tf.Tensor]) -> Traced:
    weights = tf.Variable(tf.ones([WIDTH, 1]))

    def step(x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            value = loss(x @ weights)
        weights.assign_sub(tape.gradient(value, weights))
        return {"loss": value}

    return trace(step)


def check(traced: Traced, said: str) -> None:
    targets = {1: (traced.outputs["loss"].node,)}
    refuse_wrong_losses(traced.derived(), said, targets, lambda name: Line("train.py", 7, "step", name))


def accepted(loss: Callable[[tf.Tensor], Any]) -> set[str]:
    """What may be said of a loss."""
    found = set()
    for said in ("mean", "sum"):
        try:
            check(of(loss), said)
            found.add(said)
        except PlanError:
            pass
    return found


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda h: tf.reduce_mean(h), {"mean"}),
        (lambda h: tf.reduce_sum(h), {"sum"}),
        (lambda h: tf.reduce_sum(tf.reduce_mean(h, axis=0)), {"mean"}),
        (lambda h: tf.reduce_mean(tf.reduce_sum(h, axis=0)), {"sum"}),
        (lambda h: tf.reduce_sum([tf.reduce_mean(h), tf.reduce_mean(tf.square(h))]), {"mean"}),
        (lambda h: tf.reduce_sum([tf.reduce_mean(h), tf.reduce_sum(h)]), {"mean", "sum"}),
        (lambda h: tf.add_n([tf.reduce_mean(h), tf.reduce_mean(tf.square(h)), tf.nn.l2_loss(FACTOR)]), {"mean"}),
        (lambda h: tf.reduce_mean(h) + 0.1 * tf.nn.l2_loss(FACTOR), {"mean"}),
        (lambda h: tf.reduce_sum(h) + 0.1 * tf.nn.l2_loss(FACTOR), {"sum"}),
        (lambda h: 0.1 * tf.nn.l2_loss(FACTOR) + tf.reduce_mean(tf.square(h), axis=0)[0], {"mean"}),
        (lambda h: -3 * tf.reduce_mean(h), {"mean"}),
        (lambda h: tf.reduce_mean(h) + tf.reduce_mean(tf.square(h)), {"mean"}),
        (lambda h: h[:, 0], {"sum"}),
        (lambda h: tf.nn.l2_loss(h), {"sum"}),
        (lambda h: tf.reduce_sum(h) / tf.cast(tf.shape(h)[0], tf.float32), {"mean", "sum"}),
        (lambda h: tf.reduce_mean(h) + tf.reduce_sum(h), {"mean", "sum"}),
        (lambda h: tf.sqrt(tf.reduce_sum(h)), {"mean", "sum"}),
        (lambda h: tf.reduce_max(h), {"mean", "sum"}),
        (lambda h: tf.reduce_sum(h) * FACTOR, {"sum"}),
    ],
)
def test_a_loss_may_be_said_to_be_what_it_is_or_what_the_graph_does_not_tell(
    loss: Callable[[tf.Tensor], Any], said: set[str]
) -> None:
    assert accepted(loss) == said


def test_a_loss_that_is_visibly_the_other_kind_is_refused() -> None:
    traced = of(lambda h: tf.reduce_sum(h))
    name = traced.outputs["loss"].node
    with pytest.raises(PlanError) as refused:
        check(traced, "mean")
    assert str(refused.value) == (
        "the loss is a sum over the examples, and the step says loss='mean'.\n"
        f"  '{name}' is differentiated; gradients are added over parts of the batch as it is written\n"
        f"  at train.py:7 in step: {name}\n"
        "  Differentiate tf.reduce_mean of the losses, or say loss='sum', or leave loss out."
    )


def test_what_is_not_in_the_graph_is_not_checked() -> None:
    traced = of(lambda h: tf.reduce_sum(h))
    refuse_wrong_losses(traced.derived(), "mean", {1: ("pruned",)}, lambda name: Line("train.py", 7))
