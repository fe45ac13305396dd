"""Lets a value go to another process before the device that made it computes on.

    Before:  a = Call() on 0;  b = Call() on 0 after a;        Send(a) to another process
    After:   a = Call() on 0;  Send(a);  b = Call() on 0 after a, Send(a)

A call and what it makes ready are queued together, and TensorFlow takes up last what was queued first: with as many
threads as there are calls at a time, the other process would wait for `b`. Such a send is over as soon as the value is
handed over, so that `b` does not wait for the other process in turn.
"""

from __future__ import annotations

from dataclasses import replace

from whale_tf.ir.graph import Graph, Node
from whale_tf.rewrite.program import Program


def send_first(program: Program) -> Program:
    """The program with its messages before the next call; where calls keep no order, as it is."""
    main = program.main
    messages: dict[str, list[Node]] = {}
    if program.ordered:
        for node in main:
            if node.op == "Send" and program.crosses(node) and main[node.inputs[0].node].op == "Call":
                messages.setdefault(node.inputs[0].node, []).append(node)
    if not messages:
        return program
    moved = {send.name for sends in messages.values() for send in sends}
    nodes: list[Node] = []
    for node in main:
        if node.name in moved:
            continue
        if node.op == "Call":
            before = [send.name for name in node.control for send in messages.get(name, ())]
            node = node.with_(control=(*node.control, *before))
        nodes.append(node)
        nodes += messages.get(node.name, ())
    return replace(program, main=Graph.of(nodes, main.outputs, main.effects))
