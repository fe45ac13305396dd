"""Floating point operations of one run of a node, from the shapes of its inputs and outputs.

An unknown dim or rank counts as 1, so they are lower bounds there. One multiplication, addition, comparison or
transcendental function is one operation. A fused multiply-add is two, as in the peak rates that vendors publish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from whale_tf.ir.graph import Node, Shape, TensorType

Work = Callable[[Node, Sequence[TensorType]], float]


def free(node: Node, inputs: Sequence[TensorType]) -> float:
    """Nothing is computed."""
    return 0.0


def one_per_output(node: Node, inputs: Sequence[TensorType]) -> float:
    """One operation per element of the outputs."""
    return float(sum(elements(kind.shape) for kind in node.outputs))


def per_input(position: int, operations: float = 1.0) -> Work:
    """So many operations per element of one input."""
    return lambda node, inputs: operations * elements(inputs[position].shape)


def per_largest_input(operations: float) -> Work:
    """So many operations per element of the largest input: for an optimizer's op, that is the gradient."""
    return lambda node, inputs: operations * max((elements(kind.shape) for kind in inputs), default=0)


def add_n(node: Node, inputs: Sequence[TensorType]) -> float:
    """One addition less than there are inputs."""
    return (len(inputs) - 1) * one_per_output(node, inputs)


def matmul(node: Node, inputs: Sequence[TensorType]) -> float:
    """2 batch m n k, for [batch..., m, k] times [batch..., k, n].

    The batch is that of the output, so that broadcasting is counted.
    """
    flipped_left = node.attrs.get("transpose_a", False) or node.attrs.get("adj_x", False)
    flipped_right = node.attrs.get("transpose_b", False) or node.attrs.get("adj_y", False)
    k_left = _size(inputs[0].shape, -2 if flipped_left else -1)
    k_right = _size(inputs[1].shape, -1 if flipped_right else -2)
    return 2.0 * elements(node.outputs[0].shape) * max(k_left, k_right)


def sparse_matmul(node: Node, inputs: Sequence[TensorType]) -> float:
    """2 stored n, for a sparse matrix of so many stored values (inputs 0 to 2) times a dense [k, n]."""
    return 2.0 * elements(inputs[1].shape) * _size(node.outputs[0].shape, -1)


def einsum(node: Node, inputs: Sequence[TensorType]) -> float:
    """The product P of all labels' sizes, times one per operand, less one where no label is summed over.

    For two operands: 2 P when they are contracted, P for an outer product. For one: P for a sum, 0 for a transposition.
    """
    left, _, result = node.attrs["equation"].decode("ascii").replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for labels, kind in zip(left.split(","), inputs, strict=True):
        for label, size in zip(labelled(labels, kind.shape), kind.shape, strict=False):
            known = _product((size,))
            if known != 1 or label not in sizes:
                sizes[label] = known
    summed = any(label[:3] not in result for label in sizes)  # a label is one letter, or `...` and a number
    return float((len(inputs) - 1 + summed) * math.prod(sizes.values()))


def labelled(labels: str, shape: Shape) -> list[str]:
    """The label of each dim of an operand of Einsum; none if its rank is unknown.

    What `...` hides is labelled from its end, as it broadcasts.
    """
    if None in shape:
        return []
    before, ellipsis, after = labels.partition("...")
    hidden = len(shape) - len(before) - len(after) if ellipsis else 0
    return [*before, *(f"...{i}" for i in reversed(range(hidden))), *after]


def convolution(node: Node, inputs: Sequence[TensorType]) -> float:
    """2 outputs window (channels_in / groups).

    The filter is [window..., channels_in / groups, channels_out], whatever the data_format.
    Strides, padding and dilation show in the output's shape alone.
    """
    return 2.0 * elements(node.outputs[0].shape) * _product(inputs[1].shape[:-1])


def convolution_input_gradient(node: Node, inputs: Sequence[TensorType]) -> float:
    """As many as forward; the inputs are the input or its sizes, the filter, the output's gradient."""
    return 2.0 * elements(inputs[2].shape) * _product(inputs[1].shape[:-1])


def convolution_filter_gradient(node: Node, inputs: Sequence[TensorType]) -> float:
    """As many as forward; the op's output has the filter's shape."""
    return 2.0 * elements(inputs[2].shape) * _product(node.outputs[0].shape[:-1])


def depthwise(node: Node, inputs: Sequence[TensorType]) -> float:
    """2 outputs window: the filter is [height, width, channels, multiplier], and each output reads one channel."""
    return 2.0 * elements(node.outputs[0].shape) * _product(inputs[1].shape[:2])


def depthwise_input_gradient(node: Node, inputs: Sequence[TensorType]) -> float:
    """As many as forward."""
    return 2.0 * elements(inputs[2].shape) * _product(inputs[1].shape[:2])


def depthwise_filter_gradient(node: Node, inputs: Sequence[TensorType]) -> float:
    """As many as forward; the op's output has the filter's shape."""
    return 2.0 * elements(inputs[2].shape) * _product(node.outputs[0].shape[:2])


def pool(node: Node, inputs: Sequence[TensorType]) -> float:
    """One per output and place in the window; `ksize` has one size per dim, 1 for those not pooled."""
    return float(elements(node.outputs[0].shape) * math.prod(node.attrs["ksize"]))


def pool_gradient(node: Node, inputs: Sequence[TensorType]) -> float:
    """As many as forward; the last input is the output's gradient."""
    return float(elements(inputs[-1].shape) * math.prod(node.attrs["ksize"]))


def batch_norm(node: Node, inputs: Sequence[TensorType]) -> float:
    """Per element 3 to normalize (subtract, scale, shift); in training also 1 for the mean and 3 for the variance."""
    return elements(inputs[0].shape) * (7.0 if node.attrs.get("is_training", True) else 3.0)


def elements(shape: Shape) -> int:
    """How many elements a tensor has; each unknown dim, and an unknown rank, counts as 1."""
    return _product(shape)


def _size(shape: Shape, dim: int) -> int:
    """One dim's size; 1 where it is unknown, or the rank is."""
    return _product(shape[dim : dim + 1 or None])


def _product(sizes: Iterable[int | None]) -> int:
    return math.prod(1 if size is None or size < 0 else size for size in sizes)
