"""Rules of operations that move elements by their places: transpose, slice, pad, concatenate, repeat.

A dim of which an operation takes a piece, or turns the order, is `.`; the others pass. Which these are is said by
operands that planning knows, and by the sizes: a dim of the same size before and after a Slice or Pad is taken whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from whale_tf.ir.graph import Shape
from whale_tf.plan.kinds import (
    LETTERS,
    WHOLE_DIM,
    Kind,
    Rule,
    RuleOf,
    TypedNode,
    blocked,
    broadcast,
    equation,
    table,
)
from whale_tf.plan.work import Work, free, one_per_output


def _transposed(typed: TypedNode) -> Rule | None:
    order = typed.numbers(1)
    if order is None:
        return None
    name = LETTERS[: len(order)]
    return Rule((name, typed.whole(1)), ("".join(name[dim] for dim in order),))


def _along(axes_at: int) -> RuleOf:
    """The axes that an operand names are whole."""

    def rule(typed: TypedNode) -> Rule | None:
        axes = typed.axes(axes_at, len(typed.input(0)))
        if axes is None:
            return None
        name = blocked(len(typed.input(0)), axes)
        return Rule((name, *typed.wholes(1)), (name,))

    return rule


def _reversed(typed: TypedNode) -> Rule | None:
    """Reverse has one truth value per dim."""
    flags = typed.numbers(1)
    if flags is None:
        return None
    name = blocked(len(typed.input(0)), frozenset(dim for dim, flag in enumerate(flags) if flag))
    return Rule((name, typed.whole(1)), (name,))


def _sequence_reversed(typed: TypedNode) -> Rule:
    """The lengths have one number per element of the batch dim."""
    rank, batch = len(typed.input(0)), typed.attribute("batch_dim", 0)
    name = blocked(rank, frozenset({typed.attribute("seq_dim", 0) % rank}))
    return Rule((name, name[batch]), (name,))


# Slices.


class _Spec(NamedTuple):
    """What a strided slice does, dim by dim.

    Attributes:
      taken: for each dim of the full tensor whether the slice has all of it, in order.
      dims: for each dim of the slice the dim of the full tensor that it comes from; -1 for a new one.
    """

    taken: tuple[bool, ...]
    dims: tuple[int, ...]

    def letters(self) -> tuple[str, str]:
        """Of the full tensor and of the slice."""
        full = "".join(letter if whole else WHOLE_DIM for letter, whole in zip(LETTERS, self.taken, strict=False))
        return full, "".join(full[dim] if dim >= 0 else WHOLE_DIM for dim in self.dims)


def _strided(typed: TypedNode, full: Shape, first: int) -> _Spec | None:
    """Reads begin, end and strides, which are the inputs from `first` on, with the masks.

    Where begin or end is not known, the masks still say which dims are taken whole.
    Source: tensorflow/core/util/strided_slice_op.cc, ValidateStridedSliceOp.
    """
    begin, end, strides = (typed.numbers(first + position) for position in range(3))
    if strides is None:
        return None
    bits = {
        name: [typed.attribute(f"{name}_mask", 0) >> entry & 1 for entry in range(len(strides))]
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    entries = [entry for entry in range(len(strides)) if not bits["ellipsis"][entry] and not bits["new_axis"][entry]]
    hidden = len(full) - len(entries)
    taken: list[bool] = []
    dims: list[int] = []

    def pass_hidden() -> None:
        dims.extend(range(len(taken), len(taken) + hidden))
        taken.extend([True] * hidden)

    for entry in range(len(strides)):
        if bits["ellipsis"][entry]:
            pass_hidden()
        elif bits["new_axis"][entry]:
            dims.append(-1)
        elif bits["shrink_axis"][entry]:
            taken.append(False)
        else:
            size = full[len(taken)]
            dims.append(len(taken))
            starts = bool(bits["begin"][entry]) or (begin is not None and _is_start(begin[entry], size))
            ends = bool(bits["end"][entry]) or (end is not None and _is_end(end[entry], size))
            taken.append(strides[entry] == 1 and starts and ends)
    if not any(bits["ellipsis"]):
        pass_hidden()
    return _Spec(tuple(taken), tuple(dims))


def _is_start(index: int, size: int | None) -> bool:
    return index == 0 or (size is not None and 0 <= size <= -index)


def _is_end(index: int, size: int | None) -> bool:
    return size is not None and 0 <= size <= index


def _strided_slice(typed: TypedNode) -> Rule | None:
    spec = _strided(typed, typed.input(0), 1)
    return None if spec is None else Rule((spec.letters()[0], *typed.wholes(1)), (spec.letters()[1],))


def _strided_slice_gradient(typed: TypedNode) -> Rule | None:
    """Puts the gradient where the slice was, between zeros."""
    spec = _strided(typed, typed.output(), 1)
    return None if spec is None else Rule((*typed.wholes(0)[:4], spec.letters()[1]), (spec.letters()[0],))


def _strided_slice_update(typed: TypedNode) -> Rule | None:
    spec = _strided(typed, typed.input(0), 1)
    if spec is None:
        return None
    full, piece = spec.letters()
    return Rule((full, *typed.wholes(1)[:3], piece), (full,))


def _same_dims(typed: TypedNode) -> Rule:
    """Slice, Pad and their gradients take whole what has the same size before and after."""
    sizes = zip(typed.input(0), typed.output(), strict=True)
    name = blocked(len(typed.output()), frozenset(dim for dim, (a, b) in enumerate(sizes) if a != b or a == -1))
    return Rule((name, *typed.wholes(1)), (name,))


# What is put together, and taken apart.


def _concatenated(axis_at: int) -> RuleOf:
    """The axis is the first input or the last."""

    def rule(typed: TypedNode) -> Rule | None:
        axes = typed.axes(axis_at, len(typed.output()))
        if axes is None:
            return None
        terms = frozenset(range(len(typed.inputs))) - {axis_at % len(typed.inputs)}
        name = blocked(len(typed.output()), axes)
        inputs = tuple(name if position in terms else "" for position in range(len(typed.inputs)))
        return Rule(inputs, (name,), additive=terms)

    return rule


def _packed(typed: TypedNode) -> Rule:
    rank = len(typed.output())
    axis = typed.attribute("axis", 0) % rank
    name = LETTERS[: rank - 1]
    everything = frozenset(range(len(typed.inputs)))
    return Rule((name,) * len(typed.inputs), (name[:axis] + WHOLE_DIM + name[axis:],), additive=everything)


def _unpacked(typed: TypedNode) -> Rule:
    rank = len(typed.input(0))
    axis = typed.attribute("axis", 0) % rank
    name = blocked(rank, frozenset({axis}))
    return Rule((name,), (name[:axis] + name[axis + 1 :],) * len(typed.node.outputs))


def _split(value_at: int, axis_at: int) -> RuleOf:
    def rule(typed: TypedNode) -> Rule | None:
        axes = typed.axes(axis_at, len(typed.input(value_at)))
        if axes is None:
            return None
        inputs = list(typed.wholes(0))
        inputs[value_at] = blocked(len(typed.input(value_at)), axes)
        return Rule(tuple(inputs), (inputs[value_at],) * len(typed.node.outputs))

    return rule


# What is repeated.


def _broadcast(typed: TypedNode) -> Rule:
    (name,), result = broadcast([typed.input(0)], typed.output())
    return Rule((name, typed.whole(1)), (result,))


def _tiled(typed: TypedNode) -> Rule:
    """A dim of size 1 is repeated as by a broadcast; the copies of a longer one cannot be told apart by a cut."""
    name = result = ""
    times = typed.numbers(1)
    for dim, (size, repeated) in enumerate(zip(typed.input(0), typed.output(), strict=True)):
        same = times[dim] == 1 if times is not None else size == repeated != -1
        name += LETTERS[dim] if same else WHOLE_DIM
        result += LETTERS[dim] if same or size == 1 else WHOLE_DIM
    return Rule((name, typed.whole(1)), (result,))


def _filled(typed: TypedNode) -> Rule:
    return Rule((typed.whole(0), ""), (LETTERS[: len(typed.output())],))


# Blocks of an image's places.


def _blocks_in_batch(typed: TypedNode) -> Rule:
    """Places move between the batch and the space: what comes after them passes."""
    spatial = typed.input(1)[0] if len(typed.inputs) > 2 else 2
    if spatial is None or spatial < 0:
        spatial = len(typed.input(0))
    name = blocked(len(typed.input(0)), frozenset(range(1 + spatial)))
    return Rule((name, *typed.wholes(1)), (name,))


def _per_example(typed: TypedNode) -> Rule:
    """Only dim 0 passes."""
    name = "b".ljust(len(typed.input(0)), WHOLE_DIM)
    return Rule((name,), ("b".ljust(len(typed.output()), WHOLE_DIM),))


def _moved(rule: RuleOf, *, shapes: tuple[int, ...] = (), work: Work = free) -> Kind:
    """The kind of an operation that picks elements of input 0 and leaves them as they are."""
    return Kind(rule, linear=(0,), shapes=shapes, increasing=True, work=work)


SHAPES: Mapping[str, Kind] = table(
    {
        "Transpose ConjugateTranspose": _moved(_transposed, shapes=(1,)),
        "ReverseV2": _moved(_along(1), shapes=(1,)),
        "Reverse": _moved(_reversed, shapes=(1,)),
        "ReverseSequence": _moved(_sequence_reversed),
        "Roll": _moved(_along(2), shapes=(2,)),  # how far is no shape: it is the same for every part
        "StridedSlice": _moved(_strided_slice, shapes=(1, 2, 3)),
        "StridedSliceGrad": Kind(_strided_slice_gradient, linear=(4,), shapes=(0, 1, 2, 3), work=free),
        "TensorStridedSliceUpdate": Kind(_strided_slice_update, additive=(0, 4), shapes=(1, 2, 3), work=free),
        "Slice": _moved(_same_dims, shapes=(1, 2)),
        "Pad MirrorPad": _moved(_same_dims, shapes=(1,)),
        "PadV2": Kind(_same_dims, additive=(0, 2), shapes=(1,), increasing=True, work=free),
        "MirrorPadGrad": Kind(_same_dims, linear=(0,), shapes=(1,)),
        "Concat": Kind(_concatenated(0), shapes=(0,), work=free),
        "ConcatV2": Kind(_concatenated(-1), shapes=(-1,), work=free),
        "Pack": Kind(_packed, work=free),
        "Unpack": _moved(_unpacked),
        "Split": Kind(_split(1, 0), linear=(1,), shapes=(0,), work=free),
        "SplitV": _moved(_split(0, 2), shapes=(1, 2)),
        "BroadcastTo": _moved(_broadcast, shapes=(1,)),
        "Tile": _moved(_tiled, shapes=(1,)),
        "Fill": Kind(_filled, linear=(1,), shapes=(0,), work=free),
        "SpaceToBatchND BatchToSpaceND": _moved(_blocks_in_batch, shapes=(1, 2)),
        "SpaceToBatch BatchToSpace": _moved(_blocks_in_batch, shapes=(1,), work=one_per_output),
        "SpaceToDepth DepthToSpace ExtractImagePatches": _moved(_per_example),
        "ExtractVolumePatches": _moved(_per_example, work=one_per_output),
        "Diag DiagPart": _moved(equation("*->*")),
    }
)
