"""The compiler on one screen: record → translate → plan → rewrite → lower."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import tensorflow as tf

from whale_tf.capture.record import Trace, composites, line_of
from whale_tf.capture.translate import CapturedStep
from whale_tf.errors import CaptureError
from whale_tf.ir.dumps import Dumps
from whale_tf.ir.graph import Graph
from whale_tf.plan.composites import Composite
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
from whale_tf.rewrite.send_first import send_first
from whale_tf.rewrite.tell_apart import tell_apart
from whale_tf.rewrite.whole_batch import depends_on_size, use_whole_batch
from whale_tf.run.away import may_be_away, named_only, share_variables
from whale_tf.run.communicator import next_ids
from whale_tf.run.compiled import Compiled, Parts
from whale_tf.run.feed import digest
from whale_tf.run.processes import World, agree, digest_of, program_text, tell_failure
from whale_tf.run.signature import Arguments
from whale_tf.run.step import Options, Step
from whale_tf.start import current_world
from whale_tf.traces import Captures, trace_at_sizes

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
        return Step(fn, options, functools.partial(compile_step, told=set()), current_world)

    return make if fn is None else make(fn)


def compile_step(fn: Callable[..., Any], arguments: Arguments, options: Options, told: set[str]) -> Compiled:
    """Makes a step ready to run for one signature; a warning that is in `told` is not repeated."""
    world, name = current_world(), getattr(fn, "__name__", "step")
    with _without_collection(), named_only():
        try:
            graph, parts = _compile(fn, arguments, options, told, world)
        except Exception as error:
            if world is not None:
                tell_failure(world, name, error)
            raise
        if world is not None:
            _meet(world, name, arguments, graph, parts)
        return Compiled(parts)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """A compiler makes many objects and drops few; collecting meanwhile takes time that grows with their square."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()  # what was made is old by now: the next small collection need not go through all of it
            gc.unfreeze()
            gc.enable()


def _compile(
    fn: Callable[..., Any], arguments: Arguments, options: Options, told: set[str], world: World | None
) -> tuple[Graph, Parts]:
    """The step's graph, and all that is needed to run it."""
    dump = Dumps(os.environ.get(DUMP_VARIABLE))
    captured = trace_at_sizes(fn, arguments, options)
    step, examples = captured.steps[0], captured.examples
    dump("captured", step.graph)
    roles = find_roles(step.graph, examples[0])
    if captured.probe is not None and depends_on_size(step.graph, roles, examples[0]):
        graph = use_whole_batch(step.graph, roles, captured.probe[0].graph)
        step, roles = replace(step, graph=graph), find_roles(graph, examples[0])
        dump("whole_batch", graph, after="use_whole_batch")
    plan = make_plan(step.graph, roles, _facts(captured, options))
    variants = {
        examples[0]: Variant(step.graph, roles, _cut(step.graph, roles, plan, plan.stage_of, examples[0], dump))
    }
    for size, each in zip(examples[1:], captured.steps[1:], strict=True):
        variants[size] = _variant(step.graph, each, captured, plan, size, dump)
    program = Binder(step.graph, roles, plan, variants, arguments.fed).bind()
    dump("bound", program.main, after="bind")
    program = hold_assignments(send_first(program))
    check(step.graph, roles, plan, variants, program)
    dump("held", program.main, after="hold_assignments")
    averaged = plan.parts > 1 and plan.loss == "mean"
    for warning in _warnings(
        captured, coupled_examples(step.graph, roles, examples[0], step.trace.targets) if averaged else ()
    ):
        if warning not in told:
            warnings.warn(warning, stacklevel=2)
            told.add(warning)
    parts = Parts(
        plan,
        program,
        {name: graph for each in captured.all for name, graph in each.calls.items()},
        step.variables,
        step.captured,
        lambda outputs: _result(step.trace, outputs),
        lambda operation: line_of(step.trace, operation),
        captured.all,
        world,
        getattr(fn, "__name__", "step"),
    )
    return step.graph, parts


def _meet(world: World, name: str, arguments: Arguments, graph: Graph, parts: Parts) -> None:
    """Agrees with the other processes on what will run, and gives all the first one's variables."""

    def text() -> str:
        return program_text(graph, parts.calls)

    captured = [tensor for tensor in parts.outside if tensor.dtype not in (tf.resource, tf.variant)]
    specs = zip(arguments.names, arguments.specs(arguments.examples), strict=True)
    shapes = [f"{name} {list(spec.shape)}" for name, spec in specs]
    facts = {
        "inputs": ", ".join(shapes) + (", fed" if arguments.fed else ""),
        "layout": str(parts.plan.layout),
        "variables": ", ".join(parts.variables),
        "tensors from outside the step": digest(captured),
        "numbers for messages": f"from {next_ids(0)} on",
        "graph": digest_of(text()),
        "plan": parts.plan.fingerprint[:16],
        "program": digest_of(program_text(parts.program.main, parts.calls)),
    }
    agree(world, name, facts, text)
    share_variables(world, parts.variables.values())


def _facts(captured: Captures, options: Options) -> Facts:
    step = captured.steps[0]
    other = (captured.probe[0].graph, captured.probe[1]) if captured.probe else None
    if other is None and len(captured.steps) > 1:
        other = captured.steps[1].graph, captured.examples[1]
    devices = {name: index for index, name in reversed(list(enumerate(captured.layout.devices)))}  # the first process's
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
        frozenset(name for name, variable in step.variables.items() if may_be_away(variable)),
    )


def _variant(main: Graph, step: CapturedStep, captured: Captures, plan: Plan, size: int, dump: Dumps) -> Variant:
    """The step at another size of micro-batch, cut as the plan says."""
    graph = tell_apart(main, step.graph, find_roles(step.graph, size), size)
    dump(f"tell_apart-{size}", graph, after="tell_apart")
    roles = find_roles(graph, size)
    stage_of = assign_stages(
        graph,
        roles,
        captured.request.stage_of_scope,
        len(plan.layout.stages),
        lambda operation: line_of(step.trace, operation),
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
            f"'{name}' takes examples together inside the loss, and each micro-batch has only its own: the step trains "
            f"with other numbers than one device (at {line_of(captured.steps[0].trace, name)})"
        )
    if layout.idle and request.stages and request.replica is None:
        used = {place for row in layout.places for place in row}
        idle = [layout.label(index) for index in range(len(layout.devices)) if index not in used]
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
