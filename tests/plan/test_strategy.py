"""Strategies: they print and read back, refuse what cannot be, and say what is not left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whale_tf._protos import strategy_pb2
from whale_tf.errors import Line, PlanError, ScheduleError
from whale_tf.plan.grids import Grids
from whale_tf.plan.schedule import SCHEDULES, make_grid
from whale_tf.plan.strategy import Strategy

NAMES = st.lists(st.text(min_size=1), min_size=1, max_size=4).map(tuple)
WRITTEN = "device 0: 0F0 0F1 0B0 0B1\ndevice 1: 1F0 1B0 1F1 1B1"


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Strategies that leave some things open."""
    said: dict[str, Any] = {}
    replicas, rows = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    stages, micro_batches = rows * draw(st.integers(1, 2)), draw(st.integers(1, 4))
    schedule, backward = draw(st.sampled_from(SCHEDULES)), draw(st.booleans())
    grid = make_grid(schedule, [j % rows for j in range(stages)], micro_batches, backward=backward)
    members = draw(st.integers(1, 2))
    numbers = draw(st.permutations(range(replicas * rows * members)))
    places = [numbers[first : first + members] for first in range(0, len(numbers), members)]
    for name, value in {
        "replicas": replicas,
        "shares": tuple(draw(st.floats(1e-3, 1e9)) for _ in range(replicas)),
        "stages": draw(st.lists(st.text(min_size=1), min_size=stages, max_size=stages)),
        "devices": [places[replica * rows : (replica + 1) * rows] for replica in range(replicas)],
        "micro_batches": micro_batches,
        "schedule": draw(st.sampled_from((schedule, Grids((grid,))))),
        "coupling": draw(st.sampled_from(("auto", "exact"))),
        "batch_norm": draw(st.sampled_from(("local", "global"))),
        "accept": draw(NAMES),
        "gather_bytes": draw(st.integers(0, 2**40)),
    }.items():
        if draw(st.booleans()):
            said[name] = value
    return Strategy(**said)


@given(strategy=strategies())
def test_prints_and_reads_back(strategy: Strategy) -> None:
    assert Strategy.parse(str(strategy)) == strategy


@given(strategy=strategies())
def test_goes_to_and_from_its_message(strategy: Strategy) -> None:
    message = strategy_pb2.Strategy.FromString(strategy.to_proto().SerializeToString())
    assert Strategy.from_proto(message) == strategy


@given(strategy=strategies())
def test_says_nothing_new_beside_itself(strategy: Strategy) -> None:
    assert strategy.beside(strategy) == strategy
    assert Strategy().beside(strategy) == strategy == strategy.beside(Strategy())


def test_prints_as_one_would_write_it() -> None:
    assert str(Strategy()) == "Strategy()"
    strategy = Strategy(shares=(2, 1), stages=("encoder",), micro_batches=4, schedule="gpipe", accept=("Mean",))
    assert str(strategy) == repr(strategy)
    assert str(strategy) == (
        'Strategy(replicas=2, shares=(2.0, 1.0), stages=("encoder",), micro_batches=4, schedule="gpipe", '
        'accept=("Mean",))'
    )
    assert str(Strategy(schedule=WRITTEN)) == f'Strategy(micro_batches=2, schedule="""\n{WRITTEN}\n""")'


def test_numbers_of_numpy_print_as_those_of_python() -> None:
    given: Any = {
        "micro_batches": np.int64(2),
        "shares": np.array([1, 2], np.float32).tolist(),
        "devices": [[np.int32(0)], [1]],
    }
    assert str(Strategy(**given)) == "Strategy(replicas=2, shares=(1.0, 2.0), devices=((0,), (1,)), micro_batches=2)"


def test_devices_that_run_a_stage_together_are_a_tuple() -> None:
    given: Any = ((0, (1, 2)), ((3,), [5, 4]))
    strategy = Strategy(devices=given)
    assert str(strategy) == "Strategy(replicas=2, devices=((0, (1, 2)), (3, (5, 4))))"


def test_a_printed_grid_is_a_schedule() -> None:
    grids = Grids(tuple(make_grid("zero_bubble", devices, 4) for devices in ((0, 1, 2), (0, 0, 1))))
    assert Strategy(schedule=str(grids)) == Strategy(schedule=grids)


def test_stages_share_devices_as_the_strategy_says() -> None:
    devices = ((0, 0, 1, 1), (2, 3, 4, 5), (6, 7))
    strategy = Strategy(shares=(1, 2, 1), devices=devices, schedule="1f1b")
    text = f'Strategy(replicas=3, shares=(1.0, 2.0, 1.0), devices={devices}, schedule="1f1b")'
    assert str(strategy) == text
    assert Strategy.parse(text) == strategy


def test_each_replica_takes_the_grid_for_its_devices() -> None:
    written = "device 0: 0F0 1F0 1B0 0B0\n\ndevice 0: 0F0 0B0\ndevice 1: 1F0 1B0"
    strategy = Strategy(devices=((0, 1), (2, 2)), schedule=written)
    assert str(strategy) == (
        f'Strategy(replicas=2, devices=((0, 1), (2, 2)), micro_batches=1, schedule="""\n{written}\n""")'
    )
    with pytest.raises(PlanError) as refused:
        Strategy(devices=((0, 1), (2, 2)), schedule=written.partition("\n\n")[0])
    assert str(refused.value) == (
        "the strategy contradicts itself.\n"
        "  the stages of replica 0 are on (0, 1), and no grid in schedule= is for that\n"
        "  Let them agree, or leave open all but one of what disagrees."
    )


def test_grids_of_one_strategy_are_of_one_step() -> None:
    with pytest.raises(ScheduleError) as refused:
        Strategy(schedule="device 0: 0F0 0B0\n\ndevice 0: 0F0 0B0 0F1 0B1\n")
    assert str(refused.value) == (
        "the schedule cannot be run.\n"
        "  device 0: 0F0 0B0\n"
        "  device 0: 0F0 0B0 0F1 0B1\n"
        "  the grids have other stages or micro-batches than each other\n"
        "  two grids are for the same devices\n"
        '  Write for each device what it does, and either B, or I and W; or use schedule="1f1b".'
    )


def test_what_is_known_from_something_else_is_not_left_open() -> None:
    assert Strategy(devices=((0,), (1,))).replicas == 2
    assert Strategy(schedule=WRITTEN).micro_batches == 2


def test_reads_what_a_person_wrote(tmp_path: Path) -> None:
    path = tmp_path / "strategy.txt"
    path.write_text(
        "# two of three devices\nwhale.Strategy(\n    devices=[[0], [2]],  # the fast ones\n    accept='Mean',\n)\n"
    )
    assert Strategy.read(path) == Strategy(devices=((0,), (2,)), accept=("Mean",))


@pytest.mark.parametrize(
    ("text", "details"),
    [
        ("Strategy(replica=2, schedule=Grid(), replicas=1,\n replicas=2, **more)",
         ["line 1: replica is no field", "line 1: schedule is no value that is written out",
          "line 2: replicas is there twice", "line 2: ** is no field"]),
        ("Strategy(2)", ["it is not Strategy(name=value, ...)"]),
        ("Plan(replicas=2)", ["it is not Strategy(name=value, ...)"]),
        ("__import__('os').getcwd()", ["it is not Strategy(name=value, ...)"]),
        ("Strategy(replicas=__import__('os').getpid())", ["line 1: replicas is no value that is written out"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str, details: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        Strategy.parse(text)
    assert str(refused.value) == "\n  ".join(
        [
            "cannot read the strategy.",
            *details,
            'Write what print(step.strategy) shows, such as Strategy(replicas=2, micro_batches=4, schedule="1f1b"); '
            "its fields are replicas, shares, stages, devices, micro_batches, schedule, coupling, batch_norm, accept, "
            "gather_bytes.",
        ]
    )


@pytest.mark.parametrize("text", ["", "Strategy(", "Strategy(a=1) b", "x = Strategy()", "Strategy(stages='\0')"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"^cannot read the strategy\.\n  it is no expression: "):
        Strategy.parse(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "strategy.txt"
    path.write_text("Strategy(replica=2)")
    with pytest.raises(PlanError, match=r"^cannot read the strategy in '.*strategy\.txt'\."):
        Strategy.read(path)
    path.write_text("Strategy(replicas=0)")
    with pytest.raises(PlanError, match=r"strategy\.txt:1: Strategy\(replicas=0\)"):
        Strategy.read(path)


def test_all_values_that_cannot_be_are_named() -> None:
    wrong: dict[str, Any] = {
        "replicas": True,
        "shares": (1, -2),
        "stages": "ab",
        "devices": ((0, 1), (1, 2)),
        "micro_batches": 0,
        "schedule": "1f2b",
        "coupling": "always",
        "accept": 3,
        "gather_bytes": 1.5,
    }
    with pytest.raises(PlanError) as refused:
        Strategy(**wrong)
    *lines, way_out = str(refused.value).split("\n")
    assert lines == [
        "a strategy has values that cannot be.",
        "  replicas is True, and must be a whole number from 1 on",
        "  shares is (1, -2), and must be finite numbers above 0, one per replica",
        "  stages is 'ab', and must be names, none of them empty",
        "  devices is ((0, 1), (1, 2)), and must be rows of indices, no device in two rows",
        "  micro_batches is 0, and must be a whole number from 1 on",
        '  coupling is \'always\', and must be "auto" or "exact"',
        "  accept is 3, and must be names of operations, kinds or lines",
        "  gather_bytes is 1.5, and must be a whole number of bytes from 0 on",
        "  there is no schedule '1f2b'",
    ]
    assert way_out.endswith(", or leave out what you have not decided.")
    examples = way_out.removeprefix("  Use for example ").removesuffix(", or leave out what you have not decided.")
    assert set(Strategy.parse(f"Strategy({examples})").said) == set(wrong)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_numbers_are_whole(value: Any) -> None:
    for name in ("replicas", "micro_batches"):
        with pytest.raises(PlanError, match=f"{name} is {value!r}"):
            Strategy(**{name: value})


@pytest.mark.parametrize("devices", [((),), ((0,), (1, 0)), ((0, (0, 1)),), (((1, 1),),), ((-1,),), (0, 1), ((0.0,),)])
def test_each_replica_has_devices_of_its_own(devices: Any) -> None:
    with pytest.raises(PlanError, match="devices is "):
        Strategy(devices=devices)


def test_an_unknown_schedule_alone_is_a_schedule_error() -> None:
    with pytest.raises(ScheduleError, match="Did you mean '1f1b'"):
        Strategy(schedule="1f2b")


def test_all_contradictions_are_named() -> None:
    with pytest.raises(PlanError) as refused:
        Strategy(
            replicas=3,
            shares=(1, 2),
            stages=("a", "b", "c"),
            devices=((0, 1), (2, 3)),
            micro_batches=4,
            schedule="device 0: 0F0 0B0",
        )
    assert str(refused.value) == (
        "the strategy contradicts itself.\n"
        "  replicas: 3 in replicas=, 2 in shares=, 2 in devices=\n"
        "  stages: 3 in stages=, 1 in schedule=\n"
        "  micro-batches: 4 in micro_batches=, 1 in schedule=\n"
        "  1 stage cannot take turns on the 2 devices of a replica\n"
        "  Let them agree, or leave open all but one of what disagrees."
    )


def test_a_grid_that_never_ends_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r">1B0<"):
        Strategy(schedule="device 0: 0B0 0F0\ndevice 1: 1B0 1F0")


def test_a_grid_that_stage_functions_cannot_follow_is_refused() -> None:
    text = "device 0: 0F0 1F0 0F1 1F1 1B0 0B0 1I1 1W1 0I1 0W1\ndevice 1:"
    with pytest.raises(ScheduleError) as refused:
        Strategy(schedule=text)
    assert str(refused.value) == (
        "the schedule cannot be run.\n"
        "  device 0: 0F0 1F0 0F1 1F1 1B0 0B0 1I1 1W1 0I1 0W1\n"
        "  device 1:\n"
        "  some backwards are B, and some are I and W: all must be of one kind\n"
        "  a device has nothing to do\n"
        '  Write for each device what it does, and either B, or I and W; or use schedule="1f1b".'
    )
    mended = "device 0: 0F0 0F1 0B0 0B1\ndevice 1: 1F0 1F1 1B0 1B1"
    assert Strategy(schedule=mended).schedule == Grids.parse(mended)


def test_what_is_said_beside_a_strategy_must_agree() -> None:
    strategy = Strategy(replicas=2, micro_batches=4, accept=("Mean",))
    assert strategy.beside(Strategy(micro_batches=4, schedule="gpipe")) == Strategy(
        replicas=2, micro_batches=4, accept=("Mean",), schedule="gpipe"
    )
    with pytest.raises(PlanError) as refused:
        strategy.beside(Strategy(micro_batches=2, accept=("Max",)), [Line("train.py", 3)])
    assert str(refused.value) == (
        "the strategy and what is said beside it differ.\n"
        "  micro_batches is 4 in it, and 2 beside it\n"
        '  accept is ("Mean",) in it, and ("Max",) beside it\n'
        "  at train.py:3\n"
        "  Leave out micro_batches= and accept= beside the strategy, or in it."
    )
