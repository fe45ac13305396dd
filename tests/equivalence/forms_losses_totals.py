"""Losses that are sums or means over the batch, in whatever dress: linear in what each example contributes.

How much an example counts is known without the others, also where it is chosen by its place: the gradient needs
nothing, and the value of the loss is an output only.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.equivalence.forms import Net, forms, size, squares


def mean_of_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y))


def sum_of_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y))


def negated_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return -tf.reduce_mean(-squares(h, y))


def half_the_sum_of_squares(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.nn.l2_loss(h)


def average_loss_of_the_global_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The idiom of the tf.distribute guide, with the size that the batch has."""
    return tf.nn.compute_average_loss(squares(h, y), global_batch_size=y.shape[0])


def average_loss_of_a_fixed_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The idiom of the tf.distribute guide, with a number from the configuration."""
    return tf.nn.compute_average_loss(squares(h, y), global_batch_size=16)


def sum_by_einsum(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.einsum("b->", squares(h, y)) / 16.0


def sum_by_a_product_with_ones(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y)
    return tf.matmul(tf.ones_like(losses)[None], losses[:, None])[0, 0] / 16.0


def sum_by_tensordot(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y)
    return tf.tensordot(losses, tf.ones_like(losses), 1) / 16.0


def sum_of_products_with_columns(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A total [width] by a product of vector and matrix, then a sum of its columns."""
    return tf.reduce_sum(tf.linalg.matvec(h, squares(h, y), transpose_a=True)) / 16.0


def mean_behind_a_branch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The branch is chosen by a weight, which is the same for all examples."""
    losses = squares(h, y)
    return tf.cond(net.weight[0, 0] > 0.0, lambda: tf.reduce_mean(losses), lambda: 2.0 * tf.reduce_mean(losses))


def sum_behind_a_branch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y) / 16.0
    return tf.cond(net.weight[0, 0] > 0.0, lambda: tf.reduce_sum(losses), lambda: 2.0 * tf.reduce_sum(losses))


def sum_behind_a_custom_gradient(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    @tf.custom_gradient
    def total(losses: tf.Tensor) -> Any:
        return tf.reduce_sum(losses), lambda upstream: upstream * tf.ones_like(losses)

    return total(squares(h, y)) / 16.0


def mean_behind_a_custom_gradient(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    @tf.custom_gradient
    def average(losses: tf.Tensor) -> Any:
        return tf.reduce_mean(losses), lambda upstream: upstream * tf.ones_like(losses) / size(losses)

    return average(squares(h, y))


def mean_times_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) * size(h) / 16.0


def mean_times_python_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) * net.x.shape[0] / 16.0


def mean_at_a_rate_of_the_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The linear scaling rule, by a Python number."""
    rate = 0.1 * net.x.shape[0] / 16
    return rate * tf.reduce_mean(squares(h, y))


def mean_at_a_rate_of_the_root_of_the_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return (net.x.shape[0] / 16) ** 0.5 * tf.reduce_mean(squares(h, y))


def sum_over_one_less(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y)) / (size(h) - 1.0)


def sum_over_the_root_of_the_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y)) / tf.sqrt(size(h))


def sum_over_the_number_of_numbers(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y)) / tf.cast(tf.size(net.x), tf.float32)


def sum_over_a_third_of_the_size(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y)) / (net.x.shape[0] // 3)


def sum_over_a_multiple_of_the_width(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The width may be the size of a micro-batch, and says nothing about it."""
    return tf.reduce_sum(squares(h, y)) / (2.0 * h.shape[1])


def mean_and_small_sum(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) + 0.01 * tf.reduce_sum(h**2)


def mean_and_mean_of_columns(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) - 0.5 * tf.reduce_sum(tf.reduce_mean(tf.sin(h), axis=0))


def mean_and_regularizer(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A term of weights only is there once, and not once per part."""
    return tf.reduce_mean(squares(h @ net.weight, y)) + 0.1 * tf.nn.l2_loss(net.weight)


def sum_and_regularizer(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h @ net.weight, y)) / 16.0 + 0.1 * tf.reduce_sum(tf.abs(net.weight))


def mean_times_a_function_of_weights(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A learned uncertainty."""
    spread = tf.exp(net.weight[0, 0])
    return tf.reduce_mean(squares(h, y)) / spread + tf.math.log(spread)


def mean_of_a_flattened_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.reshape(h, [-1]) ** 2)


def mean_of_a_transposed_and_flattened_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.reshape(tf.transpose(h), [-1]) ** 2)


def mean_over_two_views(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The batch concatenated with itself, and taken apart again."""
    both = tf.tanh(tf.concat([h, 0.5 * h], axis=0) @ net.weight)
    first, second = tf.split(both, 2)
    return tf.reduce_mean((first - second) ** 2)


def sum_weighted_by_the_number_of_the_example(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    weights = tf.range(tf.shape(h)[0], dtype=tf.int32)
    return tf.reduce_mean(squares(h, y) * tf.cast(weights, tf.float32))


def trace_of_the_gram_matrix(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A linear function of a total [width, width]."""
    return tf.linalg.trace(tf.matmul(h, h, transpose_a=True)) / 16.0


def totals_of_classes_times_weights(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    totals = tf.math.unsorted_segment_sum(h, y, h.shape[1])
    return tf.reduce_mean(totals * net.centers)


def totals_of_classes_by_one_hot(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    totals = tf.matmul(tf.one_hot(y, h.shape[1]), h, transpose_a=True)
    return tf.reduce_mean(totals * net.centers)


def sum_of_norms(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(tf.norm(h, axis=1)) / 16.0


def sum_in_half_precision(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Losses of examples in float16, their sum in float32, with a scale as LossScaleOptimizer has it."""
    losses = tf.reduce_sum(tf.cast(h, tf.float16) ** 2, axis=1)
    return 1024.0 * tf.reduce_sum(tf.cast(losses, tf.float32)) / 16384.0


def mean_in_bfloat16(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    half = tf.cast(h, tf.bfloat16) @ tf.cast(net.weight, tf.bfloat16)
    return tf.reduce_mean(squares(tf.cast(half, tf.float32), y))


def first_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)[:2])


def last_example(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return squares(h, y)[-1]


def every_other_example(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)[::2])


def last_of_accumulated_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The sum of all, by an operation along the batch."""
    return tf.cumsum(squares(h, y))[-1] / 16.0


def sum_of_unstacked_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A sum of as many tensors as there are examples."""
    return tf.add_n(tf.unstack(squares(h, y))) / 16.0


HALF = 2e-3  # a step of float16 or bfloat16 where a weight's gradient is a sum over examples
TOTALS = (
    *forms(
        mean_of_losses,
        sum_of_losses,
        negated_mean,
        half_the_sum_of_squares,
        average_loss_of_the_global_batch,
        average_loss_of_a_fixed_batch,
        sum_by_einsum,
        sum_by_a_product_with_ones,
        sum_by_tensordot,
        sum_of_products_with_columns,
        mean_behind_a_branch,
        sum_behind_a_branch,
        sum_behind_a_custom_gradient,
        mean_behind_a_custom_gradient,
        mean_times_size,
        mean_times_python_size,
        mean_at_a_rate_of_the_size,
        mean_at_a_rate_of_the_root_of_the_size,
        sum_over_one_less,
        sum_over_the_root_of_the_size,
        sum_over_the_number_of_numbers,
        sum_over_a_third_of_the_size,
        sum_over_a_multiple_of_the_width,
        mean_and_small_sum,
        mean_and_mean_of_columns,
        mean_and_regularizer,
        sum_and_regularizer,
        mean_times_a_function_of_weights,
        mean_of_a_flattened_batch,
        mean_of_a_transposed_and_flattened_batch,
        mean_over_two_views,
        sum_weighted_by_the_number_of_the_example,
        trace_of_the_gram_matrix,
        totals_of_classes_times_weights,
        totals_of_classes_by_one_hot,
        sum_of_norms,
        first_examples,
        last_example,
        every_other_example,
        last_of_accumulated_losses,
        sum_of_unstacked_losses,
    ),
    *forms(sum_in_half_precision, mean_in_bfloat16, tolerance=HALF),
)
