"""`cut`: each operation in one function, each value given once, gradients summed where they are made."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.steps import MEANS, MICRO_SLICES, TRAINING, resolved, spread
from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.stages import assign_stages
from whale_tf.rewrite.cut import Cut, Key, Source, StageFunction, cut
from whale_tf.rewrite.reshard import reshard

ONE = Cut(accumulate=False, split_backward=False)
SEVERAL = Cut(accumulate=True, split_backward=False)
STAGES = {"h": 0, "a": 0, "z": 1, "loss": 1, "dz": 1, "d1": 1, "da": 1, "dh": 0, "d0": 0, "g0": 0, "g1": 1}

# Two effects, a whole value that each part takes its piece of, and a state that is written once.
EFFECTS = """
graph step(out: y) effects(c2, p1, p2) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  c = Variable() {variable=b"c", trainable=false, aggregation=b"NONE"} : float32[]
  one = Const() {value=(1.0)} : float32[]
  half = Neg(one) : float32[]
  p1 = Assert(x) @stateful
  dims = Const() {value=(0)} : int32[1]
  mean = Mean(x, dims) : float32[]
  new = AddV2(c, mean) : float32[]
  c2 = Write(new) {variable=b"c"} : float32[]
  rows = Range(one, half) : float32[BATCH]
  z = Mul(x, rows) : float32[BATCH]
  y = Mul(z, half) : float32[BATCH]
  p2 = Assert(y) @stateful
}
"""


def functions(
    how: Cut = ONE, text: str = TRAINING, stage_of: Mapping[str, int] | None = STAGES
) -> tuple[Graph, dict[Key, StageFunction]]:
    """The functions of a step at its global batch; without `stage_of` all of it is in one stage."""
    resharded = reshard(resolved(text, 4, micro_batches=2 if how.accumulate else 1))
    graph, roles = resharded.graph, resharded.roles
    if stage_of is None:
        stage_of = assign_stages(graph, roles, {}, 1, lambda _: pytest.fail("there is one stage"))
    parts = cut(graph, roles, stage_of, how)
    for part in parts.values():
        verify(part.graph, after="cut")
    return graph, parts


def kept(part: StageFunction) -> list[str]:
    """The names of its operations."""
    return [node.name for node in part.graph if node.op != "Argument"]


def sources(part: StageFunction) -> set[str]:
    return {f"{source.kind} {source.name or source.ref}".strip() for source in part.arguments}


def test_a_function_is_a_graph_from_arguments_to_results_and_sums() -> None:
    _, parts = functions(SEVERAL)
    assert print_graph(parts[Key(0, 0, "B")].graph, "0B").splitlines() == [
        "graph 0B(out: g0/sum) {",
        "  argument/0 = Argument() {index=0} : float32[4,2]",
        "  argument/1 = Argument() {index=1} : float32[4,2]",
        "  argument/2 = Argument() {index=2} : float32[4,3]",
        "  argument/3 = Argument() {index=3} : float32[3,2]",
        "  dh = ReluGrad(argument/0, argument/1) : float32[4,2]  @call=1 @twin=a",
        "  d0 = MatMul(argument/2, dh) {transpose_a=true} : float32[3,2]  @call=1 @twin=h",
        "  g0/sum = AddV2(argument/3, d0) {T=float32} : float32[3,2]",
        "}",
    ]
    assert parts[Key(0, 0, "B")].arguments == (
        Source("micro", Ref("da")),
        Source("micro", Ref("a")),
        Source("slice", Ref("x")),
        Source("sum", name="g0"),
    )


def test_the_first_micro_batch_has_no_sum_to_add_to() -> None:
    _, parts = functions(SEVERAL)
    first, other = parts[Key(0, 0, "B", first=True)], parts[Key(0, 0, "B")]
    assert first.arguments == other.arguments[:-1]
    assert [str(ref) for ref in first.graph.outputs] == ["d0"]
    assert (first.results, first.sums) == (other.results, other.sums)
    assert not any(node.op == "AddV2" for node in first.graph)


def test_every_operation_of_a_micro_batch_is_in_one_function() -> None:
    graph, parts = functions()
    assert {str(key): kept(part) for key, part in parts.items()} == {
        "0B": ["dh", "d0"],
        "0F": ["h", "a"],
        "1B": ["dz", "d1", "da"],
        "1F": ["z", "dims", "loss"],
    }
    assert "s0" in graph and not any("s0" in part.graph for part in parts.values())


def test_cut_gives_each_value_once() -> None:
    _, parts = functions()
    assert {str(key): [str(ref) for ref in part.results] for key, part in parts.items()} == {
        "0B": [],
        "0F": ["a"],
        "1B": ["da"],
        "1F": ["z", "loss"],
    }


def test_cut_takes_each_value_once() -> None:
    _, parts = functions()
    assert sources(parts[Key(0, 1, "B")]) == {"micro z", "micro a", "step w1"}
    assert all(len(set(part.arguments)) == len(part.arguments) for part in parts.values())


def test_constants_are_copied_into_every_function_that_uses_them() -> None:
    text = TRAINING.replace("dz = Square(z)", "dz = Transpose(z, dims)")
    _, parts = functions(text=text)
    assert "dims" in kept(parts[Key(0, 1, "F")]) and "dims" in kept(parts[Key(0, 1, "B")])
    assert "step dims" not in sources(parts[Key(0, 1, "B")])


def test_what_is_computed_from_constants_comes_along_in_order() -> None:
    _, parts = functions(text=EFFECTS, stage_of=None)
    names = kept(parts[Key(0, 0, "F")])
    assert names.index("one") < names.index("half") < names.index("y")


def test_one_micro_batch_needs_no_sums() -> None:
    _, parts = functions(ONE)
    part = parts[Key(0, 0, "B")]
    assert part.sums == ("g0",)
    assert part.graph.outputs == (Ref("d0"),)


def test_a_gradient_is_added_to_that_of_earlier_micro_batches() -> None:
    _, parts = functions(SEVERAL)
    part = parts[Key(0, 1, "B")]
    assert part.graph.outputs == (Ref("da"), Ref("g1/sum"))
    assert part.sums == ("g1",)


def test_a_gradient_that_is_a_mean_is_weighted_by_the_share_before_it_is_added() -> None:
    _, parts = functions(SEVERAL, MEANS, None)
    part = parts[Key(0, 0, "B")]
    (scaled,) = [node for node in part.graph if node.op == "Mul" and "share" in node.name]
    assert scaled.inputs == (Ref("d1"), Ref("weight1/float32"))
    assert part.graph["g1/sum"].inputs[1] == Ref(scaled.name)
    assert part.graph["g0/sum"].inputs[1] == Ref("d0")
    assert [source for source in part.arguments if source.kind == "weight"] == [Source("weight", name="1")]


@pytest.mark.parametrize("how", [ONE, SEVERAL])
def test_the_parts_of_slices_are_not_added(how: Cut) -> None:
    _, parts = functions(how, MICRO_SLICES, None)
    part = parts[Key(0, 0, "B")]
    assert part.sums == ("gv", "gi")
    assert part.graph.outputs == (Ref("dv"), Ref("flat"))


def test_a_piece_of_a_whole_value_is_an_argument_as_an_input_is() -> None:
    graph, parts = functions(text=EFFECTS, stage_of=None)
    (piece,) = [node for node in graph if node.op == "Piece"]
    assert sources(parts[Key(0, 0, "F")]) >= {"slice x", f"slice {piece.name}"}
    assert not [node for node in parts[Key(0, 0, "F")].graph if node.op == "Piece"]


def test_effects_keep_their_order() -> None:
    _, parts = functions(text=EFFECTS, stage_of=None)
    part = parts[Key(0, 0, "F")]
    assert part.graph.effects == ("p1", "p2")
    assert part.graph["p2"].control == ("p1",)


def test_what_runs_once_is_in_no_function() -> None:
    _, parts = functions(text=EFFECTS, stage_of=None)
    part = parts[Key(0, 0, "F")]
    assert Ref("mean") in part.results
    assert not {"new", "c2"} & set(kept(part))


def test_split_backward_puts_first_what_an_earlier_stage_waits_for() -> None:
    _, parts = functions(Cut(accumulate=True, split_backward=True))
    assert {str(key): kept(part) for key, part in parts.items() if key.kind in "IW" and not key.first} == {
        "0W": ["dh", "d0", "g0/sum"],
        "1I": ["dz", "da"],
        "1W": ["d1", "g1/sum"],
    }
    assert sources(parts[Key(0, 1, "W")]) == {"micro a", "micro dz", "sum g1"}


@given(
    stages=st.integers(1, 2),
    micro_batches=st.integers(1, 3),
    extra=st.integers(0, 2),
    schedule=st.sampled_from(["1f1b", "zero_bubble"]),
)
def test_functions_are_the_same_for_all_replicas_and_micro_batches(
    stages: int, micro_batches: int, extra: int, schedule: str
) -> None:
    program = spread(
        stages=stages, micro_batches=micro_batches, replicas=2, examples=8 * micro_batches + extra, schedule=schedule
    )
    called = {node.attrs["function"].decode() for node in program.find("Call")}
    assert called == set(program.program.functions)
    calls = {(node.attrs["phase"], node.attrs["action"], node.attrs["replica"]) for node in program.find("Call")}
    assert len(calls) == len(program.find("Call"))
    assert len(called) <= sum(len(variant) for variant in program.variants.values())
