"""Holds every assignment back until all that may fail has run: a step that fails leaves every variable as it was.

    Before:  g = Call();  c = CheckNumerics(g);  v = Sub(r, g);  Assign(v)
    After:   g = Call();  c = CheckNumerics(g);  v = Sub(r, g);  n = NoOp() after c, g, v;  Assign(v) after n

It waits for the calls and, in the update, for all but plain arithmetic, whose shapes were checked when the step was
traced: with every new value awaited, old and new would be in memory together. Where calls keep an order, the last one
of a device stands for all. Waiting is gathered on each device first, so that one edge leaves it. Each process holds its
own back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from whale_tf.ir.graph import Graph, Node
from whale_tf.rewrite.program import Program

NAME = "all_ran"
CANNOT_FAIL = frozenset(
    {
        "Abs", "Add", "AddN", "AddV2", "Assign", "BatchMatMulV2", "Call", "Cast", "Ceil", "Const", "DivNoNan",
        "Equal", "Exp", "ExpandDims", "Expm1", "Floor", "Greater", "GreaterEqual", "Identity", "IsFinite", "IsInf",
        "IsNan", "L2Loss", "Less", "LessEqual", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul",
        "Max", "Maximum", "Mean", "Min", "Minimum", "Mul", "Neg", "NoOp", "NotEqual", "OnesLike", "Outside", "Prod",
        "Read", "RealDiv", "Reciprocal", "Recv", "Rsqrt", "Select", "SelectV2", "Send", "Shape", "Sigmoid", "Sign",
        "Slice", "Sqrt", "Square", "SquaredDifference", "Squeeze", "Sub", "Sum", "Take", "Tanh", "Transpose",
        "WhaleSum", "ZerosLike",
    }
)  # fmt: skip


def hold_assignments(program: Program) -> Program:
    """The program with its assignments last; without any, what has side effects in a call still runs."""
    main = program.main
    devices: dict[int, list[str]] = {}
    for node in _awaited(program):
        devices.setdefault(node.device, []).append(node.name)
    if not devices:
        return program
    gathered = [
        Node(f"{NAME}/on{device}", "NoOp", control=tuple(names), device=device) for device, names in devices.items()
    ]
    ends: dict[int, Node] = {}
    for node in gathered:
        process = program.process_of(node)
        end = ends.get(process, Node(f"{NAME}/in{process}" if process else NAME, "NoOp", device=node.device))
        ends[process] = end.with_(control=(*end.control, node.name))
    others = [node for node in main if node.op != "Assign"]
    assigns = [_after(node, ends.get(program.process_of(node))) for node in main if node.op == "Assign"]
    assigned = {program.process_of(node) for node in assigns}
    effects = (*main.effects, *(end.name for process, end in ends.items() if process not in assigned))
    return replace(program, main=Graph.of([*others, *gathered, *ends.values(), *assigns], main.outputs, effects))


def _after(node: Node, end: Node | None) -> Node:
    return node if end is None else node.with_(control=(*node.control, end.name))


def _awaited(program: Program) -> Iterable[Node]:
    main = program.main
    last = {node.device: node.name for node in main if node.op == "Call"}
    for node in main:
        if node.op == "Call":
            if not program.ordered or last[node.device] == node.name:
                yield node
        elif node.op not in CANNOT_FAIL:
            yield node
