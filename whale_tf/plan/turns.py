"""Loops whose turns are the examples, as tf.map_fn writes them: each part takes the turns of its own examples.

    y = TensorListSetItem(y, i, f(TensorListGetItem(x, i)))     x and y Split(-1), i Turn(0), what f makes Each

Whatever a turn makes of values of its example, and of what is the same at all turns, belongs to that example. What it
adds to, as the gradient of a variable, is a sum of the examples. Nothing may read what another turn has made. The loop
of a gradient takes what the forward has pushed from the end, so its turns go back from the last example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.sharding import (
    BLANK,
    COUNT,
    LISTED,
    SUMS,
    WHOLE,
    Count,
    Each,
    Reduction,
    Running,
    Split,
    State,
    Turn,
    Value,
    Whole,
)
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.local import AS_IS, FLOATS, INTEGERS, Answer, Given, Local, Operation, Use, piece_of

TOTAL = Running(Reduction.SUM)
READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "Assert"})
_ADDED = frozenset({"Add", "AddV2", "AddN", "Sub"})


def of_turn(operation: Operation) -> Answer | None:
    """What an operation makes of the values of a turn; None where no operand is one."""
    states = [given.value.state for given in operation.inputs]
    if not any(isinstance(state, Each | Turn | Count | Running) or state == LISTED for state in states):
        return None
    op = operation.node.op
    if functions_of(operation.node):
        return _of_example(operation, states)  # else what it calls is looked into
    if op in _LISTS:
        found = _LISTS[op](operation, states)
    elif op == "Identity":
        return Local((operation.inputs[0].value,))
    elif any(isinstance(state, Turn | Count) for state in states):
        found = _counted(operation, states)
    elif TOTAL in states:
        found = _added(operation, states)
    else:
        return None if LISTED in states else _of_example(operation, states)
    return found or f"{op} relates the turns of a loop, which are examples, to each other"


# Lists with an element for each example


def _read(operation: Operation, states: Sequence[State]) -> Answer | None:
    if states[0] != LISTED:
        return _of_example(operation, states)
    return Local((Value(Each(states[1].back)),)) if _is_turn(states[1]) else None


def _written(operation: Operation, states: Sequence[State]) -> Answer | None:
    into, index, item = states
    if not _is_turn(index):
        return None if into == LISTED else _of_example(operation, states)
    fits = item == Each(index.back) or (item == WHOLE and operation.inputs[2].following == ())
    return Local((Value(LISTED),)) if fits and into in (LISTED, BLANK) else None


def _pushed(operation: Operation, states: Sequence[State]) -> Answer | None:
    """The list is one that the loop carries, empty before it: it gets one element at each turn."""
    into, item = states
    if isinstance(item, Turn | Count):
        return Local((Value(item),)) if into in (LISTED, item) and item in (Turn(), COUNT) else None
    if into != LISTED:
        return _of_example(operation, states)
    return Local((Value(LISTED),)) if item in (Each(), WHOLE) and operation.inputs[1].following == () else None


def _popped(operation: Operation, states: Sequence[State]) -> Answer | None:
    """What the forward pushed at the turn of the same example."""
    match states[0]:
        case Split():
            return Local((Value(LISTED), Value(Each(back=True))))
        case Turn(plus):
            return Local((Value(states[0]), Value(Turn(plus, back=True))))
        case Count():
            return Local((Value(COUNT), Value(COUNT)))
    return _of_example(operation, states)


def _length(operation: Operation, states: Sequence[State]) -> Answer | None:
    many = states[0] == LISTED or isinstance(states[0], Turn | Count)
    return Local((Value(COUNT),)) if many else _of_example(operation, states)


def _element_shape(operation: Operation, states: Sequence[State]) -> Answer | None:
    return Local((Value(WHOLE),))


def _reserved(operation: Operation, states: Sequence[State]) -> Answer | None:
    return (
        Local((Value(BLANK),)) if all(isinstance(state, Each | Count) or state == WHOLE for state in states) else None
    )


def _stacked(operation: Operation, states: Sequence[State]) -> Answer | None:
    return Local((Value(Split(0)),)) if states[0] == LISTED else _of_example(operation, states)


_LISTS: Mapping[str, Callable[[Operation, Sequence[State]], Answer | None]] = {
    "TensorListGetItem": _read,
    "TensorListSetItem": _written,
    "TensorListPushBack": _pushed,
    "TensorListPopBack": _popped,
    "TensorListLength": _length,
    "TensorListElementShape": _element_shape,
    "TensorListReserve": _reserved,
    "EmptyTensorList": _reserved,
    "TensorListStack": _stacked,
    "TensorListGather": lambda operation, states: None if LISTED in states else _of_example(operation, states),
}


# Numbers


def _is_turn(state: State) -> TypeGuard[Turn]:
    return isinstance(state, Turn) and not state.plus


def _counted(operation: Operation, states: Sequence[State]) -> Answer | None:
    """Numbers of turns count on, are compared with how many there are, and say nothing else."""
    if len(states) != 2:
        return None
    op, (first, second), (a, b) = operation.node.op, states, operation.inputs
    match op, first, second:
        case (("Add" | "AddV2" | "Sub"), Turn(plus, back), Whole()) if b.number is not None and not b.number.ndim:
            return Local((Value(Turn(plus + (-1 if op == "Sub" else 1) * int(b.number), back)),))
        case (("Add" | "AddV2"), Whole(), Turn(plus, back)) if a.number is not None and not a.number.ndim:
            return Local((Value(Turn(plus + int(a.number), back)),))
        case "Less", Turn(0, False), Count() | Whole() if second == COUNT or b.counts:
            return Local((Value(COUNT),), {} if second == COUNT else {1: Use(sized=True)})
        case "Greater", Count() | Whole(), Turn(0, False) if first == COUNT or a.counts:
            return Local((Value(COUNT),), {} if first == COUNT else {0: Use(sized=True)})
        case "LogicalAnd", Count(), Count():
            return Local((Value(COUNT),))
    return None


def _added(operation: Operation, states: Sequence[State]) -> Answer | None:
    """What each turn adds, to a sum of all turns that nothing else is made of."""
    others = [state for state in states if state != TOTAL]
    whole = all(given.following == () for given in operation.inputs)
    first = operation.node.op != "Sub" or states[0] == TOTAL
    alike = all(isinstance(state, Each) or state == WHOLE for state in others) and len(states) - len(others) == 1
    return Local((Value(TOTAL),)) if operation.node.op in _ADDED and alike and whole and first else None


def _of_example(operation: Operation, states: Sequence[State]) -> Answer | None:
    """Any operation on values of one example and what is the same for all."""
    node = operation.node
    found = {state for state in states if state not in (WHOLE, BLANK)}
    if len(found) != 1 or not isinstance(next(iter(found)), Each):
        return None
    if not _only_reads(node, operation.bodies) or any(given.value.degree for given in operation.inputs):
        return None
    if any(given.following != () for given in operation.inputs) or any(dims != () for dims in operation.following):
        return None
    if any(_follows(operation.bodies, name) for name in functions_of(node).values()):
        return None
    return Local(tuple(Value(next(iter(found))) for _ in node.outputs))


def _only_reads(node: Node, bodies: Mapping[str, Sizes]) -> bool:
    """Whether all that it does is to give its results, read variables and assert."""
    if not node.stateful or node.op in READS:
        return True
    called = [bodies.get(name) for name in functions_of(node).values()]
    return bool(called) and all(
        sizes is not None and all(_only_reads(inner, sizes.bodies) for inner in sizes.graph) for sizes in called
    )


def _follows(bodies: Mapping[str, Sizes], name: str) -> bool:
    """Whether something in a function is another at another size of the batch."""
    sizes = bodies.get(name)
    if sizes is None or sizes.shapes or sizes.operands or sizes.attributes or sizes.fixed:
        return True
    called = [each for node in sizes.graph for each in functions_of(node).values()]
    return any(_follows(sizes.bodies, each) for each in called)


# The loop


@dataclass
class _Carried:
    """What a loop carries from turn to turn.

    Attributes:
      kept: whether every turn passes it on as it is.
      value: what a turn is given.
      listed: whether it is a list.
      use: what it is made into before the first turn.
    """

    kept: bool
    value: Value
    listed: bool
    use: Use = AS_IS

    def goes_on(self, result: Value) -> bool:
        """Whether the next turn is given what this one was, as the next turn has it."""
        counter = self.value == Value(Turn()) and not self.listed
        return result == (Value(Turn(1)) if counter else self.value)


def loop_over_examples(operation: Operation, condition: str, turn: str) -> Answer:
    """A loop whose turns are the examples, as often as a part has some."""
    body = operation.bodies.get(turn)
    if body is None:
        return "a function that cannot be looked into"
    carried = [_start(given, _kept(body.graph, position)) for position, given in enumerate(operation.inputs)]
    if not _lists_in_turn(body.graph, [given.value.state for given in operation.inputs]):
        return "a loop over examples that puts several elements at once into a list"
    for _ in range(3):
        results = operation.inside(turn, [each.value for each in carried])
        if isinstance(results, str):
            return results
        again = False
        for each, result in zip(carried, results, strict=True):
            if each.value == Value(LISTED) and isinstance(result.state, Turn | Count):
                each.value, again = result, True
            elif not each.goes_on(result):
                return "a loop over examples in which a turn takes what another one has made"
        if not again:
            break
    ends = operation.inside(condition, [each.value for each in carried])
    if isinstance(ends, str):
        return ends
    if ends != (Value(COUNT),):
        return "a loop over examples that ends by something else than their number"
    uses = {position: each.use for position, each in enumerate(carried) if each.use != AS_IS}
    return Local(
        tuple(_behind(each.value, kind.dtype) for each, kind in zip(carried, operation.node.outputs, strict=True)), uses
    )


def _behind(value: Value, dtype: str) -> Value:
    if dtype != "variant" and isinstance(value.state, Turn):
        return Value(COUNT)
    return Value(SUMS) if value.state == TOTAL else value


def _start(given: Given, kept: bool) -> _Carried:
    """What the first turn is given."""
    value, listed, use = given.value, given.kind.dtype == "variant", AS_IS
    if value == Value(WHOLE) and given.counts:
        value, use = Value(COUNT), Use(sized=True)
    elif kept and value == Value(WHOLE) and given.following and len(given.following) == 1:
        split = Split(given.following[0])
        piece = piece_of(given, split)
        value, use = (value, use) if piece is None else (Value(split), piece)
    elif not kept and listed and value.state == BLANK:
        value = Value(LISTED)
    elif not kept and given.kind.dtype in INTEGERS and _is_zero(given) and given.kind.shape == ():
        value = Value(Turn())
    elif not kept and given.kind.dtype in FLOATS and given.following == () and value.state in (WHOLE, SUMS, BLANK):
        added = value.state == WHOLE and not _is_zero(given)  # once to the sum: a share of it to each part's
        value, use = Value(TOTAL), Use(power=added - value.degree)
    return _Carried(kept, value, listed, use)


def _is_zero(given: Given) -> bool:
    return given.number is not None and not given.number.any()


def _kept(graph: Graph, position: int) -> bool:
    """Whether a result is the argument of the same position."""
    node = _source(graph, graph.outputs[position])
    return node.op == "Argument" and node.attrs["index"] == position


def _source(graph: Graph, ref: Ref) -> Node:
    node = graph[ref.node]
    while node.op == "Identity":
        node = graph[node.inputs[0].node]
    return node


def _lists_in_turn(graph: Graph, states: Sequence[State]) -> bool:
    """Whether each list that is carried gets or gives one element at its end at each turn, or none."""
    ended: set[int] = set()
    for node in graph:
        if node.op not in ("TensorListPushBack", "TensorListPopBack"):
            continue
        source = _source(graph, node.inputs[0])
        if source.op != "Argument":
            continue
        index = source.attrs["index"]
        if index in ended or (states[index] == BLANK) != (node.op == "TensorListPushBack"):
            return False
        ended.add(index)
    return True
