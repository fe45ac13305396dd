"""Whether a part of the batch can run an operation on its own values, and what its results then are.

    MatMul(h Split(0), w Whole)  -> Split(0)          the rule's letter of the batch, ak,kb->ab, is in the result
    Sum(l Split(0), axis 0)      -> Partial(sum)      it is not
    Sqrt(m Partial(sum))         -> no                it is not linear: the total is needed first

The answer is the states of the results with what the operands must be made into, or the reason why not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, Protocol

from whale_tf.ir.graph import Node, Ref, TensorType
from whale_tf.ir.sharding import BLANK, SUMS, WHOLE, Apart, Blank, Extent, Partial, Reduction, Split, Value, Whole
from whale_tf.ir.sizes import Array, Sizes, uniform
from whale_tf.plan.kinds import Rule

INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
ZERO = Fraction(0)


class Use(NamedTuple):
    """What an operand is made into before a part takes it.

    Attributes:
      piece: the part's own piece of a whole value.
      alike: that piece is of a constant whose elements are all the same: it is made where it is used.
      power: it is multiplied by the part's share of the examples to this power.
      merged: it is first merged over all parts.
      prefix: the piece is that of the first part, which every part takes, and counts from there.
      shift: what a part counts from its first example becomes what the whole batch counts, by adding this for each
        example before: one number, or one for each column.
      sized: it is a known number that is another at another size of the batch, and becomes that of the part.
    """

    piece: Split | None = None
    alike: bool = False
    power: Fraction = ZERO
    merged: bool = False
    prefix: bool = False
    shift: tuple[int, ...] = ()
    sized: bool = False


AS_IS = Use()


@dataclass(frozen=True, slots=True)
class Given:
    """An operand.

    Attributes:
      following: the dims that grow with the batch; None if that is not known.
      number: its value where that is known when planning.
      proportional: whether a dim holds as many pieces as there are examples: (dim, outer).
      batch: the examples of the global batch.
      begins: whether a constant at another size is the beginning of it, as a range is.
      counts: whether it is the number of examples, at every size.
    """

    ref: Ref
    kind: TensorType
    value: Value
    following: tuple[int, ...] | None
    number: Array | None
    proportional: Callable[[int, int], bool]
    batch: int
    begins: bool = True
    counts: bool = False

    @property
    def whole(self) -> bool:
        """Whether every part has it, or its own in the place of it."""
        return isinstance(self.value.state, Whole | Apart | Blank)

    @property
    def cut(self) -> Split | None:
        """How it is cut; None if it is not."""
        return self.value.state if isinstance(self.value.state, Split) else None

    @property
    def ragged(self) -> bool:
        """Whether it is cut, and the sizes of the pieces are known only when it runs."""
        return self.cut is not None and self.kind.shape[self.cut.dim : self.cut.dim + 1] in ((-1,), (None,))

    @property
    def says_shape(self) -> bool:
        """Whether it may say a shape: it is whole, or how many rows each part has."""
        rows = self.value == Value(SUMS) and self.kind.dtype in INTEGERS
        return self.whole or rows or isinstance(self.value.state, Extent)

    @property
    def reduction(self) -> Reduction | None:
        """How its parts come together; None if it is no Partial."""
        return self.value.state.op if isinstance(self.value.state, Partial) else None


class Inside(Protocol):
    """The results of a function, for arguments of these values."""

    def __call__(
        self, name: str, arguments: Sequence[Value], wanted: Sequence[Value] | None = None, /
    ) -> tuple[Value, ...] | str:
        """Or why it has none; `wanted` says what the results have to be."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A node with what is known of its operands.

    Attributes:
      following: for each result the dims that grow with the batch.
      proportional: whether a dim of a result holds as many pieces as there are examples: (result, dim, outer).
      batch: the examples of the global batch.
      needed: whether a gradient depends on it.
      asserts: whether all it does is to assert something.
      bodies: the functions that the node calls, by name.
      inside: the results of a function that the node calls, for arguments of these values and, if they are said, as
        what they are wanted; or why it has none.
    """

    node: Node
    inputs: tuple[Given, ...]
    following: tuple[tuple[int, ...] | None, ...]
    proportional: Callable[[int, int, int], bool]
    batch: int
    needed: bool
    asserts: bool
    bodies: Mapping[str, Sizes]
    inside: Inside


@dataclass(frozen=True, slots=True)
class Local:
    """An operation that each part runs on its own.

    Attributes:
      results: what the results are.
      uses: what operands are made into, by position.
    """

    results: tuple[Value, ...]
    uses: Mapping[int, Use] = field(default_factory=dict)


Answer = Local | str


def by_letters(operation: Operation, rule: Rule) -> Local | str:
    """By a rule, where no operand counts positions."""
    node, inputs = operation.node, operation.inputs
    if any(not inputs[position].whole for position in rule.shapes):
        return f"the shapes that {node.op} takes depend on examples"
    if any(given.reduction for given in inputs):
        return _of_totals(operation, rule)
    return _of_pieces(operation, rule)


def _of_pieces(operation: Operation, rule: Rule) -> Local | str:
    """Operands are cut, or whole."""
    found = _letter(operation, rule)
    if isinstance(found, str):
        return found
    letter, outer = found
    uses: dict[int, Use] = {}
    for position, (given, letters) in enumerate(zip(operation.inputs, rule.inputs, strict=True)):
        if position in rule.shapes or not given.whole:
            continue
        if letter in letters:
            use = piece_of(given, Split(letters.index(letter), outer))
            if use is None:
                return f"'{given.ref}' is not cut as the other operands are"
            uses[position] = use
        elif given.following != ():
            return f"{operation.node.op} takes all of '{given.ref}', which is as long as the batch"
    degrees = _degrees(operation, rule, uses)
    return _results(operation, rule, letter, outer, degrees, uses)


def _letter(operation: Operation, rule: Rule) -> tuple[str, int] | str:
    """The letter of the batch, and how its dim is divided."""
    node, found, outers = operation.node, set[str](), set[int]()
    for position, (given, letters) in enumerate(zip(operation.inputs, rule.inputs, strict=True)):
        if position in rule.shapes:
            continue
        if given.cut is not None:
            found.add(letters[given.cut.dim])
            outers.add(given.cut.outer)
        elif given.whole and given.following != ():
            if given.following is None or len(given.following) > 1:
                return f"more than one dim of '{given.ref}' grows with the batch"
            found.add(letters[given.following[0]])
    if not outers:
        return f"{node.op} takes nothing that is cut"
    if len(found) != 1 or "." in found or len(outers) != 1:
        return f"{node.op} relates examples to each other"
    return found.pop(), outers.pop()


def piece_of(given: Given, split: Split) -> Use | None:
    """How a whole operand becomes cut; None if its dims do not allow it."""
    if given.value.state == BLANK:
        return AS_IS
    if given.following != (split.dim,) or not given.proportional(split.dim, split.outer):
        return None
    alike = given.number is not None and uniform(given.number) is not None
    return Use(split, alike)


def _degrees(operation: Operation, rule: Rule, uses: dict[int, Use]) -> Fraction:
    """The degree of the results; operands that cannot have one are scaled to 0, terms of a sum to the same."""
    inputs = operation.inputs
    degree = ZERO
    terms = [inputs[position].value.degree for position in sorted(rule.additive) if not _plain(inputs[position])]
    if terms:
        degree = Counter(terms).most_common(1)[0][0]
    for position, given in enumerate(inputs):
        has = given.value.degree
        if position in rule.shapes:
            continue
        if position in rule.additive:
            rescale(uses, position, degree - has)
        elif position in rule.linear:
            degree += has
        elif position in rule.powers:
            degree += rule.powers[position] * has
        else:
            rescale(uses, position, -has)
    return degree


def _plain(given: Given) -> bool:
    return given.value == Value(WHOLE)


def rescale(uses: dict[int, Use], position: int, power: Fraction) -> None:
    """Multiplies an operand by the share of the examples to a power."""
    if power:
        before = uses.get(position, AS_IS)
        uses[position] = before._replace(power=before.power + power)


def _results(
    operation: Operation, rule: Rule, letter: str, outer: int, degree: Fraction, uses: dict[int, Use]
) -> Local | str:
    node, results = operation.node, []
    reduces = any(letter not in letters for letters in rule.outputs)
    for position in rule.additive if reduces else ():
        if letter not in rule.inputs[position]:  # TensorScatterAdd: what is added to is a term of each part
            rescale(uses, position, Fraction(1))
    for index, letters in enumerate(rule.outputs):
        if letter in letters:
            dim = letters.index(letter)
            ragged = node.outputs[index].shape[dim] == -1 and any(given.ragged for given in operation.inputs)
            if not ragged and (operation.following[index] != (dim,) or not operation.proportional(index, dim, outer)):
                return f"{node.op} gives another number of examples than it takes"
            results.append(Value(Split(dim, outer), degree))
            continue
        if rule.reduction is None:
            return f"{node.op} relates examples to each other"
        if operation.following[index] != ():
            return f"{node.op} reduces examples to something as long as the batch"
        if rule.reduction not in (Reduction.SUM, Reduction.MAX, Reduction.MIN) and degree:
            return f"{node.op} takes numbers that each part has scaled"
        if rule.mean and any(given.ragged for given in operation.inputs):
            return f"{node.op} divides by the number of rows, which each part has another of"
        results.append(Value(Partial(rule.reduction), degree - 1 if rule.mean else degree))
    return Local(tuple(results), uses)


def _of_totals(operation: Operation, rule: Rule) -> Local | str:
    """Some operands are Partial: what is linear in them is a Partial of the same kind."""
    node, inputs = operation.node, operation.inputs
    totals = {position: given.reduction for position, given in enumerate(inputs) if given.reduction}
    others = [given for position, given in enumerate(inputs) if position not in totals and position not in rule.shapes]
    wanted = f"{node.op} needs the total over all examples"
    if len(set(totals.values())) > 1 or any(given.cut or given.following != () for given in others):
        return wanted
    if any(dims != () for dims in operation.following):
        return wanted
    kind = next(iter(totals.values()))
    if kind is Reduction.SUM:
        return _of_sums(operation, rule, frozenset(totals)) or wanted
    others_degree = any(given.value.degree for given in others)
    kept = None if others_degree else _kept(node, rule, kind, frozenset(totals), len(others))
    if kept is None:
        return wanted
    uses: dict[int, Use] = {}
    for position in totals:
        rescale(uses, position, -inputs[position].value.degree)
    return Local(tuple(Value(Partial(kept)) for _ in node.outputs), uses)


def _of_sums(operation: Operation, rule: Rule, totals: frozenset[int]) -> Local | None:
    inputs, uses = operation.inputs, dict[int, Use]()
    if totals <= rule.additive:
        whole = [position for position in rule.additive - totals if position not in rule.shapes]
        whole = [position for position in whole if inputs[position].value.state != BLANK]
        if whole and (not operation.needed or operation.node.outputs[0].dtype not in FLOATS):
            return None  # added once, to the total: exactly, and where nothing waits for it
        degree = Counter(inputs[position].value.degree for position in sorted(totals)).most_common(1)[0][0]
        for position, given in enumerate(inputs):
            if position in rule.shapes:
                continue
            power = degree - given.value.degree if position in rule.additive else -given.value.degree
            rescale(uses, position, power + 1 if position in whole else power)
    elif len(totals) == 1 and totals <= rule.linear:
        degree = ZERO
        for position, given in enumerate(inputs):
            if position in rule.shapes:
                continue
            if position in rule.linear:
                degree += given.value.degree
            elif position in rule.powers:
                degree += rule.powers[position] * given.value.degree
            else:
                rescale(uses, position, -given.value.degree)
    else:
        return None
    return Local(tuple(Value(SUMS, degree) for _ in operation.node.outputs), uses)


_OPPOSITE: Mapping[str, Mapping[Reduction, Reduction]] = {
    "Neg": {Reduction.MAX: Reduction.MIN, Reduction.MIN: Reduction.MAX},
    "LogicalNot": {Reduction.ALL: Reduction.ANY, Reduction.ANY: Reduction.ALL},
}
_SAME: Mapping[str, Reduction] = {
    "Maximum": Reduction.MAX,
    "Max": Reduction.MAX,
    "Minimum": Reduction.MIN,
    "Min": Reduction.MIN,
    "LogicalAnd": Reduction.ALL,
    "All": Reduction.ALL,
    "LogicalOr": Reduction.ANY,
    "Any": Reduction.ANY,
    "Prod": Reduction.PROD,
}


def _kept(node: Node, rule: Rule, kind: Reduction, totals: frozenset[int], others: int) -> Reduction | None:
    """What an operation on a max, min, prod, all or any makes of it; None if it has to be merged first."""
    if node.op in _OPPOSITE:
        return _OPPOSITE[node.op].get(kind)
    if _SAME.get(node.op) is kind and (not others or kind is not Reduction.PROD):
        return kind
    if node.op == "Identity":
        return kind
    extreme = kind in (Reduction.MAX, Reduction.MIN)
    if extreme and totals == {0} and (rule.increasing or node.op in ("AddV2", "Sub")):
        return kind
    return None
