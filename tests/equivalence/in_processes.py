"""Runs choices of cases and layouts in each of several processes, and writes what differs: one JSON line for each.

Started by test_processes.py, as `whale run -n 2 in_processes.py FOLDER CHOICE...`; a choice is a number in CHOICES.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator

import keras
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.cases import CASES, LAYOUTS
from tests.equivalence.harness import Case, Layout, differences, fresh, numbers, reference
from tests.equivalence.test_layouts import TRANSFORMER, UNLIKE
from whale_tf.start import current

MOST = 8  # devices
# Of two processes the first is a mesh of both, the second a mesh in each; of four it is a mesh of two for each replica.
SPLITS = (
    Layout(split=2, micro_batches=2),
    Layout(replicas=2, split=2, micro_batches=2, schedule="zero_bubble", examples=13),
)


def choices(size: int) -> Iterator[tuple[Case, Layout]]:
    """Each case at a layout that `size` processes can run, by rotation; the transformer at all of them.

    Last come those whose operators are cut.
    """
    possible = [layout for layout in LAYOUTS if not layout.devices and layout.count % size == 0]
    yield from ((TRANSFORMER, layout) for layout in (*UNLIKE, *possible) if layout.count % size == 0)
    for i, case in enumerate(CASES):
        allowed = [layout for layout in (case.layouts or possible) if case.allows(layout) and layout in possible]
        if allowed:
            yield case, allowed[i % len(allowed)]
    yield from ((TRANSFORMER, layout) for layout in SPLITS if layout.count % size == 0)


def check(case: Case, layout: Layout, size: int) -> list[str]:
    """What differs from one device; fed where the case takes nothing but positional batches, else called."""
    want = reference(case, layout.examples)
    whale.init(devices=layout.count // size)
    training = fresh(case, layout)
    if whale_rank():  # the first process's variables count, in all of them
        for owner in training.owners:
            for variable in getattr(owner, "variables", [owner]):
                if variable.dtype in ("float32", tf.float32) and "learning_rate" not in variable.name:
                    variable.assign(variable + 1.0)
    decorate = whale.function(strategy=layout.strategy, loss=case.loss, whole=case.whole)
    return differences(numbers(training, decorate(training.step)), want, case.tolerance)


def whale_rank() -> int:
    world = current().world
    return world.rank if world else 0


def main() -> None:
    """Runs the choices in order; each process writes its own file."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    chosen = list(choices(size))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * (MOST // size)
    )
    whale.init()
    with (folder / f"{whale_rank()}.jsonl").open("w", buffering=1) as file:
        for number in map(int, sys.argv[3:]):
            case, layout = chosen[number]
            try:
                wrong = check(case, layout, size)
            except Exception:
                wrong = [traceback.format_exc()]
            file.write(json.dumps([number, wrong]) + "\n")
            keras.backend.clear_session()


if __name__ == "__main__":
    main()
