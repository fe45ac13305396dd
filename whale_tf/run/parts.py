"""All that is needed to run a step under one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from whale_tf.errors import Line
from whale_tf.ir.graph import Graph
from whale_tf.plan.plan import Plan
from whale_tf.plan.strategy import Strategy
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import StepProgram
from whale_tf.run.processes import World
from whale_tf.run.reference import Reference


@dataclass(frozen=True)
class Parts:
    """What `parallelize` hands over.

    Attributes:
      step: the step as it was cut.
      program: what runs in the processes that keep one copy of the variables together.
      calls: the functions that its nodes refer to, by name.
      variables: the user's variables by name.
      outside: tensors from outside the step, by index.
      result: from the flat outputs to what the step returns.
      line_of: the user's line of an operation.
      traces: kept, since they own what operations name and no graph holds: Python functions, functions of TensorFlow 1.
      world: the processes that run it together; None if this one is alone.
      name: the user's step.
      reference: the trace that the plan was made of.
      strategy: what the plan follows from.
    """

    step: StepProgram
    program: Program
    calls: Mapping[str, Graph]
    variables: Mapping[str, Any]
    outside: Sequence[Any]
    result: Callable[[Sequence[tf.Tensor]], Any]
    line_of: Callable[[str], Line]
    traces: Sequence[Any]
    world: World | None
    name: str
    reference: Reference
    strategy: Strategy

    @property
    def plan(self) -> Plan:
        """The decisions."""
        return self.step.plan
