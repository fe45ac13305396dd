"""Calls, branches and loops: their results are what their bodies make of the states of their operands."""

from __future__ import annotations

from collections.abc import Sequence

from whale_tf.ir.graph import Function, Node
from whale_tf.ir.sharding import BLANK, LISTED, SUMS, WHOLE, Each, Partial, Reduction, Split, Value
from whale_tf.ir.sizes import uniform
from whale_tf.plan.local import AS_IS, FLOATS, ZERO, Answer, Given, Local, Operation, Use, piece_of
from whale_tf.plan.turns import loop_over_examples


def call(operation: Operation) -> Answer:
    name = body(operation.node, "f")
    if name is None:
        return f"no rule says how {operation.node.op} depends on its examples"
    values, uses = _entering(operation.inputs)
    inside = operation.inside(name, values)
    return inside if isinstance(inside, str) else Local(inside, uses)


def _entering(inputs: Sequence[Given], first: int = 0) -> tuple[list[Value], dict[int, Use]]:
    """What a function is given: of a whole operand that is as long as the batch, its piece."""
    values, uses = [given.value for given in inputs], dict[int, Use]()
    for position, given in enumerate(inputs):
        if given.value == Value(WHOLE) and given.following and len(given.following) == 1:
            use = piece_of(given, Split(given.following[0]))
            if use is not None:
                values[position] = Value(Split(given.following[0]))
                uses[first + position] = use
    return values, uses


def branch(operation: Operation) -> Answer:
    """Both branches give the same states; the condition is one for all examples."""
    condition, *arguments = operation.inputs
    values, uses = _entering(arguments, first=1)
    names = _branches(operation.node)
    inside = [operation.inside(name, values) for name in names]
    for each in inside:
        if isinstance(each, str):
            return each
    if condition.value != Value(WHOLE) and not (operation.asserts and condition.value == Value(Partial(Reduction.ALL))):
        return f"{operation.node.op} chooses by something that differs between examples"
    results: list[Value] = []
    for of_branches in zip(*inside, strict=True):
        joined = together([value for value in of_branches if isinstance(value, Value)])
        if joined is None:
            return "branches whose results depend on the batch in different ways"
        results.append(joined)
    for name, each in zip(names, inside, strict=True):
        if list(each) != results:
            converted = operation.inside(name, values, results)
            if isinstance(converted, str):
                return converted
    return Local(tuple(results), uses)


def together(values: list[Value]) -> Value | None:
    """What several values are together: lists that are empty, and wholes that may be cut, are what the others are."""
    known = {value for value in values if value.state != BLANK}
    if len(known) > 1:
        known.discard(Value(WHOLE))
    return values[0] if not known else known.pop() if len(known) == 1 else None


def loop(operation: Operation) -> Answer:
    """What a loop carries has the state that its body gives it, found by running it until nothing changes."""
    node = operation.node
    condition, turn = body(node, "cond"), body(node, "body")
    if condition is None or turn is None:
        return f"no rule says how {node.op} depends on its examples"
    found = _loop_for_all(operation, condition, turn)
    if isinstance(found, str):
        by_example = loop_over_examples(operation, condition, turn)
        listed = any(given.value == Value(LISTED) for given in operation.inputs)
        return found if isinstance(by_example, str) and not listed else by_example
    return found


def _loop_for_all(operation: Operation, condition: str, turn: str) -> Answer:
    """A loop of as many turns in each part as over the whole batch."""
    inputs = operation.inputs
    carried, uses = _entering(inputs)
    for position, given in enumerate(inputs):
        if given.value == Value(WHOLE) and position not in uses and _is_zero(given):
            carried[position] = Value(BLANK)
    for _ in range(len(carried) + 2):
        results = operation.inside(turn, carried)
        if isinstance(results, str):
            return results
        after = [before if value.state == BLANK else value for before, value in zip(carried, results, strict=True)]
        if after == carried:
            break
        carried = after
    else:
        return "a loop whose values depend on the batch in another way at each turn"
    carried = [
        Value(WHOLE) if _is_number(given, value) else value for given, value in zip(inputs, carried, strict=True)
    ]
    ends = operation.inside(condition, carried)
    if isinstance(ends, str):
        return ends
    if any(value != Value(WHOLE) for value in ends):
        return "a loop that ends by something that differs between examples"
    for position, (given, value) in enumerate(zip(inputs, carried, strict=True)):
        use = uses.get(position) or _enters(given, value)
        if use is None:
            return f"'{given.ref}' enters a loop in another way than it is carried on"
        if use != AS_IS:
            uses[position] = use
    return Local(tuple(carried), uses)


def _is_zero(given: Given) -> bool:
    """Whether it is zeros, which are a term of any sum."""
    number = None if given.number is None or given.following != () else uniform(given.number)
    return number is not None and given.kind.dtype in FLOATS and not number


def _is_number(given: Given, carried: Value) -> bool:
    """Whether zeros stay zeros."""
    return carried.state == BLANK and given.value.state != BLANK


def _enters(before: Given, after: Value) -> Use | None:
    if before.value == after or before.value.state == BLANK or (after.state == SUMS and _is_zero(before)):
        return AS_IS
    if before.value != Value(WHOLE):
        return None
    if isinstance(after.state, Each) and before.following == ():
        return AS_IS
    if isinstance(after.state, Split) and after.degree == ZERO:
        return piece_of(before, after.state)
    if after.state == SUMS and before.kind.dtype.startswith("float"):
        return Use(power=after.degree + 1)
    if isinstance(after.state, Partial) and after.state != SUMS and after.degree == ZERO:
        return AS_IS
    return None


def body(node: Node, attribute: str) -> str | None:
    """The name of the function that an attribute is."""
    value = node.attrs.get(attribute)
    return value.name if isinstance(value, Function) else None


def _branches(node: Node) -> list[str]:
    listed = node.attrs.get("branches")
    if listed is None:
        listed = (node.attrs["then_branch"], node.attrs["else_branch"])
    return [each.name for each in listed]
