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


@pytest.mark.parametrize("function", ["Sqrt(s)", "Cast(s)", "Reshape(s, dims)", "Exp(s)"])
def test_a_function_of_a_reduction_is_computed_from_what_is_merged(function: str) -> None:
    assert merges_of(f"s = Mean(x, dims) : float32[]\n y = {function} : float32[]") == {"s": "mean"}


def test_a_quotient_of_sums_is_computed_from_both_sums() -> None:
    nodes = "s = Sum(x, dims) : float32[]\n n = Sum(x, dims) : float32[]\n y = RealDiv(s, n) : float32[]"
    assert merges_of(nodes) == {"s": "sum", "n": "sum"}


def test_a_reduction_of_other_dims_is_per_example() -> None:
    assert merges_of("y = Sum(x, dims) : float32[BATCH]") == {"y": "concat"}


def test_other_scalar_floats_are_averaged() -> None:
    assert merges_of("y = CTCLoss(x) : float32[]") == {"y": "mean"}


@pytest.mark.parametrize("shape", ["3,3", "1"])
def test_other_floats_with_dims_are_refused(shape: str) -> None:
    """A sum over the examples, as a matrix of second moments is, must not be averaged in silence."""
    with pytest.raises(PlanError, match="'y' has one value for each micro-batch"):
        merges_of(f"y = MatMul(x, x) {{transpose_a=true}} : float32[{shape}]")


def test_values_are_concatenated_along_the_dim_that_follows_the_batch() -> None:
    nodes = "y = Transpose(x, dims) : float32[3,BATCH]"
    assert merges_of(nodes, other=8) == {"y": "concat 1"}
    with pytest.raises(PlanError, match="'y' has one value for each micro-batch"):
        merges_of(nodes)


def test_a_value_that_only_happens_to_be_as_long_as_the_batch_is_told_by_the_other_size() -> None:
    nodes = "y = Mean(x, dims) : float32[3]"
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
    moved = CHANGE : KIND[]
    written = Write(moved) {variable=b"a"} : KIND[]
"""


def state(kind: str, aggregation: str, replicas: int = 2, *, change: str = "Mul(a, s)") -> dict[str, str]:
    nodes = STATE.replace("KIND", kind).replace("AGGREGATION", aggregation).replace("CHANGE", change)
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


@pytest.mark.parametrize("aggregation", ["NONE", "SUM"])
@pytest.mark.parametrize("kind", ["float32", "int64"])
@pytest.mark.parametrize("change", ["AddV2(a, s)", "AddV2(s, a)"])
def test_what_is_added_to_a_variable_is_added_by_all(kind: str, aggregation: str, change: str) -> None:
    assert state(kind, aggregation, change=change) == {"written": "state sum"}


def test_an_addition_whose_term_depends_on_the_variable_is_no_sum() -> None:
    """`a + (s - a) / 2` is a moving average."""
    nodes = STATE.replace("KIND", "float32").replace("AGGREGATION", "NONE").replace("CHANGE", "AddV2(a, away)")
    away = "away = Sub(s, a) : float32[]\n    moved ="
    assert merges_of(nodes.replace("moved =", away), "", effects="written") == {"written": "state mean"}


@pytest.mark.parametrize(("change", "how"), [("Maximum(a, s)", "state maximum"), ("Minimum(s, a)", "state minimum")])
@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_an_extreme_over_the_replicas_is_one_over_all(kind: str, change: str, how: str) -> None:
    assert state(kind, "NONE", change=change) == {"written": how}
    assert state(kind, "ONLY_FIRST_REPLICA", change=change) == {"written": "state first"}


def test_whole_numbers_that_every_replica_changes_are_refused_without_an_aggregation() -> None:
    with pytest.raises(VariableError) as refused:
        state("int64", "NONE")
    assert str(refused.value) == (
        "variable 'a' is changed by every replica, and no rule says how to merge the changes.\n"
        "  it is int64 with aggregation NONE; only floats are averaged without being told\n"
        "  at train.py:7 in step: written\n"
        "  Make it with aggregation=tf.VariableAggregation.SUM, or ONLY_FIRST_REPLICA."
    )


def test_a_value_that_no_merge_fits_is_refused() -> None:
    with pytest.raises(PlanError) as refused:
        merges_of("u = Unique(x) : float32[?]\n y = Size(u) : int32[]")
    assert str(refused.value) == (
        "'y' has one value for each micro-batch, and no rule says what they are together.\n"
        "  it is int32[]: no scalar float, no per-example value, no reduction over the examples\n"
        "  at train.py:7 in step: y\n"
        "  Return per-example values or a scalar float, "
        "or compute it by tf.reduce_sum, reduce_max or reduce_min over the batch."
    )


def test_outputs_of_one_op_are_merged_each_by_itself() -> None:
    found = merges_of("y = Unpack(x) : float32[BATCH,3], float32[]", "y, y:1")
    assert found == {str(Ref("y")): "concat", str(Ref("y", 1)): "mean"}
