"""Programs on sequences: padding, alignment, teacher forcing."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import Scopes, Training
from tests.equivalence.models import CLASSES, LENGTH, WIDTH, WORDS, dense, labels, optimized, rows, variables_of, words
from tests.equivalence.programs.precision import float64


def masked_language_model(scopes: Scopes) -> Training:
    """The mean over the words to be guessed; the examples of one micro-batch have none."""
    table = keras.layers.Embedding(WORDS, WIDTH)
    table.build((None, LENGTH))
    attention = keras.layers.MultiHeadAttention(2, WIDTH // 2)
    attention.build((None, LENGTH, WIDTH), (None, LENGTH, WIDTH))
    owners = [table, attention, dense(WIDTH), dense(WORDS, activation=None)]
    variables = variables_of(owners)
    optimizer = optimized(keras.optimizers.SGD(0.1, momentum=0.9), variables)

    def step(tokens: tf.Tensor, targets: tf.Tensor, mask: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            h = table(tokens)
            h = owners[2](h + attention(h, h, attention_mask=(tokens > 0)[:, None]))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, owners[3](h))
            loss = tf.reduce_sum(losses * mask) / tf.reduce_sum(mask)
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, tf.reduce_sum(mask)

    draw = np.random.default_rng(6)
    batches = []
    for targets in words(scopes.examples):
        mask = draw.uniform(size=targets.shape) < 0.3
        mask[0, 0] = True
        mask[scopes.examples // 4 : scopes.examples // 2] = False
        batches.append((np.where(mask, WORDS - 1, targets).astype(np.int32), targets, mask.astype(np.float32)))
    return Training(step, batches, [*owners, optimizer])


def connectionist_temporal_classification(scopes: Scopes) -> Training:
    """CTC: frames through a convolution and a recurrence, labels of different lengths.

    It descends without Adam, since tf.nn.ctc_loss has no float64.
    """
    convolution = keras.layers.Conv1D(WIDTH, 3, padding="same", activation="tanh")
    convolution.build((None, 2 * LENGTH, WIDTH))
    recurrence = keras.layers.GRU(WIDTH, return_sequences=True)
    recurrence.build((None, 2 * LENGTH, WIDTH))
    owners = [convolution, recurrence, dense(CLASSES, activation=None)]
    variables = variables_of(owners)
    optimizer = optimized(keras.optimizers.SGD(0.05, momentum=0.9), variables)

    def step(frames: tf.Tensor, targets: tf.Tensor, frame_counts: tf.Tensor, target_counts: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            logits = owners[2](recurrence(convolution(frames)))
            losses = tf.nn.ctc_loss(
                targets, logits, target_counts, frame_counts, logits_time_major=False, blank_index=0
            )
            loss = tf.reduce_mean(losses / tf.cast(target_counts, tf.float32))
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, variables), 5.0)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss, losses, norm

    draw = np.random.default_rng(9)
    batches = []
    for frames in rows(scopes.examples, 2 * LENGTH, WIDTH):
        counts = draw.integers(1, 4, size=scopes.examples).astype(np.int32)
        targets = draw.integers(1, CLASSES, size=(scopes.examples, 3)).astype(np.int32)
        targets[np.arange(3) >= counts[:, None]] = 0
        lengths = draw.integers(2 * LENGTH - 3, 2 * LENGTH + 1, size=scopes.examples).astype(np.int32)
        batches.append((frames, targets, lengths, counts))
    return Training(step, batches, [*owners, optimizer])


def sequence_to_sequence(scopes: Scopes) -> Training:
    """An encoder and a decoder LSTM, teacher forcing, the mean over all words that are no padding."""
    ours, theirs = keras.layers.Embedding(WORDS, WIDTH), keras.layers.Embedding(WORDS, WIDTH)
    encoder = keras.layers.LSTM(WIDTH, return_state=True)
    decoder = keras.layers.LSTM(WIDTH, return_sequences=True)
    for layer, shape in ((ours, (None, None)), (theirs, (None, None))):
        layer.build(shape)
    for layer in (encoder, decoder):
        layer.build((None, LENGTH, WIDTH))
    owners = [ours, theirs, encoder, decoder, dense(WORDS, activation=None)]
    variables = variables_of(owners)
    optimizer = optimized(keras.optimizers.SGD(0.5, momentum=0.9), variables)

    def step(source: tf.Tensor, target: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            _, *state = encoder(ours(source), mask=source > 0)
            logits = owners[4](decoder(theirs(target[:, :-1]), initial_state=state))
            mask = tf.cast(target[:, 1:] > 0, tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(target[:, 1:], logits) * mask
            loss = tf.reduce_sum(losses) / tf.reduce_sum(mask)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        right = tf.cast(tf.argmax(logits, 2, tf.int32) == target[:, 1:], tf.float32) * mask
        return {"loss": loss, "accuracy": tf.reduce_sum(right) / tf.reduce_sum(mask)}

    batches = []
    for source, target in zip(words(scopes.examples), words(scopes.examples, seed=12), strict=True):
        lengths = 2 + np.arange(scopes.examples)[:, None] % (LENGTH - 1)
        batches.append((source, np.where(np.arange(LENGTH) < lengths, target, 0)))
    return Training(step, batches, [*owners, optimizer])


def bert_of_one_segment(scopes: Scopes) -> Training:
    """KerasHub's BERT as most use it, all words in segment 0, with Adam.

    All examples look the same row of the segments' table up, whose gradient is to be added before Adam squares it.
    """
    with float64():
        model = keras_hub.models.BertBackbone(WORDS, 2, 2, WIDTH, 2 * WIDTH, dropout=0.0, max_sequence_length=LENGTH)
        head = dense(CLASSES, activation=None)
    variables = [*model.trainable_variables, *head.trainable_variables]
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    def step(tokens: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, scopes.replica:
            inputs = {
                "token_ids": tokens,
                "segment_ids": tf.zeros_like(tokens),
                "padding_mask": tf.cast(tokens > 0, tf.int32),
            }
            logits = head(model(inputs, training=True)["pooled_output"])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    batches = list(zip(words(scopes.examples), labels(scopes.examples), strict=True))
    return Training(step, batches, [model, head, optimizer])


PROGRAMS = (
    masked_language_model,
    connectionist_temporal_classification,
    sequence_to_sequence,
    bert_of_one_segment,
)
