"""Reductions: what a value of a part is over the examples, by the operations that made it."""

from __future__ import annotations

import pytest

from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.reductions import (
    RANDOM,
    REDUCTIONS,
    accumulates,
    batch_dim,
    constant,
    depends_on_examples,
    is_mean,
    loss_kind,
    reduces_examples,
    reduction_of,
)
from whale_tf.ir.text import parse_graph

STEP = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  rate = Input() {index=1, batch=false} : float32[]
  a = Variable() {variable=b"a", trainable=false, aggregation=b"NONE"} : float32[]
  dims = Const() : int32[1]
  one = Const() {numbers=(1.0)} : float32[]
  NODES
}
"""


def step(nodes: str, examples: int = 4) -> Graph:
    """The step at a size; BATCH stands for it."""
    return parse_graph(STEP.replace("NODES", nodes).replace("BATCH", str(examples)))


def reduction(nodes: str, *, examples: int = 4, other: int = 0, ref: str = "y") -> str:
    probe = (step(nodes, other), other) if other else None
    return reduction_of(step(nodes, examples), Ref(ref), examples, probe)


def kind(nodes: str) -> str:
    return loss_kind(step(nodes), Ref("y"), 4)


# How parts come together.


def test_per_example_values_are_concatenated() -> None:
    assert reduction("y = Relu(x) : float32[BATCH,3]") == "concat"
    assert reduction("y = ArgMax(x, dims) : int64[BATCH]", other=8) == "concat"


def test_a_dim_other_than_the_first_is_named() -> None:
    assert reduction("y = Transpose(x, dims) : float32[3,BATCH]", other=8) == "concat 1"
    assert reduction("y = Transpose(x, dims) : float32[1,3,BATCH]", other=2) == "concat 2"


def test_dims_that_grow_with_the_batch_follow_it() -> None:
    assert reduction("y = Reshape(x, dims) : float32[BATCH]") == "concat"
    graphs = [step(f"y = Reshape(x, dims) : float32[{3 * size}]", size) for size in (4, 8)]
    assert reduction_of(graphs[0], Ref("y"), 4, (graphs[1], 8)) == "concat"


@pytest.mark.parametrize(
    "shapes", [("4,4", "8,8"), ("5,3", "8,3"), ("4", "8,1"), ("4", "9")], ids=["two dims", "plus one", "rank", "other"]
)
def test_what_changes_with_the_size_in_another_way_fits_nothing(shapes: tuple[str, str]) -> None:
    here, there = (step(f"y = Conv(x, dims) : float32[{shape}]") for shape in shapes)
    assert reduction_of(here, Ref("y"), 4, (there, 8)) == ""


def test_a_scalar_that_changes_its_shape_with_the_size_is_no_mean() -> None:
    here, there = step("y = Squeeze(x) : float32[]"), step("y = Squeeze(x) : float32[8]")
    assert reduction_of(here, Ref("y"), 1, (there, 8)) == ""


@pytest.mark.parametrize(("op", "how"), REDUCTIONS.items())
def test_a_reduction_over_the_examples_goes_on_over_parts(op: str, how: str) -> None:
    assert reduction(f"y = {op}(x, dims) : float32[]") == how
    assert reduction(f"y = {op}(x, dims) : float32[3]") == how
    assert reduction(f"y = {op}(x, dims) : float32[BATCH]") == "concat"


@pytest.mark.parametrize("same", ["Cast(s)", "Reshape(s, dims)", "Squeeze(s)", "ExpandDims(s, dims)"])
def test_a_reduction_is_seen_through_what_leaves_its_value(same: str) -> None:
    assert reduction(f"s = Sum(x, dims) : float32[]\n c = Cast(s) : int32[]\n y = {same} : int32[1]") == "sum"


def test_a_reduction_over_something_else_is_none_over_examples() -> None:
    nodes = "k = Const() : float32[3]\n y = Sum(k, dims) : float32[]"
    assert not reduces_examples(step(nodes), step(nodes)["y"], 4)
    assert reduces_examples(step("y = Sum(x, dims) : float32[]"), step("y = Sum(x, dims) : float32[]")["y"], 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_only_scalar_floats_are_means_without_a_reason(dtype: str) -> None:
    assert reduction(f"y = CTCLoss(x) : {dtype}[]") == "mean"
    assert reduction(f"y = CTCLoss(x) : {dtype}[1]") == ""
    assert reduction(f"y = CTCLoss(x) : {dtype}[3,3]") == ""


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "string", "complex64"])
def test_other_scalars_fit_nothing(dtype: str) -> None:
    assert reduction(f"y = Unknown(x) : {dtype}[]") == ""


def test_a_value_as_long_as_the_batch_by_chance_is_told_by_another_size() -> None:
    nodes = "y = Mean(x, dims) : float32[3]"
    assert reduction(nodes, examples=3) == "concat"
    assert reduction(nodes, examples=3, other=6) == "mean"


# Dims.


def dim(shape: str, other: str = "", *, examples: int = 4) -> int | None:
    here = step(f"y = Relu(x) : float32[{shape}]")
    there = (step(f"y = Relu(x) : float32[{other}]"), 8) if other else None
    return batch_dim(here, Ref("y"), examples, there)


def test_an_unknown_first_dim_is_the_batch_of_what_a_mask_has_chosen() -> None:
    """Parts of it are put one after another; what was counted is another thing."""
    assert reduction("y = GatherV2(x, dims) : float32[?,3]") == "concat"
    assert reduction("y = Bincount(x, dims) : float32[?]") == ""
    assert dim("?,3") is None
    assert dim("3,?") is None


def test_an_unknown_rank_has_no_batch_dim() -> None:
    assert dim("*") is None


def test_without_another_size_only_dim_0_is_the_batch() -> None:
    assert dim("4,3") == 0
    assert dim("3,4") is None
    assert dim("") is None


def test_with_another_size_it_is_the_dim_that_grows() -> None:
    assert dim("3,4", "3,8") == 1
    assert dim("4,4", "4,8") == 1
    assert dim("4,3", "4,3") is None
    assert dim("4,4", "8,8") is None
    assert dim("12", "24") == 0
    assert dim("5", "9") is None


def test_a_node_that_the_other_size_lacks_is_told_by_dim_0() -> None:
    here, there = step("y = Relu(x) : float32[4,3]"), step("z = Relu(x) : float32[8,3]\n y = Relu(z) : float32[8,3]")
    only = step("z = Relu(x) : float32[4,3]\n y = Relu(z) : float32[4,3]")
    assert batch_dim(only, Ref("z"), 4, (here, 4)) == 0
    assert batch_dim(here, Ref("y"), 4, (there, 8)) == 0


# Means.


@pytest.mark.parametrize(
    ("division", "mean"),
    [
        ("n = Const() {numbers=(4.0)} : float32[]\n y = RealDiv(s, n)", True),
        ("n = Const() {numbers=(4.0)} : int32[]\n f = Cast(n) : float32[]\n y = DivNoNan(s, f)", True),
        ("n = Const() {numbers=(12.0)} : float32[]\n y = Div(s, n)", True),
        ("n = Const() {numbers=(0.25)} : float32[]\n y = Mul(s, n)", True),
        ("n = Const() {numbers=(0.333333)} : float32[]\n y = RealDiv(s, n)", False),
        ("n = Const() {numbers=(5.0)} : float32[]\n y = RealDiv(s, n)", False),
        ("n = Const() {numbers=(1.0)} : float32[]\n y = RealDiv(s, n)", False),
        ("n = Const() {numbers=(0.5)} : float32[]\n y = Mul(s, n)", False),
        ("n = Const() {numbers=(0.0)} : float32[]\n y = Mul(s, n)", False),
        ("y = RealDiv(s, rate)", False),
        ("y = RealDiv(s, a)", False),
        ("n = Sum(x, dims) : float32[]\n y = RealDiv(s, n)", False),
        ("n = RandomUniform(dims) : float32[]  @stateful\n y = RealDiv(s, n)", False),
    ],
)
def test_a_sum_divided_by_a_multiple_of_the_size_is_a_mean(division: str, mean: bool) -> None:
    graph = step(f"s = Sum(x, dims) : float32[]\n {division} : float32[]")
    assert is_mean(graph, graph["y"], 4) is mean


def test_the_sum_of_a_mean_is_seen_through_casts_and_only_sums_count() -> None:
    text = "s = OP(x, dims) : float32[]\n c = Cast(s) : float64[]\n n = Const() {numbers=(4.0)} : float64[]\n"
    text += " y = RealDiv(c, n) : float64[]"
    for op, mean in (("Sum", True), ("Max", False), ("Mean", False)):
        graph = step(text.replace("OP", op))
        assert is_mean(graph, graph["y"], 4) is mean


def test_only_divisions_and_products_are_means() -> None:
    graph = step("s = Sum(x, dims) : float32[]\n n = Const() {numbers=(4.0)} : float32[]\n y = Sub(s, n) : float32[]")
    assert not is_mean(graph, graph["y"], 4)


# Losses.


@pytest.mark.parametrize(
    ("loss", "of"),
    [
        ("y = Sum(x, dims) : float32[]", "sum"),
        ("y = L2Loss(x) : float32[]", "sum"),
        ("y = Relu(x) : float32[BATCH,3]", "sum"),
        ("y = Mean(x, dims) : float32[]", "mean"),
        ("y = Max(x, dims) : float32[]", "mean"),
        ("y = CTCLoss(x) : float32[]", "mean"),
        ("s = Sum(x, dims) : float32[]\n y = Neg(s) : float32[]", "sum"),
        ("s = Mean(x, dims) : float32[]\n y = Neg(s) : float32[]", "mean"),
        ("s = Sum(x, dims) : float32[]\n y = Cast(s) : float64[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n n = Const() {numbers=(0.5)} : float32[]\n y = Mul(n, s) : float32[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n y = Mul(rate, s) : float32[]", "sum"),
        (
            "s = Sum(x, dims) : float32[]\n n = Const() {numbers=(4.0)} : float32[]\n y = RealDiv(s, n) : float32[]",
            "mean",
        ),
        ("s = Sum(x, dims) : float32[]\n n = Sum(x, dims) : float32[]\n y = RealDiv(s, n) : float32[]", "mean"),
        ("s = Sum(x, dims) : float32[]\n n = L2Loss(x) : float32[]\n y = AddV2(s, n) : float32[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n n = Mean(x, dims) : float32[]\n y = AddV2(s, n) : float32[]", "mean"),
        ("s = Sum(x, dims) : float32[]\n n = L2Loss(a) : float32[]\n y = AddV2(s, n) : float32[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n y = AddN(s, s, one) : float32[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n y = Sub(one, s) : float32[]", "sum"),
        ("s = Sum(x, dims) : float32[]\n y = Sqrt(s) : float32[]", "mean"),
        ("y = AddV2(one, rate) : float32[]", "mean"),
    ],
)
def test_the_kind_of_a_loss_is_read_through_what_is_linear(loss: str, of: str) -> None:
    assert kind(loss) == of


# Variables, examples, constants.


@pytest.mark.parametrize(
    ("node", "adds"),
    [
        ("y = AddV2(a, s)", True),
        ("y = AddV2(s, a)", True),
        ("y = AddV2(w, s)", True),
        ("y = AddV2(s, s)", False),
        ("y = AddV2(a, a)", False),
        ("y = AddV2(a, away)", False),
        ("y = Sub(a, s)", True),
        ("y = Sub(s, a)", False),
        ("y = Mul(a, s)", False),
    ],
)
def test_a_node_accumulates_if_it_adds_what_does_not_depend_on_the_variable(node: str, adds: bool) -> None:
    text = 's = Sum(x, dims) : float32[]\n away = Sub(s, a) : float32[]\n w = Write(s) {variable=b"a"} : float32[]\n'
    graph = step(f"{text} {node} : float32[]")
    assert accumulates(graph, graph["y"], "a") is adds


def test_what_comes_from_the_batch_or_chance_depends_on_examples() -> None:
    graph = step("s = Sum(x, dims) : float32[]\n y = Mul(s, a) : float32[]\n n = RandomUniform(dims) : float32[]")
    assert [name for name in graph.nodes if depends_on_examples(graph, name)] == ["x", "s", "y", "n"]
    assert "RandomUniform" in RANDOM


def test_a_constant_is_the_number_it_carries() -> None:
    graph = step("c = Cast(one) : int32[]\n two = Const() {numbers=(1.0, 2.0)} : float32[2]\n y = Neg(one) : float32[]")
    found = [constant(graph, Ref(name)) for name in ("one", "c", "two", "dims", "rate", "y")]
    assert found == [1.0, 1.0, None, None, None, None]
