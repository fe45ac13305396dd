"""Which differences are rounding that the optimizer amplifies: where both gradients are the rounding of zero.

The true gradient of some variables is zero, as that of a key's bias before a softmax. What is computed is rounding,
1e-9 or so, another one in the plan, which adds in another order. Adam divides a gradient by its own size, and so makes
of each a step of full size, in directions that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whale_tf.ir.graph import Graph, Node

# Of the largest gradient of the step: what of a gradient may be rounding, by the bytes of a number. A gradient is a sum
# of numbers that are larger than itself.
ROUNDING = {4: 1e-5, 8: 1e-12}

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Suspect:
    """A variable whose difference is rounding of a gradient, as far as the gradients tell.

    Attributes:
      name: the variable's, or that of one of its slots.
      gradient: the largest number that its gradients have where the variable differs, in the plan or on one device.
      largest: the largest of all gradients of the step.
    """

    name: str
    gradient: float
    largest: float


def find_suspects(step: Graph, differing: Arrays, planned: Arrays, plain: Arrays) -> tuple[Suspect, ...]:
    """The suspects among variables that differ.

    Args:
      step: the captured step.
      differing: for each variable that differs, which of its elements do.
      planned, plain: the plan's gradients and those of one device, by their nodes in `step`.
    """
    left, right = _by_variable(step, planned), _by_variable(step, plain)
    largest = max((_largest(gradient) for gradient in right.values()), default=0.0)
    if not np.isfinite(largest):
        return ()
    found = []
    for name, where in differing.items():
        names = _gradients_of(step, name, where.shape, right)
        sizes = [np.maximum(np.abs(left[each]), np.abs(right[each]))[where] for each in names]
        bounds = [ROUNDING.get(right[each].itemsize, 0.0) * largest for each in names]
        # A gradient that is 0 in both is no rounding: the update is the same, and what differs is wrong.
        if sizes and all(0 < size.min() <= _largest(size) <= bound for size, bound in zip(sizes, bounds, strict=True)):
            found.append(Suspect(name, max(map(_largest, sizes)), largest))
    return tuple(found)


def _gradients_of(step: Graph, variable: str, shape: tuple[int, ...], gradients: Arrays) -> list[str]:
    """The gradients that a variable's new value is made of, element by element: its own, or of a slot those like it."""
    writes = [node.name for node in step if node.op == "Write" and _variable(node) == variable]
    before = step.ancestors(writes, stop=lambda node: node.op == "Gradient")
    found = [name for name in gradients if name in before and gradients[name].shape == shape]
    return [name for name in found if _variable(step[name]) == variable] or found


def _by_variable(step: Graph, gradients: Arrays) -> dict[str, Array]:
    """Gradients as dense as their variables, by the node of their values."""
    dense = {}
    for name, gradient in gradients.items():
        node = step[name]
        partner = node.attrs["partner"].decode()
        if node.attrs["part"] == b"values" and partner in gradients:
            shape = next(
                each.outputs[0].shape for each in step if each.op == "Variable" and _variable(each) == _variable(node)
            )
            total = np.zeros([int(size or 0) for size in shape], gradient.dtype)
            np.add.at(total, gradients[partner], gradient)
            dense[name] = total
        elif node.attrs["part"] == b"dense":
            dense[name] = gradient
    return dense


def _variable(node: Node) -> str:
    return str(node.attrs["variable"].decode())


def _largest(values: Array) -> float:
    """The largest absolute value; infinite if one is no number."""
    return float(np.max(np.nan_to_num(np.abs(values), nan=np.inf), initial=0.0))
