"""Lets a step give every value that it computes, beside its outputs: for comparing each with what it stands for.

    Before:  0F(x) -> h          r0/0F0 = Call(x);  m = Mean(r0/0F0)      step(out: m)
    After:   0F(x) -> h, h, a    r0/0F0 = Call(x);  m = Mean(r0/0F0)      step(out: m, r0/0F0:1, r0/0F0:2, m)

Calls give what their functions compute as further results; the step's outputs stay the first ones. Lists, tables and
other handles are no values, and constants are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import WHOLE, State
from whale_tf.plan.grid import Action
from whale_tf.plan.states import FREE, States
from whale_tf.rewrite.cut import StageFunction
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import NO_VALUES

Computed = tuple[Ref, Ref, State]  # a tensor of the step, where a function has it, and how it lies


class Record(NamedTuple):
    """One value that a program gives.

    Attributes:
      ref: the tensor of the step.
      part: the replica and micro-batch that have it; None for the one value of the step.
      member: of the stage's mesh.
      lies: the state of what members have.
    """

    ref: Ref
    part: tuple[int, int] | None
    member: int = 0
    lies: State = WHOLE


@dataclass(frozen=True)
class Probed:
    """A program that gives its values.

    Attributes:
      program: its outputs are the step's, then one for each record.
      outputs: how many are the step's.
      records: what the others are.
    """

    program: Program
    outputs: int
    records: tuple[Record, ...]


def probe(program: Program, states: States) -> Probed:
    """The program, or one process's part of it, with its values as outputs."""
    inside = {name: tuple(_values(function, states)) for name, function in program.functions.items()}
    nodes: list[Node] = []
    found: list[tuple[Record, Ref]] = []
    for node in program.main:
        if node.op == "Call":
            name = node.attrs["function"].decode()
            graph, first = program.functions[name].graph, len(node.outputs)
            part = (node.attrs["replica"], Action.parse(node.attrs["action"].decode()).micro_batch)
            for k, (ref, _, state) in enumerate(inside[name]):
                found.append((Record(ref, part, node.attrs["member"], state), Ref(node.name, first + k)))
            node = node.with_(outputs=(*node.outputs, *(graph.type_of(there) for _, there, _ in inside[name])))
        nodes.append(node)
    once = ((Record(ref, None), there) for ref, places in program.whole.items() for there in places)
    found += [(record, there) for record, there in once if _is_value(program, there)]
    main = replace(
        program.main,
        nodes={node.name: node for node in nodes},
        outputs=(*program.main.outputs, *(there for _, there in found)),
    )
    functions = {name: _giving(function, inside[name]) for name, function in program.functions.items()}
    records = tuple(record for record, _ in found)
    return Probed(replace(program, main=main, functions=functions), len(program.main.outputs), records)


def _values(function: StageFunction, states: States) -> Iterator[Computed]:
    """The tensors of the step that a function computes for its part, where they are in it, and how they lie."""
    for node in (function.whole or function).graph:
        if states.level.get(node.name, FREE) == FREE or node.op == "Argument":
            continue
        for index, kind in enumerate(node.outputs):
            if kind.dtype not in NO_VALUES:
                ref = Ref(node.name, index)
                yield ref, *function.computed.get(ref, (ref, WHOLE))


def _is_value(program: Program, ref: Ref) -> bool:
    """Whether the program, which may be one process's part, has it, and it is no handle and no argument."""
    node = program.main.nodes.get(ref.node)
    return node is not None and node.op != "Take" and node.outputs[ref.index].dtype not in NO_VALUES


def _giving(function: StageFunction, values: tuple[Computed, ...]) -> StageFunction:
    graph = function.graph
    return replace(function, graph=replace(graph, outputs=(*graph.outputs, *(there for _, there, _ in values))))
