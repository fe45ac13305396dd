"""Roles: what runs per micro-batch, what once per step, what is backward."""

from __future__ import annotations

from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.roles import FREE, find_roles

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


def test_forward_and_backward_run_per_micro_batch_and_the_update_once() -> None:
    graph = parse_graph(TRAINING)
    roles = find_roles(graph)
    assert {name for name in graph.nodes if roles.per_micro_batch(name)} == {"x", "y", "loss", "dw", "dx", "used"}
    assert {name for name in graph.nodes if roles.per_step(name)} == {"marked", "scaled", "lowered", "written"}
    assert roles.phases == 2
    assert roles.carried == frozenset()


def test_what_depends_on_no_example_is_free() -> None:
    roles = find_roles(parse_graph(TRAINING))
    assert {name for name, phase in roles.phase.items() if phase == FREE} == {"rate", "w", "doubled"}


def test_backward_is_what_only_the_gradient_call_needs() -> None:
    """`dx` was made by the call too, but the forward op `used` needs it."""
    roles = find_roles(parse_graph(TRAINING))
    assert roles.backward == {"dw"}
    assert roles.markers == {"marked"}


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
    roles = find_roles(graph)
    assert roles.markers == {"outer"}
    assert roles.backward == {"dw"}
    assert roles.per_micro_batch("inner") and roles.per_micro_batch("penalty")


def test_a_second_forward_with_the_new_values_is_a_phase_of_its_own() -> None:
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
    roles = find_roles(graph)
    phases = {"x": 0, "w": FREE, "y": 0, "dw": 0, "marked": 1, "written": 1}
    assert roles.phase == phases | {"y2": 2, "loss2": 2, "dw2": 2, "marked2": 3, "written2": 3}
    assert roles.markers == {"marked", "marked2"}
    assert roles.phases == 4


def moving_average(aggregation: str) -> Graph:
    return parse_graph(f"""
        graph step(out: y) effects(written) {{
          x = Input() {{index=0, batch=true}} : float32[4]
          a = Variable() {{variable=b"a", trainable=false, aggregation=b"{aggregation}"}} : float32[]
          one = Const() : float32[]
          y = Sub(x, a) : float32[4]
          mean = Mean(x, one) : float32[]
          moved = AddV2(a, mean) : float32[]
          written = Write(moved) {{variable=b"a"}} : float32[]
        }}
    """)


def test_what_examples_write_is_carried_from_micro_batch_to_micro_batch() -> None:
    roles = find_roles(moving_average("NONE"))
    assert roles.carried == {"a"}
    assert roles.per_micro_batch("a") and roles.per_micro_batch("written")
    assert roles.phase["one"] == FREE


def test_a_counter_counts_micro_batches_only_if_it_is_aggregated() -> None:
    text = """
        graph step(out: ) effects(written) {
          n = Variable() {variable=b"n", trainable=false, aggregation=b"AGGREGATION"} : int64[]
          one = Const() : int64[]
          more = AddV2(n, one) : int64[]
          written = Write(more) {variable=b"n"} : int64[]
        }
    """
    assert find_roles(parse_graph(text.replace("AGGREGATION", "NONE"))).carried == frozenset()
    assert find_roles(parse_graph(text.replace("AGGREGATION", "SUM"))).carried == {"n"}


def test_an_evaluation_has_no_backward_and_one_phase() -> None:
    roles = find_roles(
        parse_graph("""
        graph step(out: y) {
          x = Input() {index=0, batch=true} : float32[4]
          y = Relu(x) : float32[4]
        }
    """)
    )
    assert (roles.backward, roles.markers, roles.phases) == (frozenset(), frozenset(), 1)
