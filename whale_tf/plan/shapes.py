"""Operations that arrange elements: what becomes of a cut dim."""

from __future__ import annotations

import math
from dataclasses import replace

from whale_tf.ir.graph import Shape
from whale_tf.ir.sharding import SUMS, WHOLE, Extent, Partial, Split, Value
from whale_tf.plan.local import INTEGERS, Answer, Local, Operation
from whale_tf.plan.positions import by_rule
from whale_tf.plan.rows import rows_of, shape_of_rows, sliced


def reshape(operation: Operation) -> Answer:
    """The number of elements of each piece stays: [o, n, m] cut in n is [o n m] cut with outer o."""
    given, node = operation.inputs[0], operation.node
    if any(not other.says_shape for other in operation.inputs[1:]):
        return f"the shape that {node.op} takes depends on examples"
    if given.ragged and given.cut is not None:
        rows = given.cut.dim == 0 and node.outputs[0].shape[:1] == (-1,) and node.outputs[0].shape[1:].count(-1) == 0
        return Local((given.value,)) if rows else f"{node.op} mixes examples with other dims"
    if given.cut is None and any(not other.whole for other in operation.inputs[1:]):
        return f"{node.op} takes all rows, and the number of a part's"
    if given.cut is None:
        if given.reduction is None or operation.following[0] == ():
            return Local((given.value,)) if operation.following[0] == () else f"{node.op} makes rows of a total"
        return f"{node.op} needs the total over all examples"
    split = regrouped(given.kind.shape, node.outputs[0].shape, given.cut, operation.batch)
    if split is None or operation.following[0] != (split.dim,):
        return f"{node.op} mixes examples with other dims"
    if given.cut.column and node.outputs[0].shape[-1:] != given.kind.shape[-1:]:
        return f"{node.op} mixes positions of examples with other dims"
    return Local((Value(replace(given.cut, dim=split.dim, outer=split.outer), given.value.degree),))


def regrouped(before: Shape, after: Shape, split: Split, batch: int) -> Split | None:
    """How a reshaped tensor is cut; None if the pieces are no pieces of it."""
    if not before.known or not after.known:
        return None
    blocks = math.prod(size or 0 for size in before[: split.dim]) * split.outer
    whole_chunk = (before[split.dim] or 0) // split.outer * math.prod(size or 0 for size in before[split.dim + 1 :])
    chunk, rest = divmod(whole_chunk, batch)
    if rest:
        return None
    for dim, size in enumerate(after):
        ahead = math.prod(each or 0 for each in after[:dim])
        behind = math.prod(each or 0 for each in after[dim + 1 :])
        if not ahead or not behind or blocks % ahead or chunk % behind:
            continue
        outer = blocks // ahead
        if size == outer * batch * (chunk // behind) and (size or 0) > 1:
            return Split(dim, outer)
    return None


def concat(operation: Operation) -> Answer:
    """Along the batch the pieces lie in several blocks: [h, h] is cut with outer 2."""
    values, axis, node = operation.inputs[:-1], operation.inputs[-1].number, operation.node
    if node.outputs[0].dtype in INTEGERS and any(isinstance(given.value.state, Partial) for given in values):
        return shape_of_rows(operation)
    if axis is not None and all(given.cut is not None for given in values):
        dim = int(axis) % max(1, len(node.outputs[0].shape))
        if all(given.cut and given.cut.dim == dim for given in values):
            outers = [given.cut.outer if given.cut else 1 for given in values]
            sizes = {(given.kind.shape[dim] or 0) // outer for given, outer in zip(values, outers, strict=True)}
            alike = len({given.value.degree for given in values}) == 1
            if len(sizes) == 1 and alike and operation.proportional(0, dim, sum(outers)):
                return Local((Value(Split(dim, sum(outers)), values[0].value.degree),))
            return f"{node.op} puts pieces of several sizes behind each other"
    return by_rule(operation)


def tile(operation: Operation) -> Answer:
    given, times, node = operation.inputs[0], operation.inputs[1].number, operation.node
    if given.cut is not None and times is not None and operation.inputs[1].whole and times[given.cut.dim] != 1:
        dim, outer = given.cut.dim, given.cut.outer * int(times[given.cut.dim])
        if operation.following[0] == (dim,) and operation.proportional(0, dim, outer):
            return Local((Value(Split(dim, outer), given.value.degree),))
        return f"{node.op} repeats examples"
    return spread(operation)


def spread(operation: Operation) -> Answer:
    """Rows that follow the batch, made of what does not."""
    if operation.node.outputs[0].shape.count(-1) == 1 and any(
        given.says_shape and not given.whole for given in operation.inputs
    ):
        return rows_of(operation)
    dims = operation.following[0]
    data = operation.inputs[-1] if operation.node.op == "Fill" else operation.inputs[0]
    if dims is None or len(dims) != 1 or data.cut is not None or data.reduction or data.following != ():
        return by_rule(operation)
    if any(not given.whole for given in operation.inputs) or not operation.proportional(0, dims[0], 1):
        return f"the shape that {operation.node.op} takes depends on examples"
    return Local((Value(Split(dims[0]), data.value.degree),))


def alike(operation: Operation) -> Answer:
    """Zeros and ones of a shape."""
    given = operation.inputs[0]
    return Local((Value(given.cut.bare),)) if given.cut is not None else Local((Value(WHOLE),))


def blocks(operation: Operation) -> Answer:
    """Slices that take whole blocks of what was put behind each other, as the halves of [h, h]."""
    node = operation.node
    of_rows = sliced(operation) if node.op == "StridedSlice" else None
    if of_rows is not None:
        return of_rows
    given = operation.inputs[1] if node.op == "Split" else operation.inputs[0]
    if given.cut is None or given.cut.outer == 1:
        return by_rule(operation)
    dim, outer, size = given.cut.dim, given.cut.outer, given.kind.shape[given.cut.dim] or 0
    results = []
    for index, kind in enumerate(node.outputs):
        blocks, rest = divmod((kind.shape[dim] if dim < len(kind.shape) else 0) or 0, size // outer)
        begin = _begin(operation, dim)
        aligned = begin is not None and begin % (size // outer) == 0
        if rest or not blocks or not aligned or not operation.proportional(index, dim, blocks):
            return by_rule(operation)
        results.append(Value(Split(dim, blocks), given.value.degree))
    return Local(tuple(results))


def _begin(operation: Operation, dim: int) -> int | None:
    """Where a slice begins in a dim; None if it is not plain."""
    node, inputs = operation.node, operation.inputs
    if node.op == "Split":
        axis = inputs[0].number
        return 0 if axis is not None and int(axis) % len(inputs[1].kind.shape) == dim else None
    begin = inputs[1].number
    if begin is None or dim >= begin.size:
        return None
    if node.op == "StridedSlice":
        strides = inputs[3].number
        masks = ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
        if any(node.attrs.get(mask) for mask in masks) or strides is None or strides[dim] != 1:
            return None
        if node.attrs.get("begin_mask", 0) >> dim & 1:
            return 0
    first = int(begin[dim])
    return first + (inputs[0].kind.shape[dim] or 0) if first < 0 else first


def product_of(operation: Operation) -> Answer:
    """The number of elements of what has n rows is a multiple of n."""
    given = operation.inputs[0]
    if given.value.state == SUMS and given.kind.shape == (1,):
        return Local((given.value,))
    return Local((Value(SUMS),)) if isinstance(given.value.state, Extent) else by_rule(operation)
