"""Runs the plan and the plain one-device step from the same state and compares every number.

    snapshot ─▶ plan, n steps ─▶ read ─▶ restore ─▶ plain, n steps ─▶ read ─▶ restore ─▶ compare

State is every variable that either of the two can touch, seed generators included: all of them are afterwards what they
were. What TensorFlow keeps elsewhere is not restored: the hidden counters of stateful random operations and tables move
on, prints and summaries come twice, and Python side effects once more, when the plain step is traced. Where the step
draws random numbers the two draw different ones, and the differences say nothing.

Where a variable differs, the gradients are compared, too, with one more step of each: they tell whether it may be
rounding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tensorflow.python.ops import gen_resource_variable_ops  # private; tried with 2.21
from tensorflow.python.util import nest  # private; tried with 2.21

from whale_tf.errors import PlanError
from whale_tf.run.compiled import Compiled
from whale_tf.run.precision import Pair, as_it_is, in_float64
from whale_tf.run.signature import Arguments
from whale_tf.run.suspects import Suspect, find_suspects

SHOWN_ROWS = 20
SHOWN_SUSPECTS = 5
VERIFIED = 1e-4  # of a tensor's largest number: float32 numbers added in another order differ by less after one step
PRECISIONS = (None, "float64")
_WIDTH = 120

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """How far one tensor of the plan is from that of the plain step.

    Attributes:
      name: the variable's; of an output, its place in what the step returns, as `output['loss']`.
      kind: `output` or `variable`.
      shape: the plain step's.
      absolute: the largest |plan - plain| of any element; infinite where only one is a number, or where shapes or types
        differ.
      relative: that over the largest |plain|; for what is no float, 0 if all are equal and infinite if not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    absolute: float
    relative: float


@dataclass(frozen=True)
class Verification:
    """What `verify` found: prints as a table, worst first.

    Attributes:
      steps: how many steps each of the two ran.
      rows: one per output of the last step and per variable.
      suspects: variables that differ where both gradients are the rounding of zero, which Adam amplifies.
      precision: `float64` if that is what both ran in; empty if they ran as they are.
      kept: operations that did not run in that precision.
    """

    steps: int
    rows: tuple[Difference, ...]
    suspects: tuple[Suspect, ...] = ()
    precision: str = ""
    kept: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest relative difference of all."""
        return max((row.relative for row in self.rows), default=0.0)

    @property
    def unexplained(self) -> float:
        """The largest relative difference of what is no suspect."""
        suspects = {suspect.name for suspect in self.suspects}
        return max((row.relative for row in self.rows if row.name not in suspects), default=0.0)

    def __str__(self) -> str:
        rows = sorted(self.rows, key=lambda row: (-row.relative, -row.absolute))
        table = Table(box=None, pad_edge=False)
        for heading in ("name", "kind", "shape", "absolute", "relative"):
            table.add_column(
                heading, justify="right" if heading in ("absolute", "relative") else "left", overflow="fold"
            )
        for row in rows[:SHOWN_ROWS]:
            shape = f"[{','.join(map(str, row.shape))}]"
            table.add_row(row.name, row.kind, shape, f"{row.absolute:.3g}", f"{row.relative:.3g}")
        text = io.StringIO()
        Console(file=text, width=_WIDTH, color_system=None, markup=False).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines()] if rows else []
        if len(rows) > SHOWN_ROWS:
            lines.append(f"… and {len(rows) - SHOWN_ROWS} more that differ less")
        return "\n".join([*lines, self.summary, *self._explanations()])

    def _explanations(self) -> Iterator[str]:
        if self.suspects:
            names = [suspect.name for suspect in self.suspects]
            more = f" and {len(names) - SHOWN_SUSPECTS} more" if len(names) > SHOWN_SUSPECTS else ""
            gradient, largest = max(each.gradient for each in self.suspects), self.suspects[0].largest
            shown = ", ".join(names[:SHOWN_SUSPECTS]) + more
            yield f"rounding of zero gradients, which an optimizer such as Adam amplifies: {shown}"
            yield (
                f"  where they differ, both gradients are {gradient:.2g} at most, and the largest of the step is "
                f"{largest:.2g}; all else differs by {self.unexplained:.3g}"
            )
            if not self.precision:
                yield '  to be sure, compare where rounding is 1e8 times smaller: step.verify(..., precision="float64")'
        if self.kept:
            yield f"not in {self.precision}, and rounded as before: {', '.join(self.kept)}"

    @property
    def summary(self) -> str:
        """What was compared and the largest difference, in one line."""
        outputs = sum(row.kind == "output" for row in self.rows)
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        compared = f"{outputs} outputs and {len(self.rows) - outputs} variables"
        precision = f" in {self.precision}" if self.precision else ""
        return f"{compared} after {steps}{precision}: largest relative difference {self.largest:.3g}"


class _State(NamedTuple):
    """A variable's handle and the type of what it holds."""

    handle: Any
    dtype: tf.DType

    def read(self) -> tf.Tensor:
        """Its value, which shares memory with the variable until that is written."""
        return gen_resource_variable_ops.read_variable_op(self.handle, self.dtype)

    def assign(self, value: tf.Tensor) -> None:
        """Gives it a value."""
        gen_resource_variable_ops.assign_variable_op(self.handle, value)


def verify(
    plain: Any, compiled: Compiled, arguments: Arguments, steps: int = 1, precision: str | None = None
) -> Verification:
    """Compares the plan with the plain step over `steps` steps on the same batch; the variables stay as they are.

    Args:
      plain: `tf.function` of the user's Python function; kept by the caller, so that it is traced once.
      compiled: the plan.
      arguments: the global batch.
      steps: how many steps each runs; outputs are those of the last.
      precision: `float64` to run both with float64 in the place of every smaller float.
    Raises:
      PlanError: there is no step to run, or the precision is another one.
    """
    _check(steps, precision)
    compiled.gather()
    pair = as_it_is(plain, compiled, arguments) if precision is None else in_float64(compiled, arguments)
    state = {name: _State(each.handle, tf.as_dtype(each.dtype)) for name, each in pair.variables.items()}
    before = {name: variable.read() for name, variable in state.items()}
    try:
        planned = _run(pair.planned, steps, state, after=pair.compiled.gather)
        _restore(state, before)
        single = _run(pair.single, steps, state)
        _restore(state, before)
        rows = tuple(_differences(planned, single))
        suspects = _suspects(pair, rows, planned, single)
    finally:
        _restore(state, before)
    return Verification(steps, rows, suspects, precision or "", tuple(sorted(pair.kept)))


def _check(steps: int, precision: str | None) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise PlanError(
            "verify needs a whole number of steps from 1 on",
            details=[f"steps is {steps!r}"],
            way_out="Use verify(..., steps=1), or leave steps out.",
        )
    if precision not in PRECISIONS:
        raise PlanError(
            "verify compares a step as it is, or in float64",
            details=[f"precision is {precision!r}"],
            way_out='Use verify(..., precision="float64"), or leave precision out.',
        )


class _Result(NamedTuple):
    """What a run left: the last step's outputs and the variables, by name."""

    outputs: dict[str, tf.Tensor]
    variables: dict[str, tf.Tensor]


def _run(
    step: Callable[[], Any], steps: int, state: Mapping[str, _State], after: Callable[[], None] = lambda: None
) -> _Result:
    for _ in range(steps):
        outputs = step()
    after()
    return _Result(_named(outputs), {name: variable.read() for name, variable in state.items()})


def _restore(state: Mapping[str, _State], values: Mapping[str, tf.Tensor]) -> None:
    for name, variable in state.items():
        variable.assign(values[name])


def _suspects(pair: Pair, rows: tuple[Difference, ...], planned: _Result, single: _Result) -> tuple[Suspect, ...]:
    """What may be rounding; among several processes nobody looks, since each has the gradients of its stages only."""
    differing = {}
    for name in [row.name for row in rows if row.kind == "variable" and VERIFIED < row.relative < np.inf]:
        left, right = planned.variables[name].numpy(), single.variables[name].numpy()
        differing[name] = np.abs(left - right) > VERIFIED * np.max(np.abs(right), initial=0)
    if not differing or pair.compiled.parts.world is not None or not pair.compiled.program.gradients(pair.step):
        return ()
    gradients = [{name: each.numpy() for name, each in found.items()} for found in pair.gradients()]
    return find_suspects(pair.step, differing, *gradients)


def _named(outputs: Any) -> dict[str, tf.Tensor]:
    """The tensors among what a step returns, by their place; None has no value to compare."""
    leaves = nest.flatten_with_tuple_paths(outputs, expand_composites=True)
    named = {"output" + "".join(f"[{key!r}]" for key in path): leaf for path, leaf in leaves if leaf is not None}
    return {name: tf.convert_to_tensor(leaf) for name, leaf in named.items()}


def _differences(planned: _Result, plain: _Result) -> Iterator[Difference]:
    for kind, left, right in zip(("output", "variable"), planned, plain, strict=True):
        for name in {**right, **left}:
            if name not in left or name not in right:
                only = right[name] if name in right else left[name]
                yield Difference(name, kind, tuple(only.shape), np.inf, np.inf)
                continue
            if right[name].dtype not in (tf.resource, tf.variant):
                yield Difference(
                    name, kind, tuple(right[name].shape), *distance(left[name].numpy(), right[name].numpy())
                )


def distance(left: Any, right: Any) -> tuple[float, float]:
    """The largest absolute and relative difference; NaN equals NaN, and an infinity itself."""
    a, b = np.asarray(left), np.asarray(right)
    if a.shape != b.shape or a.dtype != b.dtype:
        return np.inf, np.inf
    if not a.size:
        return 0.0, 0.0
    a, b = np.atleast_1d(a, b)
    floating = tf.as_dtype(b.dtype).is_floating or tf.as_dtype(b.dtype).is_complex
    if not floating:
        return _exact(a, b)
    if b.dtype.itemsize < 4:  # float16 and smaller: differences have too few digits
        a, b = a.astype(np.float32), b.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(a - b)
        distance[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        distance[np.isnan(distance)] = np.inf
        absolute = float(distance.max())
        largest = float(np.max(np.abs(b), where=np.isfinite(b), initial=0))
        return absolute, absolute / max(largest, float(np.finfo(b.dtype).tiny))


def _exact(a: Array, b: Array) -> tuple[float, float]:
    """The same for what has to be equal: integers, truth values, strings."""
    unequal = a != b
    if not unequal.any():
        return 0.0, 0.0
    if a.dtype.kind not in "iub":
        return np.inf, np.inf
    return float(np.max(np.abs(a[unequal].astype(np.float64) - b[unequal].astype(np.float64)))), np.inf
