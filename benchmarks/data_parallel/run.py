"""Data parallelism: `whale.replica(2)` against one device and against MirroredStrategy, same global batch.

All three run in one process with two logical CPU devices, which share the cores: the one-device step is the limit.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SMALL, Claim, alternate, arguments, report, timed, warm_up
from benchmarks.model import Size, Training, replicated, tokens

REPLICAS = 2


def mirrored_step(size: Size, x: tf.Tensor, y: tf.Tensor) -> Callable[[], tf.Tensor]:
    """MirroredStrategy as its guide shows it; cutting the batch is left out of the time."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{replica}" for replica in range(REPLICAS)])
    with strategy.scope():
        training = Training(size)

    def part(tensor: tf.Tensor) -> tf.Tensor:
        parts = tf.split(tensor, REPLICAS)
        return strategy.experimental_distribute_values_from_function(lambda r: parts[r.replica_id_in_sync_group])

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = training.loss(x, y) / REPLICAS  # the optimizer sums the gradients over replicas
        training.update(tape.gradient(loss, training.variables))
        return loss

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        losses = strategy.run(replica_step, args=(x, y))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    compiled, parts_x, parts_y = tf.function(step), part(x), part(y)
    return lambda: compiled(parts_x, parts_y)


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=5).parse_args()
    whale.init(devices=REPLICAS)
    size = SMALL if options.small else Size()
    x, y = tokens(size)
    one_device, with_whale = tf.function(Training(size).step), replicated(Training(size), REPLICAS)
    steps = {
        "one device": lambda: one_device(x, y),
        "whale": lambda: with_whale(x, y),
        "MirroredStrategy": mirrored_step(size, x, y),
    }
    warm_up(steps)
    measured = alternate(
        {name: timed(step) for name, step in steps.items()}, rounds=options.rounds, steps=options.steps
    )
    claims = [Claim("whale", "one device", at_most=1.03), Claim("MirroredStrategy", "whale", at_least=1.10)]
    report(f"Data parallelism, {REPLICAS} replicas: {size}", measured, claims)


if __name__ == "__main__":
    main()
