"""What takes examples of several parts together: how much is gathered for it, what is accepted, what values are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, values, weights

ROUNDING = 1e-6  # of float32 sums that are taken in another order
GATHERED = 128  # bytes of 8 examples of 4 numbers


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def sorting(variables: list[tf.Variable]) -> Callable[..., Any]:
    """A step whose outputs, and not its gradients, take all examples together; not yet decorated."""

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = x @ variables[0]
            ordered = tf.sort(h, axis=0)
            deviation = tf.math.reduce_std(h, axis=0)
            loss = tf.reduce_mean(tf.square(h))
        descend(tape, loss, variables)
        return loss, ordered, deviation

    return step


def test_more_bytes_are_gathered_than_is_allowed() -> None:
    variables = weights(1)
    source = Source(sorting)
    message = (
        "what is computed over all examples at once needs more of them on one device than is allowed.\n"
        "  'sort/TopKV2' (TopKV2) needs 128 bytes, and gather_bytes is 127: TopKV2 relates examples to each other\n"
        "  'reduce_std/reduce_variance/sub' (Sub) needs 128 bytes, and gather_bytes is 127: "
        "it is computed once, from 'reduce_std/reduce_variance/Mean'\n"
        f"  at {source.at('ordered = ')}\n"
        f"  at {source.at('deviation = ')}\n"
        "  Use whale.function(gather_bytes=128), or compute it from fewer numbers."
    )
    wrong = whale.function(micro_batches=2, gather_bytes=GATHERED - 1)(sorting(variables))
    right = whale.function(micro_batches=2, gather_bytes=GATHERED)(sorting(variables))
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


def test_as_many_bytes_are_gathered_as_are_allowed() -> None:
    variables, plain = weights(1), weights(1)
    step = whale.function(micro_batches=2, gather_bytes=GATHERED)(sorting(variables))
    for got, want in zip(step(batch()), tf.function(sorting(plain))(batch()), strict=True):
        np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(values(variables), values(plain), rtol=ROUNDING)


def test_the_plan_tells_the_states_of_values() -> None:
    step = whale.function(micro_batches=2)(sorting(weights(1)))
    step(batch())
    assert step.plan.states("^matmul|argument") == {"argument_0": "Split(0)", "matmul": "Split(0)"}
    means = {"Mean": "Partial(sum) of degree -1", "reduce_std/reduce_variance/Mean": "Partial(sum) of degree -1"}
    assert step.plan.states(r"Mean$") == means
    assert step.plan.states("gradient_tape/matmul") == {"gradient_tape/matmul/MatMul": "Partial(sum)"}
    assert step.plan.states("no such value") == {}
    assert step.plan.states().items() > means.items()
    assert "sort/TopKV2" not in step.plan.states(), "it is computed once"


def test_of_one_part_there_are_no_states() -> None:
    step = whale.function(lambda x: tf.reduce_mean(x))
    step(batch())
    assert step.plan.states() == {}


def normalizing(variables: list[tf.Variable], replicas: int = 2) -> Callable[..., Any]:
    """A step whose gradients need the mean of all examples; not yet decorated."""

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(replicas):
            h = x @ variables[0]
            centre = tf.reduce_mean(h)
            loss = tf.reduce_mean(tf.square(h / centre))
        descend(tape, loss, variables)
        return loss

    return step


LINE = Source(normalizing).at("centre = ")


def test_what_couples_the_parts_is_refused_with_ways_out_that_work() -> None:
    variables = weights(1)
    message = (
        "a gradient needs several parts of the batch at once.\n"
        "  'Mean' (Mean): its gradient needs all examples\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {LINE}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch; '
        "micro_batches=1 does so without being told, since these are only few bytes; "
        "accept=('Mean',) takes each part's own value. Or use one replica and micro_batches=1."
    )
    wrong = whale.function(micro_batches=2)(normalizing(variables))
    right = whale.function(micro_batches=2, coupling="exact")(normalizing(variables))
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


@pytest.mark.parametrize(
    ("replicas", "options"), [(2, {"micro_batches": 2, "coupling": "exact"}), (2, {"coupling": "auto"}), (1, {})]
)
def test_ways_out_that_are_exact(replicas: int, options: dict[str, Any]) -> None:
    variables, plain = weights(1), weights(1)
    step = whale.function(**options)(normalizing(variables, replicas))
    reference = tf.function(normalizing(plain))
    for examples in (8, 7, 3):
        np.testing.assert_allclose(step(batch(examples)), reference(batch(examples)), rtol=ROUNDING)
        np.testing.assert_allclose(values(variables), values(plain), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(
    "accept", ["Mean", ("Mean",), (LINE.split(" in ")[0],), LINE.split(" in ")[0].split("/")[-1], ("Square", "Mean")]
)
def test_what_is_accepted_by_name_kind_or_line_is_each_parts_own(accept: Any) -> None:
    variables = weights(1)
    step = whale.function(micro_batches=2, accept=accept)(normalizing(variables))
    with pytest.warns(UserWarning) as warned:
        loss = step(batch())
    assert [str(each.message) for each in warned] == [
        f"each part of the batch has its own value of what accept= names: 'Mean' (at {LINE})"
    ]
    assert f"{warned[0].filename}:{warned[0].lineno}" == LINE.split(" in ")[0], "it points at the user's line"
    losses = []
    for x in np.split(batch(), 4):
        (weight,) = weights(1)
        losses.append(float(tf.function(normalizing([weight]))(x)))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=ROUNDING)  # parts of equal size


def test_a_largest_number_is_not_accepted_of_each_part() -> None:
    """How a part's own one would weigh in the gradient is known of means only."""
    variables = weights(1)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            h = x @ variables[0]
            loss = tf.reduce_mean(tf.square(h / tf.reduce_max(h)))
        descend(tape, loss, variables)
        return loss

    message = (
        "a gradient needs several parts of the batch at once.\n"
        "  'Max' (Max): its gradient needs all examples\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {Source(test_a_largest_number_is_not_accepted_of_each_part).at('loss = ')}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch; '
        "micro_batches=1 does so without being told, since these are only few bytes. "
        "Or use one replica and micro_batches=1."
    )
    wrong = whale.function(micro_batches=2, accept="Max")(step)
    right = whale.function(step)
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


def test_what_is_accepted_has_to_be_there() -> None:
    variables = weights(1)
    message = (
        "accept= names what the step does not have.\n"
        "  'Men' is no operation, no kind of operation and no line of it\n"
        "  'train.py:7' is no operation, no kind of operation and no line of it\n"
        f"  at {LINE}\n"
        "  Use accept=('Mean',), or leave it out."
    )
    wrong = whale.function(micro_batches=2, accept=("Men", "Mean", "train.py:7"))(normalizing(variables))
    right = whale.function(micro_batches=2, coupling="exact")(normalizing(variables))
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


def test_what_is_accepted_without_need_has_to_be_there_too() -> None:
    variables = weights(1)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(x @ variables[0]))
        descend(tape, loss, variables)
        return loss

    message = (
        "accept= names what the step does not have.\n"
        "  'Max' is no operation, no kind of operation and no line of it\n"
        "  Leave it out: here it would change nothing."
    )
    wrong, right = whale.function(micro_batches=2, accept="Max")(step), whale.function(micro_batches=2)(step)
    check_refused(whale.errors.PlanError, message, lambda: wrong(batch()), lambda: right(batch()), variables)


def test_what_is_accepted_need_not_be_there_for_one_part_or_without_gradients() -> None:
    evaluate = whale.function(micro_batches=2, accept="Max")(lambda x: tf.reduce_mean(x))
    assert float(evaluate(batch())) == pytest.approx(0.5)
    assert evaluate.plan.parts == 2
    step = whale.function(micro_batches=2, accept="Max")(normalizing(weights(1), 1))
    assert np.isfinite(step(batch(1)))
    assert step.plan.parts == 1
