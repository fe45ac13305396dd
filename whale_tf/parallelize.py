"""The compiler on one screen: record → translate → plan → rewrite → lower."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import tensorflow as tf

from whale_tf.annotate.devices import current_cluster
from whale_tf.annotate.subgroup import Opened
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import Restart, Trace, composites, line_of, record
from whale_tf.capture.translate import CapturedStep, translate
from whale_tf.errors import BatchError, CaptureError, WhaleError
from whale_tf.ir import text
from whale_tf.ir.graph import Graph
from whale_tf.ir.verify import verify
from whale_tf.plan.composites import Composite
from whale_tf.plan.layout import Layout, Request, cut_batch, lay_out, read_scopes
from whale_tf.plan.losses import coupled_examples
from whale_tf.plan.plan import Plan
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.roles import Roles, find_roles
from whale_tf.plan.stages import assign_stages
from whale_tf.rewrite.bind import Binder, Variant
from whale_tf.rewrite.check import check
from whale_tf.rewrite.cut import Cut, Key, StageFunction, cut
from whale_tf.rewrite.fold_random import fold_random
from whale_tf.rewrite.hold_assignments import hold_assignments
from whale_tf.rewrite.split_gradients import split_gradients
from whale_tf.rewrite.tell_apart import tell_apart
from whale_tf.rewrite.whole_batch import depends_on_size, use_whole_batch
from whale_tf.run.compiled import Compiled, Parts
from whale_tf.run.signature import Arguments, written_at
from whale_tf.run.step import Options, Step

DUMP_VARIABLE = "WHALE_TF_DUMP"


@overload
def function(fn: Callable[..., Any]) -> Step: ...
@overload
def function(
    fn: None = None, *, micro_batches: int = 1, schedule: str = "1f1b", loss: str = "mean", whole: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Step]: ...


def function(
    fn: Callable[..., Any] | None = None,
    *,
    micro_batches: int = 1,
    schedule: str = "1f1b",
    loss: str = "mean",
    whole: Sequence[str] = (),
) -> Step | Callable[[Callable[..., Any]], Step]:
    """In the place of `tf.function`: makes a training step that runs over the devices its scopes ask for.

    The step is written for one device and takes the global batch. Tensors and arrays whose dim 0 is the batch are cut
    over replicas and micro-batches. Python numbers and other objects are constants, as in `tf.function`.

    Args:
      fn: the step.
      micro_batches: parts that each replica cuts its examples into; gradients are accumulated over them.
      schedule: `gpipe`, `1f1b`, `interleaved` or `zero_bubble`: the order of forward and backward over the stages.
      loss: what the loss is over the examples: `mean`, or `sum`. Gradients of parts are averaged by their share of
        the examples, or added.
      whole: names of arguments whose tensors are not cut.
    Raises:
      ScheduleError, PlanError: an option that is not known, at once; other errors come with the first call.
    """
    options = Options(micro_batches, schedule, loss, (whole,) if isinstance(whole, str) else tuple(whole))

    def make(fn: Callable[..., Any]) -> Step:
        options.check(fn)
        return Step(fn, options, functools.partial(compile_step, told=set()))

    return make if fn is None else make(fn)


def compile_step(fn: Callable[..., Any], arguments: Arguments, options: Options, told: set[str]) -> Compiled:
    """Makes a step ready to run for one signature; a warning that is in `told` is not repeated."""
    with _without_collection():
        return _compile(fn, arguments, options, told)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """A compiler makes many objects and drops few: collecting garbage meanwhile takes time that grows with their square."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compile(fn: Callable[..., Any], arguments: Arguments, options: Options, told: set[str]) -> Compiled:
    dump = Dumps(os.environ.get(DUMP_VARIABLE))
    captured = _capture(fn, arguments, options)
    step, examples = captured.steps[0], captured.examples
    dump("captured", step.graph)
    roles = find_roles(step.graph, examples[0])
    if captured.probe is not None and depends_on_size(step.graph, roles, examples[0]):
        graph = use_whole_batch(step.graph, roles, captured.probe[0])
        step, roles = replace(step, graph=graph), find_roles(graph, examples[0])
        dump("whole_batch", graph, after="use_whole_batch")
    plan = make_plan(step.graph, roles, _facts(captured, options))
    variants = {
        examples[0]: Variant(step.graph, roles, _cut(step.graph, roles, plan, plan.stage_of, examples[0], dump))
    }
    for size, each in zip(examples[1:], captured.steps[1:], strict=True):
        variants[size] = _variant(step.graph, each, captured, plan, size, dump)
    program = Binder(step.graph, roles, plan, variants).bind()
    dump("bound", program.main, after="bind")
    program = hold_assignments(program)
    check(step.graph, roles, plan, variants, program)
    dump("held", program.main, after="hold_assignments")
    averaged = plan.parts > 1 and plan.loss == "mean"
    for warning in _warnings(
        captured, coupled_examples(step.graph, roles, examples[0], step.trace.targets) if averaged else ()
    ):
        if warning not in told:
            warnings.warn(warning, stacklevel=2)
            told.add(warning)
    return Compiled(
        Parts(
            plan,
            program,
            {name: graph for each in captured.steps for name, graph in each.calls.items()},
            {name: body for each in captured.steps for name, body in each.functions.items()},
            step.variables,
            step.captured,
            lambda outputs: _result(step.trace, outputs),
            lambda operation: line_of(step.trace, operation),
            captured.steps,
        )
    )


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
    probe: tuple[Graph, int] | None = None


def _capture(fn: Callable[..., Any], arguments: Arguments, options: Options) -> Captures:
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
    others = [at(size) for size in distinct[1:]]
    probe = None
    if arguments.examples != distinct[0] and _open_about_size(step.graph, distinct[0]):
        probe = _probe(at, arguments.examples)
    return Captures((step, *others), tuple(distinct), request, layout, sizes, probe)


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
    """Whether one size leaves open what follows the batch: outputs with dims, and constants that are as large as it is."""
    if any(len(graph.type_of(ref).shape) > 0 for ref in graph.outputs):
        return True
    return depends_on_size(graph, find_roles(graph, examples), examples)


def _probe(at: Callable[[int], CapturedStep], examples: int) -> tuple[Graph, int] | None:
    """The step at one more size, which tells a per-example output from one that only happens to be as long.

    A step that can only be traced at the size it runs at is not probed: then dim 0 decides.
    """
    try:
        return at(examples).graph, examples
    except Exception:  # the user's own code at a size it never asked for
        return None


def _facts(captured: Captures, options: Options) -> Facts:
    step = captured.steps[0]
    other = captured.probe
    if other is None and len(captured.steps) > 1:
        other = captured.steps[1].graph, captured.examples[1]
    devices = {name: index for index, name in enumerate(captured.layout.devices)}
    homes = {name: devices.get(getattr(variable.handle, "device", ""), 0) for name, variable in step.variables.items()}
    return Facts(
        captured.request,
        captured.layout,
        captured.sizes,
        options.schedule,
        options.loss,
        homes,
        other,
        lambda operation: line_of(step.trace, operation),
        step.trace.targets,
        tuple(Composite(*each) for each in composites(step.trace)),
    )


def _variant(main: Graph, step: CapturedStep, captured: Captures, plan: Plan, size: int, dump: Dumps) -> Variant:
    """The step at another size of micro-batch, cut as the plan says."""
    graph = tell_apart(main, step.graph, find_roles(step.graph, size), size)
    dump(f"tell_apart-{size}", graph, after="tell_apart")
    roles = find_roles(graph, size)
    numbers = {scope.key: index for index, scope in enumerate(read_scopes(step.trace.opened).stages)}
    stage_of = assign_stages(
        graph, roles, numbers, len(plan.layout.stages), lambda operation: line_of(step.trace, operation)
    )
    _refuse_another_program(main, graph, captured, plan, size)
    return Variant(graph, roles, _cut(graph, roles, plan, stage_of, size, dump))


def _cut(
    graph: Graph, roles: Roles, plan: Plan, stage_of: Mapping[str, int], size: int, dump: Dumps
) -> Mapping[Key, StageFunction]:
    mean = plan.loss == "mean"
    how = Cut(plan.micro_batches > 1, mean and not plan.even, plan.schedule == "zero_bubble", mean and plan.parts > 1)
    parts = cut(graph, roles, stage_of, how)
    for key, part in parts.items():
        dump(f"cut-{key}-{size}", part.graph, after="cut")
    if plan.parts > 1:
        parts = {key: fold_random(part, size) for key, part in parts.items()}
        for key, part in parts.items():
            dump(f"fold_random-{key}-{size}", part.graph, after="fold_random")
    return parts


def _warnings(captured: Captures, varying: Iterable[str]) -> Iterator[str]:
    layout, request = captured.layout, captured.request
    for name in varying:
        yield (
            f"'{name}' takes examples together inside the loss, and each micro-batch has only its own: the step trains with "
            f"other numbers than one device (at {line_of(captured.steps[0].trace, name)})"
        )
    if layout.idle and request.stages and request.replica is None:
        used = {place for row in layout.places for place in row}
        idle = [name.rsplit("device:")[-1] for index, name in enumerate(layout.devices) if index not in used]
        yield f"{len(idle)} devices are left idle ({', '.join(idle)}): put replica() around the stages to use them"


def _result(trace: Trace, outputs: Sequence[tf.Tensor]) -> Any:
    remaining = iter(outputs)
    leaves = tf.nest.flatten(trace.structure, expand_composites=True)
    values = [next(remaining) if isinstance(leaf, tf.Tensor) else leaf for leaf in leaves]
    return tf.nest.pack_sequence_as(trace.structure, values, expand_composites=True)


def _refuse_another_program(main: Graph, other: Graph, captured: Captures, plan: Plan, size: int) -> None:
    """Traces at different sizes may differ inside; they must give the same gradients, outputs and written variables."""

    def given(graph: Graph) -> set[str]:
        names = {node.name for node in graph if node.op in ("Gradient", "Write")}
        inner = {ref.node for ref in plan.merges if ref not in main.outputs}
        return names | {name for name in inner if name in graph}

    differing = sorted(given(main) ^ given(other))
    if differing or len(main.outputs) != len(other.outputs):
        where = ", ".join(differing[:3]) or "outputs"
        lines = [line_of(each.trace, name) for name in differing[:1] for each in captured.steps]
        raise CaptureError(
            "the step is another program for another batch size",
            details=[f"traced for {captured.examples[0]} and for {size} examples, it differs in {where}"],
            at=[line for line in lines if line.number][:1],
            way_out="Let the step not depend on the size of the batch, or use batches that divide evenly.",
        )


class Dumps:
    """Verifies each graph between passes, and writes it, numbered, if a folder was asked for."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.count = 0

    def __call__(self, name: str, graph: Graph, *, after: str = "translate") -> None:
        if self.folder is not None:
            text.dump(graph, self.folder, self.count, name.replace("/", "-"))
            self.count += 1
        verify(graph, after=after)
