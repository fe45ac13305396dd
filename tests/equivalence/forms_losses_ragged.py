"""Losses of some rows of the batch, as many as masks and searches find when the step runs."""

from __future__ import annotations

import tensorflow as tf

from tests.equivalence.forms import Net, forms, squares


def chosen(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The rows of even classes, [?, width]."""
    return tf.boolean_mask(h, y % 2 == 0)


def mean_of_chosen_rows_by_hand(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    rows = chosen(h, y)
    return tf.reduce_sum(rows * rows) / tf.cast(tf.shape(rows)[0], tf.float32)


def mean_of_chosen_losses_by_their_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = tf.boolean_mask(squares(h, y), y % 2 == 0)
    return tf.reduce_sum(losses) / tf.cast(tf.size(losses), tf.float32)


def product_of_what_two_equal_masks_choose(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = tf.boolean_mask(squares(h, y), y % 2 == 0)
    weights = tf.boolean_mask(tf.reduce_sum(h, axis=1), y % 2 == 0)
    return tf.reduce_sum(losses * weights) / tf.cast(tf.shape(losses)[0], tf.float32)


def means_inside_chosen_rows(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_mean(chosen(h, y), axis=1) ** 2)


def softmax_of_chosen_rows(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    rows = chosen(h, y)
    return tf.reduce_mean(tf.reduce_sum(tf.nn.softmax(rows) * tf.nn.log_softmax(rows), axis=1))


def cross_entropy_of_chosen_rows(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    labels = tf.boolean_mask(y, y > 0)
    logits = tf.boolean_mask(h, y > 0)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def layer_over_chosen_rows(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A product with a bias, whose gradient is a sum over as many rows as there are."""
    rows = tf.gather(h, tf.where(y > 0)[:, 0])
    return tf.reduce_mean(tf.reduce_sum((rows @ net.weight + net.weight[1]) ** 2, axis=1))


def words_that_are_no_padding(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A mask over examples and positions at once."""
    words = tf.boolean_mask(tf.gather(net.table, net.tokens), net.tokens > 0)
    return tf.reduce_mean(words**2) + tf.reduce_mean(squares(h, y))


def sums_over_ragged_words(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    words = tf.gather(net.table, tf.RaggedTensor.from_tensor(net.tokens, padding=0))
    return tf.reduce_mean(tf.reduce_sum(words, axis=1) ** 2) + tf.reduce_mean(squares(h, y))


def product_with_a_sparse_matrix(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    counts = tf.sparse.from_dense(tf.cast(net.tokens, tf.float32))
    return tf.reduce_mean((h + tf.sparse.sparse_dense_matmul(counts, net.positions)) ** 2)


RAGGED = (
    *forms(
        mean_of_chosen_rows_by_hand,
        mean_of_chosen_losses_by_their_size,
        product_of_what_two_equal_masks_choose,
        means_inside_chosen_rows,
        softmax_of_chosen_rows,
        cross_entropy_of_chosen_rows,
        layer_over_chosen_rows,
        product_with_a_sparse_matrix,
    ),
    *forms(words_that_are_no_padding, sums_over_ragged_words, adam=True),
)
