"""`check` on collectives: what could make a device wait for ever, or add what is not to be added, is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewrite.steps import WAYS, Spread, spread
from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Ref, Shape, TensorType


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
