"""A variable that is up to date in another process only: every way to read it here is refused or shows."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from whale_tf.errors import VariableError
from whale_tf.run.away import Holding, handle_of, holders_of, is_away, may_be_away, named_only
from whale_tf.run.processes import World
from whale_tf.world import Member

MESSAGE = (
    "variable 'w' is not up to date in process 0.\n"
    "  step 'train' uses it in processes 1, 2 only, and keeps it there\n"
    "  Call train.gather() in every process before: it brings the step's variables up to date everywhere."
)


def settle(variable: Any, *processes: int) -> None:
    """As a step does in process 0 of 3 that leaves the variable up to date in these processes."""
    world = World(0, 3, cast(Member, None), 1.0)
    Holding("train", world, {"w": variable}, {}, {"w": frozenset(processes)}).settle()


@pytest.fixture
def away() -> Iterator[Any]:
    variable = tf.Variable(tf.ones([4, 3]))
    settle(variable, 1, 2)
    yield variable


READS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda v: v.numpy(),
    "value": lambda v: v.value(),
    "array": lambda v: np.asarray(v),
    "operator": lambda v: v + 1.0,
    "slice": lambda v: v[0],
    "gather": lambda v: tf.gather(v, [0]),
    "assign_add": lambda v: v.assign_add(tf.ones([4, 3])),
    "scatter": lambda v: v.scatter_nd_add([[0]], tf.ones([1, 3])),
    "new function": lambda v: tf.function(lambda: tf.reduce_sum(v))(),
    "pickle": lambda v: pickle.dumps(v),
}
FAST_READS: dict[str, Callable[[Any], Any]] = {
    "operation": lambda v: tf.matmul(v, tf.ones([3, 1])),
    "reduction": lambda v: tf.reduce_sum(v),
    "list": lambda v: tf.concat([v, v], 0),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_names_the_call_that_gathers(away: Any, read: Callable[[Any], Any]) -> None:
    with pytest.raises(VariableError) as refused:
        read(away)
    assert MESSAGE in str(refused.value)


@pytest.mark.parametrize("read", FAST_READS.values(), ids=FAST_READS)
def test_what_tensorflow_reads_by_itself_names_it_too(away: Any, read: Callable[[Any], Any]) -> None:
    with pytest.raises(tf.errors.FailedPreconditionError, match=r"'w': call train\.gather\(\) in every process before"):
        read(away)


def test_a_checkpoint_is_refused_too(away: Any, tmp_path: Path) -> None:
    with pytest.raises(VariableError):
        tf.train.Checkpoint(w=away).save(str(tmp_path / "checkpoint"))


def test_a_keras_layer_s_variable_is_refused_and_comes_back_by_assigning(tmp_path: Path) -> None:
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    settle(layer.kernel._value, 1, 2)
    with pytest.raises(VariableError):
        layer.get_weights()
    with pytest.raises(VariableError):
        layer(tf.ones([1, 3]))
    layer.set_weights([np.full((3, 2), 5.0), np.zeros(2)])
    np.testing.assert_array_equal(layer(tf.ones([1, 3])), [[15.0, 15.0]])


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_function_that_was_traced_before_fails_or_gives_nothing(dtype: str) -> None:
    matrix, other = tf.Variable(tf.ones([4, 3], dtype)), tf.ones([3, 1], dtype)
    functions = [
        tf.function(function)
        for function in (
            lambda: tf.reduce_sum(matrix, axis=[0, 1]),
            lambda: tf.matmul(matrix, other),
            lambda: matrix * tf.ones([3], dtype),
            lambda: tf.argmax(tf.ones([4, 3], dtype) + matrix[0], axis=1),
            lambda: tf.math.count_nonzero(matrix > tf.zeros([], dtype)),
            lambda: tf.reduce_sum(matrix),
            lambda: matrix * tf.constant(2, dtype),
            lambda: tf.gather(matrix, [3]),
            lambda: tf.reshape(matrix, [12]),
        )
    ]
    for function in functions:
        function()
    settle(matrix, 1, 2)
    for function in functions:
        try:
            assert function().numpy().shape not in ((), (1,))
            assert not function().numpy().size
        except tf.errors.InvalidArgumentError:
            continue


def test_it_takes_no_memory(away: Any) -> None:
    kept = tf.raw_ops.ReadVariableOp(resource=handle_of(away), dtype=tf.float32)
    assert tf.size(kept) == 0


def test_it_tells_where_it_is_and_keeps_what_needs_no_value(away: Any) -> None:
    assert repr(away) == "<'Variable:0' (4, 3) float32, up to date in processes 1, 2>"
    assert (away.shape, away.dtype, away.trainable) == ((4, 3), tf.float32, True)
    assert away.device.endswith("CPU:0")
    assert isinstance(away, tf.Variable)


@pytest.mark.parametrize("value", [np.ones((4, 2)), 3.0], ids=["shape", "rank"])
def test_a_wrong_value_from_outside_leaves_it_away(away: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="hape"):
        away.assign(value)
    assert is_away(away)


def test_a_value_from_outside_is_there_until_the_next_step(away: Any) -> None:
    away.assign(tf.fill([4, 3], 2.0))
    assert type(away) is type(tf.Variable(0.0))
    assert float(tf.reduce_sum(away)) == 24.0
    settle(away, 1, 2)
    assert is_away(away)


def test_a_step_that_uses_it_here_or_everywhere_brings_it_up_to_date() -> None:
    variable = tf.Variable([1.0, 2.0])
    for processes in ((0, 1), (0, 1, 2)):
        settle(variable, 1)
        tf.raw_ops.AssignVariableOp(resource=handle_of(variable), value=[3.0, 4.0])  # as the step does
        settle(variable, *processes)
        np.testing.assert_array_equal(variable, [3.0, 4.0])
        assert holders_of(variable) == (None if len(processes) == 3 else frozenset(processes))


def test_a_step_is_traced_with_variables_that_are_away(away: Any) -> None:
    with named_only():
        traced = tf.function(lambda: tf.reduce_sum(away)).get_concrete_function()
    assert [variable is away for variable in traced.graph.variables] == [True]


def test_what_reads_in_the_middle_of_a_trace_is_refused(away: Any) -> None:
    def step() -> Any:
        with tf.init_scope():
            return tf.constant(float(tf.reduce_sum(away.value())))

    with named_only(), pytest.raises(VariableError) as refused:
        tf.function(step, autograph=False).get_concrete_function()
    assert MESSAGE in str(refused.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "complex64", "int64", "bool"])
def test_variables_of_every_type_can_be_away(dtype: str) -> None:
    variable = tf.Variable(tf.cast(tf.ones([2]), dtype))
    settle(variable, 1)
    with pytest.raises(VariableError):
        variable.numpy()


def test_only_variables_whose_reads_can_be_refused_may_be_away() -> None:
    assert may_be_away(tf.Variable(0.0))
    assert not may_be_away(tf.Variable(0.0).handle)
