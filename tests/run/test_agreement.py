"""What processes compare before they run a step: real ranks over a real hub, each in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

from whale_tf.capture.outside import Outside
from whale_tf.capture.record import record
from whale_tf.capture.translate import translate
from whale_tf.errors import PlanError
from whale_tf.ir.graph import Graph
from whale_tf.run.processes import World, agree, program_text
from whale_tf.world import Environment, Hub, Member

SIZE = 3
SECONDS = 20.0


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    hub = Hub(SIZE)
    address = hub.start()
    members = [Member(Environment(rank, SIZE, "test"), address, lambda message: None) for rank in range(SIZE)]
    yield [World(member.rank, SIZE, member, SECONDS) for member in members]
    for member in members:
        member.leave()
    hub.stop()


def outcomes(worlds: Sequence[World], act: Callable[[World], None]) -> list[str]:
    """What each rank's part ends with: the message of its error, or nothing."""

    def ended(world: World) -> str:
        try:
            act(world)
        except PlanError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(SIZE) as threads:
        return list(threads.map(ended, worlds))


def test_ranks_that_agree_go_on(worlds: list[World]) -> None:
    def act(world: World) -> None:
        agree(world, "train", {"plan": "aa", "graph": "bb"}, lambda: pytest.fail("the text is not needed"))

    assert outcomes(worlds, act) == [""] * SIZE


def test_ranks_that_differ_are_named_on_all_of_them_alike(worlds: list[World]) -> None:
    def act(world: World) -> None:
        width = 5 if world.rank == 1 else 4
        facts = {"inputs": "x [8, 4]", "graph": f"{width}{width}"}
        agree(world, "train", facts, lambda: f"graph\n  w = Variable() : float32[{width}]\n  end")

    told = outcomes(worlds, act)
    assert set(told) == {
        "the processes do not run the same step 'train'.\n"
        "  graph: ranks 0 and 2: 44\n"
        "  graph: rank 1: 55\n"
        "  ranks 0 and 2: line 2: w = Variable() : float32[4]\n"
        "  rank 1: line 2: w = Variable() : float32[5]\n"
        "  Run the same script with the same arguments and inputs of the same shapes in every process; "
        "what depends on the rank may only be outside the step."
    }


def test_a_shorter_program_has_nothing_where_it_ends(worlds: list[World]) -> None:
    def act(world: World) -> None:
        text = "a\nb" if world.rank else "a"
        agree(world, "train", {"graph": text}, lambda: text)

    assert "rank 0: line 2: (nothing)\n  ranks 1 and 2: line 2: b" in outcomes(worlds, act)[0]


def traced(before: int) -> tuple[Graph, dict[str, Graph]]:
    """A loop with a custom gradient, traced after other functions: its graph and its bodies."""

    @tf.custom_gradient
    def clipped(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return x, lambda dy: tf.clip_by_value(dy, -1.0, 1.0)

    def step(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(
            lambda i, x: i < 3, lambda i, x: (i + 1, clipped(tf.cond(x > 0, lambda: x, lambda: -x))), (0, x)
        )[1]

    for _ in range(before):
        tf.function(lambda x: tf.cond(x > 0, lambda: x, lambda: -x)).get_concrete_function(
            tf.TensorSpec([], tf.float32)
        )
    trace = record(step, lambda tensors: (tuple(tensors), {}), [tf.TensorSpec([], tf.float32)], "step")
    captured = translate(trace, [False], Outside())
    return captured.graph, captured.calls


def test_how_many_functions_were_traced_before_does_not_matter() -> None:
    assert program_text(*traced(0)) == program_text(*traced(7))


def test_the_bodies_of_functions_matter() -> None:
    graph, bodies = traced(0)
    changed = bodies["while/body/while/cond/else_branch"].rewritten(
        lambda node: node.with_(op="Abs") if node.op == "Neg" else node
    )
    assert program_text(graph, bodies) != program_text(graph, {**bodies, "while/body/while/cond/else_branch": changed})


def test_functions_that_are_not_named_do_not_matter() -> None:
    graph, bodies = traced(0)
    assert program_text(graph, {**bodies, "another": graph}) == program_text(graph, bodies)
