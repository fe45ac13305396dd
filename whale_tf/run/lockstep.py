"""Sees to it that all processes do the same with a step, call by call; of a process that is alone, nothing.

What a call is, is reported without waiting for the others: a difference ends the run a moment later. Now and then a
sample of the variables is compared too, since nothing else would tell that one process has assigned another value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whale_tf.errors import VariableError
from whale_tf.run.away import is_away
from whale_tf.run.processes import World

COMPARED_EVERY = 64  # calls; and at the 2nd, 4th, 8th ... before
SAMPLED = 256  # elements of each variable
TOLERANCE = 1e-3  # of the sample's absolute sum: hosts of different kinds may round differently


class Lockstep:
    """One step's part of it."""

    def __init__(self, name: str, world: Callable[[], World | None]) -> None:
        self._name, self._world = name, world
        self._number: int | None = None
        self._calls = 0

    def report(self, what: str, details: Callable[[], str]) -> None:
        """Says what this process does next: `call`, and in its details with which trace and which batch.

        Details are asked for only where there are other processes to compare them with.
        """
        world = self._world()
        if world is None:
            return
        if self._number is None:
            self._number = next(world.steps)
        world.member.report_next("call", f"{what} of step '{self._name}' ({self._number}), {details()}")

    def compare(self, variables: Mapping[str, Any]) -> None:
        """Compares the processes' variables, if it is time to.

        Raises:
          VariableError: some differ by more than rounding; on every process alike.
        """
        world = self._world()
        self._calls += 1
        early = self._calls > 1 and self._calls & (self._calls - 1) == 0
        if world is None or not (early or self._calls % COMPARED_EVERY == 0):
            return
        own = {name: _sample(variable) for name, variable in variables.items() if not is_away(variable)}
        payload = json.dumps({name: sample for name, sample in own.items() if sample is not None}).encode()
        found = [json.loads(each) for each in world.exchange(f"the variables of step '{self._name}'", payload)]
        details = []
        for name in variables:
            samples = {rank: each[name] for rank, each in enumerate(found) if name in each}
            if _apart(list(samples.values())):
                details += [f"{name}: rank {rank}: {sample[0]:.9g}" for rank, sample in samples.items()]
        if details:
            raise VariableError(
                "the processes have assigned different values to a variable",
                details=[
                    f"sums of the first {SAMPLED} elements, before call {self._calls} of step '{self._name}':",
                    *details,
                ],
                way_out="Assign the same value in every process. Before a step's first call one is enough: "
                "all take the values of the first process then.",
            )


def _sample(variable: Any) -> list[float] | None:
    """The sum and the absolute sum of a variable's first elements; None for what are no numbers."""
    values = np.asarray(variable.read_value()).reshape(-1)[:SAMPLED]
    try:
        real = np.abs(values) if values.dtype.kind == "c" else values.astype(np.float64)
    except (TypeError, ValueError):
        return None
    return [float(real.sum()), float(np.abs(real).sum())]


def _apart(samples: Sequence[Sequence[float]]) -> bool:
    sums = np.array([sample[0] for sample in samples])
    if not np.isfinite(sums).all():
        return len({repr(value) for value in sums}) > 1
    return sums.size > 1 and bool(np.ptp(sums) > TOLERANCE * max(sample[1] for sample in samples))
