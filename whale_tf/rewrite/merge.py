"""Adds the nodes that turn the values of all micro-batches into the one value of the step, as plan.merges says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.placed import HOST, Placed

if TYPE_CHECKING:
    from whale_tf.rewrite.bind import Binder

SUMMED = frozenset({"bfloat16", "float16", "float32", "float64"})
REDUCED = SUMMED | {"int32", "int64"}  # what MPI's ranks can reduce between them
FOLDS: Mapping[str, str] = MappingProxyType(
    {"max": "Maximum", "min": "Minimum", "prod": "Mul", "all": "LogicalAnd", "any": "LogicalOr"}
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
            self.known[ref] = self._state(ref) if self.binder.graph[ref.node].op == "Write" else self._merged(ref)
        return self.known[ref]

    def gradient(self, marker: Node, group: int) -> Placed:
        """A marker's gradient over all examples, on the device that owns it in a group of replicas."""
        binder, plan = self.binder, self.binder.plan
        if not binder.roles.per_micro_batch(marker.inputs[0].node):
            device = plan.device_of.get(marker.name, (HOST,))[group]
            return Placed(self._constant(marker, device), device)
        part, dtype = marker.attrs["part"], marker.outputs[0].dtype
        rows = part == b"indices" or (part == b"values" and self._varies(marker))
        if rows or dtype not in REDUCED:
            return self._collected(marker, group, rows=rows)
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

    def _collected(self, marker: Node, group: int, *, rows: bool) -> Placed:
        """The values of all replicas sent to each group: rows of IndexedSlices, or what no collective adds."""
        binder, plan = self.binder, self.binder.plan
        device, kind = plan.device_of.get(marker.name, (HOST,))[group], marker.outputs[0]
        values = [binder.move(s, device) for r in range(plan.layout.replicas) for s in binder.sums[marker.name, r]]
        total = (self._concat if rows else self._add_n)(marker.name, values, kind, device)
        return Placed(self._scaled(marker.name, total, self._scale(marker), kind, device), device)

    def _scale(self, marker: Node) -> float:
        """What a sum over all examples is multiplied by: parts of equal size are not weighted one by one."""
        plan = self.binder.plan
        return 1.0 / plan.parts if plan.loss == "mean" and plan.even and marker.attrs["part"] != b"indices" else 1.0

    def _reduce(self, bucket: Sequence[str]) -> None:
        """The sums of dense gradients in each group of replicas, and then between the groups."""
        binder, markers = self.binder, [self.binder.graph[name] for name in bucket]
        groups, scale = binder.plan.layout.groups, self._scale(markers[0])
        several = len(groups) > 1
        kind = markers[0].outputs[0].dtype
        sums = [self._sums(markers, group, 1.0 if several else scale) for group in range(len(groups))]
        if several:
            ranks = tuple(binder.plan.layout.process_of(of_group[0].device) for of_group in sums)
            attrs = {"T": kind, "N": len(bucket), "ranks": ranks, "scale": scale, "id": binder.next_id()}
            kinds = [marker.outputs[0] for marker in markers]
            name = f"{bucket[0]}/all"
            for group, of_group in enumerate(sums):
                device = of_group[0].device
                made = binder.add(name, "AllReduce", [value.ref for value in of_group], kinds, device, **attrs)
                sums[group] = [Placed(made._replace(index=index), device) for index in range(len(bucket))]
        for index, name in enumerate(bucket):
            self.reduced[name] = [of_group[index] for of_group in sums]

    def _sums(self, markers: Sequence[Node], group: int, scale: float) -> list[Placed]:
        """The sums of gradients over the replicas of a group, all in one operation."""
        binder, replicas = self.binder, self.binder.plan.layout.groups[group]
        device = binder.plan.device_of.get(markers[0].name, (HOST,))[group]
        if len(replicas) > 1 and self.bucket_of.get(markers[0].name) in binder.plan.collective:
            return self._by_collective(markers, replicas, device, scale)
        values = [[binder.move(s, device) for r in replicas for s in binder.sums[m.name, r]] for m in markers]
        parts, kinds = len(values[0]), [marker.outputs[0] for marker in markers]
        if parts == 1 or kinds[0].dtype not in SUMMED or "CPU" not in binder.plan.layout.devices[device]:
            totals = [self._add_n(m.name, v, k, device) for m, v, k in zip(markers, values, kinds, strict=True)]
            scaled = [
                self._scaled(m.name, t, scale, m.outputs[0], device) for m, t in zip(markers, totals, strict=True)
            ]
            return [Placed(ref, device) for ref in scaled]
        attrs = {"M": parts * len(markers), "K": len(markers), "parts": parts, "T": kinds[0].dtype, "scale": scale}
        flat = [value for each in values for value in each]
        made = binder.add(f"{markers[0].name}/total", "WhaleSum", flat, kinds, device, **attrs)
        return [Placed(made._replace(index=index), device) for index in range(len(markers))]

    def _by_collective(
        self, markers: Sequence[Node], replicas: Sequence[int], owner: int, scale: float
    ) -> list[Placed]:
        """The same, where each replica's device takes part with its own gradients; the others' results are not used."""
        binder, kinds = self.binder, [marker.outputs[0] for marker in markers]
        own = [[value for marker in markers for value in binder.sums[marker.name, replica]] for replica in replicas]
        devices = tuple(values[0].device for values in own)
        attrs = {"T": kinds[0].dtype, "N": len(kinds), "devices": devices, "scale": scale, "id": binder.next_id()}
        for values, device in zip(own, devices, strict=True):
            inputs = [value.ref for value in values]
            made = binder.add(f"{markers[0].name}/reduced", "Reduce", inputs, kinds, device, **attrs).node
            if device in self.last_collective:
                binder.nodes[made] = binder.nodes[made].with_(control=(self.last_collective[device],))
            self.last_collective[device] = made
        return [Placed(Ref(self.last_collective[owner], index), owner) for index in range(len(markers))]

    def _varies(self, marker: Node) -> bool:
        """Whether the other part of the IndexedSlices differs between micro-batches."""
        partner = marker.attrs["partner"].decode()
        return partner in self.binder.graph and self.binder.roles.per_micro_batch(
            self.binder.graph[partner].inputs[0].node
        )

    def _constant(self, marker: Node, device: int) -> Ref:
        """A gradient that is the same for all micro-batches; as rows, once for each micro-batch's indices."""
        plan, kind = self.binder.plan, marker.outputs[0]
        value = self.binder.step_on(marker.inputs[0], device)
        if marker.attrs["part"] != b"values" or not self._varies(marker):
            return value
        weights = [plan.weight(r, i) if plan.loss == "mean" else 1.0 for r, i in plan.part_order()]
        return self._concat(
            marker.name, [self._scaled(marker.name, value, w, kind, device) for w in weights], kind, device
        )

    def _merged(self, ref: Ref) -> Placed:
        binder, plan = self.binder, self.binder.plan
        kind = binder.graph.type_of(ref)
        if plan.parts == 1:
            return self._part(ref, 0, 0)
        how = plan.merges[ref]
        if how.startswith("concat"):
            dim = int(how.removeprefix("concat") or 0)
            pieces = [binder.move(self._part(ref, r, i), HOST) for r, i in plan.part_order()]
            return Placed(self._concat(f"{ref}/all", pieces, kind, HOST, dim), HOST)
        device = self._part(ref, 0, 0).device
        parts = []
        for r, i in plan.part_order():
            part = self._part(ref, r, i)
            value = part.ref
            if how == "mean":
                value = self._scaled(f"{ref}/r{r}/{i}", value, plan.weight(r, i), kind, part.device)
            parts.append(binder.move(Placed(value, part.device), device))
        if how in ("mean", "sum"):
            return Placed(self._add_n(f"{ref}/all", parts, kind, device), device)
        total = parts[0]
        for value in parts[1:]:
            attrs = {} if how in ("all", "any") else {"T": kind.dtype}
            total = binder.add(f"{ref}/all", FOLDS[how], [total, value], [kind], device, **attrs)
        return Placed(total, device)

    def _part(self, ref: Ref, replica: int, i: int) -> Placed:
        variant = self.binder.variants[self.binder.plan.sizes[replica][i]]
        if ref in self.binder.graph.outputs:
            ref = variant.graph.outputs[self.binder.graph.outputs.index(ref)]
        if self.binder.graph[ref.node].op == "Input":
            return self.binder.inputs.slice(ref, replica, i, self.binder.plan.layout.device_of(replica, 0))
        return self.binder.micro[ref, replica, i]

    def _state(self, ref: Ref) -> Placed:
        """A carried variable after all replicas' last micro-batches."""
        binder, plan = self.binder, self.binder.plan
        node, how = binder.graph[ref.node], plan.merges.get(ref, "state first")
        parts = [binder.micro[ref, replica, plan.micro_batches - 1] for replica in range(plan.layout.replicas)]
        if len(parts) == 1 or how == "state first":
            return parts[0]
        device, kind, name = parts[0].device, node.outputs[0], f"{node.name}/merged"
        values = [binder.move(part, device) for part in parts]
        if how == "state mean":
            scaled = [self._scaled(name, value, plan.share(r), kind, device) for r, value in enumerate(values)]
            return Placed(self._add_n(name, scaled, kind, device), device)
        if how in ("state maximum", "state minimum"):
            extreme = values[0]
            for value in values[1:]:
                op = how.removeprefix("state ").capitalize()
                extreme = binder.add(f"{name}/{how[6:]}", op, [extreme, value], [kind], device, T=kind.dtype)
            return Placed(extreme, device)
        before = binder.step_on(binder.variable(variable_of(node)), device)
        changes = [
            binder.add(f"{name}/change", "Sub", [value, before], [kind], device, T=kind.dtype) for value in values
        ]
        return Placed(self._add_n(name, [before, *changes], kind, device), device)

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
