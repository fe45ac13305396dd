"""`fold_random`: each micro-batch draws its own numbers, and leaves alone what all draw alike."""

from __future__ import annotations

import pytest

from whale_tf.ir.graph import DType, Ref, Shape
from whale_tf.ir.text import parse_graph, print_graph
from whale_tf.ir.verify import verify
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.fold_random import SEEDS, STATELESS, STRIDE, fold_random

SEEDED = """
graph 0F(out: y) {
  argument/0 = Argument() {index=0} : float32[4,2]
  argument/1 = Argument() {index=1} : int64[2]
  shape = Const() {value=opaque"AA=="} : int32[2]
  noise = StatelessRandomUniform(shape, argument/1) {dtype=float32, T=int32, Tseed=int64} : float32[4,2]
  y = Mul(argument/0, noise) : float32[4,2]
}
"""
CONSTANT = """
graph 0F(out: y) {
  argument/0 = Argument() {index=0} : float32[4,2]
  shape = Const() {value=opaque"AA=="} : int32[2]
  seed = Const() {value=opaque"BB=="} : int32[2]
  noise = StatelessRandomNormal(shape, seed) {dtype=float32} : float32[ROWS,2]
  y = MatMul(argument/0, noise) : float32[4,2]
}
"""
COUNTER = """
graph 0F(out: y) {
  argument/0 = Argument() {index=0} : float32[4,2]
  shape = Const() {value=opaque"AA=="} : int32[2]
  seed = Const() {value=opaque"BB=="} : int32[2]
  key = StatelessRandomGetKeyCounter(seed) {Tseed=int32} : uint64[1], uint64[2]
  noise = StatelessRandomUniformV2(shape, key, key:1) {dtype=float32} : float32[ROWS,2]
  y = Mul(argument/0, noise) : float32[4,2]
}
"""
STATEFUL = """
graph 0F(out: y) effects(p) {
  argument/0 = Argument() {index=0} : float32[4,2]
  shape = Const() {value=opaque"AA=="} : int32[2]
  noise = OP(shapeMORE) {seed=3, seed2=4, T=int32ATTRS} : float32[4,2]  @stateful
  p = PrintV2(noise) @stateful
  y = Mul(argument/0, noise) : float32[4,2]
}
"""


def function(text: str) -> StageFunction:
    graph = parse_graph(text)
    sources = (Source("slice", Ref("x")), Source("step", Ref("seed")))
    count = sum(node.op == "Argument" for node in graph)
    return StageFunction(Key(0, 0, "F"), graph, sources[:count], graph.outputs, ())


def folded(text: str) -> StageFunction:
    changed = fold_random(function(text), 4)
    verify(changed.graph, after="fold_random")
    return changed


def test_a_function_without_draws_is_left_alone() -> None:
    part = function(SEEDED.replace("StatelessRandomUniform", "Tile"))
    assert fold_random(part, 4) is part


def test_the_number_of_the_micro_batch_is_added_to_the_seed() -> None:
    changed = folded(SEEDED)
    assert print_graph(changed.graph, "0F").splitlines()[3:] == [
        '  shape = Const() {value=opaque"AA=="} : int32[2]',
        "  argument/draw/ = Argument() {index=2} : int32[]",
        "  noise/draw_number = Cast(argument/draw/) {SrcT=int32, DstT=int64, Truncate=false} : int64[]",
        f"  noise/draw_stride = Const() {{dtype=int64, value=({STRIDE}, 0)}} : int64[2]",
        "  noise/draw_offset = Mul(noise/draw_number, noise/draw_stride) {T=int64} : int64[2]",
        "  noise/draw_seed = AddV2(argument/1, noise/draw_offset) {T=int64} : int64[2]",
        "  noise = StatelessRandomUniform(shape, noise/draw_seed) {dtype=float32, T=int32, Tseed=int64} : float32[4,2]",
        "  y = Mul(argument/0, noise) : float32[4,2]",
        "}",
    ]
    assert changed.arguments[2:] == (Source("draw"),)
    assert (changed.key, changed.results, changed.sums) == (Key(0, 0, "F"), (Ref("y"),), ())


def test_part_zero_draws_what_one_device_would() -> None:
    """All that is added to the seed is a multiple of the micro-batch's number."""
    graph = folded(SEEDED).graph
    assert graph["noise/draw_seed"].inputs == (Ref("argument/1"), Ref("noise/draw_offset"))
    assert (graph["noise/draw_offset"].op, graph["noise/draw_offset"].inputs[0]) == ("Mul", Ref("noise/draw_number"))


@pytest.mark.parametrize("text", [CONSTANT, COUNTER], ids=["draw", "key and counter"])
def test_a_constant_seed_is_a_constant_unless_something_is_drawn_for_each_example(text: str) -> None:
    fixed = function(text.replace("ROWS", "2"))
    assert fold_random(fixed, 4) is fixed
    assert fold_random(function(text.replace("ROWS", "4")), 4).arguments[-1] == Source("draw")


def test_draws_of_one_function_share_the_number_and_not_the_seed() -> None:
    again = "  more = StatelessRandomNormal(shape, argument/1) {dtype=float32} : float32[4,2]\n  y = "
    changed = folded(SEEDED.replace("  y = ", again))
    assert changed.arguments.count(Source("draw")) == 1
    assert changed.graph["noise"].inputs[1] == Ref("noise/draw_seed")
    assert changed.graph["more"].inputs[1] == Ref("more/draw_seed")


@pytest.mark.parametrize(
    ("op", "more", "attrs"),
    [
        ("RandomUniform", "", ", dtype=float32"),
        ("RandomStandardNormal", "", ", dtype=float32"),
        ("TruncatedNormal", "", ", dtype=float32"),
        ("RandomUniformInt", ", shape, shape", ", Tout=int32"),
        ("Multinomial", ", shape", ", output_dtype=int32"),
    ],
)
def test_a_draw_from_a_hidden_counter_becomes_one_from_a_seed_of_the_step(op: str, more: str, attrs: str) -> None:
    changed = folded(STATEFUL.replace("OP", op).replace("MORE", more).replace("ATTRS", attrs))
    node = changed.graph["noise"]
    assert node.op == STATELESS[op]
    assert not node.stateful
    assert node.inputs[SEEDS[node.op]] == Ref("noise/draw_seed")
    assert len(node.inputs) == 2 + more.count(",")
    assert not {"seed", "seed2", "Tout"} & set(node.attrs)
    assert node.attrs["Tseed"] == DType("int32")
    assert changed.arguments[1:] == (Source("seed", name="noise"), Source("draw"))
    assert changed.graph["argument/seed/noise"].outputs[0] == (DType("int32"), Shape((2,)))


def test_every_stateless_twin_has_a_place_for_its_seed() -> None:
    assert set(STATELESS.values()) <= set(SEEDS)


def test_effects_and_order_stay() -> None:
    changed = folded(STATEFUL.replace("OP", "RandomUniform").replace("MORE", "").replace("ATTRS", ", dtype=float32"))
    assert changed.graph.effects == ("p",)
    assert changed.graph["p"].inputs == (Ref("noise"),)


def test_indices_of_new_arguments_follow_those_that_are_there() -> None:
    changed = folded(STATEFUL.replace("OP", "RandomUniform").replace("MORE", "").replace("ATTRS", ", dtype=float32"))
    arguments = [node for node in changed.graph if node.op == "Argument"]
    assert sorted(node.attrs["index"] for node in arguments) == list(range(len(changed.arguments)))
