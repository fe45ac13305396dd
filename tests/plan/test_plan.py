"""Plans: what they look like, that they read back, and that their numbers add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.rewrite.steps import sized
from whale_tf._protos import plan_pb2
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.sharding import Split
from whale_tf.ir.sharding import Value as State
from whale_tf.plan.coupling import Coupling, resolve
from whale_tf.plan.grids import Grids
from whale_tf.plan.layout import Layout, cut_batch, meshes_of
from whale_tf.plan.one_part import undivided
from whale_tf.plan.plan import Plan
from whale_tf.plan.planner import Facts, make_plan
from whale_tf.plan.request import Request
from whale_tf.plan.stage_cost import StageCost
from whale_tf.rewrite.reshard import reshard
from whale_tf.rewrite.resize import at_size

TRAINING = """
graph step(out: loss, y) effects(u0, u1) {
  x = Input() {index=0, batch=true} : float32[BATCH,8]
  w0 = Variable() {variable=b"w0", trainable=true, aggregation=b"NONE"} : float32[8,6]
  w1 = Variable() {variable=b"w1", trainable=true, aggregation=b"NONE"} : float32[6,3]
  dims = Const() {value=(0, 1)} : int32[2]
  h = MatMul(x, w0) : float32[BATCH,6]  @scope=s0
  y = MatMul(h, w1) : float32[BATCH,3]  @scope=s1
  square = Square(y) : float32[BATCH,3]  @scope=s1
  loss = Mean(square, dims) : float32[]
  dy = Neg(y) : float32[BATCH,3]  @call=1 @twin=square
  dh = MatMul(dy, w1) {transpose_b=true} : float32[BATCH,6]  @call=1 @twin=y
  d1 = MatMul(h, dy) {transpose_a=true} : float32[6,3]  @call=1 @twin=y
  d0 = MatMul(x, dh) {transpose_a=true} : float32[8,6]  @call=1 @twin=h
  g0 = Gradient(d0) {call=1, part=b"dense", variable=b"w0"} : float32[8,6]
  g1 = Gradient(d1) {call=1, part=b"dense", variable=b"w1"} : float32[6,3]
  n0 = Sub(w0, g0) : float32[8,6]
  n1 = Sub(w1, g1) : float32[6,3]
  u0 = Write(n0) {variable=b"w0"} : float32[8,6]
  u1 = Write(n1) {variable=b"w1"} : float32[6,3]
}
"""
DEVICES = tuple(f"/job:localhost/replica:0/task:0/device:CPU:{index}" for index in range(6))
STAGES = (
    Opened("s0", "stage", "encoder", "", Line("train.py", 3)),
    Opened("s1", "stage", "", "", Line("train.py", 5)),
)
EVEN = (0.5, 0.5)
NOTHING = Graph({})
Key = TypeVar("Key")
Value = TypeVar("Value")


def line_of(operation: str) -> Line:
    return Line("train.py", 7, "step", operation)


def facts(layout: Layout, sizes: tuple[tuple[int, ...], ...], *, schedule: str = "1f1b") -> Facts:
    stages = STAGES if len(layout.stages) > 1 else ()
    targets = {1: ("loss",)}
    return Facts(Request(None, stages), layout, sizes, schedule, {"w0": 0, "w1": 0}, line_of, targets, NOTHING)


def plan_of(text: str, told: Facts) -> Plan:
    """The plan of a step at its global batch."""
    examples = sum(map(sum, told.sizes))
    if sum(map(len, told.sizes)) > 1:
        coupling = Coupling(False, (), len(told.sizes[0]), 2**28, line_of)
        states = resolve(sized(text, examples, 2), coupling).states
    else:
        states = undivided(sized(text, examples, examples))
    resharded = reshard(states)
    values = {ref: known.value for ref, known in states.known.items()}
    micro = at_size(resharded.graph, states, resharded.made_of, max(map(max, told.sizes)))
    return make_plan(resharded.graph, resharded.roles, values, replace(told, micro=micro))


def pipeline(
    shares: tuple[float, ...] = EVEN, examples: int = 16, micro_batches: int = 2, schedule: str = "1f1b"
) -> Plan:
    """Two stages on two devices in each replica."""
    places = tuple((2 * replica, 2 * replica + 1) for replica in range(len(shares)))
    layout = Layout(shares, ("encoder", "1"), meshes_of(places, 2), DEVICES)
    sizes = cut_batch(examples, shares, micro_batches)
    return plan_of(TRAINING, facts(layout, sizes, schedule=schedule))


def one_device(text: str = TRAINING) -> Plan:
    training = facts(Layout((1.0,), ("",), (((0,),),), DEVICES[:1]), ((4,),))
    return plan_of(text, training if "Gradient" in text else replace(training, targets={}))


# What they look like.

PRINTED_PIPELINE = """\
2 replicas, 2 stages, 2 micro-batches of 4 examples, schedule 1f1b (bubble 33%), global batch 16

stage     ops   parameters   devices        FLOPs     in    out   residuals    live activations
───────────────────────────────────────────────────────────────────────────────────────────────
encoder     2           48   CPU:0, CPU:2     768   96 B   96 B         0 B       2 x 0 B = 0 B
1           6           18   CPU:1, CPU:3     468   96 B   96 B       144 B   1 x 144 B = 144 B
FLOPs, in, out and residuals: of the largest micro-batch. Live activations: the most kept at the same time.

idle: CPU:4, CPU:5

values: 6 Split(0), 2 Partial(sum), 1 Partial(sum) of degree -1; 4 are merged

clock     0   1   2   3   4   5   6   7   8
device 0: 0F0 0F1 .   .   0B0 -   .   0B1 -
device 1: .   1F0 1B0 -   1F1 1B1 -   .   .
"""
PRINTED_CLASSES = """\
replicas 0, 2:
clock     0   1   2   3   4   5   6   7   8
device 0: 0F0 0F1 .   .   0B0 -   .   0B1 -
device 1: .   1F0 1B0 -   1F1 1B1 -   .   .

replica 1:
clock     0   1   2   3   4   5   6   7   8   9   10  11
device 0: 0F0 1F0 1B0 -   0B0 -   0F1 1F1 1B1 -   0B1 -
"""
PRINTED_DEVICE = """\
1 replica, 1 stage, 1 micro-batch of 4 examples, schedule 1f1b (bubble 0%), global batch 4

stage            ops   parameters   devices   FLOPs    in   out   residuals    live activations
───────────────────────────────────────────────────────────────────────────────────────────────
the whole step     8           66   CPU:0     1.2 k   0 B   0 B       144 B   1 x 144 B = 144 B
FLOPs, in, out and residuals: of the largest micro-batch. Live activations: the most kept at the same time.

clock     0   1   2
device 0: 0F0 0B0 -
"""


def test_a_plan_prints_its_decisions_its_stages_and_its_schedule() -> None:
    assert str(pipeline()) + "\n" == PRINTED_PIPELINE


def unlike() -> Plan:
    """Pipelines of two devices, and between them a replica of one."""
    layout = Layout((0.4, 0.2, 0.4), ("encoder", "1"), meshes_of(((0, 1), (2,), (4, 5)), 2), DEVICES)
    return plan_of(TRAINING, facts(layout, cut_batch(20, layout.shares, 2)))


def test_a_plan_prints_the_schedule_of_each_pipeline_class() -> None:
    lines = str(unlike()).splitlines()
    assert " ".join(lines[:2]) == (
        "3 replicas (0.4, 0.2, 0.4), 2 stages, 2 micro-batches of 2x4 | 2x2 | 2x4 examples, "
        "schedule 1f1b (bubble 33%, 0%), global batch 20"
    )
    assert [line.split()[:5] for line in lines[5:7]] == [
        ["encoder", "2", "48", "CPU:0,", "CPU:2,"],
        ["1", "6", "18", "CPU:1,", "CPU:2,"],
    ]
    assert "2 x 0 B" in lines[5] and "1 x 144 B" in lines[6], "what a stage keeps at most in any class"
    assert "idle: CPU:3" in lines
    assert "\n".join(lines[-8:]) + "\n" == PRINTED_CLASSES


def test_a_plan_of_one_device_prints_too() -> None:
    assert str(one_device()) + "\n" == PRINTED_DEVICE


def test_unequal_replicas_and_micro_batches_are_written_out() -> None:
    first = str(pipeline((0.75, 0.25), 14)).splitlines()[0]
    assert first.startswith("2 replicas (0.75, 0.25), 2 stages, 2 micro-batches of 2x5 | 2x2 examples, schedule 1f1b")
    assert "3 micro-batches of 1x3 + 2x2 examples" in str(pipeline(EVEN, 14, 3))
    assert "1 micro-batch of 8 examples" in str(pipeline(EVEN, 16, 1))


def test_a_schedule_that_is_too_wide_is_only_named() -> None:
    lines = str(pipeline(micro_batches=8)).splitlines()
    assert lines[-1] == "The schedule is 116 columns wide: print(plan.grids) shows it."


def test_a_plan_prints_in_colour_on_a_console_that_has_them() -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=120, _environ={})
    with console.capture() as printed:
        console.print(pipeline())
    assert "\x1b[" in printed.get()
    assert "\x1b[" not in str(pipeline())


def test_devices_of_other_processes_are_told_apart() -> None:
    plan = pipeline()
    names, processes = ("/job:localhost/replica:0/task:0/device:GPU:1",) * 6, (0, 0, 0, 0, 1, 2)
    layout = replace(plan.layout, devices=names, processes=processes)
    assert [layout.label(device) for device in (3, 4, 5)] == ["GPU:1", "1/GPU:1", "2/GPU:1"]
    assert "1/GPU:1, 2/GPU:1" in str(replace(plan, layout=layout))


def test_a_plan_tells_the_states_of_tensors_by_name() -> None:
    plan = pipeline()
    assert plan.states("^(h|loss|d0)$") == {"h": "Split(0)", "loss": "Partial(sum) of degree -1", "d0": "Partial(sum)"}
    assert plan.states("^w") == {}  # a whole value is not listed
    assert plan.states().keys() > {"h", "y"}
    assert one_device().states() == {}


# What stages cost.


def test_a_stage_costs_its_own_operations_variables_and_transfers() -> None:
    """`h` goes to stage 1 and `dh` back, [4, 6] each; stage 1 keeps `h` and `y`; stage 0 only the input, a given."""
    matmul_0, matmul_1 = 2 * 4 * 8 * 6, 2 * 4 * 6 * 3
    assert pipeline().stages == (
        StageCost("encoder", 2, 48, 192, 2 * matmul_0, 96, 96, 0, 2),
        StageCost("1", 6, 18, 72, 3 * matmul_1 + 4 * 3 * 3, 96, 96, 96 + 48, 1),
    )


def test_stages_that_share_a_device_own_their_own_variables() -> None:
    layout = Layout((1.0,), ("encoder", "1"), meshes_of(((0,),), 2), DEVICES[:1])
    plan = plan_of(TRAINING, facts(layout, ((4, 4),), schedule="interleaved"))
    assert [stage.parameters for stage in plan.stages] == [48, 18]


def test_an_evaluation_has_only_forwards() -> None:
    plan = one_device(
        "graph step(out: y) {\n x = Input() {index=0, batch=true} : float32[BATCH]\n y = Relu(x) : float32[BATCH]\n}"
    )
    assert plan.grids == plan.forward_grids
    assert str(plan.grids) == "clock     0\ndevice 0: 0F0"


# Reading back.


def test_a_plan_of_several_classes_reads_back_from_its_message() -> None:
    plan = unlike()
    assert [len(grid.rows) for grid in plan.grids.by_class] == [2, 1]
    assert Plan.from_proto(plan_pb2.Plan.FromString(plan.to_proto().SerializeToString())) == plan


def test_every_class_has_a_grid() -> None:
    plan = unlike()
    with pytest.raises(PlanError) as refused:
        replace(plan, grids=Grids(plan.grids.by_class[:1]))
    assert refused.value.details == ("there is no grid for replica 1, whose stages are on devices (0, 0)",)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_a_plan_reads_back_from_its_message(schedule: str) -> None:
    plan = pipeline((0.75, 0.25), 14, schedule=schedule)
    assert plan.merges and plan.values and len(plan.buckets) == 2
    plan = replace(plan, collective=(1,))
    sent = plan_pb2.Plan.FromString(plan.to_proto().SerializeToString())
    assert Plan.from_proto(sent) == plan
    assert Plan.from_proto(sent).fingerprint == plan.fingerprint


def turned_round(mapping: Mapping[Key, Value]) -> dict[Key, Value]:
    return dict(reversed(list(mapping.items())))


def test_equal_plans_have_one_fingerprint_and_others_another() -> None:
    plan = pipeline()
    turned = replace(plan, variables=turned_round(plan.variables), merges=turned_round(plan.merges))
    assert turned == plan
    assert turned.fingerprint == plan.fingerprint
    others = [
        pipeline(schedule="gpipe"),
        pipeline((0.75, 0.25)),
        replace(plan, merges={**plan.merges, Ref("y"): State(Split(1))}),
        replace(plan, stage_of={**plan.stage_of, "loss": 0}),
        replace(plan, collective=(0,)),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    message = pipeline().to_proto()
    message.stage_of["h"] = 2
    message.home_of["w0"] = 6
    message.layout.meshes[1].stages[0].devices[0] = -1
    with pytest.raises(PlanError) as refused:
        Plan.from_proto(message)
    assert str(refused.value) == (
        "the plan contradicts itself.\n"
        "  the stage of 'h' is 2, and there are 2\n"
        "  the home of 'w0' is device 6, and there are 6\n"
        "  replica 1 is on device -1, and there are 6\n"
        "  Count stages, replicas and devices from 0, and change all fields that speak of them together."
    )


def test_a_collective_is_of_a_bucket() -> None:
    with pytest.raises(PlanError, match="bucket 2 is reduced by a collective, and there are 2"):
        replace(pipeline(), collective=(0, 2))


# Numbers.


@given(
    shares=st.lists(st.integers(1, 4), min_size=1, max_size=3), examples=st.integers(40, 99), parts=st.integers(1, 4)
)
def test_weights_sum_to_1_and_offsets_follow_each_other(shares: list[int], examples: int, parts: int) -> None:
    plan = pipeline(tuple(share / sum(shares) for share in shares), examples, parts)
    assert plan.examples == examples
    assert plan.parts == len(shares) * parts
    expected = 0
    for replica, i in plan.part_order():
        assert plan.offset(replica, i) == expected
        assert plan.weight(replica, i) == plan.sizes[replica][i] / examples
        expected += plan.sizes[replica][i]
    assert expected == examples
    assert sum(plan.weight(replica, i) for replica, i in plan.part_order()) == pytest.approx(1)
    assert sum(plan.share(replica) for replica in range(len(shares))) == pytest.approx(1)
    assert plan.even == (len({size for row in plan.sizes for size in row}) == 1)


def test_without_a_batch_all_parts_weigh_the_same() -> None:
    plan = replace(one_device(), sizes=((0,),))
    assert (plan.examples, plan.weight(0, 0), plan.share(0)) == (0, 1.0, 1.0)
    assert str(plan).splitlines()[0].endswith("no batch")


# What no plan can do.


def refused_by(text: str, sizes: tuple[tuple[int, ...], ...] = ((4, 4),), stages: int = 2) -> str:
    layout = Layout((1.0,), ("encoder", "1")[:stages], meshes_of((tuple(range(stages)),), stages), DEVICES)
    with pytest.raises(PlanError) as refused:
        plan_of(text, facts(layout, sizes))
    return str(refused.value)


def test_a_gradient_that_nothing_uses_is_refused() -> None:
    text = TRAINING.partition("  g0 =")[0].replace(" effects(u0, u1)", "") + "}"
    assert refused_by(text) == (
        "the gradient reaches no variable.\n"
        "  what tape.gradient returned is used by nothing the step writes or returns\n"
        "  at train.py:7 in step: loss\n"
        "  Apply it: optimizer.apply_gradients(zip(gradients, variables))."
    )


def test_a_loss_outside_every_stage_is_refused() -> None:
    text = TRAINING.replace("  @scope=s0", "").replace("  @scope=s1", "")
    assert refused_by(text) == (
        "the loss depends on no operation of any stage.\n"
        "  'loss' is differentiated, and nothing it is computed from was made in a stage\n"
        "  at train.py:7 in step: loss\n"
        "  in stage 'encoder' opened at train.py:3\n"
        "  in stage() opened at train.py:5\n"
        "  Compute the model inside the stages, or leave the stages out."
    )


def test_a_batch_that_the_step_pulls_from_an_iterator_is_refused() -> None:
    text = """
        graph step(out: y) {
          i = Handle() {index=0} : resource[]
          y = IteratorGetNext(i) : float32[4]  @stateful
        }
    """
    told = replace(facts(Layout(EVEN, ("",), (((0,),), ((1,),)), DEVICES), ((2,), (2,))), targets={})
    with pytest.raises(PlanError) as refused:
        plan_of(text, told)
    assert str(refused.value) == (
        "the step takes its batch from an iterator, so that it cannot be cut.\n"
        "  replicas, stages and micro-batches need the batch as an argument\n"
        "  at train.py:7 in step: y\n"
        "  Call next(iterator) outside, and pass what it gives: for x, y in dataset: step(x, y)."
    )


def test_seats_that_no_group_has_are_refused() -> None:
    message = pipeline().to_proto()
    message.variables["w0"].owner[0] = 9
    message.seat_of["n1"].kinds.append(1)
    with pytest.raises(PlanError) as refused:
        Plan.from_proto(message)
    assert refused.value.details == (
        "'n1' has 2 seats, and should have 1",
        "the owner of 'w0' has seat 9, and a group of 2 replicas has seats 0 to 4",
    )
