"""Adds what every process has when the step begins: its arguments and their micro-batches, variables, and the rest.

process 0:  Take x ─▶ Slice 0..3, Slice 4..7         its replicas' examples, on its first device
process 1:  Take x ─▶ Slice 8..11, Slice 12..15      of the global batch; of 0..7 if it was fed with just these
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whale_tf.errors import PlanError
from whale_tf.ir.graph import DType, Node, Ref
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
        """A micro-batch's part of an input, cut on the host of the process that uses it."""
        binder, plan = self.binder, self.binder.plan
        process = plan.layout.process_of(device)
        host = plan.layout.hosts[process]
        if (ref, replica, i, host) in self.slices:
            return self.slices[ref, replica, i, host]
        placed = binder.step_value(ref, host)
        if plan.parts > 1:
            kind = binder.graph.type_of(ref)
            rank = len(kind.shape)
            first = plan.offset(replica, i) - (plan.examples_of(process)[0] if binder.fed else 0)
            begin = binder.constant((first, *(0,) * (rank - 1)), DType("int32"), host)
            size = binder.constant((plan.sizes[replica][i], *(-1,) * (rank - 1)), DType("int32"), host)
            attrs = {"T": kind.dtype, "Index": DType("int32")}
            name = f"{ref}/r{replica}/{i}"
            placed = Placed(binder.add(name, "Slice", [placed.ref, begin, size], [kind], host, **attrs), host)
        self.slices[ref, replica, i, host] = placed
        return placed

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
