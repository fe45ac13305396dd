"""Roles: what runs per micro-batch, what once per step, what is backward."""

from __future__ import annotations

import pytest

from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph, print_graph
from whale_tf.plan.roles import FREE, Roles, find_roles

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


def written(reduction: str, change: str, *, aggregation: str = "NONE", out: str = "y") -> Graph:
    return parse_graph(f"""
        graph step(out: {out}) effects(written) {{
          x = Input() {{index=0, batch=true}} : float32[4]
          a = Variable() {{variable=b"a", trainable=false, aggregation=b"{aggregation}"}} : float32[]
          one = Const() : float32[]
          y = Sub(x, a) : float32[4]
          s = {reduction}(x, one) : float32[]
          scaled = Mul(a, one) : float32[]
          moved = {change} : float32[]
          written = Write(moved) {{variable=b"a"}} : float32[]
          after = Mul(x, written) : float32[4]
        }}
    """)


@pytest.mark.parametrize(
    ("reduction", "change"),
    [("Mean", "AddV2(scaled, s)"), ("Sum", "AddV2(a, s)"), ("Sum", "Maximum(a, s)"), ("Max", "Maximum(a, s)")],
)
def test_what_examples_write_is_carried_from_micro_batch_to_micro_batch(reduction: str, change: str) -> None:
    roles = find_roles(written(reduction, change), 4)
    assert roles.carried == {"a"}
    assert all(map(roles.per_micro_batch, ("a", "moved", "written", "after")))
    assert roles.phase["one"] == FREE


@pytest.mark.parametrize("aggregation", ["NONE", "SUM", "MEAN"])
def test_a_mean_of_the_examples_is_added_to_a_variable_once(aggregation: str) -> None:
    roles = find_roles(written("Mean", "AddV2(a, s)", aggregation=aggregation), 4)
    assert roles.carried == frozenset()
    assert roles.per_step("moved") and roles.per_step("written")
    assert roles.phase["a"] == FREE


@pytest.mark.parametrize("change", ["Sqrt(s)", "Neg(s)", "Reshape(s, one)"])
@pytest.mark.parametrize("reduction", ["Mean", "Sum", "Max"])
def test_a_variable_that_a_reduction_replaces_is_written_once(reduction: str, change: str) -> None:
    roles = find_roles(written(reduction, change), 4)
    assert roles.carried == frozenset()
    assert roles.per_micro_batch("s") and roles.per_step("moved") and roles.per_step("written")


def test_a_variable_that_becomes_the_reduction_itself_is_written_once() -> None:
    text = print_graph(written("Max", "Neg(s)")).replace("Write(moved)", "Write(s)")
    roles = find_roles(parse_graph(text), 4)
    assert roles.carried == frozenset()
    assert roles.per_step("written")


def test_what_is_computed_from_a_variable_that_is_written_once_is_of_the_next_phase() -> None:
    roles = find_roles(written("Mean", "Sqrt(s)", out="after"), 4)
    assert (roles.phase["written"], roles.phase["after"]) == (1, 2)


def functions_of_reductions(uses: str, out: str) -> Roles:
    return find_roles(
        parse_graph(f"""
            graph step(out: {out}) {{
              x = Input() {{index=0, batch=true}} : float32[4,3]
              rate = Input() {{index=1, batch=false}} : float32[]
              dims = Const() : int32[2]
              mean = Mean(x, dims) : float32[]
              total = Sum(x, dims) : float32[]
              root = Sqrt(mean) : float32[]
              ratio = RealDiv(total, mean) : float32[]
              scaled = Mul(ratio, rate) : float32[]
              rooted = Sqrt(scaled) : float32[]
              {uses}
            }}
        """),
        4,
    )


def test_functions_of_reductions_alone_run_once_per_step() -> None:
    roles = functions_of_reductions("", "root, rooted")
    assert {name for name in roles.phase if roles.per_micro_batch(name)} == {"x", "mean", "total"}
    assert {name for name in roles.phase if roles.per_step(name)} == {"root", "ratio", "scaled", "rooted"}


def test_functions_of_reductions_that_a_micro_batch_needs_run_with_it() -> None:
    """All of them, up to the reductions; `root` is not needed and waits."""
    roles = functions_of_reductions("y = Mul(x, rooted) : float32[4,3]", "root, y")
    assert {name for name in roles.phase if roles.per_step(name)} == {"root"}
    assert roles.phases == 2


def test_functions_of_reductions_that_a_gradient_needs_run_with_it() -> None:
    uses = """dr = Mul(root, x) : float32[4,3]  @call=1 @twin=root
              g = Gradient(dr) {call=1, part=b"dense", variable=b"", of_examples=true, target=b"mean"} : float32[4,3]"""
    roles = functions_of_reductions(uses, "root, ratio, g")
    assert roles.per_micro_batch("root") and roles.per_step("ratio")


def test_a_reduction_of_other_dims_is_no_reason_to_wait() -> None:
    text = """
        graph step(out: y) {
          x = Input() {index=0, batch=true} : float32[4,3]
          dims = Const() : int32[1]
          m = Mean(x, dims) : float32[4]
          y = Sqrt(m) : float32[4]
        }
    """
    roles = find_roles(parse_graph(text), 4)
    assert roles.per_micro_batch("m") and roles.per_micro_batch("y")


def test_the_gradient_of_examples_is_no_final_one() -> None:
    """Whether it is one of examples is told by what it is a gradient of, not by its shape."""
    text = """
        graph step(out: g) {
          x = Input() {index=0, batch=true} : float32[4,3]
          dx = Square(x) : float32[4,3]  @call=1
          g = Gradient(dx) {call=1, part=b"dense", variable=b"", of_examples=OF, target=b"mean"} : float32[4,3]
        }
    """
    assert find_roles(parse_graph(text.replace("OF", "true")), 4).markers == frozenset()
    assert find_roles(parse_graph(text.replace("OF", "false")), 4).markers == {"g"}


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
