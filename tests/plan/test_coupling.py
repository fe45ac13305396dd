"""What couples the parts in the middle of a step: each row of the module's table, and the whole refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, Traced, trace
from tests.run.mistakes import Source
from whale_tf.errors import PlanError
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import APART, SUMS
from whale_tf.plan.coupling import SMALL_BYTES, couplings

MASK = tf.TensorSpec([None], tf.float32)
TABLE = np.ones([WIDTH, 4096], np.float32)

Loss = Callable[[tf.Tensor], tf.Tensor]


def training(loss: Loss) -> Traced:
    """A step that trains w [WIDTH, 1] with a loss of x @ w [examples, 1]."""
    weights = tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            value = loss(x @ weights)
        weights.assign_sub(0.1 * tape.gradient(value, weights))
        return {"loss": value}

    return trace(step)


def mean_of_squares(h: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(h))


def norm(h: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(h)))


def centered(h: tf.Tensor) -> tf.Tensor:
    away = h - tf.reduce_mean(h, name="center")
    return tf.reduce_mean(tf.square(away))


def ordered(h: tf.Tensor) -> tf.Tensor:
    largest = tf.sort(h[:, 0], name="order")
    return tf.reduce_mean(tf.square(largest - h[:, 0]))


def related(h: tf.Tensor) -> tf.Tensor:
    gram = tf.matmul(h, tf.transpose(h), name="gram")
    return tf.reduce_mean(tf.nn.softmax(gram)[:, 0])


def statistics(h: tf.Tensor) -> tf.Tensor:
    """Totals of more than SMALL_BYTES."""
    wide = tf.reduce_sum(h @ tf.ones([1, SMALL_BYTES // 4 + 1]), axis=0, name="wide")
    return tf.reduce_sum(tf.sqrt(wide))


def found(loss: Loss, **options: Any) -> set[str]:
    """The merges in the middle that are computed."""
    return {str(ref) for ref in couplings(training(loss).resolved(**options).states)}


def refused(traced: Traced, **options: Any) -> str:
    with pytest.raises(PlanError) as error:
        traced.resolved(**options)
    return str(error.value)


# What couples nothing.


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_loss_that_is_linear_in_the_examples_couples_nothing(micro_batches: int) -> None:
    assert found(mean_of_squares, micro_batches=micro_batches) == set()


# A total of arguments: a prologue.


def masked(count: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Traced:
    """A masked loss: a sum over a count of the mask [examples]."""
    weights = tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor, mask: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = tf.square(x @ weights)[:, 0]
            value = tf.reduce_sum(h * mask) / count(mask, h)
        weights.assign_sub(0.1 * tape.gradient(value, weights))
        return {"loss": value}

    return trace(step, ROWS, MASK)


def test_a_total_of_arguments_is_merged_before_everything_else() -> None:
    traced = masked(lambda mask, _: tf.reduce_sum(mask, name="count"))
    for micro_batches in (1, 4):
        states = traced.resolved(micro_batches=micro_batches).states
        assert couplings(states) == set()
        assert states.level["count"] == 0
        assert states.level["matmul"] == 2


def test_a_total_of_what_the_model_makes_is_not() -> None:
    traced = masked(lambda mask, h: tf.reduce_sum(mask * h, name="count"))
    assert "count" in {ref.node for ref in couplings(traced.resolved().states)}
    assert "a gradient needs several parts of the batch at once" in refused(traced, micro_batches=2)


def test_arguments_are_gathered_before_everything_else_where_they_are_few_bytes() -> None:
    traced = masked(lambda mask, _: tf.sort(mask, name="order")[0] + 1.0)
    assert couplings(traced.resolved(micro_batches=2).states) == set()
    assert "a gradient needs several parts of the batch at once" in refused(traced, micro_batches=2, gather_bytes=8)


# A total of few bytes and one micro-batch: merged where it stands.


def test_a_total_of_few_bytes_is_merged_where_it_stands() -> None:
    assert found(norm) == {"Sum"}
    assert "center" in found(centered)


def test_a_total_of_many_bytes_is_refused() -> None:
    source = Source(statistics)
    assert refused(training(statistics)) == (
        "a gradient needs several parts of the batch at once.\n"
        "  'Sqrt' (Sqrt): Sqrt needs the total over all examples\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {source.at('return tf.reduce_sum', function='statistics')}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch. '
        "Or use one replica and micro_batches=1."
    )


# Several micro-batches, and what is no total: refused.


def test_a_total_that_several_micro_batches_need_is_refused_with_three_ways_out() -> None:
    source = Source(norm)
    assert refused(training(norm), micro_batches=2) == (
        "a gradient needs several parts of the batch at once.\n"
        "  'Sqrt' (Sqrt): Sqrt needs the total over all examples\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {source.at('return tf.sqrt', function='norm')}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch; '
        "micro_batches=1 does so without being told, since these are only few bytes. "
        "Or use one replica and micro_batches=1."
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    ("loss", "name", "op", "line"),
    [(ordered, "order/TopKV2", "TopKV2", "largest ="), (related, "gram", "MatMul", "gram =")],
)
def test_what_relates_examples_is_refused(loss: Loss, name: str, op: str, line: str, micro_batches: int) -> None:
    assert refused(training(loss), micro_batches=micro_batches) == (
        "a gradient needs several parts of the batch at once.\n"
        f"  '{name}' ({op}): {op} relates examples to each other\n"
        "  each part of the batch has only its own examples, and would train with other numbers\n"
        f"  at {Source(loss).at(line, function=loss.__name__)}\n"
        '  Use one of these in whale.function: coupling="exact" computes it over the global batch; '
        f"accept=('{name}',) takes each part's own value. Or use one replica and micro_batches=1."
    )


def test_one_cause_is_one_message() -> None:
    """The backward of a logsumexp over the batch needs the same totals again."""
    message = refused(training(tf.reduce_logsumexp), micro_batches=2)
    assert "gradient_tape" not in message
    assert sum(line.startswith("  '") for line in message.split("\n")) == 1


# coupling="exact": anything.


@pytest.mark.parametrize("loss", [norm, centered, ordered, related, statistics])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_all_of_them_are_computed_over_the_global_batch_where_that_is_asked_for(loss: Loss, micro_batches: int) -> None:
    resolved = training(loss).resolved(exact=True, micro_batches=micro_batches)
    assert couplings(resolved.states)
    assert resolved.accepted == ()


# What the user accepts.


@pytest.mark.parametrize("how", ["center", "Mean", "line"])
def test_what_the_user_accepts_is_each_parts_own(how: str) -> None:
    """By the operation's name, its type, or its line."""
    traced = training(centered)
    told = Source(centered).opened("away =") if how == "line" else how
    resolved = traced.resolved(micro_batches=2, accept=(told,))
    assert resolved.accepted == ("center",)
    assert resolved.states.value(Ref("center")).state == APART
    assert couplings(resolved.states) == set()


def test_what_is_not_refused_is_computed_though_it_might_be_accepted() -> None:
    assert training(centered).resolved(accept=("center",)).accepted == ()


@pytest.mark.parametrize(("loss", "name"), [(ordered, "order/TopKV2"), (related, "gram"), (centered, "center")])
def test_the_way_out_that_a_refusal_tells_works(loss: Loss, name: str) -> None:
    traced = training(loss)
    assert f"accept=('{name}',)" in refused(traced, micro_batches=2)
    assert traced.resolved(micro_batches=2, accept=(name,)).accepted == (name,)


def test_accepting_something_else_does_not_help() -> None:
    assert "a gradient needs several parts" in refused(training(related), accept=("Mean", "Variable"))


# BatchNormalization.


def normalizing(average: tf.Variable) -> Traced:
    weights = tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = x @ weights
            mean = tf.reduce_mean(h, axis=0, name="statistic")
            average.assign(0.9 * average + 0.1 * mean)
            value = tf.reduce_mean(tf.square(h - mean))
        weights.assign_sub(0.1 * tape.gradient(value, weights))
        return {"loss": value}

    return trace(step)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_statistics_with_a_moving_average_are_each_parts_own_unless_they_are_to_be_exact(micro_batches: int) -> None:
    traced = normalizing(tf.Variable([0.0], trainable=False))
    resolved = traced.resolved(micro_batches=micro_batches)
    assert resolved.states.value(Ref("statistic")).state == APART
    assert couplings(resolved.states) == set()
    assert resolved.accepted == ()
    exact = traced.resolved(micro_batches=micro_batches, exact=True).states
    assert "statistic" in {ref.node for ref in couplings(exact)}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_global_statistics_are_merged_as_totals(micro_batches: int) -> None:
    """None of the examples is brought anywhere: each merge is a sum over them."""
    traced = normalizing(tf.Variable([0.0], trainable=False))
    states = traced.resolved(micro_batches=micro_batches, global_statistics=True).states
    assert states.value(Ref("statistic")).state == SUMS
    assert couplings(states) == couplings(traced.resolved(micro_batches=micro_batches, exact=True).states)
    for ref in couplings(states):
        assert states.value(ref).state == SUMS
        assert traced.sizes.following(ref) == ()


def test_what_only_outputs_take_of_normalized_examples_is_computed_by_the_parts() -> None:
    """Else the examples would be brought together for it."""
    average, weights = tf.Variable([0.0], trainable=False), tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = x @ weights
            mean = tf.reduce_mean(h, axis=0)
            average.assign(0.9 * average + 0.1 * mean)
            centered = h - mean
            value = tf.reduce_mean(tf.square(centered))
        weights.assign_sub(0.1 * tape.gradient(value, weights))
        return {"score": tf.sigmoid(centered), "share": tf.reduce_mean(tf.cast(centered > 0.0, tf.float32))}

    traced = trace(step)
    states = traced.resolved(micro_batches=2, global_statistics=True).states
    assert traced.told(states) == {"score": "Split(0)", "share": "Partial(sum) of degree -1"}


def test_global_statistics_do_not_allow_what_else_relates_examples() -> None:
    average, weights = tf.Variable([0.0], trainable=False), tf.Variable(tf.ones([WIDTH, 1]), name="w")

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = x @ weights
            mean = tf.reduce_mean(h, axis=0)
            average.assign(0.9 * average + 0.1 * mean)
            value = tf.sqrt(tf.reduce_mean(tf.square(h - mean)), name="root")
        weights.assign_sub(0.1 * tape.gradient(value, weights))
        return {"loss": value}

    traced = trace(step)
    with pytest.raises(PlanError, match="'root' \\(Sqrt\\): Sqrt needs the total over all examples"):
        traced.resolved(micro_batches=2, global_statistics=True)
    assert couplings(traced.resolved(global_statistics=True).states)  # of one micro-batch, they are few bytes


# What is computed once, of examples.


def test_examples_that_are_gathered_for_outputs_are_bounded() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        wide = tf.nn.relu(x @ TABLE)
        return {"largest": tf.math.top_k(tf.transpose(wide), 2, name="largest")[0]}

    traced, size_bytes = trace(step), 8 * 4096 * 4
    assert traced.resolved(gather_bytes=size_bytes).states
    assert refused(traced, gather_bytes=size_bytes - 1) == (
        "what is computed over all examples at once needs more of them on one device than is allowed.\n"
        f"  'largest' (TopKV2) needs {size_bytes:,} bytes, and gather_bytes is {size_bytes - 1:,}: "
        "TopKV2 relates examples to each other\n"
        f"  at {Source(test_examples_that_are_gathered_for_outputs_are_bounded).at('return {')}\n"
        f"  Use whale.function(gather_bytes={size_bytes}), or compute it from fewer numbers."
    )
