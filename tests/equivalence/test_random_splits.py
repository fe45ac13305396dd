"""Random programs whose operators are cut: a step is one device's or is refused, and never gives another number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whale_tf as whale
from tests.equivalence.harness import Training, differences, numbers
from whale_tf.errors import InternalError, WhaleError

pytestmark = pytest.mark.filterwarnings("ignore:.* cannot be cut over . devices:UserWarning")

EXAMPLES, WIDTH, STEPS, RATE = 4, 8, 2, 0.05
TOLERANCE = 1e-9  # of a tensor's largest number, in float64
Line = tuple[str, int, int]
Parameter = Callable[..., Any]


def product(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    kernel = parameter(x.shape[-1], (4, 6, 8)[a % 3])
    return tf.tensordot(x, kernel, 1) if b % 2 else tf.einsum("...k,kn->...n", x, kernel)


def transposed(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    order = list(range(len(x.shape)))
    i, j = a % len(order), b % len(order)
    order[i], order[j] = order[j], order[i]
    return tf.transpose(x, order)


def reshaped(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    """Two dims as one, or one as two."""
    shape = list(x.shape)
    at = a % len(shape)
    if b % 2 and at + 1 < len(shape):
        return tf.reshape(x, [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]])
    if len(shape) < 4 and shape[at] % 2 == 0:
        halves = [2, shape[at] // 2] if b % 3 else [shape[at] // 2, 2]
        return tf.reshape(x, [*shape[:at], *halves, *shape[at + 1 :]])
    return x


def reduced(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    reduce = (tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_logsumexp)[b % 4]
    return reduce(x, a % len(x.shape), keepdims=len(x.shape) < 3)


def gathered(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    axis = a % len(x.shape)
    return tf.gather(x, [(b + 3 * k) % x.shape[axis] for k in range(4)], axis=axis)


def joined(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    return tf.concat([x, tf.tanh(x)], a % len(x.shape)) if max(x.shape) < 20 else x


def sliced(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    axis = a % len(x.shape)
    half = max(1, x.shape[axis] // 2)
    return tf.slice(x, [b % 2 * (k == axis) * (x.shape[k] - half) for k in range(len(x.shape))],
                    [half if k == axis else -1 for k in range(len(x.shape))])  # fmt: skip


def elementwise(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    factor, axis = parameter(x.shape[-1]), a % len(x.shape)
    ways = (tf.tanh(x + factor), x * factor, tf.nn.softmax(x), tf.square(x) - x, tf.nn.relu(x), tf.cumsum(x, axis))
    return ways[b % len(ways)]


def with_itself(x: Any, a: int, b: int, parameter: Parameter) -> Any:
    """A product of two values, or a sum with an earlier form of one."""
    if a % 2 or len(x.shape) < 2:
        return x + tf.reverse(x, [b % len(x.shape)])
    return tf.matmul(x, tf.tanh(x), transpose_b=True)


OPERATIONS = {
    each.__name__: each
    for each in (product, transposed, reshaped, reduced, gathered, joined, sliced, elementwise, with_itself)
}
LINES = st.lists(
    st.tuples(st.sampled_from(["product", *OPERATIONS]), st.integers(0, 11), st.integers(0, 11)), min_size=1, max_size=7
)


def training_of(lines: list[Line], cut: bool) -> Training:
    """Two steps of gradient descent on the parameters that the lines ask for."""
    drawn, parameters = np.random.default_rng(4), list[Any]()

    def values(x: Any, parameter: Parameter) -> Any:
        x = tf.tanh(tf.matmul(x, parameter(WIDTH, WIDTH)))
        for name, a, b in lines:
            x = OPERATIONS[name](x, a, b, parameter)
        return x

    def made(*shape: int) -> Any:
        parameters.append(tf.Variable(drawn.normal(scale=0.5, size=shape), name=f"p{len(parameters)}"))
        return parameters[-1]

    batches = [(drawn.normal(scale=0.5, size=(EXAMPLES, WIDTH)),) for _ in range(STEPS)]
    values(tf.constant(batches[0][0]), made)

    def step(x: tf.Tensor) -> Any:
        known = iter(parameters)
        with tf.GradientTape() as tape:
            if cut:
                with whale.split():
                    result = values(x, lambda *shape: next(known))
            else:
                result = values(x, lambda *shape: next(known))
            loss = tf.reduce_mean(tf.tanh(result))
        gradients = tape.gradient(loss, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        for variable, gradient in zip(parameters, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        return loss, result

    return Training(step, batches, parameters)


def check_lines(lines: list[Line], devices: int, micro_batches: int) -> None:
    plain = training_of(lines, cut=False)
    want = numbers(plain, tf.function(plain.step))
    whale.init(devices=devices)
    training = training_of(lines, cut=True)
    try:
        got = numbers(training, whale.function(micro_batches=micro_batches)(training.step))
    except InternalError:
        raise
    except WhaleError:
        assert micro_batches > 1, "nothing here may be refused but what relates examples of several micro-batches"
        return
    wrong = differences(got, want, TOLERANCE)
    assert not wrong, "\n".join([f"over {devices}, {micro_batches} micro-batches: {lines}", *wrong])


UNHURRIED = settings(suppress_health_check=[HealthCheck.too_slow], derandomize=True)
WAYS = {"devices": st.sampled_from([2, 4]), "micro_batches": st.sampled_from([1, 1, 1, 2])}


@settings(UNHURRIED, max_examples=15)
@given(lines=LINES, **WAYS)
def test_a_random_program_with_operators_cut_is_one_devices(
    lines: list[Line], devices: int, micro_batches: int
) -> None:
    check_lines(lines, devices, micro_batches)


@pytest.mark.long
@settings(UNHURRIED, max_examples=120)
@given(lines=LINES, **WAYS)
def test_many_random_programs_with_operators_cut_are_one_devices(
    lines: list[Line], devices: int, micro_batches: int
) -> None:
    check_lines(lines, devices, micro_batches)
