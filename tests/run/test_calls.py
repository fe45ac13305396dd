"""Ways to call a step that are no mistake: what `tf.function` takes, a step takes, with the same numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import ENOUGH_SECONDS, WIDTH, batch, descend, values, weights

ROUNDING = 1e-6


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(4)


def training(variables: list[tf.Variable]) -> Callable[..., Any]:
    """A step of two replicas with two stages each, not yet decorated."""

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage():
                h = x @ variables[0]
            with whale.stage():
                loss = tf.reduce_mean(tf.square(h @ variables[1] - 1))
        descend(tape, loss, variables)
        return loss

    return step


def trained(decorate: Callable[..., Any], steps: int) -> list[Any]:
    """The variables after some steps."""
    variables = weights()
    step = decorate(training(variables))
    for _ in range(steps):
        step(batch())
    return values(variables)


def check_close(got: list[Any], want: list[Any]) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that all begin at once, each in a thread of its own."""
    results: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(index: int) -> None:
        start.wait()
        try:
            results[index] = calls[index]()
        except BaseException as error:  # shown by the test, in its own thread
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH_SECONDS)
        assert not thread.is_alive(), "a call hangs"
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise errors[0]
    return results


def test_run_eagerly_the_step_simply_runs() -> None:
    variables = weights()
    step = whale.function(micro_batches=2)(training(variables))
    tf.config.run_functions_eagerly(True)
    try:
        step(batch())
    finally:
        tf.config.run_functions_eagerly(False)
    check_close(values(variables), trained(tf.function, 1))
    with pytest.raises(whale.errors.PlanError, match="has no plan yet"):
        print(step.plan)
    step(batch())
    check_close(values(variables), trained(tf.function, 2))


def test_two_threads_may_call_one_step() -> None:
    variables = weights()
    step = whale.function(micro_batches=2)(training(variables))

    def five() -> None:
        for _ in range(5):
            step(batch())

    in_threads(five, five)
    check_close(values(variables), trained(tf.function, 10))


def test_two_threads_may_record_two_steps() -> None:
    def one(micro_batches: int) -> Callable[[], list[Any]]:
        return lambda: trained(whale.function(micro_batches=micro_batches), 2)

    want = trained(tf.function, 2)
    for got in in_threads(one(1), one(2), one(4)):
        check_close(got, want)


def test_a_step_may_be_a_method() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.weight = tf.Variable(np.eye(WIDTH, dtype=np.float32))

        @whale.function(micro_batches=2)
        def step(self, x: Any, *, scale: float = 1.0) -> Any:
            with tf.GradientTape() as tape, whale.replica(2):
                loss = scale * tf.reduce_mean(tf.square(x @ self.weight))
            descend(tape, loss, [self.weight])
            return loss

    class Louder(Trainer):
        @whale.function(micro_batches=2)
        def step(self, x: Any, *, scale: float = 1.0) -> Any:
            with tf.GradientTape() as tape, whale.replica(2):
                loss = 2 * scale * tf.reduce_mean(tf.square(x @ self.weight))
            descend(tape, loss, [self.weight])
            return loss

        def as_before(self, x: Any) -> Any:
            return super().step(x)

    first, second, louder = Trainer(), Trainer(), Louder()
    loss = float(first.step(batch()))
    assert float(second.step(batch(), scale=2.0)) == pytest.approx(2 * loss)
    assert float(louder.step(batch())) == pytest.approx(2 * loss)
    check_close(values([second.weight]), values([louder.weight]))
    assert np.abs(first.weight - second.weight).max() > 0.01
    assert float(Louder().as_before(batch())) == pytest.approx(loss)
    assert first.step.plan.examples == second.step.plan.examples == 8


def test_a_dataset_whose_last_batch_is_smaller() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(batch(22)).batch(8)
    variables, plain = weights(), weights()
    step, reference = whale.function(micro_batches=2)(training(variables)), tf.function(training(plain))
    losses = [float(step(x)) for x in dataset]
    assert losses == pytest.approx([float(reference(x)) for x in dataset], abs=ROUNDING)
    check_close(values(variables), values(plain))
    assert step.plan.sizes == ((2, 1), (2, 1))  # of the last 6 examples


def test_inputs_may_be_arrays_tensors_nested_and_named() -> None:
    @whale.function(micro_batches=2)
    def step(inputs: Any, *rest: Any, target: Any) -> Any:
        with whale.replica(2):
            h = inputs["x"] + inputs["pair"][1] + rest[0]
            return {"loss": tf.reduce_mean(tf.square(h - target)), "each": h, "name": "kept", "nothing": None}

    x = batch()
    results = [
        step({"x": kind(x), "pair": (kind(x), kind(2 * x))}, kind(x), target=kind(x))
        for kind in (np.array, tf.constant)
    ]
    for result in results:
        np.testing.assert_allclose(result["each"], 4 * x, atol=ROUNDING)
        np.testing.assert_allclose(result["loss"], np.mean(np.square(3 * x)), rtol=ROUNDING)
        assert (result["name"], result["nothing"]) == ("kept", None)


@pytest.mark.filterwarnings("ignore:5 of the last")
def test_a_python_argument_is_a_constant_and_another_one_a_new_trace() -> None:
    traced: list[Any] = []

    @whale.function
    def step(x: Any, factor: Any, flags: Any = ()) -> Any:
        traced.append(factor)
        return factor * tf.reduce_mean(x)

    x = batch()

    def traces(*args: Any, **named: Any) -> bool:
        before = len(traced)
        assert float(step(x, *args, **named)) == pytest.approx(0.5 * float(args[0] if args else named["factor"]))
        return len(traced) > before

    assert traces(2)
    assert not traces(2)
    assert not traces(factor=2)
    assert traces(3)
    assert traces(2.0)
    assert traces(True)
    assert traces(2, flags=[1])
    assert not traces(2, flags=[1])
    assert traces(tf.constant(2.0))
    assert not traces(tf.constant(5.0))


def test_an_object_without_a_hash_is_a_constant_by_identity() -> None:
    @whale.function
    def step(x: Any, names: Any) -> Any:
        return len(names) * tf.reduce_mean(x)

    sizes = (1, 2, 3)
    assert [float(step(batch(), {*range(size)})) for size in sizes] == pytest.approx([0.5 * size for size in sizes])


def test_another_batch_size_is_one_more_trace_and_the_first_is_kept() -> None:
    """The step is traced at the global batch and at one other size; for later batches the first one is the other."""
    traced: list[int] = []

    @whale.function(micro_batches=2)
    def step(x: Any) -> Any:
        with whale.replica(2):
            traced.append(x.shape[0])
            return tf.reduce_mean(x)

    for examples, sizes in ((8, [8, 16]), (16, [16]), (8, []), (13, [13]), (3, [3]), (16, []), (13, [])):
        del traced[:]
        assert float(step(batch(examples))) == pytest.approx(0.5)
        assert traced == sizes
        assert step.plan.examples == examples


def test_a_step_of_one_part_is_traced_once() -> None:
    traced: list[int] = []

    @whale.function
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        return tf.reduce_mean(x)

    for examples in (8, 6, 8):
        assert float(step(batch(examples))) == pytest.approx(0.5)
    assert traced == [8, 6]


def test_what_changed_outside_the_step_since_another_batch_size_is_traced_anew() -> None:
    layers = ["first"]
    traced: list[int] = []

    @whale.function
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        with whale.replica(2):
            for _ in layers:
                x = tf.square(x)
            return tf.reduce_mean(x)

    for examples, sizes in ((8, [8, 16]), (12, [12, 24])):
        del traced[:]
        power = 2 ** len(layers)
        assert float(step(batch(examples))) == pytest.approx(np.mean(batch(examples) ** power), rel=ROUNDING)
        assert traced == sizes
        layers.append("second")
