"""Which results of a branch share work, and which numbers pass between those that do not.

Results share work if a tensor with dims goes into both. Numbers are cheap to compute again, so what is made of numbers
alone joins nothing. A number that is made of a tensor belongs to those who share the tensor; others are handed it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from whale_tf.ir.disjoint import DisjointSets
from whale_tf.ir.graph import Graph, Node, Shape

BY_REFERENCE = frozenset({"resource", "variant"})
NUMBERS = "numbers"  # stands for all results that are made of numbers alone


@dataclass(frozen=True)
class Shared:
    """How the results of a branch hang together.

    Attributes:
      sets: the positions of results that share work with each other and with no others.
      numbers: what is handed from set to set: the number of the body and the node in it, in the order of the body.
    """

    sets: tuple[tuple[int, ...], ...]
    numbers: tuple[tuple[int, str], ...]


def find_shared(bodies: Sequence[Graph], results: int) -> Shared:
    """Which results share work.

    Args:
      bodies: of one branch, without effects; each has the same arguments and `results` outputs.
    """
    sets = DisjointSets()
    works = [_Work(number, body) for number, body in enumerate(bodies)]
    for work in works:
        work.join(sets)
    for k in range(results):
        if all(work.is_number(k) for work in works):
            sets.join(("result", k), NUMBERS)
    needs: dict[Hashable, set[tuple[int, str]]] = {}
    for work in works:
        for user, numbers in work.needs():
            needs.setdefault(sets.root(user), set()).update((work.number, name) for name in numbers)
    handed: set[tuple[int, str]] = set()
    for user, wanted in needs.items():
        makers = {sets.root(works[number].key(name)) for number, name in wanted}
        if user == sets.root(NUMBERS) and len(makers) == 1:
            sets.join(NUMBERS, makers.pop())
        elif makers - {user}:
            handed |= wanted
    grouped: dict[Hashable, list[int]] = {}
    for k in range(results):
        grouped.setdefault(sets.root(("result", k)), []).append(k)
    order = [(work.number, name) for work in works for name in work.body.nodes]
    return Shared(tuple(map(tuple, grouped.values())), tuple(each for each in order if each in handed))


@dataclass
class _Work:
    """What one body computes.

    Attributes:
      number: which body it is.
      light: the nodes that are made of numbers alone.
      totals: those that make numbers of tensors with dims.
    """

    number: int
    body: Graph
    light: set[str] = field(default_factory=set)
    totals: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in self.body:
            if node.op == "Argument":
                light = _gives_numbers(node)
            else:
                light = all(self._hands_numbers(ref.node) for ref in node.inputs)
            if light:
                self.light.add(node.name)
            elif _gives_numbers(node):
                self.totals.add(node.name)

    def _hands_numbers(self, name: str) -> bool:
        return name in self.light or name in self.totals

    def key(self, name: str) -> Hashable:
        """What a node is called among those of all bodies, which have their arguments in common."""
        node = self.body[name]
        return ("argument", node.attrs["index"]) if node.op == "Argument" else (self.number, name)

    def is_number(self, result: int) -> bool:
        """Whether a result is a number that is made of numbers."""
        ref = self.body.outputs[result]
        return ref.node in self.light and self.body.type_of(ref).shape == Shape()

    def join(self, sets: DisjointSets) -> None:
        """Joins what tensors with dims go into."""
        for node in self.body:
            for ref in node.inputs:
                if not self._hands_numbers(ref.node):
                    sets.join(self.key(node.name), self.key(ref.node))
        for k, ref in enumerate(self.body.outputs):
            if ref.node not in self.light:
                sets.join(("result", k), self.key(ref.node))

    def needs(self) -> list[tuple[Hashable, frozenset[str]]]:
        """Nodes and results with the totals that they are made of, through numbers."""
        through: dict[str, frozenset[str]] = {}

        def needed(name: str) -> frozenset[str]:
            return frozenset({name}) if name in self.totals else through.get(name, frozenset())

        found: list[tuple[Hashable, frozenset[str]]] = []
        for node in self.body:
            totals = frozenset().union(*(needed(ref.node) for ref in node.inputs))
            if node.name in self.light:
                through[node.name] = totals
            else:
                found.append((self.key(node.name), totals))
        found += [
            (("result", k), needed(ref.node)) for k, ref in enumerate(self.body.outputs) if ref.node in self.light
        ]
        return [(user, totals) for user, totals in found if totals]


def _gives_numbers(node: Node) -> bool:
    return all(kind.shape == Shape() and kind.dtype not in BY_REFERENCE for kind in node.outputs)
