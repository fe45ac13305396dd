"""Small steps as text, spread over devices without TensorFlow: what the tests of the passes start from.

`BATCH` in a text stands for the number of examples that it is traced at, `TWICE` for twice as many; `value` of a
Const are its elements, or the one that all of them are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from hypothesis import strategies as st

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line
from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.sizes import Array, Sizes
from whale_tf.ir.text import parse_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.coupling import Coupling, resolve
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import Layout, cut_batch, meshes_of
from whale_tf.plan.one_part import undivided
from whale_tf.plan.plan import Plan
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.request import Request
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.plan.states import States
from whale_tf.rewrite.bind import bind
from whale_tf.rewrite.check import check
from whale_tf.rewrite.cut import Cut, Key, StageFunction, cut
from whale_tf.rewrite.fold_random import fold_random
from whale_tf.rewrite.hold_assignments import hold_assignments
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.reshard import Resharded, reshard
from whale_tf.rewrite.resize import at_size, resize
from whale_tf.rewrite.send_first import send_first
from whale_tf.rewrite.step_program import Functions, StepProgram

# Two layers, each in a stage if there are two; gradient descent; the loss and the predictions come back.
TRAINING = """
graph step(out: loss, z, n1) effects(u0, u1) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  w0 = Variable() {variable=b"w0", trainable=true, aggregation=b"NONE"} : float32[3,2]
  w1 = Variable() {variable=b"w1", trainable=true, aggregation=b"NONE"} : float32[2,1]
  rate = Const() {value=(0.5)} : float32[]
  dims = Const() {value=(0, 1)} : int32[2]
  h = MatMul(x, w0) : float32[BATCH,2]  @scope=s0
  a = Relu(h) : float32[BATCH,2]  @scope=s0
  z = MatMul(a, w1) : float32[BATCH,1]  @scope=s1
  loss = Mean(z, dims) : float32[]  @scope=s1
  dz = Square(z) : float32[BATCH,1]  @call=1 @twin=loss
  d1 = MatMul(a, dz) {transpose_a=true} : float32[2,1]  @call=1 @twin=z
  da = MatMul(dz, w1) {transpose_b=true} : float32[BATCH,2]  @call=1 @twin=z
  dh = ReluGrad(da, a) : float32[BATCH,2]  @call=1 @twin=a
  d0 = MatMul(x, dh) {transpose_a=true} : float32[3,2]  @call=1 @twin=h
  g0 = Gradient(d0) {call=1, part=b"dense", variable=b"w0", partner=b""} : float32[3,2]
  g1 = Gradient(d1) {call=1, part=b"dense", variable=b"w1", partner=b""} : float32[2,1]
  s0 = Mul(g0, rate) : float32[3,2]
  s1 = Mul(g1, rate) : float32[2,1]
  n0 = Sub(w0, s0) : float32[3,2]
  n1 = Sub(w1, s1) : float32[2,1]
  u0 = Write(n0) {variable=b"w0"} : float32[3,2]
  u1 = Write(n1) {variable=b"w1"} : float32[2,1]
}
"""

# How a step may be spread, for hypothesis; `extra` examples make the micro-batches uneven.
WAYS = {
    "replicas": st.integers(1, 3),
    "micro_batches": st.integers(1, 4),
    "extra": st.integers(0, 5),
    "schedule": st.sampled_from(["gpipe", "1f1b", "zero_bubble"]),
    "loss": st.sampled_from(["mean", "sum"]),
}

# An embedding: the gradient has parts, of which the values may depend on no example.
SLICES = """
graph step(out: loss) effects(u) {
  ids = Input() {index=0, batch=true} : int32[BATCH]
  e = Variable() {variable=b"e", trainable=true, aggregation=b"NONE"} : float32[9,2]
  zero = Const() {value=(0)} : int32[]
  both = Const() {value=(0, 1)} : int32[2]
  flat_shape = Const() {value=(-1)} : int32[1]
  rows = GatherV2(e, ids, zero) : float32[BATCH,2]
  loss = Mean(rows, both) : float32[]
  VALUES
  flat = Reshape(ids, flat_shape) : int32[BATCH]  @call=1 @twin=rows
  gv = Gradient(dv) {call=1, part=b"values", variable=b"e", partner=b"gi"} : float32[BATCH,2]
  gi = Gradient(flat) {call=1, part=b"indices", variable=b"e", partner=b"gv"} : int32[BATCH]
  n = TensorScatterSub(e, gi, gv) : float32[9,2]
  u = Write(n) {variable=b"e"} : float32[9,2]
}
"""
MICRO_SLICES = SLICES.replace("VALUES", "dv = Square(rows) : float32[BATCH,2]  @call=1 @twin=rows")
FREE_SLICES = SLICES.replace(
    "VALUES",
    """shape = Const() {value=(BATCH, 2)} : int32[2]
  one = Const() {value=(1.0)} : float32[]
  dv = Fill(shape, one) : float32[BATCH,2]  @call=1""",
)
CONSTANT_SLICES = SLICES.replace("VALUES", "dv = Const() {value=(1.0)} : float32[BATCH,2]  @call=1")


# A gradient that is a mean of the examples: each part's is weighted by its share before it is added.
MEANS = TRAINING.replace(
    "  d1 = MatMul(a, dz) {transpose_a=true} : float32[2,1]  @call=1 @twin=z",
    """  first = Const() {value=(0)} : int32[1]
  column = Const() {value=(2, 1)} : int32[2]
  each = Mul(a, dz) : float32[BATCH,2]  @call=1 @twin=z
  mean = Mean(each, first) : float32[2]  @call=1 @twin=z
  d1 = Reshape(mean, column) : float32[2,1]  @call=1 @twin=z""",
)


@dataclass(frozen=True)
class Spread:
    """A step after all passes, with what they started from."""

    states: States
    resharded: Resharded
    step: StepProgram
    program: Program

    @property
    def graph(self) -> Graph:
        return self.step.graph

    @property
    def roles(self) -> Roles:
        return self.step.roles

    @property
    def plan(self) -> Plan:
        return self.step.plan

    @property
    def variants(self) -> Mapping[int, Functions]:
        return self.step.variants

    @property
    def main(self) -> Graph:
        return self.program.main

    @property
    def functions(self) -> Functions:
        """The stage functions at the largest size."""
        return self.variants[self.plan.largest]

    def check(self) -> None:
        check(self.step, self.states.sizes, self.program)

    def find(self, op: str, **attrs: Any) -> list[Node]:
        """The nodes of the main graph of a type, with these attributes."""
        return [n for n in self.main if n.op == op and all(n.attrs.get(key) == value for key, value in attrs.items())]

    def origin(self, ref: Ref) -> Ref:
        """A tensor where it was made, before it was sent."""
        while self.main[ref.node].op == "Recv":
            key = self.main[ref.node].attrs["key"]
            ref = next(node for node in self.find("Send") if node.attrs["key"] == key).inputs[0]
        return ref

    def with_nodes(self, nodes: Sequence[Node]) -> Spread:
        """With these nodes in the places of those of their names; new ones at the end."""
        changed = self.main.nodes | {node.name: node for node in nodes}  # type: ignore[operator]
        return self.with_main(Graph(changed, self.main.outputs, self.main.effects))

    def with_main(self, main: Graph) -> Spread:
        return replace(self, program=replace(self.program, main=main))

    def with_function(self, function: StageFunction) -> Spread:
        """With another body for one stage function, of all sizes."""
        variants = {size: {**functions, function.key: function} for size, functions in self.variants.items()}
        functions = {**self.program.functions, str(function.key): function}
        step = replace(self.step, variants=variants)
        return replace(self, step=step, program=replace(self.program, functions=functions))


def traced(text: str, examples: int) -> Graph:
    """The graph of a text at a number of examples."""
    graph = parse_graph(text.replace("BATCH", str(examples)).replace("TWICE", str(2 * examples)))
    verify(graph, after="writing it down")
    return graph


def sized(text: str, examples: int, other: int) -> Sizes:
    """What `capture.pair` makes of the traces at two sizes, of which only the constants are known."""
    graph, there = traced(text, examples), traced(text, other)
    values, values_there = _constants(graph), _constants(there)
    refs = [Ref(node.name, index) for node in graph for index in range(len(node.outputs))]
    shapes = {ref: there.type_of(ref).shape for ref in refs if graph.type_of(ref).shape != there.type_of(ref).shape}
    operands = {
        (node.name, position): values_there[ref]
        for node in graph
        for position, ref in enumerate(node.inputs)
        if ref in values and not np.array_equal(values[ref], values_there[ref])
    }
    return Sizes(graph, examples, other, shapes, values, operands)


def _constants(graph: Graph) -> dict[Ref, Array]:
    found: dict[Ref, Array] = {}
    for node in graph:
        if node.op == "Const" and "value" in node.attrs:
            numbers = np.array(node.attrs["value"], np.dtype(str(node.outputs[0].dtype)))
            shape = [size or 0 for size in node.outputs[0].shape]
            found[Ref(node.name)] = (
                np.broadcast_to(numbers, shape) if numbers.size == 1 and shape else numbers.reshape(shape)
            )
    return found


def resolved(text: str, examples: int, *, micro_batches: int = 1, exact: bool = False) -> States:
    """The states of a step that several parts run."""
    line = Line("train.py", 1)
    coupling = Coupling(exact, (), micro_batches, 2**28, lambda _: line)
    return resolve(sized(text, examples, examples - 1 or 2), coupling).states


def spread(
    text: str = TRAINING,
    *,
    replicas: int = 1,
    micro_batches: int = 1,
    stages: int = 1,
    examples: int = 0,
    schedule: str | Grids = "1f1b",
    loss: str = "mean",
    homes: Mapping[str, int] | None = None,
    processes: tuple[int, ...] = (),
    fed: bool = False,
    kind: str = "CPU",
    exact: bool = False,
    places: Sequence[Sequence[int]] = (),
    shares: Sequence[int] = (),
) -> Spread:
    """A step over `replicas` x `stages` devices; four examples in each micro-batch unless it is said otherwise.

    `processes` says which process each device is of, `places` the device of each replica and stage, if they are not one
    after the other, and `shares` the parts of the batch, if they are not equal.
    """
    if loss == "sum":
        text = text.replace("loss = Mean", "loss = Sum")
    examples = examples or 4 * replicas * micro_batches
    scopes = tuple(Opened(f"s{j}", "stage", f"s{j}", "", Line("train.py", j + 1)) for j in range(stages))
    places = places or [range(r * stages, (r + 1) * stages) for r in range(replicas)]
    devices = tuple(f"/device:{kind}:{index}" for index in range(len({*chain.from_iterable(places)})))
    fractions = tuple(share / sum(shares) for share in shares) or (1 / replicas,) * replicas
    names = tuple(scope.name for scope in scopes)
    layout = Layout(fractions, names, meshes_of(places, stages), devices, processes)
    sizes = cut_batch(examples, layout.shares, micro_batches)
    if replicas * micro_batches > 1:
        states = resolved(text, examples, micro_batches=micro_batches, exact=exact)
    else:
        states = undivided(sized(text, examples, examples))
    resharded = reshard(states)
    verify(resharded.graph, after="reshard")
    variables = frozenset(variable_of(node) for node in resharded.graph if node.op == "Variable")
    request, targets = Request(None, scopes if stages > 1 else ()), {1: ("loss",)} if "Gradient" in text else {}
    micro = at_size(resharded.graph, states, resharded.made_of, max(map(max, sizes)))
    line = Line("train.py", 1)
    facts = Facts(request, layout, sizes, schedule, homes or {}, lambda _: line, targets, micro, variables)
    values = {ref: known.value for ref, known in states.known.items()}
    plan = make_plan(resharded.graph, resharded.roles, values, facts)
    variants = _at_sizes(states, resharded, plan)
    step = StepProgram(resharded.graph, resharded.roles, plan, variants, fed)
    program = whole_world(step)
    verify(program.main, after="bind")
    return Spread(states, resharded, step, program)


def whole_world(step: StepProgram) -> Program:
    """The programs of all groups of replicas as one."""
    parts = [part_of(step, group) for group in range(len(step.plan.layout.groups))]
    nodes = [node for part in parts for node in part.main]
    outputs = [ref for part in parts for ref in part.main.outputs]
    effects = [name for part in parts for name in part.main.effects]
    whole: dict[Ref, tuple[Ref, ...]] = {}
    for part in parts:
        whole |= {ref: (*whole.get(ref, ()), *places) for ref, places in part.whole.items()}
    present = tuple(process for part in parts for process in part.present)
    functions = {name: function for part in parts for name, function in part.functions.items()}
    main = Graph.of(nodes, outputs, effects)
    return replace(parts[0], main=main, functions=functions, present=present, whole=whole)


def part_of(step: StepProgram, group: int) -> Program:
    """The program of one group of replicas, after all passes."""
    return hold_assignments(send_first(bind(step, group), step))


def _at_sizes(states: States, resharded: Resharded, plan: Plan) -> dict[int, Functions]:
    how = Cut(plan.micro_batches > 1, plan.grids.splits_backward)
    functions = cut(resharded.graph, resharded.roles, plan.stage_of, how)
    variants: dict[int, Functions] = {}
    for size in sorted({size for row in plan.sizes for size in row}, reverse=True):
        at_size: dict[Key, StageFunction] = {}
        for key, function in functions.items():
            resized = resize(function, states, resharded.made_of, size).function
            at_size[key] = fold_random(resized, states) if plan.parts > 1 else resized
            verify(at_size[key].graph, after="resize")
        variants[size] = at_size
    return variants
