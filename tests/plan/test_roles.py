"""Roles: what runs per micro-batch, what once per step, what is backward."""

from __future__ import annotations

import pytest

from tests.plan.texts import roles_of
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.roles import Roles, find_roles
from whale_tf.plan.states import FREE

TRAINING = """
graph step(out: loss) effects(written) {
  x = Input() {index=0, batch=true} : float32[4,8]
  rate = Input() {index=1, batch=false} : float32[]
  w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[8,3]
  doubled = AddV2(w, w) : float32[8,3]
  y = MatMul(x, doubled) : float32[4,3]
  loss = L2Loss(y) : float32[]
  dw = MatMul(x, y) {transpose_a=true} : float32[8,3]  @call=1 @twin=y
  dx = MatMul(y, doubled) {transpose_b=true} : float32[4,8]  @call=1 @twin=y
  used = Sum(dx) : float32[]
  marked = Gradient(dw) {call=1, part=b"dense", variable=b"w"} : float32[8,3]
  scaled = Mul(marked, rate) : float32[8,3]
  lowered = Sub(w, scaled) : float32[8,3]
  written = Write(lowered) {variable=b"w"} : float32[8,3]
}
"""
CHAIN = """
graph step(out: e) {
  a = Input() {index=0, batch=true} : float32[4]
  b = Neg(a) : float32[4]
  c = Neg(b) : float32[4]
  d = Neg(c) : float32[4]
  e = Neg(d) : float32[4]
}
"""


def roles_in(phases: dict[str, int], markers: frozenset[str] = frozenset(), text: str = CHAIN) -> tuple[Graph, Roles]:
    graph = parse_graph(text)
    return graph, find_roles(graph, phases, markers)


def test_forward_and_backward_run_per_micro_batch_and_the_update_once() -> None:
    graph = parse_graph(TRAINING)
    roles = roles_of(graph)
    assert {name for name in graph.nodes if roles.per_micro_batch(name)} == {"x", "y", "loss", "dw", "dx", "used"}
    assert {name for name in graph.nodes if roles.per_step(name)} == {"marked", "scaled", "lowered", "written"}
    assert roles.phases == 2


def test_what_depends_on_no_example_is_free() -> None:
    roles = roles_of(parse_graph(TRAINING))
    assert {name for name, phase in roles.phase.items() if phase == FREE} == {"rate", "w", "doubled"}
    assert not roles.per_step("w") and not roles.per_micro_batch("w")


def test_backward_is_what_only_the_gradient_call_needs() -> None:
    """`dx` was made by the call too, but the forward op `used` needs it."""
    roles = roles_of(parse_graph(TRAINING))
    assert roles.backward == {"dw"}
    assert roles.markers == {"marked"}


def test_even_phases_run_per_micro_batch_and_odd_ones_once() -> None:
    graph, roles = roles_in({"a": 0, "b": 1, "c": 2, "d": 3, "e": FREE})
    assert [name for name in graph.nodes if roles.per_micro_batch(name)] == ["a", "c"]
    assert [name for name in graph.nodes if roles.per_step(name)] == ["b", "d"]
    assert roles.phases == 4


def test_the_gradient_of_a_penalty_is_forward() -> None:
    graph = parse_graph("""
        graph step(out: ) effects(written) {
          x = Input() {index=0, batch=true} : float32[4,3]
          w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[4,3]
          y = Mul(x, w) : float32[4,3]
          dx = Mul(y, w) : float32[4,3]  @call=1 @twin=y
          inner = Gradient(dx) {call=1, part=b"dense", variable=b""} : float32[4,3]
          penalty = Square(inner) : float32[4,3]
          dw = Mul(penalty, x) : float32[4,3]  @call=2 @twin=dx
          outer = Gradient(dw) {call=2, part=b"dense", variable=b"w"} : float32[4,3]
          written = Write(outer) {variable=b"w"} : float32[4,3]
        }
    """)
    roles = roles_of(graph)
    assert roles.markers == {"outer"}
    assert roles.backward == {"dw"}
    assert roles.per_micro_batch("inner") and roles.per_micro_batch("penalty")


def test_what_a_forward_of_a_later_phase_needs_through_the_update_is_still_backward() -> None:
    """The second forward takes the new value, which is made of the first gradient; that does not make it forward."""
    graph = parse_graph("""
        graph step(out: loss2) effects(written2) {
          x = Input() {index=0, batch=true} : float32[4]
          w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[4]
          y = Mul(x, w) : float32[4]
          dw = Mul(x, y) : float32[4]  @call=1
          marked = Gradient(dw) {call=1, part=b"dense", variable=b"w"} : float32[4]
          written = Write(marked) {variable=b"w"} : float32[4]
          y2 = Mul(x, written) : float32[4]
          loss2 = Sum(y2) : float32[]
          dw2 = Mul(x, y2) : float32[4]  @call=2
          marked2 = Gradient(dw2) {call=2, part=b"dense", variable=b"w"} : float32[4]
          written2 = Write(marked2) {variable=b"w"} : float32[4]
        }
    """)
    roles = roles_of(graph)
    phases = {"x": 0, "w": FREE, "y": 0, "dw": 0, "marked": 1, "written": 1}
    assert roles.phase == phases | {"y2": 2, "loss2": 2, "dw2": 2, "marked2": 3, "written2": 3}
    assert roles.markers == {"marked", "marked2"}
    assert roles.backward == {"dw", "dw2"}
    assert roles.phases == 4


def test_what_a_gradient_call_makes_once_per_step_is_no_backward() -> None:
    text = TRAINING.replace(
        "marked = Gradient(dw)", "merged = Square(dw) : float32[8,3]  @call=1\n  marked = Gradient(merged)"
    )
    names = parse_graph(text).nodes
    once = ("merged", "marked", "scaled", "lowered", "written")
    phases = {name: FREE if name in ("rate", "w", "doubled") else int(name in once) for name in names}
    _, roles = roles_in(phases, frozenset({"marked"}), text)
    assert roles.per_step("merged")
    assert roles.backward == {"dw"}


def test_the_gradient_of_what_is_no_variable_is_no_marker() -> None:
    graph = parse_graph("""
        graph step(out: g) {
          x = Input() {index=0, batch=true} : float32[4,3]
          dx = Square(x) : float32[4,3]  @call=1
          g = Gradient(dx) {call=1, part=b"dense", variable=b""} : float32[4,3]
        }
    """)
    roles = roles_of(graph)
    assert roles.markers == frozenset()
    assert roles.backward == frozenset()
    assert roles.per_micro_batch("g")


@pytest.mark.parametrize("text", [CHAIN, "graph step(out: ) {\n}\n"], ids=["some", "nothing"])
def test_an_evaluation_has_no_backward_and_one_phase(text: str) -> None:
    roles = roles_of(parse_graph(text))
    assert (roles.backward, roles.markers, roles.phases) == (frozenset(), frozenset(), 1)
