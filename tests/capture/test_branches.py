"""Branches on variables are branches on values, also inside of each other; all do what TensorFlow does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.capture.traces import WIDTH, captured, only
from whale_tf.capture.translate import CapturedStep
from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Graph, Ref
from whale_tf.ir.verify import verify

Change = Callable[[tf.Tensor, list[tf.Variable]], Any]


def fresh() -> list[tf.Variable]:
    return [tf.Variable(np.full((WIDTH,), value, np.float32), name=f"v{value}", trainable=False) for value in (1, 2)]


def is_large(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(x) > 0.0


def one_written(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables
    return tf.cond(is_large(x), lambda: first.assign_add(second), lambda: tf.identity(second))


def two_written(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables

    def swap() -> tf.Tensor:
        kept = tf.identity(first)
        first.assign(second)
        second.assign(kept + first)
        return first + second

    return tf.cond(is_large(x), swap, lambda: tf.zeros(WIDTH))


def nested(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables

    def inner() -> tf.Tensor:
        first.assign_sub(second)
        return tf.cond(first[0] > 0.0, lambda: second.assign(2.0 * first), lambda: second.assign_sub(first))

    return tf.cond(is_large(x), inner, lambda: second.assign_add(first))


def chosen(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables
    cases = [lambda: first.assign(second), lambda: second.assign_add(first), lambda: first + second]
    return tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32) % 3, cases)


def gathered(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables

    def scatter() -> tf.Tensor:
        first.scatter_add(tf.IndexedSlices(tf.gather(second, [0, 1]), [2, 0]))
        return first.value()

    return tf.cond(is_large(x), scatter, lambda: second.sparse_read([1, 1, 2]))


def looping(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    """What has no rule runs on scratch variables inside the branch."""
    first, second = variables

    def loop() -> tf.Tensor:
        tf.while_loop(lambda i: i < 3, lambda i: (i + tf.cast(second.assign_add(first)[0] > 0.0, tf.int32),), (0,))
        return second.value()

    return tf.cond(is_large(x), loop, lambda: first.assign_add(first))


def printing(x: tf.Tensor, variables: list[tf.Variable]) -> Any:
    first, second = variables

    def told() -> tf.Tensor:
        second.assign_add(first)
        tf.print("second is", second)
        return second.assign_add(first)

    return tf.cond(is_large(x), told, lambda: first.assign_add(first))


CHANGES = (one_written, two_written, nested, chosen, gathered, looping, printing)


def bodies_of(step: CapturedStep, op: str) -> list[Graph]:
    return [step.calls[name] for name in functions_of(only(step.graph, op)).values()]


def test_a_branch_takes_values_and_gives_those_of_the_variables_that_it_may_write() -> None:
    variables = fresh()
    step = captured(lambda x: one_written(x, variables))
    branch, write = only(step.graph, "StatelessIf"), only(step.graph, "Write")
    assert set(branch.inputs[1:]) == {Ref("v1"), Ref("v2")}
    assert write.attrs == {"variable": b"v1"}
    assert write.inputs == (Ref(branch.name, len(branch.outputs) - 1),)
    assert branch.attrs["Tin"] == ("float32", "float32")
    for body in bodies_of(step, "StatelessIf"):
        verify(body, after="translate")
        assert not any(kind.dtype == "resource" for node in body for kind in node.outputs)


def test_a_body_that_does_not_write_gives_what_it_was_given() -> None:
    variables = fresh()
    step = captured(lambda x: one_written(x, variables))
    _, skip = sorted(bodies_of(step, "StatelessIf"), key=lambda body: not any(node.op == "AddV2" for node in body))
    argument = skip[skip.outputs[-1].node]
    branch = only(step.graph, "StatelessIf")
    assert (argument.op, branch.inputs[1 + argument.attrs["index"]]) == ("Argument", Ref("v1"))


def test_a_branch_inside_of_a_branch_is_one_on_values_too() -> None:
    variables = fresh()
    step = captured(lambda x: nested(x, variables))
    assert [node.op for body in bodies_of(step, "StatelessIf") for node in body if functions_of(node)] == [
        "StatelessIf"
    ]
    assert {node.attrs["variable"] for node in step.graph if node.op == "Write"} == {b"v1", b"v2"}


def test_a_branch_with_effects_is_an_effect() -> None:
    variables = fresh()
    step = captured(lambda x: printing(x, variables))
    branch = only(step.graph, "If")
    assert branch.stateful and branch.name in step.graph.effects
    (told,) = [body for body in bodies_of(step, "If") if body.effects]
    assert [told[name].op for name in told.effects] == ["PrintV2"]


def test_what_waits_for_a_change_of_a_variable_waits_for_what_that_waited_for() -> None:
    variables = fresh()

    def told() -> tf.Tensor:
        tf.print("before")
        variables[0].assign_add(variables[1])
        tf.print("after", variables[0])
        return variables[0].value()

    step = captured(lambda x: tf.cond(is_large(x), told, lambda: variables[1].value()))
    (body,) = [body for body in bodies_of(step, "If") if body.effects]
    before, after = [node for node in body if node.op == "PrintV2"]
    assert before.name in after.control


def test_a_loop_in_a_branch_runs_on_scratch_variables() -> None:
    variables = fresh()
    step = captured(lambda x: looping(x, variables))
    branch = only(step.graph, "If")  # a call of TensorFlow's may be stateful; this one does nothing outside
    assert not branch.stateful and branch.name not in step.graph.effects


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_does_what_tensorflow_does(change: Change, sign: float, capfd: pytest.CaptureFixture[str]) -> None:
    whale.init(2)
    x = sign * np.linspace(0, 1, 8 * WIDTH, dtype=np.float32).reshape(8, WIDTH)

    def results(make: Callable[..., Any]) -> tuple[list[Any], str]:
        variables = fresh()
        step = make(lambda x: change(x, variables))
        found = [step(x), step(-x), step(x), *(variable.numpy() for variable in variables)]
        return found, capfd.readouterr().err

    (mine, told), (plain, told_by_one) = results(whale.function), results(tf.function)
    for got, wanted in zip(mine, plain, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert told.count("second is") == told_by_one.count("second is")
