"""What is reduced: one tensor of each size, and the gradients of the transformer of `benchmarks/model.py`."""

from __future__ import annotations

from math import prod

from benchmarks.model import Size, transformer

FLOAT_BYTES = 4
SIZES = {"4 KiB": 4 << 10, "4 MiB": 4 << 20, "64 MiB": 64 << 20}  # bytes of float32

Shapes = list[tuple[int, ...]]


def workloads(*, small: bool) -> dict[str, Shapes]:
    """The shapes of float32 tensors by the name of what they are; small ones have a 64th of the bytes."""
    size = Size(width=32) if small else Size()
    shapes = [tuple(variable.shape) for variable in transformer(size)[0].trainable_variables]
    tensors: dict[str, Shapes] = {
        name: [(count // FLOAT_BYTES // (64 if small else 1),)] for name, count in SIZES.items()
    }
    return tensors | {"gradients": shapes}


def describe(shapes: Shapes) -> str:
    """Prints as `64 MiB of float32` or `70 tensors, 20.2 MiB of float32`."""
    size_bytes = FLOAT_BYTES * sum(map(prod, shapes))
    size = f"{size_bytes / 2**10:g} KiB" if size_bytes < 2**20 else f"{round(size_bytes / 2**20, 1):g} MiB"
    return f"{size} of float32" if len(shapes) == 1 else f"{len(shapes)} tensors, {size} of float32"
