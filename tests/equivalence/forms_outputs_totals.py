"""Outputs that all examples make together: totals, functions of totals, counts, sizes, gradients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tests.equivalence.forms import Net, forms, size, squares


def sums_and_extremes(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return [reduce(h) for reduce in (tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min)]


def product_of_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.reduce_prod(1.0 + 0.1 * h, axis=0)


def reductions_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return [reduce(h, axis=0) for reduce in (tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min)]


def reductions_that_keep_dims(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.reduce_mean(h, axis=0, keepdims=True), tf.reduce_sum(h[:, None], axis=[0, 1], keepdims=True)


def all_and_any(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.reduce_all(h < 0.5), tf.reduce_any(h > 0.5, axis=0), tf.reduce_all(y >= 0)


def means_of_integers(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Rounded down once, over all."""
    return tf.reduce_mean(y), tf.reduce_mean(10 * net.tokens, axis=0), tf.reduce_sum(y) // tf.size(y)


def means_in_half_precision(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.cast(tf.reduce_mean(tf.cast(h, tf.bfloat16), axis=0), tf.float32)


def deviations(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.math.reduce_std(h), tf.math.reduce_variance(h, axis=0), tf.nn.moments(h, axes=[0])


def middle_values(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """The median, the largest two, and where the largest is."""
    ordered = tf.sort(h, axis=0)
    return ordered[h.shape[0] // 2], tf.math.top_k(squares(h, y), 2), tf.argmax(h, axis=0), tf.argmin(squares(h, y))


def norms(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.norm(h), tf.norm(h, axis=0), tf.norm(h, ord=1), tf.reduce_logsumexp(h, axis=0)


def functions_of_totals(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    loss = tf.reduce_mean(squares(h, y))
    return tf.exp(loss), tf.sqrt(loss), loss**2, tf.sigmoid(tf.reduce_sum(h)), tf.round(10.0 * loss)


def quotients_of_totals(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Accuracy, precision, and a mean over examples chosen by activations."""
    right = tf.cast(tf.argmax(h, axis=1, output_type=tf.int32) == y, tf.float32)
    wanted = tf.cast(y < 2, tf.float32)
    found = tf.cast(h[:, 0] > 0.0, tf.float32)
    precision = tf.math.divide_no_nan(tf.reduce_sum(wanted * found), tf.reduce_sum(found))
    return tf.reduce_sum(right) / size(h), precision, tf.reduce_sum(squares(h, y) * wanted) / tf.reduce_sum(wanted)


def sums_over_numbers(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """A constant that is a multiple of a micro-batch's size, the batch's size, and one less."""
    total = tf.reduce_sum(squares(h, y))
    return total / 8.0, total / 16.0, total / size(h), total / (size(h) - 1.0), total / h.shape[1]


def counts(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.math.count_nonzero(h > 0.0), tf.math.count_nonzero(net.tokens, axis=0), tf.reduce_sum(y)


def sizes_of_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.shape(h)[0], tf.size(h), tf.shape(h), size(h), tf.shape(h)[0] // 3, tf.shape(h)[0] - 1


def python_sizes(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Numbers and a text that Python makes of the batch's size."""
    return h.shape[0], h.shape[0] * 0.5, f"{h.shape[0]} examples", 0.1 * h.shape[0] / 256


def tensors_of_python_sizes(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    examples = h.shape[0]
    return (
        tf.constant(examples),
        tf.constant(2.0**-examples),
        tf.constant(f"{examples} examples"),
        tf.zeros(()) + examples,
    )


def histograms(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    classes = h.shape[1]
    return (
        tf.math.bincount(y, minlength=classes, maxlength=classes),
        tf.math.bincount(y, weights=h[:, 0], minlength=classes, maxlength=classes),
        tf.histogram_fixed_width(h, [-1.0, 1.0], nbins=4),
    )


def confusion_matrix(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.math.confusion_matrix(y, tf.argmax(h, axis=1), num_classes=h.shape[1])


def totals_of_classes(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    classes = h.shape[1]
    segments = tf.math.unsorted_segment_sum, tf.math.unsorted_segment_mean, tf.math.unsorted_segment_max
    return [segment(h, y, classes) for segment in segments]


def totals_of_sorted_segments(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.math.segment_sum(h, tf.sort(y))


def gram_and_covariance(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    centered = h - tf.reduce_mean(h, axis=0)
    covariance = tf.matmul(centered, centered, transpose_a=True) / (size(h) - 1.0)
    return tf.matmul(h, h, transpose_a=True), covariance, tf.linalg.trace(covariance)


def values_of_a_decomposition(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Operations that nobody has a rule for."""
    gram = tf.matmul(h, h, transpose_a=True) + tf.eye(h.shape[1])
    return tf.linalg.cholesky(gram), tf.linalg.logdet(gram), tf.linalg.svd(h, compute_uv=False)


def sums_of_accumulated_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.cumsum(squares(h, y))[-1], tf.foldl(lambda total, loss: total + loss, squares(h, y))


def unstacked_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """As many tensors as there are examples, put together again."""
    return tf.add_n(tf.unstack(squares(h, y)))


def branch_by_a_total(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.cond(tf.reduce_mean(h) > 0.0, lambda: tf.reduce_sum(h), lambda: tf.reduce_max(h))


def totals_beside_what_does_not_follow_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return (
        tf.reduce_sum(h) + tf.reduce_sum(net.weight),
        tf.reduce_mean(h) * tf.norm(net.weight),
        net.weight @ net.centers,
    )


def gradients_by_weights(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Gradients of a mean and of a sum, and the norm of one."""
    with tf.GradientTape(persistent=True) as inner:
        scores = squares(tf.tanh(h @ net.weight), y)
        mean, total = tf.reduce_mean(scores), tf.reduce_sum(scores)
    of_mean = inner.gradient(mean, net.weight)
    return of_mean, inner.gradient(total, net.weight), tf.norm(of_mean)


def gradients_by_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    """Each example's gradient of the mean holds one over the size of the batch."""
    with tf.GradientTape() as inner:
        inner.watch(h)
        loss = tf.reduce_mean(squares(tf.tanh(h @ net.weight), y))
    found = inner.gradient(loss, h)
    return found, tf.norm(found, axis=1), tf.reduce_max(found)


def entropy_of_the_mean_prediction(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    mean = tf.reduce_mean(tf.nn.softmax(h), axis=0)
    return -tf.reduce_sum(mean * tf.math.log(mean)), tf.argmax(mean)


def texts_of_totals(h: tf.Tensor, y: tf.Tensor, net: Net) -> Any:
    return tf.strings.format("sum of classes {}", tf.reduce_sum(y)), tf.as_string(tf.math.count_nonzero(y))


TOTALS = forms(
    sums_and_extremes,
    product_of_examples,
    reductions_over_the_batch,
    reductions_that_keep_dims,
    all_and_any,
    means_of_integers,
    deviations,
    middle_values,
    norms,
    functions_of_totals,
    quotients_of_totals,
    sums_over_numbers,
    counts,
    sizes_of_the_batch,
    python_sizes,
    tensors_of_python_sizes,
    histograms,
    confusion_matrix,
    totals_of_classes,
    totals_of_sorted_segments,
    gram_and_covariance,
    values_of_a_decomposition,
    sums_of_accumulated_losses,
    unstacked_examples,
    branch_by_a_total,
    totals_beside_what_does_not_follow_the_batch,
    gradients_by_weights,
    gradients_by_activations,
    entropy_of_the_mean_prediction,
    texts_of_totals,
)
# The sum of a mean in bfloat16 is added up in another order, in steps of 1/256.
HALF = forms(means_in_half_precision, tolerance=2e-2)
