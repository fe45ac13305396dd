"""The timeline of real steps: what it shows is what the schedule says, and measuring changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.equivalence.models import cross_entropy, dense, optimized
from whale_tf.plan.grid import pattern_of
from whale_tf.run.step import Step
from whale_tf.run.timeline import Slice, Timeline, kept, measure

WIDTH, EXAMPLES = 8, 16


def batch() -> list[tf.Tensor]:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    return [tf.constant(rows), tf.constant(generator.integers(0, WIDTH, size=EXAMPLES).astype(np.int32))]


def made(
    stages: int,
    replicas: int | None = None,
    micro_batches: int = 4,
    schedule: str = "1f1b",
    places: tuple[tuple[int, ...], ...] = (),
) -> tuple[Step, list[Any]]:
    """A step of one Dense layer per stage, and its variables."""
    keras.utils.set_random_seed(7)
    layers = [dense(WIDTH) for _ in range(stages)]
    variables = [variable for layer in layers for variable in layer.trainable_variables]
    optimizer = optimized(keras.optimizers.Adam(0.01), variables)

    @whale.function(strategy=whale.Strategy(devices=places), micro_batches=micro_batches, schedule=schedule)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica(replicas):
            for position, layer in enumerate(layers):
                with whale.stage():
                    x = layer(x)
                    loss = cross_entropy(y, x) if position == stages - 1 else None
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step, [*variables, *optimizer.variables]


def timeline_of(**arrangement: Any) -> tuple[Timeline, Step]:
    step, _ = made(**arrangement)
    step.prepare(*batch())
    return measure(step.compiled, batch()), step


@pytest.mark.parametrize(
    ("devices", "arrangement"),
    [
        (2, {"stages": 2}),
        (4, {"stages": 2, "replicas": 2}),
        (4, {"stages": 2, "replicas": 2, "schedule": "gpipe"}),
        (2, {"stages": 2, "schedule": "zero_bubble"}),
        (2, {"stages": 4, "schedule": "interleaved"}),
        (2, {"stages": 1, "replicas": 2, "micro_batches": 1}),
        (4, {"stages": 3, "places": ((0, 1, 1), (2, 3, 2)), "schedule": "zero_bubble"}),
    ],
    ids=str,
)
def test_each_row_is_the_row_of_the_schedule(devices: int, arrangement: dict[str, Any]) -> None:
    whale.init(devices)
    timeline, step = timeline_of(**arrangement)
    for replica in range(step.plan.layout.replicas):
        rows = step.schedule.of(pattern_of(step.plan.layout.meshes[replica])).rows
        for row, device in zip(rows, step.plan.layout.devices_of(replica), strict=True):
            actions = [slice for slice in timeline.row(device) if slice.name != "U"]
            assert [slice.name for slice in actions] == [str(action) for action in row]
            assert {slice.replica for slice in actions} == {replica}


def test_slices_of_a_device_do_not_overlap_and_updates_come_last() -> None:
    whale.init(4)
    timeline, _ = timeline_of(stages=2, replicas=2)
    assert all(0 <= slice.start_us <= slice.end_us <= timeline.microseconds for slice in timeline.slices)
    for left, right in pairwise(timeline.slices):
        assert left.device < right.device or left.end_us <= right.start_us
    updates = [slice for slice in timeline.slices if slice.name == "U"]
    assert updates
    assert all(timeline.row(slice.device)[-1] == slice for slice in updates)


def test_an_action_starts_after_what_it_takes_from_another_device_has_ended() -> None:
    whale.init(2)
    timeline, _ = timeline_of(stages=2)
    pairs = [(timeline.slices[giver], timeline.slices[taker]) for giver, taker in timeline.transfers]
    assert {(giver.name, taker.name) for giver, taker in pairs} >= {("0F0", "1F0"), ("1B0", "0B0"), ("1B3", "0B3")}
    for giver, taker in pairs:
        assert giver.device != taker.device
        assert giver.end_us <= taker.start_us


def test_a_measured_step_is_a_step() -> None:
    whale.init(4)
    plain, plain_variables = made(stages=2, replicas=2)
    other, other_variables = made(stages=2, replicas=2)
    losses = [float(plain(*batch())) for _ in range(3)]
    found = [float(other(*batch())), float(measure(other.compiled, batch()).outputs[0]), float(other(*batch()))]
    # The same operations in the same order on each device; inlined, TensorFlow joins some, which round otherwise.
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for left, right in zip(plain_variables, other_variables, strict=True):
        np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=1e-6, atol=1e-6)


def test_variables_are_kept_whatever_happens() -> None:
    variable = tf.Variable([1.0, 2.0])
    with pytest.raises(KeyError), kept([variable]):
        variable.assign([3.0, 4.0])
        raise KeyError
    assert variable.numpy().tolist() == [1, 2]


def test_measuring_a_step_that_fails_leaves_the_variables() -> None:
    whale.init(2)
    weight = tf.Variable(2.0)

    @whale.function(micro_batches=2)
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.debugging.check_numerics(x * weight, "not a number"))
        weight.assign_sub(tape.gradient(loss, weight))
        return loss

    x = tf.constant([1.0, float("nan")])
    step.prepare(x)
    with pytest.raises(whale.WhaleError, match="not a number"):
        measure(step.compiled, [x])
    assert float(weight) == 2


def test_it_prints_how_busy_each_device_was() -> None:
    slices = (Slice(0, "0F0", 0, 0, 0, 1000), Slice(0, "0B0", 0, 0, 2000, 3000), Slice(1, "U", -1, 0, 0, 4000))
    devices = tuple(f"/job:localhost/replica:0/task:0/device:CPU:{index}" for index in range(3))
    assert str(Timeline(devices, slices, ())) == "4.0 ms\nCPU:0: busy  50%: 0F0 0B0\nCPU:1: busy 100%: U"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Timeline], list[dict[str, Any]]]:
    def save(timeline: Timeline) -> list[dict[str, Any]]:
        path = tmp_path / "traces" / "timeline.json"
        timeline.save(path)
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
        return events

    return save


def test_the_trace_has_a_row_per_device_and_an_event_per_slice(
    saved: Callable[[Timeline], list[dict[str, Any]]],
) -> None:
    whale.init(2)
    timeline, _ = timeline_of(stages=2)
    events = saved(timeline)
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert rows == {1: "CPU:0", 2: "CPU:1"}
    complete = [event for event in events if event["ph"] == "X"]
    assert [event["name"] for event in complete] == [slice.name for slice in timeline.slices]
    first = next(event for event in complete if event["name"] == "1B2")
    assert (first["tid"], first["cat"]) == (2, "backward")
    assert first["args"] == {"device": timeline.devices[1], "replica": 0, "stage": 1, "micro_batch": 2}
    for left, right in pairwise(complete):  # Perfetto nests slices that overlap
        assert left["tid"] < right["tid"] or left["ts"] + left["dur"] <= right["ts"] + 0.002


def test_the_trace_has_an_arrow_per_transfer_that_lies_on_its_slices(
    saved: Callable[[Timeline], list[dict[str, Any]]],
) -> None:
    slices = (Slice(0, "0F0", 0, 0, 10, 30), Slice(1, "1F0", 0, 0, 40, 60))
    events = saved(Timeline(("CPU:0", "CPU:1"), slices, ((0, 1),)))
    arrow = {"name": "0F0 to 1F0", "cat": "transfer", "id": 1, "pid": 1}
    assert events[-2:] == [
        {**arrow, "ph": "s", "tid": 1, "ts": 20.0},
        {**arrow, "ph": "f", "bp": "e", "tid": 2, "ts": 40.0},
    ]
