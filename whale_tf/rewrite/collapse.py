"""The same program on one device and without its assignments: for finding out what failed.

When an operation fails, TensorFlow cancels what waits on other devices, and sometimes reports a cancelled Recv before
the failure itself. On one device nothing waits, so running the step again there, from the same state, shows the
failure. Calls run one after another: of two at once, one would be cancelled by the other's failure.

    Before:  a = Call() on 0;  Send(a) on 0;  d = Call() on 0;  b = Recv() on 1;  c = Call(b) on 1;  Assign(c)
    After:   a = Call() on 0;  d = Call() on 0 ^a;  c = Call(a) on 0 ^d

A collective would wait for ever for devices that are not there; in its place the same numbers are added:

    Before:  r = Reduce(a) on 0 id 3;  s = Reduce(b) on 1 id 3
    After:   r = WhaleSum(a, b) on 0;  s = WhaleSum(a, b) on 0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.rewrite.check_transfers import meeting_of, meetings
from whale_tf.rewrite.program import Program

LEFT_OUT = frozenset({"Send", "Recv", "Assign"})


def collapse(program: Program) -> Program:
    """The program on the host alone; its effects are its calls."""
    sent = {node.attrs["key"]: node.inputs[0] for node in program.main if node.op == "Send"}
    received = {node.name: sent[node.attrs["key"]] for node in program.main if node.op == "Recv"}

    def source(ref: Ref) -> Ref:
        while ref.node in received:
            ref = received[ref.node]
        return ref

    reduced = meetings(program.main)
    nodes: list[Node] = []
    last: tuple[str, ...] = ()
    for node in program.main:
        if node.op not in LEFT_OUT:
            control = tuple(name for name in node.control if program.main[name].op not in LEFT_OUT)
            if node.op == "Call":
                control, last = (*dict.fromkeys((*control, *last)),), (node.name,)
            inputs = tuple(source(ref) for ref in node.inputs)
            device = node.device if node.op == "Read" else program.host  # a variable can only be read where it is
            node = node.with_(inputs=inputs, control=control, device=device)
            nodes.append(_added(node, reduced[meeting_of(node)], source) if node.op == "Reduce" else node)
    calls = [node.name for node in nodes if node.op == "Call"]
    main = Graph.of(nodes, [source(ref) for ref in program.main.outputs], calls)
    whole = {ref: tuple(map(source, places)) for ref, places in program.whole.items()}
    # A call that is not inlined has a name in the message.
    return replace(program, main=main, inline=False, whole=whole)


def _added(node: Node, peers: Sequence[Node], source: Callable[[Ref], Ref]) -> Node:
    """The operation that adds what all nodes of a Reduce take."""
    count = len(node.inputs)
    inputs = tuple(source(peer.inputs[index]) for index in range(count) for peer in peers)
    attrs = {"M": len(inputs), "K": count, "parts": len(peers), "T": node.attrs["T"], "scale": node.attrs["scale"]}
    return node.with_(op="WhaleSum", inputs=inputs, attrs=attrs)
