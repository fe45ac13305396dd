"""No scopes: a step under `whale.function` on one device against the same step under `tf.function`."""

from __future__ import annotations

import tensorflow as tf

import whale_tf as whale
from benchmarks.measure import SMALL, Claim, alternate, arguments, report, timed, warm_up
from benchmarks.model import Size, Training, tokens


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=15, steps=5).parse_args()
    whale.init(devices=1)
    size = SMALL if options.small else Size()
    x, y = tokens(size)
    with_tensorflow, with_whale = tf.function(Training(size).step), whale.function(Training(size).step)
    steps = {"tf.function": lambda: with_tensorflow(x, y), "whale": lambda: with_whale(x, y)}
    warm_up(steps)
    measured = alternate(
        {name: timed(step) for name, step in steps.items()}, rounds=options.rounds, steps=options.steps
    )
    report(f"No scopes, 1 device: {size}", measured, [Claim("whale", "tf.function", at_most=1.02)])


if __name__ == "__main__":
    main()
