"""Processes that do not do the same with a step are told so: real ranks over a real hub, each in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from whale_tf.errors import VariableError
from whale_tf.run.lockstep import COMPARED_EVERY, Lockstep
from whale_tf.run.processes import World
from whale_tf.world import Environment, Hub, Member

SECONDS = 20.0


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    hub = Hub(2)
    address = hub.start()
    members = [Member(Environment(rank, 2, "test"), address, lambda message: None) for rank in range(2)]
    yield [World(member.rank, 2, member, SECONDS) for member in members]
    for member in members:
        member.leave()
    hub.stop()


def of(world: World) -> Lockstep:
    """A step's part in one process."""
    return Lockstep("train", lambda: world)


def on_both(worlds: list[World], act: Callable[[World], str]) -> list[str]:
    """What each rank's part returns."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(act, worlds))


def test_another_call_ends_the_run(worlds: list[World]) -> None:
    for world in worlds:
        lockstep = of(world)
        lockstep.report("call", lambda: "to be traced, 8 examples")
        lockstep.report("verify" if world.rank else "call", lambda: "trace 0, 8 examples")
    failure = worlds[0].member.wait_for_failure(SECONDS)
    assert failure is not None
    assert str(failure) == (
        "ranks differ in call 2.\n"
        "  rank 0: call of step 'train' (0), trace 0, 8 examples\n"
        "  rank 1: verify of step 'train' (0), trace 0, 8 examples\n"
        "  All ranks must run the same script with the same arguments."
    )


def test_steps_of_one_name_are_told_apart(worlds: list[World]) -> None:
    for world in worlds:
        first, second = of(world), of(world)
        for lockstep in (first, second):
            lockstep.report("call", lambda: "to be traced, 8 examples")
        (second if world.rank else first).report("call", lambda: "trace 0, 8 examples")
    failure = worlds[0].member.wait_for_failure(SECONDS)
    assert failure is not None
    assert failure.rule == "ranks differ in call 3"


def ended(worlds: list[World], change: Callable[[int, dict[str, tf.Variable]], None], calls: int) -> list[str]:
    """The errors of so many calls, before the last of which something is done to the variables."""

    def act(world: World) -> str:
        variables = {
            "w": tf.Variable(np.linspace(-1, 1, 600).astype(np.float32)),
            "count": tf.Variable(3, dtype=tf.int64),
            "name": tf.Variable("a"),
            "empty": tf.Variable(tf.zeros([0, 4])),
            "nan": tf.Variable(float("nan")),
        }
        lockstep = of(world)
        try:
            for call in range(1, calls + 1):
                if call == calls:
                    change(world.rank, variables)
                lockstep.compare(variables)
        except VariableError as error:
            return str(error)
        return ""

    return on_both(worlds, act)


def test_equal_variables_pass(worlds: list[World]) -> None:
    assert ended(worlds, lambda rank, variables: None, 2 * COMPARED_EVERY) == ["", ""]


def test_rounding_passes(worlds: list[World]) -> None:
    def round_off(rank: int, variables: dict[str, tf.Variable]) -> None:
        variables["w"].assign(variables["w"] * (1 + rank * 1e-6))

    assert ended(worlds, round_off, 2) == ["", ""]


@pytest.mark.parametrize("call", [2, 4, 32, COMPARED_EVERY, 3 * COMPARED_EVERY])
def test_a_value_assigned_by_one_rank_is_told_on_both(worlds: list[World], call: int) -> None:
    def assign(rank: int, variables: dict[str, tf.Variable]) -> None:
        variables["count"].assign_add(rank)

    told = ended(worlds, assign, call)
    assert set(told) == {
        "the processes have assigned different values to a variable.\n"
        f"  sums of the first 256 elements, before call {call} of step 'train':\n"
        "  count: rank 0: 3\n"
        "  count: rank 1: 4\n"
        "  Assign the same value in every process. Before a step's first call one is enough: "
        "all take the values of the first process then."
    }


def test_a_process_that_is_alone_reports_and_compares_nothing() -> None:
    lockstep = Lockstep("train", lambda: None)
    lockstep.report("call", lambda: pytest.fail("nobody asks for the batch"))
    for _ in range(4):
        lockstep.compare({"no variable": None})
