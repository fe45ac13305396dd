"""What each part does for itself, where its own value is taken in the place of the whole one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, trace
from whale_tf.ir.sharding import APART, Split
from whale_tf.plan.local import Use
from whale_tf.plan.states import Choices


def accepted(function: Callable[[Any], Any], *names: str) -> dict[str, str]:
    traced = trace(lambda x: {"y": function(x)}, ROWS)
    return traced.told(traced.derived(Choices(accepted=frozenset(names))))


@pytest.mark.parametrize(
    ("function", "name", "state"),
    [
        (lambda x: tf.sort(x[:, 0], name="s"), "s/TopKV2", "Split(0)"),
        (lambda x: tf.cumsum(x, name="c"), "c", "Split(0)"),
        (lambda x: tf.reverse(x, [0], name="r"), "r", "Split(0)"),
        (lambda x: tf.reduce_mean(x, name="m"), "m", "Apart"),
    ],
)
def test_what_is_accepted_is_run_by_each_part(function: Callable[[Any], Any], name: str, state: str) -> None:
    assert accepted(function, name)["y"] == state


@pytest.mark.parametrize(
    ("function", "name", "state"),
    [
        (lambda x: tf.reduce_sum(x, name="t"), "t", "Partial(sum)"),
        (lambda x: tf.reduce_max(x, name="m"), "m", "Partial(max)"),
        (lambda x: tf.argmax(x, axis=0, name="a"), "a", "once"),
    ],
)
def test_of_totals_only_a_mean_stands_for_the_whole_one(function: Callable[[Any], Any], name: str, state: str) -> None:
    """How much a part's own sum or maximum weighs in a gradient is not known."""
    assert accepted(function, name)["y"] == state


def test_what_follows_from_an_accepted_value_is_each_parts_own() -> None:
    def normalized(x: tf.Tensor) -> tf.Tensor:
        return x / tf.sqrt(tf.reduce_mean(tf.square(x), name="m"))

    assert accepted(normalized, "m")["y"] == "Split(0)"
    assert accepted(normalized)["y"] == "once"


def test_a_function_of_each_parts_own_mean_is_its_own() -> None:
    traced = trace(lambda x: {"root": tf.sqrt(tf.reduce_mean(x, name="m"))}, ROWS)
    states = traced.derived(Choices(accepted=frozenset({"m"})))
    assert traced.told(states) == {"root": "Apart"}
    assert states.accepted == {"m"}


def test_a_constant_as_long_as_the_batch_is_the_first_parts_for_all() -> None:
    """Labels 0, 1, 2, ... of examples: each part counts its own."""

    def step(x: tf.Tensor) -> dict[str, Any]:
        scores = tf.matmul(x, x, transpose_b=True, name="scores")
        return {"y": tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(x)[0]), scores)}

    traced = trace(step, ROWS)
    ops = {node.op: node.name for node in traced.sizes.graph}
    loss = ops["SparseSoftmaxCrossEntropyWithLogits"]
    states = traced.derived(Choices(accepted=frozenset({"scores"})))
    assert traced.told(states) == {"y": "Split(0)"}
    assert states.value(traced.sizes.graph[loss].inputs[0]).state == APART
    assert states.uses[loss, 1] == Use(Split(0), prefix=True)


def test_what_is_not_accepted_is_not_run_by_parts() -> None:
    assert accepted(lambda x: tf.cumsum(x, name="c"), "another")["y"] == "once"
