"""What a strategy leaves open: from the scopes, from the devices; and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from whale_tf.annotate.cluster import Cluster, Device, VirtualDevice
from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import DeviceError, Line, PlanError, ScopeError, WhaleError
from whale_tf.plan.choose import choose
from whale_tf.plan.layout import Layout, lay_out, meshes_of
from whale_tf.plan.request import Request, read_scopes
from whale_tf.plan.strategy import Strategy


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
    request, there = Request(scope, tuple(pipeline)), cluster(devices)
    strategy = choose(Strategy(schedule=schedule), request, there, lambda count: f"Get {count} devices.")
    return lay_out(strategy, there)


# The devices.


def test_without_scopes_the_step_runs_on_the_first_device() -> None:
    layout = laid_out(3, None)
    assert layout == Layout((1.0,), ("",), (((0,),),), tuple(device.name for device in cluster(3)))


def test_devices_are_handed_out_replica_by_replica() -> None:
    layout = laid_out(5, replica(2), stages(2))
    assert layout.meshes == meshes_of(((0, 1), (2, 3)), 2)
    assert (layout.replicas, layout.stages, layout.idle) == (2, ("0", "1"), (4,))
    assert [layout.device_of(r, j) for r in range(2) for j in range(2)] == [0, 1, 2, 3]


def test_replica_without_a_count_takes_as_many_as_the_devices_allow() -> None:
    assert laid_out(6, replica(), stages(2)).replicas == 3
    assert laid_out(6, replica()).replicas == 6


def test_stages_without_a_replica_run_once() -> None:
    assert laid_out(6, None, stages(2)).meshes == meshes_of(((0, 1),), 2)


def test_shares_become_parts_of_the_batch() -> None:
    assert laid_out(2, replica(2, shares=(3.0, 1.0))).shares == (0.75, 0.25)
    assert laid_out(2, replica(2)).shares == (0.5, 0.5)


def test_interleaved_stages_share_devices_in_turns() -> None:
    layout = laid_out(2, None, stages(4), schedule="interleaved")
    assert layout.meshes == (((0,), (1,), (0,), (1,)),)


def test_interleaved_replicas_share_out_the_devices() -> None:
    assert laid_out(4, replica(2), stages(4), schedule="interleaved").meshes == meshes_of(((0, 1), (2, 3)), 4)


def test_interleaved_takes_only_a_number_of_devices_that_divides_the_stages() -> None:
    assert laid_out(3, None, stages(4), schedule="interleaved").meshes == meshes_of(((0, 1),), 4)


def test_virtual_devices_say_where_each_replica_of_a_stage_runs() -> None:
    layout = laid_out(5, replica(2), stages(2, [VirtualDevice((4, 1)), VirtualDevice((0, 3))]))
    assert layout.meshes == meshes_of(((4, 0), (1, 3)), 2)
    assert layout.idle == (2,)


def test_virtual_devices_may_be_shared_in_one_replica_only() -> None:
    layout = laid_out(5, replica(), stages(3, [VirtualDevice((0, 2)), VirtualDevice((0, 3)), VirtualDevice((1, 4))]))
    assert layout.meshes == meshes_of(((0, 0, 1), (2, 3, 4)), 3)
    assert layout.classes == {(0, 0, 1): (0,), (0, 1, 2): (1,)}


def test_stages_on_equal_virtual_devices_share_rows() -> None:
    ends, middle = VirtualDevice((1,)), VirtualDevice((0,))
    layout = laid_out(2, None, stages(4, [ends, middle, ends, middle]))
    assert layout.meshes == (((1,), (0,), (1,), (0,)),)


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
            "a stage on several devices has no split() inside, which says what is cut.\n"
            "  stage(2) asks for 2\n"
            "  in stage(2) opened at train.py:2\n"
            "  Open it as `with whale.stage(devices=2), whale.split():`, or give it one device and put replica() "
            "around the stages to use more.",
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
            4,
            replica(2),
            stages(2, [VirtualDevice((0, 1)), VirtualDevice((1, 2))]),
            DeviceError,
            "two replicas must have no device in common.\n"
            "  stage(VirtualDevice((0, 1))) is on (0, 1)\n"
            "  stage(VirtualDevice((1, 2))) is on (1, 2)\n"
            "  in stage(VirtualDevice((0, 1))) opened at train.py:2\n"
            "  in stage(VirtualDevice((1, 2))) opened at train.py:3\n"
            "  Let the stages name other devices for each replica; stages of one replica may share a device.",
        ),
    ],
    ids=["too few", "not divisible", "wide stage", "wrong number", "in common"],
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


# The strategy.


def chosen(strategy: Strategy, devices: int, scope: Opened | None, pipeline: Sequence[Opened] = ()) -> Strategy:
    return choose(strategy, Request(scope, tuple(pipeline)), cluster(devices), lambda count: f"Get {count} devices.")


def test_nothing_is_left_open_that_the_plan_needs() -> None:
    assert chosen(Strategy(), 4, replica(), stages(2)) == Strategy(
        replicas=2, stages=("0", "1"), devices=((0, 1), (2, 3)), micro_batches=1, schedule="1f1b"
    )
    assert chosen(Strategy(), 4, None) == Strategy(replicas=1, devices=((0,),), micro_batches=1, schedule="1f1b")


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "device 0: 0F0 1F0 1B0 0B0"])
def test_what_is_chosen_is_chosen_again(schedule: str) -> None:
    scope = replica(2, shares=(3.0, 1.0))
    once = chosen(Strategy(schedule=schedule, coupling="exact"), 5, scope, stages(2))
    assert chosen(once, 5, scope, stages(2)) == once
    assert chosen(once, 5, None, stages(2)) == once


def test_the_strategy_counts_for_more_than_the_scopes() -> None:
    given = Strategy(replicas=3, devices=((5, 4), (3, 2), (1, 0)))
    found = chosen(given, 6, replica(2, shares=(1.0, 2.0)), stages(2, [VirtualDevice((0, 1)), VirtualDevice((2, 3))]))
    assert (found.replicas, found.shares, found.devices) == (3, (), given.devices)
    assert chosen(Strategy(shares=(1, 2)), 6, replica(3)).shares == (1.0, 2.0)


def test_shares_are_the_scopes_where_the_number_of_replicas_is() -> None:
    scope = replica(2, shares=(1.0, 2.0))
    assert chosen(Strategy(), 2, scope).shares == (1.0, 2.0)
    assert chosen(Strategy(replicas=2), 2, scope).shares == ()


def test_stages_take_turns_on_the_devices_that_a_strategy_names() -> None:
    found = chosen(Strategy(devices=((2, 0),)), 3, None, stages(4))
    layout = lay_out(found, cluster(3))
    assert layout.meshes == (((2,), (0,), (2,), (0,)),)
    assert layout.idle == (1,)


def test_a_grid_says_on_how_many_devices_the_stages_take_turns() -> None:
    found = chosen(Strategy(schedule="device 0: 0F0 1F0 1B0 0B0"), 2, replica(2), stages(2))
    assert found.devices == ((0,), (1,))


def test_a_grid_says_which_stages_share_a_device() -> None:
    found = chosen(Strategy(schedule="device 0: 0F0 2F0 2B0 0B0\ndevice 1: 1F0 1B0"), 4, replica(), stages(3))
    assert found.devices == ((0, 1, 0), (2, 3, 2))


def test_several_grids_do_not_say_which_replica_is_of_which() -> None:
    written = "device 0: 0F0 1F0 1B0 0B0\n\ndevice 0: 0F0 0B0\ndevice 1: 1F0 1B0"
    with pytest.raises(PlanError) as refused:
        chosen(Strategy(schedule=written), 3, replica(2), stages(2))
    assert str(refused.value) == (
        "the schedule has grids for 2 ways to share devices, and the strategy has no devices.\n"
        "  Write devices= too, one row for each replica; or one grid."
    )
    given = Strategy(devices=((0, 1), (2, 2)), schedule=written)
    assert chosen(given, 3, replica(2), stages(2)).devices == given.devices


def test_a_strategy_for_other_stages_is_refused() -> None:
    given = Strategy(
        replicas=1,
        stages=("encoder", "decoder"),
        devices=((0, 1),),
        schedule="device 0: 0F0 0B0\ndevice 1: 1F0 1B0",
        coupling="exact",
    )
    with pytest.raises(PlanError) as refused:
        chosen(given, 4, None, stages(3))
    assert str(refused.value) == (
        "the strategy is for other stages than the step's.\n"
        "  its stages are 'encoder', 'decoder'\n"
        "  each replica has 2 devices for the stages, which must divide their number\n"
        "  its schedule is for 2 stages\n"
        "  the step has '0', '1', '2'\n"
        "  in stage() opened at train.py:2\n"
        "  in stage() opened at train.py:3\n"
        "  in stage() opened at train.py:4\n"
        "  Open stages as in the strategy, or leave these to the step: "
        'Strategy(replicas=1, micro_batches=1, coupling="exact").'
    )
    kept = Strategy.parse(str(refused.value).rpartition("the step: ")[2].removesuffix("."))
    assert chosen(kept, 4, None, stages(3)).stages == ("0", "1", "2")
    named = [Opened(name, "stage", name, "", Line("train.py", 2)) for name in ("encoder", "decoder")]
    assert chosen(given, 4, None, named).stages == given.stages


def test_devices_that_are_not_there_are_refused() -> None:
    given = Strategy(devices=((0, 4), (7, 1)))
    with pytest.raises(DeviceError) as refused:
        chosen(given, 4, replica(2), stages(2))
    assert str(refused.value) == (
        "the strategy names devices that are not there.\n"
        "  replica 0 has device 4\n"
        "  replica 1 has device 7\n"
        "  there are 4, counted from 0\n"
        "  Get 8 devices. Or leave devices= out."
    )
    assert chosen(given, 8, replica(2), stages(2)).devices == given.devices
