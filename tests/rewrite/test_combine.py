"""`combine`: the values of all micro-batches become one, as the plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.rewrite.steps import CONSTANT_SLICES, FREE_SLICES, MEANS, MICRO_SLICES, TRAINING, Spread, spread, whole_world
from whale_tf.errors import InternalError
from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import Reduction, Split
from whale_tf.ir.verify import verify
from whale_tf.rewrite.combine import FOLDS
from whale_tf.rewrite.localize import localize

REDUCED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : KIND[BATCH,2]
  dims = Const() {value=(0, 1)} : int32[2]
  y = REDUCTION(x, dims) : KIND[]
}
"""
STATE = """
graph step(out: ) effects(c2) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  c = Variable() {variable=b"c", trainable=false, aggregation=b"NONE"} : float32[]
  dims = Const() {value=(0)} : int32[1]
  total = REDUCTION(x, dims) : float32[]
  new = CHANGE(c, total) : float32[]
  c2 = Write(new) {variable=b"c"} : float32[]
}
"""


def reduced(reduction: str, kind: str = "float32", **options: int) -> Spread:
    program = spread(REDUCED.replace("REDUCTION", reduction).replace("KIND", kind), **options)  # type: ignore[arg-type]
    program.check()
    return program


def written(program: Spread, ref: Ref) -> str:
    """A merge as text: `AddN(Mul(r0/0F0, 0.5), …)`."""
    ref = program.origin(ref)
    node: Node = program.main[ref.node]
    if node.op == "Const":
        return str(node.attrs["value"])
    if node.op in ("Call", "Read", "Slice", "Take"):
        return node.name
    inputs: Sequence[Ref] = node.inputs[:-1] if node.op == "ConcatV2" else node.inputs
    if node.op == "Reduce":
        peers = program.find("Reduce", id=node.attrs["id"])
        inside = ", ".join(written(program, peer.inputs[ref.index]) for peer in peers)
        return f"{node.attrs['scale']:g} * Reduce({inside})"
    if node.op == "WhaleSum":  # of several gradients, each is the sum of its own parts
        parts = node.attrs["parts"]
        inside = ", ".join(written(program, item) for item in inputs[ref.index * parts :][:parts])
        return f"{node.attrs['scale']:g} * WhaleSum({inside})"
    return f"{node.op}({', '.join(written(program, item) for item in inputs)})"


def output(program: Spread, index: int = 0) -> str:
    return written(program, program.main.outputs[index])


def gradient(program: Spread, update: str) -> str:
    """The gradient that an operation of the update takes first."""
    return written(program, program.main[update].inputs[0])


def assigned(program: Spread, variable: str) -> str:
    return written(program, program.find("Assign", variable=variable.encode())[0].inputs[0])


def test_one_part_is_the_value_itself() -> None:
    assert output(reduced("Mean")) == "r0/0F0"
    assert gradient(spread(stages=2), "s1") == "r0/1B0"


def test_per_example_values_are_concatenated_in_the_callers_order() -> None:
    program = spread(replicas=2, micro_batches=2)
    assert output(program, 1) == "ConcatV2(r0/0F0, r0/0F1, r1/0F0, r1/0F1)"


def test_a_mean_is_weighted_by_the_share_of_the_examples() -> None:
    assert output(reduced("Mean", replicas=2)) == "AddV2(Mul(r0/0F0, 0.5), Mul(r1/0F0, 0.5))"
    assert output(reduced("Mean", replicas=2, examples=8 + 8)) == "AddV2(Mul(r0/0F0, 0.5), Mul(r1/0F0, 0.5))"
    third = output(reduced("Mean", replicas=3, examples=4))
    assert third == "AddN(Mul(r0/0F0, 0.5), Mul(r1/0F0, 0.25), Mul(r2/0F0, 0.25))"


@pytest.mark.parametrize(
    ("reduction", "kind", "merged"),
    [
        ("Sum", "float32", "AddN(r0/0F0, r1/0F0, r2/0F0)"),
        ("Sum", "int32", "AddN(r0/0F0, r1/0F0, r2/0F0)"),
        ("Max", "float32", "Maximum(Maximum(r0/0F0, r1/0F0), r2/0F0)"),
        ("Min", "int32", "Minimum(Minimum(r0/0F0, r1/0F0), r2/0F0)"),
        ("Prod", "float32", "Mul(Mul(r0/0F0, r1/0F0), r2/0F0)"),
        ("All", "bool", "LogicalAnd(LogicalAnd(r0/0F0, r1/0F0), r2/0F0)"),
        ("Any", "bool", "LogicalOr(LogicalOr(r0/0F0, r1/0F0), r2/0F0)"),
    ],
)
def test_a_reduction_over_examples_goes_on_over_parts(reduction: str, kind: str, merged: str) -> None:
    assert output(reduced(reduction, kind, replicas=3)) == merged


def test_logical_merges_have_no_type() -> None:
    """LogicalAnd and LogicalOr take only truth values, and have no attribute T."""
    for reduction, kind, op in (("All", "bool", FOLDS[Reduction.ALL]), ("Max", "float32", FOLDS[Reduction.MAX])):
        node = reduced(reduction, kind, replicas=2).find(op)[0]
        assert set(node.attrs) == (set() if kind == "bool" else {"T"})


@pytest.mark.parametrize(
    ("reduction", "function", "merged"),
    [
        ("Mean", "Sqrt", "Sqrt(AddV2(Mul(r0/0F0, 0.5), Mul(r1/0F0, 0.5)))"),
        ("Max", "Square", "Square(Maximum(r0/0F0, r1/0F0))"),
        ("Max", "Sqrt", "Maximum(r0/0F0, r1/0F0)"),  # of two numbers the larger has the larger root
        ("Mean", "Neg", "AddV2(Mul(r0/0F0, 0.5), Mul(r1/0F0, 0.5))"),
    ],
)
def test_a_function_of_a_reduction_is_made_of_what_is_merged_or_commutes_with_it(
    reduction: str, function: str, merged: str
) -> None:
    text = REDUCED.replace("  y = REDUCTION(x, dims)", f"  s = {reduction}(x, dims) : KIND[]\n  y = {function}(s)")
    program = spread(text.replace("KIND", "float32"), replicas=2)
    program.check()
    assert output(program) == merged


def test_values_are_put_together_along_the_dim_that_is_cut() -> None:
    text = (
        REDUCED.replace("REDUCTION", "Transpose").replace("(0, 1)", "(1, 0)").replace(": KIND[]", ": float32[2,BATCH]")
    )
    program = spread(text.replace("KIND", "float32"), replicas=2, examples=7)
    program.check()
    assert output(program) == "ConcatV2(r0/0F0, r1/0F0)"
    assert written(program, program.main[program.main.outputs[0].node].inputs[-1]) == "1"


def test_pieces_that_lie_in_several_blocks_are_put_together_block_by_block() -> None:
    """[x, x] is seen as [2, examples]: of each part one piece of both blocks."""
    text = REDUCED.replace("y = REDUCTION(x, dims) : KIND[]", "y = ConcatV2(x, x, first) {N=2} : KIND[TWICE,2]")
    text = text.replace("dims = Const() {value=(0, 1)} : int32[2]", "first = Const() {value=(0)} : int32[]")
    program = spread(text.replace("KIND", "float32"), replicas=2, examples=7)
    assert program.states.value(Ref("y")).state == Split(0, 2)
    program.check()
    assert output(program) == "Reshape(ConcatV2(Reshape(r0/0F0, (2, -1, 2)), Reshape(r1/0F0, (2, -1, 2))), (14, 2))"


def test_gradients_are_added() -> None:
    program = spread(replicas=2, micro_batches=2)
    assert gradient(program, "s0") == "1 * WhaleSum(r0/0B1, r1/0B1)"
    assert gradient(spread(replicas=3, loss="sum"), "s0") == "1 * WhaleSum(r0/0B0, r1/0B0, r2/0B0)"
    assert gradient(spread(replicas=2, examples=7), "s0") == "1 * WhaleSum(r0/0B0, r1/0B0)"


def test_a_gradient_that_is_a_mean_was_weighted_before() -> None:
    program = spread(MEANS, replicas=2, examples=7)
    program.check()
    assert gradient(program, "s1") == "1 * WhaleSum(r0/0B0, r1/0B0)"
    assert program.main["r0/0B0"].inputs != program.main["r1/0B0"].inputs


def together(**options: Any) -> Spread:
    """Two layers in one stage, whose gradients belong to one replica and share a bucket."""
    program = spread(replicas=2, **options)
    seats = dict.fromkeys(program.plan.seat_of, program.plan.variables["w0"].owner)
    collective = (0,) if program.plan.collective else ()
    plan = replace(program.plan, seat_of=seats, buckets=(("g1", "g0"),), collective=collective)
    step = replace(program.step, plan=plan)
    return replace(program, step=step, program=whole_world(step))


def test_a_bucket_is_one_operation() -> None:
    program = together()
    program.check()
    (total,) = program.find("WhaleSum")
    assert (total.attrs["parts"], total.attrs["K"], total.attrs["M"]) == (2, 2, 4)
    assert gradient(program, "s0") == gradient(program, "s1") == "1 * WhaleSum(r0/0B0, r1/0B0)"
    assert program.main["s0"].inputs[0].index == 1


def test_a_bucket_is_one_collective() -> None:
    program = together(kind="GPU")
    program.check()
    assert [len(node.inputs) for node in program.find("Reduce")] == [2, 2]
    assert gradient(program, "s0") == gradient(program, "s1") == "1 * Reduce(r0/0B0, r1/0B0)"
    assert program.main["s0"].inputs[0].index == 1


def test_gpus_reduce_by_a_collective_on_all_of_them() -> None:
    program = spread(replicas=2, micro_batches=2, kind="GPU")
    program.check()
    assert not program.find("WhaleSum")
    assert gradient(program, "s0") == "1 * Reduce(r0/0B1, r1/0B1)"
    for bucket in ("g0", "g1"):
        nodes = [node for node in program.find("Reduce") if node.name.startswith(bucket)]
        assert [node.device for node in nodes] == [0, 1]
        owner = program.plan.device_of(bucket, 0)
        used = next(node for node in nodes if node.device == owner)
        assert program.main[f"s{bucket[1:]}"].inputs[0] == Ref(used.name)
    assert not [node for node in program.find("Send") if "B" in node.inputs[0].node], "no gradient is sent"


def test_collectives_run_in_the_order_of_the_buckets_on_every_device() -> None:
    program = spread(replicas=3, kind="GPU")
    first, second = (program.find("Reduce", id=number) for number in (0, 1))
    assert [bucket[0] for bucket in program.plan.buckets] == [first[0].name[:2], second[0].name[:2]] == ["g1", "g0"]
    assert [node.control for node in second] == [(node.name,) for node in first]


def test_stages_reduce_each_on_their_own_devices() -> None:
    program = spread(replicas=2, stages=2, kind="GPU")
    program.check()
    assert sorted(node.attrs["devices"] for node in program.find("Reduce")) == [(0, 2)] * 2 + [(1, 3)] * 2


def test_rows_are_sent_to_the_owner_on_gpus_too() -> None:
    program = spread(MICRO_SLICES, replicas=2, kind="GPU")
    program.check()
    assert not program.find("Reduce")
    indices, _ = (written(program, ref) for ref in program.main["n"].inputs[1:])
    assert indices == "ConcatV2(r0/0B0, r1/0B0)"


def test_processes_add_up_what_their_own_gpus_reduced() -> None:
    program = spread(replicas=4, kind="GPU", processes=(0, 0, 1, 1))
    program.check()
    assert {node.attrs["devices"] for node in program.find("Reduce")} == {(0, 1), (2, 3)}
    assert {node.attrs["scale"] for node in program.find("Reduce")} == {1.0}
    for label in (b"g0/all", b"g1/all"):
        (node, _) = program.find("AllReduce", label=label)
        assert {program.main[ref.node].op for ref in node.inputs} == {"Reduce"}
    for process in range(2):
        verify(localize(program.program, process).main, after="localize")


def test_gradients_of_a_bucket_that_are_mixed_up_are_named() -> None:
    program = together()
    (total,) = program.find("WhaleSum")
    mixed = total.with_(inputs=(total.inputs[0], total.inputs[2], total.inputs[1], total.inputs[3]))
    with pytest.raises(InternalError, match="which is no part of it"):
        program.with_nodes([mixed]).check()


def test_a_gradient_is_merged_on_its_owner() -> None:
    program = spread(replicas=2, stages=2)
    for marker, variable in (("g0", "w0"), ("g1", "w1")):
        assert program.main[f"{marker}/total"].device == program.plan.layout.device_at(
            0, program.plan.variables[variable].owner[0]
        )


def test_slices_are_concatenated() -> None:
    program = spread(MICRO_SLICES, replicas=2)
    program.check()
    indices, values = (written(program, ref) for ref in program.main["n"].inputs[1:])
    assert indices == values == "ConcatV2(r0/0B0, r1/0B0)"


def test_slices_of_all_micro_batches_are_kept_apart() -> None:
    program = spread(MICRO_SLICES, replicas=2, micro_batches=2)
    indices, _ = (written(program, ref) for ref in program.main["n"].inputs[1:])
    assert indices == "ConcatV2(r0/0B0, r0/0B1, r1/0B0, r1/0B1)"


def test_values_of_slices_that_are_as_many_as_the_examples_are_made_by_each_part() -> None:
    program = spread(FREE_SLICES, replicas=2)
    program.check()
    assert written(program, program.main["n"].inputs[2]) == "ConcatV2(r0/0B0, r1/0B0)"


def test_constant_values_of_slices_are_taken_as_they_are() -> None:
    program = spread(CONSTANT_SLICES, replicas=2)
    program.check()
    assert program.main[program.main["n"].inputs[2].node].name == "dv"
    assert written(program, program.main["n"].inputs[1]) == "ConcatV2(r0/0B0, r1/0B0)"


def test_values_of_slices_with_the_same_indices_in_all_parts_are_added() -> None:
    text = (
        MICRO_SLICES.replace("flat = Reshape(ids, flat_shape) : int32[BATCH]", "flat = Const() {value=(5)} : int32[1]")
        .replace(
            "dv = Square(rows) : float32[BATCH,2]", "dv = Sum(rows, flat_shape) {keep_dims=true} : float32[BATCH,1]"
        )
        .replace("flat_shape = Const() {value=(-1)}", "flat_shape = Const() {value=(0)}")
        .replace("float32[BATCH,1]", "float32[1,2]")
        .replace('partner=b"gi"} : float32[BATCH,2]', 'partner=b"gi"} : float32[1,2]')
    )
    program = spread(text, replicas=2)
    program.check()
    indices, values = (program.main["n"].inputs[1], written(program, program.main["n"].inputs[2]))
    assert program.main[indices.node].name == "flat"
    assert values == "1 * WhaleSum(r0/0B0, r1/0B0)"


def test_a_gradient_that_depends_on_no_example_is_taken_as_it_is() -> None:
    text = TRAINING.replace("d1 = MatMul(a, dz) {transpose_a=true}", "d1 = Square(w1)")
    program = spread(text, replicas=2)
    program.check()
    assert gradient(program, "s1") == "Square(w1/read)"


@pytest.mark.parametrize(
    ("reduction", "change", "merged"),
    [
        ("Sum", "AddV2", "AddV2(c/read, AddN(r0/0F0, r0/0F1, r1/0F0, r1/0F1))"),
        ("Sum", "Mul", "AddN(r0/0F0, r0/0F1, r1/0F0, r1/0F1)"),  # each part multiplies its own
        (
            "Mean",
            "Sub",
            "Sub(c/read, AddN(Mul(r0/0F0, 0.25), Mul(r0/0F1, 0.25), Mul(r1/0F0, 0.25), Mul(r1/0F1, 0.25)))",
        ),
    ],
)
def test_a_state_is_written_once_from_what_is_merged(reduction: str, change: str, merged: str) -> None:
    program = spread(STATE.replace("REDUCTION", reduction).replace("CHANGE", change), replicas=2, micro_batches=2)
    program.check()
    assert assigned(program, "c") == merged


def test_a_state_that_each_part_could_write_is_merged_behind_its_change() -> None:
    """Maximum(c, each part's max) is a max of the parts."""
    program = spread(STATE.replace("REDUCTION", "Max").replace("CHANGE", "Maximum"), replicas=3)
    program.check()
    assert assigned(program, "c") == "Maximum(Maximum(r0/0F0, r1/0F0), r2/0F0)"


def test_a_merge_is_made_once_however_often_it_is_used() -> None:
    text = TRAINING.replace("out: loss, z, n1", "out: loss, loss, z, z")
    program = spread(text, replicas=2)
    program.check()
    first, second, third, fourth = program.main.outputs
    assert first == second and third == fourth
