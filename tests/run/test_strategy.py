"""Steps with a strategy: it gives the same plan again, decides over scopes, and its grid runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, values, weights
from whale_tf.plan.schedule import SCHEDULES

ROUNDING = 1e-6  # of float32 sums that are taken in another order
WRITTEN = """
device 0: 0F0 0F1 0F2 0B0 0B2 0B1
device 1: 1F0 1B0 1F2 1F1 1B2 1B1
"""


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def training(variables: list[tf.Variable], **scope: Any) -> Callable[..., Any]:
    """A step of two stages, not yet decorated."""

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(**scope):
            with whale.stage(name="first"):
                h = tf.tanh(x @ variables[0])
            with whale.stage():
                h = h @ variables[1]
                loss = tf.reduce_mean(tf.square(h - 1))
        descend(tape, loss, variables)
        return loss, h

    return step


def check_equal(strategy: Any, **scope: Any) -> whale.Step:
    """Two calls with the strategy give one device's outputs and variables."""
    own, plain = weights(), weights()
    step, expected = whale.function(strategy=strategy)(training(own, **scope)), tf.function(training(plain, **scope))
    for examples in (12, 5):
        for got, want in zip(step(batch(examples)), expected(batch(examples)), strict=True):
            np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
        for got, want in zip(values(own), values(plain), strict=True):
            np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    return step


@pytest.mark.parametrize("scope", [{}, {"count": 2}, {"shares": (3, 1)}], ids=str)
@pytest.mark.parametrize("schedule", [*SCHEDULES, WRITTEN])
def test_the_strategy_of_a_step_gives_the_same_plan_again(schedule: str, scope: Any, tmp_path: Path) -> None:
    variables = weights()
    step = whale.function(micro_batches=3, schedule=schedule, coupling="exact")(training(variables, **scope))
    step.prepare(batch(24))
    path = tmp_path / "strategy.txt"
    path.write_text(str(step.strategy))
    for strategy in (step.strategy, whale.Strategy.from_proto(step.strategy.to_proto()), path, str(path)):
        again = whale.function(strategy=strategy)(training(variables, **scope))
        assert again.prepare(batch(24)).fingerprint == step.plan.fingerprint
        assert again.strategy == step.strategy


def test_the_strategy_says_what_was_decided() -> None:
    step = whale.function(micro_batches=2)(training(weights()))
    step(batch(16))
    assert str(step.strategy) == (
        'Strategy(replicas=4, stages=("first", "1"), devices=((0, 1), (2, 3), (4, 5), (6, 7)), micro_batches=2, '
        'schedule="1f1b")'
    )
    step(batch(2))  # too few for all of it: the strategy stays, the plan has fewer parts
    assert step.strategy.replicas == 4
    assert step.plan.layout.replicas == 2


def test_the_strategy_is_that_of_the_newest_trace() -> None:
    step = whale.function(training(weights()))
    for count in (8, 4):
        whale.init(count)
        step(batch(16))
        assert step.strategy.replicas == count // 2


def test_a_strategy_decides_over_the_scopes() -> None:
    step = check_equal(whale.Strategy(shares=(1, 2), devices=((3, 1), (0, 2)), micro_batches=2), count=4)
    assert step.plan.layout.meshes == (((3,), (1,)), ((0,), (2,)))
    assert step.plan.layout.shares == pytest.approx((1 / 3, 2 / 3))


def test_what_a_strategy_leaves_open_the_scopes_and_options_say() -> None:
    step = whale.function(strategy=whale.Strategy(schedule="gpipe"), micro_batches=3)(training(weights(), count=2))
    plan = step.prepare(batch(12))
    assert (plan.schedule, plan.micro_batches, plan.layout.replicas) == ("gpipe", 3, 2)


def test_stages_of_a_strategy_may_share_a_device() -> None:
    step = check_equal(whale.Strategy(devices=((2,), (5,)), micro_batches=2))
    assert step.plan.layout.meshes == (((2,), (2,)), ((5,), (5,)))


@pytest.mark.parametrize(
    "schedule",
    [
        WRITTEN,
        "device 0: 0F0 0F1 0F2 0I0 0I1 0W1 0W0 0I2 0W2\ndevice 1: 1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2",
        "device 0: 0F0 1F0 1B0 0F1 0B0 1F1 0F2 1F2 1B2 1B1 0B1 0B2",
    ],
    ids=["one device each", "split backward", "one device for both"],
)
def test_a_grid_that_the_user_wrote_runs(schedule: str) -> None:
    step = check_equal(whale.Strategy(replicas=2, schedule=schedule))
    assert step.plan.schedule == "by hand"
    step.prepare(batch(12))
    rows = [row.partition(": ")[2] for row in schedule.strip().splitlines()]
    assert [" ".join(map(str, row)) for row in step.schedule.by_class[0].rows] == rows
    step.prepare(batch(4))  # two micro-batches of one example in each replica
    assert [" ".join(map(str, row)) for row in step.schedule.by_class[0].rows] == [
        " ".join(word for word in row.split() if not word.endswith("2")) for row in rows
    ]
    assert "schedule by hand" in str(step.plan)


def test_communication_shows_what_is_sent_and_reduced_and_is_a_schedule() -> None:
    step = check_equal(whale.Strategy(replicas=2, schedule="gpipe", micro_batches=2))
    step.prepare(batch(12))
    assert str(step.communication) == "\n".join(
        [
            "device 0: 0F0 0F0S1 0F1 0F1S1 0R1B0 0B0 0R1B1 0B1 0C",
            "device 1: 1R0F0 1F0 1R0F1 1F1 1B0 1B0S0 1B1 1B1S0 1C",
        ]
    )
    again = check_equal(whale.Strategy(replicas=2, schedule=str(step.communication)))
    again.prepare(batch(12))
    assert again.schedule == again.communication == step.communication
    again.prepare(batch(1))  # one part: nothing is reduced
    assert str(again.communication).count("C") == 0


def test_a_written_transfer_that_comes_too_late_is_refused() -> None:
    late = "device 0: 0F0 0F0S1 0B0\ndevice 1: 1F0 1R0F0 1B0"
    step = whale.function(strategy=whale.Strategy(replicas=1, schedule=late))(training(weights()))
    with pytest.raises(whale.errors.ScheduleError) as refused:
        step(batch(4))
    assert "  device 1: >1F0< 1R0F0 1B0 1B0S0\n" in str(refused.value)
    assert "device 1 waits at 1F0 for 1R0F0, which it runs later" in str(refused.value)


UNLIKE = ((0, 0), (1, 2), (7, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_replicas_may_be_cut_differently(schedule: str, tmp_path: Path) -> None:
    strategy = whale.Strategy(shares=(1, 3, 2), devices=UNLIKE, micro_batches=2, schedule=schedule)
    step = check_equal(strategy, count=2)
    assert step.plan.layout.classes == {(0, 0): (0,), (0, 1): (1, 2)}
    path = tmp_path / "strategy.txt"
    path.write_text(str(step.strategy))
    again = whale.function(strategy=path)(training(weights()))
    assert again.prepare(batch(5)).fingerprint == step.plan.fingerprint
    step.save_graph(tmp_path)


def test_a_schedule_of_several_classes_is_a_schedule_again() -> None:
    named = whale.Strategy(devices=UNLIKE, micro_batches=2, schedule="zero_bubble")
    grids = whale.function(strategy=named)(training(weights())).prepare(batch(12)).grids
    by_hand = replace(named, schedule=str(grids))
    assert by_hand.schedule == grids
    assert whale.function(strategy=by_hand)(training(weights())).prepare(batch(12)).grids == grids
    check_equal(by_hand)


def test_a_grid_for_one_class_is_refused_for_another() -> None:
    with pytest.raises(whale.errors.PlanError) as refused:
        whale.Strategy(devices=UNLIKE, schedule=WRITTEN)
    assert "the stages of replica 0 are on (0, 0), and no grid in schedule= is for that" in str(refused.value)
    one_device = "device 0: 0F0 1F0 0F1 1F1 0F2 1F2 1B0 0B0 1B1 0B1 1B2 0B2"
    check_equal(whale.Strategy(devices=UNLIKE, schedule=f"{WRITTEN}\n{one_device}"))


def test_scopes_may_cut_replicas_differently() -> None:
    own, plain = weights(), weights()

    def made(variables: list[tf.Variable]) -> Callable[..., Any]:
        def step(x: Any) -> Any:
            with tf.GradientTape() as tape, whale.replica():
                with whale.stage(whale.VirtualDevice((0, 2))):
                    h = tf.tanh(x @ variables[0])
                with whale.stage(whale.VirtualDevice((1, 2))):
                    h = h @ variables[1]
                    loss = tf.reduce_mean(tf.square(h - 1))
            descend(tape, loss, variables)
            return loss, h

        return step

    step = whale.function(micro_batches=2)(made(own))
    for got, want in zip(step(batch(12)), tf.function(made(plain))(batch(12)), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    for got, want in zip(values(own), values(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    assert step.strategy.devices == ((0, 1), (2,))


def test_a_grid_serves_a_step_without_gradients() -> None:
    @whale.function(strategy=whale.Strategy(replicas=1, schedule=WRITTEN))
    def step(x: Any) -> Any:
        with whale.stage():
            h = x * 2
        with whale.stage():
            return h + 1

    np.testing.assert_array_equal(step(batch(6)), batch(6) * 2 + 1)
    assert [" ".join(map(str, row)) for row in step.schedule.by_class[0].rows] == ["0F0 0F1 0F2", "1F0 1F2 1F1"]


def test_a_grid_without_a_backward_is_refused_for_training() -> None:
    forwards = "device 0: 0F0\ndevice 1: 1F0"
    with pytest.raises(whale.errors.ScheduleError) as refused:
        whale.function(schedule=forwards)(training(weights()))(batch(8))
    assert str(refused.value) == (
        "the schedule has no backward, and the step takes gradients.\n"
        "  device 0: 0F0\n"
        "  device 1: 1F0\n"
        '  Write B (or I and W) of every stage and micro-batch after its F; or use schedule="1f1b".'
    )
    whale.function(schedule="device 0: 0F0 0B0\ndevice 1: 1F0 1B0")(training(weights()))(batch(8))


def test_a_strategy_for_other_stages_is_refused() -> None:
    variables = weights()
    strategy = whale.Strategy(replicas=2, stages=("first", "second"))
    source = Source(training)
    message = (
        "the strategy is for other stages than the step's.\n"
        "  its stages are 'first', 'second'\n"
        "  the step has 'first', '1'\n"
        f"  in stage 'first' opened at {source.opened('with whale.stage(name')}\n"
        f"  in stage() opened at {source.opened('with whale.stage()')}\n"
        "  Open stages as in the strategy, or leave these to the step: Strategy(replicas=2)."
    )
    wrong = whale.function(strategy=strategy)(training(variables))
    right = whale.function(strategy=whale.Strategy(replicas=2))(training(variables))
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


def test_devices_of_a_strategy_must_be_there() -> None:
    step = whale.function(strategy=whale.Strategy(devices=((0, 1), (2, 7))))(training(weights()))
    whale.init(4)
    with pytest.raises(whale.errors.DeviceError) as refused:
        step(batch())
    assert str(refused.value) == (
        "the strategy names devices that are not there.\n"
        "  replica 1 has device 7\n"
        "  there are 4, counted from 0\n"
        "  Call whale.init(8) and then the step: TensorFlow has 8 devices here. Or ask for fewer replicas or stages. "
        "Or leave devices= out."
    )
    whale.init(8)
    step(batch())


def test_options_that_contradict_the_strategy_are_refused_at_once() -> None:
    def step(x: Any) -> Any:
        return tf.reduce_mean(x)

    strategy = whale.Strategy(micro_batches=4, schedule="gpipe")
    with pytest.raises(whale.errors.PlanError) as refused:
        whale.function(strategy=strategy, micro_batches=2, schedule="1f1b")(step)
    source = Source(test_options_that_contradict_the_strategy_are_refused_at_once)
    assert str(refused.value) == (
        "the strategy and what is said beside it differ.\n"
        "  micro_batches is 4 in it, and 2 beside it\n"
        '  schedule is "gpipe" in it, and "1f1b" beside it\n'
        f"  at {source.at('def step')}\n"
        "  Leave out micro_batches= and schedule= beside the strategy, or in it."
    )
    assert float(whale.function(strategy=strategy)(step)(batch())) == pytest.approx(0.5)


def test_a_step_has_no_strategy_before_its_first_call() -> None:
    with pytest.raises(whale.errors.PlanError, match="has no plan yet"):
        whale.function(training(weights())).strategy  # noqa: B018


def test_methods_of_two_instances_are_traced_apart() -> None:
    class Model:
        def __init__(self) -> None:
            self.traced = list[int]()

        @whale.function(micro_batches=2)
        def step(self, x: Any) -> Any:
            self.traced.append(x.shape[0])
            return tf.reduce_mean(x)

    first, second = Model(), Model()
    first.step(batch(8))
    second.step(batch(6))
    assert (first.traced, second.traced) == ([8, 16], [6, 12])
