"""Captures a step at the global batch and at one other size, which together give it at every size."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from whale_tf.annotate import lines
from whale_tf.capture.divide import divide
from whale_tf.capture.normalize import normalize
from whale_tf.capture.outside import Outside
from whale_tf.capture.pair import UnlikeError, alone, pair
from whale_tf.capture.record import Trace, line_of, record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.capture.unfuse import unfuse
from whale_tf.errors import CaptureError, Line, WhaleError
from whale_tf.ir.sizes import Sizes

SHOWN_LINES = 3


class Called(Protocol):
    """The arguments of a call, as `run.signature` takes them apart."""

    batch: tuple[bool, ...]
    examples: int
    rebuilt: Callable[..., Any]

    def specs(self, examples: int) -> list[tf.TensorSpec]:
        """The tensors' shapes and types, for a batch of some size."""


def capture_first(
    function: Callable[..., Any], arguments: Any, outside: Outside, *, fused: bool = True
) -> CapturedStep:
    """The step at the global batch. Variables that it creates at its first call are made, and it is traced again.

    Args:
      outside: what the step's traces so far take from outside; added to.
      fused: whether normalizations stay one operation, and their statistics inside of it.
    Raises:
      CaptureError, VariableError, ScopeError: the step cannot be traced into one flat graph.
    """
    name, examples = getattr(function, "__name__", "step"), arguments.examples
    trace = record(function, arguments.rebuilt, arguments.specs(examples), name, examples=examples, may_create=True)
    if trace.created:
        return capture(function, arguments, outside, examples, fused=fused)
    return _translated(trace, arguments, outside, fused)


def capture(
    function: Callable[..., Any], arguments: Any, outside: Outside, examples: int, *, fused: bool = True
) -> CapturedStep:
    """The step at one size of batch.

    Args:
      outside: what the step's traces so far take from outside; added to.
      fused: whether normalizations stay one operation.
    Raises:
      CaptureError, VariableError, ScopeError: the step cannot be traced into one flat graph.
    """
    name = getattr(function, "__name__", "step")
    trace = record(function, arguments.rebuilt, arguments.specs(examples), name, examples=examples)
    return _translated(trace, arguments, outside, fused)


def _translated(trace: Trace, arguments: Any, outside: Outside, fused: bool) -> CapturedStep:
    step = translate(trace, arguments.batch, outside)
    graph, calls = divide(step.graph, step.calls)
    return replace(step, graph=normalize(graph if fused else unfuse(graph)), calls=calls)


def at_one_size(step: CapturedStep, examples: int) -> Sizes:
    """The step where only one part runs it."""
    return alone(step.graph, step.calls, examples)


@dataclass(frozen=True)
class Captured:
    """A step as it was traced for some batch.

    Attributes:
      examples: the batch.
      outside: what the step's traces so far take from outside.
    """

    step: CapturedStep
    examples: int
    outside: Outside


def at_every_size(
    function: Callable[..., Any],
    arguments: Any,
    step: CapturedStep,
    outside: Outside,
    sizes: Sequence[int] = (),
    before: Captured | None = None,
    *,
    fused: bool = True,
) -> Sizes:
    """The step at every size: from `before` if it is the same program there, else from a trace at another size.

    That is twice the global batch: what can be traced for some examples can mostly be for twice as many, also where
    they are taken in groups, or the largest few of them; and it depends on no plan. If it cannot be, or is another
    program there, it is traced at the sizes that the plan has for it, one after the other.

    Args:
      sizes: how many examples the micro-batches hold.
      fused: whether normalizations stay one operation.
    Raises:
      CaptureError: the step cannot be traced at another size than the global batch, or is another program there.
    """
    batch = arguments.examples
    if before is not None and before.examples not in (batch, 0, 1):
        try:
            return pair(step.graph, step.calls, before.step.graph, before.step.calls, batch, before.examples)
        except UnlikeError:
            pass  # what the step takes from outside its arguments may have changed since
    failures: list[_Failure] = []
    for size in dict.fromkeys((2 * batch, *(size for size in sizes if 1 < size < batch))):
        try:
            other = capture(function, arguments, outside, size, fused=fused)
            return pair(step.graph, step.calls, other.graph, other.calls, batch, size)
        except WhaleError:
            raise
        except UnlikeError as unlike:
            lines = [line_of(each.trace, name) for name in unlike.nodes for each in (step, other)]
            failures.append(_Failure(size, unlike, f"traced for {batch} and for {size} examples, {unlike.why}", lines))
        except Exception as error:
            failures.append(_Failure(size, error, f"for {size} examples: {_text(error)}", [_line_of_error(error)]))
    raise _one_size_only(batch, failures) from failures[-1].error


class _Failure(NamedTuple):
    """Why a size does not serve as the second one."""

    size: int
    error: Exception
    text: str
    lines: list[Line]


def _one_size_only(batch: int, failures: Sequence[_Failure]) -> CaptureError:
    tried = " or ".join(str(failure.size) for failure in failures)
    lines = [line for failure in failures for line in failure.lines if line.number]
    if any(isinstance(failure.error, UnlikeError) for failure in failures):
        rule = "the step is another program for another batch size"
        way_out = (
            "Let no Python `if` or loop depend on the size of the batch (use tf.cond, tf.while_loop or operations over "
            "the batch), or use one replica and micro_batches=1."
        )
    else:
        rule = f"the step can be traced for {batch} examples, and not for {tried}"
        way_out = (
            f"Where the step holds the number {batch}, write -1, tf.shape(x)[0] or x.shape[0] in its place, or use one "
            "replica and micro_batches=1."
        )
    return CaptureError(
        rule,
        details=[*(failure.text for failure in failures), "two sizes give the step at that of every micro-batch"],
        at=list(dict.fromkeys(lines))[:SHOWN_LINES],
        way_out=way_out,
    )


def _converted(error: BaseException | None) -> Any:
    """What AutoGraph knows of an error in code that it converted, whose own traceback ends in TensorFlow."""
    while error is not None:
        if hasattr(error, "ag_error_metadata"):
            return error.ag_error_metadata
        error = error.__cause__ or error.__context__
    return None


def _text(error: Exception) -> str:
    converted = _converted(error)
    text = converted.cause_message if converted is not None else f"{type(error).__name__}: {error}"
    return str(text).strip().splitlines()[0]


def _line_of_error(error: Exception) -> Line:
    converted = _converted(error)
    frames = traceback.extract_tb(error.__traceback__)
    if converted is not None:
        stack = reversed(converted.translated_stack)  # innermost first
        frames = traceback.StackSummary.from_list(
            [(frame.filename, frame.lineno, frame.function_name, frame.code) for frame in stack]
        )
    try:
        return lines.user_line(frames)
    except (ValueError, IndexError):
        return Line("<unknown>", 0)
