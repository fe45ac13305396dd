"""`check` accepts what the passes make, and names what is wrong with a program that somebody broke."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.steps import CONSTANT_SLICES, FREE_SLICES, MEANS, MICRO_SLICES, TRAINING, WAYS, Spread, spread
from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.rewrite.cut import Key

FLOAT = TensorType(DType("float32"), Shape())
PIPELINE = {"replicas": 2, "stages": 2, "micro_batches": 2}


def offenders(program: Spread) -> str:
    with pytest.raises(InternalError) as caught:
        program.check()
    return "\n".join(caught.value.details)


def total_of(program: Spread, marker: str) -> Node:
    """The node that adds up the replicas' gradients."""
    return next(node for node in program.main if node.name == f"{marker}/total")


# What is right passes.


@pytest.mark.parametrize(
    "text",
    [TRAINING, MEANS, MICRO_SLICES, FREE_SLICES, CONSTANT_SLICES],
    ids=["dense", "means", "slices", "filled slices", "constant slices"],
)
@given(
    **WAYS,
    two_stages=st.booleans(),
)
def test_every_way_to_spread_a_step_is_right(
    text: str, replicas: int, micro_batches: int, extra: int, schedule: str, loss: str, two_stages: bool
) -> None:
    spread(
        text,
        replicas=replicas,
        micro_batches=micro_batches,
        stages=2 if two_stages and text is TRAINING else 1,
        examples=2 * replicas * micro_batches + extra,
        schedule=schedule,
        loss=loss,
        homes={"w1": replicas - 1},
    ).check()


# Gradients.


def test_a_part_that_is_dropped_is_named() -> None:
    program = spread(**PIPELINE)  # type: ignore[arg-type]
    total = total_of(program, "g1")
    found = offenders(program.with_nodes([total.with_(inputs=total.inputs[:1])]))
    assert "gradient 'g1' of variable 'w1' has 0 times replica 1, micro-batch 0, and should have it 1 times" in found
    assert "gradient 'g1' of variable 'w1' has 0 times replica 1, micro-batch 1, and should have it 1 times" in found
    assert "replica 0" not in found and "g0" not in found


def test_a_part_that_is_doubled_is_named() -> None:
    program = spread(**PIPELINE)  # type: ignore[arg-type]
    total = total_of(program, "g0")
    found = offenders(program.with_nodes([total.with_(inputs=(total.inputs[0], total.inputs[0]))]))
    assert "gradient 'g0' of variable 'w0' has 2 times replica 0, micro-batch 1, and should have it 1 times" in found
    assert "gradient 'g0' of variable 'w0' has 0 times replica 1, micro-batch 1, and should have it 1 times" in found


def test_a_wrong_scale_is_named() -> None:
    program = spread(replicas=2, micro_batches=2)
    total = total_of(program, "g0")
    found = offenders(program.with_nodes([total.with_(attrs={**total.attrs, "scale": 0.5})]))
    assert "gradient 'g0' of variable 'w0' weighs replica 0, micro-batch 0 by 0.5, and should by 1" in found


def test_a_wrong_weight_of_an_uneven_part_is_named() -> None:
    program = spread(MEANS, replicas=2, examples=7)
    (weight,) = {
        ref
        for call in program.find("Call", action=b"0B0", replica=0)
        for ref in call.inputs
        if _is_number(program, ref, 4 / 7)
    }
    node = program.main[weight.node]
    found = offenders(program.with_nodes([node.with_(attrs={**node.attrs, "value": 0.5})]))
    assert f"of call 'r0/0B0' is '{weight}', and should be its weight '1'" in found


def _is_number(program: Spread, ref: Ref, number: float) -> bool:
    return program.main[ref.node].op == "Const" and program.main[ref.node].attrs["value"] == number


def test_a_wrong_weight_of_a_mean_is_named() -> None:
    program = spread(replicas=2, examples=7)
    weight = next(node for node in program.find("Const") if node.attrs.get("value") == 4 / 7)
    found = offenders(program.with_nodes([weight.with_(attrs={**weight.attrs, "value": 0.5})]))
    assert found == (
        "'loss', merged as Partial(sum) of degree -1, weighs replica 0, micro-batch 0 by 0.5, and should by 0.571428571"
    )


def test_a_sum_that_forgets_earlier_micro_batches_is_named() -> None:
    program = spread(micro_batches=3)
    function = program.functions[Key(0, 0, "B")]
    outputs = [Ref("d0") if ref == Ref("g0/sum") else ref for ref in function.graph.outputs]
    graph = Graph(function.graph.nodes, tuple(outputs), function.graph.effects)
    found = offenders(program.with_function(replace(function, graph=graph)))
    for i in (0, 1):
        missing = f"has 0 times replica 0, micro-batch {i}, and should have it 1 times"
        assert f"gradient 'g0' of variable 'w0' {missing}" in found
    assert "g1" not in found


def test_a_sum_of_another_gradient_is_named() -> None:
    program = spread(replicas=2)
    total, other = total_of(program, "g0"), total_of(program, "g1")
    found = offenders(program.with_nodes([total.with_(inputs=other.inputs)]))
    assert "gradient 'g0' of variable 'w0' adds 'r0/0B0/1/to1' of the main graph, which is no part of it" in found


def test_a_dense_gradient_is_added_and_not_put_side_by_side() -> None:
    program = spread(replicas=2)
    total = total_of(program, "g0")
    axis = Node("axis", "Const", attrs={"value": 0}, outputs=(FLOAT,), device=total.device)
    joined = total.with_(op="ConcatV2", inputs=(*total.inputs, Ref("axis")))
    found = offenders(program.with_nodes([axis, joined]))
    assert "gradient 'g0' of variable 'w0' adds 'g0/total' of the main graph, which is no part of it" in found


def test_what_depends_on_no_example_is_not_scaled() -> None:
    text = TRAINING.replace("d1 = MatMul(a, dz) {transpose_a=true}", "d1 = Square(w1)")
    program = spread(text, replicas=2)
    program.check()
    update = program.main["s1"]
    scaled = Node("half", "Const", attrs={"value": 0.5}, outputs=(FLOAT,), device=update.device)
    twice = Node("scaled", "Mul", (update.inputs[0], Ref("half")), outputs=update.outputs, device=update.device)
    found = offenders(program.with_nodes([scaled, twice, update.with_(inputs=(Ref("scaled"), update.inputs[1]))]))
    assert "'scaled' (Mul) stands where the step has 'd1' (Square), another operation" in found


def test_values_and_indices_are_in_one_order() -> None:
    program = spread(MICRO_SLICES, replicas=3)
    concat = next(node for node in program.find("ConcatV2") if node.name == "gi/all")
    first, second, *rest = concat.inputs
    found = offenders(program.with_nodes([concat.with_(inputs=(second, first, *rest))]))
    assert found.startswith("'gi' is concatenated as [(1, 0), (0, 0), (2, 0)], and its partner 'gv' as [(0, 0), (1, 0)")


def test_per_example_outputs_are_in_the_callers_order() -> None:
    program = spread(replicas=2)
    concat = next(node for node in program.find("ConcatV2") if node.name == "z/all")
    first, second, axis = concat.inputs
    found = offenders(program.with_nodes([concat.with_(inputs=(second, first, axis))]))
    assert "'z', merged as Split(0), is not in the order of the examples: [(1, 0), (0, 0)]" in found


def test_an_extreme_is_not_added() -> None:
    program = spread(TRAINING.replace("loss = Mean", "loss = Max"), replicas=2)
    program.check()
    (node,) = program.find("Maximum")
    found = offenders(program.with_nodes([node.with_(op="AddV2")]))
    assert found.startswith(
        "'loss', merged as Partial(max), adds 'loss/Maximum' of the main graph, which is no part of it"
    )


def test_a_merge_that_the_plan_does_not_know_is_named() -> None:
    program = spread(replicas=2)
    merges = {ref: value for ref, value in program.plan.merges.items() if ref != Ref("z")}
    found = offenders(replace(program, step=replace(program.step, plan=replace(program.plan, merges=merges))))
    assert found == "'z' is merged, and the plan does not say how"


PIECES = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  k = Captured() {index=0} : float32[BATCH]
  y = Mul(x, k) : float32[BATCH]
}
"""


def test_a_piece_of_other_examples_is_named() -> None:
    program = spread(PIECES, replicas=2, examples=7)
    program.check()
    first, second = [node for node in program.find("Slice") if node.name.startswith("k/piece")]
    swapped = second.with_(inputs=(second.inputs[0], first.inputs[1], second.inputs[2]))
    found = offenders(program.with_nodes([swapped]))
    assert f"of call 'r1/0F0' is '{program.main['r1/0F0'].inputs[1]}', and should be its slice 'k/piece0_1/0'" in found


def test_a_piece_of_another_value_is_named() -> None:
    program = spread(PIECES, replicas=2)
    first, *_ = [node for node in program.find("Slice") if node.name.startswith("k/piece")]
    found = offenders(program.with_nodes([first.with_(inputs=(Ref("x"), *first.inputs[1:]))]))
    assert "'x' (Take) stands where the step has 'k' (Captured), another operation" in found


def test_a_shape_of_another_size_is_named() -> None:
    program = spread(FREE_SLICES, replicas=2, examples=7)
    program.check()
    function = program.functions[Key(0, 0, "B")]
    nodes = {
        name: node.with_(attrs={**node.attrs, "value": (5, 2)}) if name == "dv/operand0" else node
        for name, node in function.graph.nodes.items()
    }
    graph = Graph(nodes, function.graph.outputs, function.graph.effects)
    variants = {**program.variants, 4: {**program.functions, function.key: replace(function, graph=graph)}}
    found = offenders(replace(program, step=replace(program.step, variants=variants)))
    assert "input 0 of 'dv' (Fill) is 'shape' in the step and 'dv/operand0' in 0B" in found


# Calls.


def test_a_call_that_takes_another_micro_batchs_examples_is_named() -> None:
    program = spread(replicas=2)
    first, second = program.main["r0/0F0"], program.main["r1/0F0"]
    slices = program.find("Slice")
    assert [node.name for node in slices] == ["x/r0/0", "x/r1/0"]
    swapped = slices[1].with_(inputs=(slices[1].inputs[0], slices[0].inputs[1], slices[1].inputs[2]))
    found = offenders(program.with_nodes([swapped]))
    assert f"of call 'r1/0F0' is '{second.inputs[0]}', and should be its slice 'x'" in found
    assert f"'{first.name}'" not in found


def test_a_call_that_takes_another_replicas_activations_is_named() -> None:
    program = spread(**PIPELINE)  # type: ignore[arg-type]
    other = program.main["r1/0F0"]
    sent = next(node for node in program.find("Send") if node.inputs[0].node == "r0/0F0" and node.attrs["to"] == 1)
    found = offenders(program.with_nodes([sent.with_(inputs=(Ref(other.name),), device=other.device)]))
    assert "of call 'r0/1F0' is 'r0/0F0/to1', and should be its micro 'a'" in found


def test_calls_that_are_missing_misplaced_or_unknown_are_named() -> None:
    program = spread(**PIPELINE)  # type: ignore[arg-type]
    call = program.main["r0/1F1"]
    missing = offenders(program.with_nodes([call.with_(attrs={**call.attrs, "action": b"1F0"})]))
    assert "1F is called 2 times for replica 0, micro-batch 0" in missing
    assert "1F is called 0 times for replica 0, micro-batch 1" in missing
    unknown = offenders(program.with_nodes([call.with_(attrs={**call.attrs, "function": b"1B"})]))
    assert "call 'r0/1F1' runs '1B', not made for its micro-batch" in unknown
    misplaced = offenders(program.with_nodes([call.with_(device=3)]))
    assert "call 'r0/1F1' is on device 3, and the plan says 1" in misplaced


# Every operation once.


def test_an_operation_in_two_stage_functions_is_named() -> None:
    program = spread(stages=2)
    function = program.functions[Key(0, 1, "F")]
    nodes = {**function.graph.nodes, "h": program.graph["h"].with_(inputs=tuple(function.graph.outputs[:2]))}
    graph = Graph(nodes, function.graph.outputs, function.graph.effects)
    found = offenders(program.with_function(replace(function, graph=graph)))
    assert "'h' (MatMul) runs per micro-batch and is in 2 stage functions (0F, 1F)" in found


def test_an_operation_in_no_stage_function_is_named() -> None:
    program = spread(stages=2)
    function = program.functions[Key(0, 1, "F")]
    graph = Graph(
        {name: node for name, node in function.graph.nodes.items() if name != "loss"},
        tuple(Ref("z") if ref == Ref("loss") else ref for ref in function.graph.outputs),
    )
    found = offenders(program.with_function(replace(function, graph=graph)))
    assert "'loss' (Mean) runs per micro-batch and is in no stage function" in found
    assert "result 'loss' of 1F is 'z'" in found


def test_an_operation_with_another_input_is_named() -> None:
    program = spread(stages=2)
    function = program.functions[Key(0, 0, "F")]
    node = function.graph["h"]
    nodes = {**function.graph.nodes, "h": node.with_(inputs=tuple(reversed(node.inputs)))}
    found = offenders(program.with_function(replace(function, graph=Graph(nodes, function.graph.outputs))))
    assert f"input 0 of 'h' (MatMul) is 'x' in the step and '{node.inputs[1]}' in 0F" in found


def test_an_update_that_is_computed_twice_is_named() -> None:
    program = spread(replicas=2, homes={"w1": 1})
    assign = program.find("Assign", variable=b"w1")[0]
    assert assign.inputs == (Ref("n1"),)  # the output takes it too
    found = offenders(
        program.with_nodes([program.main["n1"].with_(name="again"), assign.with_(inputs=(Ref("again"),))])
    )
    assert "'n1' (Sub) runs once per step, and is 2 times in the main graph: ['again', 'n1']" in found


def test_another_operation_in_the_update_is_named() -> None:
    program = spread(replicas=2)
    found = offenders(program.with_nodes([program.main["n0"].with_(op="AddV2")]))
    assert found.startswith("'n0' (AddV2) stands where the step has 'n0' (Sub), another operation")


def test_an_effect_that_no_operation_asked_for_is_named() -> None:
    program = spread(replicas=2)
    extra = Node("shout", "PrintV2", stateful=True, device=0)
    assert (
        offenders(program.with_nodes([extra]))
        == "'shout' (PrintV2) of the main graph has effects and stands for no operation of the step"
    )


def test_assignments_that_are_missing_or_repeated_are_named() -> None:
    program = spread(replicas=2)
    assign = program.find("Assign", variable=b"w0")[0]
    nodes = {name: node for name, node in program.main.nodes.items() if node is not assign}
    effects = tuple(name for name in program.main.effects if name != assign.name)
    missing = program.with_main(Graph(nodes, program.main.outputs, effects))
    assert "variable 'w0' is assigned 0 times, or its Assign is no effect" in offenders(missing)
    repeated = program.with_nodes([assign.with_(name="again")])
    assert "variable 'w0' is assigned 2 times, or its Assign is no effect" in offenders(repeated)


# No deadlock.


def test_a_missing_send_is_named() -> None:
    program = spread(**PIPELINE)  # type: ignore[arg-type]
    send = program.find("Send")[0]
    nodes = {name: node for name, node in program.main.nodes.items() if node is not send}
    found = offenders(program.with_main(Graph(nodes, program.main.outputs, program.main.effects)))
    assert f"key '{send.attrs['key'].decode()}' has 0 Send and 1 Recv" in found


def test_a_send_that_nobody_receives_and_a_key_twice_are_named() -> None:
    program = spread(stages=2)
    send, other = program.find("Send")[:2]
    stray = program.with_nodes([send.with_(name="stray", attrs={**send.attrs, "key": b"stray"})])
    assert offenders(stray) == "key 'stray' has 1 Send and 0 Recv"
    twice = offenders(program.with_nodes([send.with_(name="again")]))
    assert f"key '{send.attrs['key'].decode()}' has 2 Send and 1 Recv" in twice
    assert other.attrs["key"] != send.attrs["key"]


def test_ends_that_disagree_are_named() -> None:
    program = spread(replicas=2, stages=2)
    send = next(node for node in program.find("Send") if node.inputs[0].node == "r0/0F0")
    key = send.attrs["key"].decode()
    elsewhere = offenders(program.with_nodes([send.with_(attrs={**send.attrs, "to": 3})]))
    assert f"key '{key}' is sent from device 0 to 3 and received on device 1 from 0" in elsewhere
    other = offenders(program.with_nodes([send.with_(attrs={**send.attrs, "T": DType("int32")})]))
    assert f"key '{key}' is sent as int32 and received as float32" in other


def test_a_tensor_of_another_device_is_named() -> None:
    program = spread(stages=2)
    receive = next(node for node in program.find("Recv") if node.name == "r0/0F0/to1")
    call = program.main["r0/1F0"]
    inputs = tuple(Ref("r0/0F0") if ref.node == receive.name else ref for ref in call.inputs)
    found = offenders(program.with_nodes([call.with_(inputs=inputs)]))
    assert "of 'r0/1F0' (Call) on device 1 is 'r0/0F0' on device 0, without Send and Recv" in found


def test_calls_in_another_order_than_the_schedules_are_named() -> None:
    program = spread(micro_batches=2, stages=2, schedule="gpipe")
    names = [node.name for node in program.find("Call") if node.device == 0]
    assert names == ["r0/0F0", "r0/0F1", "r0/0B0", "r0/0B1"]
    first, second = program.main[names[0]], program.main[names[1]]
    swapped = {
        **program.main.nodes,
        first.name: first.with_(control=(second.name,)),
        second.name: second.with_(control=()),
    }
    order = [n for n in swapped if n not in (first.name, second.name)]
    place = order.index("r0/0B0")
    calls = [*order[:place], second.name, first.name, *order[place:]]
    changed = Graph({name: swapped[name] for name in calls}, program.main.outputs, program.main.effects)
    found = offenders(program.with_main(changed))
    assert "device 0 of replica 0 runs 0F1 0F0 0B0 0B1, and the schedule says 0F0 0F1 0B0 0B1" in found
    assert "call 'r0/0B0' on device 0 does not wait for 'r0/0F0', the call before it" in found


def test_a_circle_through_transfers_is_shown() -> None:
    """Stage 0 waits for its own backward, which waits for what stage 1 makes of it."""
    program = spread(stages=2)
    first = program.main["r0/0F0"]
    _, circle = offenders(program.with_nodes([first.with_(control=("r0/0B0",))])).split(" nodes never run: ")
    assert circle == (
        "'r0/0F0' waits for 'r0/0B0' waits for 'r0/1B0/to0' waits for 'r0/1B0/to0/send' waits for"
        " 'r0/1B0' waits for 'r0/1F0' waits for 'r0/0F0/to1' waits for 'r0/0F0/to1/send' waits for 'r0/0F0'"
    )


# The message.


def test_the_message_has_all_parts() -> None:
    program = spread(replicas=2)
    with pytest.raises(InternalError) as caught:
        program.with_nodes([program.main["n0"].with_(op="AddV2")]).check()
    assert str(caught.value).split("\n") == [
        "the program is not the step it was made from, in 3 places.",
        "  'n0' (AddV2) stands where the step has 'n0' (Sub), another operation",
        "  's0' (Mul) runs once per step, and is 0 times in the main graph: []",
        "  'n0' (Sub) runs once per step, and is 0 times in the main graph: []",
        "  This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes.",
    ]
