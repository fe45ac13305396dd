"""What each part does for itself: with values that are taken as each part has them, and where the user accepts that."""

from __future__ import annotations

from whale_tf.ir.sharding import APART, WHOLE, Apart, Split, Value
from whale_tf.plan.local import INTEGERS, Local, Operation, Use, rescale


def apart(operation: Operation) -> Local | None:
    """Each part for itself: operands are whole, or each part's own, and nothing grows with the batch."""
    inputs = operation.inputs
    if not any(isinstance(given.value.state, Apart) for given in inputs):
        return None
    if any(not given.whole or given.following != () for given in inputs):
        return None
    if any(dims != () for dims in operation.following) or operation.node.stateful:
        return None
    uses: dict[int, Use] = {}
    for position, given in enumerate(inputs):
        rescale(uses, position, -given.value.degree)
    return Local(tuple(Value(APART) for _ in operation.node.outputs), uses)


def own(operation: Operation) -> Local | None:
    """Each part for itself, where the user accepts that: what is as long as the batch is so long as the part."""
    if any(kind.dtype == "variant" for kind in operation.node.outputs):
        return None  # a list has as many elements as its loop has turns
    uses: dict[int, Use] = {}
    for position, given in enumerate(operation.inputs):
        if given.value == Value(WHOLE) and not all(size is not None and size >= 0 for size in given.kind.shape):
            return None  # it may be as long as the batch
        if given.value == Value(WHOLE) and given.following != ():
            if given.kind.dtype in INTEGERS and not given.begins:
                return None  # numbers of examples of the whole batch
            if given.number is not None:
                uses[position] = Use(Split((given.following or (0,))[0]), prefix=True)
            elif given.following is not None and len(given.following) == 1 and given.kind.dtype not in INTEGERS:
                uses[position] = Use(Split(given.following[0]))
            else:
                return None
        rescale(uses, position, -given.value.degree)
    results = []
    for index, dims in enumerate(operation.following):
        if dims is None:
            return None
        sizes = operation.node.outputs[index].shape
        unknown = [dim for dim, size in enumerate(sizes) if size is None or size < 0]
        if not dims and len(unknown) == 1:  # as many rows as the part has, for all that is known
            results.append(Value(Split(unknown[0])))
            continue
        if not dims:
            return None  # a total: how a part's own one weighs in its gradient is known of means only
        rows = len(dims) == 1 and operation.proportional(index, dims[0], 1)
        results.append(Value(Split(dims[0])) if rows else Value(APART))
    return Local(tuple(results), uses)
