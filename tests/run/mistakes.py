"""What the tests of mistakes share: the lines that a message names, and that nothing is lost."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

WIDTH = 4
ENOUGH_SECONDS = 120  # far more than anything here takes: what is not back by then hangs


class Source:
    """The text of a test: finds the lines of it that messages name."""

    def __init__(self, test: Callable[..., Any]) -> None:
        lines, first = inspect.getsourcelines(test)
        self.lines = {number: line.strip() for number, line in enumerate(lines, first)}
        self.file = inspect.getfile(inspect.unwrap(test)).removeprefix(os.getcwd() + os.sep)

    def opened(self, code: str, *, turn: int = 0) -> str:
        """`test_a.py:14`, the line that begins so; `turn` counts those that begin alike."""
        found = [number for number, line in self.lines.items() if line.startswith(code)]
        return f"{self.file}:{found[turn]}"

    def at(self, code: str, *, function: str = "step", turn: int = 0) -> str:
        """`test_a.py:14 in step: h = x @ w`."""
        place = self.opened(code, turn=turn)
        return f"{place} in {function}: {self.lines[int(place.rpartition(':')[2])]}"


def batch(examples: int = 8) -> np.ndarray[Any, Any]:
    """Numbers from 0 to 1: [examples, WIDTH]."""
    return np.linspace(0, 1, examples * WIDTH, dtype=np.float32).reshape(examples, WIDTH)


def weights(count: int = 2) -> list[tf.Variable]:
    """Variables `w0`, `w1`, … : [WIDTH, WIDTH]."""
    return [tf.Variable(np.eye(WIDTH, dtype=np.float32), name=f"w{index}") for index in range(count)]


def descend(tape: tf.GradientTape, loss: tf.Tensor, variables: Sequence[tf.Variable]) -> None:
    """One step of gradient descent."""
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(0.1 * gradient)


def values(variables: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """The numbers in variables, as they are now."""
    return [variable.numpy().copy() for variable in variables]


def check_refused(
    kind: type[Exception],
    message: str,
    wrong: Callable[[], Any],
    right: Callable[[], Any],
    variables: Sequence[Any] = (),
) -> None:
    """The mistake gives this error and this whole message, changes nothing, and the correct call after it works."""
    before = values(variables)
    with pytest.raises(kind) as refused:
        bounded(wrong)
    assert str(refused.value) == message, f"told:\n{refused.value}\nwanted:\n{message}"
    for old, new in zip(before, values(variables), strict=True):
        np.testing.assert_array_equal(new, old)
    result = bounded(right)
    assert all(np.isfinite(value).all() for value in tf.nest.flatten(result))
    assert not variables or any((old != new).any() for old, new in zip(before, values(variables), strict=True))


def bounded(call: Callable[[], Any]) -> Any:
    """What the call gives or raises; fails if it hangs, as a step of several devices might that wait for each other."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again below, in the thread of the test
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENOUGH_SECONDS)
    assert not thread.is_alive(), "the step hangs"
    if errors:
        raise errors[0]
    return results[0]
