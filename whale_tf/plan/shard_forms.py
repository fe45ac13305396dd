"""How a member of a mesh runs an operation, given how its operands lie: what it takes, and what it gives.

    MatMul(h Split(1), w Split(0))       takes both so, gives a Partial(sum)      the letter k of ak,kb->ab
    AddV2(y Partial(sum), x Whole)       takes x as member 0's, gives a Partial   linear in all operands
    Relu(y Partial(sum))                 takes y whole, gives it whole

Every answer is right, whatever the operands: what is taken otherwise than it lies is brought there. They differ in how
much is computed and moved.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from whale_tf.ir.graph import Graph, Node, Ref, Shape
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Reduction, Split, State
from whale_tf.plan.kinds import TypedNode
from whale_tf.plan.shard_rules import REDUCED, RESHAPES, MeshRule, cut_letters, moved

# What moves a sum on as it is: the numbers of operand 0 only change places, or sign.
CARRIES = frozenset({"Transpose", "Neg", "Sum", "Identity"})
ADDS = frozenset({"AddN", "AddV2", "Add", "Sub", "BiasAdd", "Pack", "ConcatV2"})
# Operands that say the shape of a result: each member is told its own.
SHAPES_OF_RESULTS = {
    "AvgPool3DGrad": 0, "AvgPoolGrad": 0, "BroadcastTo": 1, "Conv2DBackpropFilter": 1, "Conv2DBackpropInput": 0,
    "Conv3DBackpropFilterV2": 1, "Conv3DBackpropInputV2": 0, "DepthwiseConv2dNativeBackpropFilter": 1,
    "DepthwiseConv2dNativeBackpropInput": 0, "Empty": 0, "Fill": 0, "Reshape": 1, "ScatterNd": 2, "Slice": 2,
    "StridedSliceGrad": 0,
}  # fmt: skip
# Operands that say axes, or speak of dims that are whole: they are the same for all members.
SAME_FOR_ALL = frozenset(
    {
        "All", "Any", "ArgMax", "ArgMin", "ConcatV2", "ConjugateTranspose", "Cumprod", "Cumsum", "CumulativeLogsumexp",
        "ExpandDims", "GatherV2", "Max", "Mean", "Min", "OneHot", "Pad", "PadV2", "MirrorPad", "MirrorPadGrad", "Prod",
        "ReverseV2", "Split", "SplitV", "Squeeze", "StridedSlice", "Sum", "Tile", "TopKV2", "Transpose",
        "UnsortedSegmentSum", "ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea",
        "ResizeNearestNeighborGrad", "Roll",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """An operation with how its operands lie.

    Attributes:
      given: the states of the operands.
      wished: how results are wished; None for no wish.
      lone: of each operand whether nobody else takes it.
      parameters: of each operand whether it is a parameter or made of one.
      heading: how operands that are sums are wished, and so brought for others; None for no wish.
      into_gradient: whether the result becomes a parameter's gradient.
    """

    typed: TypedNode
    rule: MeshRule | None
    given: tuple[State, ...]
    wished: tuple[Split | None, ...]
    lone: tuple[bool, ...]
    parameters: tuple[bool, ...]
    into_gradient: bool
    members: int
    heading: tuple[Split | None, ...] = ()

    @property
    def node(self) -> Node:
        """The operation."""
        return self.typed.node


@dataclass(frozen=True)
class Form:
    """How a member runs an operation.

    Attributes:
      takes: the states that operands are brought to.
      gives: those of the results.
      letter: the letter that is cut; empty if the operation is not cut.
      inside: whether the operation searches or sums up inside the letter.
    """

    takes: tuple[State, ...]
    gives: tuple[State, ...]
    letter: str = ""
    inside: bool = False


def form_of(operands: Operands) -> Form:
    """How a member runs an operation."""
    node = operands.node
    if node.op in RESHAPES:
        return _reshaped(operands)
    partial = _partial(operands)
    if partial is not None and not any(isinstance(state, Split) for state in operands.given):
        return partial  # sums are added before they are brought to where the result is wished
    cuts = (_cut(operands, letter, outer) for letter, outer in _candidates(operands))
    found = next((form for form in cuts if form is not None), None)
    return found or partial or whole_form(operands)


def whole_form(operands: Operands) -> Form:
    """Every member takes all, and has all."""
    return Form((WHOLE,) * len(operands.given), (WHOLE,) * len(operands.node.outputs))


def _reshaped(operands: Operands) -> Form:
    typed, rest = operands.typed, (WHOLE,) * (len(operands.given) - 1)
    state = operands.given[0]
    if isinstance(state, Split):
        result = moved(typed.input(0), typed.output(), state, operands.members)
        if result is not None:
            return Form((state, *rest), (result,), "reshape")
    if state == SUMS and operands.lone[0]:
        return Form((state, *rest), (state,))
    return whole_form(operands)


def _candidates(operands: Operands) -> Iterator[tuple[str, int]]:
    """Letters to cut, the best first: a parameter's, a gradient's, what operands and results agree on."""
    if operands.rule is None:
        return
    rule = operands.rule.rule
    taken = list(cut_letters(rule.inputs, operands.given))
    wanted = [each for _, each in cut_letters(rule.outputs, operands.wished)]
    of_parameters = [each for at, each in taken if operands.parameters[at]]
    real = [each for _, each in taken]
    agreed = [each for each in real if each in wanted]
    into = wanted if operands.into_gradient else []
    headed = [each for _, each in cut_letters(rule.inputs, operands.heading or (None,) * len(rule.inputs))]
    yield from dict.fromkeys([*of_parameters, *into, *agreed, *real, *wanted, *headed])


def _cut(operands: Operands, letter: str, outer: int) -> Form | None:
    """The form with a letter cut; None if it is not to be had."""
    assert operands.rule is not None  # there are candidates
    node, rule = operands.node, operands.rule.rule
    shapes = [*(kind.shape for kind in operands.typed.inputs), *(kind.shape for kind in node.outputs)]
    names = (*rule.inputs, *rule.outputs)
    if not all(map(lambda name, shape: _divides(name, shape, letter, outer, operands.members), names, shapes)):
        return None
    known = node.op in SHAPES_OF_RESULTS or node.op in SAME_FOR_ALL
    if node.stateful or (rule.shapes and not known):
        return None
    inside = operands.rule.inside.get(letter)
    if inside is not None and outer > 1:
        return None
    gives: list[State] = []
    for name, kind in zip(rule.outputs, node.outputs, strict=True):
        if letter in name:
            gives.append(Split(name.index(letter), outer))
        elif inside is not None:
            gives.append(inside)
        elif rule.reduction in (Reduction.SUM, Reduction.MAX, Reduction.MIN) and kind.dtype in REDUCED:
            gives.append(Partial(rule.reduction))
        else:
            return None
    reduces = any(isinstance(state, Partial) for state in gives)
    takes = tuple(
        Split(name.index(letter), outer) if letter in name else SUMS if reduces and at in rule.additive else WHOLE
        for at, name in enumerate(rule.inputs)
    )
    if SUMS in takes and gives != [SUMS]:
        return None
    return Form(takes, tuple(gives), letter, inside is not None)


def _divides(name: str, shape: Shape, letter: str, outer: int, members: int) -> bool:
    if letter not in name:
        return True
    size = shape[name.index(letter)] if shape != Shape.unknown else None
    return size is not None and size > 0 and size % (outer * members) == 0


def _partial(operands: Operands) -> Form | None:
    """The form in which sums stay what each member has; None if one is needed whole."""
    node, given, count = operands.node, operands.given, len(operands.given)
    sums = [at for at, state in enumerate(given) if state == SUMS]
    if not sums or not all(operands.lone[at] for at in sums) or len(node.outputs) != 1:
        return None
    rest: tuple[State, ...] = (WHOLE,) * count
    if node.op in CARRIES and sums == [0]:
        return Form((SUMS, *rest[1:]), (SUMS,))
    if node.op in ADDS and all(state in (WHOLE, SUMS) for state in given):
        last = count - 1 if node.op == "ConcatV2" else count
        shapes = [kind.shape for kind in operands.typed.inputs[:last]]
        if _elements(node.outputs[0].shape) <= max(map(_elements, (shapes[at] for at in sums))) * len(sums):
            return Form((*(SUMS,) * last, *rest[last:]), (SUMS,))
    return None


def _elements(shape: Shape) -> int:
    return math.prod(shape.sizes) if shape.known else 1 << 62


def becomes_gradient(graph: Graph, markers: Collection[str]) -> frozenset[Ref]:
    """The tensors that become a parameter's gradient, through what only changes their shape or type."""
    found: set[Ref] = set()
    for name in markers:
        for ref in graph[name].inputs:
            found.add(ref)
            node = graph[ref.node]
            while node.op in ("Reshape", "Sum", "Transpose", "Cast", "Scale") and len(graph.users[node.name]) == 1:
                found.add(node.inputs[0])
                node = graph[node.inputs[0].node]
    return frozenset(found)
