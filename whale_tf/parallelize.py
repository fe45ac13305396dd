"""The compiler on one screen: record → translate → plan → rewrite → lower."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from whale_tf.annotate.devices import current_cluster
from whale_tf.capture.record import Position, Trace, line_of, record
from whale_tf.capture.translate import Step as Captured
from whale_tf.capture.translate import translate
from whale_tf.errors import CaptureError, InternalError
from whale_tf.ir import text
from whale_tf.ir.graph import Graph
from whale_tf.ir.verify import verify
from whale_tf.plan.layout import cut_batch, lay_out, read_scopes
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.roles import find_roles
from whale_tf.rewrite.bind import Binder
from whale_tf.rewrite.cut import Cut, cut
from whale_tf.rewrite.fold_random import fold_random
from whale_tf.run.compiled import Compiled, Parts
from whale_tf.run.signature import Arguments
from whale_tf.run.step import Options

DUMP_VARIABLE = "WHALE_TF_DUMP"


def compile_step(function: Callable[..., Any], arguments: Arguments, options: Options) -> Compiled:
    """Makes a step ready to run for one signature."""
    cluster = current_cluster()
    dump = Dumps(os.environ.get(DUMP_VARIABLE))
    name = getattr(function, "__name__", "step")

    def capture(examples: int) -> Captured:
        trace = record(function, arguments.rebuilt, arguments.specs(examples), name)
        return translate(trace, arguments.batch)

    sizes: tuple[tuple[int, ...], ...] = ((arguments.examples,),)
    examples = max(1, arguments.examples // options.micro_batches)
    while True:
        step = capture(examples)
        request = read_scopes(step.trace.opened)
        layout = lay_out(request, cluster, options.schedule)
        sizes = cut_batch(arguments.examples, layout.shares, options.micro_batches)
        if max(map(max, sizes)) == examples or not arguments.examples:
            break
        examples = max(map(max, sizes))
    dump("captured", step.graph)
    verify(step.graph, after="translate")
    smaller = {size: capture(size) for size in sorted({size for row in sizes for size in row} - {examples})}
    for size, other in smaller.items():
        _check_same(step, other, examples, size)
    roles = find_roles(step.graph)
    facts = Facts(
        request,
        layout,
        sizes,
        options.schedule,
        options.loss,
        {},
        next(((other.graph, size) for size, other in smaller.items()), None),
        lambda operation: line_of(step.trace, operation),
        step.trace.targets,
    )
    plan = make_plan(step.graph, roles, facts)
    how = Cut(plan.micro_batches > 1, plan.loss == "mean" and not plan.even, options.schedule == "zero_bubble")
    functions = {}
    for size, captured in {examples: step, **smaller}.items():
        parts = cut(captured.graph, roles, plan.stage_of, how)
        if plan.parts > 1:
            parts = {key: fold_random(part, size) for key, part in parts.items()}
        for key, part in parts.items():
            dump(f"cut-{key}-{size}", part.graph)
            verify(part.graph, after="cut")
        functions[size] = parts
    program = Binder(step.graph, roles, plan, functions).bind()
    dump("bound", program.main)
    verify(program.main, after="bind")
    return Compiled(
        Parts(
            plan,
            program,
            step.calls,
            step.functions,
            step.variables,
            step.captured,
            lambda outputs: _result(step.trace, outputs),
            lambda operation: line_of(step.trace, operation),
        )
    )


def _result(trace: Trace, outputs: Sequence[tf.Tensor]) -> Any:
    return tf.nest.map_structure(
        lambda leaf: outputs[leaf.index] if isinstance(leaf, Position) else leaf, trace.structure, expand_composites=True
    )


def _check_same(step: Captured, other: Captured, examples: int, size: int) -> None:
    """Traces at different sizes must be the same program."""
    left = {node.name: (node.op, node.inputs) for node in step.graph}
    right = {node.name: (node.op, node.inputs) for node in other.graph}
    if left != right:
        differing = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        raise CaptureError(
            "the step is another program for another batch size",
            details=[f"traced for {examples} and for {size} examples, {len(differing)} operations differ: {differing[:3]}"],
            at=[line_of(step.trace, name) for name in differing[:1]],
            way_out="Let the step not depend on the size of the batch, or use batches that divide evenly.",
        )


class Dumps:
    """Writes numbered graphs between passes, if a folder was asked for."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.count = 0

    def __call__(self, name: str, graph: Graph) -> None:
        if self.folder is not None:
            text.dump(graph, self.folder, self.count, name.replace("/", "-"))
            self.count += 1
