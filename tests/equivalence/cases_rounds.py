"""Several models or several rounds in one step: adversarial training, updates that later parts of the step see."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tests.equivalence.harness import Case, Scopes, Training
from tests.equivalence.models import (
    WIDTH,
    classified,
    classifier,
    cross_entropies,
    cross_entropy,
    dense,
    optimized,
    rows,
    variables_of,
)


def log_loss(logits: tf.Tensor, truth: float) -> tf.Tensor:
    """The mean loss of a critic's logits [examples, 1]."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), truth), logits))


def real_and_noise(examples: int) -> list[tuple[Any, ...]]:
    """For each step, samples and the noise that fakes are made of."""
    return list(zip(rows(examples), rows(examples, seed=8), strict=True))


def gan_with_both_tapes(scopes: Scopes) -> Training:
    """Generator in the first half of the stages, critic in the second; both gradients before both updates."""
    generator, critic = [dense(WIDTH), dense(WIDTH)], [dense(WIDTH), dense(1, activation=None)]
    makes, judges = variables_of(generator), variables_of(critic)
    for_generator, for_critic = (optimized(keras.optimizers.Adam(0.01), variables) for variables in (makes, judges))

    def step(real: tf.Tensor, noise: tf.Tensor) -> Any:
        with tf.GradientTape() as generator_tape, tf.GradientTape() as critic_tape, scopes.replica:
            of_fake = scopes.through([*generator, *critic], noise)
            of_real = scopes.through(critic, real, first=2)
            generator_loss = log_loss(of_fake, 1.0)
            critic_loss = log_loss(of_real, 1.0) + log_loss(of_fake, 0.0)
        of_makes = generator_tape.gradient(generator_loss, makes)
        of_judges = critic_tape.gradient(critic_loss, judges)
        for_generator.apply_gradients(zip(of_makes, makes, strict=True))
        for_critic.apply_gradients(zip(of_judges, judges, strict=True))
        return generator_loss, critic_loss

    return Training(step, real_and_noise(scopes.examples), [*generator, *critic, for_generator, for_critic])


def gan_in_turns(scopes: Scopes) -> Training:
    """The critic is updated first; the generator is then judged by the new critic, in the same step."""
    generator, critic = [dense(WIDTH), dense(WIDTH)], [dense(WIDTH), dense(1, activation=None)]
    makes, judges = variables_of(generator), variables_of(critic)
    for_generator, for_critic = (optimized(keras.optimizers.Adam(0.01), variables) for variables in (makes, judges))

    def step(real: tf.Tensor, noise: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            of_fake = scopes.through([*generator, *critic], noise)
            critic_loss = log_loss(scopes.through(critic, real, first=2), 1.0) + log_loss(of_fake, 0.0)
        for_critic.apply_gradients(zip(tape.gradient(critic_loss, judges), judges, strict=True))
        with tf.GradientTape() as tape, scopes.replica:
            generator_loss = log_loss(scopes.through([*generator, *critic], noise), 1.0)
        for_generator.apply_gradients(zip(tape.gradient(generator_loss, makes), makes, strict=True))
        return generator_loss, critic_loss

    return Training(step, real_and_noise(scopes.examples), [*generator, *critic, for_generator, for_critic])


def gradient_penalty(scopes: Scopes) -> Training:
    """WGAN-GP: the critic, all in the last stage, is held to gradients of length 1 between real and fake."""
    generator, critic = [dense(WIDTH), dense(WIDTH), dense(WIDTH)], [dense(WIDTH), dense(1, activation=None)]
    makes, judges = variables_of(generator), variables_of(critic)
    for_generator, for_critic = (optimized(keras.optimizers.Adam(0.01), variables) for variables in (makes, judges))

    def judge(sample: tf.Tensor) -> tf.Tensor:
        return critic[1](critic[0](sample))[:, 0]

    def step(real: tf.Tensor, noise: tf.Tensor, between: tf.Tensor) -> Any:
        with tf.GradientTape() as generator_tape, tf.GradientTape() as critic_tape, scopes.replica:
            fake = scopes.through(generator, noise)
            with scopes.stage_of(3):
                mixed = real + between * (fake - real)
                with tf.GradientTape() as inner:
                    inner.watch(mixed)
                    score = judge(mixed)
                lengths = tf.sqrt(tf.reduce_sum(inner.gradient(score, mixed) ** 2, axis=1) + 1e-12)
                penalty = tf.reduce_mean((lengths - 1) ** 2)
                generator_loss = -tf.reduce_mean(judge(fake))
                critic_loss = tf.reduce_mean(judge(fake) - judge(real)) + 10 * penalty
        of_makes = generator_tape.gradient(generator_loss, makes)
        of_judges = critic_tape.gradient(critic_loss, judges)
        for_generator.apply_gradients(zip(of_makes, makes, strict=True))
        for_critic.apply_gradients(zip(of_judges, judges, strict=True))
        return generator_loss, critic_loss, penalty

    alphas = [abs(x) / (1 + abs(x)) for x in rows(scopes.examples, 1, seed=4)]
    batches = [(*batch, alpha) for batch, alpha in zip(real_and_noise(scopes.examples), alphas, strict=True)]
    return Training(step, batches, [*generator, *critic, for_generator, for_critic])


def sharpness_aware(scopes: Scopes) -> Training:
    """SAM: weights are moved uphill by a global norm, the gradient is taken there, weights go back, then the update."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.SGD(0.1, momentum=0.9), variables)

    def loss_and_gradients(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        return loss, tape.gradient(loss, variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        loss, uphill = loss_and_gradients(x, y)
        scale = 0.05 / (tf.linalg.global_norm(uphill) + 1e-6)
        for gradient, variable in zip(uphill, variables, strict=True):
            variable.value.assign_add(scale * gradient)
        moved_loss, gradients = loss_and_gradients(x, y)
        for gradient, variable in zip(uphill, variables, strict=True):
            variable.value.assign_sub(scale * gradient)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, moved_loss

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def loss_after_the_update(scopes: Scopes) -> Training:
    """The step returns the loss of the new weights on the same batch, per example and in the mean."""
    blocks = classifier()
    variables = variables_of(blocks)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = cross_entropy(y, scopes.through(blocks, x))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        with scopes.replica:
            losses = cross_entropies(y, scopes.through(blocks, x))
        return loss, losses, tf.reduce_mean(losses)

    return Training(step, classified(scopes.examples), [*blocks, optimizer])


def target_network(scopes: Scopes) -> Training:
    """BYOL: a second network that follows the first as a moving average, written after each update."""
    online, target = classifier(), classifier()
    variables, followers = variables_of(online), variables_of(target)
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(x: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            wanted = tf.math.l2_normalize(scopes.through(target, view), axis=1)
            found = tf.math.l2_normalize(scopes.through(online, x), axis=1)
            loss = tf.reduce_mean(2 - 2 * tf.reduce_sum(tf.stop_gradient(wanted) * found, axis=1))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        for follower, variable in zip(followers, variables, strict=True):
            follower.assign(0.9 * follower + 0.1 * variable)
        return loss

    return Training(step, real_and_noise(scopes.examples), [*online, *target, optimizer])


CASES = (
    Case(gan_with_both_tapes),
    Case(gan_in_turns),
    # The critic's loss is a small difference of larger numbers.
    Case(gradient_penalty, tolerance=1e-4),
    Case(sharpness_aware),
    Case(loss_after_the_update),
    Case(target_network),
)
