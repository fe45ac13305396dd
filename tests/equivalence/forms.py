"""Forms of losses, outputs and writes to state: what a step may make of a batch, each as one small function.

    kind     signature                  where
    loss     (h, y, net) -> scalar      forms_losses.py and the files that it lists
    output   (h, y, net) -> structure   forms_outputs.py and the files that it lists
    write    (state, h, y) -> output    forms_writes.py

    h: [examples, width] activations     y: [examples] class numbers below width     net: what else there is

One small model serves all: two Dense blocks, each in its stage. A width may be the size of a micro-batch, on purpose.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.equivalence.harness import TOLERANCE, Scopes
from tests.equivalence.models import dense, optimized, variables_of

STEPS = 2
BLOCKS = 2
WORDS = 7  # 0 is padding
LENGTH = 5
RATE = 0.05


@dataclass(frozen=True)
class Net:
    """What a form may use besides activations and labels.

    Attributes:
      x: inputs of the model, [examples, width].
      tokens: word numbers, 0 behind each sequence's end, [examples, LENGTH].
      weight: trained, [width, width].
      centers: trained, one row for each class, [width, width].
      table: trained, one row for each word, [WORDS, width].
      positions: trained, [LENGTH, width].
    """

    x: tf.Tensor
    tokens: tf.Tensor
    weight: tf.Variable
    centers: tf.Variable
    table: tf.Variable
    positions: tf.Variable


@dataclass(frozen=True)
class Form:
    """One function, and how a step that has it is trained.

    Attributes:
      function: its name is the form's.
      adam: Adam in the place of gradient descent: rows that are added too early are squared otherwise.
      tolerance: of a tensor's largest number.
    """

    function: Callable[..., Any]
    adam: bool = False
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return self.function.__name__

    @property
    def file(self) -> Path:
        """Where the function is written."""
        return Path(inspect.getsourcefile(self.function) or "")

    @property
    def lines(self) -> range:
        """The numbers of the function's lines in its file."""
        text, first = inspect.getsourcelines(self.function)
        return range(first, first + len(text))


def forms(*functions: Callable[..., Any], adam: bool = False, tolerance: float = TOLERANCE) -> tuple[Form, ...]:
    """Each function as a form, all trained alike."""
    return tuple(Form(function, adam, tolerance) for function in functions)


class Model:
    """The blocks and variables that a step trains, and the rule by which it does."""

    def __init__(self, scopes: Scopes, width: int, *, adam: bool = False) -> None:
        self.scopes = scopes
        self.blocks = [dense(width, width) for _ in range(BLOCKS)]
        draw = np.random.default_rng(5)

        def variable(name: str, rows: int) -> tf.Variable:
            return tf.Variable(draw.normal(scale=0.5, size=(rows, width)).astype(np.float32), name=name)

        self.weight, self.centers = variable("weight", width), variable("centers", width)
        self.table, self.positions = variable("table", WORDS), variable("positions", LENGTH)
        self.extra = [self.weight, self.centers, self.table, self.positions]
        self.variables = [*variables_of(self.blocks), *self.extra]
        # A large epsilon: Adam divides what is rounding only by what is rounding only.
        self.optimizer = optimized(keras.optimizers.Adam(RATE, epsilon=1e-3), self.variables) if adam else None

    @property
    def owners(self) -> list[Any]:
        """Whose variables are compared."""
        return [*self.blocks, *self.extra, *([self.optimizer] if self.optimizer else [])]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.scopes.through(self.blocks, x, blocks_in_all=BLOCKS)

    def net(self, x: tf.Tensor, tokens: tf.Tensor) -> Net:
        """What a form gets to see."""
        return Net(x, tokens, *self.extra)

    def update(self, tape: tf.GradientTape, loss: tf.Tensor) -> None:
        """One update of all variables that the loss depends on."""
        gradients = tape.gradient(loss, self.variables)
        found = [
            (gradient, each) for gradient, each in zip(gradients, self.variables, strict=True) if gradient is not None
        ]
        if self.optimizer is not None:
            self.optimizer.apply_gradients(found)
            return
        for gradient, each in found:
            weight = each.value if isinstance(each, keras.Variable) else each
            weight.assign_sub(RATE * gradient)


def batches(examples: int, width: int) -> list[tuple[Any, ...]]:
    """For each step inputs, class numbers and tokens; class 0 and class 1 are in each batch."""
    return list(_batches(np.random.default_rng(3), examples, width))


def _batches(draw: np.random.Generator, examples: int, width: int) -> Iterator[tuple[Any, ...]]:
    for _ in range(STEPS):
        x = draw.normal(size=(examples, width)).astype(np.float32)
        y = draw.integers(0, width, size=examples).astype(np.int32)
        y[0], y[-1] = 1, 0
        tokens = draw.integers(1, WORDS, size=(examples, LENGTH)).astype(np.int32)
        lengths = draw.integers(1, LENGTH + 1, size=(examples, 1))
        yield x, y, np.where(np.arange(LENGTH) < lengths, tokens, 0)


def squares(h: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The usual loss of each example, [examples]: how far activations are from the class."""
    return tf.reduce_sum((h - tf.one_hot(y, h.shape[1])) ** 2, axis=1)


def size(values: tf.Tensor) -> tf.Tensor:
    """The number of examples, as the graph knows it, as a float."""
    return tf.cast(tf.shape(values)[0], values.dtype)


def named(*groups: Sequence[Form]) -> tuple[Form, ...]:
    """All forms of some groups.

    Raises:
      ValueError: two have the same name.
    """
    found = [form for group in groups for form in group]
    names = [str(form) for form in found]
    if len(set(names)) != len(names):
        raise ValueError(f"forms with the same name: {sorted({name for name in names if names.count(name) > 1})}")
    return tuple(found)
