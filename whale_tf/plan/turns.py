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
    Carried,
    Count,
    Each,
    Placed,
    Split,
    State,
    Turn,
    Value,
    Whole,
)
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.local import AS_IS, FLOATS, INTEGERS, Answer, Given, Local, Operation, Use, piece_of

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "Assert"})
_ADDED = frozenset({"Add", "AddV2", "AddN", "Sub"})


def of_turn(operation: Operation) -> Answer | None:
    """What an operation makes of the values of a turn; None where no operand is one."""
    states = [given.value.state for given in operation.inputs]
    if not any(isinstance(state, Each | Turn | Count | Carried | Placed) or state == LISTED for state in states):
        return None
    op = operation.node.op
    if functions_of(operation.node):
        return _of_example(operation, states)  # else what it calls is looked into
    if op in _LISTS:
        found = _LISTS[op](operation, states)
    elif op == "Identity":
        return Local((operation.inputs[0].value,))
    elif any(isinstance(state, Carried) for state in states):
        found = _added(operation, states)
    elif any(isinstance(state, Turn | Count) for state in states):
        found = _counted(operation, states)
    else:
        return None if LISTED in states else _of_example(operation, states)
    return found or f"{op} relates the turns of a loop, which are examples, to each other"


# Lists with an element for each example


def _read(operation: Operation, states: Sequence[State]) -> Answer | None:
    if states[0] != LISTED and not _holds(states[0], "each"):
        return None if isinstance(states[0], Carried | Placed) else _of_example(operation, states)
    return Local((Value(Each(states[1].back)),)) if _is_turn(states[1]) else None


def _written(operation: Operation, states: Sequence[State]) -> Answer | None:
    into, index, item = states
    if not _is_turn(index):
        return None if into == LISTED or isinstance(into, Carried | Placed) else _of_example(operation, states)
    if item != Each(index.back) and (item != WHOLE or operation.inputs[2].following != ()):
        return None
    if _holds(into, "each") or _holds(into, "nothing"):
        return Local((Value(Carried(into.at, "each")),))
    return Local((Value(Placed()),)) if into == BLANK else None


def _pushed(operation: Operation, states: Sequence[State]) -> Answer | None:
    """The list is one that the loop carries, empty before it: it gets one element at each turn."""
    into, item = states
    if not isinstance(into, Carried):
        return None if into == LISTED or isinstance(item, Turn | Count | Carried) else _of_example(operation, states)
    whole = item == WHOLE and operation.inputs[1].following == ()
    holds = "each" if whole or item == Each() else _NUMBERS.get(item)
    fits = holds is not None and into.holds in ("nothing", holds)
    return Local((Value(Carried(into.at, holds or "")),)) if fits else None


def _popped(operation: Operation, states: Sequence[State]) -> Answer | None:
    """What the forward pushed at the turn of the same example."""
    if not isinstance(states[0], Carried):
        return None if states[0] == LISTED else _of_example(operation, states)
    items: Mapping[str, State] = {"each": Each(back=True), "turn": Turn(back=True), "count": COUNT}
    item = items.get(states[0].holds)
    return None if item is None else Local((Value(states[0]), Value(item)))


def _length(operation: Operation, states: Sequence[State]) -> Answer | None:
    many = states[0] == LISTED or isinstance(states[0], Turn | Count)
    return Local((Value(COUNT),)) if many else _of_example(operation, states)


def _element_shape(operation: Operation, states: Sequence[State]) -> Answer | None:
    return Local((Value(WHOLE),))


def _reserved(operation: Operation, states: Sequence[State]) -> Answer | None:
    blank = all(isinstance(state, Each | Count) or state == WHOLE for state in states)
    return Local((Value(BLANK),)) if blank else None


def _stacked(operation: Operation, states: Sequence[State]) -> Answer | None:
    return Local((Value(Split(0)),)) if states[0] == LISTED else _of_example(operation, states)


_NUMBERS: Mapping[State, str] = {Turn(): "turn", COUNT: "count"}
_HELD: Mapping[State, str] = {**_NUMBERS, LISTED: "each", BLANK: "nothing"}
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


def _holds(state: State, what: str) -> TypeGuard[Carried]:
    return isinstance(state, Carried) and state.holds == what


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
    """What each turn adds: to a sum of all turns that nothing else is made of, or its element to a list."""
    carried = [state for state in states if isinstance(state, Carried)]
    others = [state for state in states if not isinstance(state, Carried)]
    if operation.node.op not in _ADDED or len(carried) != 1 or any(each.following != () for each in operation.inputs):
        return None
    if operation.node.op == "Sub" and states[0] != carried[0]:
        return None
    if carried[0].holds == "sum":
        fits = all(isinstance(state, Each) or state == WHOLE for state in others)
    else:
        fits = carried[0].holds == "each" and all(state == Placed() for state in others)
    return Local((Value(carried[0]),)) if fits else None


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
class _Entering:
    """What a loop carries from turn to turn.

    Attributes:
      value: what a turn is given.
      use: what it is made into before the first turn.
      kept: whether every turn hands it on as it is.
    """

    value: Value
    use: Use = AS_IS
    kept: bool = False

    @property
    def next(self) -> Value:
        """What a turn has to hand on, for the next one to be given the same."""
        return Value(Turn(1)) if self.value == Value(Turn()) and not self.kept else self.value


def loop_over_examples(operation: Operation, condition: str, turn: str) -> Answer:
    """A loop whose turns are the examples, as often as a part has some."""
    body = operation.bodies.get(turn)
    if body is None:
        return "a function that cannot be looked into"
    carried = [_start(given, position, _kept(body.graph, position)) for position, given in enumerate(operation.inputs)]
    if not _lists_in_turn(body.graph, [given.value.state for given in operation.inputs]):
        return "a loop over examples that puts several elements at once into a list"
    for _ in range(2):
        results = operation.inside(turn, [each.value for each in carried])
        if isinstance(results, str):
            return results
        for each, result in zip(carried, results, strict=True):
            if _holds(each.value.state, "nothing") and isinstance(result.state, Carried):
                each.value = result if result.state.at == each.value.state.at else each.value
    if any(each.next != result for each, result in zip(carried, results, strict=True)):
        return "a loop over examples in which a turn takes what another one has made"
    ends = operation.inside(condition, [each.value for each in carried])
    if isinstance(ends, str):
        return ends
    if ends != (Value(COUNT),):
        return "a loop over examples that ends by something else than their number"
    uses = {position: each.use for position, each in enumerate(carried) if each.use != AS_IS}
    return Local(tuple(_behind(each.value) for each in carried), uses)


_BEHIND: Mapping[str, State] = {"sum": SUMS, **{holds: state for state, holds in _HELD.items()}}


def _behind(value: Value) -> Value:
    """What it is when the loop has ended."""
    if isinstance(value.state, Carried):
        return Value(_BEHIND[value.state.holds])
    return Value(COUNT) if value == Value(Turn()) else value


def _start(given: Given, position: int, kept: bool) -> _Entering:
    """What the first turn is given."""
    value, listed, use = given.value, given.kind.dtype == "variant", AS_IS
    if value == Value(WHOLE) and given.counts:
        return _Entering(Value(COUNT), Use(sized=True))
    if kept and value == Value(WHOLE) and given.following and len(given.following) == 1:
        split = Split(given.following[0])
        piece = piece_of(given, split)
        return _Entering(value, kept=True) if piece is None else _Entering(Value(split), piece, kept=True)
    if kept:
        return _Entering(value, kept=True)
    if listed and value.state in _HELD:
        return _Entering(Value(Carried(position, _HELD[value.state])))
    if given.kind.dtype in INTEGERS and _is_zero(given) and given.kind.shape == ():
        return _Entering(Value(Turn()))
    if given.kind.dtype in FLOATS and given.following == () and value.state in (WHOLE, SUMS, BLANK):
        added = value.state == WHOLE and not _is_zero(given)  # once to the sum: a share of it to each part's
        use = Use(power=added - value.degree)
        value = Value(Carried(position, "sum"))
    return _Entering(value, use)


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
