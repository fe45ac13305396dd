"""`check` on collectives: what could make a device wait for ever, or add what is not to be added, is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.steps import WAYS, Spread, spread
from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Ref, Shape, TensorType
from whale_tf.plan.grids import Grids
from whale_tf.rewrite.check_transfers import faulty_transfers


def offenders(program: Spread) -> str:
    with pytest.raises(InternalError) as caught:
        program.check()
    return "\n".join(caught.value.details)


def broken(program: Spread, place: int, number: int = 0, **changes: Any) -> str:
    """What is told if one device's node of a collective is changed."""
    (node,) = (node for node in program.find("Reduce", id=number) if node.device == place)
    attrs = {**node.attrs, **changes.pop("attrs", {})}
    return offenders(program.with_nodes([node.with_(attrs=attrs, **changes)]))


@given(
    **WAYS,
    stages=st.integers(1, 2),
    shared=st.integers(0, 4),
)
def test_every_way_to_spread_a_step_over_gpus_is_right(
    replicas: int, micro_batches: int, extra: int, schedule: str, loss: str, stages: int, shared: int
) -> None:
    """In the first of the replicas stages share a device."""
    places, first = [], 0
    for replica in range(replicas):
        places.append([first] * stages if replica < shared else range(first, first + stages))
        first = places[-1][-1] + 1
    program = spread(
        replicas=replicas,
        micro_batches=micro_batches,
        stages=stages,
        examples=2 * replicas * micro_batches + extra,
        schedule=schedule,
        loss=loss,
        places=places,
        kind="GPU",
    )
    program.check()
    assert len(program.find("Reduce")) == (2 * replicas if replicas > 1 else 0)


def test_a_device_that_is_missing_in_a_collective_is_named() -> None:
    program = spread(replicas=3, kind="GPU")
    told = broken(program, 1, attrs={"devices": (0, 1)})
    assert "Reduce 0 of devices [0, 1, 2] is done by [0, 2], or not alike" in told
    assert "Reduce 0 of devices [0, 1] is done by [1], or not alike" in told
    told = broken(program, 1, device=2)
    assert "Reduce 0 of devices [0, 1, 2] is done by [0, 2, 2], or not alike" in told


def test_a_collective_of_other_tensors_is_named() -> None:
    other = TensorType(DType("float32"), Shape((7, 7)))
    told = broken(spread(replicas=2, kind="GPU"), 1, outputs=(other,))
    assert "Reduce 0 reduces other tensors on each device" in told


def test_a_collective_over_processes_is_named() -> None:
    program = spread(replicas=4, kind="GPU", processes=(0, 0, 1, 1))
    told = broken(program, 1, device=2)
    assert "Reduce 0 is of several processes" in told


def test_collectives_without_an_order_are_named() -> None:
    program = spread(replicas=2, kind="GPU")
    first, second = ([node.name for node in program.find("Reduce", id=number)] for number in (0, 1))
    told = broken(program, 1, number=1, control=())
    assert f"'{second[1]}' does not wait for '{first[1]}', the Reduce before it, or has a lower number" in told


def test_collectives_in_another_order_on_one_device_are_named() -> None:
    program = spread(replicas=2, kind="GPU")
    (first,), (second,) = ([n for n in program.find("Reduce", id=number) if n.device == 1] for number in (0, 1))
    crossed = program.with_nodes([first.with_(control=(second.name,)), second.with_(control=())])
    assert "nodes never run" in offenders(crossed)


def test_a_gradient_that_is_added_twice_is_named() -> None:
    program = spread(replicas=2, kind="GPU")
    (node,) = (node for node in program.find("Reduce", id=0) if node.device == 1)
    peer = next(other for other in program.find("Reduce", id=0) if other.device == 0)
    told = offenders(program.with_nodes([node.with_(inputs=peer.inputs)]))
    assert "has 2 times replica 0, micro-batch 0" in told
    assert "has 0 times replica 1, micro-batch 0" in told


def test_a_wrong_scale_is_named() -> None:
    program = spread(replicas=2, kind="GPU")
    nodes = [node.with_(attrs={**node.attrs, "scale": 0.5}) for node in program.find("Reduce", id=0)]
    assert "weighs replica 0, micro-batch 0 by 0.5, and should by 1" in offenders(program.with_nodes(nodes))


def test_what_waits_for_its_own_collective_is_named() -> None:
    """A call of replica 1 that takes what a sum of its own gradient gives would never run."""
    program = spread(replicas=2, kind="GPU")
    (node,) = (node for node in program.find("Reduce", id=0) if node.device == 1)
    call = program.main[node.inputs[0].node]
    told = offenders(program.with_nodes([call.with_(inputs=(*call.inputs[:-1], Ref(node.name)))]))
    assert "nodes never run" in told


def test_a_message_that_nothing_keeps_in_its_place_is_named() -> None:
    late = Grids.parse("device 0: 0F0 0F1 0F0S1 0B0 0B1\ndevice 1: 1R0F0 1F0 1F1 1B0 1B1")
    program = spread(stages=2, micro_batches=2, schedule=late, processes=(0, 1))
    (send,) = (node for node in program.find("Send") if node.control == ("r0/0F1",))
    told = offenders(program.with_nodes([send.with_(control=())]))
    assert told == f"'{send.name}' does not wait for 'r0/0F1', which is before it in the schedule"
    call = next(node for node in program.find("Call") if send.name in node.control)
    free = call.with_(control=tuple(name for name in call.control if name != send.name))
    told = offenders(program.with_nodes([free]))
    assert told == f"call '{call.name}' does not wait for '{send.name}', which is before it in the schedule"


def test_a_transfer_that_is_not_scheduled_or_not_done_is_named() -> None:
    program = spread(stages=2, micro_batches=2)
    alone = {key: replace(each, arguments=()) if key.stage else each for key, each in program.functions.items()}
    told = list(faulty_transfers(replace(program.step, variants={4: alone}), program.program))
    assert [each for each in told if "0F1S1" in each] == ["replica 0 does 0F1S1, and the schedule does not say so"]
    idle = [program.main[name].with_(inputs=()) for name in ("r0/1F0", "r0/1B0")]
    told = list(faulty_transfers(program.step, program.with_nodes(idle).program))
    assert "the schedule says 0F0S1 for replica 0, which does not" in told
