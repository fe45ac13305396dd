"""Outputs with something for each example: in whatever dim, structure or type, and also where examples are related."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.equivalence.forms import LENGTH, Net, forms, size, squares


def losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return squares(h, y)


def activations_in_structures(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Mappings, tuples and lists, with None, a Python number and a string as leaves."""
    return {"h": h, "more": (h[:, 0], [None, y + 1]), "constants": [3, 0.5], "none": None}


def outputs_of_many_types(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Strings, booleans, integers, complex numbers, half precision, all exact."""
    numbers = tf.cast(y, tf.float32)
    return tf.as_string(y), h > 0.0, tf.cast(y, tf.int64), tf.complex(numbers, -numbers), tf.cast(y, tf.bfloat16)


def predictions(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.argmax(h, axis=1), tf.math.top_k(h, 2), tf.nn.softmax(h), tf.nn.in_top_k(y, h, 2)


def statistics_of_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.math.reduce_std(h, axis=1), tf.reduce_logsumexp(h, axis=1), tf.reduce_any(h > 0.9, axis=1)


def outer_products(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.einsum("bi,bj->bij", h, h)


def transposed_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.transpose(h)


def time_major_sequences(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """[time, examples, width]."""
    return tf.transpose(h[:, None] * net.positions, [1, 0, 2])


def batch_in_the_last_dim(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """[time, width, examples]."""
    return tf.einsum("bw,lw->lwb", h, net.positions)


def sequences_merged_with_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """[examples x time, width]."""
    return tf.reshape(h[:, None] * net.positions, [-1, h.shape[1]])


def batch_merged_into_time(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """[time x examples, width]: parts of it lie at every time."""
    return tf.reshape(tf.transpose(h[:, None] * net.positions, [1, 0, 2]), [-1, h.shape[1]])


def flattened_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.reshape(h, [-1]), tf.reshape(tf.transpose(h), [-1])


def batch_beside_itself(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.concat([h, 2.0 * h], axis=1)


def batch_after_itself(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.concat([h, 2.0 * h], axis=0)


def tiled_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.tile(h, [3, 1])


def repeated_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.repeat(h, 2, axis=0)


def batch_after_a_row(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """One row more than there are examples."""
    return tf.concat([net.weight[:1], h], axis=0)


def padded_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.pad(h, [[1, 2], [0, 0]])


def stacked_views(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.stack([h, -h]), tf.stack([h, -h], axis=1)


def unstacked_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """As many outputs as the model is wide."""
    return tf.unstack(h, axis=1)


def first_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return squares(h, y)[0]


def last_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return h[-1]


def some_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return h[:2], h[1:], h[::2], h[::-1], h[1:3, 0]


def half_of_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return h[: h.shape[0] // 2], h[h.shape[0] // 2 :]


def rolled_and_reversed(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.roll(h, 1, axis=0), tf.reverse(h, [0])


def differences_to_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return h - tf.reduce_mean(h, axis=0)


def differences_to_the_next(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return h[1:] - h[:-1]


def standard_scores(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    mean, variance = tf.nn.moments(h, axes=[0])
    return (h - mean) / tf.sqrt(variance + 1e-3)


def shares_of_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.nn.softmax(h, axis=0), squares(h, y) / tf.reduce_sum(squares(h, y))


def examples_in_order(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.sort(h[:, 0]), tf.argsort(h[:, 0]), tf.gather(h, tf.argsort(squares(h, y)))


def accumulated_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.cumsum(h, axis=0), tf.math.cumulative_logsumexp(h, axis=0)


def scores_of_all_pairs(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.matmul(h, h, transpose_b=True)


def numbers_of_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.range(tf.shape(h)[0]), tf.where(y < 2), tf.linspace(0.0, 1.0, tf.shape(h)[0])


def chosen_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """As many as there are of the class."""
    return tf.boolean_mask(h, y < 2), tf.gather(h, tf.where(h[:, 0] > 0.0)[:, 0])


def examples_of_each_kind(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.dynamic_partition(h, y % 2, 2)


def ragged_words(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """A RaggedTensor by its parts: values of all examples, and the lengths of each."""
    ragged = tf.RaggedTensor.from_tensor(net.tokens, padding=0)
    return ragged.flat_values, ragged.row_lengths()


def sparse_words(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """A SparseTensor by its parts: the numbers of examples are those of the whole batch."""
    sparse = tf.sparse.from_dense(net.tokens)
    return sparse.indices, sparse.values, sparse.dense_shape


def ragged_output(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.RaggedTensor.from_tensor(net.tokens, padding=0)


def noise_of_a_constant_seed(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    noise = tf.random.stateless_normal(tf.shape(h), seed=[1, 2])
    return h + noise, tf.random.stateless_uniform([LENGTH], seed=[1, 2])


def tables_of_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Values whose shape follows the batch and which no example reaches."""
    return tf.ones_like(h), tf.fill(tf.shape(y), 7), tf.eye(tf.shape(h)[0]), tf.ones([y.shape[0]]) / size(h)


PER_EXAMPLE = forms(
    losses,
    activations_in_structures,
    outputs_of_many_types,
    predictions,
    statistics_of_examples,
    outer_products,
    transposed_activations,
    time_major_sequences,
    batch_in_the_last_dim,
    sequences_merged_with_the_batch,
    batch_merged_into_time,
    flattened_batch,
    batch_beside_itself,
    batch_after_itself,
    tiled_batch,
    repeated_examples,
    batch_after_a_row,
    padded_batch,
    stacked_views,
    unstacked_features,
    first_loss,
    last_activations,
    some_examples,
    half_of_the_batch,
    rolled_and_reversed,
    differences_to_the_mean,
    differences_to_the_next,
    standard_scores,
    shares_of_the_batch,
    examples_in_order,
    accumulated_examples,
    scores_of_all_pairs,
    numbers_of_examples,
    chosen_examples,
    examples_of_each_kind,
    ragged_words,
    sparse_words,
    ragged_output,
    noise_of_a_constant_seed,
    tables_of_the_batch,
)
