"""Mistakes with devices and with the global batch: too many asked for, too few given, sizes that disagree."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import tensorflow as tf

import whale_tf as whale
from tests.run.mistakes import Source, batch, check_refused, descend, weights
from whale_tf.annotate.devices import start_again


@pytest.fixture(autouse=True)
def devices() -> None:
    whale.init(8)


def pipeline(x: Any, stages: int) -> Any:
    """As many stages, each of which adds 1."""
    for _ in range(stages):
        with whale.stage():
            x = x + 1
    return tf.reduce_mean(x)


def test_devices_that_replicas_do_not_divide() -> None:
    @whale.function
    def step(x: Any, stages: int) -> Any:
        with whale.replica():
            return pipeline(x, stages)

    message = (
        "8 devices cannot be divided into replicas of 3.\n"
        "  a replica takes 3 devices, one for each stage, and 8 % 3 = 2\n"
        f"  in replica() opened at {Source(test_devices_that_replicas_do_not_divide).opened('with whale.replica()')}\n"
        "  Write replica(2), which leaves 2 idle, or call whale.init(6)."
    )
    check_refused(whale.errors.DeviceError, message, lambda: step(batch(), 3), lambda: step(batch(), 4))


@pytest.mark.parametrize(("there", "count"), [(8, 3), (2, None)])
def test_more_devices_than_there_are(there: int, count: int | None) -> None:
    whale.init(there)
    replicas = count or 1

    @whale.function
    def step(x: Any, stages: int) -> Any:
        with whale.replica(count):
            return pipeline(x, stages)

    replica = Source(test_more_devices_than_there_are).opened("with whale.replica")
    stage = Source(pipeline).opened("with whale.stage")
    message = (
        f"the step asks for {replicas * 3} devices and there are {there}.\n"
        f"  {replicas} replica{'s' * (replicas > 1)} x 3 devices each = {replicas * 3}\n"
        f"  stage() at {stage} was opened 3 times, and is 3 stages; with a name it is one\n"
        f"  in replica({count or ''}) opened at {replica}\n"
        + f"  in stage() opened at {stage}\n" * 3
        + "  "
        + (
            start_again("whale.init(9)")
            if replicas == 3
            else "Call whale.init(3) and then the step: TensorFlow has 8 devices here."
        )
        + " Or ask for fewer replicas or stages."
    )
    check_refused(whale.errors.DeviceError, message, lambda: step(batch(9), 3), lambda: step(batch(9), 2))


def test_init_after_tensorflow_started_with_other_devices() -> None:
    program = """
import tensorflow as tf, whale_tf as whale
tf.constant(1) + 1
try:
    whale.init(4)
except whale.errors.DeviceError as error:
    print(error)
whale.init()
step = whale.function(lambda x: tf.reduce_sum(x), micro_batches=2)
print(float(step(tf.ones([4]))))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == (
        "TensorFlow already started with 1 device.\n"
        "  4 logical CPU devices are asked for, 3 more than there are\n"
        f"  {start_again('whale.init(4)')}\n"
        "4.0\n"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_without_examples(count: int) -> None:
    variables = weights(1)

    @whale.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape, whale.replica(count):
            loss = tf.reduce_mean(x @ variables[0])
        descend(tape, loss, variables)
        return loss

    source = Source(test_a_batch_without_examples)
    message = (
        "the batch has no example.\n"
        "  x has dim 0 = 0\n"
        f"  at {source.at('@whale.function')}\n"
        f"  in replica({count}) opened at {source.opened('with tf.GradientTape')}\n"
        "  Give one example or more: a batch with fewer examples than parts runs with fewer parts."
    )
    check_refused(whale.errors.BatchError, message, lambda: step(batch(0)), lambda: step(batch(1)), variables)


def test_replicas_without_a_count_are_as_many_as_the_stages_leave_devices_for() -> None:
    @whale.function(micro_batches=4)
    def step(x: Any) -> Any:
        with whale.replica():
            return pipeline(x, 4)

    assert float(step(batch(8))) == pytest.approx(4.5)  # 8 replicas of one device each would be too many for 8 examples
    assert step.plan.layout.replicas == 2


@pytest.mark.parametrize("given", [3.0, tf.constant(3.0), tf.RaggedTensor, tf.SparseTensor])
def test_inputs_that_cannot_be_cut(given: Any) -> None:
    @whale.function
    def step(x: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(x)

    source = Source(test_inputs_that_cannot_be_cut)
    if given is tf.RaggedTensor:
        x = tf.ragged.constant([[1.0, 2.0], [3.0]])
        message = (
            "'x' is a RaggedTensor, which cannot be cut into replicas and micro-batches.\n"
            "  its shape is (2, None)\n"
            f"  at {source.at('@whale.function')}\n"
            "  Pass a dense tensor: x.to_tensor()."
        )
    elif given is tf.SparseTensor:
        x = tf.sparse.from_dense(batch(8))
        message = (
            "'x' is a SparseTensor, which cannot be cut into replicas and micro-batches.\n"
            "  its shape is (8, 4)\n"
            f"  at {source.at('@whale.function')}\n"
            "  Pass a dense tensor: tf.sparse.to_dense(x)."
        )
    else:
        x = given
        message = (
            "no input carries a batch that could be cut.\n"
            "  the step has 2 replicas x 1 micro-batch, and no argument that is cut is a tensor of rank 1 or more\n"
            f"  at {source.at('@whale.function')}\n"
            f"  in replica(2) opened at {source.opened('with whale.replica')}\n"
            "  Pass the batch to the step as tensors or arrays."
        )
    check_refused(whale.errors.BatchError, message, lambda: step(x), lambda: step(batch(8)))


def test_inputs_of_different_batch_sizes() -> None:
    @whale.function
    def step(x: Any, y: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(x) + tf.reduce_mean(y)

    message = (
        "the inputs have different batch sizes.\n"
        "  x has dim 0 = 8\n"
        "  y has dim 0 = 4\n"
        f"  at {Source(test_inputs_of_different_batch_sizes).at('@whale.function')}\n"
        "  Give all of them the same number of examples, "
        'or name what is not a batch: whale.function(whole=("y",)).'
    )
    right = batch(8)
    check_refused(whale.errors.BatchError, message, lambda: step(right, batch(4)), lambda: step(right, right))


def test_inputs_of_different_batch_sizes_in_one_argument() -> None:
    @whale.function
    def step(inputs: Any) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(inputs["x"])

    message = (
        "the inputs have different batch sizes.\n"
        "  inputs['mask'] has dim 0 = 4\n"
        "  inputs['x'] has dim 0 = 8\n"
        f"  at {Source(test_inputs_of_different_batch_sizes_in_one_argument).at('@whale.function')}\n"
        "  Give all of them the same number of examples, "
        "or pass what is not a batch as an argument of its own and name it: whale.function(whole=(name,))."
    )
    wrong, right = {"x": batch(8), "mask": batch(4)}, {"x": batch(8), "mask": batch(8)}
    check_refused(whale.errors.BatchError, message, lambda: step(wrong), lambda: step(right))


def test_a_step_that_is_another_program_at_another_size() -> None:
    seen = tf.Variable(0.0, trainable=False, name="seen")

    @whale.function
    def step(x: Any) -> Any:
        with whale.replica(2):
            mean = tf.reduce_mean(x)
            if x.shape[0] in (1, 7):
                seen.assign_add(mean)
            return mean

    message = (
        "the step is another program for another batch size.\n"
        + "".join(
            f"  traced for 7 and for {size} examples, it differs in 'seen' (Variable), 'AssignAddVariableOp' (AddV2), "
            "'AssignAddVariableOp/write' (Write)\n"
            for size in (14, 4, 3)
        )
        + "  two sizes give the step at that of every micro-batch\n"
        f"  at {Source(test_a_step_that_is_another_program_at_another_size).at('seen.assign_add')}\n"
        "  Let no Python `if` or loop depend on the size of the batch (use tf.cond, tf.while_loop or "
        "operations over the batch), or use one replica and micro_batches=1."
    )
    check_refused(whale.errors.CaptureError, message, lambda: step(batch(7)), lambda: step(batch(1)), [seen])


@pytest.mark.parametrize("converted", [True, False])
def test_a_fixed_batch_size_in_the_step(converted: bool) -> None:
    def reshaping(x: Any, size: int) -> Any:
        with whale.replica(2):
            return tf.reduce_mean(tf.reshape(x, [size, 2, 2]))

    step = whale.function(reshaping if converted else tf.autograph.experimental.do_not_convert(reshaping))
    source = Source(test_a_fixed_batch_size_in_the_step)
    with pytest.raises(whale.errors.CaptureError) as refused:
        step(batch(8), 8)
    rule, larger, smaller, why, line, way_out = str(refused.value).split("\n")
    assert rule == "the step can be traced for 8 examples, and not for 16 or 4."
    assert larger.startswith("  for 16 examples: ValueError: Cannot reshape a tensor with 64 elements to shape [8,2,2]")
    assert smaller.startswith("  for 4 examples: ValueError: Cannot reshape a tensor with 16 elements to shape [8,2,2]")
    assert why == "  two sizes give the step at that of every micro-batch"
    assert line == f"  at {source.at('return tf.reduce_mean(tf.reshape', function='reshaping')}"
    assert way_out == (
        "  Where the step holds the number 8, write -1, tf.shape(x)[0] or x.shape[0] in its place, "
        "or use one replica and micro_batches=1."
    )
    assert isinstance(refused.value.__cause__, ValueError)
    assert float(step(batch(8), -1)) == pytest.approx(0.5)


def test_a_step_that_is_another_program_for_large_batches_is_traced_for_small_ones() -> None:
    traced: list[int] = []

    @whale.function
    def step(x: Any) -> Any:
        traced.append(x.shape[0])
        with whale.replica(2):
            mean = tf.reduce_mean(x)
            return mean * 2 if x.shape[0] > 8 else mean

    assert float(step(batch(8))) == pytest.approx(0.5)
    assert traced == [8, 16, 4]
