"""A probed program: the same step, which gives each value that it computes beside its outputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.rewrite.steps import TRAINING, WAYS, Spread, spread
from whale_tf.ir.graph import Ref
from whale_tf.ir.verify import verify
from whale_tf.rewrite.localize import localize
from whale_tf.rewrite.probe import Probed, Record, probe

FORWARD_AND_BACKWARD = {"h", "a", "z", "loss", "dz", "d1", "da", "dh", "d0"}
ONCE = {"g0", "g1", "s0", "s1", "n0", "n1", "u0", "u1", "w0", "w1"}


def probed(given: Spread) -> Probed:
    return probe(given.program, given.states)


def found(given: Probed) -> dict[Record, Ref]:
    """Where each record is in the main graph."""
    return dict(zip(given.records, given.program.main.outputs[given.outputs :], strict=True))


@given(**{name: way for name, way in WAYS.items() if name != "extra"})
def test_each_part_gives_each_value_once(**way: Any) -> None:
    step = spread(**way)
    records = [record for record in probed(step).records if record.part is not None]
    parts = list(step.plan.part_order())
    assert sorted(records) == sorted(Record(Ref(name), part) for name in FORWARD_AND_BACKWARD for part in parts)


def test_the_step_gives_what_runs_once_and_what_is_merged() -> None:
    once = {record.ref.node for record in probed(spread(replicas=2)).records if record.part is None}
    assert once == ONCE | {"loss", "z"}


def test_a_record_is_the_result_of_the_call_that_computes_it() -> None:
    given = probed(spread(replicas=2, micro_batches=2, stages=2))
    main = given.program.main
    for record, ref in found(given).items():
        if record.part is not None:
            call = main[ref.node]
            graph = given.program.functions[call.attrs["function"].decode()].graph
            assert graph.outputs[ref.index] == record.ref
            assert call.name.startswith(f"r{record.part[0]}/")
            assert call.attrs["action"].decode().endswith(str(record.part[1]))


def test_the_steps_own_outputs_and_functions_results_stay_the_first_ones() -> None:
    step = spread(replicas=2, micro_batches=2)
    given = probed(step)
    assert given.program.main.outputs[: given.outputs] == step.main.outputs
    assert given.program.main.effects == step.main.effects
    for name, function in step.program.functions.items():
        outputs = function.graph.outputs
        assert given.program.functions[name].graph.outputs[: len(outputs)] == outputs


def test_constants_and_arguments_are_not_recorded() -> None:
    assert not {"rate", "dims", "x"} & {record.ref.node for record in probed(spread(replicas=2)).records}


def test_a_list_is_no_value() -> None:
    text = TRAINING.replace(
        "  loss = Mean(z, dims)",
        """  list = TensorListFromTensor(z, dims) {element_dtype=float32, shape_type=int32} : variant[]  @scope=s1
  loss = Mean(z, dims)""",
    )
    names = {record.ref.node for record in probed(spread(text)).records}
    assert "list" not in names
    assert names >= FORWARD_AND_BACKWARD


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_it_gives_is_a_graph(replicas: int) -> None:
    program = probed(spread(replicas=replicas, micro_batches=2, stages=2)).program
    verify(program.main, after="probe")
    for function in program.functions.values():
        verify(function.graph, after="probe")


def test_each_process_gives_its_own_parts() -> None:
    step = spread(replicas=2, processes=(0, 1))
    own = [probe(localize(step.program, process), step.states) for process in (0, 1)]
    for process, its in enumerate(own):
        verify(its.program.main, after="probe")
        assert {record.part for record in its.records if record.part is not None} == {(process, 0)}
    assert {record.ref for its in own for record in its.records} == {record.ref for record in probed(step).records}
