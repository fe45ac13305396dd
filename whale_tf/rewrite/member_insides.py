"""Operations that search or sum up inside the dim that is cut, as each member does its part of them.

    Softmax                              largest: all-reduce; sum of exponentials: all-reduce
    SparseSoftmaxCrossEntropyWithLogits  largest; then the sum, and the logit of the label, which one member has
    GatherV2                             rows of the member's own, zeros for the others'; the sum is the answer
    UnsortedSegmentSum, OneHot           numbers counted from the member's first
    ArgMax, ArgMin                       the extreme; then the least number that has it
    InTopKV2                             the target's number, which one member has; then how many are larger

No tensor as wide as the whole dim is made. Source: Shoeybi et al. 2019, Megatron-LM, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import Split
from whale_tf.plan.shard_forms import Form
from whale_tf.rewrite.member_ops import BOOL, INT32, INT64, MemberGraph

LARGEST = 2**31 - 1
Inside = Callable[[MemberGraph, Node, Form, Sequence[Ref]], list[Ref]]


def _exponentials(graph: MemberGraph, name: str, logits: Ref) -> tuple[Ref, Ref]:
    """Logits less the largest of all, and their exponentials."""
    largest = graph.folded(name, "Max", logits, -1, keep=True)
    less = graph.binary(name, "Sub", logits, graph.all_reduced(f"{name}/largest", largest, "max"))
    return less, graph.unary(name, "Exp", less)


def _softmax(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    name = node.name
    less, powers = _exponentials(graph, name, inputs[0])
    total = graph.all_reduced(f"{name}/total", graph.folded(name, "Sum", powers, -1, keep=True))
    if node.op == "Softmax":
        return [graph.binary(name, "RealDiv", powers, total)]
    return [graph.binary(name, "Sub", less, graph.unary(name, "Log", total))]


def _sparse_cross_entropy(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """A label that no class has gives no number, where one device fails."""
    name, (logits, labels) = node.name, inputs
    less, powers = _exponentials(graph, name, logits)
    dtype = graph.type_of(logits).dtype
    hot = _one_hot_of(graph, name, labels, graph.type_of(logits), dtype)
    chosen = graph.chosen(
        name, graph.binary(name, "Greater", hot, graph.number(0, dtype), BOOL), less, graph.number(0, dtype)
    )
    sums = [graph.folded(name, "Sum", each, -1) for each in (powers, chosen, hot)]
    total, logit, hits = _together(graph, name, sums)
    nothing = graph.number(float("nan"), dtype)
    counted = graph.binary(f"{name}/hits", "Greater", hits, graph.number(0, dtype), BOOL)
    total = graph.chosen(f"{name}/counted", counted, total, nothing)
    loss = graph.binary(name, "Sub", graph.unary(name, "Log", total), logit)
    return [loss, graph.binary(name, "Sub", _shares(graph, name, powers, total), hot)]


def _cross_entropy(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    name, (logits, labels) = node.name, inputs
    less, powers = _exponentials(graph, name, logits)
    weighted = graph.binary(name, "Mul", labels, less)
    sums = [graph.folded(name, "Sum", each, -1) for each in (powers, weighted, labels)]
    total, logit, weight = _together(graph, name, sums)
    logarithm = graph.binary(f"{name}/weighted", "Mul", weight, graph.unary(name, "Log", total))
    loss = graph.binary(name, "Sub", logarithm, logit)
    return [loss, graph.binary(name, "Sub", _shares(graph, name, powers, total), labels)]


def _together(graph: MemberGraph, name: str, sums: Sequence[Ref]) -> list[Ref]:
    """Several vectors summed over the members in one call."""
    kind, count = graph.type_of(sums[0]), len(sums)
    stacked = TensorType(kind.dtype, Shape((count, *kind.shape)))
    packed = graph.add(f"{name}/sums", "Pack", sums, [stacked], T=kind.dtype, N=count, axis=0)
    total = graph.all_reduced(f"{name}/sums", packed)
    apart = graph.add(f"{name}/apart", "Unpack", [total], [kind] * count, T=kind.dtype, num=count, axis=0)
    return [apart._replace(index=index) for index in range(count)]


def _shares(graph: MemberGraph, name: str, powers: Ref, total: Ref) -> Ref:
    rows = graph.type_of(total).shape.sizes
    return graph.binary(name, "RealDiv", powers, graph.reshaped(f"{name}/total", total, (*rows, 1)))


def _counted_from_first(graph: MemberGraph, name: str, indices: Ref, piece: int) -> Ref:
    """Numbers of all members' elements as the member counts its own."""
    dtype = graph.type_of(indices).dtype
    return graph.binary(f"{name}/own", "Sub", indices, graph.first_of(name, piece, dtype))


def _own(graph: MemberGraph, name: str, own: Ref, piece: int) -> Ref:
    """Whether numbers, as the member counts them, are of its elements."""
    return _both(graph, f"{name}/own", "LogicalAnd", own, ("GreaterEqual", 0), ("Less", piece))


def _both(graph: MemberGraph, name: str, op: str, numbers: Ref, low: tuple[str, int], high: tuple[str, int]) -> Ref:
    """Two comparisons with constants, and what they say together."""
    dtype = graph.type_of(numbers).dtype
    told = [graph.binary(name, compare, numbers, graph.number(limit, dtype), BOOL) for compare, limit in (low, high)]
    return graph.add(f"{name}/{op}", op, told, [graph.type_of(told[0])])


def _one_hot_of(graph: MemberGraph, name: str, labels: Ref, logits: TensorType, dtype: DType) -> Ref:
    depth = logits.shape.sizes[-1]
    own = _counted_from_first(graph, name, graph.cast(name, labels, INT64), depth)
    values = [graph.number(depth, INT32), graph.number(1, dtype), graph.number(0, dtype)]
    kind = TensorType(dtype, logits.shape)
    return graph.add(f"{name}/hot", "OneHot", [own, *values], [kind], T=dtype, TI=INT64, axis=-1)


def _one_hot(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """The result's own piece of the classes."""
    state = form.gives[0]
    assert isinstance(state, Split)  # the letter is the result's
    depth = node.outputs[0].shape.sizes[state.dim] // graph.members
    kind = node.outputs[0]
    local = TensorType(kind.dtype, Shape((*kind.shape[: state.dim], depth, *kind.shape[state.dim + 1 :])))
    own = _counted_from_first(graph, node.name, graph.cast(node.name, inputs[0], INT64), depth)
    values = [own, graph.number(depth, INT32), *inputs[2:]]
    return [graph.add(node.name, "OneHot", values, [local], **{**node.attrs, "TI": INT64})]


def _gather(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """A number that no row has stays as it is, so that the lookup fails as on one device."""
    name, (params, indices) = node.name, inputs[:2]
    state = form.takes[0]
    assert isinstance(state, Split)  # the letter is the parameter's
    shape, rank = graph.type_of(params).shape, len(graph.type_of(indices).shape)
    piece = shape.sizes[state.dim]
    own = _counted_from_first(graph, name, indices, piece)
    inside = _own(graph, name, own, piece)
    wrong = _both(graph, f"{name}/wrong", "LogicalOr", indices, ("Less", 0), ("GreaterEqual", piece * graph.members))
    other = graph.chosen(f"{name}/other", wrong, indices, graph.number(0, graph.type_of(indices).dtype))
    safe = graph.chosen(f"{name}/safe", inside, own, other)
    found = graph.add(f"{name}/found", "GatherV2", [params, safe, *inputs[2:]], node.outputs, **node.attrs)
    ones = len(node.outputs[0].shape) - state.dim - rank
    mask = graph.reshaped(f"{name}/mask", inside, (*graph.type_of(indices).shape.sizes, *(1,) * ones))
    return [graph.chosen(name, mask, found, graph.number(0, node.outputs[0].dtype))]


def _segments(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """Numbers of the members' behind become -1, which is no segment; those of the members' before are less than 0.

    A number that no segment has stays too large, so that the sum fails as on one device.
    """
    name, kind = node.name, node.outputs[0]
    count = kind.shape.sizes[0] // graph.members
    own = _counted_from_first(graph, name, inputs[1], count)
    dtype = graph.type_of(own).dtype
    before = graph.binary(f"{name}/before", "Less", own, graph.number(count, dtype), BOOL)
    wrong = graph.binary(f"{name}/wrong", "GreaterEqual", inputs[1], graph.number(count * graph.members, dtype), BOOL)
    kept = graph.add(f"{name}/kept", "LogicalOr", [before, wrong], [graph.type_of(before)])
    ids = graph.chosen(f"{name}/ids", kept, own, graph.number(-1, dtype))
    attrs = {**node.attrs, "Tnumsegments": INT32}
    local = TensorType(kind.dtype, Shape((count, *kind.shape[1:])))
    return [graph.add(name, node.op, [inputs[0], ids, graph.number(count, INT32)], [local], **attrs)]


def _arg_extreme(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """Of several that have the extreme the first, as one device."""
    name, values, state = node.name, inputs[0], form.takes[0]
    assert isinstance(state, Split)  # the letter is the operand's
    fold = node.op.removeprefix("Arg")
    best = graph.folded(name, fold, values, state.dim)
    extreme = graph.all_reduced(f"{name}/extreme", best, fold.lower())
    kind = TensorType(INT32, node.outputs[0].shape)
    attrs = {**node.attrs, "output_type": INT32}
    at = graph.add(f"{name}/at", node.op, inputs, [kind], **attrs)
    piece = graph.type_of(values).shape.sizes[state.dim]
    number = graph.binary(f"{name}/number", "AddV2", at, graph.first_of(name, piece, INT32))
    worse = graph.binary(f"{name}/worse", "Less" if fold == "Max" else "Greater", best, extreme, BOOL)
    has = graph.add(f"{name}/has", "LogicalNot", [worse], [graph.type_of(worse)])  # also of what is no number
    mine = graph.chosen(f"{name}/mine", has, number, graph.number(LARGEST, INT32))
    return [graph.cast(name, graph.all_reduced(f"{name}/first", mine, "min"), node.outputs[0].dtype)]


def _in_top_k(graph: MemberGraph, node: Node, form: Form, inputs: Sequence[Ref]) -> list[Ref]:
    """As on one device never where a class is not finite, or no class is the target."""
    name, (values, targets, most) = node.name, inputs
    kind, truth = graph.type_of(values), TensorType(BOOL, graph.type_of(values).shape)
    hot = _one_hot_of(graph, name, targets, kind, kind.dtype)
    is_target = graph.binary(name, "Greater", hot, graph.number(0, kind.dtype), BOOL)
    target = graph.chosen(name, is_target, values, graph.number(0, kind.dtype))
    own, hits = _together(graph, f"{name}/target", [graph.folded(name, "Sum", each, -1) for each in (target, hot)])
    rows = graph.type_of(own).shape.sizes
    column = graph.reshaped(f"{name}/target", own, (*rows, 1))
    larger = graph.binary(f"{name}/larger", "Greater", values, column, BOOL)
    finite = graph.add(f"{name}/finite", "IsFinite", [values], [truth], T=kind.dtype)
    strange = graph.add(f"{name}/strange", "LogicalNot", [finite], [truth])
    counts = [graph.folded(name, "Sum", graph.cast(f"{name}/count", each, INT32), -1) for each in (larger, strange)]
    ahead, unsaid = _together(graph, f"{name}/ahead", counts)
    told = [
        graph.binary(f"{name}/among", "Less", ahead, graph.cast(f"{name}/k", most, INT32), BOOL),
        graph.binary(f"{name}/said", "Equal", unsaid, graph.number(0, INT32), BOOL),
        graph.binary(f"{name}/hit", "Greater", hits, graph.number(0, kind.dtype), BOOL),
    ]
    both = graph.add(f"{name}/both", "LogicalAnd", told[:2], [graph.type_of(told[0])])
    return [graph.add(name, "LogicalAnd", [both, told[2]], [graph.type_of(told[0])])]


INSIDES: Mapping[str, Inside] = MappingProxyType(
    {
        "Softmax": _softmax,
        "LogSoftmax": _softmax,
        "SparseSoftmaxCrossEntropyWithLogits": _sparse_cross_entropy,
        "SoftmaxCrossEntropyWithLogits": _cross_entropy,
        "GatherV2": _gather,
        "UnsortedSegmentSum": _segments,
        "OneHot": _one_hot,
        "ArgMax": _arg_extreme,
        "ArgMin": _arg_extreme,
        "InTopKV2": _in_top_k,
    }
)
