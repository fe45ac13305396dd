"""Programs of several rounds in one step: adversarial training, sharpness, a teacher, a target that follows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Scopes, Training
from tests.equivalence.models import CLASSES, WIDTH, dense, labels, optimized, rows, variables_of
from tests.equivalence.programs.precision import float64

NOISE = 3
ACTIONS = 4


def network(*widths: int) -> keras.Sequential:
    """Dense layers with these widths, the first of which is that of the inputs."""
    last = len(widths) - 2
    layers = [dense(units, inputs, None if i == last else "tanh") for i, (inputs, units) in enumerate(pairwise(widths))]
    return keras.Sequential([keras.Input((widths[0],)), *layers])


def log_loss(truth: float, logits: tf.Tensor) -> tf.Tensor:
    """As in the DCGAN tutorial."""
    loss = keras.losses.BinaryCrossentropy(from_logits=True, dtype="float64")
    return loss(tf.fill(tf.shape(logits), truth), logits)


def adversarial(scopes: Scopes, *, critic_first: bool) -> Training:
    """A GAN, each of whose networks sees what the other has just become."""
    with float64():
        generator, critic = network(NOISE, WIDTH, WIDTH), network(WIDTH, WIDTH, 1)
        for_generator = optimized(keras.optimizers.Adam(0.01), generator.trainable_variables)
        for_critic = optimized(keras.optimizers.Adam(0.01), critic.trainable_variables)

    def update_critic(real: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            fake = generator(noise, training=True)
            loss = log_loss(1.0, critic(real, training=True)) + log_loss(0.0, critic(fake, training=True))
        gradients = tape.gradient(loss, critic.trainable_variables)
        for_critic.apply_gradients(zip(gradients, critic.trainable_variables, strict=True))
        return loss

    def update_generator(noise: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            loss = log_loss(1.0, critic(generator(noise, training=True), training=True))
        gradients = tape.gradient(loss, generator.trainable_variables)
        for_generator.apply_gradients(zip(gradients, generator.trainable_variables, strict=True))
        return loss

    def step(real: tf.Tensor, noise: tf.Tensor) -> Any:
        if critic_first:
            of_critic = update_critic(real, noise)
            return of_critic, update_generator(noise)
        of_generator = update_generator(noise)
        return update_critic(real, noise), of_generator

    noise = rows(scopes.examples, NOISE, seed=8)
    batches = [tuple(map(np.float64, batch)) for batch in zip(rows(scopes.examples), noise, strict=True)]
    return Training(step, batches, [generator, critic, for_generator, for_critic])


def gan_critic_first(scopes: Scopes) -> Training:
    """The generator is judged by the critic's new weights."""
    return adversarial(scopes, critic_first=True)


def gan_generator_first(scopes: Scopes) -> Training:
    """The critic is shown what the generator's new weights make."""
    return adversarial(scopes, critic_first=False)


def sharpness_aware_minimization(scopes: Scopes) -> Training:
    """SAM as in its Keras example: uphill by a global norm, the gradient there, back, and the update."""
    with float64():
        model = network(WIDTH, WIDTH, CLASSES)
        optimizer = optimized(keras.optimizers.Adam(0.01), model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    variables = [variable.value for variable in model.trainable_variables]

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            loss = loss_of(y, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        norm = tf.linalg.global_norm(gradients)
        moves = [gradient * 0.05 / (norm + 1e-12) for gradient in gradients]
        for variable, move in zip(variables, moves, strict=True):
            variable.assign_add(move)
        with tf.GradientTape() as tape, scopes.replica:
            moved = loss_of(y, model(x))
        gradients = tape.gradient(moved, model.trainable_variables)
        for variable, move in zip(variables, moves, strict=True):
            variable.assign_sub(move)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {"loss": loss, "moved": moved, "norm": norm}

    batches = [(np.float64(x), y) for x, y in zip(rows(scopes.examples), labels(scopes.examples), strict=True)]
    return Training(step, batches, [model, optimizer])


def distillation(scopes: Scopes) -> Training:
    """A frozen teacher, run in a scope of its own, beside the student: hard labels and soft ones."""
    teacher, student = network(WIDTH, 2 * WIDTH, CLASSES), network(WIDTH, WIDTH, CLASSES)
    optimizer = optimized(keras.optimizers.SGD(0.1, momentum=0.9), student.trainable_variables)
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    soft = keras.losses.KLDivergence()
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    temperature, part = 3.0, 0.3

    def step(x: tf.Tensor, y: tf.Tensor) -> Any:
        with scopes.replica:
            wanted = tf.nn.softmax(teacher(x, training=False) / temperature)
        with tf.GradientTape() as tape, scopes.replica:
            logits = student(x, training=True)
            distance = soft(wanted, tf.nn.softmax(logits / temperature)) * temperature**2
            loss = part * hard(y, logits) + (1.0 - part) * distance
            accuracy.update_state(y, logits)
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply_gradients(zip(gradients, student.trainable_variables, strict=True))
        return {"loss": loss, "distance": distance, "accuracy": accuracy.result()}

    batches = list(zip(rows(scopes.examples), labels(scopes.examples), strict=True))
    return Training(step, batches, [teacher, student, optimizer, accuracy])


def deep_q_learning(scopes: Scopes) -> Training:
    """DQN: the target network values the next states, and is copied from the online one every second step."""
    online, target = network(WIDTH, WIDTH, ACTIONS), network(WIDTH, WIDTH, ACTIONS)
    optimizer = optimized(keras.optimizers.SGD(0.1), online.trainable_variables)
    huber = keras.losses.Huber()
    steps = tf.Variable(0, trainable=False, name="steps")

    def step(states: tf.Tensor, actions: tf.Tensor, rewards: tf.Tensor, later: tf.Tensor, done: tf.Tensor) -> Any:
        with scopes.replica:
            best = tf.reduce_max(target(later), axis=1)
            wanted = rewards + 0.9 * best * (1.0 - done)
        with tf.GradientTape() as tape, scopes.replica:
            values = tf.gather(online(states), actions, axis=1, batch_dims=1)
            loss = huber(wanted, values)
        gradients = tape.gradient(loss, online.trainable_variables)
        gradients, norm = tf.clip_by_global_norm(gradients, 0.5)
        optimizer.apply_gradients(zip(gradients, online.trainable_variables, strict=True))
        if steps.assign_add(1) % 2 == 0:
            for ours, theirs in zip(variables_of([target]), variables_of([online]), strict=True):
                ours.assign(theirs)
        return {"loss": loss, "norm": norm, "errors": tf.abs(wanted - values), "best": tf.reduce_max(best)}

    examples = scopes.examples
    rewards, done = ([each[:, 0] for each in rows(examples, 1, seed=seed)] for seed in (5, 6))
    ended = [np.float32(each > 0.8) for each in done]
    columns = rows(examples), labels(examples, classes=ACTIONS), rewards, rows(examples, seed=7), ended
    return Training(step, list(zip(*columns, strict=True)), [online, target, optimizer, steps])


PROGRAMS = (
    gan_critic_first,
    gan_generator_first,
    sharpness_aware_minimization,
    distillation,
    deep_q_learning,
)
