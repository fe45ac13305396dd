"""Action overhead: steps of tiny operations under `whale.function` against the same calls in a tf.function by hand.

The hand-written step makes one call for each action on the action's device, adds the gradients and updates once. It is
what a user would write who cuts the step himself; nothing orders its calls but the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import MICROSECONDS, Claim, alternate, arguments, report, timed, warm_up

WIDTH, RATE, BATCH = 8, 0.01, 32
REPLICAS, MICRO_BATCHES = 2, 8


class Tiny:
    """Two layers and a step; `staged` puts each layer in a stage, and without `replicas` there is no scope."""

    def __init__(self, replicas: int | None, staged: bool) -> None:
        with tf.device("CPU:0"):
            self.first = tf.Variable(tf.random.stateless_normal([WIDTH, WIDTH], (1, 2)))
            self.second = tf.Variable(tf.random.stateless_normal([WIDTH, WIDTH], (3, 4)))
        self.replicas, self.staged = replicas, staged

    def step(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """One step of gradient descent; returns the loss."""
        with tf.GradientTape() as tape:
            if self.replicas is None:
                loss = self._loss(self._hidden(x), y)
            else:
                with whale.replica(self.replicas):
                    loss = self._in_stages(x, y) if self.staged else self._loss(self._hidden(x), y)
        gradients = tape.gradient(loss, (self.first, self.second))
        self.first.assign_sub(RATE * gradients[0])
        self.second.assign_sub(RATE * gradients[1])
        return loss

    def _in_stages(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with whale.stage():
            hidden = self._hidden(x)
        with whale.stage():
            return self._loss(hidden, y)

    def _hidden(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(tf.matmul(x, self.first))

    def _loss(self, hidden: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.square(tf.matmul(hidden, self.second) - y))


@tf.function
def forward_0(x: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(tf.matmul(x, first))


@tf.function
def forward_1(hidden: tf.Tensor, second: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    difference = tf.matmul(hidden, second) - y
    return tf.reduce_mean(tf.square(difference)), difference


@tf.function
def backward_1(
    hidden: tf.Tensor, second: tf.Tensor, difference: tf.Tensor, share: tf.Tensor, total: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    scaled = difference * share
    return total + tf.matmul(hidden, scaled, transpose_a=True), tf.matmul(scaled, second, transpose_b=True)


@tf.function
def backward_0(x: tf.Tensor, hidden: tf.Tensor, gradient: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    kept = tf.where(hidden > 0.0, gradient, tf.zeros_like(gradient))
    return total + tf.matmul(x, kept, transpose_a=True)


def by_hand(tiny: Tiny, replicas: int, stages: int, micro_batches: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The same step as calls on devices."""
    devices = [[f"CPU:{replica * stages + stage}" for stage in range(stages)] for replica in range(replicas)]
    parts = replicas * micro_batches

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        first, second = tiny.first.read_value(), tiny.second.read_value()
        xs, ys = tf.split(x, parts), tf.split(y, parts)
        losses, totals = [], []
        share = tf.constant(2.0 / (BATCH * WIDTH))
        for replica in range(replicas):
            total_0, total_1 = tf.zeros_like(first), tf.zeros_like(second)
            for i in range(replica * micro_batches, (replica + 1) * micro_batches):
                with tf.device(devices[replica][0]):
                    hidden = forward_0(xs[i], first)
                with tf.device(devices[replica][-1]):
                    loss, difference = forward_1(hidden, second, ys[i])
                    total_1, gradient = backward_1(hidden, second, difference, share, total_1)
                with tf.device(devices[replica][0]):
                    total_0 = backward_0(xs[i], hidden, gradient, total_0)
                losses.append(loss)
            totals.append((total_0, total_1))
        for variable, each in zip((tiny.first, tiny.second), zip(*totals, strict=True), strict=True):
            with tf.device("CPU:0"):
                variable.assign_sub(RATE * tf.add_n(each))
        return tf.add_n(losses) / parts

    return step


def contenders() -> dict[str, Callable[[tf.Tensor, tf.Tensor], Any]]:
    """The steps by name; those of a pair compute the same."""
    found: dict[str, Callable[[tf.Tensor, tf.Tensor], Any]] = {}
    for name, stages, micro_batches in (("2 x 2 x 8", 2, MICRO_BATCHES), ("2 replicas", 1, 1)):
        found[f"whale, {name}"] = whale.function(micro_batches=micro_batches)(Tiny(REPLICAS, stages == 2).step)
        found[f"by hand, {name}"] = by_hand(Tiny(None, False), REPLICAS, stages, micro_batches)
    found["whale, no scopes"] = whale.function(Tiny(None, False).step)
    found["tf.function"] = tf.function(Tiny(None, False).step)
    return found


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=50).parse_args()
    whale.init(devices=4)
    x, y = tf.random.stateless_normal([BATCH, WIDTH], (5, 6)), tf.random.stateless_normal([BATCH, WIDTH], (7, 8))
    steps = {name: (lambda step=step: step(x, y)) for name, step in contenders().items()}
    warm_up(steps)
    losses = {name: float(step()) for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 1e-4 * max(losses.values()):
        raise SystemExit(f"the contenders do not compute the same: {losses}")
    measured = alternate(
        {name: timed(step) for name, step in steps.items()}, rounds=options.rounds, steps=options.steps
    )
    claims = [
        Claim("whale, 2 x 2 x 8", "by hand, 2 x 2 x 8", at_most=1.2),
        Claim("whale, 2 replicas", "by hand, 2 replicas"),
        Claim("whale, no scopes", "tf.function", at_most=1.02),
    ]
    report("Tiny steps, 4 logical CPU devices", measured, claims, unit=MICROSECONDS)


if __name__ == "__main__":
    main()
