"""Calls that TensorFlow inlines: what a device then runs is still one action after the other, on that device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.eager import context  # private; tried with 2.21

import whale_tf as whale
from whale_tf.run.step import Step

NO_WORK = ("Const", "_Send", "_Recv")  # transfers have the names of the calls on both sides
CALL = re.compile(r"r\d+/\d+[FBIW]\d+(?=/)")


def built(schedule: str) -> Step:
    """Two replicas of two stages."""
    whale.init(4)
    first, second = (tf.Variable(tf.random.stateless_normal([3, 3], (1, seed))) for seed in (2, 3))

    @whale.function(micro_batches=4, schedule=schedule)
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica(2):
            with whale.stage():
                h = tf.nn.relu(x @ first)
            with whale.stage():
                y = tf.tanh(h @ second)
                loss = tf.reduce_mean(y * y)
        for variable, gradient in zip((first, second), tape.gradient(loss, (first, second)), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    return step


def graphs_that_ran(step: Step, *args: Any) -> dict[str, graph_pb2.GraphDef]:
    """What each device runs of the main graph, after TensorFlow has inlined and optimized it."""
    context.context().enable_graph_collection()
    try:
        step(*args)
    finally:
        found = context.context().export_run_metadata().partition_graphs
        context.context().disable_graph_collection()
    return {graph.node[0].device: graph for graph in found if any(CALL.search(node.name) for node in graph.node)}


def waited_for(graph: graph_pb2.GraphDef) -> Mapping[str, set[str]]:
    """For each node all that it waits for on its device; a graph of TensorFlow is no circle."""
    inputs = {node.name: [text.lstrip("^").split(":")[0] for text in node.input] for node in graph.node}
    found: dict[str, set[str]] = {}
    while len(found) < len(inputs):
        for name, before in inputs.items():
            if name not in found and all(each in found for each in before):
                found[name] = set(before).union(*(found[each] for each in before))
    return found


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zero_bubble"])
def test_inlined_calls_of_a_device_run_one_after_the_other(schedule: str) -> None:
    step = built(schedule)
    graphs = graphs_that_ran(step, tf.random.stateless_normal([16, 3], (4, 5)))
    program = step.compiled.program
    assert program.inline and program.ordered
    for index, device in enumerate(program.devices):
        calls = [node.name for node in program.main if node.op == "Call" and node.device == index]
        assert len(calls) >= 8
        waits, of_call = waited_for(graphs[device]), _by_call(graphs[device])
        for before, after in pairwise(calls):
            assert of_call[before] and of_call[after]
            early = {(name, other) for name in of_call[after] for other in of_call[before] if other not in waits[name]}
            assert not early


def _by_call(graph: graph_pb2.GraphDef) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in graph.node:
        call = CALL.search(node.name)
        if call is not None and node.op not in NO_WORK:
            found.setdefault(call[0], []).append(node.name)
    return found


def test_what_is_inlined_runs_on_the_device_of_its_call() -> None:
    step = built("1f1b")
    graphs = graphs_that_ran(step, tf.random.stateless_normal([16, 3], (4, 5)))
    program = step.compiled.program
    device_of = {
        f"{call.name}/{node.name}": program.devices[call.device]
        for call in program.main
        if call.op == "Call"
        for node in program.functions[call.attrs["function"].decode()].graph
    }
    found = [(node.name, device) for device, graph in graphs.items() for node in graph.node if node.name in device_of]
    assert len(found) > len(device_of) // 4  # those that TensorFlow has not replaced
    assert all(device_of[name] == device for name, device in found)
