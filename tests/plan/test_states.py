"""How values depend on the batch, and when they are computed: phases, merges in the middle, what is late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf

from tests.plan.traced import ROWS, WIDTH, Traced, trace
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import APART, Split
from whale_tf.plan.local import Use
from whale_tf.plan.states import FREE, Choices, States, as_total

RATE = 0.1


@pytest.fixture
def weights() -> tf.Variable:
    return tf.Variable(tf.ones([WIDTH, 1]), name="w")


def training(weights: tf.Variable, loss: Callable[[tf.Tensor], tf.Tensor]) -> Traced:
    """A step that trains `weights` with a loss of x @ w."""

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            value = loss(x @ weights)
        gradient = tape.gradient(value, weights)
        weights.assign_sub(RATE * gradient)
        return {"loss": value, "gradient": gradient}

    return trace(step)


def inputs_of_markers(states: States) -> list[str]:
    graph = states.sizes.graph
    return [str(states.value(graph[name].inputs[0])) for name in sorted(states.markers)]


# Phases.


def test_forward_and_backward_are_run_by_parts_and_the_update_once(weights: tf.Variable) -> None:
    traced = training(weights, lambda h: tf.reduce_mean(tf.square(h)))
    states = traced.derived()
    assert traced.levels(states) == {"loss": 0, "gradient": 1}
    graph = traced.sizes.graph
    assert {states.level[node.name] for node in graph if node.op == "MatMul"} == {0}
    assert {states.level[node.name] for node in graph if node.op in ("Gradient", "Write")} == {1}
    assert states.level[next(node.name for node in graph if node.op == "Variable")] == FREE


def test_a_forward_with_the_new_values_is_of_the_next_phase(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ weights))
            weights.assign_sub(RATE * tape.gradient(loss, weights))
        return {"loss": loss}

    traced = trace(step)
    states = traced.derived()
    assert traced.levels(states) == {"loss": 2}
    assert sorted(states.level[name] for name in states.markers) == [1, 3]


def test_constants_and_what_follows_from_shapes_are_free() -> None:
    traced = trace(lambda x: {"n": tf.shape(x)[0] * 2, "ones": tf.ones_like(x)})
    assert traced.levels() == {"n": FREE, "ones": FREE}
    assert traced.told() == {"n": "early", "ones": "early"}


# Gradients.


@pytest.mark.parametrize(
    ("loss", "state"),
    [
        (lambda h: tf.reduce_mean(tf.square(h)), "Partial(sum)"),
        (lambda h: tf.reduce_sum(tf.square(h)), "Partial(sum)"),
        (lambda h: tf.reduce_sum(tf.square(h)) / 8, "Partial(sum)"),
        (lambda h: tf.nn.compute_average_loss(tf.square(h[:, 0]), global_batch_size=8), "Partial(sum)"),
    ],
    ids=["mean", "sum", "average by hand", "average loss"],
)
def test_the_gradient_of_any_linear_loss_is_a_sum_over_the_parts(
    weights: tf.Variable, loss: Callable[[tf.Tensor], tf.Tensor], state: str
) -> None:
    assert inputs_of_markers(training(weights, loss).derived()) == [state]


def test_a_gradient_that_is_a_mean_is_scaled_by_the_share() -> None:
    factor = tf.Variable(1.0)

    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = factor * tf.reduce_mean(x)
        return {"gradient": tape.gradient(loss, factor)}

    states = trace(step).derived()
    assert inputs_of_markers(states) == ["Partial(sum) of degree -1"]
    (marker,) = states.markers
    assert states.uses[marker, 0] == Use(power=1)  # type: ignore[arg-type]  # equal to Fraction(1)


def test_the_gradient_of_examples_stays_with_them() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(x))
        return {"gradient": tape.gradient(loss, x)}

    traced = trace(step)
    assert traced.told() == {"gradient": "Split(0)"}
    assert not traced.derived().markers


def test_rows_of_a_table_are_cut_and_merged() -> None:
    table = tf.Variable(tf.ones([9, 2]))

    def step(ids: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, ids)))
        found = tape.gradient(loss, table)
        return {"indices": found.indices, "values": found.values}

    states = trace(step, tf.TensorSpec([None], tf.int32)).derived()
    assert inputs_of_markers(states) == ["Split(0)", "Split(0)"]
    assert {states.level[name] for name in states.markers} == {1}


# What is computed once, and late.


def test_what_outputs_alone_want_is_computed_once_and_couples_nothing(weights: tf.Variable) -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            h = x @ weights
            loss = tf.reduce_mean(tf.square(h))
        weights.assign_sub(RATE * tape.gradient(loss, weights))
        return {"std": tf.math.reduce_std(h), "largest": tf.math.top_k(h[:, 0], 2)[0], "loss": loss}

    traced = trace(step)
    states = traced.derived()
    assert traced.told(states) == {"std": "once", "largest": "once", "loss": "Partial(sum) of degree -1"}
    assert not any(states.known[states.sizes.graph[name].inputs[0]].coupled for name in states.markers)


def test_what_depends_on_a_merge_and_no_gradient_needs_is_not_run_by_parts() -> None:
    """x - mean: it could go back to the parts, and waits for all of them only because it is returned."""
    traced = trace(lambda x: {"centered": x - tf.reduce_mean(x, axis=0), "squares": tf.square(x)})
    states = traced.derived()
    assert traced.told(states) == {"centered": "once", "squares": "Split(0)"}
    assert states.why[traced.outputs["centered"].node] == "it is computed once, from 'Mean'"


def test_what_a_gradient_needs_is_run_by_parts_again_behind_the_merge(weights: tf.Variable) -> None:
    traced = training(weights, lambda h: tf.reduce_mean(tf.square(h - tf.reduce_mean(h))))
    states = traced.derived()
    coupled = {ref for name in states.markers for ref in states.known[states.sizes.graph[name].inputs[0]].coupled}
    (inner,) = [ref for ref in coupled if ref.node.startswith("Mean")]
    assert states.level[inner.node] == 0
    centered = next(node for node in states.sizes.graph if node.op == "Sub" and node.name in states.needed)
    assert states.level[centered.name] == 2
    assert states.uses[centered.name, 1] == Use(merged=True)
    assert states.known[Ref(centered.name)].value.state == Split(0)
    assert inner in states.known[Ref(centered.name)].coupled


def test_needed_is_what_gradients_of_variables_depend_on(weights: tf.Variable) -> None:
    traced = training(weights, lambda h: tf.reduce_mean(tf.square(h)))
    states = traced.derived()
    graph = traced.sizes.graph
    assert {node.name for node in graph if node.op == "MatMul"} <= states.needed
    assert not {node.name for node in graph if node.op in ("Write", "Sub")} & states.needed


# Choices.


def centered_by_total(weights: tf.Variable) -> tuple[Traced, Ref]:
    """A loss that divides by the total of an argument: what masks and token counts do."""

    def step(x: tf.Tensor, mask: tf.Tensor) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(x @ weights)[:, 0] * mask) / tf.reduce_sum(mask, name="count")
        weights.assign_sub(RATE * tape.gradient(loss, weights))
        return {"loss": loss}

    traced = trace(step, ROWS, tf.TensorSpec([None], tf.float32))
    return traced, Ref("count")


def test_a_total_of_arguments_alone_is_given_and_one_of_the_model_is_not(weights: tf.Variable) -> None:
    traced, count = centered_by_total(weights)
    states = traced.derived()
    assert states.known[count].given
    assert {ref.node for ref, known in states.known.items() if known.micro and not known.given} >= {"matmul"}


def test_a_prologue_is_merged_before_the_parts_begin(weights: tf.Variable) -> None:
    traced, count = centered_by_total(weights)
    states = traced.derived(Choices(prologue=frozenset({count}), base=2))
    assert states.level[count.node] == 0
    assert states.level["matmul"] == 2
    assert sorted(states.level[name] for name in states.markers) == [3]
    assert not any(states.known[states.sizes.graph[name].inputs[0]].coupled for name in states.markers)


def test_an_accepted_total_is_each_parts_own(weights: tf.Variable) -> None:
    traced = training(weights, lambda h: tf.reduce_mean(tf.square(h - tf.reduce_mean(h, name="inner"))))
    inner = next(node.name for node in traced.sizes.graph if node.name.startswith("inner"))
    states = traced.derived(Choices(accepted=frozenset({inner})))
    assert states.value(Ref(inner)).state == APART
    assert inner in states.accepted
    assert not any(states.known[states.sizes.graph[name].inputs[0]].coupled for name in states.markers)
    assert {states.level[name] for name in states.markers} == {1}
    assert str(as_total(states.value(Ref(inner)))) == "Partial(sum) of degree -1"


def test_statistics_of_which_an_average_is_made_are_each_parts_own_and_the_average_is_over_all() -> None:
    average = tf.Variable(tf.zeros([WIDTH]), trainable=False)

    def step(x: tf.Tensor) -> dict[str, Any]:
        mean = tf.reduce_mean(x, axis=0, name="statistic")
        average.assign(0.9 * average + 0.1 * mean)
        return {"y": x - mean, "average": average.read_value()}

    traced = trace(step)
    states = traced.derived(Choices(averages=lambda node: node.name == "statistic"))
    assert traced.told(states)["y"] == "Split(0)"
    assert states.value(Ref("statistic")).state == APART
    (write,) = [node for node in traced.sizes.graph if node.op == "Write"]
    assert states.level[write.name] in (0, 1)


# State.


def test_a_write_of_a_total_is_done_once() -> None:
    total = tf.Variable(0.0, trainable=False)

    def step(x: tf.Tensor) -> dict[str, Any]:
        total.assign_add(tf.reduce_sum(x))
        return {"total": total.read_value()}

    traced = trace(step)
    assert traced.told() == {"total": "once"}


def test_what_has_effects_and_takes_parts_is_done_once() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        tf.print("x", tf.reduce_max(x))
        return {"y": tf.nn.relu(x)}

    states = trace(step).derived()
    (printed,) = [node.name for node in states.sizes.graph if node.op == "PrintV2"]
    assert states.level[printed] == 1


def test_an_assertion_is_made_by_each_part() -> None:
    def step(x: tf.Tensor) -> dict[str, Any]:
        tf.debugging.assert_less(x, 100.0)
        return {"y": tf.nn.relu(x)}

    states = trace(step).derived()
    assert {states.level[node.name] for node in states.sizes.graph if node.op in ("Assert", "If")} == {0}


def test_two_draws_that_do_not_follow_the_batch_are_drawn_once() -> None:
    traced = trace(lambda x: {"noise": tf.random.normal([WIDTH]), "dropout": tf.random.uniform(tf.shape(x))})
    told = traced.told()
    assert told["dropout"] == "Split(0)"
    assert told["noise"] != "Split(0)"
