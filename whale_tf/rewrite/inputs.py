"""Adds what every process has when the step begins: its arguments and their micro-batches, variables, and the rest.

process 0:  Take x ─▶ Slice 0..3, Slice 4..7         its replicas' examples, on its first device
process 1:  Take x ─▶ Slice 8..11, Slice 12..15      of the global batch; of 0..7 if it was fed with just these
"""

from __future__ import annotations

from whale_tf.errors import PlanError
from whale_tf.ir.graph import Node, TensorType
from whale_tf.plan.plan import Plan
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.builder import Builder, Placed


class Inputs:
    """Adds the inputs of a group's processes to its main graph.

    Args:
      fed: whether a process gets its own replicas' examples only.
    """

    def __init__(self, builder: Builder, plan: Plan, fed: bool) -> None:
        self.builder, self.plan, self.fed = builder, plan, fed

    def taken(self, node: Node, process: int) -> Placed:
        """A boundary value of the step, in a process."""
        add, host = self.builder.add, self.plan.layout.hosts[process]
        if node.op == "Input":
            return Placed(add(node.name, "Take", [], node.outputs, host, **node.attrs), host)
        if node.op == "Variable":
            home = self.home_of(variable_of(node), process)
            return Placed(add(f"{node.name}/read", "Read", [], node.outputs, home, **node.attrs), home)
        return Placed(add(node.name, "Outside", [], node.outputs, host, **node.attrs), host)

    def home_of(self, variable: str, process: int) -> int:
        """The device of a process where its copy of the user's variable is."""
        layout = self.plan.layout
        return layout.counterpart(self.plan.home_of.get(variable, layout.hosts[0]), process)

    def piece(
        self, name: str, whole: Placed, kind: TensorType, at: tuple[int, int], examples: tuple[int, int]
    ) -> Placed:
        """Some examples of a tensor: of dim d seen as (outer, rest), the pieces of rest.

        Args:
          at: the dim, and how often the batch lies in it.
          examples: the first one and how many.
        """
        (dim, outer), (first, count) = at, examples
        length = (kind.shape[dim] or 0) // outer
        chunk = length // self.plan.examples if length > 0 else 1
        rows = (first * chunk, count * chunk)
        return Placed(self.builder.piece(name, whole.ref, kind, at, rows, whole.device), whole.device)

    def refuse_uncut(self) -> None:
        """Refuses a step that takes a whole batch of which each process was given a part.

        Raises:
          PlanError: with the inputs.
        """
        if not self.fed or self.plan.parts == 1:
            return
        nodes = self.builder.nodes.values()
        batches = {node.name for node in nodes if node.op == "Take" and node.attrs["batch"]}
        whole = {ref.node for node in nodes if node.op != "Slice" for ref in node.inputs if ref.node in batches}
        if whole:
            raise PlanError(
                "the step takes the whole global batch at once, and each process was fed its part only",
                details=[f"what runs once per step uses '{name}'" for name in sorted(whole)],
                way_out="Call the step with the global batch on every process, in the place of step.feed.",
            )
