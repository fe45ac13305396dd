"""Adds what every process has when the step begins: its arguments and their micro-batches, variables, and the rest.

process 0:  Take x ─▶ Slice 0..3, Slice 4..7         its replicas' examples, on its first device
process 1:  Take x ─▶ Slice 8..11, Slice 12..15      of the global batch; of 0..7 if it was fed with just these
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whale_tf.errors import PlanError
from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.placed import HOST, Placed

if TYPE_CHECKING:
    from whale_tf.rewrite.bind import Binder


class Inputs:
    """Adds a process's inputs to a binder's main graph, one for each value."""

    def __init__(self, binder: Binder) -> None:
        self.binder = binder
        self.slices: dict[tuple[Ref, int, int, int], Placed] = {}

    def taken(self, node: Node, process: int) -> Placed:
        """A boundary value of the step, in a process."""
        binder = self.binder
        host = binder.plan.layout.hosts[process]
        if node.op == "Input":
            return Placed(binder.add(node.name, "Take", [], node.outputs, host, **node.attrs), host)
        if node.op == "Variable":
            home = self.home_of(variable_of(node), process)
            return Placed(binder.add(f"{node.name}/read", "Read", [], node.outputs, home, **node.attrs), home)
        return Placed(binder.add(node.name, "Outside", [], node.outputs, host, **node.attrs), host)

    def home_of(self, variable: str, process: int) -> int:
        """The device of a process where its copy of the user's variable is."""
        plan = self.binder.plan
        return plan.layout.counterpart(plan.home_of.get(variable, HOST), process)

    def slice(self, ref: Ref, replica: int, i: int, device: int) -> Placed:
        """A micro-batch's piece of an input or of another whole value, cut on the host of the process that uses it."""
        binder, plan = self.binder, self.binder.plan
        process = plan.layout.process_of(device)
        host = plan.layout.hosts[process]
        if (ref, replica, i, host) in self.slices:
            return self.slices[ref, replica, i, host]
        node, dim, outer = binder.graph[ref.node], 0, 1
        first = plan.offset(replica, i)
        if node.op == "Piece":
            dim, outer = node.attrs["dim"], node.attrs["outer"]
            placed = Placed(binder.step_on(node.inputs[0], host), host)
        else:
            placed = binder.step_value(ref, host)
            first -= plan.examples_of(process)[0] if binder.fed else 0
        if plan.parts > 1:
            name = f"{ref}/r{replica}/{i}"
            placed = self._cut(name, placed, binder.graph.type_of(ref), (dim, outer), (first, plan.sizes[replica][i]))
        self.slices[ref, replica, i, host] = placed
        return placed

    def _cut(
        self, name: str, whole: Placed, kind: TensorType, at: tuple[int, int], examples: tuple[int, int]
    ) -> Placed:
        """Some examples of a tensor: of dim d seen as (outer, rest), the pieces of rest.

        Args:
          at: the dim, and how often the batch lies in it.
          examples: the first one and how many.
        """
        binder, host = self.binder, whole.device
        (dim, outer), (first, count) = at, examples
        length = (kind.shape[dim] or 0) // outer
        chunk = length // binder.plan.examples if length > 0 else 1
        ref, shape = whole.ref, kind.shape
        if outer > 1:
            shape = Shape((*shape[:dim], outer, length, *shape[dim + 1 :]))
            ref = self.reshaped(name, ref, TensorType(kind.dtype, shape), host)
            dim += 1
        begin = binder.constant((*(0,) * dim, first * chunk, *(0,) * (len(shape) - dim - 1)), DType("int32"), host)
        size = binder.constant((*(-1,) * dim, count * chunk, *(-1,) * (len(shape) - dim - 1)), DType("int32"), host)
        attrs = {"T": kind.dtype, "Index": DType("int32")}
        cut = TensorType(kind.dtype, Shape((*shape[:dim], count * chunk, *shape[dim + 1 :])))
        ref = binder.add(name, "Slice", [ref, begin, size], [cut], host, **attrs)
        if outer > 1:
            merged = Shape((*shape[: dim - 1], outer * count * chunk, *shape[dim + 1 :]))
            ref = self.reshaped(f"{name}/flat", ref, TensorType(kind.dtype, merged), host)
        return Placed(ref, host)

    def reshaped(self, name: str, ref: Ref, kind: TensorType, host: int) -> Ref:
        """A tensor in another shape, of which one size may be -1."""
        shape = self.binder.constant(tuple(size or 0 for size in kind.shape), DType("int32"), host)
        attrs = {"T": kind.dtype, "Tshape": DType("int32")}
        return self.binder.add(f"{name}/reshaped", "Reshape", [ref, shape], [kind], host, **attrs)

    def refuse_uncut(self) -> None:
        """Refuses a step that takes a whole batch of which each process was given a part.

        Raises:
          PlanError: with the inputs.
        """
        binder = self.binder
        if not binder.fed or binder.plan.parts == 1:
            return
        batches = {node.name for node in binder.nodes.values() if node.op == "Take" and node.attrs["batch"]}
        whole = {
            ref.node
            for node in binder.nodes.values()
            if node.op != "Slice"
            for ref in node.inputs
            if ref.node in batches
        }
        if whole:
            raise PlanError(
                "the step takes the whole global batch at once, and each process was fed its part only",
                details=[f"what runs once per step uses '{name}'" for name in sorted(whole)],
                way_out="Call the step with the global batch on every process, in the place of step.feed.",
            )
