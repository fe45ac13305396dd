"""`reshard`: changes of state become nodes; what keeps its state is left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given

from tests.rewrite.steps import MEANS, TRAINING, WAYS, resolved, sized, spread
from whale_tf.ir.graph import Graph, Node, Ref, Shape
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.states import FREE, Choices, derive
from whale_tf.rewrite.reshard import Resharded, reshard

# A gradient that waits for a total; a factor from outside and a constant that are as long as the batch.
COUPLED = """
graph step(out: ) effects(u) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[]
  k = Captured() {index=0} : float32[BATCH]
  twos = Const() {value=(2.0)} : float32[BATCH]
  dims = Const() {value=(0)} : int32[1]
  h = Mul(x, w) : float32[BATCH]  @scope=s0
  m = Mean(h, dims) : float32[]
  c = Sub(h, m) : float32[BATCH]
  a = Mul(c, k) : float32[BATCH]
  b = Mul(a, twos) : float32[BATCH]
  d = Sum(b, dims) : float32[]  @call=1 @twin=h
  g = Gradient(d) {call=1, part=b"dense", variable=b"w", partner=b""} : float32[]
  u = Write(g) {variable=b"w"} : float32[]
}
"""


def resharded(text: str, examples: int = 8) -> Resharded:
    changed = reshard(resolved(text, examples))
    verify(changed.graph, after="reshard")
    return changed


def added(changed: Resharded, text: str, examples: int = 8) -> list[Node]:
    before: Graph = resolved(text, examples).sizes.graph
    return [node for node in changed.graph if node.name not in before]


def test_a_step_that_keeps_its_states_is_left_alone() -> None:
    states = resolved(TRAINING, 8)
    changed = reshard(states)
    assert changed.graph == states.sizes.graph
    assert changed.made_of == {}
    assert changed.roles.phase == states.level


def test_changes_of_state_are_nodes_in_front_of_what_takes_them() -> None:
    changed = resharded(COUPLED)
    assert [line.strip() for line in print_graph(changed.graph).splitlines()][7:15] == [
        "m = Mean(h, dims) : float32[]",
        "m/merged = Merge(m) : float32[]",
        "c = Sub(h, m/merged) : float32[8]",
        "k/piece0_1/2 = Piece(k) {dim=0, outer=1} : float32[8]",
        "a = Mul(c, k/piece0_1/2) : float32[8]",
        "twos/alike0_1 = Const() {dtype=float32, value=2.0, shape=[8]} : float32[8]",
        "b = Mul(a, twos/alike0_1) : float32[8]",
        "d = Sum(b, dims) : float32[]  @call=1 @twin=h",
    ]


def test_a_merge_runs_once_and_a_piece_with_the_part_that_takes_it() -> None:
    changed = resharded(COUPLED)
    phase = changed.roles.phase
    assert {name: phase[name] for name in ("h", "m", "m/merged", "c", "k/piece0_1/2", "twos/alike0_1", "d", "g")} == {
        "h": 0,
        "m": 0,
        "m/merged": 1,
        "c": 2,
        "k/piece0_1/2": 2,
        "twos/alike0_1": FREE,
        "d": 2,
        "g": 3,
    }


def test_each_new_node_tells_of_which_tensor_it_is_a_form() -> None:
    changed = resharded(COUPLED)
    assert changed.made_of == {"m/merged": Ref("m"), "k/piece0_1/2": Ref("k"), "twos/alike0_1": Ref("twos")}
    assert {node.name for node in added(changed, COUPLED)} == set(changed.made_of)


def test_what_several_take_is_made_once() -> None:
    text = COUPLED.replace(
        "b = Mul(a, twos)", "e = Mul(c, k) : float32[BATCH]\n  f = Sub(e, m) : float32[BATCH]\n  b = Mul(a, f)"
    )
    changed = resharded(text)
    assert sum(node.op == "Merge" for node in changed.graph) == 1
    assert sum(node.op == "Piece" for node in changed.graph) == 1
    assert changed.graph["f"].inputs[1] == Ref("m/merged")


def test_a_gradient_is_scaled_by_the_part_that_makes_it() -> None:
    changed = resharded(MEANS)
    (scale,) = [node for node in changed.graph if node.op == "Scale"]
    assert (scale.inputs, scale.attrs, scale.call) == ((Ref("d1"),), {"power": "1"}, 1)
    assert changed.graph["g1"].inputs == (Ref(scale.name),)
    assert changed.roles.per_micro_batch(scale.name)
    assert changed.roles.markers == {"g0", "g1"}
    assert scale.name in changed.roles.backward


def test_positions_that_leave_the_parts_are_those_of_the_whole_batch() -> None:
    text = """
        graph step(out: y) {
          x = Input() {index=0, batch=true} : bool[BATCH]
          found = Where(x) : int64[?,1]
          y = Neg(found) : int64[?,1]
        }
    """
    changed = resharded(text)
    (shift,) = [node for node in changed.graph if node.op == "Shift"]
    assert shift.inputs == (Ref("found"),)
    assert shift.attrs == {"ahead": (1,)}
    assert changed.graph["y"].inputs == (Ref(shift.name),)


def test_what_is_known_of_what_parts_have_is_a_constant() -> None:
    """The shape of examples is known: nothing has to wait for them."""
    text = """
        graph step(out: n, r) {
          x = Input() {index=0, batch=true} : float32[BATCH,2]
          n = Shape(x) : int32[2]
          r = Neg(n) : int32[2]
        }
    """
    sizes = sized(text, 8, 4)
    known = replace(sizes, values={**sizes.values, Ref("n"): np.array([8, 2], np.int32)})
    changed = reshard(derive(known, Choices()))
    assert changed.graph["n"].op == "Const"
    assert changed.graph["n"].attrs == {"dtype": "int32", "value": (8, 2), "shape": Shape((2,))}
    assert changed.roles.phase["n"] == FREE


@given(**WAYS)
def test_a_step_whose_states_change_is_right_however_it_is_spread(
    replicas: int, micro_batches: int, extra: int, schedule: str, loss: str
) -> None:
    text = COUPLED.replace("out: ", "out: m")
    spread(
        text,
        replicas=replicas,
        micro_batches=micro_batches,
        examples=2 * replicas * micro_batches + extra,
        schedule=schedule,
        loss=loss,
        exact=True,
    ).check()


def test_shapes_stay_those_of_the_global_batch() -> None:
    changed = resharded(COUPLED, 6)
    assert changed.graph["k/piece0_1/2"].outputs[0].shape == Shape((6,))
