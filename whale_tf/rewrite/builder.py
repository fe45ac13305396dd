"""The main graph of one group of replicas under construction: nodes on devices, and what moves between them.

A value is sent to a device once, however often it is used there; between processes once to each. Names and keys follow
from what they are of, so that two processes that build their own parts name what goes between them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whale_tf.errors import PlanError
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names
from whale_tf.ir.sharding import Split
from whale_tf.plan.layout import HOST_SEAT, Layout
from whale_tf.rewrite.step_program import NO_VALUES

INT32 = DType("int32")


Join = Callable[[Sequence[Ref], TensorType, int], Ref]  # of tensors of this type but for one dim, along it


class Placed(NamedTuple):
    """A tensor of the main graph and the device it is on, as an index."""

    ref: Ref
    device: int


@dataclass
class Builder:
    """A main graph, to which nodes are added after what they take.

    Attributes:
      layout: the devices.
      group: the group of replicas whose part it is.
    """

    layout: Layout
    group: int
    nodes: dict[str, Node] = field(default_factory=dict)
    copies: dict[tuple[Ref, int], Ref] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    def __post_init__(self) -> None:
        self.host = self.layout.device_at(self.group, HOST_SEAT)
        self.ending = f"/group{self.group}" if self.group else ""

    def add(
        self, name: str, op: str, inputs: Iterable[Ref], outputs: Iterable[TensorType], device: int, **attrs: Any
    ) -> Ref:
        """One node."""
        unique = self.names.unused(name.replace(":", "/") + self.ending, self.nodes)
        self.nodes[unique] = Node(unique, op, tuple(inputs), attrs=attrs, outputs=tuple(outputs), device=device)
        return Ref(unique)

    def change(self, ref: Ref, **changes: Any) -> None:
        """Another form of a node that was added."""
        self.nodes[ref.node] = self.nodes[ref.node].with_(**changes)

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a tensor."""
        return self.nodes[ref.node].outputs[ref.index]

    def move(self, value: Placed, device: int) -> Ref:
        """The value on a device: sent there if it is elsewhere."""
        if value.device == device:
            return value.ref
        known = self.copies.get((value.ref, device))
        if known is not None:
            return known
        layout = self.layout
        process = layout.process_of(device)
        crosses = layout.process_of(value.device) != process
        there = layout.hosts[process]
        if crosses and device != there and (value.ref, there) in self.copies:
            return self.move(Placed(self.copies[value.ref, there], there), device)
        kind = self.type_of(value.ref)
        if crosses:
            self.refuse_handle(value.ref, kind, layout.process_of(value.device), process)
        name = f"{value.ref}/to{device}".replace(":", "/")
        attrs = {"key": name.encode(), "T": kind.dtype}
        send = self.add(f"{name}/send", "Send", [value.ref], [], value.device, to=device, **attrs)
        received = self.add(name, "Recv", [], [kind], device, source=value.device, **attrs)
        self.copies[value.ref, device] = received
        self.change(received, twin=send.node)
        return received

    def refuse_handle(self, ref: Ref, kind: TensorType, source: int, target: int) -> None:
        """Refuses to send what is no plain value to another process.

        Raises:
          PlanError: it is none.
        """
        if kind.dtype in NO_VALUES:
            raise PlanError(
                f"a {kind.dtype} cannot be sent from one process to another",
                details=[f"'{ref}' is made in process {source} and used in process {target}"],
                way_out="Keep what makes and what uses it in stages of one process, and return numbers from the step.",
            )

    # Small pieces of arithmetic

    def constant(self, value: float | int | Sequence[int], dtype: DType, device: int) -> Ref:
        """A Const on a device."""
        shape = Shape((len(value),)) if isinstance(value, tuple) else Shape()
        key = (Ref(f"constant/{dtype}/{value}"), device)
        if key not in self.copies:
            kind = TensorType(dtype, shape)
            self.copies[key] = self.add("constant", "Const", [], [kind], device, dtype=dtype, value=value)
        return self.copies[key]

    def total(self, name: str, values: Sequence[Ref], kind: TensorType, device: int) -> Ref:
        """The sum of values on one device."""
        if len(values) == 1:
            return values[0]
        if len(values) == 2:
            return self.add(f"{name}/total", "AddV2", values, [kind], device, T=kind.dtype)
        return self.add(f"{name}/total", "AddN", values, [kind], device, T=kind.dtype, N=len(values))

    def concat(self, name: str, values: Sequence[Ref], kind: TensorType, device: int, dim: int = 0) -> Ref:
        """Values on one device put together along a dim."""
        if len(values) == 1:
            return values[0]
        axis = self.constant(dim, INT32, device)
        attrs = {"T": kind.dtype, "Tidx": INT32, "N": len(values)}
        return self.add(name, "ConcatV2", [*values, axis], [with_dim(kind, dim, -1)], device, **attrs)

    def scaled(self, name: str, value: Ref, factor: float, kind: TensorType, device: int) -> Ref:
        """A value times a number."""
        if factor == 1:
            return value
        scale = self.constant(factor, kind.dtype, device)
        return self.add(f"{name}/scaled", "Mul", [value, scale], [kind], device, T=kind.dtype)

    def reshaped(self, name: str, ref: Ref, kind: TensorType, device: int) -> Ref:
        """A tensor in another shape, of which one size may be -1."""
        shape = self.constant(tuple(size or 0 for size in kind.shape), INT32, device)
        return self.add(f"{name}/reshaped", "Reshape", [ref, shape], [kind], device, T=kind.dtype, Tshape=INT32)

    def sliced(self, name: str, ref: Ref, at: tuple[int, int, int], kind: TensorType, device: int) -> Ref:
        """Some of a dim: (dim, first, how many)."""
        dim, first, count = at
        rest = len(kind.shape) - dim - 1
        begin = self.constant((*(0,) * dim, first, *(0,) * rest), INT32, device)
        size = self.constant((*(-1,) * dim, count, *(-1,) * rest), INT32, device)
        cut = with_dim(kind, dim, count)
        return self.add(name, "Slice", [ref, begin, size], [cut], device, T=kind.dtype, Index=INT32)

    def joined(self, name: str, refs: Sequence[Ref], kind: TensorType, split: Split, device: int, join: Join) -> Ref:
        """Pieces on one device put together by `join`: where a dim is seen as (outer, rest), along rest."""
        if split.outer == 1:
            return join(refs, kind, split.dim)
        seen = _seen_apart(kind, split.dim, split.outer, -1)
        apart = [self.reshaped(f"{name}/{number}", ref, seen, device) for number, ref in enumerate(refs)]
        return self.reshaped(f"{name}/flat", join(apart, seen, split.dim + 1), kind, device)

    def piece(
        self, name: str, ref: Ref, kind: TensorType, at: tuple[int, int], rows: tuple[int, int], device: int
    ) -> Ref:
        """Some of a dim that is seen as (outer, rest): of rest.

        Args:
          at: the dim and outer.
          rows: the first of rest and how many.
        """
        (dim, outer), (first, count) = at, rows
        if outer == 1:
            return self.sliced(name, ref, (dim, first, count), kind, device)
        seen = _seen_apart(kind, dim, outer, (kind.shape[dim] or 0) // outer)
        apart = self.reshaped(name, ref, seen, device)
        cut = self.sliced(name, apart, (dim + 1, first, count), seen, device)
        return self.reshaped(f"{name}/flat", cut, with_dim(kind, dim, outer * count), device)

    def place(self, mesh: tuple[int, ...], member: int, number: int) -> Ref:
        """Who a member of a mesh is, and the number of its calls, on its device."""
        device = mesh[member]
        key = (Ref(f"place/{mesh}/{number}"), device)
        if key not in self.copies:
            kind = TensorType(DType("int64"), Shape((3,)))
            self.copies[key] = self.add("place", "Place", [], [kind], device, mesh=mesh, member=member, number=number)
        return self.copies[key]

    def transposed(self, name: str, ref: Ref, order: tuple[int, ...], device: int) -> Ref:
        """A tensor with its dims in another order."""
        kind = self.type_of(ref)
        turned = TensorType(kind.dtype, Shape(kind.shape[dim] for dim in order))
        inputs, attrs = [ref, self.constant(order, INT32, device)], {"T": kind.dtype, "Tperm": INT32}
        return self.add(name, "Transpose", inputs, [turned], device, **attrs)

    def graph(self, outputs: Sequence[Ref], effects: Sequence[str]) -> Graph:
        """What was built."""
        return Graph.of(self.nodes.values(), outputs, effects)


def with_dim(kind: TensorType, dim: int, size: int) -> TensorType:
    """The type of a tensor that has another size in one dim."""
    return TensorType(kind.dtype, Shape((*kind.shape[:dim], size, *kind.shape[dim + 1 :])))


def _seen_apart(kind: TensorType, dim: int, outer: int, rest: int) -> TensorType:
    """The type of a tensor with a dim as (outer, rest)."""
    return TensorType(kind.dtype, Shape((*kind.shape[:dim], outer, rest, *kind.shape[dim + 1 :])))
