"""The states of an operation's results: by what is particular to its kind, or by its rule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from whale_tf.ir.functions import functions_of
from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import BLANK, SUMS, WHOLE, Apart, Split, Value
from whale_tf.ir.sizes import Sizes
from whale_tf.plan import calls, lists, positions, rows, shapes
from whale_tf.plan.local import FLOATS, Answer, Given, Inside, Local, Operation
from whale_tf.plan.own import apart
from whale_tf.plan.positions import by_rule
from whale_tf.plan.turns import of_turn


def _begins(sizes: Sizes, node: str, position: int, ref: Ref) -> bool:
    """Whether a constant at the other size is the beginning of the one at the global batch."""
    there = sizes.operands.get((node, position))
    if there is None or there.ndim != sizes.values[ref].ndim:
        return True
    larger, smaller = sorted((sizes.values[ref], there), key=lambda value: value.size, reverse=True)
    return bool(np.array_equal(larger[tuple(slice(size) for size in smaller.shape)], smaller))


def _counts(sizes: Sizes, node: str, position: int, ref: Ref) -> bool:
    """Whether a constant is the number of examples at both sizes."""
    there = sizes.operands.get((node, position))
    if there is None or there.size != 1 or there.dtype.kind not in "iu":
        return False
    return bool(sizes.values[ref] == sizes.batch and there == sizes.other)


BRANCHES = frozenset({"If", "StatelessIf"})


# Of these a part can draw its own rows: with a seed as one device, else with a seed of its own (rewrite.fold_random).
DRAWN_BY_PARTS = frozenset(
    {"RandomUniform", "RandomStandardNormal", "TruncatedNormal", "RandomUniformInt", "Multinomial"}
    | {
        f"Stateless{kind}{version}"
        for kind in ("RandomUniform", "RandomNormal", "TruncatedNormal", "RandomUniformInt", "RandomUniformFullInt")
        for version in ("", "V2")
    }
)


def operation_of(
    sizes: Sizes,
    node: Node,
    values: Sequence[Value],
    needed: bool,
    inside: Inside,
) -> Operation:
    """A node with what is known of its operands."""
    given = tuple(
        Given(
            ref,
            sizes.type_of(ref),
            value,
            sizes.following(ref),
            sizes.values.get(ref),
            functools.partial(sizes.proportional, ref),
            sizes.batch,
            _begins(sizes, node.name, position, ref),
            _counts(sizes, node.name, position, ref),
        )
        for position, (ref, value) in enumerate(zip(node.inputs, values, strict=True))
    )
    following = tuple(sizes.following(Ref(node.name, index)) for index in range(len(node.outputs)))
    return Operation(
        node,
        given,
        following,
        lambda index, dim, outer: sizes.proportional(Ref(node.name, index), dim, outer),
        sizes.batch,
        needed,
        asserts(sizes, node),
        sizes.bodies,
        inside,
    )


def asserts(sizes: Sizes, node: Node) -> bool:
    """Whether all that a node does is to assert something, itself or in its branches."""
    if node.op not in BRANCHES:
        return node.op == "Assert"
    bodies = [sizes.bodies[name].graph for name in functions_of(node).values() if name in sizes.bodies]
    effects = [inner.op for body in bodies for inner in body if inner.stateful]
    return bool(effects) and set(effects) == {"Assert"}


def answer_of(operation: Operation) -> Answer:
    """The states of the results and the uses of the operands, or why no part can run it."""
    for found in (apart(operation), of_turn(operation), special(operation)):
        if found is not None:
            break
    else:
        found = _assertion(operation) if operation.node.op == "Assert" else by_rule(operation)
    if isinstance(found, str):
        return found
    for value, dims in zip(found.results, operation.following, strict=True):
        if value.state == WHOLE and dims != ():
            return f"{operation.node.op} gives each part as much as all of them"
    return _unscalable(operation, found) or found


def _assertion(operation: Operation) -> Local | str:
    """Each part asserts what it has; that all hold is that the whole holds."""
    if any(given.reduction and given.kind.dtype != "bool" for given in operation.inputs):
        return "Assert needs the total over all examples"
    return Local(())


def _unscalable(operation: Operation, local: Local) -> str:
    for position, use in local.uses.items():
        if use.power and operation.inputs[position].kind.dtype not in FLOATS:
            return f"{operation.node.op} takes integers, which cannot be scaled"
    return ""


# On lists and optionals these act on what they hold.
_OF_VARIANTS = frozenset({"Identity", "ZerosLike", "AddN", "StopGradient", "PreventGradient"})
RANDOM = frozenset(
    {
        "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle", "Multinomial",
        "RandomGammaV2", "RandomGamma", "RandomPoissonV2", "ParameterizedTruncatedNormal",
        "SampleDistortedBoundingBoxV2",
        "StatelessRandomGetKeyCounter", "StatelessRandomUniform", "StatelessRandomUniformInt", "StatelessRandomNormal",
        "StatelessTruncatedNormal", "StatelessMultinomial", "StatelessRandomBinomial", "StatelessRandomPoisson",
        "StatelessRandomGammaV2", "StatelessRandomGammaV3", "StatelessRandomUniformFullInt",
        "StatelessParameterizedTruncatedNormal", "StatelessShuffle", "StatelessSampleDistortedBoundingBox",
        "StatelessRandomUniformV2", "StatelessRandomNormalV2", "StatelessTruncatedNormalV2",
        "StatelessRandomUniformIntV2", "StatelessRandomUniformFullIntV2",
    }
)  # fmt: skip


def special(operation: Operation) -> Answer | None:
    """The answer of an operation that has one of its own; None for all others."""
    answer = _ANSWERS.get(operation.node.op)
    first = operation.inputs[0] if operation.inputs else None
    held = first is not None and (first.kind.dtype == "variant" or first.value.state == BLANK)
    if held and operation.node.op in _OF_VARIANTS:
        answer = lists.passed
    return None if answer is None else answer(operation)


def _random(operation: Operation) -> Answer:
    """Rows that follow the batch are drawn by each part; what does not is drawn once."""
    op, dims = operation.node.op, operation.following[0] if operation.following else ()
    if any(given.cut or given.reduction for given in operation.inputs):
        drawn = op == "Multinomial" and operation.inputs[0].cut == Split(0) and operation.inputs[1].whole
        return Local((Value(Split(0)),)) if drawn else "examples are drawn or ordered at random"
    if not dims:
        return "it is drawn once"
    if op not in DRAWN_BY_PARTS:
        return f"{op} draws for all examples at once"
    if len(dims) != 1 or not operation.proportional(0, dims[0], 1):
        return "random numbers with more than one dim that grows with the batch"
    return Local(tuple(Value(Split(dims[0])) for _ in operation.node.outputs))


def _batch_norm(operation: Operation) -> Answer:
    """FusedBatchNorm: with given statistics by example; in training, statistics of each part if that is accepted."""
    x, *others = operation.inputs
    if x.cut is None or x.cut.dim or any(not given.whole for given in others):
        return by_rule(operation)
    count = len(operation.node.outputs)
    training = operation.node.attrs.get("is_training", True)
    statistics = Value(SUMS, Fraction(-1)) if training else Value(WHOLE)
    return Local((x.value, *(statistics for _ in range(count - 1))))


def _batch_norm_gradient(operation: Operation) -> Answer:
    """By the statistics of each part, if those were accepted."""
    gradient, x, *others = operation.inputs
    if gradient.cut is None or x.cut != gradient.cut or gradient.cut.dim:
        return "the gradient of a normalization needs its statistics"
    training = operation.node.attrs.get("is_training", True)
    accepted = all(isinstance(given.value.state, Apart) for given in others[1:3])
    if training and not accepted:
        return "the gradient of a normalization over the batch relates examples to each other"
    degree = gradient.value.degree
    reserved = [Value(WHOLE) for _ in operation.node.outputs[3:]]
    return Local((gradient.value, Value(SUMS, degree), Value(SUMS, degree), *reserved))


_APPLIES: Mapping[Callable[[Operation], Answer], str] = {
    rows.shape_of: "Shape Size",
    shapes.product_of: "Prod",
    positions.where: "Where",
    positions.of_sparse: "SparseTensorDenseMatMul",
    positions.by_position: " ".join(positions.POSITIONS),
    shapes.reshape: "Reshape Squeeze ExpandDims EnsureShape",
    shapes.concat: "ConcatV2",
    shapes.tile: "Tile",
    shapes.spread: "Fill BroadcastTo",
    shapes.alike: "ZerosLike OnesLike",
    shapes.blocks: "Split Slice StridedSlice",
    _random: " ".join(sorted(RANDOM)),
    lists.list_of: "TensorListFromTensor",
    lists.stacked: "TensorListStack TensorListGather",
    lists.element: "TensorListGetItem TensorListPopBack OptionalGetValue",
    lists.filled: "TensorListSetItem TensorListPushBack",
    lists.reserved: "TensorListReserve EmptyTensorList OptionalNone",
    lists.passed: "IdentityN",
    lists.optional: "OptionalFromValue",
    lists.of_list: "TensorListLength TensorListElementShape TensorListResize",
    _batch_norm: "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
    _batch_norm_gradient: "FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3",
    calls.call: "PartitionedCall StatefulPartitionedCall",
    calls.branch: "If StatelessIf Case StatelessCase",
    calls.loop: "While StatelessWhile",
}
_ANSWERS: Mapping[str, Callable[[Operation], Answer]] = MappingProxyType(
    {op: answer for answer, ops in _APPLIES.items() for op in ops.split()}
)
