"""An operation with numbers, to compare its rule with TensorFlow: what tests/plan/rule_cases_*.py are lists of.

Dims that may be cut have 4 elements or more, so that no axis, stride or block size is taken for one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Attrs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An operation on numbers.

    Attributes:
      letters: the rule as text, where it is worth stating.
      known: operands whose values planning knows, besides shapes.
    """

    op: str
    inputs: tuple[Array, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    letters: str = ""
    known: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.op} {','.join(str(list(each.shape)).replace(' ', '') for each in self.inputs)}"


def case(op: str, *inputs: Any, letters: str = "", known: tuple[int, ...] = (), **attrs: Any) -> Case:
    """A case, lists of integers as operands of 32 bits."""
    arrays = tuple(np.asarray(each, np.int32) if isinstance(each, (int, list)) else each for each in inputs)
    return Case(op, arrays, attrs, letters, known)


class Numbers:
    """Random numbers, away from 0 and from each other's halves."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def real(self, *shape: int) -> Array:
        """Between -1 and 1, not near 0."""
        return np.asarray(self.positive(*shape) * self.generator.choice([-1.0, 1.0], shape))

    def positive(self, *shape: int, low: float = 0.1, high: float = 0.9) -> Array:
        return np.asarray(self.generator.uniform(low, high, shape))

    def single(self, *shape: int) -> Array:
        return self.real(*shape).astype(np.float32)

    def below(self, limit: int, *shape: int) -> Array:
        """Integers from 0."""
        return np.asarray(self.generator.integers(0, limit, shape), np.int32)

    def truth(self, *shape: int) -> Array:
        return np.asarray(self.generator.integers(0, 2, shape), bool)

    def complex(self, *shape: int) -> Array:
        return np.asarray(self.real(*shape) + 1j * self.real(*shape))

    def definite(self, *shape: int) -> Array:
        """Symmetric positive definite matrices."""
        root = self.real(*shape, shape[-1])
        return np.asarray(root @ np.swapaxes(root, -1, -2) + 2 * np.eye(shape[-1]))


N = Numbers(7)
