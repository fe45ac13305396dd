"""How many rows there are, where that is known only when the step runs: each part has a number of its own."""

from __future__ import annotations

from collections.abc import Sequence

from whale_tf.ir.sharding import SUMS, WHOLE, Extent, Split, Value
from whale_tf.plan.local import Answer, Local, Operation


def shape_of(operation: Operation) -> Answer:
    """Shape, Size: how many rows each part has; the others' sum is how many there are."""
    given = operation.inputs[0]
    if given.cut is None or not given.ragged or given.kind.shape.count(-1) > 1:
        return "its shape depends on examples"
    if operation.node.op == "Size" or len(given.kind.shape) == 1:
        return Local((Value(SUMS),))
    return Local((Value(Extent(given.cut.dim)),))


def sizes_of_rows(operation: Operation, chosen: Sequence[int]) -> Answer:
    """Some numbers of a shape: the number of rows alone is a part of their sum; the others are the same for all."""
    state = operation.inputs[0].value.state
    assert isinstance(state, Extent)
    if state.at not in chosen:
        return Local((Value(WHOLE),))
    return Local((Value(SUMS),)) if len(chosen) == 1 else Local((Value(Extent(list(chosen).index(state.at))),))


def sliced(operation: Operation) -> Answer | None:
    """StridedSlice of a shape; None if it is none."""
    given, *bounds = operation.inputs
    if not isinstance(given.value.state, Extent) or any(bound.number is None for bound in bounds):
        return None
    attrs = operation.node.attrs
    if any(attrs.get(mask) for mask in ("ellipsis_mask", "new_axis_mask")):
        return None
    begin, end, stride = (int(bound.number.ravel()[0]) for bound in bounds if bound.number is not None)
    positions = list(range(given.kind.shape[0] or 0))
    if attrs.get("shrink_axis_mask"):
        return sizes_of_rows(operation, [positions[begin]])
    first, last = None if attrs.get("begin_mask") else begin, None if attrs.get("end_mask") else end
    return sizes_of_rows(operation, positions[first:last:stride])


def shape_of_rows(operation: Operation) -> Answer:
    """[n] and the other dims: the shape of what has n rows."""
    values, before = operation.inputs[:-1], 0
    for position, given in enumerate(values):
        if given.value == Value(SUMS) and given.kind.shape == (1,):
            others = [other for index, other in enumerate(values) if index != position]
            if any(not other.whole for other in others):
                break
            rest = sum((other.kind.shape[0] or 0) for other in others)
            return Local((Value(Extent(before)),)) if rest else Local((given.value,))
        before += given.kind.shape[0] or 0
    return f"{operation.node.op} makes a shape of totals"


def rows_of(operation: Operation) -> Answer:
    """As many rows as each part has, made of what is whole."""
    node = operation.node
    position = 0 if node.op == "Fill" else 1
    shape, data = operation.inputs[position], operation.inputs[1 - position]
    dim = shape.value.state.at if isinstance(shape.value.state, Extent) else 0
    if data.ragged and data.cut == Split(dim) and node.outputs[0].shape[dim] == -1:
        return Local((data.value,))  # over other dims than the rows
    if not data.whole or data.following != () or node.outputs[0].shape[dim : dim + 1] != (-1,):
        return f"{node.op} makes rows of what depends on examples"
    return Local((Value(Split(dim), data.value.degree),))
