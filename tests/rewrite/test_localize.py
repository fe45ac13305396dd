"""Steps over several processes: every process's part, and that the whole is still the user's step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewrite.steps import FREE_SLICES, MEANS, MICRO_SLICES, TRAINING, Spread, part_of, spread
from whale_tf.errors import InternalError
from whale_tf.ir.graph import Graph
from whale_tf.ir.verify import verify
from whale_tf.rewrite.localize import localize
from whale_tf.rewrite.program import BETWEEN_GROUPS, Program

# replicas, stages, the process of each device: replica by replica, stage by stage
LAYOUTS = {
    "two replicas": (2, 1, (0, 1)),
    "two replicas in each": (4, 1, (0, 0, 1, 1)),
    "two stages": (1, 2, (0, 1)),
    "four stages": (1, 4, (0, 0, 1, 1)),
    "two pipelines": (2, 2, (0, 0, 1, 1)),
    "two pipelines across": (2, 2, (0, 1, 2, 3)),
    "unequal processes": (3, 1, (0, 0, 1)),
    "a process in two pipelines": (2, 2, (0, 1, 1, 2)),
}


@pytest.mark.parametrize("fed", [False, True], ids=["whole", "fed"])
@pytest.mark.parametrize("examples", [0, 19], ids=["even", "uneven"])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("layout", "text"),
    [(layout, TRAINING) for layout in LAYOUTS.values()]
    + [(layout, MICRO_SLICES) for layout in LAYOUTS.values() if layout[1] == 1],
    ids=[*LAYOUTS, *(f"{name}, slices" for name, layout in LAYOUTS.items() if layout[1] == 1)],
)
def test_a_step_over_processes_is_the_users_step(
    layout: tuple[int, int, tuple[int, ...]], text: str, micro_batches: int, examples: int, fed: bool
) -> None:
    replicas, stages, processes = layout
    program = spread(
        text,
        replicas=replicas,
        stages=stages,
        micro_batches=micro_batches,
        examples=examples,
        processes=processes,
        fed=fed,
    )
    program.check()
    for process in range(max(processes) + 1):
        part = localize(program.program, process)
        verify(part.main, after="localize")
        assert {node.device for node in part.main} <= {d for d, owner in enumerate(processes) if owner == process}


def across(replicas: int = 2, stages: int = 1, processes: Sequence[int] = (0, 1)) -> Spread:
    return spread(replicas=replicas, stages=stages, processes=tuple(processes))


def test_a_gradient_is_added_in_each_process_and_then_reduced_between_them() -> None:
    program = across(4, 1, (0, 0, 1, 1))
    reductions = [node for node in program.find("AllReduce") if node.attrs["label"] != b"loss/all"]
    assert [program.program.process_of(node) for node in reductions] == [0, 0, 1, 1]
    assert [node.attrs["label"] for node in reductions] == 2 * [b"g0/all", b"g1/all"]
    assert {node.attrs["ranks"] for node in reductions} == {(0, 1)}
    assert [program.main[node.inputs[0].node].op for node in reductions] == ["WhaleSum"] * 4
    assert {node.attrs["scale"] for node in reductions} == {1.0}
    assert not _crossing(program)


def test_a_pipeline_sends_between_processes_and_reduces_nothing() -> None:
    program = across(1, 2)
    assert not [node for node in program.main if node.op in BETWEEN_GROUPS]
    assert _crossing(program)


def test_every_process_updates_its_copy_and_assigns_it() -> None:
    program = across()
    assert [program.program.process_of(node) for node in program.find("Sub")] == [0, 0, 1, 1]
    assert sorted(program.program.process_of(node) for node in program.find("Assign")) == [0, 0, 1, 1]
    assert all(node.device == program.main[node.inputs[0].node].device for node in program.find("Assign"))


def processes_with(program: Program, op: str) -> dict[str, set[int]]:
    """For each variable the processes that have a node of this op, Read or Assign, for it."""
    found: dict[str, set[int]] = {}
    for node in program.main:
        if node.op == op:
            found.setdefault(node.attrs["variable"].decode(), set()).add(program.process_of(node))
    return found


def test_a_variable_is_assigned_in_the_processes_that_use_it() -> None:
    program = across(1, 2).program
    assert processes_with(program, "Read") == {"w0": {0}, "w1": {1}}
    assert processes_with(program, "Assign") == {"w0": {0}, "w1": {1}}
    four = across(2, 2, (0, 1, 1, 2)).program
    assert processes_with(four, "Assign") == {"w0": {0, 1}, "w1": {1, 2}}


def test_a_variable_that_is_read_must_be_brought_up_to_date_there() -> None:
    program = across(2, 1)
    lost = program.find("Assign", variable=b"w0")[1]
    effects = tuple(name for name in program.main.effects if name != lost.name)
    main = Graph.of([node for node in program.main if node != lost], program.main.outputs, effects)
    broken = replace(program, program=replace(program.program, main=main))
    with pytest.raises(InternalError) as refused:
        broken.check()
    assert "variable 'w0' is assigned 1 times, or its Assign is no effect" in refused.value.details


def test_every_process_cuts_its_own_examples() -> None:
    program = across()
    assert [(node.device, program.main[node.inputs[1].node].attrs["value"][0]) for node in program.find("Slice")] == [
        (0, 0),
        (1, 4),
    ]
    fed = spread(replicas=2, processes=(0, 1), fed=True)
    assert [fed.main[node.inputs[1].node].attrs["value"][0] for node in fed.find("Slice")] == [0, 0]


def test_outputs_come_in_every_process() -> None:
    program = across()
    for process in range(2):
        outputs = program.program.outputs_of(process)
        assert len(outputs) == 3
        assert {program.main[ref.node].device for ref in outputs} == {process}


def test_a_value_goes_to_a_process_once() -> None:
    program = across(2, 2, (0, 0, 1, 1))
    crossing = [
        (program.origin(node.inputs[0]), program.program.processes[node.attrs["to"]]) for node in _crossing(program)
    ]
    assert len(set(crossing)) == len(crossing)


def _crossing(program: Spread) -> list:  # type: ignore[type-arg]
    processes = program.program.processes
    return [node for node in program.find("Send") if processes[node.device] != processes[node.attrs["to"]]]


def test_a_program_of_one_process_is_left_alone() -> None:
    program = spread(replicas=2).program
    assert localize(program, 0) is program


def test_what_takes_another_process_s_value_is_refused() -> None:
    program = across(4, 1, (0, 0, 1, 1))
    reduce, other = program.find("AllReduce", label=b"g0/all")
    wrong = program.with_nodes([reduce.with_(inputs=other.inputs)])
    with pytest.raises(InternalError) as refused:
        localize(wrong.program, 0)
    assert str(refused.value) == (
        "process 0 takes what is of another process.\n"
        f"  {reduce.name} takes '{other.inputs[0].node}'\n"
        "  This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes."
    )


@pytest.mark.parametrize(
    "change",
    [{"label": b"other"}, {"scale": 0.25}, {"ranks": (0,)}, {"reduction": b"max"}],
    ids=["label", "scale", "ranks", "reduction"],
)
def test_processes_that_reduce_differently_are_refused(change: dict[str, object]) -> None:
    program = across()
    reduce = program.find("AllReduce")[1]
    wrong = program.with_nodes([reduce.with_(attrs={**reduce.attrs, **change})])
    with pytest.raises(InternalError):
        wrong.check()


def test_an_update_left_out_in_one_process_is_refused() -> None:
    program = across()
    assign = program.find("Assign")[1]
    main = program.main
    wrong = replace(
        main,
        nodes={n: v for n, v in main.nodes.items() if n != assign.name},
        effects=tuple(name for name in main.effects if name != assign.name),
    )
    with pytest.raises(InternalError, match="is assigned 1 times"):
        program.with_main(wrong).check()


@settings(max_examples=60, deadline=None)
@given(
    replicas=st.integers(1, 4),
    stages=st.integers(1, 2),
    micro_batches=st.integers(1, 3),
    extra=st.integers(0, 5),
    schedule=st.sampled_from(["gpipe", "1f1b", "zero_bubble"]),
    text=st.sampled_from([TRAINING, MEANS, MICRO_SLICES, FREE_SLICES]),
    fed=st.booleans(),
    data=st.data(),
)
def test_what_the_groups_build_is_the_users_step_together_and_each_by_itself(
    replicas: int,
    stages: int,
    micro_batches: int,
    extra: int,
    schedule: str,
    text: str,
    fed: bool,
    data: st.DataObject,
) -> None:
    """Devices may be of any processes, so groups may be unlike each other, and their examples may alternate.

    Stages may share a device in some replicas and not in others, and replicas may have unequal shares.
    """
    stages = stages if text in (TRAINING, MEANS) else 1
    places, count = [], 0
    for shared in data.draw(st.lists(st.booleans(), min_size=replicas, max_size=replicas)):
        places.append((count,) * stages if shared else tuple(range(count, count + stages)))
        count = places[-1][-1] + 1
    shares = data.draw(st.lists(st.integers(2, 4), min_size=replicas, max_size=replicas))
    found = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    order = {process: number for number, process in enumerate(dict.fromkeys(found))}
    processes = tuple(order[process] for process in found)
    program = spread(
        text,
        replicas=replicas,
        stages=stages,
        micro_batches=micro_batches,
        examples=4 * replicas * micro_batches + extra,
        places=places,
        shares=shares,
        schedule=schedule,
        processes=processes if max(processes) else (),
        fed=fed and all(a <= b for a, b in pairwise(processes)),
    )
    program.check()
    groups = program.plan.layout.groups
    for group, present in enumerate(groups.processes):
        part = replace(program, program=part_of(program.step, group))
        part.check()
        for process in present:
            own, of_whole = (localize(each.program, process) for each in (part, program))
            verify(own.main, after="localize")
            assert (own.main, own.present) == (of_whole.main, of_whole.present)


def test_what_the_first_group_computes_goes_to_all_also_where_only_it_knows_the_shape() -> None:
    text = TRAINING.replace("out: loss, z, n1", "out: loss, sums").replace(
        "  s0 = Mul(g0, rate)",
        """  first = Const() {value=(0)} : int32[]
  places = Where(g0) : int64[?,2]
  sums = Cumsum(places, first) : int64[?,2]
  s0 = Mul(g0, rate)""",
    )
    program = spread(text, replicas=2, processes=(0, 1))
    program.check()
    (cumsum,) = program.find("Cumsum")
    assert program.program.process_of(cumsum) == 0
    for label in (b"sums/shared", b"sums/shared_shape"):
        assert [program.program.process_of(node) for node in program.find("AllGather", label=label)] == [0, 1]
    assert all(re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*", name) for name in program.main.nodes)
    given = program.find("AllGather", label=b"sums/shared")[0]
    other = given.with_(attrs={**given.attrs, "label": b"other"})
    with pytest.raises(InternalError, match="'sums' runs in the first group of replicas only, and 1 groups have"):
        program.with_nodes([other]).check()
