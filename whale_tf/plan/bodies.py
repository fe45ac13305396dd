"""What a part gets of a function that it calls: nothing inside can be merged, cut or scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import BLANK, SUMS, WHOLE, Split, Value
from whale_tf.ir.sizes import Sizes, uniform
from whale_tf.plan.answers import RANDOM, answer_of, operation_of
from whale_tf.plan.local import AS_IS, Inside, Local, Use

FUSED = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
PASSED = frozenset({"Identity", "TensorListSetItem", "TensorListPushBack", "TensorListPopBack", "TensorListResize"})
EMPTY = frozenset({"TensorListReserve", "EmptyTensorList", "OptionalNone"})
LISTS = frozenset({"TensorListFromTensor"})
OUTPUTS = ""  # in the uses of a function, the node that its results go to


@dataclass(frozen=True)
class Body:
    """What a part gets of a function: its results, and the uses inside."""

    results: tuple[Value, ...]
    uses: Mapping[tuple[str, int], Use]


def inside_of(sizes: Sizes, bodies: dict[str, Mapping[tuple[str, int], Use]]) -> Inside:
    """What gives the results of the functions that nodes of a graph call.

    Args:
      bodies: the uses inside those functions; added to.
    """

    def inside(name: str, given: Sequence[Value], wanted: Sequence[Value] | None = None) -> tuple[Value, ...] | str:
        found = derive_body(sizes.bodies.get(name), given, bodies, wanted)
        if isinstance(found, str):
            return found
        bodies[name] = found.uses
        return found.results

    return inside


def derive_body(
    sizes: Sizes | None,
    arguments: Sequence[Value],
    bodies: dict[str, Mapping[tuple[str, int], Use]],
    wanted: Sequence[Value] | None = None,
) -> Body | str:
    """The results of a function that each part calls with arguments of its own; nothing inside can be merged.

    Args:
      bodies: the uses inside the functions that it calls; added to.
      wanted: what the results have to be, where a whole one may be made something else.
    """
    if sizes is None:
        return "a function that cannot be looked into"
    values: dict[Ref, Value] = {}
    uses: dict[tuple[str, int], Use] = {}

    inside = inside_of(sizes, bodies)
    for node in sizes.graph:
        if node.op == "Argument":
            values[Ref(node.name)] = arguments[node.attrs["index"]]
            continue
        outputs = [Ref(node.name, index) for index in range(len(node.outputs))]
        if outputs and outputs[0] in sizes.values:
            values.update((ref, Value(WHOLE)) for ref in outputs)
            continue
        given = [values[ref] for ref in node.inputs]
        empty = node.op in PASSED and given[0].state == BLANK
        drawn = node.op in RANDOM and node.stateful
        whole = all(value == Value(WHOLE) or value.state == BLANK for value in given)
        if whole and not (empty or drawn or grows(sizes, node)):
            values.update((ref, Value(WHOLE)) for ref in outputs)
            continue
        if node.name in sizes.fixed:
            return f"inside it, {node.op} takes or gives a tensor for each example"
        if node.op in FUSED:
            return f"inside it, {node.op} normalizes over the batch"
        found = answer_of(operation_of(sizes, node, given, True, inside))
        if isinstance(found, str):
            return f"inside it, {found}"
        refused = _refused(node, found)
        if refused:
            return f"inside it, {refused}"
        uses.update(((node.name, position), use) for position, use in found.uses.items())
        values.update(zip(outputs, found.results, strict=True))
    results = [values[ref] for ref in sizes.graph.outputs]
    for index, (ref, value) in enumerate(zip(sizes.graph.outputs, wanted or results, strict=True)):
        if results[index] == value or results[index].state == BLANK:
            continue
        use = _as_wanted(sizes, ref, value) if results[index] == Value(WHOLE) else None
        if use is None:
            return "inside it, a result depends on the batch in another way than is wanted"
        uses[OUTPUTS, index], results[index] = use, value
    return Body(tuple(results), uses)


def _refused(node: Node, found: Local) -> str:
    """Why a part cannot do in a body what it can in the step."""
    if any(use.power or use.shift or (use.piece and not use.alike) for use in found.uses.values()):
        return f"{node.op} takes a value that would have to be cut or scaled"
    return "random numbers are drawn from a seed" if "Stateless" in node.op and node.op in RANDOM else ""


def grows(sizes: Sizes, node: Node) -> bool:
    """Whether rows that follow the batch, or a list, may be made of operands that are whole."""
    listed = node.op in LISTS and bool(sizes.following(node.inputs[0]))
    return node.op in EMPTY or listed or any(sizes.following(Ref(node.name, i)) for i in range(len(node.outputs)))


def _as_wanted(sizes: Sizes, ref: Ref, wanted: Value) -> Use | None:
    """How a constant result becomes cut, or a term of a sum; None if it cannot."""
    number = sizes.values.get(ref)
    alike = None if number is None else uniform(number)
    if alike is None:
        return None
    if isinstance(wanted.state, Split) and sizes.following(ref) == (wanted.state.dim,):
        return Use(wanted.state, alike=True)
    return AS_IS if wanted.state == SUMS and not alike else None
