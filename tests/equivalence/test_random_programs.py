"""Random programs over the batch: a step is one device's or is refused, and never gives another number.

A program is a list of operations, each on earlier values of the kinds that it takes. Some values join the loss, others
are returned, so that what may not reach a gradient is tried as an output too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import whale_tf as whale
from tests.equivalence.harness import Layout, Numbers, Scopes, Training, differences, numbers
from tests.equivalence.random_operations import OPERATIONS, WIDTH, Kind, Operation
from whale_tf.errors import InternalError, WhaleError

DEPTH = 6
STEPS = 2
RATE = 0.05
TOLERANCE = 1e-9  # of a tensor's largest number: float64 has 1e-16, and operations of some depth lose a part of it
STARTS = (Kind.EXAMPLES, Kind.EXAMPLES, Kind.MATRIX, Kind.FEATURES)
CHECK = "WHALE_TF_CHECK"  # "values" compares every value of a step with one device's


@dataclass(frozen=True)
class Program:
    """What a step computes.

    Attributes:
      lines: operations with the numbers of the values that they take; the first values are those of STARTS.
      losses: values that join the loss, and how.
      outputs: values that are returned.
    """

    lines: tuple[tuple[Operation, tuple[int, ...]], ...]
    losses: tuple[tuple[int, str], ...]
    outputs: tuple[int, ...]

    def __str__(self) -> str:
        named = [
            f"v{len(STARTS) + i} = {operation.name}({', '.join(f'v{taken}' for taken in takes)})"
            for i, (operation, takes) in enumerate(self.lines)
        ]
        terms = " + ".join(f"{how}(v{value})" for value, how in self.losses)
        return "\n".join([*named, f"loss {terms or 'mean'}", f"return {', '.join(f'v{i}' for i in self.outputs)}"])

    def __repr__(self) -> str:
        return f"Program:\n{self}\n"

    def values(self, starts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """All values, in order."""
        found = list(starts)
        for operation, takes in self.lines:
            found.append(operation.function(*(found[i] for i in takes)))
        return found


TERMS = {
    "mean": tf.reduce_mean,
    "sum": lambda value: 0.01 * tf.reduce_sum(value),
    "mean_of_squares": lambda value: tf.reduce_mean(value**2),
}


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Up to DEPTH operations; the last value is always used."""
    kinds, lines = list(STARTS), []
    for _ in range(draw(st.integers(1, DEPTH))):
        operation = draw(st.sampled_from([each for each in OPERATIONS if set(each.takes) <= set(kinds)]))
        # Of each kind one of the newest values, so that operations stand on each other.
        newest = [[i for i, kind in enumerate(kinds) if kind is taken][-3:] for taken in operation.takes]
        lines.append((operation, tuple(draw(st.sampled_from(each)) for each in newest)))
        kinds.append(operation.gives)
    values = st.integers(len(STARTS), len(kinds) - 1)
    losses = draw(st.lists(st.tuples(values, st.sampled_from(sorted(TERMS))), max_size=2))
    outputs = draw(st.lists(values, max_size=2))
    return Program(tuple(lines), tuple(losses), (*outputs, len(kinds) - 1))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Replicas with shares, micro-batches, and at least one example for each part; some parts have only that."""
    replicas = draw(st.integers(1, 3))
    micro_batches = draw(st.integers(1 if replicas > 1 else 2, 3))
    parts = replicas * micro_batches
    shares = draw(st.sampled_from([(), tuple(range(1, replicas + 1))])) if replicas > 1 else ()
    examples = draw(st.integers(max(parts, 2) * (replicas if shares else 1), 3 * parts + 2))
    return Layout(replicas=replicas, micro_batches=micro_batches, shares=shares, examples=examples)


def training_of(program: Program, scopes: Scopes) -> Training:
    """Two steps of gradient descent on three variables, in float64."""
    draw = np.random.default_rng(scopes.examples)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return draw.normal(scale=0.5, size=shape)

    first, second = tf.Variable(normal(WIDTH, WIDTH), name="first"), tf.Variable(normal(WIDTH, WIDTH), name="second")
    bias = tf.Variable(normal(WIDTH), name="bias")
    variables = [first, second, bias]

    def step(x: tf.Tensor, z: tf.Tensor) -> Any:
        with tf.GradientTape() as tape, scopes.replica:
            values = program.values([tf.tanh(x @ first), z, first * 1.0, bias * 1.0])
            loss = 0.1 * tf.reduce_mean(tf.tanh(values[0] @ second + bias))
            for value, how in program.losses:
                loss += TERMS[how](values[value])
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(RATE * gradient)
        return loss, [values[i] for i in program.outputs]

    batches = [(normal(scopes.examples, WIDTH), normal(scopes.examples, WIDTH)) for _ in range(STEPS)]
    return Training(step, batches, variables)


def one_device(program: Program, layout: Layout) -> Numbers:
    """The numbers of the plain training."""
    training = training_of(program, Scopes(Layout(examples=layout.examples)))
    return numbers(training, tf.function(training.step))


def check_program(program: Program, layout: Layout) -> bool:
    """Fails where a number differs from one device's; gives whether the step ran, or was refused."""
    want = one_device(program, layout)
    whale.init(devices=layout.replicas)
    training = training_of(program, Scopes(layout))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHECK, "values")
        try:
            got = numbers(training, whale.function(micro_batches=layout.micro_batches)(training.step))
        except InternalError:
            raise
        except WhaleError:
            return False
    wrong = differences(got, want, TOLERANCE)
    assert not wrong, f"at {layout}: {len(wrong)} of {len(want)} differ\n{program}\n  " + "\n  ".join(wrong)
    return True


UNHURRIED = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], derandomize=True)


@settings(UNHURRIED, max_examples=25)
@given(program=programs(), layout=layouts())
def test_random_program_is_one_devices_or_refused(program: Program, layout: Layout) -> None:
    check_program(program, layout)


@pytest.mark.long
@settings(UNHURRIED, max_examples=100)
@given(program=programs(), layout=layouts())
def test_many_random_programs_are_one_devices_or_refused(program: Program, layout: Layout) -> None:
    check_program(program, layout)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_operation_gives_finite_numbers_of_its_kind(operation: Operation) -> None:
    """A table whose operations fail or overflow would only make programs that say nothing."""
    draw = np.random.default_rng(1)
    shapes = {Kind.EXAMPLES: (5, WIDTH), Kind.VECTOR: (5,), Kind.SCALAR: (), Kind.FEATURES: (WIDTH,)}
    given_values = [tf.constant(draw.normal(size=shapes.get(kind, (WIDTH, WIDTH)))) for kind in operation.takes]
    found = operation.function(*given_values)
    assert found.shape == shapes.get(operation.gives, (WIDTH, WIDTH))
    assert found.dtype == tf.float64
    assert np.isfinite(found.numpy()).all()
