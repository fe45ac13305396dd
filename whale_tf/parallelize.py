"""The compiler: capture → states → reshard → plan → cut → bind → check, in `_compile` and `rewrite_step`."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, overload

import tensorflow as tf

from whale_tf.annotate.devices import advise_devices
from whale_tf.capture.outside import Outside
from whale_tf.capture.record import Trace, line_of
from whale_tf.capture.sized import Captured, at_every_size, at_one_size, capture_first
from whale_tf.capture.translate import CapturedStep
from whale_tf.errors import Line, PlanError
from whale_tf.ir.dumps import Dumps
from whale_tf.ir.graph import Graph
from whale_tf.plan.cautions import Caution, caution_accepted, caution_gathered, caution_idle, caution_uncut
from whale_tf.plan.choose import choose
from whale_tf.plan.coupling import GATHER_BYTES, Coupling, resolve
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import Layout, fit_batch, lay_out
from whale_tf.plan.losses import refuse_wrong_losses
from whale_tf.plan.one_part import undivided
from whale_tf.plan.planner import Facts
from whale_tf.plan.request import Request, read_scopes
from whale_tf.plan.states import States
from whale_tf.plan.strategy import Strategy, refuse_wrong
from whale_tf.rewrite.program import BETWEEN_GROUPS
from whale_tf.rewrite.rewrite_step import DUMP_VARIABLE, rewrite_step
from whale_tf.run.away import may_be_away, named_only, share_variables
from whale_tf.run.compiled import Compiled
from whale_tf.run.feed import digest
from whale_tf.run.parts import Parts
from whale_tf.run.processes import World, agree, digest_of, program_text, tell_failure
from whale_tf.run.reference import Reference
from whale_tf.run.signature import Arguments, written_at
from whale_tf.run.step import Options, Step
from whale_tf.run.value_check import Checked
from whale_tf.start import Session, current

CHECK_VARIABLE = "WHALE_TF_CHECK"


@overload
def function(fn: Callable[..., Any]) -> Step: ...
@overload
def function(
    fn: None = None,
    *,
    strategy: Strategy | str | os.PathLike[str] | None = None,
    micro_batches: int | None = None,
    schedule: str | Grids | None = None,
    coupling: str | None = None,
    batch_norm: str | None = None,
    accept: Sequence[str] = (),
    gather_bytes: int | None = None,
    loss: str | None = None,
    whole: Sequence[str] = (),
    verify_first: bool = False,
) -> Callable[[Callable[..., Any]], Step]: ...


def function(
    fn: Callable[..., Any] | None = None,
    *,
    strategy: Strategy | str | os.PathLike[str] | None = None,
    micro_batches: int | None = None,
    schedule: str | Grids | None = None,
    coupling: str | None = None,
    batch_norm: str | None = None,
    accept: Sequence[str] = (),
    gather_bytes: int | None = None,
    loss: str | None = None,
    whole: Sequence[str] = (),
    verify_first: bool = False,
) -> Step | Callable[[Callable[..., Any]], Step]:
    """In the place of `tf.function`: makes a training step that runs over the devices its scopes ask for.

    The step is written for one device and takes the global batch. Tensors and arrays whose dim 0 is the batch are cut
    over replicas and micro-batches. Python numbers and other objects are constants, as in `tf.function`.

    Args:
      fn: the step.
      strategy: what is decided about it, or a file that holds what a strategy prints. What it leaves open, the options
        below and the step's scopes say; it counts for more than the scopes.
      micro_batches: parts that each replica cuts its examples into (1); gradients are accumulated over them.
      schedule: the order of forward and backward over the stages: `gpipe`, `1f1b` (which it is by default),
        `interleaved` or `zero_bubble`; or the order of actions on each device of a replica, as `step.schedule` has it.
      coupling: `exact` computes over the global batch what relates examples of several parts to each other, also in the
        middle of the step. `auto`, the default, does so where it is a total of few bytes and there is one micro-batch,
        takes the statistics of BatchNormalization over each part, and refuses the rest.
      batch_norm: `global` takes the statistics of BatchNormalization over the global batch, `local` over each part.
      accept: operations, kinds of operation (`Mean`) or lines (`train.py:14`) of which each part's own value is taken.
      gather_bytes: how many bytes of examples are brought to one device, at most, for what is computed once (256 MiB).
      loss: `mean` or `sum`: what the loss is over the examples. It need not be said; where it is, it is checked.
      whole: names of arguments whose tensors are not cut.
      verify_first: whether the first call with inputs of some shapes is first verified as `step.verify` does; if its
        numbers are not those of one device, an error says which, and nothing has changed.
    Raises:
      ScheduleError, PlanError: an option that cannot be, or contradicts the strategy, at once; other errors come with
        the first call.
    """
    given = strategy if isinstance(strategy, Strategy) or strategy is None else Strategy.read(strategy)
    said = {
        "micro_batches": micro_batches,
        "schedule": schedule,
        "coupling": coupling,
        "batch_norm": batch_norm,
        "accept": accept,
        "gather_bytes": gather_bytes,
    }
    options = Options(loss, (whole,) if isinstance(whole, str) else tuple(whole), verify_first)

    def make(fn: Callable[..., Any]) -> Step:
        at = [written_at(fn)]
        refuse_wrong(said, at)
        options.check(fn)
        decided = (given or Strategy()).beside(Strategy(**said), at)  # type: ignore[arg-type]  # refuse_wrong
        return Step(fn, options, functools.partial(Compiler, decided, options), current)

    return make if fn is None else make(fn)


@dataclass(frozen=True)
class Compiler:
    """Makes one step ready to run, for one signature after the other.

    Attributes:
      strategy: what is decided before the step is traced.
      told: warnings that are not repeated; added to.
      captured: for each kind of arguments the step at a size that it was traced at; added to.
    """

    strategy: Strategy
    options: Options
    told: set[str] = field(default_factory=set)
    captured: dict[Hashable, Captured] = field(default_factory=dict)

    def __call__(self, fn: Callable[..., Any], arguments: Arguments) -> Compiled:
        """The step for one signature, on the devices that are now."""
        return compile_step(fn, arguments, self, current())


def compile_step(fn: Callable[..., Any], arguments: Arguments, compiler: Compiler, session: Session) -> Compiled:
    """Makes a step ready to run for one signature."""
    world, name, checked = session.world, getattr(fn, "__name__", "step"), _checks_values()
    with _without_collection(), named_only():
        try:
            parts, states = _compile(fn, arguments, compiler, session)
        except Exception as error:
            if world is not None:
                tell_failure(world, name, error)
            raise
        if world is not None:
            _meet(world, name, arguments, parts)
        return Checked(parts, states) if checked else Compiled(parts)


def _checks_values() -> bool:
    """Whether every value of a step is compared with one device's.

    Raises:
      PlanError: the environment asks for something else.
    """
    asked = os.environ.get(CHECK_VARIABLE, "")
    if asked not in ("", "values"):
        raise PlanError(
            f"{CHECK_VARIABLE} must be 'values', or empty",
            details=[f"it is {asked!r}"],
            way_out=f"Set {CHECK_VARIABLE}=values to compare every value of a step with one device's, or unset it.",
        )
    return asked == "values"


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
    fn: Callable[..., Any], arguments: Arguments, compiler: Compiler, session: Session
) -> tuple[Parts, States]:
    """All that is needed to run a step, and the states of its values."""
    dump = Dumps(os.environ.get(DUMP_VARIABLE))
    before = compiler.captured.get(arguments.family)
    outside = before.outside if before is not None else Outside()
    fused = compiler.strategy.coupling != "exact" and compiler.strategy.batch_norm != "global"
    step = capture_first(fn, arguments, outside, fused=fused)
    dump("captured", step.graph)
    line = functools.partial(line_of, step.trace)
    request = read_scopes(step.trace.opened)
    strategy = choose(compiler.strategy, request, session.cluster, session.advise)
    assert strategy.micro_batches is not None and strategy.schedule is not None  # choose leaves neither open
    layout, sizes = fit_batch(
        lay_out(strategy, session.cluster),
        strategy.micro_batches,
        arguments.examples,
        arguments.cut_names,
        at=[written_at(fn)],
        scope=[str(request.replica)] if request.replica else [],
    )
    if layout.replicas * len(sizes[0]) > 1:
        held = sorted({*chain.from_iterable(sizes)}, reverse=True)
        sized = at_every_size(fn, arguments, step, outside, held, before, fused=fused)
        compiler.captured[arguments.family] = Captured(step, arguments.examples, outside)
        states, accepted = resolve(sized, _coupling(strategy, len(sizes[0]), line))
        if compiler.options.loss is not None:
            refuse_wrong_losses(states, compiler.options.loss, step.trace.targets, line)
    else:
        states, accepted = undivided(at_one_size(step, arguments.examples)), ()
    facts = functools.partial(_facts, step, request=request, layout=layout, sizes=sizes, schedule=strategy.schedule)
    rank = session.world.rank if session.world is not None else 0
    rewritten = rewrite_step(states, facts, sizes, arguments.fed, rank, dump)
    advice = "" if session.chosen else advise_devices(2)
    _warn(caution_accepted(accepted, line, written_at(fn)), compiler.told)
    _warn(caution_gathered(rewritten.step.plan, rewritten.step.graph, line), compiler.told)
    _warn(caution_uncut(layout, request, written_at(fn)), compiler.told)
    _warn(caution_idle(layout, request, compiler.strategy, advice, written_at(fn)), compiler.told)
    return (
        Parts(
            rewritten.step,
            rewritten.program,
            {**step.calls, **rewritten.calls},
            step.variables,
            outside.tensors,
            lambda outputs: _result(step.trace, outputs),
            line,
            (step,),
            session.world,
            getattr(fn, "__name__", "step"),
            Reference(step.trace.graph, step.trace.arguments, step.trace.outputs, step.graph),
            strategy,
        ),
        states,
    )


def _coupling(strategy: Strategy, micro_batches: int, line: Callable[[str], Line]) -> Coupling:
    most = GATHER_BYTES if strategy.gather_bytes is None else strategy.gather_bytes
    exact, statistics = strategy.coupling == "exact", strategy.batch_norm == "global"
    return Coupling(exact, strategy.accept, micro_batches, most, line, statistics)


def _meet(world: World, name: str, arguments: Arguments, parts: Parts) -> None:
    """Agrees with the other processes on what will run, and gives all the first one's variables."""

    def text() -> str:
        return program_text(parts.step.graph, parts.calls)

    captured = [tensor for tensor in parts.outside if tensor.dtype not in (tf.resource, tf.variant)]
    specs = zip(arguments.names, arguments.specs(arguments.examples), strict=True)
    shapes = [f"{name} {list(spec.shape)}" for name, spec in specs]
    facts = {
        "inputs": ", ".join(shapes) + (", fed" if arguments.fed else ""),
        "layout": str(parts.plan.layout),
        "variables": ", ".join(parts.variables),
        "tensors from outside the step": digest(captured),
        "graph": digest_of(text()),
        "plan": parts.plan.fingerprint[:16],
        "collectives": digest_of(_collectives_text(parts.program.main)),
        "functions": digest_of("\n".join(program_text(each.graph, {}) for each in parts.step.functions.values())),
    }
    agree(world, name, facts, text)
    share_variables(world, parts.variables.values())


def _collectives_text(main: Graph) -> str:
    """What goes on between groups of replicas, which must be the same in all of them."""
    nodes = [node for node in main if node.op in BETWEEN_GROUPS]
    return "\n".join(sorted(f"{node.attrs['label']!r} {node.op} {sorted(node.attrs.items())}" for node in nodes))


def _facts(
    step: CapturedStep,
    micro: Graph,
    request: Request,
    layout: Layout,
    sizes: tuple[tuple[int, ...], ...],
    schedule: str | Grids,
) -> Facts:
    devices = {name: index for index, name in reversed(list(enumerate(layout.devices)))}  # the first process's
    homes = {name: devices.get(getattr(variable.handle, "device", ""), 0) for name, variable in step.variables.items()}
    return Facts(
        request,
        layout,
        sizes,
        schedule,
        homes,
        lambda operation: line_of(step.trace, operation),
        step.trace.targets,
        micro,
        frozenset(name for name, variable in step.variables.items() if may_be_away(variable)),
        step.calls,
    )


def _warn(warned: Iterable[Caution], told: set[str]) -> None:
    """Warns of what was not told before, as if the user's line did."""
    for line, text in warned:
        if text not in told:
            warnings.warn_explicit(text, UserWarning, line.file, line.number)
            told.add(text)


def _result(trace: Trace, outputs: Sequence[tf.Tensor]) -> Any:
    remaining = iter(outputs)
    leaves = tf.nest.flatten(trace.structure, expand_composites=True)
    values = [next(remaining) if isinstance(leaf, tf.Tensor) else leaf for leaf in leaves]
    return tf.nest.pack_sequence_as(trace.structure, values, expand_composites=True)
