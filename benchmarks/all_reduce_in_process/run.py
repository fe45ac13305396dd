"""All-reduce between 2 and 4 devices of one process: whale's memory, `tf.add_n` with copies, and CollectiveReduceV2.

Every device holds its own tensors, and gets their sums. Logical CPU devices share the cores and the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

import whale_tf as whale
from benchmarks.all_reduce.tensors import Shapes, describe, workloads
from benchmarks.measure import Claim, alternate, arguments, report, timed
from whale_tf.run.calls import in_any_order
from whale_tf.run.ops import all_reduce

DEVICES = (2, 4)
TIMEOUT_SECONDS = 60.0
WHALE, ADD_N, COLLECTIVE = "whale", "tf.add_n", "CollectiveReduceV2"
CLAIMS = [Claim(ADD_N, WHALE, at_least=1.0), Claim(COLLECTIVE, WHALE, at_least=1.0)]

Lists = list[list[Any]]  # by device, then by tensor
_numbers = count(1)  # of collectives: two at a time must not have the same


def with_whale(lists: Lists) -> Lists:
    """whale's all-reduce: one call for all tensors of a device."""
    ranks = range(len(lists))
    found = []
    for rank, values in enumerate(lists):
        with tf.device(f"CPU:{rank}"):
            found.append(all_reduce(values, rank=rank, ranks=ranks, world="benchmark"))
    return found


def with_add_n(lists: Lists) -> Lists:
    """The sums on the first device, and copies of them on the others."""
    with tf.device("CPU:0"):
        sums = [tf.add_n(parts) for parts in zip(*lists, strict=True)]
    found = []
    for rank in range(len(lists)):
        with tf.device(f"CPU:{rank}"):
            found.append([tf.identity(total) for total in sums])
    return found


def with_collectives(lists: Lists) -> Lists:
    """TensorFlow's own ring: one operation for each tensor of a device.

    A `tf.function` would run them one after another, and the first would wait for ever: they need the same freedom that
    whale gives its own.
    """
    size, group = len(lists), next(_numbers)
    keys = [next(_numbers) for _ in lists[0]]
    found = []
    for rank, values in enumerate(lists):
        with tf.device(f"CPU:{rank}"):
            reduce = partial(
                tf.raw_ops.CollectiveReduceV2,
                group_size=size,
                group_key=group,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
                communication_hint="ring",
                timeout_seconds=TIMEOUT_SECONDS,
            )
            pairs = zip(values, keys, strict=True)
            found.append([in_any_order(reduce(input=value, instance_key=key)) for value, key in pairs])
    return found


def step_of(reduce: Callable[[Lists], Lists], shapes: Shapes, devices: int) -> Callable[[], None]:
    """The reduction in a `tf.function` as a call, once its result was seen to be right."""
    lists = []
    for rank in range(devices):
        with tf.device(f"CPU:{rank}"):
            lists.append([tf.fill(shape, rank + 1.0) for shape in shapes])
    function = tf.function(reduce, autograph=False)
    expected = devices * (devices + 1) / 2
    for rank, totals in enumerate(function(lists)):
        for index, total in enumerate(totals):
            if not np.all(total.numpy() == expected):
                raise ValueError(f"{reduce.__name__}: tensor {index} of device {rank} is {total}, not {expected}")

    def step() -> None:
        function(lists)

    return step


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "", rounds=9, steps=7).parse_args()
    whale.init(devices=max(DEVICES))
    contenders = {WHALE: with_whale, ADD_N: with_add_n, COLLECTIVE: with_collectives}
    for devices in DEVICES:
        for shapes in workloads(small=options.small).values():
            steps = {name: step_of(reduce, shapes, devices) for name, reduce in contenders.items()}
            measured = alternate(
                {name: timed(step) for name, step in steps.items()}, rounds=options.rounds, steps=options.steps
            )
            report(f"All-reduce between {devices} devices of one process, {describe(shapes)}", measured, CLAIMS)


if __name__ == "__main__":
    main()
