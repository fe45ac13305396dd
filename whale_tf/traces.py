"""Traces the step at the sizes of micro-batch that its layout asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whale_tf.annotate.subgroup import Opened
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import Restart, record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.errors import BatchError, WhaleError
from whale_tf.ir.functions import renamed
from whale_tf.ir.graph import Graph
from whale_tf.plan.layout import Layout, Request, cut_batch, lay_out, read_scopes
from whale_tf.plan.roles import find_roles
from whale_tf.rewrite.split_gradients import split_gradients
from whale_tf.rewrite.whole_batch import depends_on_size
from whale_tf.run.signature import Arguments, written_at
from whale_tf.run.step import Options
from whale_tf.start import current_cluster


@dataclass(frozen=True)
class Captures:
    """A step traced at each size of micro-batch, the largest first.

    Attributes:
      steps: the traces.
      examples: the sizes they were traced at.
      request: the user's scopes.
      layout: the devices they get.
      sizes: for each replica, how many examples each micro-batch holds.
      probe: the step at one more size, with that size, where outputs leave open which dims follow the batch.
    """

    steps: tuple[CapturedStep, ...]
    examples: tuple[int, ...]
    request: Request
    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    probe: tuple[CapturedStep, int] | None = None

    @property
    def all(self) -> tuple[CapturedStep, ...]:
        """Every trace, also one that only parts of may be taken from."""
        return (*self.steps, *([self.probe[0]] if self.probe else []))


def trace_at_sizes(fn: Callable[..., Any], arguments: Arguments, options: Options) -> Captures:
    """Traces the step at the sizes its layout asks for.

    How many replicas there are is known once the step has opened its replica scope. A trace that was begun at another
    size ends there and begins anew.
    """
    cluster = current_cluster()
    traced: dict[int, CapturedStep] = {}
    outside = Outside()

    def at(examples: int, on_open: Callable[[Opened], None] = lambda opened: None) -> CapturedStep:
        if examples not in traced:
            with _telling_the_size(examples, arguments.examples):
                trace = record(
                    fn,
                    arguments.rebuilt,
                    arguments.specs(examples),
                    getattr(fn, "__name__", "step"),
                    on_open,
                    examples=examples,
                )
            step = translate(trace, arguments.batch, examples, outside)
            traced[examples] = replace(step, graph=split_gradients(step.graph)) if options.loss == "sum" else step
        return traced[examples]

    def sizes_of(shares: Sequence[float], scope: Sequence[Opened]) -> tuple[tuple[int, ...], ...]:
        at = [written_at(fn)]
        return cut_batch(arguments.examples, shares, options.micro_batches, arguments.cut_names, at=at, scope=scope)

    def expect(opened: Opened) -> None:
        if opened.kind == "replica" and arguments.examples and not opened.parent:
            count = opened.count or len(cluster)
            shares = opened.shares or (1.0,) * count
            try:
                expected = max(map(max, sizes_of([share / sum(shares) for share in shares], [opened])))
            except BatchError:  # there may be fewer replicas, once the stages are known
                return
            if expected != guess and expected not in tried:
                raise Restart(expected)

    guess, tried = max(1, arguments.examples // options.micro_batches), set[int]()
    while True:
        tried.add(guess)
        try:
            step = at(guess, expect)
        except Restart as restart:
            guess = restart.args[0]
            continue
        request = read_scopes(step.trace.opened)
        layout = lay_out(request, cluster, options.schedule)
        sizes = sizes_of(layout.shares, [request.replica] if request.replica else [])
        distinct = sorted({size for row in sizes for size in row}, reverse=True)
        if distinct[0] in (guess, 0):
            break
        guess = distinct[0]
    others = [_apart(at(size), size) for size in distinct[1:]]
    probe = None
    if arguments.examples != distinct[0] and _open_about_size(step.graph, distinct[0]):
        probe = _probe(at, arguments.examples)
    return Captures((step, *others), tuple(distinct), request, layout, sizes, probe)


def _apart(step: CapturedStep, examples: int) -> CapturedStep:
    """The step with functions of its own: those of another size have the same names."""
    names = {name: f"{name}/at{examples}" for name in step.calls}
    calls = {names[name]: renamed(graph, names) for name, graph in step.calls.items()}
    return replace(step, graph=renamed(step.graph, names), calls=calls) if names else step


@contextlib.contextmanager
def _telling_the_size(examples: int, batch: int) -> Iterator[None]:
    """An error of the user's own code is told which batch size it met, if that is not the one of the call."""
    try:
        yield
    except WhaleError:
        raise
    except Exception as error:
        if examples != batch:
            error.add_note(
                f"whale_tf traced the step for a micro-batch of {examples} of the {batch} examples. "
                "If a fixed batch size is the cause, write -1, tf.shape(x)[0] or x.shape[0] in its place."
            )
        raise


def _open_about_size(graph: Graph, examples: int) -> bool:
    """Whether one size leaves open what follows the batch: outputs with dims, and constants as large as it is."""
    if any(len(graph.type_of(ref).shape) > 0 for ref in graph.outputs):
        return True
    return depends_on_size(graph, find_roles(graph, examples), examples)


def _probe(at: Callable[[int], CapturedStep], examples: int) -> tuple[CapturedStep, int] | None:
    """The step at one more size, which tells a per-example output from one that only happens to be as long.

    A step that can only be traced at the size it runs at is not probed: then dim 0 decides.
    """
    try:
        return _apart(at(examples), examples), examples
    except Exception:  # the user's own code at a size it never asked for
        return None
