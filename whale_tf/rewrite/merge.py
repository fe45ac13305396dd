"""Adds the nodes that turn the values of all micro-batches into the one value of the step, as plan.merges says."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.placed import HOST, Placed

if TYPE_CHECKING:
    from whale_tf.rewrite.bind import Binder

FOLDS: Mapping[str, str] = MappingProxyType(
    {"max": "Maximum", "min": "Minimum", "prod": "Mul", "all": "LogicalAnd", "any": "LogicalOr"}
)


class Merging:
    """Adds merges to a binder's main graph, one for each value."""

    def __init__(self, binder: Binder) -> None:
        self.binder = binder
        self.known: dict[Ref, Placed] = {}

    def value(self, ref: Ref) -> Placed:
        """The step's value of a tensor that every micro-batch has."""
        if ref not in self.known:
            self.known[ref] = self._state(ref) if self.binder.graph[ref.node].op == "Write" else self._merged(ref)
        return self.known[ref]

    def gradient(self, marker: Node) -> Placed:
        """A marker's gradient over all examples, on the device that owns it."""
        binder, plan = self.binder, self.binder.plan
        device, kind, part = plan.device_of.get(marker.name, HOST), marker.outputs[0], marker.attrs["part"]
        if not binder.roles.per_micro_batch(marker.inputs[0].node):
            return Placed(self._constant(marker, device), device)
        values = [binder.move(s, device) for r in range(plan.layout.replicas) for s in binder.sums[marker.name, r]]
        if part == b"dense" or (part == b"values" and not self._varies(marker)):
            total = self._add_n(marker.name, values, kind, device)
        else:
            total = self._concat(marker.name, values, kind, device)
        if plan.loss == "mean" and plan.even and part != b"indices":
            total = self._scaled(marker.name, total, 1.0 / plan.parts, kind, device)
        return Placed(total, device)

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
            return self.binder.slice(ref, replica, i)
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
