"""A branch that writes several variables becomes one for each set of results that share work; all else stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import EXAMPLES, WIDTH, captured
from whale_tf.capture.divide import divide
from whale_tf.capture.translate import CapturedStep
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Graph, Node
from whale_tf.ir.text import print_graph
from whale_tf.ir.verify import verify
from whale_tf.plan.roles import variable_of

Update = Callable[[list[tf.Variable], list[tf.Tensor]], Any]


def fresh() -> list[tf.Variable]:
    rng = np.random.default_rng(0)
    shapes = ((WIDTH, WIDTH), (WIDTH,))
    return [tf.Variable(rng.normal(size=shape).astype(np.float32), name=f"v{i}") for i, shape in enumerate(shapes)]


def plain(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)


def clipped(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    plain(variables, tf.clip_by_global_norm(gradients, 0.01)[0])


def by_each(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    plain(variables, [tf.clip_by_norm(gradient, 0.01) for gradient in gradients])


def sometimes(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    def flip() -> None:
        variables[0].assign(-variables[0])

    total = tf.add_n([tf.reduce_sum(variable) for variable in variables])
    tf.cond(total > 0.0, lambda: clipped(variables, gradients), flip)


def related(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    variables[0].assign_sub(gradients[0] * gradients[1])
    variables[1].assign_sub(tf.reduce_sum(variables[0], axis=0))


def told(variables: list[tf.Variable], gradients: list[tf.Tensor]) -> None:
    tf.print("updating")
    plain(variables, gradients)


UPDATES = (plain, clipped, by_each, sometimes, related, told)


def step_of(update: Update, variables: list[tf.Variable]) -> Callable[[tf.Tensor], tf.Tensor]:
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage(name="first"):
                h = tf.tanh(x @ variables[0])
            with whale.stage(name="second"):
                loss = tf.reduce_mean(tf.square(h + variables[1]))
        gradients = tape.gradient(loss, variables)
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        tf.cond(finite, lambda: update(variables, gradients), lambda: None)
        return loss

    return step


def divided(update: Update) -> tuple[CapturedStep, Graph, Mapping[str, Graph]]:
    step = captured(step_of(update, fresh()))
    graph, calls = divide(step.graph, step.calls)
    for each in (graph, *calls.values()):
        verify(each, after="divide")
    return step, graph, calls


def branches(graph: Graph) -> list[Node]:
    return [node for node in graph if node.op in ("If", "StatelessIf")]


def written(graph: Graph, branch: Node) -> set[str]:
    return {variable_of(node) for node in graph if node.op == "Write" and node.inputs[0].node == branch.name}


def test_each_variable_is_written_by_a_branch_of_its_own() -> None:
    _, graph, calls = divided(plain)
    assert [written(graph, branch) for branch in branches(graph)] == [{"v0"}, {"v1"}]
    for branch in branches(graph):
        assert len(branch.inputs) == 3 == 1 + len(branch.attrs["Tin"])  # the condition, the variable, the gradient
        for name in functions_of(branch).values():
            assert len([node for node in calls[name] if node.op == "Argument"]) == 2
    assert set(calls) == {name for branch in branches(graph) for name in functions_of(branch).values()}


def test_numbers_that_go_from_one_to_the_other_are_branches_too() -> None:
    _, graph, calls = divided(clipped)
    *numbers, first, second = branches(graph)
    assert [written(graph, branch) for branch in (first, second)] == [{"v0"}, {"v1"}]
    assert len(numbers) == 2 and all(branch.outputs[0].shape == () for branch in numbers)
    for branch in (first, second):
        assert {number.name for number in numbers} <= {ref.node for ref in branch.inputs}
    chosen, other = (calls[number] for number in sorted(functions_of(numbers[0]).values(), reverse=True))
    assert [node.op for node in other if node.op != "Argument"] == ["Const"]
    assert "L2Loss" in {node.op for node in chosen}


def test_numbers_of_ones_own_stay_inside() -> None:
    _, graph, _ = divided(by_each)
    assert [written(graph, branch) for branch in branches(graph)] == [{"v0"}, {"v1"}]


def test_branches_inside_are_divided_with_it() -> None:
    _, graph, calls = divided(sometimes)
    assert [written(graph, branch) for branch in branches(graph) if written(graph, branch)] == [{"v0"}, {"v1"}]
    inner = [name for body in calls.values() for branch in branches(body) for name in functions_of(branch).values()]
    assert inner and len(set(inner)) == len(inner)  # each has its own bodies


def same(step: CapturedStep, graph: Graph, calls: Mapping[str, Graph]) -> bool:
    before = [print_graph(each, name) for name, each in {"step": step.graph, **step.calls}.items()]
    return before == [print_graph(each, name) for name, each in {"step": graph, **calls}.items()]


@pytest.mark.parametrize("update", [related, told])
def test_shared_work_and_effects_are_left_alone(update: Update) -> None:
    assert same(*divided(update))


def test_a_branch_that_is_differentiated_is_left_alone() -> None:
    first, second = fresh()

    def step(x: tf.Tensor) -> Any:
        def changed() -> tf.Tensor:
            second.assign_add(second)
            first.assign_add(first)
            return x @ first

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cond(tf.reduce_sum(x) > 0.0, changed, lambda: x))
        first.assign_sub(tape.gradient(loss, first))
        return loss

    made = captured(step)
    assert same(made, *divide(made.graph, made.calls))


def test_a_branch_of_one_variable_is_left_alone() -> None:
    first, second = fresh()
    made = captured(
        lambda x: tf.cond(
            tf.reduce_sum(x) > 0.0, lambda: (first.assign_add(first), -second), lambda: (first.value(), second.value())
        )
    )
    assert same(made, *divide(made.graph, made.calls))


@pytest.mark.parametrize("update", UPDATES)
def test_training_equals_one_device(update: Update) -> None:
    whale.init(4)
    x = np.linspace(-1, 1, EXAMPLES * WIDTH, dtype=np.float32).reshape(EXAMPLES, WIDTH)
    overflowing = x.copy()
    overflowing[-1] = 3e38  # in one part only; the update is left out in all

    def results(make: Callable[..., Any]) -> list[Any]:
        variables = fresh()
        step = make(step_of(update, variables))
        return [step(x), step(overflowing), step(x), *(variable.numpy() for variable in variables)]

    mine, plain_ones = results(whale.function(micro_batches=2)), results(tf.function)
    for got, wanted in zip(mine, plain_ones, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
