"""Losses of single examples of many kinds, and the mean or sum of them: no example knows of another."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.equivalence.forms import LENGTH, WORDS, Net, forms, squares


def cross_entropy(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, h @ net.weight))


def log_likelihood_by_gather(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return -tf.reduce_mean(tf.gather(tf.nn.log_softmax(h @ net.weight), y, axis=1, batch_dims=1))


def smoothed_labels(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    smooth = tf.one_hot(y, h.shape[1]) * 0.9 + 0.1 / h.shape[1]
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(smooth, h))


def keras_crossentropy_with_smoothing(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    return loss(tf.one_hot(y, h.shape[1]), h)


def focal(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    chance = tf.reduce_sum(tf.nn.softmax(h) * tf.one_hot(y, h.shape[1]), axis=1)
    return tf.reduce_mean(-((1.0 - chance) ** 2) * tf.math.log(chance))


def keras_huber(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return keras.losses.Huber(delta=0.5)(tf.one_hot(y, h.shape[1]), h)


def keras_sum_of_squared_errors(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return keras.losses.MeanSquaredError(reduction="sum")(tf.one_hot(y, h.shape[1]), h) / 16.0


def hinge(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    signs = tf.where(y % 2 == 0, 1.0, -1.0)
    return tf.reduce_mean(tf.nn.relu(1.0 - signs * h[:, 0]))


def pinball(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Quantile regression: each example is above or below its own estimate."""
    error = tf.cast(y, tf.float32) - h[:, 0]
    return tf.reduce_mean(tf.maximum(0.9 * error, -0.1 * error))


def cosine_to_inputs(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    alike = tf.math.l2_normalize(h, axis=1) * tf.math.l2_normalize(net.x, axis=1)
    return tf.reduce_mean(1.0 - tf.reduce_sum(alike, axis=1))


def divergence_from_a_constant_teacher(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    teacher = tf.nn.softmax(tf.stop_gradient(h @ net.weight))
    return tf.reduce_mean(tf.reduce_sum(teacher * (tf.math.log(teacher) - tf.nn.log_softmax(h)), axis=1))


def normalized_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A layer normalization by hand: mean and variance over the width."""
    mean, variance = tf.nn.moments(h, axes=[1], keepdims=True)
    return tf.reduce_mean(squares((h - mean) * tf.math.rsqrt(variance + 0.1), y))


def largest_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_sum(tf.math.top_k(h, 2).values, axis=1) - tf.reduce_max(-h, axis=1))


def sorted_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean((tf.sort(h, axis=1) - net.positions[0]) ** 2)


def accumulated_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean((tf.cumsum(h, axis=1) - tf.roll(h, 1, axis=1)) ** 2)


def spectrum_of_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(tf.signal.rfft(h)) ** 2)


def spectrum_by_fft_of_complex_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(tf.math.real(tf.signal.fft(tf.complex(h, tf.sin(h)))) ** 2) / 16.0


def convolved_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The width is the sequence, and the filters are rows of a trained matrix."""
    filters = tf.reshape(net.weight[:3, :2], [3, 1, 2])
    return tf.reduce_mean(tf.nn.conv1d(h[:, :, None], filters, 1, "SAME") ** 2)


def center_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Each example is drawn to a trained row of its class."""
    return tf.reduce_mean(squares(h, y)) + 0.1 * tf.reduce_mean(tf.reduce_sum((h - tf.gather(net.centers, y)) ** 2, 1))


def penalty_on_gradients_by_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    with tf.GradientTape() as inner:
        inner.watch(h)
        scores = tf.reduce_sum(tf.tanh(h @ net.weight), axis=1)
    lengths = tf.norm(inner.gradient(scores, h), axis=1)
    return tf.reduce_mean(scores) + tf.reduce_mean((lengths - 1.0) ** 2)


def penalty_on_gradients_of_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """What is differentiated by examples is the mean: each gradient holds one over the size of the batch."""
    with tf.GradientTape() as inner:
        inner.watch(h)
        loss = tf.reduce_mean(squares(tf.tanh(h @ net.weight), y))
    return loss + 16.0 * tf.reduce_sum(inner.gradient(loss, h) ** 2)


def loop_over_time(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A recurrence by tf.while_loop: its state is a row for each example."""

    def turn(i: tf.Tensor, state: tf.Tensor) -> Any:
        return i + 1, tf.tanh(state @ net.weight + h)

    return tf.reduce_mean(squares(tf.while_loop(lambda i, state: i < LENGTH, turn, (0, h))[1], y))


def scan_over_time(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Sequences [time, examples, width] by tf.scan."""
    sequences = h[None] * net.positions[:, None]
    states = tf.scan(lambda state, now: tf.tanh(state @ net.weight + now), sequences)
    return tf.reduce_mean(states**2)


def attention_over_time(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    sequences = h[:, None] * net.positions
    scores = tf.nn.softmax(tf.matmul(sequences, sequences, transpose_b=True))
    return tf.reduce_mean(tf.matmul(scores, sequences) ** 2)


def time_major_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Sequences [time, examples, width], of which dim 1 is the batch."""
    sequences = tf.transpose(h[:, None] * net.positions, [1, 0, 2])
    return tf.reduce_mean(tf.reduce_sum(tf.reduce_mean(sequences**2, axis=2), axis=0))


def time_merged_with_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Places of all examples in one dim, and apart again."""
    places = tf.reshape(h[:, None] * net.positions, [-1, h.shape[1]]) @ net.weight
    return tf.reduce_mean(tf.reduce_max(tf.reshape(places, [-1, LENGTH, h.shape[1]]), axis=1) ** 2)


def ctc(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    logits = h[:, None] * net.positions
    labels = tf.stack([y % 3 + 1, 3 - y % 3], axis=1)
    lengths = tf.fill(tf.shape(y), 2), tf.fill(tf.shape(y), LENGTH)
    return tf.reduce_mean(tf.nn.ctc_loss(labels, logits, *lengths, logits_time_major=False, blank_index=0))


def embedded_words(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h + tf.reduce_mean(tf.gather(net.table, net.tokens), axis=1), y))


def embedded_segments_of_zeros(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Row numbers by zeros_like: they follow the batch in shape only."""
    return tf.reduce_mean(squares(h + tf.reduce_sum(tf.gather(net.table, tf.zeros_like(net.tokens)), axis=1), y))


def embedded_positions_of_a_range(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Row numbers that know nothing of the batch."""
    rows = tf.nn.embedding_lookup(net.positions, tf.range(LENGTH))
    return tf.reduce_mean(squares(h + tf.reduce_mean(rows * 0.3, axis=0), y))


def embedded_positions_tiled(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Row numbers of a range, repeated for each example."""
    numbers = tf.tile(tf.range(LENGTH)[None], [tf.shape(h)[0], 1])
    return tf.reduce_mean(squares(h + tf.reduce_mean(tf.gather(net.positions, numbers), axis=1), y))


def tied_embeddings(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """One table is looked up and multiplied by."""
    logits = (h + tf.reduce_mean(tf.gather(net.table, net.tokens), axis=1)) @ tf.transpose(net.table)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y % WORDS, logits))


def words_left_out(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A mean over each sequence's own words, then over examples."""
    mask = tf.cast(net.tokens > 0, tf.float32)
    rows = tf.gather(net.table, net.tokens) * mask[:, :, None]
    return tf.reduce_mean(squares(h + tf.reduce_sum(rows, axis=1) / tf.reduce_sum(mask, axis=1, keepdims=True), y))


EXAMPLES = (
    *forms(
        cross_entropy,
        log_likelihood_by_gather,
        smoothed_labels,
        keras_crossentropy_with_smoothing,
        focal,
        keras_huber,
        keras_sum_of_squared_errors,
        hinge,
        pinball,
        cosine_to_inputs,
        divergence_from_a_constant_teacher,
        normalized_features,
        largest_features,
        sorted_features,
        accumulated_features,
        spectrum_of_features,
        spectrum_by_fft_of_complex_features,
        convolved_features,
        penalty_on_gradients_by_activations,
        penalty_on_gradients_of_the_mean,
        loop_over_time,
        scan_over_time,
        attention_over_time,
        time_major_losses,
        time_merged_with_the_batch,
        ctc,
    ),
    *forms(
        center_loss,
        embedded_words,
        embedded_segments_of_zeros,
        embedded_positions_of_a_range,
        embedded_positions_tiled,
        tied_embeddings,
        words_left_out,
        adam=True,
    ),
)
