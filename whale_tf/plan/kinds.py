"""What a table says about one kind of operation, and the letters that say it.

    Rule       of one operation at its shapes: `zak,zkb->zab`, and in which operands it is linear
    Kind       of all operations of a type: a function that gives the Rule, and what they have in common
    equation   such a function from its text, for operations whose letters are always the same

`whale_tf/plan/rules.py` is the table of them.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from whale_tf.errors import InternalError
from whale_tf.ir.graph import Node, Shape, TensorType
from whale_tf.ir.sharding import Reduction
from whale_tf.ir.sizes import Array
from whale_tf.plan.work import Work, one_per_output

LETTERS, OTHER_LETTERS = string.ascii_lowercase, string.ascii_uppercase
WHOLE_DIM = "."


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operation treats the dims of its tensors, as letters: `zak,zkb->zab` for a product of matrices.

    A letter may be cut: all inputs that have it are cut there, all others are whole, and the operation runs on each
    part. Outputs with the letter are then cut there. Outputs without it come together by `reduction`; an additive input
    without it is a term that must be counted once, as a Partial. A letter that only an output has is made from the
    shape operands: a part that is told its own shape makes its own piece.

    Attributes:
      inputs: one string per input, one letter per dim; `.` is a dim that must be whole.
      outputs: the same per output; `.` is a dim that is made whole.
      reduction: how a letter of the inputs comes together in an output without it; None: it may not be cut.
      linear: inputs in each of which the operation is linear, the others fixed. To take the real part is linear.
      additive: inputs in which it is linear jointly: a sum, a concatenation or a choice of them.
      powers: f(c x) = c^p f(x) for c > 0 and this input; those in `linear` and `additive` are not repeated.
      shapes: inputs that say shapes, axes or sizes, and nothing that is computed with.
      mean: it reduces by a mean of floats: each part divides by its own count.
      increasing: it never decreases in input 0, element by element, so it commutes with max and min.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reduction: Reduction | None = Reduction.SUM
    linear: frozenset[int] = frozenset()
    additive: frozenset[int] = frozenset()
    powers: Mapping[int, Fraction] = field(default_factory=dict)
    shapes: frozenset[int] = frozenset()
    mean: bool = False
    increasing: bool = False

    def __str__(self) -> str:
        return f"{','.join(self.inputs)}->{','.join(self.outputs)}"


@dataclass(frozen=True, slots=True)
class TypedNode:
    """A node with the types of its inputs, and their values where planning knows them."""

    node: Node
    inputs: tuple[TensorType, ...]
    values: tuple[Array | None, ...] = ()

    def input(self, position: int) -> Shape:
        """The shape of an input; a negative position counts from the last."""
        return self.inputs[position].shape

    def output(self, index: int = 0) -> Shape:
        """The shape of an output."""
        return self.node.outputs[index].shape

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, decoded if it is text."""
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def numbers(self, position: int) -> tuple[int, ...] | None:
        """The elements of an input of integers; None if planning does not know them."""
        value = self.values[position]
        return None if value is None else tuple(int(number) for number in value.reshape(-1))

    def axes(self, position: int, rank: int) -> frozenset[int] | None:
        """The axes that an input names, counted from the first; None if planning does not know them."""
        numbers = self.numbers(position)
        return None if numbers is None else frozenset(axis % rank for axis in numbers if rank)

    def whole(self, position: int) -> str:
        """The letters of an input that must be whole."""
        shape = self.inputs[position].shape
        return "" if shape == Shape.unknown else WHOLE_DIM * len(shape)

    def wholes(self, start: int) -> tuple[str, ...]:
        """The letters of all inputs from one on, if they must be whole."""
        return tuple(self.whole(position) for position in range(start, len(self.inputs)))


RuleOf = Callable[[TypedNode], Rule | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of operation: what its rules have in common, and what it costs. See Rule for the fields they share.

    Attributes:
      rule: gives an operation's rule, to which the fields below are added; None: there is none.
      shapes: positions; a negative one counts from the last input.
      work: the floating point operations of one run.
    """

    rule: RuleOf | None = None
    linear: tuple[int, ...] = ()
    additive: tuple[int, ...] = ()
    powers: Mapping[int, Fraction | int] = field(default_factory=dict)
    shapes: tuple[int, ...] = ()
    increasing: bool = False
    work: Work = one_per_output

    def completed(self, rule: Rule, inputs: Sequence[TensorType]) -> Rule:
        """A rule with what all operations of the kind have in common.

        What is said of numbers is left out for operands that are none: truth values, strings, handles.
        """
        numbers = frozenset(position for position, kind in enumerate(inputs) if is_number(kind.dtype))
        powers = {**rule.powers, **{position: Fraction(power) for position, power in self.powers.items()}}
        return replace(
            rule,
            linear=(rule.linear | set(self.linear)) & numbers,
            additive=(rule.additive | set(self.additive)) & numbers,
            powers={position: power for position, power in powers.items() if position in numbers},
            shapes=rule.shapes | {position % len(inputs) for position in self.shapes},
            increasing=rule.increasing or self.increasing,
        )


def table(kinds: Mapping[str, Kind]) -> Mapping[str, Kind]:
    """From op to kind, where `kinds` has ops of the same kind in one text with spaces between.

    Raises:
      InternalError: an op has two kinds.
    """
    found: dict[str, Kind] = {}
    for ops, kind in kinds.items():
        for op in ops.split():
            if op in found:
                raise InternalError(
                    f"the table of rules has {op} twice", way_out="Leave one of them in whale_tf/plan/rules*.py."
                )
            found[op] = kind
    return MappingProxyType(found)


def equation(text: str, reduction: Reduction | None = Reduction.SUM) -> RuleOf:
    """The rule of a kind whose letters are always the same: `z.,z->z,z.`.

    A term's first letter `z` stands for all dims that the rest of the term leaves; these are broadcast between inputs.
    A term `*` is a tensor of any rank that is whole. An operation whose ranks are others has no rule.
    """
    left, right = (side.split(",") for side in text.split("->"))

    def rule(typed: TypedNode) -> Rule | None:
        shapes = [*(kind.shape for kind in typed.inputs), *(kind.shape for kind in typed.node.outputs)]
        if len(typed.inputs) != len(left) or len(typed.node.outputs) != len(right):
            return None
        if not all(map(_fits, [*left, *right], shapes)):
            return None
        leading = [
            Shape(shape[: len(shape) - len(term) + 1] if term[:1] == "z" else ())
            for term, shape in zip([*left, *right], shapes, strict=True)
        ]
        batch = max(leading[len(left) :], key=len)
        if any(len(dims) > len(batch) for dims in leading):
            return None
        names, name = broadcast(leading[: len(left)], batch, OTHER_LETTERS)
        written = map(_written, [*left, *right], [*names, *[name] * len(right)], shapes)
        terms = tuple(written)
        return Rule(terms[: len(left)], terms[len(left) :], reduction)

    return rule


def _fits(term: str, shape: Shape) -> bool:
    if term[:1] == "z":
        return len(shape) >= len(term) - 1
    return term == "*" or len(shape) == len(term)


def _written(term: str, leading: str, shape: Shape) -> str:
    if term == "*":
        return WHOLE_DIM * len(shape)
    return leading + term[1:] if term[:1] == "z" else term


def broadcast(shapes: Sequence[Shape], output: Shape, letters: str = LETTERS) -> tuple[tuple[str, ...], str]:
    """The letters of shapes that are broadcast to `output`, and its own.

    Dims are aligned at the last. One of size 1 that is repeated is `.` in its input; one of which the sizes do not say
    whether it is repeated is `.` everywhere.
    """
    rank = len(output)
    name = ""
    for dim, size in enumerate(output):
        others = {shape[dim - rank] for shape in shapes if len(shape) >= rank - dim}
        name += letters[dim] if others <= {size, 1} else WHOLE_DIM
    names = []
    for shape in shapes:
        start = rank - len(shape)
        dims = enumerate(shape, start)
        names.append("".join(name[dim] if size == output[dim] else WHOLE_DIM for dim, size in dims))
    return tuple(names), name


def elementwise(typed: TypedNode) -> Rule:
    """Each element of the results comes from those at its place; operands of fewer dims or of size 1 are repeated."""
    names, name = broadcast([kind.shape for kind in typed.inputs], typed.output())
    return Rule(names, (name,) * len(typed.node.outputs))


def blocked(rank: int, axes: frozenset[int]) -> str:
    """Letters for all dims but some, which are `.`."""
    return "".join(WHOLE_DIM if dim in axes else letter for dim, letter in enumerate(LETTERS[:rank]))


def is_number(dtype: str) -> bool:
    """Whether elements can be added and multiplied: not truth values, strings or handles."""
    return dtype not in ("bool", "string", "resource", "variant")


def is_integer(dtype: str) -> bool:
    """Whether elements are integers, quantized ones too."""
    return dtype.startswith(("int", "uint", "qint", "quint"))
