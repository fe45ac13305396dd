"""Owners: one per variable, in its stage, shared out over the replicas; the update goes where its data is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.texts import roles_of
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.layout import Layout
from whale_tf.plan.owners import assign_owners, owning_stages, place_update
from whale_tf.plan.roles import find_roles

TWO_BY_TWO = Layout((0.5, 0.5), ("a", "b"), (((0,), (1,)), ((2,), (3,))), tuple(f"CPU:{index}" for index in range(4)))


def training(sizes: list[int], stages: list[int]) -> tuple[Graph, dict[str, int]]:
    """A step that trains variables v0, v1, ... of so many elements, each by a gradient of its stage."""
    lines = ["x = Input() {index=0, batch=true} : float32[4]"]
    for number, size in enumerate(sizes):
        kind = f"float32[{size}]"
        lines += [
            f'v{number} = Variable() {{variable=b"v{number}", trainable=true, aggregation=b"NONE"}} : {kind}',
            f"d{number} = Mul(x, v{number}) : {kind}  @call=1",
            f'g{number} = Gradient(d{number}) {{call=1, part=b"dense", variable=b"v{number}"}} : {kind}',
            f"s{number} = Sub(v{number}, g{number}) : {kind}",
            f'w{number} = Write(s{number}) {{variable=b"v{number}"}} : {kind}',
        ]
    effects = ", ".join(f"w{number}" for number in range(len(sizes)))
    text = "\n".join([f"graph step(out: ) effects({effects}) {{", *lines, "}"])
    return parse_graph(text), {f"d{number}": stage for number, stage in enumerate(stages)}


def test_an_owner_is_a_device_of_the_variables_stage() -> None:
    graph, stage_of = training([3, 3], [0, 1])
    roles = roles_of(graph)
    assert owning_stages(graph, roles, stage_of) == {"v0": 0, "v1": 1}
    assert assign_owners(graph, roles, stage_of, TWO_BY_TWO) == {"v0": (1,), "v1": (2,)}


def test_the_variables_of_a_stage_are_shared_out_over_the_replicas() -> None:
    graph, stage_of = training([1, 2, 3], [0, 0, 0])
    assert assign_owners(graph, roles_of(graph), stage_of, TWO_BY_TWO) == {"v0": (3,), "v1": (3,), "v2": (1,)}


@given(sizes=st.lists(st.integers(1, 100), min_size=1, max_size=12))
def test_no_replica_owns_more_than_the_others_by_more_than_its_smallest_variable(sizes: list[int]) -> None:
    graph, stage_of = training(sizes, [0] * len(sizes))
    owner = assign_owners(graph, roles_of(graph), stage_of, TWO_BY_TWO)
    owned: dict[int, list[int]] = {1: [], 3: []}
    for number, size in enumerate(sizes):
        owned[owner[f"v{number}"][0]].append(size)
    least, most = sorted(owned.values(), key=sum)
    assert sum(most) - sum(least) <= min(most)


def test_a_variable_of_several_stages_belongs_to_the_earliest() -> None:
    graph = parse_graph("""
        graph step(out: ) effects(w) {
          x = Input() {index=0, batch=true} : float32[4]
          v = Variable() {variable=b"v", trainable=true, aggregation=b"NONE"} : float32[4]
          d1 = Mul(x, v) : float32[4]  @call=1
          d0 = Neg(x) : float32[4]  @call=1
          values = Gradient(d1) {call=1, part=b"values", variable=b"v"} : float32[4]
          indices = Gradient(d0) {call=1, part=b"indices", variable=b"v"} : float32[4]
          s = Sub(values, indices) : float32[4]
          w = Write(s) {variable=b"v"} : float32[4]
        }
    """)
    roles = roles_of(graph)
    assert owning_stages(graph, roles, {"d1": 1, "d0": 0}) == {"v": 0}


def test_the_update_runs_where_the_variable_is_owned() -> None:
    graph, stage_of = training([3, 2], [1, 1])
    roles = roles_of(graph)
    owner = assign_owners(graph, roles, stage_of, TWO_BY_TWO)
    assert owner == {"v0": (2,), "v1": (4,)}
    placed = place_update(graph, roles, stage_of, TWO_BY_TWO, owner)
    assert placed == ({"g0": (2,), "s0": (2,), "w0": (2,), "g1": (4,), "s1": (4,), "w1": (4,)}, ())


def test_a_value_of_several_owners_is_computed_where_its_largest_input_is() -> None:
    graph = parse_graph("""
        graph step(out: norm, copy) {
          x = Input() {index=0, batch=true} : float32[4]
          d0 = Neg(x) : float32[4]  @call=1
          d1 = Neg(x) : float32[9]  @call=1
          loss = Sum(x, d0) : float32[]
          g0 = Gradient(d0) {call=1, part=b"dense", variable=b"v0"} : float32[4]
          g1 = Gradient(d1) {call=1, part=b"dense", variable=b"v1"} : float32[9]
          norm = AddN(g0, g1, loss) : float32[]
          copy = Neg(norm) : float32[]
        }
    """)
    phase = dict.fromkeys(("x", "d0", "d1", "loss"), 0) | dict.fromkeys(("g0", "g1", "norm", "copy"), 1)
    roles = find_roles(graph, phase, frozenset({"g0", "g1"}))
    stage_of = {"d0": 0, "d1": 1, "loss": 1}
    placed = place_update(graph, roles, stage_of, TWO_BY_TWO, {"v0": (1,), "v1": (4,)})
    assert placed == ({"g0": (1,), "g1": (4,), "norm": (4,), "copy": (4,)}, ())


@pytest.mark.parametrize(("inside", "once"), [("Neg", ()), ("Sum", ("chosen",))])
def test_what_adds_up_inside_of_what_it_calls_runs_in_the_first_group_only(inside: str, once: tuple[str, ...]) -> None:
    graph = parse_graph("""
        graph step(out: chosen) {
          x = Input() {index=0, batch=true} : float32[4]
          d = Neg(x) : float32[4]  @call=1
          g = Gradient(d) {call=1, part=b"dense", variable=b"v"} : float32[4]
          c = Captured() {index=0} : bool[]
          chosen = StatelessIf(c, g) {then_branch=@then, else_branch=@else} : float32[4]
        }
    """)
    body = parse_graph(
        f"graph then(out: y) {{\n x = Argument() {{index=0}} : float32[4]\n y = {inside}(x) : float32[4]\n}}"
    )
    roles = roles_of(graph)
    layout = Layout((0.5, 0.5), ("a",), (((0,),), ((1,),)), ("CPU:0", "CPU:0"), (0, 1))
    owner = assign_owners(graph, roles, {"d": 0}, layout)
    placed, only_first = place_update(graph, roles, {"d": 0}, layout, owner, {"then": body, "else": body})
    assert (owner, placed["chosen"]) == ({"v": (1,)}, (1,))
    assert only_first == once


def test_the_gradient_of_what_is_no_variable_is_of_the_micro_batches() -> None:
    graph = parse_graph("""
        graph step(out: g) {
          x = Input() {index=0, batch=true} : float32[4]
          d = Neg(x) : float32[4]  @call=1
          g = Gradient(d) {call=1, part=b"dense", variable=b""} : float32[4]
        }
    """)
    roles = roles_of(graph)
    assert assign_owners(graph, roles, {"d": 1}, TWO_BY_TWO) == {}
    assert place_update(graph, roles, {"d": 1}, TWO_BY_TWO, {}) == ({}, ())
