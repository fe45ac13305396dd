"""Losses that go through a statistic of the batch: a few numbers that all examples make, and that none can do without.

With one micro-batch the statistic is merged between replicas where it stands. Several micro-batches would have to wait
for each other there.
"""

from __future__ import annotations

import tensorflow as tf

from tests.equivalence.forms import Net, forms, squares


def root_of_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(squares(h, y)))


def log_of_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.math.log(tf.reduce_mean(squares(h, y)))


def square_of_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) ** 2


def exponential_of_the_sum(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.exp(tf.reduce_sum(squares(h, y)) / 64.0)


def product_of_means(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) * tf.reduce_mean(tf.exp(h))


def mean_times_its_constant_self(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The gradient is scaled by a mean that is itself not differentiated."""
    return tf.reduce_mean(squares(h, y)) * tf.stop_gradient(tf.reduce_mean(tf.exp(h)))


def quotient_of_sums(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_sum(squares(h, y)) / tf.reduce_sum(tf.exp(h))


def absolute_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The sign of a mean is that of no part."""
    return tf.reduce_sum(tf.abs(tf.reduce_mean(h - net.x, axis=0)))


def flooded_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Flooding: the loss turns where its mean is below a level."""
    level = 1.0
    return tf.abs(tf.reduce_mean(squares(h, y)) - level) + level


def overlap(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Dice: twice what two masks have in common over what they have together."""
    chance, truth = tf.nn.softmax(h), tf.one_hot(y, h.shape[1])
    together = tf.reduce_sum(chance) + tf.reduce_sum(truth)
    return 1.0 - 2.0 * tf.reduce_sum(chance * truth) / together


def overlap_per_class(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    chance, truth = tf.nn.softmax(h), tf.one_hot(y, h.shape[1])
    common = tf.reduce_sum(chance * truth, axis=0)
    return 1.0 - tf.reduce_mean(common / (tf.reduce_sum(chance + truth, axis=0) - common))


def largest_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_max(squares(h, y))


def smallest_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_min(squares(h, y))


def range_of_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_max(h, axis=0) - tf.reduce_min(h, axis=0))


def soft_largest_loss(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_logsumexp(squares(h, y))


def relative_to_the_largest(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h / tf.reduce_max(tf.abs(h)), y))


def centered_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h - tf.reduce_mean(h, axis=0), y))


def standardized_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A batch normalization by hand, which nobody documents as local."""
    mean, variance = tf.nn.moments(h, axes=[0])
    return tf.reduce_mean(squares((h - mean) * tf.math.rsqrt(variance + 0.1), y))


def variance_penalty(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(h, y)) + tf.math.reduce_variance(squares(h, y))


def deviation_of_features(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """VICReg's first term: every feature varies over the batch."""
    deviation = tf.sqrt(tf.math.reduce_variance(h, axis=0) + 1e-2)
    return tf.reduce_mean(squares(h, y)) + tf.reduce_mean(tf.nn.relu(1.0 - deviation))


def norms_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(tf.norm(h, axis=0))


def normalized_over_the_batch(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(tf.math.l2_normalize(h, axis=0), y))


def gram_matrix(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    gram = tf.matmul(h, h, transpose_a=True) / 16.0
    return tf.reduce_mean((gram - tf.eye(h.shape[1])) ** 2)


def covariance_penalty(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """VICReg's other term: features are not correlated."""
    centered = h - tf.reduce_mean(h, axis=0)
    covariance = tf.matmul(centered, centered, transpose_a=True) / tf.cast(tf.shape(h)[0] - 1, tf.float32)
    return tf.reduce_sum(tf.linalg.set_diag(covariance, tf.zeros(h.shape[1])) ** 2) / h.shape[1]


def log_determinant(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """The coding rate: operations without a rule, on a total."""
    return -tf.linalg.logdet(tf.eye(h.shape[1]) + tf.matmul(h, h, transpose_a=True) / 4.0)


def correlation(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    found, wanted = h[:, 0], tf.cast(y, tf.float32)
    found, wanted = found - tf.reduce_mean(found), wanted - tf.reduce_mean(wanted)
    lengths = tf.sqrt(tf.reduce_sum(found**2) * tf.reduce_sum(wanted**2) + 0.1)
    return 1.0 - tf.reduce_sum(found * wanted) / lengths


def means_of_classes(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    means = tf.math.unsorted_segment_mean(h, y, h.shape[1])
    return tf.reduce_mean((means - net.centers) ** 2)


def distance_to_the_mean_of_the_class(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    means = tf.math.unsorted_segment_mean(h, y, h.shape[1])
    return tf.reduce_mean(tf.reduce_sum((h - tf.gather(means, y)) ** 2, axis=1))


def entropy_of_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """Classes are used alike over the batch."""
    mean = tf.reduce_mean(tf.nn.softmax(h), axis=0)
    return tf.reduce_mean(squares(h, y)) + tf.reduce_sum(mean * tf.math.log(mean))


def balance_of_experts(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A mixture of experts' loss: how often each is chosen times how much it is wanted."""
    gates = tf.nn.softmax(h @ net.weight)
    chosen = tf.reduce_mean(tf.one_hot(tf.argmax(gates, axis=1), h.shape[1]), axis=0)
    return tf.reduce_mean(squares(h, y)) + h.shape[1] * tf.reduce_sum(chosen * tf.reduce_mean(gates, axis=0))


def where_the_mean_is_positive(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    return tf.reduce_mean(squares(tf.where(tf.reduce_mean(h) > 0.0, h, 2.0 * h), y))


def branch_by_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y)
    few = tf.reduce_mean(h) > 0.0
    return tf.cond(few, lambda: tf.reduce_mean(losses), lambda: tf.reduce_mean(2.0 * losses))


def losses_up_to_their_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y)
    return tf.reduce_mean(tf.minimum(losses, tf.reduce_mean(losses)))


def losses_above_their_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    losses = squares(h, y)
    return tf.reduce_mean(tf.where(losses > tf.reduce_mean(losses), losses, 0.0))


def advantage_over_the_mean(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """REINFORCE with half the batch's mean reward for a baseline, made of activations."""
    rewards = tf.stop_gradient(tf.reduce_sum(tf.abs(h), axis=1))
    chances = tf.nn.log_softmax(h @ net.weight)[:, 0]
    return -tf.reduce_mean(chances * (rewards - 0.5 * tf.reduce_mean(rewards)))


def mask_of_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    mask = tf.cast(h[:, 0] > 0.0, tf.float32)
    return tf.reduce_sum(squares(h, y) * mask) / (tf.reduce_sum(mask) + 1.0)


def examples_chosen_by_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    chosen = tf.boolean_mask(squares(h, y), h[:, 0] > tf.reduce_min(h[:, 0]) - 1.0)
    return tf.reduce_mean(chosen)


def weights_of_activations(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    weights = tf.exp(h[:, 0])
    return tf.reduce_sum(squares(h, y) * weights) / tf.reduce_sum(weights)


def penalty_on_gradients_by_weights(h: tf.Tensor, y: tf.Tensor, net: Net) -> tf.Tensor:
    """A gradient by weights is a total of all examples, and its square is differentiated."""
    with tf.GradientTape() as inner:
        weight = net.weight.read_value()
        inner.watch(weight)
        loss = tf.reduce_mean(squares(tf.tanh(h @ weight), y))
    return loss + tf.reduce_sum(inner.gradient(loss, weight) ** 2)


STATISTICS = forms(
    root_of_the_mean,
    log_of_the_mean,
    square_of_the_mean,
    exponential_of_the_sum,
    product_of_means,
    mean_times_its_constant_self,
    quotient_of_sums,
    absolute_mean,
    flooded_mean,
    overlap,
    overlap_per_class,
    largest_loss,
    smallest_loss,
    range_of_features,
    soft_largest_loss,
    relative_to_the_largest,
    centered_features,
    standardized_features,
    variance_penalty,
    deviation_of_features,
    norms_over_the_batch,
    normalized_over_the_batch,
    gram_matrix,
    covariance_penalty,
    log_determinant,
    correlation,
    means_of_classes,
    distance_to_the_mean_of_the_class,
    entropy_of_the_mean,
    balance_of_experts,
    where_the_mean_is_positive,
    branch_by_the_mean,
    losses_up_to_their_mean,
    losses_above_their_mean,
    advantage_over_the_mean,
    mask_of_activations,
    examples_chosen_by_activations,
    weights_of_activations,
    penalty_on_gradients_by_weights,
)
