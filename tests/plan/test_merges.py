"""Merges: how the values of all micro-batches become one, by what made them."""

from __future__ import annotations

import pytest

from whale_tf.errors import Line, PlanError, VariableError
from whale_tf.ir.graph import Ref
from whale_tf.ir.text import parse_graph
from whale_tf.plan.merges import decide_merges
from whale_tf.plan.roles import find_roles


def merges_of(
    nodes: str, out: str = "y", *, effects: str = "", examples: int = 4, other: int = 0, replicas: int = 2
) -> dict[str, str]:
    """The merges of a step over x [examples, 3]; BATCH stands for the number of examples in its text."""
    around = f" effects({effects})" if effects else ""
    text = f"""
        graph step(out: {out}){around} {{
          x = Input() {{index=0, batch=true}} : float32[BATCH,3]
          dims = Const() : int32[1]
          {nodes}
        }}
    """
    graph = parse_graph(text.replace("BATCH", str(examples)))
    probe = (parse_graph(text.replace("BATCH", str(other))), other) if other else None
    found = decide_merges(
        graph,
        find_roles(graph, examples),
        examples,
        probe,
        lambda name: Line("train.py", 7, "step", name),
        replicas=replicas,
    )
    return {str(ref): how for ref, how in found.items()}


def test_per_example_values_are_concatenated() -> None:
    assert merges_of("y = Relu(x) : float32[BATCH,3]") == {"y": "concat"}
    assert merges_of("y = ArgMax(x, dims) : int64[BATCH]") == {"y": "concat"}


def test_an_input_that_is_returned_is_concatenated() -> None:
    assert merges_of("", "x") == {"x": "concat"}


@pytest.mark.parametrize(
    ("op", "how"),
    [("Sum", "sum"), ("Max", "max"), ("Min", "min"), ("Prod", "prod"), ("L2Loss", "sum"), ("Mean", "mean")],
)
def test_a_reduction_over_the_examples_is_continued(op: str, how: str) -> None:
    assert merges_of(f"y = {op}(x, dims) : float32[]") == {"y": how}


def test_the_reduction_of_truths_is_continued() -> None:
    for op, how in (("All", "all"), ("Any", "any")):
        assert merges_of(f"c = Cast(x) : bool[BATCH,3]\n y = {op}(c, dims) : bool[3]") == {"y": how}


def test_a_reduction_is_seen_through_casts_and_reshapes() -> None:
    nodes = "s = Sum(x, dims) : float32[]\n c = Cast(s) : int32[]\n y = Reshape(c, dims) : int32[1]"
    assert merges_of(nodes) == {"y": "sum"}


def test_a_reduction_of_other_dims_is_per_example() -> None:
    assert merges_of("y = Sum(x, dims) : float32[BATCH]") == {"y": "concat"}


def test_other_floats_are_averaged() -> None:
    assert merges_of("s = Sum(x, dims) : float32[]\n y = Sqrt(s) : float32[]") == {"y": "mean"}


def test_a_value_that_only_happens_to_be_as_long_as_the_batch_is_told_by_the_other_size() -> None:
    nodes = "m = Mean(x, dims) : float32[3]\n y = Relu(m) : float32[3]"
    assert merges_of(nodes, examples=3) == {"y": "concat"}
    assert merges_of(nodes, examples=3, other=2) == {"y": "mean"}


def test_a_sum_that_only_happens_to_be_as_long_as_the_batch_is_still_a_sum() -> None:
    assert merges_of("y = Sum(x, dims) : float32[3]", examples=3, other=2) == {"y": "sum"}


def test_only_what_leaves_the_micro_batches_is_merged() -> None:
    nodes = "h = Relu(x) : float32[BATCH,3]\n y = Mean(h, dims) : float32[]"
    assert set(merges_of(nodes)) == {"y"}


def test_what_the_update_takes_is_merged_and_gradients_are_not() -> None:
    nodes = """
        w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[3]
        y = Mean(x, dims) : float32[]
        dw = Sum(x, w) : float32[3]  @call=1
        marked = Gradient(dw) {call=1, part=b"dense", variable=b"w"} : float32[3]
        scaled = Mul(marked, y) : float32[3]
        written = Write(scaled) {variable=b"w"} : float32[3]
    """
    assert merges_of(nodes, "", effects="written") == {"y": "mean"}


STATE = """
    a = Variable() {variable=b"a", trainable=false, aggregation=b"AGGREGATION"} : KIND[]
    s = Sum(x, dims) : KIND[]
    moved = AddV2(a, s) : KIND[]
    written = Write(moved) {variable=b"a"} : KIND[]
"""


def state(kind: str, aggregation: str, replicas: int) -> dict[str, str]:
    nodes = STATE.replace("KIND", kind).replace("AGGREGATION", aggregation)
    return merges_of(nodes, "", effects="written", replicas=replicas)


@pytest.mark.parametrize(
    ("kind", "aggregation", "replicas", "how"),
    [
        ("float32", "NONE", 2, "state mean"),
        ("float32", "MEAN", 2, "state mean"),
        ("float32", "SUM", 2, "state sum"),
        ("int64", "SUM", 2, "state sum"),
        ("float32", "ONLY_FIRST_REPLICA", 2, "state first"),
        ("int64", "NONE", 1, "state first"),
    ],
)
def test_a_state_is_merged_by_its_aggregation(kind: str, aggregation: str, replicas: int, how: str) -> None:
    assert state(kind, aggregation, replicas) == {"written": how}


def test_whole_numbers_that_every_replica_changes_are_refused_without_an_aggregation() -> None:
    with pytest.raises(VariableError) as refused:
        state("int64", "NONE", 2)
    assert str(refused.value) == (
        "variable 'a' is changed by every replica, and no rule says how to merge the changes.\n"
        "  it is int64 with aggregation NONE; only floats are averaged without being told\n"
        "  at train.py:7 in step: written\n"
        "  Make it with aggregation=tf.VariableAggregation.SUM, or ONLY_FIRST_REPLICA."
    )


def test_a_value_that_no_merge_fits_is_refused() -> None:
    with pytest.raises(PlanError) as refused:
        merges_of("m = Mean(x, dims) : float32[]\n y = Floor(m) : int32[]")
    assert str(refused.value) == (
        "'y' has one value for each micro-batch, and no rule says what they are together.\n"
        "  it is int32[]: no float, no per-example value, no reduction over the examples\n"
        "  at train.py:7 in step: y\n"
        "  Return per-example values or a float, "
        "or compute it by tf.reduce_sum, reduce_max or reduce_min over the batch."
    )


def test_outputs_of_one_op_are_merged_each_by_itself() -> None:
    found = merges_of("y = Unpack(x) : float32[BATCH,3], float32[]", "y, y:1")
    assert found == {str(Ref("y")): "concat", str(Ref("y", 1)): "mean"}
