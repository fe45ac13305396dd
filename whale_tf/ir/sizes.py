"""A graph at every size of the batch, from what it is at two of them.

The program of a part is the global graph with shapes and shape operands that are affine in the number of examples; two
traces tell base and slope of each. What is data keeps its value at the global size.

    global, 16 examples   x [16,4]   r = Reshape(x, [64])      n = Const 16
    other,   4 examples   x [4,4]    r = Reshape(x, [16])      n = Const 4
    part of  5 examples   x [5,4]    r = Reshape(x, [20])      n = Const 16
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whale_tf.ir.graph import Graph, Ref, Shape, TensorType

Array = np.ndarray[Any, Any]
Shapes = Shape | tuple[Shape, ...]


@dataclass(frozen=True)
class Sizes:
    """A graph traced at two sizes of the batch.

    Attributes:
      graph: at the global batch.
      batch: how many examples that is; 0 if nothing in it is a batch.
      other: the other size; equal to `batch` if the graph was traced once.
      shapes: for tensors of which the shape is another at the other size, that shape.
      values: what constants and known shapes determine, at the global batch.
      operands: for (node, position) of operands whose known value is another at the other size, that value.
      attributes: for (node, name) of attributes that are shapes, or several, and are others at the other size, those.
      bodies: the same for the functions that nodes call, by name.
      fixed: nodes with as many operands or results as there are examples: there is no such node for a part.
    """

    graph: Graph
    batch: int
    other: int
    shapes: Mapping[Ref, Shape] = field(default_factory=dict)
    values: Mapping[Ref, Array] = field(default_factory=dict)
    operands: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], Shapes] = field(default_factory=dict)
    bodies: Mapping[str, Sizes] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    def type_of(self, ref: Ref) -> TensorType:
        """The type at the global batch."""
        return self.graph.type_of(ref)

    def following(self, ref: Ref) -> tuple[int, ...] | None:
        """The dims that grow with the batch; None if the rank itself is another."""
        there = self.shapes.get(ref)
        if there is None:
            return ()
        here = self.graph.type_of(ref).shape
        if len(here) != len(there) or Shape.unknown in (here, there):
            return None
        return tuple(dim for dim, (a, b) in enumerate(zip(here, there, strict=True)) if a != b)

    def proportional(self, ref: Ref, dim: int, outer: int = 1) -> bool:
        """Whether a dim holds as many equal pieces as there are examples, `outer` times over."""
        here, there = self.graph.type_of(ref).shape[dim], self.shapes.get(ref, ())[dim : dim + 1]
        if not here or not there or here < 0 or here % (outer * self.batch):
            return False
        return here * self.other == (there[0] or 0) * self.batch

    def shape_at(self, ref: Ref, size: int) -> Shape | None:
        """The shape at a size; None if no whole number of elements gives it."""
        here = self.graph.type_of(ref).shape
        there = self.shapes.get(ref)
        return here if there is None else self._shape_between(here, there, size)

    def attribute_at(self, node: str, name: str, size: int) -> Shapes:
        """An attribute that is a shape, or several, at a size; unknown where no whole number gives it."""
        here, there = self.graph[node].attrs[name], self.attributes.get((node, name))
        if there is None:
            return here  # type: ignore[no-any-return]
        if isinstance(here, Shape) and isinstance(there, Shape):
            return self._shape_between(here, there, size) or Shape.unknown
        pairs: list[tuple[Shape, Shape]] = list(zip(here, there, strict=True))  # type: ignore[arg-type]  # both lists
        return tuple(self._shape_between(a, b, size) or Shape.unknown for a, b in pairs)

    def operand_at(self, node: str, position: int, size: int) -> Array | None:
        """The value of an operand that is known when planning, at a size; None if it is no whole number there."""
        here = self.values[self.graph[node].inputs[position]]
        there = self.operands.get((node, position))
        if there is None or size == self.batch:
            return here
        if here.shape != there.shape or not np.issubdtype(here.dtype, np.integer):
            return None
        steps = (size - self.batch) * (here.astype(np.int64) - there)
        if np.any(steps % (self.batch - self.other)):
            return None
        return (here + steps // (self.batch - self.other)).astype(here.dtype)

    def _shape_between(self, here: Shape, there: Shape, size: int) -> Shape | None:
        if here == there:
            return here
        if len(here) != len(there):
            return None
        dims: list[int | None] = []
        for a, b in zip(here, there, strict=True):
            if a == b:
                dims.append(a)
                continue
            if a is None or b is None or a < 0 or b < 0:
                return None
            steps, rest = divmod((size - self.batch) * (a - b), self.batch - self.other)
            if rest or a + steps < 0:
                return None
            dims.append(a + steps)
        return Shape(dims)


def uniform(value: Array) -> Array | None:
    """The one number that all elements are, as a scalar; None if they differ or there is none."""
    if not value.size:
        return None
    first = value.reshape(-1)[0] if all(value.strides) else value[(0,) * value.ndim]
    if value.ndim and not any(value.strides):
        return np.asarray(first)
    if value.dtype.kind in "OSU":
        return None
    return np.asarray(first) if bool((value == first).all()) else None
