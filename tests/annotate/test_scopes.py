"""Scopes are recorded in order, stamped on the ops inside, and refused where they cannot be."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from whale_tf.annotate.cluster import VirtualDevice
from whale_tf.annotate.lines import user_line
from whale_tf.annotate.scopes import ATTRIBUTE, NumberedStage, Recording, Scope, recording, replica, stage
from whale_tf.errors import Line, ScopeError

FILE = __file__.removeprefix(os.getcwd() + os.sep)


def place(marker: str) -> str:
    """`file:line` of the one line here that ends with a comment of one word."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i + 1 for i, text in enumerate(lines) if text.endswith(f"  # {marker}")]
    return f"{FILE}:{number}"


def line(marker: str, function: str) -> str:
    """How a message gives that line."""
    text = Path(__file__).read_text().splitlines()[int(place(marker).rsplit(":", 1)[1]) - 1]
    return f"{place(marker)} in {function}: {text.strip()}"


def trace(step: Callable[..., Any], *, autograph: bool = False) -> tuple[Recording, tf.Graph]:
    """Traces a step of one vector."""
    with recording() as record:
        graph = tf.function(step, autograph=autograph).get_concrete_function(tf.TensorSpec([2], name="x")).graph
    return record, graph


def stamps(graph: tf.Graph, kind: str) -> list[str]:
    """The keys on the ops of one type, in order; empty where there is none."""
    ops = [op for op in graph.get_operations() if op.type == kind]
    return [op.get_attr(ATTRIBUTE).decode() if ATTRIBUTE in op.node_def.attr else "" for op in ops]


def refusal(step: Callable[..., Any]) -> str:
    with pytest.raises(ScopeError) as caught:
        trace(step)
    return str(caught.value)


def test_op_is_stamped_with_the_innermost_scope() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        x = tf.exp(x)
        with replica(2):
            x = tf.exp(x)
            with stage():
                x = tf.exp(x)
            with stage(2, name="head"):
                x = tf.exp(x)
            x = tf.exp(x)
        return tf.exp(x)

    record, graph = trace(step)
    assert stamps(graph, "Exp") == ["", "r0", "s0", "s1", "r0", ""]
    assert [(o.key, o.kind, o.name, o.parent, o.count, o.devices) for o in record.opened] == [
        ("r0", "replica", "", "", 2, 1),
        ("s0", "stage", "", "r0", None, 1),
        ("s1", "stage", "head", "r0", None, 2),
    ]


def test_same_name_continues_a_stage_and_no_name_begins_one() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        for _ in range(2):
            with stage(name="a"):
                x = tf.exp(x)
            with stage():
                x = tf.exp(x)
        return x

    record, graph = trace(step)
    assert stamps(graph, "Exp") == ["s0", "s1", "s0", "s2"]
    assert [opened.name for opened in record.opened] == ["a", "", ""]


def test_same_value_continues_a_stage_in_every_recording() -> None:
    kept = stage()

    def step(x: tf.Tensor) -> tf.Tensor:
        with stage():
            x = tf.exp(x)
        for _ in range(2):
            with kept:
                x = tf.exp(x)
        return x

    for _ in range(2):
        assert stamps(trace(step)[1], "Exp") == ["s0", "s1", "s1"]


def test_replica_scopes_that_agree_are_one_and_stages_go_on_in_the_second() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        for scope in (replica(), replica(2), replica(2), replica(shares=[3, 3])):
            with scope, stage(name="a"):
                x = tf.exp(x)
        return x

    record, graph = trace(step)
    assert [(o.key, o.parent, o.count) for o in record.opened] == [("r0", "", 2), ("s0", "r0", None)]
    assert stamps(graph, "Exp") == ["s0"] * 4


@pytest.mark.parametrize("other", [replica(3), replica(shares=[2, 1])], ids=["count", "shares"])
def test_replica_scopes_that_differ_are_two(other: replica) -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        for scope in (replica(2), other, other):
            with scope:
                x = tf.exp(x)
        return x

    assert [(o.key, o.count) for o in trace(step)[0].opened] == [("r0", 2), ("r1", other.count)]


def test_shares_that_have_the_same_ratios_agree() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        for scope in (replica(shares=[2, 1]), replica(shares=[4, 2])):
            with scope:
                x = tf.exp(x)
        return x

    assert [(o.key, o.shares) for o in trace(step)[0].opened] == [("r0", (2.0, 1.0))]


def test_replica_inside_stage_is_recorded() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with stage(), replica(shares=[2, 1]):
            return tf.exp(x)

    record, graph = trace(step)
    assert stamps(graph, "Exp") == ["r0"]
    assert [(o.key, o.parent, o.count, o.shares) for o in record.opened] == [
        ("s0", "", None, None),
        ("r0", "s0", 2, (2.0, 1.0)),
    ]


def test_scopes_print_as_written_and_opened_with_their_line() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with replica():  # everything
            with stage():  # plain
                x = tf.exp(x)
            with stage(2):  # wide
                x = tf.exp(x)
            with stage(name="a"):  # named
                x = tf.exp(x)
        return x

    def other(x: tf.Tensor) -> tf.Tensor:
        with replica():
            x = tf.exp(x)
        with replica(shares=(1, 0.5)):  # uneven
            return tf.exp(x)

    assert [str(opened) for opened in trace(step)[0].opened] == [
        f"replica() opened at {place('everything')}",
        f"stage() opened at {place('plain')}",
        f"stage(2) opened at {place('wide')}",
        f"stage 'a' opened at {place('named')}",
    ]
    assert [str(opened) for opened in trace(other)[0].opened] == [
        f"replica(shares=[1, 0.5]) opened at {place('uneven')}"
    ], "the line that says how many"
    assert str(stage(2, name="a")) == "stage(devices=2, name='a')"


@pytest.mark.parametrize("autograph", [False, True])
def test_lines_are_the_users(autograph: bool) -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        if tf.executing_eagerly():
            return x
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(stage())  # entered
            for _ in range(2):
                x = tf.keras.layers.Activation("tanh")(x)  # called
        return x

    record, graph = trace(step, autograph=autograph)
    assert str(record.opened[0].line) == line("entered", "step")
    (tanh, _) = [op for op in graph.get_operations() if op.type == "Tanh"]
    assert str(user_line(tanh.traceback)) == line("called", "step")


def test_line_of_a_module_has_no_function() -> None:
    found: dict[str, Line] = {}
    exec(compile("found['line'] = user_line()", FILE, "exec"), {"found": found, "user_line": user_line})
    assert (found["line"].file, found["line"].number, found["line"].function) == (FILE, 1, "")


def test_scopes_do_nothing_outside_a_recording() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with stage(), replica(2), stage(), replica(2):
            return tf.exp(x)

    assert step(tf.zeros(2)).numpy().tolist() == [1.0, 1.0]
    graph = tf.function(step).get_concrete_function(tf.TensorSpec([2])).graph
    assert stamps(graph, "Exp") == [""]


def test_threads_record_apart() -> None:
    both, records = threading.Barrier(2, timeout=60), {}

    def step(x: tf.Tensor) -> tf.Tensor:
        with stage(name=threading.current_thread().name):
            both.wait()
            return tf.exp(x)

    def run() -> None:
        records[threading.current_thread().name] = trace(step)[0].opened

    threads = [threading.Thread(target=run, name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: [(o.key, o.name) for o in opened] for name, opened in records.items()} == {
        "one": [("s0", "one")],
        "two": [("s0", "two")],
    }


def test_eager_code_inside_a_step_is_not_recorded() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.init_scope(), stage():
            tf.zeros(2)
        return tf.exp(x)

    record, graph = trace(step)
    assert record.opened == () and stamps(graph, "Exp") == [""]


def test_error_in_a_scope_leaves_nothing_behind() -> None:
    def fails(x: tf.Tensor) -> tf.Tensor:
        with replica(), stage():
            raise KeyError("mine")

    def step(x: tf.Tensor) -> tf.Tensor:
        with contextlib.suppress(KeyError):
            fails(x)
        return tf.exp(x)

    with pytest.raises(KeyError, match="mine"):
        trace(fails)
    assert stamps(trace(step)[1], "Exp") == [""]


def test_recording_can_begin_inside_the_graph() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with recording() as record, stage():
            x = tf.exp(x)
        assert [opened.key for opened in record.opened] == ["s0"]
        return x

    assert stamps(tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec([2])).graph, "Exp") == ["s0"]


def test_numbered_stage_takes_over_from_another() -> None:
    first, second = (NumberedStage(index, Line("train.py", 7)) for index in (0, 1))

    def step(x: tf.Tensor) -> tf.Tensor:
        with replica(), second:
            x = tf.exp(x)
            with first:
                x = tf.exp(x)
                with first:
                    x = tf.exp(x)
            x = tf.while_loop(lambda x: x[0] < 3, lambda x: [inside(x, second)], [x])[0]
            return tf.exp(x)

    def inside(x: tf.Tensor, scope: Scope) -> tf.Tensor:
        with scope:
            return tf.tanh(x)

    record, graph = trace(step)
    assert stamps(graph, "Exp") == ["s0", "s1", "s1", "s0"]
    assert stamps(graph, "While") + stamps(graph, "StatelessWhile") == ["s0"]
    assert [(o.key, o.index, o.parent, str(o)) for o in record.opened[1:]] == [
        ("s0", 1, "r0", "stage 1 annotated at train.py:7"),
        ("s1", 0, "r0", "stage 0 annotated at train.py:7"),
    ]


def test_rejects_replica_in_replica() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with replica(2), stage():  # outer2
            x = tf.exp(x)
            with replica():  # inner2
                return x

    assert refusal(step) == (
        "replica() is opened inside another replica scope.\n"
        f"  at {line('inner2', 'step')}\n"
        f"  in replica(2) opened at {place('outer2')}\n"
        "  Keep one of the two: replica(2) in replica(2) would be replica(4)."
    )


def test_rejects_stage_in_stage() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with stage(name="a"):  # outer3
            x = tf.exp(x)
            with stage():  # inner3
                return x

    assert refusal(step) == (
        "stage() is opened inside another stage scope.\n"
        f"  at {line('inner3', 'step')}\n"
        f"  in stage 'a' opened at {place('outer3')}\n"
        "  Close the outer stage first: stages follow one another."
    )


def test_rejects_annotated_layer_in_a_stage() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with stage():  # outer4
            x = tf.exp(x)
            with NumberedStage(1, Line("train.py", 7)):  # inner4
                return x

    assert refusal(step) == (
        "stage 1 is opened inside another stage scope.\n"
        f"  at {line('inner4', 'step')}\n"
        f"  in stage() opened at {place('outer4')}\n"
        "  Say the stage of a layer once: with `annotate`, or with a `with` around or inside its call."
    )


def test_rejects_other_devices_for_the_same_stage() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        with stage(2, name="a"):  # two
            x = tf.exp(x)
        with stage(VirtualDevice((0, 1)), name="a"):  # named2
            return x

    assert refusal(step) == (
        "stage 'a' is opened again with other devices.\n"
        f"  devices was 2, and is {VirtualDevice((0, 1))} now\n"
        f"  at {line('named2', 'step')}\n"
        f"  in stage 'a' opened at {place('two')}\n"
        "  Give the same devices each time, or another name for another stage."
    )


def test_rejects_scopes_in_loops_and_branches() -> None:
    def body(x: tf.Tensor) -> tf.Tensor:
        with stage():  # body
            return x + 1.0

    def loop(x: tf.Tensor) -> tf.Tensor:
        with stage():
            return tf.while_loop(lambda x: x[0] < 3, lambda x: [body(x)], [x])[0]

    def branch(x: tf.Tensor) -> tf.Tensor:
        return tf.cond(x[0] > 0, lambda: body(x), lambda: x)

    for step, graph in ((loop, "while_body_"), (branch, "cond_true_")):
        rule, details, *rest = refusal(step).split("\n")
        assert rule == "stage() is opened inside control flow, which is one op of one stage."
        assert details.startswith(f"  TensorFlow traces '{graph}")
        assert details.endswith("' apart: the body of a loop, or a branch")
        assert "\n".join(rest) == (
            f"  at {line('body', 'body')}\n"
            "  Open the stage around the loop or branch, or write a Python loop, which is unrolled."
        )


def test_rejects_scopes_in_a_nested_function() -> None:
    @tf.function(autograph=False)
    def inner(x: tf.Tensor) -> tf.Tensor:
        with replica(2):  # nested
            return x + 1.0

    assert refusal(lambda x: inner(x)) == (
        "replica(2) is opened inside a function that is traced apart from the step.\n"
        "  TensorFlow keeps the trace of 'inner' and would not open the scope again\n"
        f"  at {line('nested', 'inner')}\n"
        "  Open the replica around the call, or take the tf.function away: the step is traced whole."
    )


def test_rejects_closing_out_of_order() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        outer, inner = stage(name="a"), replica(2)
        outer.__enter__()  # outer5
        inner.__enter__()  # inner5
        outer.__exit__(None, None, None)  # close5
        return x

    assert refusal(step) == (
        "stage 'a' is closed before replica(2) inside it.\n"
        f"  at {line('close5', 'step')}\n"
        f"  in replica(2) opened at {place('inner5')}\n"
        f"  in stage 'a' opened at {place('outer5')}\n"
        "  Close scopes in the reverse order of opening; `with` does."
    )


def test_rejects_closing_what_is_not_open() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        stage(name="a").__exit__(None, None, None)  # close6
        return x

    assert refusal(step) == (
        "stage 'a' is closed, but is not open.\n"
        f"  at {line('close6', 'step')}\n"
        "  Open scopes with `with`, inside the step."
    )


def test_rejects_a_scope_left_open() -> None:
    def step(x: tf.Tensor) -> tf.Tensor:
        stage(name="a").__enter__()  # open7
        return x

    assert refusal(step) == (
        "the step ended with a scope still open.\n"
        f"  in stage 'a' opened at {place('open7')}\n"
        "  Open scopes with `with`, which closes them."
    )


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", True])
def test_rejects_a_count_that_cannot_be(count: Any) -> None:
    with pytest.raises(ScopeError) as caught:
        replica(count)  # count
    assert str(caught.value) == (
        "the count of a replica scope must be a whole number, 1 or more.\n"
        f"  count is {count!r}\n"
        f"  at {line('count', 'test_rejects_a_count_that_cannot_be')}\n"
        "  Write replica(2) for two replicas, or replica() for as many as the devices allow."
    )


@pytest.mark.parametrize(
    ("shares", "details"),
    [
        ([1, 0, -2.0], ["shares[1] is 0", "shares[2] is -2.0"]),
        ([math.nan, math.inf, 10**400], ["shares[0] is nan", "shares[1] is inf", f"shares[2] is {10**400}"]),
        (["1", True], ["shares[0] is '1'", "shares[1] is True"]),
        ([], ["shares is []"]),
        (2, ["shares is 2"]),
        ("21", ["shares is '21'"]),
    ],
)
def test_rejects_shares_that_cannot_be(shares: Any, details: list[str]) -> None:
    with pytest.raises(ScopeError) as caught:
        replica(shares=shares)  # shares
    assert str(caught.value) == "\n".join(
        [
            "the shares of a replica scope must be finite numbers above 0, one per replica.",
            *(f"  {detail}" for detail in details),
            f"  at {line('shares', 'test_rejects_shares_that_cannot_be')}",
            "  Write replica(shares=[2, 1]) to give the first of two replicas two thirds of the batch.",
        ]
    )


def test_rejects_count_and_shares_that_disagree() -> None:
    with pytest.raises(ScopeError) as caught:
        replica(3, shares=[2, 1])  # both
    assert str(caught.value) == (
        "count and shares of a replica scope must agree.\n"
        "  count is 3, and there are 2 shares: [2, 1]\n"
        f"  at {line('both', 'test_rejects_count_and_shares_that_disagree')}\n"
        "  Give 3 shares, or leave the count out."
    )
    assert replica(2, shares=(2, 1)).count == 2


@pytest.mark.parametrize("devices", [0, -1, 1.0, True, None, (0, 1)])
def test_rejects_devices_that_cannot_be(devices: Any) -> None:
    with pytest.raises(ScopeError) as caught:
        stage(devices)  # devices
    assert str(caught.value) == (
        "the devices of a stage must be a whole number, 1 or more, or a VirtualDevice.\n"
        f"  devices is {devices!r}\n"
        f"  at {line('devices', 'test_rejects_devices_that_cannot_be')}\n"
        "  Write stage() for one device, stage(2) for two, or pass a VirtualDevice."
    )


@pytest.mark.parametrize("name", ["", 3])
def test_rejects_names_that_cannot_be(name: Any) -> None:
    with pytest.raises(ScopeError) as caught:
        stage(name=name)  # name
    assert str(caught.value) == (
        "the name of a stage must be a string that is not empty.\n"
        f"  name is {name!r}\n"
        f"  at {line('name', 'test_rejects_names_that_cannot_be')}\n"
        "  Write stage(name='encoder'), or leave the name out."
    )
