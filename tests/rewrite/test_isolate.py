"""An isolated step: each operation takes what is given, and none waits for another."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from tests.plan.traced import trace
from tests.rewrite.steps import TRAINING, resolved
from whale_tf.ir.graph import Ref
from whale_tf.ir.verify import verify
from whale_tf.plan.states import Choices, States
from whale_tf.rewrite.isolate import Isolated, isolate

HOST = "/device:CPU:0"
VALUES = ("x", "w0", "w1", "h", "a", "z", "loss", "dz", "d1", "da", "dh", "d0", "g0", "g1", "n0", "n1")


def isolated(states: States, given: Iterable[Ref]) -> Isolated:
    made = isolate(states, list(given), HOST)
    verify(made.program.main, after="isolate")
    return made


def operands(given: Isolated, name: str) -> list[str]:
    """What a node takes: a tensor of the step that is given, or a node."""
    main = given.program.main
    return [
        f"given {given.given[main[ref.node].attrs['index']]}" if main[ref.node].op == "Take" else str(ref)
        for ref in main[name].inputs
    ]


def test_an_operation_takes_what_is_given_in_the_place_of_results() -> None:
    given = isolated(resolved(TRAINING, 8), map(Ref, VALUES))
    assert operands(given, "h") == ["given x", "given w0"]
    assert operands(given, "a") == ["given h"]
    assert operands(given, "dh") == ["given da", "given a"]


def test_what_is_not_given_is_computed() -> None:
    given = isolated(resolved(TRAINING, 8), (Ref(name) for name in VALUES if name != "h"))
    assert operands(given, "a") == ["h"]
    assert operands(given, "h") == ["given x", "given w0"]
    assert Ref("h") not in given.compared


def test_all_that_is_given_and_computed_is_compared() -> None:
    given = isolated(resolved(TRAINING, 8), map(Ref, VALUES))
    assert set(given.compared) == {Ref(name) for name in VALUES} - {Ref("x"), Ref("w0"), Ref("w1")}


def test_a_gradient_is_what_it_takes_before_it_is_merged() -> None:
    given = isolated(resolved(TRAINING, 8), map(Ref, VALUES))
    assert operands(given, "g0") == ["given d0"]


def test_it_changes_nothing() -> None:
    main = isolated(resolved(TRAINING, 8), map(Ref, VALUES)).program.main
    assert not main.effects
    assert not [node.name for node in main if node.op in ("Assign", "Read")]


def test_what_draws_from_a_hidden_counter_is_left_out_and_what_follows_is_not() -> None:
    traced = trace(lambda x: {"drawn": tf.random.uniform(tf.shape(x)), "y": 2.0 * tf.random.uniform(tf.shape(x)) + x})
    states = traced.derived()
    refs = [Ref(node.name) for node in traced.sizes.graph]
    names = {traced.sizes.graph[ref.node].op for ref in isolated(states, refs).compared}
    assert "RandomUniform" not in names
    assert names >= {"Mul", "AddV2"}


def test_what_each_part_has_of_its_own_is_left_out_and_what_follows_is_not() -> None:
    traced = trace(lambda x: {"y": tf.tanh(x - tf.reduce_mean(x, axis=0))})
    graph = traced.sizes.graph
    (mean,) = [node.name for node in graph if node.op == "Mean"]
    states = traced.derived(Choices(accepted=frozenset({mean})))
    compared = {graph[ref.node].op for ref in isolated(states, (Ref(node.name) for node in graph)).compared}
    assert compared == {"Tanh"}
