"""Collectives within a process: TensorFlow's operations for a Reduce, the groups that run them, and steps that fail.

On logical CPU devices, with TensorFlow's ring in the place of NCCL: the plan is told that CPUs reduce as GPUs do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import WIDTH, batch, bounded, values, weights
from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.plan import buckets
from whale_tf.run.collectives import Expansion, Group, form_groups

EXAMPLES = 16
NO_FAULT = np.zeros(EXAMPLES, np.int32)
LARGE = 1024
CPUS = ("/job:localhost/replica:0/task:0/device:CPU:0", "/job:localhost/replica:0/task:0/device:CPU:1")
GPUS = tuple(name.replace("CPU", "GPU") for name in CPUS)
FLOAT = DType("float32")
PEERS = ("sum", "sum_1")


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "COLLECTIVE_KINDS", frozenset({"CPU"}))
    whale.init(4)


def reduce_of(*shapes: tuple[int, ...], scale: float = 1.0) -> Node:
    kinds = tuple(TensorType(FLOAT, Shape(shape)) for shape in shapes)
    inputs = tuple(Ref("g", index) for index in range(len(shapes)))
    attrs = {"T": FLOAT, "N": len(shapes), "devices": (0, 1), "scale": scale, "id": 0}
    return Node("sum", "Reduce", inputs, ("before",), attrs, kinds, device=0)


def test_a_single_gradient_is_reduced_as_it_is() -> None:
    expansion = Expansion(reduce_of((2, 3)), Group(CPUS), 16, PEERS)
    ready, made = expansion.nodes[0], expansion.nodes[-1]
    assert (ready.op, ready.inputs) == ("Identity", (Ref("g"),))
    assert (made.name, made.op, made.inputs[0]) == ("sum", "CollectiveReduceV2", Ref(ready.name))
    assert not expansion.parts


def test_several_gradients_are_one_buffer() -> None:
    expansion = Expansion(reduce_of((2, 3), (4,), scale=0.5), Group(CPUS), 16, PEERS[::-1])
    ops = [node.op for node in expansion.nodes if node.op != "Const"]
    assert ops == [
        "Reshape",
        "Reshape",
        "ConcatV2",
        "Identity",
        "CollectiveReduceV2",
        "Mul",
        "SplitV",
        "Reshape",
        "Reshape",
    ]
    constants = {node.name: node.attrs["value"] for node in expansion.nodes if node.op == "Const"}
    assert constants["sum/sizes"] == (6, 4)
    assert (constants["sum/shape0"], constants["sum/shape1"]) == ((2, 3), (4,))
    assert list(expansion.parts) == [Ref("sum"), Ref("sum", 1)]


def test_no_device_starts_before_all_have_what_they_give() -> None:
    """The one that a failing replica left waiting would be cancelled, and then all collectives of the process."""
    for peers in (PEERS, PEERS[::-1]):
        nodes = {node.name: node for node in Expansion(reduce_of((3,)), Group(CPUS), 16, peers).nodes}
        assert nodes["sum"].control == ("before", f"{peers[0]}/meeting")
        meeting = nodes.get(f"{peers[0]}/meeting")
        assert (meeting is not None) == (peers[0] == "sum"), "it is on one device"
        assert meeting is None or meeting.control == ("sum/ready", "sum_1/ready")


def test_gpus_are_told_to_use_nccl() -> None:
    for devices, hint in ((CPUS, b"ring"), (GPUS, b"nccl")):
        made = next(node for node in Expansion(reduce_of((3,)), Group(devices), 16, PEERS).nodes if node.name == "sum")
        assert made.attrs["communication_hint"] == hint


def test_a_group_has_one_key_in_whatever_order_its_devices_come() -> None:
    assert Group(CPUS).key == Group(CPUS[::-1]).key
    assert len({Group(CPUS).key, Group(GPUS).key, Group(CPUS[:1]).key}) == 3
    assert 0 <= Group(CPUS).key < 2**31


def test_groups_can_be_formed_again() -> None:
    groups = {group.key: group for group in (Group(CPUS), Group((CPUS[1], CPUS[0].replace("CPU:0", "CPU:2"))))}
    for _ in range(2):
        bounded(lambda: form_groups(groups))


def made(replicas: int, stages: int, micro_batches: int) -> tuple[Callable[..., Any], Sequence[Any]]:
    """A step that fails, long after the other replicas are done, on an example with a code above 50."""
    variables = weights(3)

    def checked(h: Any, code: Any) -> Any:
        faulty = tf.where(code > 50)
        large = tf.reshape(tf.tile(tf.gather_nd(h, faulty), [1, LARGE**2 // WIDTH]), [-1, LARGE, LARGE])
        late = tf.cast(large @ large @ large < 0, tf.int32)  # computed for faulty examples only, and 0
        code = tf.tensor_scatter_nd_add(code, faulty, late[:, 0, 0])
        tf.debugging.assert_less(code, 50, message="codes must be below 50")
        return h

    @whale.function(micro_batches=micro_batches)
    def step(x: Any, code: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(replicas):
            if stages == 1:
                loss = tf.reduce_mean(tf.square(checked(x @ variables[0] @ variables[1] @ variables[2], code)))
            else:
                with whale.stage():
                    h = x @ variables[0]
                with whale.stage():
                    loss = tf.reduce_mean(tf.square(checked(h @ variables[1] @ variables[2], code)))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        return loss

    return step, variables


@pytest.mark.usefixtures("on_cpus")
@pytest.mark.parametrize(
    ("replicas", "stages", "micro_batches", "example"),
    [(2, 1, 1, EXAMPLES - 1), (4, 1, 4, 0), (2, 2, 4, EXAMPLES - 1), (2, 2, 1, 0)],
)
def test_a_step_that_fails_while_others_wait_leaves_the_next_one_working(
    replicas: int, stages: int, micro_batches: int, example: int
) -> None:
    step, variables = made(replicas, stages, micro_batches)
    x, fault = batch(EXAMPLES), NO_FAULT.copy()
    fault[example] = 100
    for _ in range(2):  # the first call of all fails, too
        before = values(variables)
        for _ in range(2):
            with pytest.raises(tf.errors.InvalidArgumentError, match="codes must be below 50") as failed:
                bounded(lambda: step(x, fault))
            assert isinstance(failed.value, whale.errors.RunError)
            assert f"replica {replicas - 1 if example else 0}" in str(failed.value)
        for old, new in zip(before, values(variables), strict=True):
            np.testing.assert_array_equal(new, old)
        assert np.isfinite(bounded(lambda: step(x, NO_FAULT)))
    assert step.plan.collective  # type: ignore[attr-defined]
    assert step.verify(x, NO_FAULT).largest < 1e-5  # type: ignore[attr-defined]


@pytest.mark.usefixtures("on_cpus")
def test_steps_of_other_groups_and_batches_take_turns() -> None:
    """Each has its own numbers; a failure of one is none of the other's."""
    fault = np.full(EXAMPLES, 100, np.int32)
    both = [made(2, 1, 1)[0], made(4, 1, 1)[0]]
    for examples in (16, 12, 16, 9):
        for step in both:
            assert np.isfinite(bounded(partial(step, batch(examples), NO_FAULT[:examples])))
        with pytest.raises(tf.errors.InvalidArgumentError):
            bounded(partial(both[0], batch(examples), fault[:examples]))


ABORTED = """
import numpy as np, tensorflow as tf
from tensorflow.python.eager import context
import whale_tf as whale
from whale_tf.plan import buckets

buckets.COLLECTIVE_KINDS = frozenset({"CPU"})
whale.init(2)
variable = tf.Variable(np.eye(4, dtype=np.float32))

@whale.function
def step(x):
    with tf.GradientTape() as tape, whale.replica():
        loss = tf.reduce_mean(tf.square(x @ variable))
    variable.assign_sub(0.1 * tape.gradient(loss, variable))
    return loss

step(np.ones((4, 4), np.float32))
context.context().abort_collective_ops(tf.errors.INTERNAL, "a link is broken")
try:
    step(np.ones((4, 4), np.float32))
except whale.errors.RunError as error:
    print(error)
"""


def test_collectives_that_broke_by_themselves_need_a_new_process() -> None:
    done = subprocess.run([sys.executable, "-c", ABORTED], capture_output=True, text=True, timeout=300, check=True)
    assert "a link is broken" in done.stdout
    assert done.stdout.rstrip().endswith(
        "The variables are as before this call. TensorFlow's collectives are broken: start the process again."
    ), done.stdout
