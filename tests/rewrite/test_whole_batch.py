"""`use_whole_batch`: what runs once per step has the size of the whole batch, and what runs per micro-batch its own."""

from __future__ import annotations

from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.text import parse_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.roles import FREE, Roles, find_roles
from whale_tf.rewrite.whole_batch import depends_on_size, use_whole_batch

# The number of examples, as a float and as a reciprocal, is in the loss, in the update and in a count.
TRAINING = """
graph step(out: loss, share) effects(written, counted) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[]
  c = Variable() {variable=b"c", trainable=false, aggregation=b"NONE"} : int32[]
  dims = Const() {numbers=(0.0)} : int32[1]
  two = Const() {numbers=(2.0)} : float32[]
  n = Const() {numbers=(BATCH.0)} : int32[]
  size = Cast(n) : float32[]
  share = RealDiv(two, size) : float32[]
  y = Mul(x, share) : float32[BATCH]
  loss = Mean(y, dims) : float32[]
  dw = Sum(y, dims) : float32[]  @call=1
  g = Gradient(dw) {call=1, part=b"dense", variable=b"w", partner=b"", target=b"mean"} : float32[]
  scaled = Mul(g, share) : float32[]
  twice = Mul(scaled, two) : float32[]
  lowered = Sub(w, twice) : float32[]
  written = Write(lowered) {variable=b"w"} : float32[]
  more = AddV2(c, n) : int32[]
  counted = Write(more) {variable=b"c"} : int32[]
}
"""


def traced(examples: int, text: str = TRAINING) -> tuple[Graph, Roles]:
    graph = parse_graph(text.replace("BATCH", str(examples)))
    return graph, find_roles(graph, examples)


def whole_batch(text: str = TRAINING, *, whole: int = 16) -> Graph:
    graph, roles = traced(4, text)
    changed = use_whole_batch(graph, roles, traced(whole, text)[0])
    verify(changed, after="use_whole_batch")
    return changed


def test_what_runs_once_per_step_takes_the_constants_of_the_whole_batch() -> None:
    graph = whole_batch()
    assert graph["n/whole"].attrs["numbers"] == (16.0,)
    assert graph["scaled"].inputs == (Ref("g"), Ref("share/whole"))
    assert graph["share/whole"].inputs == (Ref("two"), Ref("size/whole"))
    assert graph["size/whole"].inputs == (Ref("n/whole"),)


def test_what_runs_per_micro_batch_keeps_its_own() -> None:
    graph = whole_batch()
    assert graph["n"].attrs["numbers"] == (4.0,)
    assert graph["y"].inputs == (Ref("x"), Ref("share"))
    assert graph["loss"] is not None and graph["dw"].inputs[0] == Ref("y")


def test_outputs_that_depend_on_no_example_are_those_of_the_whole_batch() -> None:
    assert whole_batch().outputs == (Ref("loss"), Ref("share/whole"))


def test_a_variable_that_counts_examples_counts_all() -> None:
    """`counted` depends on no example: it is written once per step."""
    graph = whole_batch()
    assert graph["counted"].inputs == (Ref("more/whole"),)
    assert graph["more/whole"].inputs == (Ref("c"), Ref("n/whole"))


def test_what_is_the_same_at_both_sizes_is_left_alone() -> None:
    graph = whole_batch()
    before, _ = traced(4)
    assert graph["twice"] == before["twice"]
    added = set(graph.nodes) - set(before.nodes)
    assert added == {f"{name}/whole" for name in ("n", "size", "share", "more")}
    assert graph.effects == before.effects
    assert whole_batch(whole=4) == before


def test_gradients_and_variables_are_never_taken_from_the_other_trace() -> None:
    graph = whole_batch()
    assert not {f"{name}/whole" for name in ("w", "c", "x", "g", "written", "counted")} & set(graph.nodes)
    assert graph["lowered"].inputs == (Ref("w"), Ref("twice"))


def test_a_copy_is_made_once_and_before_what_takes_it() -> None:
    text = TRAINING.replace("twice = Mul(scaled, two)", "twice = Mul(scaled, share)")
    graph = whole_batch(text)
    assert graph["scaled"].inputs[1] == graph["twice"].inputs[1] == Ref("share/whole")


def test_roles_stay() -> None:
    graph = whole_batch()
    before, after = traced(4)[1], find_roles(graph, 4)
    assert {name: after.phase[name] for name in before.phase} == before.phase
    assert after.phase["share/whole"] == FREE


def test_a_node_that_the_other_trace_lacks_or_has_otherwise_stays() -> None:
    graph, roles = traced(4)
    other = parse_graph(TRAINING.replace("BATCH", "16").replace("size = Cast(n)", "size = Round(n)"))
    changed = use_whole_batch(graph, roles, other)
    verify(changed, after="use_whole_batch")
    assert changed["scaled"].inputs == (Ref("g"), Ref("share"))
    assert changed["counted"].inputs == (Ref("more/whole"),)


# Whether there is anything to do.


def depends(text: str, examples: int = 4) -> bool:
    return depends_on_size(*traced(examples, text), examples)


def test_a_step_depends_on_the_size_if_a_constant_that_is_as_large_is_used_once_per_step() -> None:
    assert depends(TRAINING)
    assert not depends(TRAINING.replace("numbers=(BATCH.0)", "numbers=(5.0)"))
    assert depends(TRAINING.replace("numbers=(BATCH.0)", "numbers=(3.0, BATCH.0)"))


def test_a_constant_that_only_micro_batches_use_does_not_count() -> None:
    text = TRAINING.replace("Mul(g, share)", "Mul(g, two)").replace("AddV2(c, n)", "AddV2(c, c)")
    assert depends(text)
    assert not depends(text.replace("out: loss, share", "out: loss"))


def test_batches_of_one_do_not_count() -> None:
    """A one is too common a constant to trace the step again for it."""
    assert not depends(TRAINING, 1)
