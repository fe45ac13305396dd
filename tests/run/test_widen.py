"""Functions in float64: what is widened, what stays between casts, and that the numbers are those of float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.python.eager import context, execute

from whale_tf.run.widen import Widened, rename, widen

THIRD = tf.constant([[1.0, 2.0], [3.0, 4.0]]) / 3
SUFFIX = "_wide"


def functions_of(function: Callable[..., Any], *arguments: Any) -> list[function_pb2.FunctionDef]:
    """What a function is and calls, itself the last."""
    concrete = tf.function(function, autograph=False).get_concrete_function(*arguments)
    return [*concrete.graph.as_graph_def().library.function, concrete.function_def]


@pytest.fixture
def run() -> Iterator[Callable[..., list[Any]]]:
    """Runs the last of some functions, which are known to TensorFlow until the test ends."""
    names: list[str] = []

    def run(functions: Any, *arguments: Any) -> list[Any]:
        for function in functions:
            context.context().add_function_def(function)
            names.append(function.signature.name)
        main = functions[-1].signature
        attrs = ("config_proto", context.context().function_call_options.config_proto_serialized, "executor_type", "")
        return list(execute.execute(main.name, len(main.output_arg), list(arguments), attrs, context.context()))

    yield run
    for name in names:
        context.context().remove_function(name)


def ops(widened: Widened) -> list[str]:
    return [node.op for function in widened.functions for node in function.node_def]


def test_every_float_is_float64(run: Any) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        half = tf.cast(tf.matmul(x, x), tf.float16)
        return tf.cast(half, tf.float32) + 1e-12

    widened = widen(functions_of(function, THIRD), SUFFIX)
    wide = tf.cast(THIRD, tf.float64)
    (found,) = run(widened.functions, wide)
    assert found.dtype == tf.float64
    np.testing.assert_array_equal(found, tf.matmul(wide, wide) + tf.cast(tf.constant(1e-12), tf.float64))
    assert not widened.kept


def test_what_has_no_float64_stays_between_casts(run: Any) -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        bits = tf.bitcast(x, tf.int32)
        image = tf.image.resize(x[None, :, :, None], (4, 4), method="bilinear")
        return bits, image * 2

    widened = widen(functions_of(function, THIRD), SUFFIX)
    bits, image = run(widened.functions, tf.cast(THIRD, tf.float64))
    np.testing.assert_array_equal(bits, tf.bitcast(THIRD, tf.int32))
    assert image.dtype == tf.float64
    np.testing.assert_allclose(image, function(THIRD)[1], rtol=1e-6)
    assert "Bitcast" in widened.kept


def test_draws_are_those_of_float32(run: Any) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return x * tf.random.stateless_normal([2, 2], seed=(1, 2))

    widened = widen(functions_of(function, THIRD), SUFFIX)
    (found,) = run(widened.functions, tf.cast(THIRD, tf.float64))
    drawn = tf.cast(tf.random.stateless_normal([2, 2], seed=(1, 2)), tf.float64)
    np.testing.assert_array_equal(found, tf.cast(THIRD, tf.float64) * drawn)
    assert not widened.kept, "a draw loses nothing"


def test_loops_and_branches_are_widened_inside(run: Any) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        x = tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * x + 1e-9), (0, x))[1]
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x / 7, lambda: x)

    widened = widen(functions_of(function, THIRD), SUFFIX)
    (found,) = run(widened.functions, tf.cast(THIRD, tf.float64))
    want = np.asarray(THIRD, np.float64)
    for _ in range(3):
        want = want * want + np.float64(np.float32(1e-9))
    np.testing.assert_allclose(found, want / 7, rtol=1e-15)


def test_python_gets_what_it_is_written_for(run: Any) -> None:
    seen = []

    def python(x: Any) -> Any:
        seen.append(x.dtype)
        return x * 2

    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(python, [x], tf.float32)

    concrete = tf.function(function).get_concrete_function(THIRD)  # it keeps the Python function
    widened = widen([concrete.function_def], SUFFIX)
    (found,) = run(widened.functions, tf.cast(THIRD, tf.float64))
    np.testing.assert_array_equal(found, tf.cast(THIRD * 2, tf.float64))
    assert seen == [np.float32]
    assert widened.kept == {"PyFunc"}


def test_what_is_given_stays_as_it_is() -> None:
    functions = functions_of(lambda x: tf.matmul(x, x), THIRD)
    before = [function.SerializeToString(deterministic=True) for function in functions]
    widen(functions, SUFFIX)
    assert [function.SerializeToString(deterministic=True) for function in functions] == before


def test_renamed_functions_call_one_another(run: Any) -> None:
    inner = tf.function(lambda x: x * 2)
    functions = functions_of(lambda x: inner(x) + 1, THIRD)
    renamed = rename(functions, "_again")
    assert [each.signature.name for each in renamed] == [each.signature.name + "_again" for each in functions]
    assert all(
        attr.func.name.endswith("_again")
        for node in renamed[-1].node_def
        for attr in node.attr.values()
        if attr.func.name
    )
    (found,) = run(renamed, THIRD)
    np.testing.assert_array_equal(found, THIRD * 2 + 1)
