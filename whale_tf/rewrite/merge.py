"""Adds the nodes that turn the values of all micro-batches into the one value of the step, as plan.merges says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import SUMS, Extent, Partial, Reduction, Split
from whale_tf.rewrite.placed import HOST, Placed

if TYPE_CHECKING:
    from whale_tf.rewrite.bind import Binder

SUMMED = frozenset({"bfloat16", "float16", "float32", "float64"})
REDUCED = SUMMED | {"int32", "int64"}  # what MPI's ranks can reduce between them
FOLDS: Mapping[Reduction, str] = MappingProxyType(
    {
        Reduction.MAX: "Maximum",
        Reduction.MIN: "Minimum",
        Reduction.PROD: "Mul",
        Reduction.ALL: "LogicalAnd",
        Reduction.ANY: "LogicalOr",
    }
)


class Merging:
    """Adds merges to a binder's main graph, one for each value."""

    def __init__(self, binder: Binder) -> None:
        self.binder = binder
        self.known: dict[Ref, Placed] = {}
        self.reduced: dict[str, list[Placed]] = {}
        self.last_collective: dict[int, str] = {}

    def value(self, ref: Ref) -> Placed:
        """The step's value of a tensor that every micro-batch has."""
        if ref not in self.known:
            self.known[ref] = self._merged(ref)
        return self.known[ref]

    def gradient(self, marker: Node, group: int) -> Placed:
        """A marker's gradient over all examples, on the device that owns it in a group of replicas."""
        binder, plan = self.binder, self.binder.plan
        if not binder.roles.per_micro_batch(marker.inputs[0].node):
            device = plan.device_of.get(marker.name, (HOST,))[group]
            return Placed(binder.step_on(marker.inputs[0], device), device)
        value = plan.merges.get(Ref(marker.name))
        rows = value.state if value is not None and isinstance(value.state, Split) else None
        if rows or marker.outputs[0].dtype not in REDUCED:
            return self._collected(marker, group, rows)
        if marker.name not in self.reduced:
            self._reduce_bucket_of(marker.name)
        return self.reduced[marker.name][group]

    @cached_property
    def bucket_of(self) -> Mapping[str, int]:
        """The bucket of a gradient, by index."""
        return {name: index for index, bucket in enumerate(self.binder.plan.buckets) for name in bucket}

    def _reduce_bucket_of(self, name: str) -> None:
        """Reduces a gradient with all of its bucket; collectives in the plan's order, for that is each device's too."""
        plan, index = self.binder.plan, self.bucket_of.get(name)
        if index is None:
            self._reduce((name,))
            return
        before = [each for each in plan.collective if each < index] if index in plan.collective else []
        for bucket in [plan.buckets[each] for each in (*before, index)]:
            if bucket[0] not in self.reduced:
                self._reduce(bucket)

    def _collected(self, marker: Node, group: int, rows: Split | None) -> Placed:
        """The values of all replicas sent to each group: rows of IndexedSlices, or what no collective adds."""
        binder, plan = self.binder, self.binder.plan
        device, kind = plan.device_of.get(marker.name, (HOST,))[group], marker.outputs[0]
        values = [binder.move(s, device) for r in range(plan.layout.replicas) for s in binder.sums[marker.name, r]]
        if rows is None:
            return Placed(self._add_n(marker.name, values, kind, device), device)
        shape = binder.graph.type_of(marker.inputs[0]).shape
        return Placed(self._joined(marker.name, values, TensorType(kind.dtype, shape), rows, device), device)

    def _reduce(self, bucket: Sequence[str]) -> None:
        """The sums of dense gradients in each group of replicas, and then between the groups."""
        binder, markers = self.binder, [self.binder.graph[name] for name in bucket]
        groups = binder.plan.layout.groups
        kind = markers[0].outputs[0].dtype
        sums = [self._sums(markers, group) for group in range(len(groups))]
        if len(groups) > 1:
            ranks = tuple(binder.plan.layout.process_of(of_group[0].device) for of_group in sums)
            attrs = {"T": kind, "N": len(bucket), "ranks": ranks, "scale": 1.0, "id": binder.next_id()}
            kinds = [marker.outputs[0] for marker in markers]
            name = f"{bucket[0]}/all"
            for group, of_group in enumerate(sums):
                device = of_group[0].device
                made = binder.add(name, "AllReduce", [value.ref for value in of_group], kinds, device, **attrs)
                sums[group] = [Placed(made._replace(index=index), device) for index in range(len(bucket))]
        for index, name in enumerate(bucket):
            self.reduced[name] = [of_group[index] for of_group in sums]

    def _sums(self, markers: Sequence[Node], group: int) -> list[Placed]:
        """The sums of gradients over the replicas of a group, all in one operation."""
        binder, replicas = self.binder, self.binder.plan.layout.groups[group]
        device = binder.plan.device_of.get(markers[0].name, (HOST,))[group]
        if len(replicas) > 1 and self.bucket_of.get(markers[0].name) in binder.plan.collective:
            return self._by_collective(markers, replicas, device)
        values = [[binder.move(s, device) for r in replicas for s in binder.sums[m.name, r]] for m in markers]
        parts, kinds = len(values[0]), [marker.outputs[0] for marker in markers]
        if parts == 1 or kinds[0].dtype not in SUMMED or "CPU" not in binder.plan.layout.devices[device]:
            totals = [self._add_n(m.name, v, k, device) for m, v, k in zip(markers, values, kinds, strict=True)]
            return [Placed(ref, device) for ref in totals]
        attrs = {"M": parts * len(markers), "K": len(markers), "parts": parts, "T": kinds[0].dtype, "scale": 1.0}
        flat = [value for each in values for value in each]
        made = binder.add(f"{markers[0].name}/total", "WhaleSum", flat, kinds, device, **attrs)
        return [Placed(made._replace(index=index), device) for index in range(len(markers))]

    def _by_collective(self, markers: Sequence[Node], replicas: Sequence[int], owner: int) -> list[Placed]:
        """The same, where each replica's device takes part with its own gradients; the others' results are not used."""
        binder, kinds = self.binder, [marker.outputs[0] for marker in markers]
        own = [[value for marker in markers for value in binder.sums[marker.name, replica]] for replica in replicas]
        devices = tuple(values[0].device for values in own)
        attrs = {"T": kinds[0].dtype, "N": len(kinds), "devices": devices, "scale": 1.0, "id": binder.next_id()}
        for values, device in zip(own, devices, strict=True):
            inputs = [value.ref for value in values]
            made = binder.add(f"{markers[0].name}/reduced", "Reduce", inputs, kinds, device, **attrs).node
            if device in self.last_collective:
                binder.nodes[made] = binder.nodes[made].with_(control=(self.last_collective[device],))
            self.last_collective[device] = made
        return [Placed(Ref(self.last_collective[owner], index), owner) for index in range(len(markers))]

    def _merged(self, ref: Ref) -> Placed:
        binder, plan = self.binder, self.binder.plan
        kind = binder.graph.type_of(ref)
        if plan.parts == 1:
            return self._part(ref, 0, 0)
        value = plan.merges[ref]
        if isinstance(value.state, Split):
            pieces = [binder.move(self._part(ref, r, i), HOST) for r, i in plan.part_order()]
            pieces = self._counted(ref, pieces, kind, value.state)
            return Placed(self._joined(f"{ref}/all", pieces, kind, value.state, HOST), HOST)
        if isinstance(value.state, Extent):
            return self._extent(ref, value.state.at)
        if not isinstance(value.state, Partial):
            return self._part(ref, 0, 0)  # every part has it
        device = self._part(ref, 0, 0).device
        parts = []
        for r, i in plan.part_order():
            part = self._part(ref, r, i)
            weight = plan.weight(r, i) ** float(-value.degree)
            scaled = self._scaled(f"{ref}/r{r}/{i}", part.ref, weight, kind, part.device)
            parts.append(binder.move(Placed(scaled, part.device), device))
        if value.state == SUMS:
            return Placed(self._add_n(f"{ref}/all", parts, kind, device), device)
        total = parts[0]
        op = FOLDS[value.state.op]
        for part_ref in parts[1:]:
            attrs = {} if kind.dtype == "bool" else {"T": kind.dtype}
            total = binder.add(f"{ref}/all", op, [total, part_ref], [kind], device, **attrs)
        return Placed(total, device)

    def _extent(self, ref: Ref, at: int) -> Placed:
        """The shape of all rows: that of the first part, with the others' numbers of rows added."""
        binder, plan = self.binder, self.binder.plan
        kind = binder.graph.type_of(ref)
        parts = [binder.move(self._part(ref, r, i), HOST) for r, i in plan.part_order()]
        rows = binder.constant(tuple(int(dim == at) for dim in range(kind.shape[0] or 0)), kind.dtype, HOST)
        others = [binder.add(f"{ref}/rows", "Mul", [part, rows], [kind], HOST, T=kind.dtype) for part in parts[1:]]
        return Placed(self._add_n(f"{ref}/all", [parts[0], *others], kind, HOST), HOST)

    def _counted(self, ref: Ref, pieces: list[Ref], kind: TensorType, split: Split) -> list[Ref]:
        """Positions that parts count from their first example, as the whole batch counts them."""
        binder, plan = self.binder, self.binder.plan
        if not split.ahead:
            return pieces
        found = []
        for (r, i), piece in zip(plan.part_order(), pieces, strict=True):
            number = plan.offset(r, i) * split.ahead
            columns = (number, *(0,) * ((kind.shape[-1] or 1) - 1))
            first = binder.constant(columns if split.column else number, kind.dtype, HOST)
            found.append(binder.add(f"{ref}/r{r}/{i}/counted", "AddV2", [piece, first], [kind], HOST, T=kind.dtype))
        return found

    def _joined(self, name: str, pieces: list[Ref], kind: TensorType, split: Split, device: int) -> Ref:
        """Pieces of a dim put together; where it is seen as (outer, rest), those of rest."""
        if split.outer == 1:
            return self._concat(name, pieces, kind, device, split.dim)
        reshaped, before, after = self.binder.inputs.reshaped, kind.shape[: split.dim], kind.shape[split.dim + 1 :]
        folded = TensorType(kind.dtype, Shape((*before, split.outer, -1, *after)))
        seen = [reshaped(f"{name}/{n}", ref, folded, device) for n, ref in enumerate(pieces)]
        whole = self._concat(name, seen, folded, device, split.dim + 1)
        return reshaped(f"{name}/flat", whole, kind, device)

    def _part(self, ref: Ref, replica: int, i: int) -> Placed:
        if self.binder.graph[ref.node].op == "Input":
            return self.binder.inputs.slice(ref, replica, i, self.binder.plan.layout.device_of(replica, 0))
        return self.binder.micro[ref, replica, i]

    def _add_n(self, name: str, values: list[Ref], kind: TensorType, device: int) -> Ref:
        if len(values) == 1:
            return values[0]
        if len(values) == 2:
            return self.binder.add(f"{name}/total", "AddV2", values, [kind], device, T=kind.dtype)
        return self.binder.add(f"{name}/total", "AddN", values, [kind], device, T=kind.dtype, N=len(values))

    def _concat(self, name: str, values: list[Ref], kind: TensorType, device: int, dim: int = 0) -> Ref:
        if len(values) == 1:
            return values[0]
        axis = self.binder.constant(dim, DType("int32"), device)
        attrs = {"T": kind.dtype, "Tidx": DType("int32"), "N": len(values)}
        longer = TensorType(kind.dtype, Shape((*kind.shape[:dim], -1, *kind.shape[dim + 1 :])))
        return self.binder.add(name, "ConcatV2", [*values, axis], [longer], device, **attrs)

    def _scaled(self, name: str, value: Ref, factor: float, kind: TensorType, device: int) -> Ref:
        if factor == 1:
            return value
        scale = self.binder.constant(factor, kind.dtype, device)
        return self.binder.add(f"{name}/scaled", "Mul", [value, scale], [kind], device, T=kind.dtype)
