"""Merges: which values of micro-batches the step needs whole, and what they are over the parts."""

from __future__ import annotations

from tests.rewrite.steps import CONSTANT_SLICES, MEANS, MICRO_SLICES, TRAINING, resolved
from whale_tf.ir.graph import Ref
from whale_tf.plan.merges import find_merges
from whale_tf.rewrite.reshard import reshard


def merges_of(text: str) -> dict[str, str]:
    states = resolved(text, 8)
    resharded = reshard(states)
    values = {ref: known.value for ref, known in states.known.items()}
    found = find_merges(resharded.graph, resharded.roles, values)
    return {str(ref): str(value) for ref, value in found.items()}


def over_examples(nodes: str, out: str = "y", effects: str = "") -> dict[str, str]:
    """The merges of a step over x [BATCH, 3]."""
    around = f" effects({effects})" if effects else ""
    return merges_of(f"""
        graph step(out: {out}){around} {{
          x = Input() {{index=0, batch=true}} : float32[BATCH,3]
          dims = Const() {{value=(0)}} : int32[1]
          {nodes}
        }}
    """)


def test_outputs_and_gradients_are_merged() -> None:
    assert merges_of(TRAINING) == {
        "loss": "Partial(sum) of degree -1",
        "z": "Split(0)",
        "g0": "Partial(sum)",
        "g1": "Partial(sum)",
    }


def test_a_gradient_is_merged_as_it_is_behind_its_scale() -> None:
    """The mean `d1` is made a sum by a Scale: what the parts add up has no degree any more."""
    assert merges_of(MEANS)["g1"] == "Partial(sum)"


def test_rows_of_a_gradient_are_put_together_and_those_that_all_parts_have_are_not_merged() -> None:
    assert {name: how for name, how in merges_of(MICRO_SLICES).items() if name != "loss"} == {
        "gv": "Split(0)",
        "gi": "Split(0)",
    }
    assert "gv" not in merges_of(CONSTANT_SLICES)


def test_an_input_that_is_returned_is_put_together() -> None:
    assert over_examples("", "x") == {"x": "Split(0)"}


def test_values_are_put_together_along_the_dim_that_is_cut() -> None:
    nodes = "swapped = Const() {value=(1, 0)} : int32[2]\n y = Transpose(x, swapped) : float32[3,BATCH]"
    assert over_examples(nodes) == {"y": "Split(1)"}


def test_only_what_leaves_the_micro_batches_is_merged() -> None:
    assert over_examples("h = Relu(x) : float32[BATCH,3]\n y = Max(h, dims) : float32[3]") == {"y": "Partial(max)"}


def test_what_runs_once_takes_merged_values() -> None:
    nodes = "s = Sum(x, dims) : float32[3]\n m = Mean(x, dims) : float32[3]\n y = RealDiv(s, m) : float32[3]"
    assert over_examples(nodes) == {"s": "Partial(sum)", "m": "Partial(sum) of degree -1"}


def test_what_a_variable_becomes_is_merged_once_under_the_name_of_what_is_written() -> None:
    nodes = """
        c = Variable() {variable=b"c", trainable=false, aggregation=b"NONE"} : float32[3]
        s = Sum(x, dims) : float32[3]
        u = Write(s) {variable=b"c"} : float32[3]
    """
    assert over_examples(nodes, "s", "u") == {"s": "Partial(sum)", "u": "Partial(sum)"}


def test_outputs_of_one_op_are_merged_each_by_itself() -> None:
    nodes = """
        axis = Const() {value=(1)} : int32[]
        y = Split(axis, x) {num_split=3} : float32[BATCH,1], float32[BATCH,1], float32[BATCH,1]
    """
    assert over_examples(nodes, "y, y:2") == {"y": "Split(0)", "y:2": "Split(0)"}


def test_one_part_merges_nothing_that_it_has_whole() -> None:
    states = resolved(TRAINING, 8)
    graph = reshard(states)
    values = {ref: known.value for ref, known in states.known.items()}
    found = find_merges(graph.graph, graph.roles, values)
    assert Ref("n1") not in found and Ref("s0") not in found
