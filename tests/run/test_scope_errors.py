"""Mistakes with scopes: opened where they cannot be, in an order that data cannot follow, or around nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, weights


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def test_data_that_flows_to_an_earlier_stage() -> None:
    variables = weights()

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage(name="first"):
                h = x @ variables[0]
            with whale.stage(name="last"):
                h = h @ variables[1]
            with whale.stage(name="first" if wrong else "last"):
                loss = tf.reduce_mean(tf.square(h))
        descend(tape, loss, variables)
        return loss

    source = Source(test_data_that_flows_to_an_earlier_stage)
    message = (
        "'Square' of stage 0 needs 'matmul_1' of the later stage 1.\n"
        "  forward data only flows to later stages\n"
        f"  at {source.at('loss = tf.reduce_mean')}\n"
        f"  at {source.at('h = h @ variables[1]')}\n"
        "  Open the stages in the order the data flows, or give both places the same stage name."
    )
    check_refused(whale.errors.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


def test_a_scope_that_is_closed_before_those_inside_it() -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        outer, inner = whale.replica(2), whale.stage(name="only")
        with tf.GradientTape() as tape:
            outer.__enter__()
            inner.__enter__()
            loss = tf.reduce_mean(x @ variables[0])
            first, second = (outer, inner) if wrong else (inner, outer)
            first.__exit__(None, None, None)
            second.__exit__(None, None, None)
        descend(tape, loss, variables)
        return loss

    source = Source(test_a_scope_that_is_closed_before_those_inside_it)
    message = (
        "replica(2) is closed before stage 'only' inside it.\n"
        f"  at {source.at('first.__exit__')}\n"
        f"  in stage 'only' opened at {source.opened('inner.__enter__')}\n"
        f"  in replica(2) opened at {source.opened('outer.__enter__')}\n"
        "  Close scopes in the reverse order of opening; `with` does."
    )
    check_refused(
        whale.errors.ScopeError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables
    )


def test_a_scope_that_is_never_closed() -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        scope = whale.replica(2)
        with tf.GradientTape() as tape:
            scope.__enter__()
            loss = tf.reduce_mean(x @ variables[0])
            if not wrong:
                scope.__exit__(None, None, None)
        descend(tape, loss, variables)
        return loss

    message = (
        "the step ended with a scope still open.\n"
        f"  in replica(2) opened at {Source(test_a_scope_that_is_never_closed).opened('scope.__enter__')}\n"
        "  Open scopes with `with`, which closes them."
    )
    check_refused(
        whale.errors.ScopeError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables
    )


NESTED: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "replica in replica": (
        lambda: (whale.replica(2), whale.replica(2)),
        "replica(2) is opened inside another replica scope.\n"
        "  at {inner}\n"
        "  in replica(2) opened at {outer}\n"
        "  Keep one of the two: replica(2) in replica(2) would be replica(4).",
    ),
    "stage in stage": (
        lambda: (whale.stage(), whale.stage()),
        "stage() is opened inside another stage scope.\n"
        "  at {inner}\n"
        "  in stage() opened at {outer}\n"
        "  Close the outer stage first: stages follow one another.",
    ),
    "replica in stage": (
        lambda: (whale.stage(), whale.replica(2)),
        "a stage cannot be replicated by itself.\n"
        "  in replica(2) opened at {place}\n"
        "  Put replica() around all the stages: every replica is then a pipeline of its own.",
    ),
}


@pytest.mark.parametrize("nesting", NESTED)
def test_scopes_that_do_not_nest(nesting: str) -> None:
    variables = weights(1)
    make, message = NESTED[nesting]

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        outer, inner = make() if wrong else (whale.replica(2), whale.stage())
        with tf.GradientTape() as tape:
            with outer:
                with inner:
                    loss = tf.reduce_mean(x @ variables[0])
        descend(tape, loss, variables)
        return loss

    source = Source(test_scopes_that_do_not_nest)
    message = message.format(
        inner=source.at("with inner"), outer=source.opened("with outer"), place=source.opened("with inner")
    )
    check_refused(
        whale.errors.ScopeError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables
    )


def test_replica_scopes_that_differ() -> None:
    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            y = tf.reduce_mean(x)
        with whale.replica(4 if wrong else 2):
            return y + tf.reduce_mean(x)

    source = Source(test_replica_scopes_that_differ)
    message = (
        "the step has replica scopes that differ.\n"
        f"  in replica(2) opened at {source.opened('with whale.replica(2)')}\n"
        f"  in replica(4) opened at {source.opened('with whale.replica(4')}\n"
        "  The batch is cut once: give all of them the same count and shares, or write replica() for all but one."
    )
    check_refused(whale.errors.ScopeError, message, lambda: step(batch(), True), lambda: step(batch(), False))


def test_a_stage_beside_the_replicas_of_the_others() -> None:
    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with whale.replica(2):
            with whale.stage(name="inside"):
                y = x + 1
        with whale.stage(name="beside") if wrong else whale.replica(2):
            return tf.reduce_mean(y)

    source = Source(test_a_stage_beside_the_replicas_of_the_others)
    message = (
        "some stages are inside replica() and some are not.\n"
        f"  in stage 'beside' opened at {source.opened('with whale.stage(', turn=1)}\n"
        "  Put replica() around all of them."
    )
    check_refused(whale.errors.ScopeError, message, lambda: step(batch(), True), lambda: step(batch(), False))


def test_a_stage_of_several_devices() -> None:
    @whale.function
    def step(x: Any, devices: int) -> Any:
        with whale.stage(devices):
            return tf.reduce_mean(x)

    message = (
        "a stage on several devices has no split() inside, which says what is cut.\n"
        "  stage(2) asks for 2\n"
        f"  in stage(2) opened at {Source(test_a_stage_of_several_devices).opened('with whale.stage(devices)')}\n"
        "  Open it as `with whale.stage(devices=2), whale.split():`, or give it one device and put replica() around "
        "the stages to use more."
    )
    with pytest.warns(UserWarning, match="7 devices are left idle"):
        check_refused(whale.errors.PlanError, message, lambda: step(batch(), 2), lambda: step(batch(), 1))


def test_idle_devices_are_told_once_for_a_step() -> None:
    def idle(x: Any) -> Any:
        with whale.stage():
            return tf.reduce_mean(x)

    for step in (whale.function(idle), whale.function(idle)):
        with pytest.warns(UserWarning, match="7 devices are left idle"):
            step(batch(8))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(batch(4))  # another trace


@pytest.mark.parametrize("loop", ["while_loop", "autograph"])
def test_a_stage_inside_a_loop(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        def body(i: Any, h: Any) -> Any:
            with whale.stage():
                return i + 1, h + 1

        def plain(i: Any, h: Any) -> Any:
            return i + 1, h + 1

        if wrong and loop == "autograph":
            for _ in tf.range(3):
                with whale.stage():
                    x = x + 1
            return tf.reduce_mean(x)
        return tf.reduce_mean(tf.while_loop(lambda i, h: i < 3, body if wrong else plain, [0, x])[1])

    source = Source(test_a_stage_inside_a_loop)
    turn, function = (0, "body") if loop == "while_loop" else (1, "step")
    with pytest.raises(whale.errors.ScopeError) as refused:
        step(batch(), True)
    rule, traced_apart, *rest = str(refused.value).split("\n")
    assert rule == "stage() is opened inside control flow, which is one op of one stage."
    assert traced_apart.startswith("  TensorFlow traces 'while_body_")  # and a number that TensorFlow counts
    assert traced_apart.endswith("' apart: the body of a loop, or a branch")
    assert rest == [
        f"  at {source.at('with whale.stage()', turn=turn, function=function)}",
        "  Open the stage around the loop or branch, or write a Python loop, which is unrolled.",
    ]
    assert float(step(batch(), False)) == pytest.approx(3.5)


def test_a_loss_that_no_stage_computes() -> None:
    variables = weights()

    @whale.function
    def step(x: Any, wrong: bool) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage(name="first"):
                h = x @ variables[0]
            with whale.stage(name="last"):
                loss = tf.reduce_mean(h @ variables[1])
        if wrong:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(x @ variables[0] @ variables[1]))
        descend(tape, loss, variables)
        return loss

    source = Source(test_a_loss_that_no_stage_computes)
    message = (
        "the loss depends on no operation of any stage.\n"
        "  'Mean_1' is differentiated, and nothing it is computed from was made in a stage\n"
        f"  at {source.at('loss = tf.reduce_mean(tf.square')}\n"
        f"  in stage 'first' opened at {source.opened('with whale.stage(')}\n"
        f"  in stage 'last' opened at {source.opened('with whale.stage(', turn=1)}\n"
        "  Compute the model inside the stages, or leave the stages out."
    )
    check_refused(whale.errors.PlanError, message, lambda: step(batch(), True), lambda: step(batch(), False), variables)


def test_shares_that_cannot_be() -> None:
    source = Source(test_shares_that_cannot_be)
    here = test_shares_that_cannot_be.__name__
    with pytest.raises(whale.errors.ScopeError) as too_few:
        whale.replica(3, shares=[1, 2])
    assert str(too_few.value) == (
        "count and shares of a replica scope must agree.\n"
        "  count is 3, and there are 2 shares: [1, 2]\n"
        f"  at {source.at('whale.replica(3, shares', function=here)}\n"
        "  Give 3 shares, or leave the count out."
    )
    with pytest.raises(whale.errors.ScopeError) as negative:
        whale.replica(shares=[1, -2, 0])
    assert str(negative.value) == (
        "the shares of a replica scope must be finite numbers above 0, one per replica.\n"
        "  shares[1] is -2\n"
        "  shares[2] is 0\n"
        f"  at {source.at('whale.replica(shares=[1, -2, 0])', function=here)}\n"
        "  Write replica(shares=[2, 1]) to give the first of two replicas two thirds of the batch."
    )


def test_a_pattern_that_matches_no_layer() -> None:
    layers = [keras.layers.Dense(4, name="first"), keras.layers.Dense(4, name="second")]
    model = keras.Sequential([keras.layers.Input((4,)), *layers])

    @whale.function(micro_batches=2)
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(2):
            loss = tf.reduce_mean(tf.square(model(x)))
        descend(tape, loss, [variable.value for variable in model.trainable_variables])
        return loss

    source = Source(test_a_pattern_that_matches_no_layer)
    message = (
        "a pattern of annotate matches no layer.\n"
        "  'frist' matches nothing\n"
        "  there are: first, second\n"
        f"  at {source.at('lambda: whale.annotate', function='')}\n"
        "  A pattern must match a whole path: write 'encoder/.*' for all that is under encoder."
    ).replace(" in :", ":")
    check_refused(
        whale.errors.ScopeError,
        message,
        lambda: whale.annotate(model, {"frist": 0, "second": 1}),
        lambda: step(batch()) if whale.annotate(model, {"first": 0, "second": 1}) else None,
        model.trainable_variables,
    )
    assert step.plan.layout.stages == ("stage 0", "stage 1")
