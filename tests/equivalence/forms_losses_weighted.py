"""Losses over a count or weights of their own, which follow from inputs: totals that are known before the forward."""

from __future__ import annotations

import keras
import tensorflow as tf

from tests.equivalence.forms import Net, forms, size, squares


def masked_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    mask = tf.cast(y < 2, tf.float32)
    return tf.reduce_sum(squares(h, y) * mask) / tf.reduce_sum(mask)


def masked_mean_of_integers(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The count is an integer, cast after it was made."""
    chosen = y < 2
    count = tf.cast(tf.math.count_nonzero(chosen), tf.float32)
    return tf.reduce_sum(tf.where(chosen, squares(h, y), 0.0)) / count


def mean_of_one_class(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """0 / 0 for each part that has no example of the class."""
    mask = tf.cast(y == 1, tf.float32)
    return tf.reduce_sum(squares(h, y) * mask) / tf.reduce_sum(mask)


def mean_of_one_class_or_nothing(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    mask = tf.cast(y == 1, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(squares(h, y) * mask), tf.reduce_sum(mask))


def mean_over_words(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A language model's loss: the mean over all words of the batch that are no padding."""
    mask = tf.cast(net.tokens > 0, tf.float32)
    logits = tf.einsum("blw,vw->blv", h[:, None] * net.positions, net.table)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(net.tokens, logits)
    return tf.reduce_sum(losses * mask) / tf.reduce_sum(mask)


def weighted_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    weights = tf.cast(y + 1, tf.float32)
    return tf.reduce_sum(squares(h, y) * weights) / tf.reduce_sum(weights)


def weights_that_sum_to_one(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The total goes back to the examples before it meets a loss."""
    weights = tf.cast(y + 1, tf.float32)
    return tf.reduce_sum(squares(h, y) * (weights / tf.reduce_sum(weights)))


def weights_of_mean_one(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    weights = tf.cast(y + 1, tf.float32)
    return tf.reduce_mean(squares(h, y) * weights / tf.reduce_mean(weights))


def keras_mean_with_sample_weight(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    return loss(tf.one_hot(y, h.shape[1]), h, sample_weight=tf.cast(y + 1, tf.float32))


def keras_sample_weight_over_batch_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    loss = keras.losses.MeanSquaredError(reduction="sum_over_batch_size")
    return loss(tf.one_hot(y, h.shape[1]), h, sample_weight=tf.cast(y + 1, tf.float32))


def keras_ignored_class(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
    return loss(y, h)


def mean_of_chosen_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A boolean_mask: how many examples each part keeps is known when it runs."""
    return tf.reduce_mean(tf.boolean_mask(squares(h, y), y < 2))


def sum_of_chosen_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(tf.boolean_mask(squares(h, y), y < 2)) / 16.0


def mean_of_gathered_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Numbers of examples by tf.where, and then their rows."""
    rows = tf.gather(h @ net.weight, tf.where(y < 2)[:, 0])
    return tf.reduce_mean(rows**2)


def classes_in_balance(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Each class weighs the same: the counts of classes go back to the examples."""
    counts = tf.math.unsorted_segment_sum(tf.ones_like(y, tf.float32), y, h.shape[1])
    return tf.reduce_sum(squares(h, y) / tf.gather(counts, y)) / tf.reduce_sum(tf.cast(counts > 0.0, tf.float32))


def positives_in_balance(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    positive = tf.cast(y < 2, tf.float32)
    ratio = (size(h) - tf.reduce_sum(positive)) / tf.reduce_sum(positive)
    return tf.reduce_mean(tf.nn.weighted_cross_entropy_with_logits(positive, h[:, 0], ratio))


def centered_targets(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Targets that are normalized over the batch."""
    targets = tf.cast(y, tf.float32)
    scaled = (targets - tf.reduce_mean(targets)) / (tf.math.reduce_std(targets) + 0.1)
    return tf.reduce_mean((h[:, 0] - scaled) ** 2)


def scaled_by_the_largest_input(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h / tf.reduce_max(tf.abs(net.x)), y))


def batch_with_a_class_or_without(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A branch that all examples take, by what one of them is."""
    losses = squares(h, y)
    return tf.cond(tf.reduce_any(y == 1), lambda: tf.reduce_mean(losses), lambda: tf.reduce_mean(tf.sqrt(losses)))


WEIGHTED = forms(
    masked_mean,
    masked_mean_of_integers,
    mean_of_one_class,
    mean_of_one_class_or_nothing,
    mean_over_words,
    weighted_mean,
    weights_that_sum_to_one,
    weights_of_mean_one,
    keras_mean_with_sample_weight,
    keras_sample_weight_over_batch_size,
    keras_ignored_class,
    mean_of_chosen_examples,
    sum_of_chosen_examples,
    mean_of_gathered_examples,
    classes_in_balance,
    positives_in_balance,
    centered_targets,
    scaled_by_the_largest_input,
    batch_with_a_class_or_without,
)
