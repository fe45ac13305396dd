"""`bind`: calls in the schedule's order, values sent once, what runs once per step on the device of the plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.steps import MEANS, TRAINING, Spread, spread
from whale_tf.ir.graph import Function, Node, Ref
from whale_tf.ir.verify import verify
from whale_tf.rewrite.cut import Key

RANDOM = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,2]
  shape = Const() {value=(BATCH, 2)} : int32[2]
  noise = RandomUniform(shape) {seed=3, seed2=4, dtype=float32, T=int32} : float32[BATCH,2]  @stateful
  y = Mul(x, noise) : float32[BATCH,2]
}
"""
# Steps of two stages that take or pass on something of each kind.
PASSED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  t = Captured() {index=0} : float32[]
  y = Mul(x, t) : float32[BATCH,3]
}
"""
LOOKED_UP = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : int64[BATCH]
  t = Handle() {index=0} : resource[]
  zero = Const() {value=(0.0)} : float32[]
  y = LookupTableFindV2(t, x, zero) : float32[BATCH]
}
"""
LISTED = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH,3]
  swapped = Const() {value=(1, 0)} : int32[2]
  shape = Const() {value=(BATCH)} : int32[1]
  t = Transpose(x, swapped) : float32[3,BATCH]  @scope=s0
  l = TensorListFromTensor(t, shape) : variant[]  @scope=s0
  y = TensorListStack(l, shape) : float32[3,BATCH]  @scope=s1
}
"""
# A gradient that waits for a total over all examples.
MIDDLE = """
graph step(out: root) effects(u) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[]
  dims = Const() {value=(0)} : int32[1]
  h = Mul(x, w) : float32[BATCH]
  loss = Sum(h, dims) : float32[]
  root = Sqrt(loss) : float32[]
  dh = Mul(x, root) : float32[BATCH]  @call=1 @twin=h
  dw = Sum(dh, dims) : float32[]  @call=1
  g = Gradient(dw) {call=1, part=b"dense", variable=b"w", partner=b""} : float32[]
  n = Sub(w, g) : float32[]
  u = Write(n) {variable=b"w"} : float32[]
}
"""


def argument(program: Spread, call: str, kind: str) -> Node:
    """Where an argument of a call was made."""
    node = program.main[call]
    function = program.program.functions[node.attrs["function"].decode()]
    position = next(index for index, source in enumerate(function.arguments) if source.kind == kind)
    return program.main[program.origin(node.inputs[position]).node]


def calls(program: Spread, device: int) -> list[str]:
    return [node.name for node in program.find("Call") if node.device == device]


def test_one_device_is_calls_and_an_update() -> None:
    program = spread()
    assert not program.find("Send") and not program.find("Slice")
    assert calls(program, 0) == ["r0/0F0", "r0/0B0"]
    assert [program.main[name].inputs for name in program.main.effects] == [(Ref("n0"),), (Ref("n1"),)]


def test_calls_follow_the_schedule_on_every_device() -> None:
    program = spread(replicas=2, stages=2, micro_batches=3)
    assert calls(program, 0) == ["r0/0F0", "r0/0F1", "r0/0B0", "r0/0F2", "r0/0B1", "r0/0B2"]
    assert calls(program, 1) == ["r0/1F0", "r0/1B0", "r0/1F1", "r0/1B1", "r0/1F2", "r0/1B2"]
    assert calls(program, 2) == [name.replace("r0", "r1") for name in calls(program, 0)]
    for device in range(4):
        names = calls(program, device)
        for before, after in pairwise(names):
            assert before in program.main[after].control


def test_calls_follow_the_schedule_of_their_replicas_class() -> None:
    program = spread(replicas=3, stages=2, micro_batches=2, places=((0, 1), (2, 2), (3, 4)))
    assert calls(program, 0) == ["r0/0F0", "r0/0F1", "r0/0B0", "r0/0B1"]
    assert calls(program, 1) == ["r0/1F0", "r0/1B0", "r0/1F1", "r0/1B1"]
    assert calls(program, 2) == [f"r1/{action}{i}" for i in range(2) for action in ("0F", "1F", "1B", "0B")]
    for device in (0, 1):
        assert calls(program, 3 + device) == [name.replace("r0", "r2") for name in calls(program, device)]
    program.check()


def test_one_micro_batch_needs_no_order_but_the_datas() -> None:
    program = spread(replicas=2, stages=2)
    assert program.program.inline
    assert not program.program.ordered
    assert all(not node.control for node in program.find("Call"))


@pytest.mark.parametrize(
    ("text", "inline"),
    [(PASSED, True), (LOOKED_UP, False), (LISTED, False)],
    ids=["numbers", "a table", "a list"],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_calls_that_pass_what_is_no_value_are_not_inlined(micro_batches: int, text: str, inline: bool) -> None:
    program = spread(text, replicas=2, stages=2, micro_batches=micro_batches)
    program.check()
    assert program.program.inline is inline
    assert calls(program, 2) == [f"r1/0F{i}" for i in range(micro_batches)]


def test_only_few_and_small_calls_that_keep_an_order_are_inlined() -> None:
    few, many = (spread(micro_batches=count, examples=2 * count) for count in (2, 256))
    assert few.program.ordered and many.program.ordered
    assert few.program.inline and not many.program.inline


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_calls_whose_functions_call_others_are_inlined_only_if_they_keep_no_order(micro_batches: int) -> None:
    step = spread(micro_batches=micro_batches).step
    ((size, functions),) = step.variants.items()
    key = next(iter(functions))
    graph = functions[key].graph
    calling = replace(
        functions[key], graph=graph.rewritten(lambda node: node.with_(attrs={**node.attrs, "body": Function("loop")}))
    )
    assert step.inlines({str(key): micro_batches})
    changed = replace(step, variants={size: {**functions, key: calling}})
    assert changed.inlines({str(key): micro_batches}) is (micro_batches == 1)


def test_a_value_that_is_merged_in_the_middle_comes_back_to_every_part() -> None:
    program = spread(MIDDLE, replicas=3)
    program.check()
    assert [node.name for node in program.find("Sqrt")] == ["root"]
    second = [node for node in program.find("Call") if node.attrs["phase"] == 2]
    assert [argument(program, node.name, "step").name for node in second] == ["root"] * 3
    assert {
        node.name: program.roles.phase[node.name] for node in program.graph if node.name in ("h", "root", "dh")
    } == {
        "h": 0,
        "root": 1,
        "dh": 2,
    }


@given(replicas=st.integers(1, 3), stages=st.integers(1, 2), micro_batches=st.integers(1, 3))
def test_a_value_is_sent_to_a_device_once(replicas: int, stages: int, micro_batches: int) -> None:
    program = spread(replicas=replicas, stages=stages, micro_batches=micro_batches)
    verify(program.main, after="bind")
    sent = Counter((node.inputs[0], node.attrs["to"]) for node in program.find("Send"))
    assert set(sent.values()) <= {1}
    assert len(program.find("Send")) == len(program.find("Recv"))


def test_a_call_takes_its_own_examples() -> None:
    program = spread(replicas=2, micro_batches=2, examples=10)
    for call, begin, size in [("r0/0F0", 0, 3), ("r0/0F1", 3, 2), ("r1/0F0", 5, 3), ("r1/0F1", 8, 2)]:
        made = argument(program, call, "slice")
        assert made.op == "Slice"
        assert program.main[made.inputs[1].node].attrs["value"] == (begin, 0)
        assert program.main[made.inputs[2].node].attrs["value"] == (size, -1)


def test_micro_batches_of_another_size_run_functions_of_their_own() -> None:
    program = spread(replicas=2, examples=7)
    assert set(program.program.functions) == {"0F/4", "0B/4", "0F/3", "0B/3"}
    assert program.main["r0/0F0"].attrs["function"] == b"0F/4"
    assert program.main["r1/0F0"].attrs["function"] == b"0F/3"


def test_weights_are_the_micro_batchs_own() -> None:
    program = spread(MEANS, replicas=2, examples=7)
    assert argument(program, "r0/0B0", "weight").attrs["value"] == 4 / 7
    assert argument(program, "r1/0B0", "weight").attrs["value"] == 3 / 7


def test_a_sum_starts_with_the_first_micro_batch_and_goes_from_call_to_call() -> None:
    program = spread(micro_batches=3)
    assert [program.main[f"r0/0B{i}"].attrs["function"] for i in range(3)] == [b"0B_first", b"0B", b"0B"]
    assert "sum" not in {source.kind for source in program.functions[Key(0, 0, "B", first=True)].arguments}
    assert argument(program, "r0/0B1", "sum").name == "r0/0B0"
    assert argument(program, "r0/0B2", "sum").name == "r0/0B1"


def test_a_step_draws_one_seed_and_each_micro_batch_has_a_number() -> None:
    program = spread(RANDOM, replicas=2, micro_batches=2)
    names = [f"r{r}/0F{i}" for r in range(2) for i in range(2)]
    assert {argument(program, name, "seed").name for name in names} == {"noise/seed"}
    assert [argument(program, name, "draw").attrs["value"] for name in names] == [0, 1, 2, 3]
    assert {key: program.main["noise/seed"].attrs[key] for key in ("seed", "seed2")} == {"seed": 3, "seed2": 4}


def test_an_update_runs_once_on_the_owner_of_its_variable() -> None:
    program = spread(replicas=2, stages=2)
    for name, variable in (("n0", "w0"), ("n1", "w1")):
        owner = program.plan.layout.device_at(0, program.plan.variables[variable].owner[0])
        assert program.main[name].device == owner
        assert program.main[name].device in (program.plan.layout.device_of(r, int(variable[1])) for r in range(2))
    assert [node.name for node in program.find("Sub")] == ["n0", "n1"]


def test_what_depends_on_no_example_is_computed_where_it_is_used() -> None:
    program = spread(replicas=2)
    rates = [node for node in program.find("Const") if node.name.startswith("rate")]
    assert {node.device for node in rates} == {program.main["s0"].device, program.main["s1"].device}
    assert len(rates) == 2


def test_variables_are_read_and_written_at_home() -> None:
    program = spread(replicas=2, homes={"w1": 1})
    for variable, home in ((b"w0", 0), (b"w1", 1)):
        (read,), (assign,) = program.find("Read", variable=variable), program.find("Assign", variable=variable)
        assert read.device == assign.device == home
        assert read.name in assign.control


def test_outputs_are_on_the_host() -> None:
    program = spread(replicas=2, stages=2, micro_batches=2)
    assert [program.main[ref.node].device for ref in program.main.outputs] == [0, 0, 0]


def test_names_of_the_step_that_meet_those_of_the_passes_stay_apart() -> None:
    text = TRAINING.replace("rate", "constant").replace("n0", "rate_1")
    program = spread(text, replicas=2)
    verify(program.main, after="bind")
    program.check()


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_phases_follow_each_other(micro_batches: int) -> None:
    """A step that goes forward again with what it has just written."""
    text = TRAINING.replace("out: loss, z, n1", "out: loss, again").replace(
        "}\n", "  again = MatMul(x, u0) : float32[BATCH,2]\n}\n"
    )
    program = spread(text, replicas=2, micro_batches=micro_batches)
    program.check()
    second = [node for node in program.find("Call") if node.attrs["phase"] == 2]
    assert len(second) == 2 * micro_batches
    assert all(argument(program, node.name, "step").name == "n0" for node in second)
