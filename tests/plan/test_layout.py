"""Layouts: who gets which devices and how many examples, and what cannot be divided."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from whale_tf.annotate.cluster import Cluster, Device, VirtualDevice
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import BatchError, DeviceError, Line, PlanError, ScopeError, WhaleError
from whale_tf.plan.layout import Layout, Request, cut_batch, lay_out, read_scopes

COUNTS = st.integers(1, 9)
SHARES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def cluster(devices: int) -> Cluster:
    return Cluster(tuple(Device.named(f"CPU:{index}") for index in range(devices)))


def replica(
    count: int | None = None, *, shares: tuple[float, ...] | None = None, line: int = 1, parent: str = ""
) -> Opened:
    return Opened(f"replica at {line}", "replica", "", parent, Line("train.py", line), count, shares)


def stages(count: int, devices: Sequence[int | VirtualDevice] = (), *, parent: str = "") -> list[Opened]:
    return [
        Opened(f"s{j}", "stage", "", parent, Line("train.py", 2 + j), devices=devices[j] if devices else 1)
        for j in range(count)
    ]


def laid_out(devices: int, scope: Opened | None, pipeline: Sequence[Opened] = (), *, schedule: str = "1f1b") -> Layout:
    return lay_out(Request(scope, tuple(pipeline)), cluster(devices), schedule, lambda count: f"Get {count} devices.")


def fractions(shares: Sequence[int]) -> list[float]:
    return [share / sum(shares) for share in shares]


# The batch.


@given(examples=st.integers(1, 200), shares=SHARES, micro_batches=COUNTS)
def test_sizes_sum_to_the_batch_and_none_is_empty(examples: int, shares: list[int], micro_batches: int) -> None:
    try:
        sizes = cut_batch(examples, fractions(shares), micro_batches, ["x"])
    except BatchError:
        # Rounding moves a replica's part by less than one example to either side.
        assert examples * min(fractions(shares)) < micro_batches + 1
        return
    assert [len(row) for row in sizes] == [micro_batches] * len(shares)
    assert sum(chain.from_iterable(sizes)) == examples
    assert min(chain.from_iterable(sizes)) >= 1


@given(examples=st.integers(1, 200), replicas=COUNTS, micro_batches=COUNTS)
def test_sizes_differ_by_at_most_one_for_equal_shares(examples: int, replicas: int, micro_batches: int) -> None:
    assume(examples >= replicas * micro_batches)
    flat = list(chain.from_iterable(cut_batch(examples, [1 / replicas] * replicas, micro_batches, ["x"])))
    assert max(flat) - min(flat) <= 1


@given(examples=st.integers(50, 200), shares=SHARES)
def test_a_replica_gets_its_share_of_the_examples(examples: int, shares: list[int]) -> None:
    sizes = cut_batch(examples, fractions(shares), 1, ["x"])
    for row, fraction in zip(sizes, fractions(shares), strict=True):
        assert abs(sum(row) - fraction * examples) <= 1


def test_the_larger_micro_batches_go_first() -> None:
    assert cut_batch(10, [0.5, 0.5], 2, ["x"]) == ((3, 2), (3, 2))
    assert cut_batch(11, [0.5, 0.5], 2, ["x"]) == ((3, 3), (3, 2))


def test_one_part_may_do_without_a_batch() -> None:
    assert cut_batch(0, [1.0], 1) == ((0,),)


def test_a_batch_with_empty_micro_batches_is_refused() -> None:
    with pytest.raises(BatchError) as refused:
        cut_batch(5, [0.5, 0.5], 3, ["x"])
    assert str(refused.value) == (
        "a batch of 5 is too small for 2 replicas x 3 micro-batches.\n"
        "  replica 0 gets 3 examples\n"
        "  replica 1 gets 2 examples\n"
        "  Use a larger batch or fewer micro_batches: each micro-batch needs at least one example."
    )


def test_parts_without_a_batch_are_refused() -> None:
    with pytest.raises(BatchError) as refused:
        cut_batch(0, [1.0], 2)
    assert str(refused.value) == (
        "no input carries a batch that could be cut.\n"
        "  the step has 1 replica x 2 micro-batches, and no argument that is cut is a tensor of rank 1 or more\n"
        "  Pass the batch to the step as tensors or arrays."
    )


# The devices.


def test_without_scopes_the_step_runs_on_the_first_device() -> None:
    layout = laid_out(3, None)
    assert layout == Layout((1.0,), ("",), ((0,),), tuple(device.name for device in cluster(3)), 2)


def test_devices_are_handed_out_replica_by_replica() -> None:
    layout = laid_out(5, replica(2), stages(2))
    assert layout.places == ((0, 1), (2, 3))
    assert (layout.replicas, layout.rows, layout.stages, layout.idle) == (2, 2, ("0", "1"), 1)
    assert [layout.device_of(r, j) for r in range(2) for j in range(2)] == [0, 1, 2, 3]


def test_replica_without_a_count_takes_as_many_as_the_devices_allow() -> None:
    assert laid_out(6, replica(), stages(2)).replicas == 3
    assert laid_out(6, replica()).replicas == 6


def test_stages_without_a_replica_run_once() -> None:
    assert laid_out(6, None, stages(2)).places == ((0, 1),)


def test_shares_become_parts_of_the_batch() -> None:
    assert laid_out(2, replica(2, shares=(3.0, 1.0))).shares == (0.75, 0.25)
    assert laid_out(2, replica(2)).shares == (0.5, 0.5)


def test_interleaved_stages_share_devices_in_turns() -> None:
    layout = laid_out(2, None, stages(4), schedule="interleaved")
    assert layout.places == ((0, 1),)
    assert [layout.device_of(0, j) for j in range(4)] == [0, 1, 0, 1]


def test_interleaved_replicas_share_out_the_devices() -> None:
    assert laid_out(4, replica(2), stages(4), schedule="interleaved").places == ((0, 1), (2, 3))


def test_interleaved_takes_only_a_number_of_devices_that_divides_the_stages() -> None:
    assert laid_out(3, None, stages(4), schedule="interleaved").places == ((0, 1),)


def test_virtual_devices_say_where_each_replica_of_a_stage_runs() -> None:
    layout = laid_out(5, replica(2), stages(2, [VirtualDevice((4, 1)), VirtualDevice((0, 3))]))
    assert layout.places == ((4, 0), (1, 3))
    assert layout.idle == 1


def test_stages_on_equal_virtual_devices_share_rows() -> None:
    ends, middle = VirtualDevice((1,)), VirtualDevice((0,))
    layout = laid_out(2, None, stages(4, [ends, middle, ends, middle]))
    assert layout.places == ((1, 0),)
    assert [layout.device_of(0, j) for j in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("devices", "scope", "pipeline", "kind", "message"),
    [
        (
            3,
            replica(2),
            stages(2),
            DeviceError,
            "the step asks for 4 devices and there are 3.\n"
            "  2 replicas x 2 devices each = 4\n"
            "  in replica(2) opened at train.py:1\n"
            "  in stage() opened at train.py:2\n"
            "  in stage() opened at train.py:3\n"
            "  Get 4 devices.",
        ),
        (
            5,
            replica(),
            stages(2),
            DeviceError,
            "5 devices cannot be divided into replicas of 2.\n"
            "  a replica takes 2 devices, one for each stage, and 5 % 2 = 1\n"
            "  in replica() opened at train.py:1\n"
            "  Write replica(2), which leaves 1 idle, or call whale.init(4).",
        ),
        (
            4,
            None,
            stages(2, [2, 1]),
            PlanError,
            "a stage runs on one device of each replica.\n"
            "  stage(2) asks for 2\n"
            "  in stage(2) opened at train.py:2\n"
            "  Write stage(), and replica() around the stages to use more devices.",
        ),
        (
            4,
            replica(2),
            stages(2, [VirtualDevice((0, 1)), VirtualDevice((2,))]),
            DeviceError,
            "a stage's virtual device must name one device for each of the 2 replicas.\n"
            "  stage(VirtualDevice((0, 1))) has 2\n"
            "  stage(VirtualDevice((2,))) has 1\n"
            "  in stage(VirtualDevice((2,))) opened at train.py:3\n"
            "  Give every stage a VirtualDevice with as many devices as there are replicas.",
        ),
        (
            2,
            None,
            stages(3, [VirtualDevice((0,)), VirtualDevice((1,)), VirtualDevice((1,))]),
            DeviceError,
            "stages that share devices must take turns.\n"
            "  stage(VirtualDevice((0,))) is on (0,)\n"
            "  stage(VirtualDevice((1,))) is on (1,)\n"
            "  stage(VirtualDevice((1,))) is on (1,)\n"
            "  Give stage j the devices of stage j % 2.",
        ),
        (
            4,
            replica(2),
            stages(2, [VirtualDevice((0, 1)), VirtualDevice((1, 2))]),
            DeviceError,
            "virtual devices that differ must have no device in common.\n"
            "  stage(VirtualDevice((0, 1))) is on (0, 1)\n"
            "  stage(VirtualDevice((1, 2))) is on (1, 2)\n"
            "  in stage(VirtualDevice((0, 1))) opened at train.py:2\n"
            "  in stage(VirtualDevice((1, 2))) opened at train.py:3\n"
            "  Give two stages the same VirtualDevice, or two without a common device.",
        ),
    ],
    ids=["too few", "not divisible", "wide stage", "wrong number", "not in turns", "in common"],
)
def test_a_layout_is_refused(
    devices: int, scope: Opened | None, pipeline: list[Opened], kind: type[WhaleError], message: str
) -> None:
    with pytest.raises(kind) as refused:
        laid_out(devices, scope, pipeline)
    assert str(refused.value) == message


# The scopes.


def test_scopes_are_sorted_into_replica_and_stages() -> None:
    around = replica(2)
    inside = stages(2, parent=around.key)
    assert read_scopes([around, *inside]) == Request(around, tuple(inside))
    assert read_scopes([]) == Request(None, ())


def test_annotated_stages_stand_in_the_order_of_their_numbers() -> None:
    line = Line("train.py", 1)
    opened = [Opened(f"s{j}", "stage", f"stage {j}", "", line, index=j) for j in (1, 0)]
    assert [scope.index for scope in read_scopes(opened).stages] == [0, 1]


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (
            [replica(2, line=1), replica(3, line=5)],
            "the step has replica scopes that differ.\n"
            "  in replica(2) opened at train.py:1\n"
            "  in replica(3) opened at train.py:5\n"
            "  The batch is cut once: give all of them the same count and shares, or write replica() for all but one.",
        ),
        (
            [*stages(1), replica(2, line=5, parent="s0")],
            "a stage cannot be replicated by itself.\n"
            "  in replica(2) opened at train.py:5\n"
            "  Put replica() around all the stages: every replica is then a pipeline of its own.",
        ),
        (
            [replica(2), *stages(1, parent="replica at 1"), stages(2)[1]],
            "some stages are inside replica() and some are not.\n"
            "  in stage() opened at train.py:3\n"
            "  Put replica() around all of them.",
        ),
        (
            [*stages(1), Opened("s1", "stage", "stage 1", "", Line("train.py", 9), index=1)],
            "stages are both annotated and opened with `with`.\n"
            "  in stage() opened at train.py:2\n"
            "  in stage 1 annotated at train.py:9\n"
            "  Use annotate for all of them, or stage() for all of them.",
        ),
    ],
    ids=["replicas differ", "replica in a stage", "stage outside", "annotated and opened"],
)
def test_scopes_are_refused(opened: list[Opened], message: str) -> None:
    with pytest.raises(ScopeError) as refused:
        read_scopes(opened)
    assert str(refused.value) == message
