"""Proves on the bound program, before its first step, what a step over several devices must keep.

    once       every operation of the user's step is in one stage function or once in the main graph, or is a pure copy
    calls      every stage function is called once for each micro-batch, with that micro-batch's values
    gradients  every micro-batch of every replica of the program reaches every gradient once, with its share of examples
    order      Send and Recv pair up, nothing crosses a device without them, the calls of a device are in the schedule's
               order, and nothing waits for itself

It reads the program back and calls neither `cut` nor `bind` nor `combine`. What it takes on trust is what they share:
the keys of stage functions, the labels of collectives, and what `StepProgram` says of which nodes run once and where.
Time is linear in nodes and edges, where each member of a collective has an edge from all members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from whale_tf.errors import InternalError
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, Graph, Node, Ref
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.answers import RANDOM
from whale_tf.plan.roles import Roles
from whale_tf.plan.rules import shape_operands
from whale_tf.plan.states import FREE
from whale_tf.rewrite.check_calls import Calls
from whale_tf.rewrite.check_transfers import faulty_transfers
from whale_tf.rewrite.check_values import Correspondence
from whale_tf.rewrite.cut import Key, StageFunction
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import Functions, StepProgram

_SHOWN_OFFENDERS = 20


def check(step: StepProgram, sizes: Sizes, program: Program) -> None:
    """Refuses a program that is not the user's step under its plan.

    Args:
      step: the step as it was cut.
      sizes: what it is at other sizes.
      program: what `bind` made of it for some groups of replicas; `ir.verify` has accepted its graphs. What goes on
        between these and other groups is checked as far as it is seen here.
    Raises:
      InternalError: with the offenders, and how many there are.
    """
    graph, roles, variants = step.graph, step.roles, step.variants
    offenders = list(faulty_transfers(step, program))
    needed = [name for name in graph.nodes if name in step.needed]
    for size, variant in variants.items():
        variant = {key: function.whole or function for key, function in variant.items()}
        offenders += _wrong_stages(graph, roles, variant, needed, f" for {size} examples" if len(variants) > 1 else "")
        for function in variant.values():
            offenders += _wrong_inputs(graph, function, sizes, size)
    calls = Calls(step, program)
    offenders += calls.faults()
    correspondence = Correspondence(calls)
    offenders += correspondence.faults()
    once = [graph[name] for name in needed if not roles.per_micro_batch(name)]
    offenders += _wrong_copies(once, step, program, correspondence.images, calls.groups)
    if not offenders:
        return
    details = offenders[:_SHOWN_OFFENDERS]
    if len(offenders) > len(details):
        details.append(f"and {len(offenders) - len(details)} more")
    places = "1 place" if len(offenders) == 1 else f"{len(offenders)} places"
    raise InternalError(
        f"the program is not the step it was made from, in {places}",
        details=details,
        way_out="This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes.",
    )


def _wrong_stages(graph: Graph, roles: Roles, functions: Functions, needed: Iterable[str], size: str) -> Iterator[str]:
    """Operations that run per micro-batch and are not in exactly one function; others that are in one."""
    where: dict[str, dict[Key, None]] = {}
    for key, function in functions.items():
        for node in function.graph:
            if node.name in graph and node.op != "Argument":
                where.setdefault(node.name, {})[key._replace(first=False)] = None
    for name in needed:
        node, keys = graph[name], list(where.get(name, ()))
        if node.op in BOUNDARY_OPS or node.op in ALIAS_OPS or node.op == "Piece":
            continue
        if roles.per_micro_batch(name):
            if len(keys) != 1:
                yield f"{_title(node)} runs per micro-batch and is in {_listed(keys)}{size}"
            elif name in graph.effects and name not in functions[keys[0]].graph.effects:
                yield f"{_title(node)} is an effect of the step and none of {keys[0]}{size}"
        elif keys and (node.stateful or roles.phase[name] != FREE):
            yield f"{_title(node)} runs once per step and is in {_listed(keys)}{size}"


def _wrong_inputs(graph: Graph, function: StageFunction, sizes: Sizes, size: int) -> Iterator[str]:
    """Operations of a stage function that take something else than in the step; results that are another tensor."""
    for node in function.graph:
        target = graph.nodes.get(node.name)
        if target is None or target.op in RANDOM or node.op == "Argument":
            continue
        scaled = (target.op, node.op) in (("Scale", "Mul"), ("Shift", "AddV2"))
        if not scaled and (node.op != target.op or len(node.inputs) != len(target.inputs)):
            yield f"{_title(target)} is {node.op} with {len(node.inputs)} inputs in {function.key}"
            continue
        for position, (given, wanted) in enumerate(zip(node.inputs, target.inputs, strict=False)):
            if _stands_for(graph, function, given, wanted) or _says_size(
                function, given, target, position, sizes, size
            ):
                continue
            yield f"input {position} of {_title(target)} is '{wanted}' in the step and '{given}' in {function.key}"
    given_count, results, sums = len(function.graph.outputs), len(function.results), len(function.sums)
    if given_count != results + sums:
        yield f"{function.key} gives {given_count} tensors for {results} results and {sums} sums"
    for given, wanted in zip(function.graph.outputs, function.results, strict=False):
        if not _stands_for(graph, function, given, wanted):
            yield f"result '{wanted}' of {function.key} is '{given}'"


def _stands_for(graph: Graph, function: StageFunction, given: Ref, wanted: Ref) -> bool:
    """Whether a tensor of the function is that tensor of the step: itself, or an argument that brings it."""
    node = function.graph[given.node]
    if node.op != "Argument":
        return given == wanted
    return bool(function.arguments[node.attrs["index"]].ref == wanted)


def _says_size(function: StageFunction, given: Ref, target: Node, position: int, sizes: Sizes, size: int) -> bool:
    """Whether a constant says a shape, or how many turns a loop takes, as it is at this size."""
    node = function.graph[given.node]
    says = position in shape_operands(target.op) or bool(functions_of(target))
    if node.op != "Const" or not says or target.name not in sizes.graph:
        return False
    wanted = sizes.operand_at(target.name, position, size)
    return wanted is not None and bool(tuple(wanted.ravel().tolist()) == node.attrs["value"])


def _wrong_copies(
    once: Iterable[Node],
    step: StepProgram,
    program: Program,
    images: Mapping[str, Mapping[str, None]],
    groups: Sequence[int],
) -> Iterator[str]:
    """Operations of the main graph that are there too often, not at all, or for nothing.

    What has no effect is once in each group of replicas.
    """
    somewhere = {node.name for function in step.functions.values() for node in function.graph}
    for node in once:
        copies = list(images.get(node.name, ()))
        if node.op in BOUNDARY_OPS or node.op in ALIAS_OPS:
            continue
        if step.runs_once(node.name) or not step.copyable(node.name):
            everywhere = node.name in step.needed_everywhere
            wanted = len(groups) if everywhere else int(0 in groups)
            processes = {program.process_of(program.main[copy]) for copy in copies}
            if len(copies) != wanted or len(processes) != len(copies):
                yield f"{_title(node)} runs once per step, and is {len(copies)} times in the main graph: {copies}"
        elif not copies and node.name not in somewhere and (0 in groups or node.name in step.needed_everywhere):
            yield f"{_title(node)} is needed and nowhere in the program"
    known = {image for copies in images.values() for image in copies}
    for node in program.main:
        if node.op in ("Merge", "Piece", "Scale", "Shift"):
            yield f"{_title(node)} is a change of state, and stands in the main graph as it is"
        if node.stateful and node.name not in known:
            yield f"{_title(node)} of the main graph has effects and stands for no operation of the step"


def _listed(keys: list[Key]) -> str:
    if not keys:
        return "no stage function"
    return f"{len(keys)} stage function{'s' * (len(keys) > 1)} ({', '.join(map(str, keys))})"


def _title(node: Node) -> str:
    return f"'{node.name}' ({node.op})"
