"""What `accept=` takes of each part is what the part alone would make, and gradients are averaged by share.

The reference trains on each part of the batch alone, from the same weights, and averages the updates.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale

RATE = 0.1
EXAMPLES, WIDTH = 12, 3
PARTS = ((0, 3), (3, 6), (6, 9), (9, 12))
UNEVEN = ((0, 4), (4, 7), (7, 10), (10, 13))

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def squares(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum((h - y) ** 2, axis=1)


def relative_to_the_mean(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h - tf.reduce_mean(h, axis=0), y))


def standardized(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h / tf.math.reduce_std(h, axis=0), y))


def root_of_the_mean(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(squares(h, y)))


def product_of_means(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) * tf.exp(tf.reduce_mean(h))


def contrast(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    labels = tf.range(tf.shape(h)[0])
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.matmul(h, y, transpose_b=True)))


def softmax_over_the_batch(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(tf.nn.softmax(h, axis=0), y))


def variance_penalty(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) + tf.reduce_sum(tf.math.reduce_variance(h, axis=0))


def absolute_mean(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(tf.reduce_mean(h - y, axis=0)))


def losses_above_their_mean(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    losses = squares(h, y)
    return tf.reduce_mean(tf.maximum(losses, tf.reduce_mean(losses)))


def sorted_features(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(tf.sort(h, axis=0), y))


def neighbours(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h, tf.roll(h, 1, axis=0)) * y[:, 0])


def pairwise_distances(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_max(tf.reduce_sum((h[:, None] - y[None]) ** 2, axis=2), axis=1))


def relative_to_the_largest(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h / tf.reduce_max(tf.abs(h)), y))


def relative_to_the_sum(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h / tf.reduce_sum(h), y))


def centred_and_relative(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    centred = h - tf.reduce_mean(h, axis=0)
    return tf.reduce_mean(squares(centred / tf.reduce_max(centred, axis=0), y))


def smallest_difference(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) + tf.reduce_mean(tf.abs(h)) * tf.reduce_min(squares(h, y))


LOSSES = (
    relative_to_the_mean,
    standardized,
    root_of_the_mean,
    product_of_means,
    contrast,
    softmax_over_the_batch,
    variance_penalty,
    absolute_mean,
    losses_above_their_mean,
    neighbours,
    pairwise_distances,
)
# Totals that are no means, of which a part's stands for none of the whole, and numbers of examples in the batch.
NOT_OFFERED = (
    relative_to_the_largest,
    relative_to_the_sum,
    centred_and_relative,
    smallest_difference,
    sorted_features,
)


def trained(loss_of: Loss, decorate: Callable[[Any], Any], x: Any, y: Any) -> Any:
    """The weights after a step, of a step that has two replicas if it may."""
    weights = tf.Variable(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = loss_of(tf.tanh(x @ weights) + 2.0, y)
        weights.assign_sub(RATE * tape.gradient(loss, weights))
        return loss

    decorate(step)(x, y)
    return weights.numpy()


def acceptable(loss_of: Loss, x: Any, y: Any) -> tuple[str, ...]:
    """What the refusal says may be accepted; nothing if it does not."""
    found = re.search(r"accept=\((.*?)\) takes", str(refusal(loss_of, x, y)))
    return () if found is None else tuple(re.findall(r"'([^']+)'", found[1]))


def refusal(loss_of: Loss, x: Any, y: Any) -> whale.errors.PlanError:
    """The error of a step that accepts nothing."""
    with pytest.raises(whale.errors.PlanError) as refused:
        trained(loss_of, whale.function(micro_batches=2), x, y)
    return refused.value


def lines_of(error: whale.errors.PlanError) -> list[str]:
    """The lines that an error tells, as `accept=` takes them."""
    return [str(line).split(" in ")[0] for line in error.at]


@pytest.mark.filterwarnings("ignore:each part of the batch has its own value of what accept= names")
@pytest.mark.parametrize("parts", [PARTS, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda loss: loss.__name__)
def test_what_is_accepted_is_what_each_part_alone_makes(loss_of: Loss, parts: Any) -> None:
    whale.init(devices=2)
    draw = np.random.default_rng(0)
    examples = parts[-1][1]
    x, y = draw.normal(size=(examples, WIDTH)), draw.normal(size=(examples, WIDTH))
    names = acceptable(loss_of, x, y)
    assert names
    found = trained(loss_of, whale.function(micro_batches=2, accept=names), x, y)
    wanted = sum(
        (end - begin) / examples * trained(loss_of, tf.function, x[begin:end], y[begin:end]) for begin, end in parts
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss_of", NOT_OFFERED, ids=lambda loss: loss.__name__)
def test_what_a_part_alone_cannot_stand_for_is_not_accepted(loss_of: Loss) -> None:
    whale.init(devices=2)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(EXAMPLES, WIDTH)), draw.normal(size=(EXAMPLES, WIDTH))
    assert not acceptable(loss_of, x, y)
    error = refusal(loss_of, x, y)
    kinds = [kind for detail in error.details for kind in re.findall(r"\((\w+)\):", detail)]
    assert kinds
    for accept in (kinds, lines_of(error)):
        with pytest.raises(whale.errors.PlanError, match="a gradient needs several parts of the batch at once"):
            trained(loss_of, whale.function(micro_batches=2, accept=accept), x, y)


@pytest.mark.filterwarnings("ignore:each part of the batch has its own value of what accept= names")
@pytest.mark.parametrize("loss_of", LOSSES, ids=lambda loss: loss.__name__)
def test_the_lines_of_a_refusal_may_be_accepted_in_the_place_of_names(loss_of: Loss) -> None:
    whale.init(devices=2)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(EXAMPLES, WIDTH)), draw.normal(size=(EXAMPLES, WIDTH))
    names, lines = acceptable(loss_of, x, y), lines_of(refusal(loss_of, x, y))
    by_name, by_line = (trained(loss_of, whale.function(micro_batches=2, accept=each), x, y) for each in (names, lines))
    np.testing.assert_array_equal(by_line, by_name)
