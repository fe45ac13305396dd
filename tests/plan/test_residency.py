"""What follows from gradients stays where it is used; numbers and what the forward writes are up to date everywhere."""

from __future__ import annotations

from tests.plan.test_owners import training
from tests.plan.texts import roles_of
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.layout import Layout
from whale_tf.plan.owners import assign_owners, place_update
from whale_tf.plan.residency import VariableLayout, lay_out_variables

PIPELINE = Layout((1.0,), ("a", "b"), (((0,), (1,)),), ("CPU:0", "CPU:0"), (0, 1))
ALONE = Layout((1.0,), ("a", "b"), (((0,), (1,)),), ("CPU:0", "CPU:1"))
EVERYTHING = frozenset({"v0", "v1", "count", "average"})


def laid_out(
    graph: Graph, stage_of: dict[str, int], layout: Layout = PIPELINE, refusable: frozenset[str] = EVERYTHING
) -> dict[str, VariableLayout]:
    roles = roles_of(graph, 4)
    owner = assign_owners(graph, roles, stage_of, layout)
    seat_of, _ = place_update(graph, roles, stage_of, layout, owner)
    return lay_out_variables(graph, roles, stage_of, seat_of, layout, owner, refusable)


def unmirrored(
    graph: Graph, stage_of: dict[str, int], layout: Layout = PIPELINE, refusable: frozenset[str] = EVERYTHING
) -> tuple[str, ...]:
    """Variables that are up to date only where they are used."""
    found = laid_out(graph, stage_of, layout, refusable)
    return tuple(name for name, variable in found.items() if not variable.everywhere)


def test_trained_variables_stay_where_they_are_used() -> None:
    assert unmirrored(*training([3, 5], [0, 1])) == ("v0", "v1")


def test_within_one_process_there_is_nothing_to_decide() -> None:
    assert unmirrored(*training([3, 5], [0, 1]), ALONE) == ()


def test_a_variable_whose_reads_cannot_be_refused_is_mirrored() -> None:
    assert unmirrored(*training([3, 5], [0, 1]), refusable=frozenset({"v1"})) == ("v1",)


def test_a_number_of_the_update_is_mirrored() -> None:
    graph = parse_graph("""
        graph step(out: ) effects(w, u) {
          x = Input() {index=0, batch=true} : float32[4]
          v0 = Variable() {variable=b"v0", trainable=true, aggregation=b"NONE"} : float32[1]
          count = Variable() {variable=b"count", trainable=false, aggregation=b"NONE"} : float32[]
          d = Mul(x, v0) : float32[1]  @call=1
          g = Gradient(d) {call=1, part=b"dense", variable=b"v0"} : float32[1]
          s = Sub(v0, g) : float32[1]
          w = Write(s) {variable=b"v0"} : float32[1]
          norm = L2Loss(g) : float32[]
          n = Add(count, norm) : float32[]
          u = Write(n) {variable=b"count"} : float32[]
        }""")
    assert unmirrored(graph, {"d": 0, "mean": 0}) == ("v0",)


def test_what_the_forward_writes_is_mirrored() -> None:
    graph = parse_graph("""
        graph step(out: ) effects(w) {
          x = Input() {index=0, batch=true} : float32[4,3]
          average = Variable() {variable=b"average", trainable=false, aggregation=b"MEAN"} : float32[3]
          dims = Const() {value=opaque"AA=="} : int32[]
          mean = Mean(x, dims) : float32[3]
          n = Add(average, mean) : float32[3]
          w = Write(n) {variable=b"average"} : float32[3]
        }""")
    assert unmirrored(graph, {"d": 0, "mean": 0}) == ()
