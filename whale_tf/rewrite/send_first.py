"""Lets a value go to another process where the schedule has its S: before the device that made it computes on.

    Row:     0F0 0F0S1 0F1
    Before:  a = Call() on 0;  b = Call() on 0 after a;        Send(a) to another process
    After:   a = Call() on 0;  Send(a);  b = Call() on 0 after a, Send(a)

A call and what it makes ready are queued together, and TensorFlow takes up last what was queued first: with as many
threads as there are calls at a time, the other process would wait for `b`. Such a send is over as soon as the value is
handed over, so that `b` does not wait for the other process in turn. What is for no stage, as a gradient that is summed
elsewhere, goes right behind its call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from whale_tf.ir.graph import Graph, Node
from whale_tf.plan.grid import Action
from whale_tf.rewrite.cut import Key
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import StepProgram


def send_first(program: Program, step: StepProgram) -> Program:
    """The program with its messages in the schedule's order; where calls keep no order, as it is."""
    main = program.main
    places = sending_places(program, step) if program.ordered else {}
    if not places:
        return program
    messages: dict[str, list[Node]] = {}
    for name, call in places.items():
        send = main[name]
        late = () if send.inputs[0].node == call else (call,)
        messages.setdefault(call, []).append(send.with_(control=(*send.control, *late)))
    nodes: list[Node] = []
    for node in main:
        if node.name in places:
            continue
        if node.op == "Call":
            before = [send.name for name in node.control for send in messages.get(name, ())]
            node = node.with_(control=(*node.control, *before))
        nodes.append(node)
        nodes += messages.get(node.name, ())
    return replace(program, main=Graph.of(nodes, main.outputs, main.effects))


def sending_places(program: Program, step: StepProgram) -> dict[str, str]:
    """The call that each message of a call goes right behind: by the names of Sends to other processes."""
    main, layout = program.main, step.plan.layout
    calls = {_caller(node, str(node.attrs["action"], "ascii")): node.name for node in main if node.op == "Call"}
    behind = cache(lambda replica, phase: _behind(step, replica, phase))
    places: dict[str, str] = {}
    for send in main:
        if send.op != "Send" or not program.crosses(send) or main[send.inputs[0].node].op != "Call":
            continue
        maker = main[send.inputs[0].node]
        action, replica = Action.parse(maker.attrs["action"].decode()), maker.attrs["replica"]
        takers = [stage for stage, mesh in enumerate(layout.meshes[replica]) if send.attrs["to"] in mesh]
        order = behind(replica, maker.attrs["phase"])
        sends = [Action(action.stage, "S", action.micro_batch, j, action.kind) for j in takers if j != action.stage]
        place = min((order[each] for each in sends if each in order), default=None)
        places[send.name] = maker.name if place is None else calls.get(_caller(maker, place[1]), maker.name)
    return places


def _caller(call: Node, action: str) -> tuple[object, ...]:
    """What tells calls apart: those of one member of a replica by their action."""
    return (action, call.attrs["replica"], call.attrs["phase"], call.attrs["member"])


def _behind(step: StepProgram, replica: int, phase: int) -> Mapping[Action, tuple[int, str]]:
    """The place of each S in its row, and what is called before it."""
    found: dict[Action, tuple[int, str]] = {}
    for row in step.grid_of(replica, phase).rows:
        called = ""
        for place, action in enumerate(row):
            if action.kind == "S":
                found[action] = (place, called)
            elif Key(phase, action.stage, action.kind) in step.by_key:
                called = str(action)
    return found
