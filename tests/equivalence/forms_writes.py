"""Forms of writes to state: what a step changes besides what it trains.

None of them reaches a gradient, so each is one device's: computed from merged or gathered values, once per step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.forms import forms, named, squares

DECAY = 0.9
CAPACITY = 64


class State:
    """All kinds of state that a write may change; made outside the step.

    Attributes:
      number: a float.
      count: an integer.
      vector: [width].
      rows: [width, width], one for each class.
      memory: [CAPACITY, width], written in a ring at `count`.
      average, accuracy, area: Keras metrics.
      queue: first in, first out, of losses.
      table: from class numbers to counts.
    """

    def __init__(self, width: int) -> None:
        def made(value: Any, name: str) -> tf.Variable:
            return tf.Variable(value, trainable=False, name=name)

        self.number, self.count = made(1.0, "number"), made(1, "count")
        self.vector, self.rows = made(tf.ones(width), "vector"), made(tf.ones((width, width)), "rows")
        self.memory = made(tf.zeros((CAPACITY, width)), "memory")
        self.average, self.accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
        self.area = keras.metrics.AUC(num_thresholds=5)
        self.queue = tf.queue.FIFOQueue(CAPACITY, tf.float32, ())
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)

    @property
    def owners(self) -> list[Any]:
        """Whose contents are compared."""
        variables = [self.number, self.count, self.vector, self.rows, self.memory]
        return [*variables, self.average, self.accuracy, self.area, Contents(self)]


class Contents:
    """What queue and table hold at the end, as if they were variables."""

    def __init__(self, state: State) -> None:
        self.state = state

    @property
    def variables(self) -> list[Numbers]:
        """What is left in the queue, in order, and the table sorted by key."""
        queue, table = self.state.queue, self.state.table
        keys, values = (np.asarray(each) for each in table.export())
        order = np.argsort(keys)
        left = queue.dequeue_many(queue.size())
        return [Numbers("queue", np.asarray(left)), Numbers("table", np.stack([keys[order], values[order]]))]


class Numbers:
    """An array with a name."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.values, dtype)


def adds_a_sum(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.number.assign_add(tf.reduce_sum(squares(h, y)))


def adds_a_mean(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign_add(tf.reduce_mean(h, axis=0))


def adds_a_count(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.count.assign_add(tf.reduce_sum(tf.cast(h[:, 0] > 0.0, tf.int32)))


def adds_the_size_of_the_batch(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.count.assign_add(tf.shape(h)[0])
    state.number.assign_add(h.shape[0] / 100)


def adds_one(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """A number of steps, in the scope of the replicas."""
    return state.count.assign_add(1)


def subtracts_a_sum(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.number.assign_sub(tf.reduce_sum(squares(h, y)))


def subtracts_at_a_rate_of_the_size(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign_sub(0.1 * h.shape[0] / 256 * tf.reduce_mean(h, axis=0))


def adds_rows_by_class(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.rows.scatter_add(tf.IndexedSlices(h, y))


def subtracts_rows_by_class(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.rows.scatter_sub(tf.IndexedSlices(h, y))


def largest_rows_by_class(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.rows.scatter_max(tf.IndexedSlices(1.5 + h, y))


def smallest_rows_by_class(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.rows.scatter_min(tf.IndexedSlices(h, y))


def multiplies_rows_by_class(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.rows.scatter_mul(tf.IndexedSlices(1.0 + 0.1 * h, y))


def overwrites_rows_in_a_ring(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """A memory bank: each example has a row of its own, behind the last one of the step before."""
    places = (state.count + tf.range(tf.shape(h)[0])) % CAPACITY
    state.memory.scatter_update(tf.IndexedSlices(h, places))
    state.count.assign_add(tf.shape(h)[0])


def adds_numbers_at_places(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """A confusion matrix by scatter_nd_add."""
    guess = tf.argmax(h, axis=1, output_type=tf.int32)
    state.rows.scatter_nd_add(tf.stack([y, guess], axis=1), tf.ones_like(y, tf.float32))


def adds_a_histogram(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign_add(tf.reduce_sum(tf.one_hot(y, h.shape[1]), axis=0))


def moving_average_of_a_mean(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign(DECAY * state.vector + (1.0 - DECAY) * tf.reduce_mean(h, axis=0))


def moving_average_of_a_variance(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign_sub((1.0 - DECAY) * (state.vector - tf.math.reduce_variance(h, axis=0)))


def codebook(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """VQ-VAE: counts and sums of the examples nearest to each row decay, and their quotient is the new row."""
    nearest = tf.one_hot(tf.argmin(tf.reduce_sum((h[:, None] - state.rows) ** 2, axis=2), axis=1), h.shape[1])
    counted = state.vector.assign(DECAY * state.vector + (1.0 - DECAY) * tf.reduce_sum(nearest, axis=0))
    sums = tf.matmul(nearest, h, transpose_a=True)
    state.rows.assign((DECAY * state.rows + (1.0 - DECAY) * sums) / (counted[:, None] + 1e-2))


def times_the_largest(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.number.assign(state.number * tf.reduce_max(squares(h, y)))


def times_the_sum(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.number.assign(state.number * tf.reduce_sum(squares(h, y)) / 16.0)


def running_extremes(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.number.assign(tf.maximum(state.number, tf.reduce_max(squares(h, y))))
    state.vector.assign(tf.minimum(state.vector, tf.reduce_min(h, axis=0)))


def overwrites_by_a_mean(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign(tf.reduce_mean(h, axis=0))


def overwrites_by_the_largest(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign(tf.reduce_max(h, axis=0))


def overwrites_by_the_last_example(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign(h[-1])
    state.memory[:2].assign(h[:2])


def overwrites_by_a_deviation(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign(tf.math.reduce_std(h, axis=0))
    state.number.assign(tf.sort(squares(h, y))[h.shape[0] // 2])


def read_before_and_after(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    before = 2.0 * state.number.read_value()
    after = state.number.assign_add(tf.reduce_sum(squares(h, y)))
    return before, after, state.number.assign(after / 2.0)


def written_twice(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.vector.assign_add(tf.reduce_sum(h, axis=0))
    state.vector.assign(state.vector / tf.reduce_sum(tf.abs(state.vector)))


def written_where_a_total_is_large(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    loss = tf.reduce_mean(squares(h, y))
    if loss > 0.5:
        state.number.assign(loss)
    else:
        state.count.assign_add(10)


def written_every_other_step(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    if state.count.assign_add(1) % 2 == 0:
        state.vector.assign_add(tf.reduce_sum(h, axis=0))


def differences_to_a_moving_mean(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """The state of the step before is an output's, the new one the next step's."""
    scores = h - state.vector
    state.vector.assign(DECAY * state.vector + (1.0 - DECAY) * tf.reduce_mean(h, axis=0))
    return scores, state.vector.read_value()


def mean_metric(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.average.update_state(squares(h, y), sample_weight=tf.cast(y + 1, tf.float32))
    return state.average.result()


def accuracy_metric(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.accuracy.update_state(y, h)
    return state.accuracy.result()


def area_metric(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.area.update_state(tf.cast(y < 2, tf.float32), tf.nn.sigmoid(h[:, 0]))
    return state.area.result()


def metric_of_a_mean(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """The metric counts steps, and not examples."""
    state.average.update_state(tf.reduce_mean(squares(h, y)))


def queue_of_losses(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.queue.enqueue_many([squares(h, y)])
    return state.queue.size()


def queue_of_means(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    state.queue.enqueue(tf.reduce_mean(h))
    state.queue.enqueue(tf.reduce_max(h))
    return state.queue.dequeue()


def counts_in_a_table(state: State, h: tf.Tensor, y: tf.Tensor) -> Any:
    """Counts of the step in the place of those of the step before; both are read."""
    keys = tf.range(tf.constant(h.shape[1], tf.int64))
    before = state.table.lookup(keys)
    found = tf.math.bincount(y, minlength=h.shape[1], maxlength=h.shape[1], dtype=tf.int64)
    state.table.insert(keys, before + found)
    return before, state.table.size()


WRITES = named(
    forms(
        adds_a_sum,
        adds_a_mean,
        adds_a_count,
        adds_the_size_of_the_batch,
        adds_one,
        subtracts_a_sum,
        subtracts_at_a_rate_of_the_size,
        adds_rows_by_class,
        subtracts_rows_by_class,
        largest_rows_by_class,
        smallest_rows_by_class,
        multiplies_rows_by_class,
        overwrites_rows_in_a_ring,
        adds_numbers_at_places,
        adds_a_histogram,
        moving_average_of_a_mean,
        moving_average_of_a_variance,
        codebook,
        times_the_largest,
        times_the_sum,
        running_extremes,
        overwrites_by_a_mean,
        overwrites_by_the_largest,
        overwrites_by_the_last_example,
        overwrites_by_a_deviation,
        read_before_and_after,
        written_twice,
        written_where_a_total_is_large,
        written_every_other_step,
        differences_to_a_moving_mean,
        mean_metric,
        accuracy_metric,
        area_metric,
        metric_of_a_mean,
        queue_of_losses,
        queue_of_means,
        counts_in_a_table,
    )
)
