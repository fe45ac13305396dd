"""Small steps as text, spread over devices without TensorFlow: what the tests of the passes start from.

`BATCH` in a text stands for the number of examples that it is traced at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line
from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.text import parse_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.layout import Layout, Request, cut_batch
from whale_tf.plan.plan import Plan
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.roles import Roles, find_roles, variable_of
from whale_tf.plan.stages import assign_stages
from whale_tf.rewrite.bind import Binder, Variant
from whale_tf.rewrite.check import check
from whale_tf.rewrite.cut import Cut, Key, StageFunction, cut
from whale_tf.rewrite.fold_random import fold_random
from whale_tf.rewrite.hold_assignments import hold_assignments
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.send_first import send_first
from whale_tf.rewrite.tell_apart import tell_apart

# Two layers, each in a stage if there are two; gradient descent; the loss and the predictions come back.
TRAINING = """
graph step(out: loss, z, n1) effects(u0, u1) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  w0 = Variable() {variable=b"w0", trainable=true, aggregation=b"NONE"} : float32[3,2]
  w1 = Variable() {variable=b"w1", trainable=true, aggregation=b"NONE"} : float32[2,1]
  rate = Const() {value=opaque"AA=="} : float32[]
  dims = Const() {value=opaque"AQ=="} : int32[2]
  h = MatMul(x, w0) : float32[BATCH,2]  @scope=s0
  a = Relu(h) : float32[BATCH,2]  @scope=s0
  z = MatMul(a, w1) : float32[BATCH,1]  @scope=s1
  loss = Mean(z, dims) : float32[]  @scope=s1
  dz = Square(z) : float32[BATCH,1]  @call=1 @twin=loss
  d1 = MatMul(a, dz) {transpose_a=true} : float32[2,1]  @call=1 @twin=z
  da = MatMul(dz, w1) {transpose_b=true} : float32[BATCH,2]  @call=1 @twin=z
  dh = ReluGrad(da, a) : float32[BATCH,2]  @call=1 @twin=a
  d0 = MatMul(x, dh) {transpose_a=true} : float32[3,2]  @call=1 @twin=h
  g0 = Gradient(d0) {call=1, part=b"dense", variable=b"w0", partner=b"", target=b"mean"} : float32[3,2]
  g1 = Gradient(d1) {call=1, part=b"dense", variable=b"w1", partner=b"", target=b"mean"} : float32[2,1]
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
  zero = Const() {value=opaque"AA=="} : int32[]
  rows = GatherV2(e, ids, zero) : float32[BATCH,2]
  loss = Mean(rows, zero) : float32[]
  VALUES
  flat = Reshape(ids, zero) : int32[BATCH]  @call=1 @twin=rows
  gv = Gradient(dv) {call=1, part=b"values", variable=b"e", partner=b"gi", target=b"mean"} : float32[BATCH,2]
  gi = Gradient(flat) {call=1, part=b"indices", variable=b"e", partner=b"gv", target=b"mean"} : int32[BATCH]
  n = TensorScatterSub(e, gi, gv) : float32[9,2]
  u = Write(n) {variable=b"e"} : float32[9,2]
}
"""
MICRO_SLICES = SLICES.replace("VALUES", "dv = Square(rows) : float32[BATCH,2]  @call=1 @twin=rows")
FREE_SLICES = SLICES.replace(
    "VALUES", 'shape = Const() {value=opaque"BB=="} : int32[2]\n  dv = Fill(shape, zero) : float32[BATCH,2]  @call=1'
)


@dataclass(frozen=True)
class Spread:
    """A step after all passes, with what they started from."""

    graph: Graph
    roles: Roles
    plan: Plan
    variants: Mapping[int, Variant]
    program: Program

    @property
    def main(self) -> Graph:
        return self.program.main

    @property
    def functions(self) -> Mapping[Key, StageFunction]:
        """The stage functions at the largest size."""
        return self.variants[self.plan.largest].functions

    def check(self) -> None:
        check(self.graph, self.roles, self.plan, self.variants, self.program)

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
        variants = {
            size: replace(variant, functions={**variant.functions, function.key: function})
            for size, variant in self.variants.items()
        }
        functions = {**self.program.functions, str(function.key): function}
        return replace(self, variants=variants, program=replace(self.program, functions=functions))


def traced(text: str, examples: int) -> Graph:
    """The graph of a text at a number of examples."""
    graph = parse_graph(text.replace("BATCH", str(examples)))
    verify(graph, after="writing it down")
    return graph


def spread(
    text: str = TRAINING,
    *,
    replicas: int = 1,
    micro_batches: int = 1,
    stages: int = 1,
    examples: int = 0,
    schedule: str = "1f1b",
    loss: str = "mean",
    homes: Mapping[str, int] | None = None,
    processes: tuple[int, ...] = (),
    fed: bool = False,
    kind: str = "CPU",
) -> Spread:
    """A step over `replicas` x `stages` devices; four examples in each micro-batch unless it is said otherwise.

    `processes` says which process each device is of.
    """
    if loss == "sum":
        text = text.replace("loss = Mean", "loss = Sum").replace('b"mean"', 'b"sum"')
    examples = examples or 4 * replicas * micro_batches
    scopes = tuple(Opened(f"s{j}", "stage", f"s{j}", "", Line("train.py", j + 1)) for j in range(stages))
    places = tuple(tuple(range(r * stages, (r + 1) * stages)) for r in range(replicas))
    devices = tuple(f"/device:{kind}:{index}" for index in range(replicas * stages))
    layout = Layout((1 / replicas,) * replicas, tuple(scope.name for scope in scopes), places, devices, 0, processes)
    sizes = cut_batch(examples, layout.shares, micro_batches, ["x"])
    distinct = sorted({size for row in sizes for size in row}, reverse=True)
    request = Request(None, scopes if stages > 1 else ())
    targets = {1: ("loss",)} if "Gradient" in text else {}
    other = (traced(text, distinct[1]), distinct[1]) if len(distinct) > 1 else None
    graph = traced(text, distinct[0])
    variables = frozenset(variable_of(node) for node in graph if node.op == "Variable")
    facts = Facts(
        request,
        layout,
        sizes,
        schedule,
        loss,
        homes or {},
        other,
        lambda _: Line("train.py", 1),
        targets,
        refusable=variables,
    )
    roles = find_roles(graph, distinct[0])
    plan = make_plan(graph, roles, facts)
    variants = {size: _variant(graph, text, size, plan, request) for size in distinct}
    program = hold_assignments(send_first(Binder(graph, roles, plan, variants, fed).bind()))
    verify(program.main, after="bind")
    return Spread(graph, roles, plan, variants, program)


def _variant(main: Graph, text: str, size: int, plan: Plan, request: Request) -> Variant:
    graph = traced(text, size)
    if size != plan.largest:
        graph = tell_apart(main, graph, find_roles(graph, size), size)
    roles = find_roles(graph, size)
    numbers = {scope.key: index for index, scope in enumerate(request.stages)}
    stage_of = assign_stages(graph, roles, numbers, len(plan.layout.stages), lambda name: Line("train.py", 1))
    mean = plan.loss == "mean"
    how = Cut(plan.micro_batches > 1, mean and not plan.even, plan.schedule == "zero_bubble", mean and plan.parts > 1)
    functions = cut(graph, roles, stage_of, how)
    if plan.parts > 1:
        functions = {key: fold_random(function, size) for key, function in functions.items()}
    for function in functions.values():
        verify(function.graph, after="cut")
    return Variant(graph, roles, functions)
