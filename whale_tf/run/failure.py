"""A failure inside a running step, told in the user's terms.

TensorFlow's message names functions and nodes of the program that ran:

    {{function_node whale_0_main}} {{function_node whale_0_1F}} indices[0] = 100 is not in [0, 60)
         [[{{node GatherV2}}]]           the operation
         [[r1/1F2]]                      the call it failed in: replica 1, stage 1, forward of micro-batch 2

Of a call that was inlined, what Grappler made anew has the call before its name, and no function:

         [[{{node r1/0F0/dense/MatMul}}]]        also {{node Func/r1/0F0/output/_3}}: what the call took or gave

If several devices failed, there is such a block for each, after `(0) INVALID_ARGUMENT:`; those that were only
cancelled are passed over.

With several processes, an operation that waits for another one fails when the run has ended: what counts then is why it
has, which the hub tells, perhaps a moment later.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from whale_tf.errors import Line, RunError
from whale_tf.ir.graph import Graph, Node
from whale_tf.rewrite.program import Program
from whale_tf.run.parts import Parts
from whale_tf.world import Member

ROOT = re.compile(r"^  \(\d+\) ([A-Z_]+): ", re.MULTILINE)
NODE = re.compile(r"\{\{node ([^}]+)\}\}")
ACTION = r"r(?P<replica>\d+)/(?P<stage>\d+)(?P<kind>[FBIW])(?P<i>\d+)(?:p(?P<phase>\d+))?"
CALL = re.compile(r"\[\[" + ACTION + r"\]\]")
INLINED = re.compile(r"\{\{(?:colocation_)?node (?:Func/)?" + ACTION + r"/(?P<node>[^}]+)\}\}")
FUNCTION = re.compile(r"\{\{function_node whale_\d+_(?P<stage>\d+)(?P<kind>[FBIW])(?:p(?P<phase>\d+))?")
# What an operation says that others have ended; TensorFlow gives it another class, so that it is not taken for its own.
FROM_OTHERS = re.compile("originally returned UnavailableError|originally returned AbortedError")
WAITS = re.compile(r"^  rank \d+: .*$", re.MULTILINE)  # in which calls each rank was when one did not go on
COLLECTIVES_ENDED = "Collective ops is aborted by"  # by an error of their own: those of the process stay so
SECONDS_TO_HEAR = 10.0  # from an operation's failure to the hub's word of why
PHASES = {"F": "forward", "B": "backward", "I": "input gradients", "W": "weight gradients"}


def run_error(error: tf.errors.OpError, parts: Parts) -> RunError:
    """The failure with the user's line; also an instance of the class of `error`."""
    block = _root(error.message or str(error))
    alone = parts.world is None
    way_out = "The variables are as before this call, and the next one runs normally."
    if COLLECTIVES_ENDED in block:
        way_out = "The variables are as before this call. TensorFlow's collectives are broken: start the process again."
    if not alone:
        way_out = "The run ends with it in all processes."
    if isinstance(error, tf.errors.DeadlineExceededError) and not alone:
        way_out = "Look at what the missing ranks do; if they are only slow, give them longer: `whale run --timeout`."
    if isinstance(error, tf.errors.ResourceExhaustedError):
        way_out += " Use more micro_batches or more stages: each then needs less memory."
    rule, name = _without_nodes(block), _name(block)
    details = [f"{type(error).__name__} in '{name}'" if name else type(error).__name__]
    details += [line.strip() for line in WAITS.findall(block)]
    if isinstance(error, tf.errors.CancelledError):
        repeated = ", and did not fail again when it was repeated on the first alone" if alone else ""
        rule = f"the step failed on one of its devices{repeated}"
        details = [f"what TensorFlow told is only that the others were cancelled: {_without_nodes(block)}"]
    return _failure(error, parts, rule, details, way_out)


def world_error(error: tf.errors.OpError, parts: Parts, member: Member) -> RunError:
    """The failure of one process among several: its own, of which the others are told, or why the run has ended."""
    block = _root(error.message or str(error))
    from_others = isinstance(error, (tf.errors.UnavailableError, tf.errors.CancelledError)) or FROM_OTHERS.search(block)
    ended = member.wait_for_failure(SECONDS_TO_HEAR) if from_others else None
    if ended is None:
        failure = run_error(error, parts)
        member.fail(failure)
        return failure
    name = _name(block)
    operation = next((node.op for node in _nodes(name, parts)), "an operation")
    where = f"{operation} '{name}'" if name else "an exchange of variables"
    details = [*ended.details, f"rank {member.rank} noticed it in {where}"]
    return _failure(error, parts, ended.rule, details, ended.way_out)


def _failure(error: tf.errors.OpError, parts: Parts, rule: str, details: list[str], way_out: str) -> RunError:
    block = _root(error.message or str(error))
    place = _place(block, parts)
    failure: RunError = _class_of(type(error))(  # type: ignore[arg-type]  # a class has a hash
        rule,
        details=[*details, place] if place else details,
        at=_lines(_name(block), parts),
        way_out=way_out,
        source=error,
    )
    return failure


def _name(block: str) -> str:
    """The operation that failed; empty where it is not told."""
    inlined = INLINED.search(block)
    found = [inlined["node"]] if inlined else NODE.findall(block)
    return str(found[0].split("/_")[0]) if found else ""


def _root(message: str) -> str:
    """The part of a message that speaks of what failed first."""
    starts = list(ROOT.finditer(message))
    ends = [*(later.start() for later in starts[1:]), len(message)]
    blocks = [message[start.end() : end] for start, end in zip(starts, ends, strict=False) if start[1] != "CANCELLED"]
    return blocks[0] if blocks else message


def _place(block: str, parts: Parts) -> str:
    """Which part of the step failed: `replica 1, stage 0, forward of micro-batch 2: examples 12 to 15 of 16`."""
    plan = parts.plan
    call, function = INLINED.search(block) or CALL.search(block), FUNCTION.search(block)
    found = call or function
    if found is None:
        return _once(_name(block), parts) if NODE.search(block) else ""
    stage = found["stage"]
    named = plan.layout.stages[int(stage)]
    words = [f"replica {call['replica']}"] if call and plan.layout.replicas > 1 else []
    if len(plan.layout.stages) > 1:
        words.append(f"stage {stage}" + (f" '{named}'" if named != stage else ""))
    rounds, phase = _rounds(parts.program), int(found["phase"] or 0)
    if len(rounds) > 1 and phase in rounds:
        words.append(f"round {rounds.index(phase) + 1} of {len(rounds)}")
    words.append(PHASES[found["kind"]] if phase in rounds else "totals of arguments, before the first forward")
    text = ", ".join(words)
    if call is None or plan.parts == 1 or not plan.examples:
        return text
    replica, i = int(call["replica"]), int(call["i"])
    first, size = plan.offset(replica, i), plan.sizes[replica][i]
    text += f" of micro-batch {i}" if plan.micro_batches > 1 else ""
    examples = f"example {first}" if size == 1 else f"examples {first} to {first + size - 1}"
    return f"{text}: {examples} of {plan.examples}, counted from 0"


def _rounds(program: Program) -> list[int]:
    """The phases that run per micro-batch, without those that only add up arguments: they read no variable."""
    calls: dict[int, list[str]] = {}
    for node in program.main:
        if node.op == "Call":
            calls.setdefault(node.attrs["phase"], []).append(node.name)
    reading = [
        phase
        for phase, names in sorted(calls.items())
        if any(program.main[name].op == "Read" for name in _before(names, program.main))
    ]
    return reading or sorted(calls)


def _once(name: str, parts: Parts) -> str:
    """Which part of what runs once per step: the update, or what is computed of the whole batch before or after it."""
    main = parts.program.main
    if name not in main:
        return "in what runs once per step"
    gradients = parts.program.gradients(parts.reference.step)
    if _before([name], main) & {ref.node for ref in gradients.values()}:
        return "in the update, which runs once per step"
    goes_on = name in _before([node.name for node in main if node.op == "Call"], main)
    return f"in what is computed once, of the whole batch, {'before its parts go on' if goes_on else 'after its parts'}"


def _before(names: Iterable[str], main: Graph) -> set[str]:
    """The nodes that these wait for, themselves included; what is received was sent."""
    found, stack = set[str](), list(names)
    while stack:
        node = main[stack.pop()]
        if node.name not in found:
            found.add(node.name)
            stack.extend([*(ref.node for ref in node.inputs), *([node.twin] if node.op == "Recv" else [])])
    return found


def _lines(name: str, parts: Parts) -> list[Line]:
    """The user's line; for what the tape made, that of the forward operation it is the gradient of."""
    for node in _nodes(name, parts):
        if node.twin and node.op not in ("Send", "Recv"):
            name = node.twin
            break
    pieces = name.split("/")
    for start in range(len(pieces)):
        for end in range(len(pieces), start, -1):
            line = parts.line_of("/".join(pieces[start:end]))
            if line.number:
                return [line]
    return []


def _nodes(name: str, parts: Parts) -> Iterator[Node]:
    for graph in (parts.program.main, *(function.graph for function in parts.program.functions.values())):
        if name in graph:
            yield graph[name]


def _without_nodes(block: str) -> str:
    """The first line, without the names of nodes."""
    text = re.sub(r"\{\{(?:function_node|node) [^}]*\}\}\s*", "", block.split("\n")[0])
    return re.sub(r"\s*\[Op:[^\]]*\]$", "", text).strip()


@functools.cache
def _class_of(kind: type[tf.errors.OpError]) -> Any:
    """A RunError that `except tf.errors.<kind>` catches too."""

    class Failure(RunError, kind):  # type: ignore[misc]  # noqa: N818
        def __init__(self, rule: str, *, source: tf.errors.OpError, **parts: Any) -> None:
            kind.__init__(self, source.node_def, source.op, rule)
            RunError.__init__(self, rule, **parts)
            self._message = str(self.args[0])

        def __str__(self) -> str:
            return self._message

    Failure.__name__ = Failure.__qualname__ = RunError.__name__
    Failure.__module__ = RunError.__module__
    return Failure
