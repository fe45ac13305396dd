"""The graph of one member of a mesh under construction: pieces of arithmetic, and what it says to the other members."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names
from whale_tf.plan.cost import tensor_bytes
from whale_tf.rewrite.cut import Source

BOOL, INT32, INT64 = DType("bool"), DType("int32"), DType("int64")
PLACE, MEMBER = Source("place"), Source("member")


class Moved(NamedTuple):
    """A collective of the members: its operation, the bytes that a member brings, and for which operation."""

    op: str
    bytes: int
    node: str


@dataclass(frozen=True)
class _Both:
    """What is in one of two collections."""

    one: Collection[str]
    other: Collection[str]

    def __contains__(self, name: object) -> bool:
        return name in self.one or name in self.other


@dataclass
class MemberGraph:
    """A member's graph, to which nodes are added after what they take.

    Attributes:
      members: how many there are.
      arguments: where the function's arguments come from; added to.
      reserved: names that are kept for the operations of the whole function.
      moved: its collectives; added to.
      wanting: the operation that is being written.
    """

    members: int
    arguments: list[Source]
    reserved: Collection[str] = ()
    nodes: dict[str, Node] = field(default_factory=dict)
    moved: list[Moved] = field(default_factory=list)
    wanting: str = ""
    names: Names = field(default_factory=Names)
    known: dict[object, Ref] = field(default_factory=dict)

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Ref],
        kinds: Sequence[TensorType],
        *,
        stateful: bool = False,
        **attrs: Any,
    ) -> Ref:
        """One node, under a name that is not used yet."""
        unique = self.names.unused(name.replace(":", "/"), _Both(self.nodes, self.reserved))
        self.nodes[unique] = Node(unique, op, tuple(inputs), attrs=attrs, outputs=tuple(kinds), stateful=stateful)
        return Ref(unique)

    def keep(self, node: Node) -> None:
        """A node under its own name."""
        self.nodes[node.name] = node

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a tensor, as the member has it."""
        return self.nodes[ref.node].outputs[ref.index]

    def argument(self, source: Source, kind: TensorType) -> Ref:
        """An argument of the function, one for all its uses."""
        if source not in self.known:
            index = len(self.arguments)
            self.arguments.append(source)
            self.known[source] = self.add(f"argument/{source.kind}", "Argument", [], [kind], index=index)
        return self.known[source]

    @property
    def place(self) -> Ref:
        """Who calls, as collectives take it."""
        return self.argument(PLACE, TensorType(INT64, Shape((3,))))

    @property
    def member(self) -> Ref:
        """The number of the member."""
        return self.argument(MEMBER, TensorType(INT32, Shape()))

    # Arithmetic

    def number(self, value: Any, dtype: DType, shape: Sequence[int] | None = None) -> Ref:
        """A constant: a number, or a vector of them; with a shape, a tensor of one number."""
        dims = Shape(shape if shape is not None else (len(value),) if isinstance(value, tuple) else ())
        key = ("constant", dtype, value, dims)
        if key not in self.known:
            kind = TensorType(dtype, dims)
            self.known[key] = self.add("mesh/constant", "Const", [], [kind], dtype=dtype, value=value, shape=dims)
        return self.known[key]

    def reshaped(self, name: str, ref: Ref, shape: Sequence[int]) -> Ref:
        """The tensor in another shape."""
        kind = self.type_of(ref)
        if kind.shape == tuple(shape):
            return ref
        dims = self.number(tuple(shape), INT32)
        result = TensorType(kind.dtype, Shape(shape))
        return self.add(f"{name}/reshaped", "Reshape", [ref, dims], [result], T=kind.dtype, Tshape=INT32)

    def transposed(self, name: str, ref: Ref, order: Sequence[int]) -> Ref:
        """The tensor with its dims in another order."""
        kind = self.type_of(ref)
        if list(order) == sorted(order):
            return ref
        result = TensorType(kind.dtype, Shape(kind.shape[dim] for dim in order))
        inputs = [ref, self.number(tuple(order), INT32)]
        return self.add(f"{name}/transposed", "Transpose", inputs, [result], T=kind.dtype, Tperm=INT32)

    def binary(self, name: str, op: str, a: Ref, b: Ref, dtype: DType | None = None) -> Ref:
        """Element by element, of two tensors of one type, the first with all dims; `dtype` is that of a comparison."""
        kind = self.type_of(a)
        attrs: dict[str, Any] = {} if kind.dtype == BOOL else {"T": kind.dtype}
        attrs |= {"incompatible_shape_error": True} if op in ("Equal", "NotEqual") else {}
        return self.add(f"{name}/{op}", op, [a, b], [TensorType(dtype or kind.dtype, kind.shape)], **attrs)

    def unary(self, name: str, op: str, a: Ref) -> Ref:
        """Element by element."""
        kind = self.type_of(a)
        return self.add(f"{name}/{op}", op, [a], [kind], T=kind.dtype)

    def cast(self, name: str, a: Ref, dtype: DType) -> Ref:
        """In another type."""
        kind = self.type_of(a)
        if kind.dtype == dtype:
            return a
        attrs: dict[str, Any] = {"SrcT": kind.dtype, "DstT": dtype, "Truncate": False}
        return self.add(f"{name}/cast", "Cast", [a], [TensorType(dtype, kind.shape)], **attrs)

    def chosen(self, name: str, where: Ref, a: Ref, b: Ref) -> Ref:
        """`a` where a truth value holds, else `b`; `a` has all dims."""
        kind = self.type_of(a)
        return self.add(f"{name}/chosen", "SelectV2", [where, a, b], [kind], T=kind.dtype)

    def zeros(self, name: str, like: Ref) -> Ref:
        """Zeros of the shape of another tensor."""
        return self.unary(f"{name}/zeros", "ZerosLike", like)

    def folded(self, name: str, op: str, a: Ref, axis: int, *, keep: bool = False) -> Ref:
        """Sum, Max or Min along one dim."""
        kind = self.type_of(a)
        axis %= len(kind.shape)
        kept = (1,) if keep else ()
        result = TensorType(kind.dtype, Shape((*kind.shape[:axis], *kept, *kind.shape[axis + 1 :])))
        inputs = [a, self.number((axis,), INT32)]
        return self.add(f"{name}/{op}", op, inputs, [result], T=kind.dtype, Tidx=INT32, keep_dims=keep)

    def first_of(self, name: str, piece: int, dtype: DType) -> Ref:
        """The number of the member's first element, where each has `piece`."""
        number = self.cast("mesh/member", self.member, dtype)
        return self.binary(f"{name}/first", "Mul", number, self.number(piece, dtype))

    def sliced(self, name: str, ref: Ref, dim: int, piece: int) -> Ref:
        """The member's piece of a dim."""
        kind = self.type_of(ref)
        rank = len(kind.shape)
        unit = self.number(tuple(piece if each == dim else 0 for each in range(rank)), INT32)
        begin = self.add(f"{name}/begin", "Mul", [unit, self.member], [TensorType(INT32, Shape((rank,)))], T=INT32)
        size = self.number(tuple(piece if each == dim else -1 for each in range(rank)), INT32)
        result = TensorType(kind.dtype, Shape((*kind.shape[:dim], piece, *kind.shape[dim + 1 :])))
        return self.add(f"{name}/piece", "Slice", [ref, begin, size], [result], T=kind.dtype, Index=INT32)

    # Between members

    def collective(self, name: str, op: str, ref: Ref, shape: Sequence[int | None], **attrs: Any) -> Ref:
        """One call of all members with a tensor each."""
        kind = self.type_of(ref)
        result = TensorType(kind.dtype, Shape(shape))
        self.moved.append(Moved(op, tensor_bytes(kind), self.wanting))
        given = {"T": kind.dtype, "N": 1, **attrs}
        return self.add(f"{name}/{op}", op, [self.place, ref], [result], stateful=True, **given)

    def all_reduced(self, name: str, ref: Ref, reduction: str = "sum") -> Ref:
        """The reduction of what all members have."""
        shape = self.type_of(ref).shape
        return self.collective(name, "AllReduce", ref, shape, reduction=reduction.encode(), scale=1.0)
