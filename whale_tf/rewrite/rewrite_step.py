"""A captured step under its plan: all passes, in the order of the list in `whale_tf.rewrite`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whale_tf.ir.dumps import Dumps
from whale_tf.ir.graph import Graph
from whale_tf.plan.plan import Plan
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.shard_stage import Cutting
from whale_tf.plan.states import States
from whale_tf.rewrite import Passes
from whale_tf.rewrite.bind import bind
from whale_tf.rewrite.check import check
from whale_tf.rewrite.cut import Cut, Key, StageFunction, cut
from whale_tf.rewrite.fold_random import fold_random
from whale_tf.rewrite.hold_assignments import hold_assignments
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.reshard import Resharded, reshard
from whale_tf.rewrite.resize import at_size, resize
from whale_tf.rewrite.send_first import send_first
from whale_tf.rewrite.shard_stages import shard_stages
from whale_tf.rewrite.step_program import StepProgram

DUMP_VARIABLE = "WHALE_TF_DUMP"


@dataclass(frozen=True)
class Rewritten:
    """A step ready to be lowered.

    Attributes:
      program: what one process and those joined to it run.
      calls: what its functions call at each size of micro-batch.
    """

    step: StepProgram
    program: Program
    calls: Mapping[str, Graph]


def rewrite_step(
    states: States,
    facts: Callable[[Graph], Facts],
    sizes: tuple[tuple[int, ...], ...],
    fed: bool,
    process: int,
    dump: Dumps,
) -> Rewritten:
    """The step under its plan.

    Args:
      facts: of the step with the shapes of a micro-batch.
      fed: whether a process gets its own replicas' examples only.
    """
    passes = Passes(os.environ.get(DUMP_VARIABLE, ""))
    resharded = passes.run("reshard", reshard, states)
    graph, roles = resharded.graph, resharded.roles
    dump("reshard", graph, after="reshard")
    values = {ref: known.value for ref, known in states.known.items()}
    known = facts(at_size(graph, states, resharded.made_of, max(map(max, sizes))))
    plan = make_plan(graph, roles, values, known)
    how = Cut(plan.micro_batches > 1, plan.grids.splits_backward)
    functions = passes.run("cut", cut, graph, roles, plan.stage_of, how)
    for key, function in functions.items():
        dump(f"cut-{key}", function.graph, after="cut")
    variants, calls = _at_sizes(functions, states, resharded, plan, passes)
    cutting = Cutting(graph, roles, plan, states.sizes, known.request, known.line_of, {**known.calls, **calls})
    members, plan = passes.run(
        "shard", shard_stages, variants, cutting, lambda size: at_size(graph, states, resharded.made_of, size)
    )
    for size, variant in members.items():
        for key, function in variant.items():
            dump(f"{passes.ran[-1]}-{key}-{size}", function.graph, after=passes.ran[-1])
    step = StepProgram(graph, roles, plan, members, fed)
    program = passes.run("bind", bind, step, plan.layout.groups.of_process[process])
    dump("bind", program.main, after="bind")
    program = passes.run("send_first", send_first, program, step)
    dump("send_first", program.main, after="send_first")
    program = passes.run("hold_assignments", hold_assignments, program)
    dump("hold_assignments", program.main, after="hold_assignments")
    passes.run("check", check, step, states.sizes, program)
    return Rewritten(step, program, calls)


def _at_sizes(
    functions: Mapping[Key, StageFunction], states: States, resharded: Resharded, plan: Plan, passes: Passes
) -> tuple[dict[int, Mapping[Key, StageFunction]], dict[str, Graph]]:
    """The stage functions at each size of micro-batch, and the functions that these call."""
    variants: dict[int, Mapping[Key, StageFunction]] = {}
    calls: dict[str, Graph] = {}
    wide = plan.layout.wide
    for size in sorted({size for row in plan.sizes for size in row}, reverse=True):
        resized = {
            key: passes.run("resize", resize, function, states, resharded.made_of, size)
            for key, function in functions.items()
        }
        variants[size] = {
            key: passes.run("fold_random", fold_random, each.function, states, alike=key.stage in wide)
            if plan.parts > 1 or key.stage in wide
            else each.function
            for key, each in resized.items()
        }
        for each in resized.values():
            calls.update(each.calls)
    return variants, calls
