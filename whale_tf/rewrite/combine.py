"""Makes one value of what the parts of the batch have: the one place where sums, joins and collectives come from.

    what a part has    in a group of replicas              between groups
    Partial(sum)       WhaleSum, AddN, or Reduce (NCCL)    AllReduce
    Partial(max, …)    Maximum, …                          AllReduce
    Split(dim)         ConcatV2                            AllGather
    Extent             the parts' rows added               AllReduce
    Whole              the first part's                    each group has its own

The parts of a group come to one device first: of a gradient to its owner in the group. Each group takes part with what
it has; where there is only one, nothing goes on between groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from whale_tf.ir.graph import Ref, Shape, TensorType
from whale_tf.ir.sharding import Extent, Partial, Reduction, Split, Value
from whale_tf.plan.plan import Plan
from whale_tf.rewrite.builder import INT32, Builder, Placed, with_dim

SUMMED = frozenset({"bfloat16", "float16", "float32", "float64"})  # by WhaleSum
REDUCED = SUMMED | {"int32", "int64", "bool"}  # by AllReduce
FOLDS: Mapping[Reduction, str] = MappingProxyType(
    {
        Reduction.MAX: "Maximum",
        Reduction.MIN: "Minimum",
        Reduction.PROD: "Mul",
        Reduction.ALL: "LogicalAnd",
        Reduction.ANY: "LogicalOr",
    }
)
# What AllReduce calls it, and the operation that does it along a dim.
BETWEEN: Mapping[Reduction, tuple[str, str]] = MappingProxyType(
    {
        Reduction.SUM: ("sum", "Sum"),
        Reduction.MAX: ("max", "Max"),
        Reduction.MIN: ("min", "Min"),
        Reduction.PROD: ("product", "Prod"),
        Reduction.ALL: ("product", "All"),
        Reduction.ANY: ("sum", "Any"),
    }
)


@dataclass(frozen=True)
class Parts:
    """What the parts of one group have of one value.

    Attributes:
      name: of the value in the step.
      kind: its type over the whole batch.
      values: one for each part in the order of the examples, or several, or the sum of several.
      device: where they are put together.
      ranks: the processes of that device in all groups.
    """

    name: str
    kind: TensorType
    values: Sequence[Placed]
    device: int
    ranks: tuple[int, ...]


@dataclass
class Combine:
    """Adds to a group's main graph what makes one value of the parts' values."""

    builder: Builder
    plan: Plan
    last_collective: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = self.plan.layout.groups
        self.parts = [(r, i) for r in self.groups.members[self.builder.group] for i in range(self.plan.micro_batches)]

    def value(self, parts: Parts, value: Value) -> Placed:
        """The step's value of what every part has."""
        if isinstance(value.state, Split):
            return self._in_place_of_examples(parts, value.state)
        if isinstance(value.state, Extent):
            return self._extent(parts, value.state.at)
        if not isinstance(value.state, Partial):
            return parts.values[0]  # every part has it
        kind, values = parts.kind, []
        for (r, i), part in zip(self.parts, parts.values, strict=True):
            weight = self.plan.weight(r, i) ** float(-value.degree)
            scaled = self.builder.scaled(f"{parts.name}/r{r}/{i}", part.ref, weight, kind, part.device)
            values.append(Placed(scaled, part.device))
        return self._folded(parts, values, value.state.op)

    def gradients(self, bucket: Sequence[Parts]) -> list[Placed]:
        """The sums of dense gradients that have their device in common."""
        (device,) = {parts.device for parts in bucket}
        values = [[self.builder.move(each, device) for each in parts.values] for parts in bucket]
        kinds, count = [parts.kind for parts in bucket], len(values[0])
        on_cpu = self.plan.layout.kind_of(device) == "CPU"
        if count == 1 or kinds[0].dtype not in SUMMED or not on_cpu:
            totals = [self.builder.total(p.name, v, p.kind, device) for p, v in zip(bucket, values, strict=True)]
        else:
            attrs = {"M": count * len(bucket), "K": len(bucket), "parts": count, "T": kinds[0].dtype, "scale": 1.0}
            flat = [value for each in values for value in each]
            made = self.builder.add(f"{bucket[0].name}/total", "WhaleSum", flat, kinds, device, **attrs)
            totals = [made._replace(index=index) for index in range(len(bucket))]
        return self._reduced(bucket, totals, Reduction.SUM)

    def gradients_by_collective(self, bucket: Sequence[Parts], number: int) -> list[Placed]:
        """The same, where each replica's device takes part with its own gradients; the others' results are not used.

        Args:
          number: of the bucket; collectives of a device run in their order.
        """
        builder, owner = self.builder, bucket[0].device
        devices = tuple(value.device for value in bucket[0].values)
        kinds = [parts.kind for parts in bucket]
        attrs = {"T": kinds[0].dtype, "N": len(kinds), "devices": devices, "scale": 1.0, "id": number}
        totals: list[Ref] = []
        for place, device in enumerate(devices):
            made = builder.add(
                f"{bucket[0].name}/reduced",
                "Reduce",
                [parts.values[place].ref for parts in bucket],
                kinds,
                device,
                **attrs,
            )
            if device in self.last_collective:
                builder.change(made, control=(self.last_collective[device],))
            self.last_collective[device] = made.node
            if device == owner:
                totals = [made._replace(index=index) for index in range(len(bucket))]
        return self._reduced(bucket, totals, Reduction.SUM)

    def added(self, parts: Parts) -> Placed:
        """The sum of gradients that no bucket holds."""
        return self._folded(parts, parts.values, Reduction.SUM)

    def shared(self, parts: Parts) -> Placed:
        """A value that the first group has computed, in every group; the others have no part of it."""
        name, kind, device, ranks = parts.name, parts.kind, parts.device, parts.ranks
        made = self.builder.move(parts.values[0], device) if parts.values else None
        if kind.shape.known and kind.dtype in REDUCED:
            given = self._zeros(name, kind, device) if made is None else made
            attrs = {"T": kind.dtype, "N": 1, "root": 0}
            found = self._collective(f"{name}/shared", "Broadcast", [given], [kind], device, ranks, attrs)
            return Placed(found, device)
        return Placed(self._gathered_anyhow(name, kind, made, device, ranks), device)

    # Between groups

    def _collective(
        self,
        name: str,
        op: str,
        values: Sequence[Ref],
        kinds: Sequence[TensorType],
        device: int,
        ranks: tuple[int, ...],
        attrs: Mapping[str, object],
    ) -> Ref:
        return self.builder.add(name, op, values, kinds, device, **attrs, ranks=ranks, label=name.encode())

    def _reduced(self, bucket: Sequence[Parts], totals: Sequence[Ref], reduction: Reduction) -> list[Placed]:
        """Values of this group, on one device, reduced over all groups."""
        device, kinds, ranks = bucket[0].device, [parts.kind for parts in bucket], bucket[0].ranks
        if len(self.groups) == 1:
            return [Placed(ref, device) for ref in totals]
        if kinds[0].dtype not in REDUCED:
            found = [self._gathered_and_reduced(p, t, reduction) for p, t in zip(bucket, totals, strict=True)]
            return [Placed(ref, device) for ref in found]
        attrs = {"T": kinds[0].dtype, "N": len(kinds), "reduction": BETWEEN[reduction][0].encode(), "scale": 1.0}
        made = self._collective(f"{bucket[0].name}/all", "AllReduce", totals, kinds, device, ranks, attrs)
        return [Placed(made._replace(index=index), device) for index in range(len(bucket))]

    def _gathered_and_reduced(self, parts: Parts, total: Ref, reduction: Reduction) -> Ref:
        """What AllReduce does not take: all groups' values, reduced here."""
        builder, device, kind = self.builder, parts.device, parts.kind
        row = TensorType(kind.dtype, Shape((1, *kind.shape)))
        first = builder.constant(0, INT32, device)
        attrs = {"T": kind.dtype, "Tdim": INT32}
        given = builder.add(f"{parts.name}/row", "ExpandDims", [total, first], [row], device, **attrs)
        gathered = self._all_gather(f"{parts.name}/all", given, row, device, parts.ranks)
        typed = {} if kind.dtype == "bool" else {"T": kind.dtype}
        how: dict[str, object] = {"Tidx": INT32, "keep_dims": False, **typed}
        return builder.add(f"{parts.name}/reduced", BETWEEN[reduction][1], [gathered, first], [kind], device, **how)

    def _all_gather(self, name: str, given: Ref, kind: TensorType, device: int, ranks: tuple[int, ...]) -> Ref:
        attrs = {"T": kind.dtype, "N": 1}
        return self._collective(name, "AllGather", [given], [with_dim(kind, 0, -1)], device, ranks, attrs)

    def _gathered_anyhow(
        self, name: str, kind: TensorType, made: Ref | None, device: int, ranks: tuple[int, ...]
    ) -> Ref:
        """A value of a shape that only the first group knows: the others bring no elements, and no dims."""
        builder, vector = self.builder, TensorType(kind.dtype, Shape((-1,)))
        dims = TensorType(INT32, Shape((-1,)))
        if made is not None:
            flat = builder.reshaped(f"{name}/flat", made, vector, device)
            attrs = {"T": kind.dtype, "out_type": INT32}
            shape = builder.add(f"{name}/shape", "Shape", [made], [dims], device, **attrs)
        else:
            flat = self._zeros(f"{name}/flat", TensorType(kind.dtype, Shape((0,))), device)
            shape = self._zeros(f"{name}/shape", TensorType(INT32, Shape((0,))), device)
        flat = self._all_gather(f"{name}/shared", flat, vector, device, ranks)
        shape = self._all_gather(f"{name}/shared_shape", shape, dims, device, ranks)
        attrs = {"T": kind.dtype, "Tshape": INT32}
        return builder.add(f"{name}/shaped", "Reshape", [flat, shape], [kind], device, **attrs)

    def _zeros(self, name: str, kind: TensorType, device: int) -> Ref:
        """Stands for a value that another group gives; of strings, empty ones."""
        builder = self.builder
        zero = builder.constant(b"" if kind.dtype == "string" else 0, kind.dtype, device)
        dims = builder.constant(kind.shape.sizes, INT32, device)
        attrs = {"T": kind.dtype, "index_type": INT32}
        return builder.add(f"{name}/like", "Fill", [dims, zero], [kind], device, **attrs)

    # Within the group

    def _folded(self, parts: Parts, given: Sequence[Placed], reduction: Reduction) -> Placed:
        builder, kind, device = self.builder, parts.kind, parts.device
        values = [builder.move(each, device) for each in given]
        if reduction == Reduction.SUM:
            total = builder.total(f"{parts.name}/sum", values, kind, device)
        else:
            total, op = values[0], FOLDS[reduction]
            attrs = {} if kind.dtype == "bool" else {"T": kind.dtype}
            for value in values[1:]:
                total = builder.add(f"{parts.name}/{op}", op, [total, value], [kind], device, **attrs)
        (found,) = self._reduced([parts], [total], reduction)
        return found

    def _extent(self, parts: Parts, at: int) -> Placed:
        """The shape of all rows: that of the first part of all, with the others' numbers of rows added."""
        builder, kind, device = self.builder, parts.kind, parts.device
        rows = builder.constant(tuple(int(dim == at) for dim in range(kind.shape[0] or 0)), kind.dtype, device)
        values = []
        for part, each in zip(self.parts, parts.values, strict=True):
            ref = builder.move(each, device)
            if part != (0, 0):
                ref = builder.add(f"{parts.name}/rows", "Mul", [ref, rows], [kind], device, T=kind.dtype)
            values.append(Placed(ref, device))
        return self._folded(parts, values, Reduction.SUM)

    def _in_place_of_examples(self, parts: Parts, split: Split) -> Placed:
        """The pieces of all parts in the order of the examples; where a dim is seen as (outer, rest), those of rest."""
        builder, kind, device = self.builder, parts.kind, parts.device
        pieces = [builder.move(each, device) for each in parts.values]
        if split.ahead:
            pieces = self._counted(parts, pieces, split)
        return Placed(builder.joined(parts.name, pieces, kind, split, device, partial(self._joined, parts)), device)

    def _joined(self, parts: Parts, pieces: Sequence[Ref], kind: TensorType, dim: int) -> Ref:
        """The pieces of this group put together, and then those of all groups."""
        builder, groups, name = self.builder, self.groups, f"{parts.name}/all"
        if len(groups.runs) > len(groups):
            found = self._runs(parts, pieces, kind, dim)
            return builder.concat(name, found, kind, parts.device, dim)
        own = builder.concat(name if len(groups) == 1 else f"{parts.name}/own", pieces, kind, parts.device, dim)
        return own if len(groups) == 1 else self._gathered_along(name, own, with_dim(kind, dim, -1), dim, parts)

    def _runs(self, parts: Parts, pieces: Sequence[Ref], kind: TensorType, dim: int) -> list[Ref]:
        """The same where the examples of several groups alternate: a collective for each run of one group's."""
        builder, device, first = self.builder, parts.device, 0
        each = len(pieces) // len(self.groups.members[builder.group])  # of one replica
        found = []
        for number, (group, members) in enumerate(self.groups.runs):
            name = f"{parts.name}/run{number}"
            if group == builder.group:
                last = first + each * len(members)
                given, first = builder.concat(name, pieces[first:last], kind, device, dim), last
            else:
                given = builder.sliced(f"{name}/none", pieces[0], (dim, 0, 0), kind, device)
            found.append(self._gathered_along(f"{name}/all", given, with_dim(kind, dim, -1), dim, parts))
        return found

    def _gathered_along(self, name: str, given: Ref, kind: TensorType, dim: int, parts: Parts) -> Ref:
        """An all-gather along any dim."""
        if dim == 0:
            return self._all_gather(name, given, kind, parts.device, parts.ranks)
        builder, rest = self.builder, [d for d in range(len(kind.shape)) if d != dim]
        there, back = (dim, *rest), (*range(1, dim + 1), 0, *range(dim + 1, len(kind.shape)))
        turned = builder.transposed(f"{name}/there", given, there, parts.device)
        gathered = self._all_gather(name, turned, builder.type_of(turned), parts.device, parts.ranks)
        return builder.transposed(f"{name}/back", gathered, back, parts.device)

    def _counted(self, parts: Parts, pieces: Sequence[Ref], split: Split) -> list[Ref]:
        """Positions that parts count from their first example, as the whole batch counts them."""
        builder, kind, device = self.builder, parts.kind, parts.device
        found = []
        for (r, i), piece in zip(self.parts, pieces, strict=True):
            number = self.plan.offset(r, i) * split.ahead
            columns = (number, *(0,) * ((kind.shape[-1] or 1) - 1))
            first = builder.constant(columns if split.column else number, kind.dtype, device)
            name = f"{parts.name}/r{r}/{i}/counted"
            found.append(builder.add(name, "AddV2", [piece, first], [kind], device, T=kind.dtype))
        return found
