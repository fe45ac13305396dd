"""The program in memory: a frozen graph of nodes in topological order, with def-use.

A pass takes a Graph and returns another; Nodes it leaves alone are shared between the two. Operations are TensorFlow's,
plus those that only exist between capture and lowering:

| op          | inputs    | meaning                                                                        |
|-------------|-----------|--------------------------------------------------------------------------------|
| `Input`     |           | one tensor argument of the step: `index`; `batch` is true if dim 0 is the batch |
| `Variable`  |           | the value a variable has when the step begins: `variable`                       |
| `Captured`  |           | a tensor from outside the step: `index`                                         |
| `Handle`    |           | a resource that is no variable (a table, a writer): `index`                     |
| `Argument`  |           | one argument of a function: `index`                                             |
| `Write`     | value     | the variable has this value from here on: `variable`; gives the value           |
| `Gradient`  | values    | a marked gradient, one input per stage that contributes: `call`, `variable`     |
| `Merge`     | value     | the value of all parts of the batch, of what each part has                      |
| `Piece`     | value     | each part's own piece of a whole value: `dim`, `outer`                          |
| `Shift`     | value     | positions counted from the part's first example, as the whole batch counts: `ahead` |
| `Scale`     | value     | times the part's share of the examples to a `power`                             |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from whale_tf.errors import InternalError

BOUNDARY_OPS = frozenset({"Input", "Variable", "Captured", "Handle", "Argument"})
# Another name for the value they take: there is nothing to run.
ALIAS_OPS = frozenset({"Write", "Gradient", "Merge"})


class DType(str):
    """The name of an element type: `float32`, `resource`."""

    __slots__ = ()


class Shape(tuple[int | None, ...]):
    """A tensor's shape: -1 for an unknown dim, `Shape.unknown` for an unknown rank."""

    __slots__ = ()
    unknown: Shape

    @property
    def known(self) -> bool:
        """Whether the rank and every dim are known."""
        return all(size is not None and size >= 0 for size in self)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes as numbers; -1 for an unknown one, and for an unknown rank."""
        return tuple(-1 if size is None else size for size in self)

    def __str__(self) -> str:
        return "[" + ",".join("*" if size is None else "?" if size < 0 else str(size) for size in self) + "]"


Shape.unknown = Shape((None,))


class Function(NamedTuple):
    """The name of a function, as an attribute."""

    name: str
    attrs: tuple[tuple[str, Any], ...] = ()


class Opaque(bytes):
    """A serialized TensorFlow AttrValue that whale_tf only carries: the value of a Const."""

    __slots__ = ()


class TensorType(NamedTuple):
    """What is known of a tensor without running it."""

    dtype: DType
    shape: Shape


class Ref(NamedTuple):
    """One output of one node."""

    node: str
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which no Ref needs

    def __str__(self) -> str:
        return self.node if self.index == 0 else f"{self.node}:{self.index}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
      name: unique in its graph.
      op: the operation's type.
      inputs: the tensors it takes, in the order of the op's definition, lists flattened.
      control: names of nodes that must have run before.
      attrs: int, float, bool, bytes, DType, Shape, Function, Opaque, or a tuple of these.
      outputs: the types of what it gives.
      stateful: whether running it twice, or not at all, would be noticed.
      scope: the key of the innermost user's scope it was made in; empty outside any.
      call: which gradient call made it, counted from 1; 0 is none.
      twin: for a backward node, the forward node whose gradient it computes; else empty.
      device: where it runs, as an index into the plan's devices; -1 before binding.
    """

    name: str
    op: str
    inputs: tuple[Ref, ...] = ()
    control: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[TensorType, ...] = ()
    stateful: bool = False
    scope: str = ""
    call: int = 0
    twin: str = ""
    device: int = -1

    def with_(self, **changes: Any) -> Node:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Graph:
    """A pure function of its boundary nodes.

    Attributes:
      nodes: by name, in topological order over data and control edges.
      outputs: what the function returns.
      effects: names of nodes that must run even if nothing uses them.
      attrs: what TensorFlow is told of the function when it is lowered: `_noinline`.
    """

    nodes: Mapping[str, Node]
    outputs: tuple[Ref, ...] = ()
    effects: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        outputs: Iterable[Ref] = (),
        effects: Iterable[str] = (),
        *,
        attrs: Mapping[str, Any] | None = None,
    ) -> Graph:
        """A graph of nodes that are already in topological order.

        Raises:
          InternalError: two nodes have the same name, so one would be lost.
        """
        by_name: dict[str, Node] = {}
        for node in nodes:
            if node.name in by_name:
                raise InternalError(
                    f"two nodes are called '{node.name}'",
                    details=(f"their ops are {by_name[node.name].op} and {node.op}",),
                    way_out="This is a fault of whale_tf: the pass that made the second must name it anew.",
                )
            by_name[node.name] = node
        return cls(by_name, tuple(outputs), tuple(effects), attrs or {})

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __contains__(self, name: str) -> bool:
        return name in self.nodes

    def type_of(self, ref: Ref) -> TensorType:
        """The type of one tensor."""
        return self.nodes[ref.node].outputs[ref.index]

    @cached_property
    def users(self) -> Mapping[str, tuple[str, ...]]:
        """For each node, the names of those that take its outputs or wait for it, in order and once each."""
        users: dict[str, dict[str, None]] = {name: {} for name in self.nodes}
        for node in self:
            for ref in node.inputs:
                users[ref.node][node.name] = None
            for name in node.control:
                users[name][node.name] = None
        return {name: tuple(using) for name, using in users.items()}

    def roots(self) -> tuple[str, ...]:
        """The nodes everything else is there for: outputs' producers and effects."""
        return (*(ref.node for ref in self.outputs), *self.effects)

    def ancestors(self, roots: Iterable[str], *, stop: Callable[[Node], bool] | None = None) -> set[str]:
        """The nodes that `roots` need, themselves included; behind a node where `stop` holds nothing is followed."""
        found: set[str] = set()
        stack = list(roots)
        while stack:
            name = stack.pop()
            if name in found:
                continue
            found.add(name)
            node = self.nodes[name]
            if stop is not None and stop(node):
                continue
            stack.extend(ref.node for ref in node.inputs)
            stack.extend(node.control)
        return found

    def pruned(self) -> Graph:
        """Without the nodes that no output and no effect needs."""
        needed = self.ancestors(self.roots())
        return replace(self, nodes={name: node for name, node in self.nodes.items() if name in needed})

    def rewritten(self, change: Callable[[Node], Node]) -> Graph:
        """With every node replaced by `change(node)`; names and order stay."""
        return replace(self, nodes={name: change(node) for name, node in self.nodes.items()})
