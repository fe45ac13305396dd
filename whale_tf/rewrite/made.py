"""What the actions of one group of replicas have made, by who made it: a member of the mesh of a replica's stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whale_tf.ir.graph import Node, Ref, TensorType
from whale_tf.ir.sharding import WHOLE, Split, parse_state
from whale_tf.rewrite.builder import Builder, Placed
from whale_tf.rewrite.cut import Source, StageFunction
from whale_tf.rewrite.step_program import StepProgram


class Who(NamedTuple):
    """Who runs an action: a member of the mesh of a replica's stage."""

    replica: int
    stage: int
    member: int


@dataclass
class Made:
    """Results and sums of the calls so far.

    Attributes:
      micro: each tensor of a (replica, micro-batch), by member.
      sums: what a member has of a replica's gradient; of IndexedSlices, of each micro-batch.
    """

    builder: Builder
    step: StepProgram
    micro: dict[tuple[Ref, int, int], list[Placed]] = field(default_factory=dict)
    sums: dict[tuple[str, int, int], list[Placed]] = field(default_factory=dict)

    def note(self, function: StageFunction, call: Ref, who: Who, i: int, device: int) -> None:
        """Remembers what a call gives."""
        for index, ref in enumerate(function.results):
            self.micro.setdefault((ref, who.replica, i), []).append(Placed(call._replace(index=index), device))
        for index, marker in enumerate(function.sums, len(function.results)):
            given = self.sums.setdefault((marker, who.replica, who.member), [])
            if self.step.plan.micro_batches > 1 and self.step.graph[marker].attrs["part"] == b"dense":
                given.clear()
            given.append(Placed(call._replace(index=index), device))

    def value(self, ref: Ref, who: Who, i: int) -> Placed:
        """What a member takes of a micro-batch: of its own stage what it has itself, of others what is whole."""
        made = self.micro[ref, who.replica, i]
        return made[who.member % len(made)]

    def sum_so_far(self, marker: str, who: Who) -> Placed:
        """What a member has of a dense gradient."""
        return self.sums[marker, who.replica, who.member][0]

    def piece(self, source: Source, whole: Ref, who: Who, device: int) -> Ref:
        """A member's piece of a value of the step, cut on its device."""
        split, members = parse_state(source.name), len(self.builder.layout.mesh_of(who.replica, who.stage))
        assert isinstance(split, Split)  # shard writes no other
        key = (Ref(f"{source.ref}/{split}/{who.member} of {members}"), device)
        if key not in self.builder.copies:
            kind = self.step.graph.type_of(source.ref)
            count = kind.shape.sizes[split.dim] // split.outer // members
            at, rows = (split.dim, split.outer), (who.member * count, count)
            self.builder.copies[key] = self.builder.piece(f"{source.ref}/piece", whole, kind, at, rows, device)
        return self.builder.copies[key]

    def sums_of(self, marker: Node, replica: int) -> list[Placed]:
        """What a replica brings to a gradient: of a mesh's members what they have together."""
        state = self.step.sums_lie.get(marker.name, WHOLE)
        first, *others = self._of_members(marker.name, replica)
        if state == WHOLE:
            return first
        kind = TensorType(marker.outputs[0].dtype, self.step.graph.type_of(marker.inputs[0]).shape)
        device, name, builder = first[0].device, f"{marker.name}/r{replica}", self.builder
        refs = [builder.move(each, device) for (each,) in (first, *others)]
        if isinstance(state, Split):

            def join(pieces: Sequence[Ref], kind: TensorType, dim: int) -> Ref:
                return builder.concat(f"{name}/joined", pieces, kind, device, dim)

            return [Placed(builder.joined(name, refs, kind, state, device, join), device)]
        return [Placed(builder.total(name, refs, kind, device), device)]

    def _of_members(self, marker: str, replica: int) -> list[list[Placed]]:
        """A replica's sums of a gradient, by member."""
        stage = self.step.plan.stage_of.get(self.step.graph[marker].inputs[0].node, 0)
        mesh = self.builder.layout.mesh_of(replica, stage)
        return [self.sums[marker, replica, member] for member in range(len(mesh))]
