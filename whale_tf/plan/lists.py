"""Lists of tensors, as loops keep them, and optionals: they are what their elements are."""

from __future__ import annotations

from whale_tf.ir.sharding import BLANK, LISTED, WHOLE, Extent, Split, Value
from whale_tf.plan.calls import together
from whale_tf.plan.local import AS_IS, Answer, Local, Operation, piece_of


def list_of(operation: Operation) -> Answer:
    """TensorListFromTensor: the elements of a tensor along dim 0."""
    given = operation.inputs[0]
    cut = given.cut
    use = AS_IS
    if cut is None and given.whole and given.following and len(given.following) == 1:
        cut = Split(given.following[0])
        piece = piece_of(given, cut)
        if piece is None:
            return f"'{given.ref}' is not cut as examples are"
        use = piece
    if cut is None:
        return Local((given.value,))
    if cut.dim == 0 and given.kind.shape[0] != operation.batch:
        return "a list of another number of elements than examples"
    if cut.dim == 0:  # the body of a loop may make anything of an element: it is given as it is
        return Local((Value(LISTED),), {0: use._replace(power=-given.value.degree)})
    return Local((Value(Split(cut.dim - 1, cut.outer), given.value.degree),), {0: use})


def stacked(operation: Operation) -> Answer:
    """TensorListStack, TensorListGather: elements along a new dim 0."""
    given = operation.inputs[0]
    if given.cut is None:
        return Local((Value(WHOLE) if given.value.state == BLANK else given.value,))
    return Local((Value(Split(given.cut.dim + 1, given.cut.outer), given.value.degree),))


def element(operation: Operation) -> Answer:
    """TensorListGetItem, TensorListPopBack: what the list is."""
    value = operation.inputs[0].value
    item = Value(WHOLE) if value.state == BLANK else value
    return Local(tuple(item if kind.dtype != "variant" else value for kind in operation.node.outputs))


def filled(operation: Operation) -> Answer:
    """TensorListSetItem, TensorListPushBack: the list is what its elements are."""
    into = operation.inputs[0]
    position = 2 if operation.node.op == "TensorListSetItem" else 1
    item = operation.inputs[position]
    if into.value.state == BLANK or into.value == item.value:
        return Local((item.value,))
    use = piece_of(item, into.cut) if into.cut is not None and item.value == Value(WHOLE) else None
    if use is None:
        return "a list of elements that depend on the batch in several ways"
    return Local((into.value,), {position: use})


def reserved(operation: Operation) -> Answer:
    """A list that is still empty."""
    return Local((Value(BLANK),))


def of_list(operation: Operation) -> Answer:
    """TensorListResize, and what a list tells of itself."""
    value, cut = operation.inputs[0].value, operation.inputs[0].cut
    if operation.node.op == "TensorListElementShape" and cut is not None:
        return Local((Value(Extent(cut.dim)),))
    return Local((value if operation.node.outputs[0].dtype == "variant" else Value(WHOLE),))


def passed(operation: Operation) -> Answer:
    """Each result is its operand; of several lists that are added, all are alike."""
    values = [given.value for given in operation.inputs]
    if len(values) == len(operation.node.outputs):
        return Local(tuple(values))
    joined = together(values) if Value(WHOLE) not in values or len(set(values)) == 1 else None
    return "lists that depend on the batch in several ways are added" if joined is None else Local((joined,))


def optional(operation: Operation) -> Answer:
    """OptionalFromValue: what it holds."""
    values = [given.value for given in operation.inputs]
    joined = values[0] if len(set(values)) == 1 else None
    return "an optional of values that depend on the batch in several ways" if joined is None else Local((joined,))
