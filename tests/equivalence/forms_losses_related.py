"""Losses that pick, order or relate examples: what a part lacks is other examples, and not a few numbers of them."""

from __future__ import annotations

import tensorflow as tf

from tests.equivalence.forms import Net, forms, squares


def hardest_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.math.top_k(squares(h, y), 2).values)


def hardest_example_by_number(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(tf.gather(h @ net.weight, tf.argmax(squares(h, y))) ** 2)


def sorted_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = tf.sort(squares(h, y))
    return tf.reduce_mean(losses * tf.cast(tf.range(tf.size(losses)), tf.float32)) / 16.0


def median_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.sort(squares(h, y))[y.shape[0] // 2]


def sorted_against_a_normal_sample(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A sliced Wasserstein distance: both samples in order."""
    return tf.reduce_mean((tf.sort(h @ net.weight[:, :1], axis=0) - tf.sort(net.x[:, :1], axis=0)) ** 2)


def one_half_against_the_other(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    half = h.shape[0] // 2
    return tf.reduce_mean((h[:half] - h[half : 2 * half]) ** 2)


def triplets_by_position(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    anchor, positive, negative = h[:-2], h[1:-1], h[2:]
    near, far = (tf.reduce_sum((anchor - other) ** 2, axis=1) for other in (positive, negative))
    return tf.reduce_mean(tf.nn.relu(near - far + 1.0))


def neighbours(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean((h[1:] - h[:-1]) ** 2)


def rolled_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean((h - tf.roll(h @ net.weight, 1, axis=0)) ** 2)


def mixed_examples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Manifold mixup with the batch in reverse order."""
    return 0.7 * tf.reduce_mean(squares(0.7 * h + 0.3 * h[::-1], y))


def permuted_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    order = tf.argsort(net.x[:, 0])
    return tf.reduce_mean((h - tf.gather(h @ net.weight, order)) ** 2)


def shuffled_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(h)[0]), seed=[3, 4])
    return tf.reduce_mean((h - tf.gather(h @ net.weight, order)) ** 2)


def accumulated_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.cumsum(h, axis=0) ** 2) / 16.0


def folded_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A sum by a loop over examples, which begins with the first example."""
    return tf.foldl(lambda total, loss: total + loss, squares(h, y)) / 16.0


def last_of_scanned_losses(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A moving average from example to example."""
    return tf.scan(lambda state, loss: 0.9 * state + 0.1 * loss, squares(h, y))[-1]


def mapped_after_other_turns(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A loop over examples that shows each turn what the turns before have made."""
    rows = tf.scan(lambda before, row: tf.tanh(before + row), h)
    return tf.reduce_mean(squares(rows, y))


def softmax_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h * tf.nn.softmax(h @ net.weight, axis=0), y))


def attention_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Non-local: each example attends to all others."""
    scores = tf.nn.softmax(tf.matmul(h @ net.weight, h, transpose_b=True))
    return tf.reduce_mean(squares(scores @ h, y))


def spectrum_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(tf.signal.rfft(tf.transpose(h))) ** 2)


def convolution_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    filters = tf.reshape(net.weight[:3, :2], [3, 1, 2])
    return tf.reduce_mean(tf.nn.conv1d(tf.transpose(h)[:, :, None], filters, 1, "SAME") ** 2)


def pooled_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.nn.max_pool1d(h[None], 2, 1, "SAME") ** 2)


def pairwise_products(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.matmul(h, h, transpose_b=True) ** 2)


def pairwise_distances(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Uniformity on the sphere: every pair of examples is apart."""
    distances = tf.reduce_sum((h[:, None] - h[None]) ** 2, axis=2)
    return tf.reduce_mean(tf.exp(-distances))


def pairwise_order(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Ranking: of each two examples the one of the higher class scores more."""
    above = tf.cast(y[:, None] > y[None], tf.float32)
    return tf.reduce_sum(above * tf.nn.softplus(h[None, :, 0] - h[:, None, 0])) / 16.0


def contrast_of_two_views(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """InfoNCE: each example finds its own other view among all."""
    scores = tf.matmul(h, tf.tanh(h @ net.weight), transpose_b=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(h)[0]), scores))


def contrast_of_a_doubled_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """SimCLR: both views in one batch, no example beside itself."""
    both = tf.math.l2_normalize(tf.concat([h, tf.tanh(h @ net.weight)], axis=0), axis=1)
    scores = tf.matmul(both, both, transpose_b=True)
    scores = tf.linalg.set_diag(scores, tf.fill(tf.shape(both)[:1], -9.0))
    twins = tf.roll(tf.range(tf.shape(both)[0]), tf.shape(h)[0], axis=0)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(twins, scores))


def contrast_of_classes(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Supervised contrast: examples of one class attract each other."""
    alike = tf.cast(y[:, None] == y[None], tf.float32)
    chances = tf.nn.log_softmax(tf.matmul(h, h, transpose_b=True))
    return -tf.reduce_mean(tf.reduce_sum(alike * chances, axis=1) / tf.reduce_sum(alike, axis=1))


def kernel_distance_of_two_samples(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """MMD between activations and inputs."""

    def kernel(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.exp(-tf.reduce_sum((a[:, None] - b[None]) ** 2, axis=2) / 8.0))

    return kernel(h, h) - 2.0 * kernel(h, net.x)


def nearest_other_example(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    distances = tf.reduce_sum((h[:, None] - h[None]) ** 2, axis=2) + 99.0 * tf.eye(tf.shape(h)[0])
    return -tf.reduce_mean(tf.reduce_min(distances, axis=1))


def examples_apart_by_class(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A dynamic_partition, of which each part has its own mean."""
    first, second = tf.dynamic_partition(squares(h, y), y % 2, 2)
    return tf.reduce_mean(first) + 2.0 * tf.reduce_mean(second)


def groups_of_a_reshape(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A minibatch discrimination: dims of the batch and of the width change places in memory."""
    mixed = tf.reshape(tf.transpose(h), [-1, h.shape[1]])
    return tf.reduce_mean(squares(mixed @ net.weight, y))


RELATED = forms(
    hardest_examples,
    hardest_example_by_number,
    sorted_losses,
    median_loss,
    sorted_against_a_normal_sample,
    one_half_against_the_other,
    triplets_by_position,
    neighbours,
    rolled_batch,
    mixed_examples,
    permuted_batch,
    shuffled_batch,
    accumulated_batch,
    folded_losses,
    mapped_after_other_turns,
    last_of_scanned_losses,
    softmax_over_the_batch,
    attention_over_the_batch,
    spectrum_over_the_batch,
    convolution_over_the_batch,
    pooled_over_the_batch,
    pairwise_products,
    pairwise_distances,
    pairwise_order,
    contrast_of_two_views,
    contrast_of_a_doubled_batch,
    contrast_of_classes,
    kernel_distance_of_two_samples,
    nearest_other_example,
    examples_apart_by_class,
    groups_of_a_reshape,
)
