"""Steps in Python for the tests of the planner: traced at two sizes, with the states of what they return by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from whale_tf.capture.normalize import normalize
from whale_tf.capture.outside import Outside
from whale_tf.capture.pair import pair
from whale_tf.capture.record import line_of, record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.errors import Line
from whale_tf.ir.graph import Ref
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.coupling import Coupling, Resolved, resolve
from whale_tf.plan.states import Choices, States, derive

WIDTH = 3
ROWS = tf.TensorSpec([None, WIDTH], tf.float32)
LABELS = tf.TensorSpec([None], tf.int32)

Step = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Traced:
    """A step of which each argument with dim 0 None is a batch, and which returns tensors by name.

    Attributes:
      outputs: the tensors that it returns, by name.
    """

    sizes: Sizes
    outputs: Mapping[str, Ref]
    line_of: Callable[[str], Line]

    def derived(self, choices: Choices | None = None) -> States:
        return derive(self.sizes, choices or Choices())

    def resolved(
        self,
        *,
        exact: bool = False,
        accept: tuple[str, ...] = (),
        micro_batches: int = 1,
        gather_bytes: int = 2**28,
        global_statistics: bool = False,
    ) -> Resolved:
        coupling = Coupling(exact, accept, micro_batches, gather_bytes, self.line_of, global_statistics)
        return resolve(self.sizes, coupling)

    def told(self, states: States | None = None) -> dict[str, str]:
        """The state of each output, `once` for what is computed once, and `early` for what constants determine."""
        states = states or self.derived()
        return {name: _told(states, ref) for name, ref in self.outputs.items()}

    def levels(self, states: States | None = None) -> dict[str, int]:
        """When each output is computed."""
        states = states or self.derived()
        return {name: states.known[ref].level for name, ref in self.outputs.items()}


def _told(states: States, ref: Ref) -> str:
    known = states.known[ref]
    if known.level < 0:
        return "early"
    return str(known.value) if known.micro else "once"


def trace(step: Step, *specs: tf.TensorSpec, examples: int = 8, other: int = 3) -> Traced:
    """A step at every size, from its traces at two; without specs its argument is [examples, WIDTH]."""
    outside = Outside()
    here = _captured(step, specs or (ROWS,), examples, outside)
    there = _captured(step, specs or (ROWS,), other, outside)
    sizes = pair(normalize(here.graph), here.calls, normalize(there.graph), there.calls, examples, other)
    names = sorted(here.trace.structure)
    return Traced(sizes, dict(zip(names, sizes.graph.outputs, strict=True)), lambda name: line_of(here.trace, name))


def _captured(step: Step, specs: tuple[tf.TensorSpec, ...], examples: int, outside: Outside) -> CapturedStep:
    batch = [spec.shape.rank != 0 and spec.shape[0] is None for spec in specs]
    sized = [
        tf.TensorSpec([examples, *spec.shape[1:]] if cut else spec.shape, spec.dtype)
        for spec, cut in zip(specs, batch, strict=True)
    ]
    traced = record(step, lambda tensors: (tuple(tensors), {}), sized, "step", examples=examples)
    return translate(traced, batch, outside)


def states_of(step: Step, *specs: tf.TensorSpec) -> dict[str, str]:
    """The state of each tensor that a step returns."""
    return trace(step, *specs).told()
