"""One process's part of a program: its devices' nodes, and its copy of the outputs.

    Before:  a = Call() on 0;  Send(a) on 0;  b = Recv() on 1;  c = Call(b) on 1     device 1 is of process 1
    After:   b = Recv() on 1;  c = Call(b) on 1                                      in process 1

Nothing but messages and collectives joins the parts, so each is a program of its own.
"""

from __future__ import annotations

from dataclasses import replace

from whale_tf.errors import InternalError
from whale_tf.ir.graph import Graph
from whale_tf.rewrite.program import Program


def localize(program: Program, process: int) -> Program:
    """What a process runs of a program.

    Raises:
      InternalError: a node takes something of another process directly.
    """
    if not program.processes:
        return program
    own = [node for node in program.main if program.process_of(node) == process]
    names = {node.name for node in own}
    outputs = program.outputs_of(process)
    taken = [(node.name, name) for node in own for name in (*(ref.node for ref in node.inputs), *node.control)]
    taken += [("an output", ref.node) for ref in outputs]
    foreign = [f"{user} takes '{name}'" for user, name in taken if name not in names]
    if foreign:
        raise InternalError(
            f"process {process} takes what is of another process",
            details=foreign[:20],
            way_out="This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes.",
        )
    local = [node.with_(twin="") if node.op == "Recv" and node.twin not in names else node for node in own]
    effects = [name for name in program.main.effects if name in names]
    used = {node.attrs["function"].decode() for node in own if node.op == "Call"}
    functions = {name: function for name, function in program.functions.items() if name in used}
    whole = {ref: tuple(place for place in places if place.node in names) for ref, places in program.whole.items()}
    main = Graph.of(local, outputs, effects)
    return replace(program, main=main, functions=functions, present=(process,), whole=whole)
