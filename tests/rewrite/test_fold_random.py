"""`fold_random`: every part draws its own numbers, those that one device draws; what all draw alike is left alone."""

from __future__ import annotations

import pytest

from tests.rewrite.steps import Spread, spread
from whale_tf.ir.graph import DType, Ref, Shape
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.fold_random import SEEDS, STATELESS, STRIDE, fold_random

COUNTED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,WIDTH]
  seed = Captured() {index=0} : int32[2]
  shape = Const() {value=(BATCH, WIDTH)} : int32[2]
  key = StatelessRandomGetKeyCounter(seed) {Tseed=int32} : uint64[1], uint64[2]
  alg = Const() {value=(1)} : int32[]
  noise = StatelessRandomUniformV2(shape, key, key:1, alg) {dtype=float32, Tshape=int32} : float32[BATCH,WIDTH]
  y = Mul(x, noise) : float32[BATCH,WIDTH]
}
"""
SEEDED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,2]
  seed = Captured() {index=0} : int64[2]
  shape = Const() {value=(BATCH, 2)} : int32[2]
  noise = StatelessRandomUniform(shape, seed) {dtype=float32, T=int32, Tseed=int64} : float32[BATCH,2]
  y = Mul(x, noise) : float32[BATCH,2]
}
"""
STATEFUL = """
graph step(out: y) effects(p) {
  x = Input() {index=0, batch=true} : float32[BATCH,2]
  logits = Log(x) : float32[BATCH,2]
  shape = Const() {value=(BATCH, 2)} : int32[2]
  low = Const() {value=(2)} : int32[]
  noise = OP(TAKEN) {seed=3, seed2=4, T=int32ATTRS} : float32[BATCH,2]  @stateful
  p = Assert(noise) @stateful
  y = Mul(x, noise) : float32[BATCH,2]
}
"""


def counted(width: int, examples: int = 7) -> StageFunction:
    """The function of the smaller of two parts, 3 of 7 examples."""
    return spread(COUNTED.replace("WIDTH", str(width)), replicas=2, examples=examples).variants[3][Key(0, 0, "F")]


def stateful(op: str, taken: str = "shape", attrs: str = ", dtype=float32") -> tuple[Spread, StageFunction]:
    program = spread(STATEFUL.replace("OP", op).replace("TAKEN", taken).replace("ATTRS", attrs), replicas=2)
    program.check()
    return program, program.functions[Key(0, 0, "F")]


def test_a_function_without_draws_is_left_alone() -> None:
    program = spread(SEEDED.replace("StatelessRandomUniform(shape, seed)", "BroadcastTo(seed, shape)"), replicas=2)
    part = program.functions[Key(0, 0, "F")]
    assert fold_random(part, program.states) is part


def test_a_part_begins_to_count_at_its_first_example() -> None:
    """8 numbers of an example are 2 counts of Philox."""
    changed = counted(8)
    assert [line.strip() for line in print_graph(changed.graph).splitlines() if " noise" in line] == [
        "noise/operand0 = Const() {dtype=int32, value=(3, 8), shape=[2]} : int32[2]",
        "noise/first = Cast(argument/first/) {SrcT=int64, DstT=uint64, Truncate=false} : uint64[]",
        "noise/groups = Const() {dtype=uint64, value=(2, 0), shape=[2]} : uint64[2]",
        "noise/ahead = Mul(noise/first, noise/groups) {T=uint64} : uint64[2]",
        "noise/counter = AddV2(argument/1, noise/ahead) {T=uint64} : uint64[2]",
        "noise = StatelessRandomUniformV2(noise/operand0, argument/0, noise/counter, alg)"
        " {dtype=float32, Tshape=int32} : float32[3,8]",
        "y = Mul(argument/2, noise) : float32[3,8]",
    ]
    assert changed.arguments[-1] == Source("first")
    assert (changed.key, changed.results, changed.sums) == (Key(0, 0, "F"), (Ref("y"),), ())


def test_each_call_is_told_its_first_example() -> None:
    program = spread(COUNTED.replace("WIDTH", "8"), replicas=2, micro_batches=2, examples=10)
    program.check()
    position = program.functions[Key(0, 0, "F")].arguments.index(Source("first"))
    told = {c.name: program.main[c.inputs[position].node].attrs["value"] for c in program.find("Call")}
    assert told == {"r0/0F0": 0, "r0/0F1": 3, "r1/0F0": 5, "r1/0F1": 8}


@pytest.mark.parametrize("width", [1, 2, 6])
def test_a_part_that_begins_in_the_middle_of_a_count_takes_its_piece_of_all(width: int) -> None:
    changed = counted(width)
    noise, whole = changed.graph["noise"], changed.graph["noise/whole"]
    assert (noise.op, noise.outputs[0].shape) == ("Slice", Shape((3, width)))
    assert noise.inputs == (Ref("noise/whole"), Ref("noise/begin"), Ref("noise/size"))
    assert (whole.op, whole.outputs[0].shape) == ("StatelessRandomUniformV2", Shape((7, width)))
    assert changed.graph["noise/whole_shape"].attrs["value"] == (7, width)
    assert changed.graph["noise/unit"].attrs["value"] == (1, 0)
    assert changed.graph["noise/size"].attrs["value"] == (3, -1)
    assert whole.inputs[1:] == (Ref("argument/0"), Ref("argument/1"), Ref("alg"))
    verify(changed.graph, after="fold_random")


def test_wide_numbers_are_not_counted_in_fours() -> None:
    """Philox gives two float64 for one count."""
    text = (
        COUNTED.replace("WIDTH", "8")
        .replace("float32[BATCH,8]", "float64[BATCH,8]")
        .replace("dtype=float32", "dtype=float64")
    )
    assert spread(text, replicas=2).functions[Key(0, 0, "F")].graph["noise"].op == "Slice"


def test_what_follows_no_batch_is_drawn_alike_by_all() -> None:
    text = COUNTED.replace("WIDTH", "8").replace("value=(BATCH, 8)", "value=(1, 8)")
    text = text.replace("Tshape=int32} : float32[BATCH,8]", "Tshape=int32} : float32[1,8]")
    program = spread(text, replicas=2)
    program.check()
    function = program.functions[Key(0, 0, "F")]
    assert not any(source.kind in ("first", "draw", "seed") for source in function.arguments)
    assert "noise" not in function.graph
    for node in program.find("StatelessRandomUniformV2"):
        assert program.main[node.inputs[1].node].op == "StatelessRandomGetKeyCounter"


def test_an_old_draw_from_a_seed_is_a_piece_of_the_whole_one() -> None:
    changed = spread(SEEDED, replicas=2).functions[Key(0, 0, "F")]
    assert changed.graph["noise"].op == "Slice"
    assert changed.graph["noise/whole"].inputs == (Ref("noise/whole_shape"), Ref("argument/0"))


def test_draws_of_one_function_share_the_first_example_and_not_the_counter() -> None:
    again = """  more = StatelessRandomNormalV2(shape, key, key:1, alg) {dtype=float32} : float32[BATCH,8]
  z = Mul(more, noise) : float32[BATCH,8]
  y = Mul(x, z)"""
    text = COUNTED.replace("WIDTH", "8").replace("  y = Mul(x, noise)", again)
    changed = spread(text, replicas=2).functions[Key(0, 0, "F")]
    assert changed.arguments.count(Source("first")) == 1
    assert changed.graph["noise"].inputs[2] == Ref("noise/counter")
    assert changed.graph["more"].inputs[2] == Ref("more/counter")


@pytest.mark.parametrize(
    ("op", "taken", "attrs"),
    [
        ("RandomUniform", "shape", ", dtype=float32"),
        ("RandomStandardNormal", "shape", ", dtype=float32"),
        ("TruncatedNormal", "shape", ", dtype=float32"),
        ("RandomUniformInt", "shape, low, low", ", Tout=int32"),
        ("Multinomial", "logits, low", ", output_dtype=int32"),
    ],
)
def test_a_draw_from_a_hidden_counter_becomes_one_from_a_seed_of_the_step(op: str, taken: str, attrs: str) -> None:
    _, changed = stateful(op, taken, attrs)
    node = changed.graph["noise"]
    assert node.op == STATELESS[op]
    assert not node.stateful
    assert node.inputs[SEEDS[node.op]] == Ref("noise/draw_seed")
    assert len(node.inputs) == taken.count(",") + 2
    assert not {"seed", "seed2", "Tout"} & set(node.attrs)
    assert node.attrs["Tseed"] == DType("int32")
    assert {Source("seed", name="noise"), Source("draw")} <= set(changed.arguments)
    assert changed.graph["argument/seed/noise"].outputs[0] == (DType("int32"), Shape((2,)))


def test_the_number_of_the_part_is_added_to_the_seed() -> None:
    """All that is added is a multiple of the part's number: part 0 has the seed itself."""
    _, changed = stateful("RandomUniform")
    assert [line.strip() for line in print_graph(changed.graph).splitlines() if "noise/draw" in line.split("=")[0]] == [
        "noise/draw_number = Cast(argument/draw/) {SrcT=int32, DstT=int32, Truncate=false} : int32[]",
        f"noise/draw_stride = Const() {{dtype=int32, value=({STRIDE}, 0), shape=[2]}} : int32[2]",
        "noise/draw_offset = Mul(noise/draw_number, noise/draw_stride) {T=int32} : int32[2]",
        "noise/draw_seed = AddV2(argument/seed/noise, noise/draw_offset) {T=int32} : int32[2]",
    ]


def test_every_stateless_twin_has_a_place_for_its_seed() -> None:
    assert set(STATELESS.values()) <= set(SEEDS)


def test_one_part_draws_as_it_is_told() -> None:
    program = spread(STATEFUL.replace("OP", "RandomUniform").replace("TAKEN", "shape").replace("ATTRS", ""))
    assert program.functions[Key(0, 0, "F")].graph["noise"].op == "RandomUniform"


def test_effects_and_order_stay() -> None:
    _, changed = stateful("RandomUniform")
    assert changed.graph.effects == ("p",)
    assert changed.graph["p"].inputs == (Ref("noise"),)


def test_indices_of_new_arguments_follow_those_that_are_there() -> None:
    _, changed = stateful("RandomUniform")
    arguments = [node for node in changed.graph if node.op == "Argument"]
    assert sorted(node.attrs["index"] for node in arguments) == list(range(len(changed.arguments)))
