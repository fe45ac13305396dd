"""A step that is traced again and again warns once, of what changed and with a way out that works."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import batch
from whale_tf.run.retracing import MANY_TRACES, WATCHED_CALLS


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(2)


def scaled(x: Any, rate: Any = 1.0, names: Any = ()) -> Any:
    with whale.replica(2):
        return tf.reduce_mean(x) * rate


def _call(step: Any, **arguments: Any) -> Any:
    return step(**arguments)


def _prepare(step: Any, size: int) -> Any:
    return step.prepare(batch(size))


def warned(calls: Iterable[Callable[[Any], Any]]) -> list[str]:
    step = whale.function(scaled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call(step)
    assert all(each.filename == __file__.rpartition("tests/")[1] + __file__.rpartition("tests/")[2] for each in caught)
    return [str(each.message) for each in caught]


def sized(*sizes: int) -> list[Callable[[Any], Any]]:
    return [functools.partial(_call, x=batch(size)) for size in sizes]


BEGIN = (
    "5 of the last 5 calls of the step 'scaled' were traced anew, and each trace is planned and compiled. "
    "Between the last two of them "
)


def test_batches_of_many_sizes_warn_once() -> None:
    assert warned(sized(2, 3, 4, 5, 6, 7, 8, 9, 10)) == [
        f"{BEGIN}'x' went from float32 [5, 4] to float32 [6, 4]. "
        "Keep the batch at one size: dataset.batch(n, drop_remainder=True), or pad it and mask."
    ]


def test_traces_that_are_few_among_the_last_calls_do_not_warn() -> None:
    once_in_a_while = [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7]
    assert warned(sized(*once_in_a_while)) == []
    assert warned(sized(*[8] * WATCHED_CALLS, 3)) == []
    assert MANY_TRACES * 3 > WATCHED_CALLS


def test_a_number_that_changes_is_told_and_helps_as_a_tensor() -> None:
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert warned([functools.partial(_call, x=batch(), rate=rate) for rate in rates]) == [
        f"{BEGIN}'rate' went from 0.4 to 0.5. Pass a number that changes as tf.constant(rate)."
    ]
    assert warned([functools.partial(_call, x=batch(), rate=tf.constant(rate)) for rate in rates]) == []


def test_lengths_dtypes_and_objects_that_change_are_told() -> None:
    lengths = (functools.partial(_call, x=np.ones([4, n], np.float32)) for n in range(1, 6))
    assert warned(lengths) == [f"{BEGIN}'x' went from float32 [4, 4] to float32 [4, 5]. Pad it to one of a few sizes."]
    kinds: Any = (np.float32, np.float64, np.float16, tf.bfloat16.as_numpy_dtype, np.float32)
    different = (functools.partial(_call, x=np.ones([4, n], k), rate=tf.cast(1, k)) for n, k in enumerate(kinds, 1))
    (text,) = warned(different)
    assert "'x' went from bfloat16 [4, 4] to float32 [4, 5]; 'rate' went from bfloat16 [] to float32 []." in text
    assert text.endswith("Convert it to the same dtype before each call.")
    objects = [lambda step: step(batch(), names=(object(),)) for _ in range(5)]
    assert warned(objects) == [f"{BEGIN}'names[0]' is another object. Pass the same object as 'names[0]' in each call."]


def test_plans_that_are_prepared_are_no_calls() -> None:
    calls = [functools.partial(_prepare, size=size) for size in range(2, 9)]
    assert warned([*calls, *sized(2, 3, 4, 5, 6, 7)]) == []


def test_what_a_step_is_fed_counts_once() -> None:
    def feeding(step: Any) -> None:
        for part in step.feed(batch(size) for size in (2, 3, 4, 5, 6, 7)):
            step(part)

    (text,) = warned([feeding])
    assert text.startswith(BEGIN)
