"""The graph file of a step: TensorBoard's parser reads it, and it is the program that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.util import event_pb2

import whale_tf as whale
from tests.equivalence.models import cross_entropy, dense
from whale_tf.run.graph_file import save_graph
from whale_tf.run.step import Step

WIDTH = 4


@pytest.fixture(scope="module")
def step() -> Step:
    """Two replicas of two stages, the second with a name; one Dense layer each."""
    whale.init(4)
    layers = [dense(WIDTH, WIDTH), dense(WIDTH, WIDTH)]
    variables = [variable.value for layer in layers for variable in layer.trainable_variables]

    @whale.function(micro_batches=2)
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape, whale.replica():
            with whale.stage():
                x = layers[0](x)
            with whale.stage(name="the head"):
                loss = cross_entropy(y, layers[1](x))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    step.prepare(tf.ones([8, WIDTH]), tf.zeros([8], tf.int32))
    return step


@pytest.fixture(scope="module")
def graph(step: Step, tmp_path_factory: pytest.TempPathFactory) -> graph_pb2.GraphDef:
    """What is in the one file of the folder."""
    folder = tmp_path_factory.mktemp("logs") / "graph"
    save_graph(step.compiled, folder)
    graphs = [event.graph_def for event in events_of(folder) if event.graph_def]
    assert len(graphs) == 1
    return graph_pb2.GraphDef.FromString(graphs[0])


def events_of(folder: Path) -> Iterator[event_pb2.Event]:
    (file,) = folder.iterdir()
    assert "tfevents" in file.name  # by this TensorBoard finds it
    for record in tf.data.TFRecordDataset(str(file)):
        yield event_pb2.Event.FromString(record.numpy())


def nodes_of(graph: graph_pb2.GraphDef) -> dict[str, Any]:
    return {node.name: node for node in graph.node}


def test_each_action_is_a_call_in_the_scope_of_its_replica_and_stage(step: Step, graph: graph_pb2.GraphDef) -> None:
    calls = {node.name for node in graph.node if node.op == "StatefulPartitionedCall"}
    stages = ["stage_0", "stage_1_the_head"]
    actions = [action for row in step.schedule.by_class[0].rows for action in row]
    assert calls == {f"replica_{r}/{stages[action.stage]}/{action}" for r in range(2) for action in actions}


def test_what_the_step_takes_has_the_users_names(graph: graph_pb2.GraphDef) -> None:
    taken = [node.name for node in graph.node if node.op == "Placeholder"]
    assert len([name for name in taken if name.startswith("inputs/")]) == 2
    assert {name for name in taken if name.endswith(("kernel", "bias"))} == set(taken[2:])
    assert all(name.startswith("variables/") for name in taken[2:])


def test_nodes_keep_their_devices(step: Step, graph: graph_pb2.GraphDef) -> None:
    node = nodes_of(graph)["replica_1/stage_0/0F0"]
    assert node.device == step.plan.layout.devices[2]
    assert len(node.attr["_output_shapes"].list.shape) == len(node.attr["Tout"].list.type)


def test_each_function_that_is_called_is_in_the_library(graph: graph_pb2.GraphDef) -> None:
    called = {node.attr["f"].func.name for node in graph.node if node.op == "StatefulPartitionedCall"}
    assert called == {function.signature.name for function in graph.library.function}


def test_a_receive_waits_for_its_send(graph: graph_pb2.GraphDef) -> None:
    nodes = nodes_of(graph)
    for node in graph.node:
        if node.op == "_Recv":
            sent = nodes[node.input[0].removeprefix("^")]
            assert (sent.op, sent.attr["tensor_name"].s) == ("_Send", node.attr["tensor_name"].s)


def test_tensorflow_accepts_the_graph(graph: graph_pb2.GraphDef) -> None:
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
    assert len(imported.get_operations()) == len(graph.node)
