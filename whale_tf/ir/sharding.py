"""States: how the value of a tensor lies over what it is cut over, devices on a mesh axis or parts of the batch.

    Whole            every part has the value
    Split(dim)       part r has the r-th piece of dim `dim`; pieces may be of unequal size
    Split(dim, o)    dim `dim` is seen as (o, rest) and `rest` is cut: what flattening [o, n] makes of a split of n
    Split(dim, o, a) the numbers are positions that each part counts from its first example on: a of them for each
    Extent(at)       the shape of a tensor of which each part has another number of rows, at dim `at`
    Partial(op)      the value is the reduction by `op` of what the parts have
    Owned(at)        only part `at` has it
    Apart            every part has a value of its own, which stands for the whole one where the user accepts that
    Blank            a list that has no elements yet, which is the same in any state

A list of tensors is what its elements are; one with an element for each example is Split(-1). Where the turns of a loop
are the examples, its body has, at each turn:

    Each             what belongs to the example of this turn
    Turn(k)          the number of the turn plus k, which each part counts from 0
    Count            how many examples a part has; as a condition, whether there are more of them
    Carried(n, sum)  what turns add up at position n of what the loop carries, and nothing reads: behind it a Partial
    Carried(n, each) a list at position n that each turn fills, or takes, at its example; of numbers of turns, `turn`
    Placed           such a list of which only the element of this turn is set

On the batch a value also has a *degree* k: a part with `share` of the examples holds share^k times what the state says.
`Mean` of floats over the batch gives Partial(sum) of degree -1, since each part divides by its own number of examples.
Products add degrees; terms of a sum must have the same. A Whole of degree k is a Partial(sum) of degree k - 1, since
shares sum to 1.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from whale_tf.errors import InternalError


class Reduction(enum.Enum):
    """How the parts of a Partial come together."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PROD = "prod"
    ALL = "all"
    ANY = "any"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Whole:
    """Every part has the value."""

    def __str__(self) -> str:
        return "Whole"


@dataclass(frozen=True, slots=True)
class Split:
    """Each part has its piece of one dim.

    Attributes:
      dim: the dim that is cut.
      outer: the dim is seen as (outer, rest), and rest is cut.
      ahead: the true numbers are larger than a part's by this, times the number of its first example.
      column: only those of column 0 of the last dim are: the first numbers of positions in several dims.
    """

    dim: int
    outer: int = 1
    ahead: int = 0
    column: bool = False

    @property
    def bare(self) -> Split:
        """How it is cut, whatever its numbers count."""
        return Split(self.dim, self.outer)

    def __str__(self) -> str:
        if self.ahead:
            return f"Split({self.dim}, {self.outer}, {self.ahead}{', column' if self.column else ''})"
        return f"Split({self.dim}, {self.outer})" if self.outer > 1 else f"Split({self.dim})"


@dataclass(frozen=True, slots=True)
class Partial:
    """The value is a reduction of what the parts have."""

    op: Reduction = Reduction.SUM

    def __str__(self) -> str:
        return f"Partial({self.op})"


@dataclass(frozen=True, slots=True)
class Owned:
    """Only one part has the value."""

    at: int

    def __str__(self) -> str:
        return f"Owned({self.at})"


@dataclass(frozen=True, slots=True)
class Apart:
    """Each part has a value of its own, accepted in the place of the whole one."""

    def __str__(self) -> str:
        return "Apart"


@dataclass(frozen=True, slots=True)
class Blank:
    """A list without elements."""

    def __str__(self) -> str:
        return "Blank"


@dataclass(frozen=True, slots=True)
class Extent:
    """The shape of a tensor whose number of rows is known only when it runs.

    Attributes:
      at: the dim that each part has its own size of.
    """

    at: int

    def __str__(self) -> str:
        return f"Extent({self.at})"


@dataclass(frozen=True, slots=True)
class Each:
    """What belongs to the example of a loop's turn.

    Attributes:
      back: the loop goes from the last example to the first.
    """

    back: bool = False

    def __str__(self) -> str:
        return "Each(back)" if self.back else "Each"


@dataclass(frozen=True, slots=True)
class Turn:
    """The number of a loop's turn, whose turns are the examples.

    Attributes:
      plus: what is added to it.
      back: the loop goes from the last example to the first; the number is that of the example.
    """

    plus: int = 0
    back: bool = False

    def __str__(self) -> str:
        return f"Turn({self.plus}, back)" if self.back else f"Turn({self.plus})"


@dataclass(frozen=True, slots=True)
class Count:
    """How many examples a part has, or whether a loop has more of them to take."""

    def __str__(self) -> str:
        return "Count"


@dataclass(frozen=True, slots=True)
class Carried:
    """What a loop whose turns are examples hands from turn to turn: each adds to it, or fills or takes its element.

    Attributes:
      at: its position among all that the loop carries, which it keeps.
      holds: `sum`; or of a list what its elements are: `nothing` yet, what belongs to `each` example, the number of its
        `turn`, or their `count`.
    """

    at: int
    holds: str

    def __str__(self) -> str:
        return f"Carried({self.at}, {self.holds})"


@dataclass(frozen=True, slots=True)
class Placed:
    """A list with an element for each example, of which only that of this turn is set."""

    def __str__(self) -> str:
        return "Placed"


State = Whole | Split | Partial | Owned | Apart | Blank | Extent | Each | Turn | Count | Carried | Placed

WHOLE, APART, BLANK, SUMS, COUNT = Whole(), Apart(), Blank(), Partial(Reduction.SUM), Count()
LISTED = Split(-1)  # a list with an element for each example

_STATE = re.compile(r"(\w+)(?:\(([^()]+)\))?")
_VALUE = re.compile(r"(.*?)(?: of degree (-?\d+(?:/\d+)?))?")


@dataclass(frozen=True, slots=True)
class Value:
    """What a tensor is over the parts of the batch: prints as `Partial(sum) of degree -1`, and parses back."""

    state: State
    degree: Fraction = Fraction(0)

    def __str__(self) -> str:
        return f"{self.state} of degree {self.degree}" if self.degree else str(self.state)

    @classmethod
    def parse(cls, text: str) -> Value:
        """The value that prints as `text`.

        Raises:
          InternalError: nothing prints so.
        """
        found = _VALUE.fullmatch(text)
        assert found is not None  # it matches every text
        return cls(parse_state(found[1]), Fraction(found[2] or 0))


def _split(dim: str, outer: str = "1", ahead: str = "0", column: str = "") -> Split:
    return Split(int(dim), int(outer), int(ahead), _flag(column, "column"))


def _flag(text: str, name: str) -> bool:
    if text not in ("", name):
        raise ValueError(text)
    return bool(text)


_MADE: Mapping[str, Callable[..., State]] = {
    "Whole": Whole,
    "Split": _split,
    "Partial": lambda op: Partial(Reduction(op)),
    "Owned": lambda at: Owned(int(at)),
    "Apart": Apart,
    "Blank": Blank,
    "Extent": lambda at: Extent(int(at)),
    "Each": lambda back="": Each(_flag(back, "back")),
    "Turn": lambda plus, back="": Turn(int(plus), _flag(back, "back")),
    "Count": Count,
    "Carried": lambda at, holds: Carried(int(at), holds),
    "Placed": Placed,
}


def parse_state(text: str) -> State:
    """The state that prints as `text`.

    Raises:
      InternalError: nothing prints so.
    """
    found = _STATE.fullmatch(text)
    try:
        if found is not None:
            return _MADE[found[1]](*(found[2].split(", ") if found[2] else ()))
    except (KeyError, TypeError, ValueError):
        pass
    raise InternalError(
        f"'{text}' is no state",
        details=["a state is written as Whole, Split(0), Split(0, 4), Partial(sum), Owned(1) or Apart"],
        way_out="This is a fault of whale_tf, or of a plan that was changed by hand.",
    )
