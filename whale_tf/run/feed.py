"""Feeding a step in many processes: each takes its own part of every global batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from whale_tf.plan.plan import Plan
from whale_tf.run.signature import Arguments

SAMPLED_ROWS = 64
SAMPLED_BYTES = 1 << 12  # of each of these rows


@dataclass(frozen=True)
class Fed:
    """What one call takes: this process's part of a global batch. Given to the step as its only argument.

    Attributes:
      arguments: of the global batch, with tensors that hold this process's examples.
      digest: of the global batch.
      ranges: which examples each process has, as (first, after the last).
    """

    arguments: Arguments
    digest: str
    ranges: tuple[tuple[int, int], ...]

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {list(tensor.shape)}"
            for name, tensor in zip(self.arguments.names, self.arguments.tensors, strict=True)
        )
        return f"<part of a global batch of {self.arguments.examples}: {shapes}>"


def take_part(arguments: Arguments, plan: Plan, process: int) -> Fed:
    """A process's part of a global batch."""
    ranges = ranges_of(plan)
    first, end = ranges[process]
    tensors = tuple(
        tensor[first:end] if batch else tensor for tensor, batch in zip(arguments.tensors, arguments.batch, strict=True)
    )
    return Fed(replace(arguments, tensors=tensors), digest(arguments.tensors), ranges)


def ranges_of(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Which examples each process needs, as (first, after the last)."""
    return tuple(map(plan.examples_of, range(len(plan.layout.hosts))))


def digest(tensors: Sequence[tf.Tensor]) -> str:
    """16 hexadecimal digits of what some rows of a batch begin with: other batches have others.

    It is to tell datasets apart that are shuffled differently, at no cost for large batches.
    """
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        values = tensor.numpy()
        found.update(repr((values.dtype, values.shape)).encode())
        rows = values[:: max(1, len(values) // SAMPLED_ROWS)] if values.ndim else values[None]
        for row in rows:
            flat = np.atleast_1d(row).reshape(-1)[:SAMPLED_BYTES]
            found.update(repr(flat.tolist()).encode() if flat.dtype == object else flat.tobytes()[:SAMPLED_BYTES])
    return found.hexdigest()
