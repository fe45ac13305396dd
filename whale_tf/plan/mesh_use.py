"""What cutting a stage over a mesh comes to: which parameters are cut, and what the members say to each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from whale_tf._protos import plan_pb2
from whale_tf.plan.units import in_bytes


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind that the operations of one scope need, in each micro-batch.

    Attributes:
      scope: as `split() opened at train.py:13`; empty for what is in none.
      backward: whether they belong to the backward.
      op: `AllReduce`, `AllGather`, `ReduceScatter` or `AllToAll`.
      bytes: that each member brings to all of them together, in the largest micro-batch.
    """

    scope: str
    backward: bool
    op: str
    count: int
    bytes: int


@dataclass(frozen=True)
class MeshUse:
    """How a stage is cut.

    Attributes:
      stage: its number.
      members: how many devices its mesh has.
      parameters: how each parameter of it that is cut is cut, by its name.
      exchanges: what the members say to each other.
      gathered: operations that cannot be cut, and take whole what is cut before.
    """

    stage: int
    members: int
    parameters: Mapping[str, str]
    exchanges: tuple[Exchange, ...]
    gathered: tuple[str, ...] = ()

    def lines(self, stage: str) -> Iterator[str]:
        """What to print of it.

        Args:
          stage: the stage's name.
        """
        name, count = f"stage {stage}" if stage else "the step", len(self.parameters)
        yield f"{name} is cut over {self.members} devices, {count} parameters of it; in each micro-batch:"
        for scope in dict.fromkeys(exchange.scope for exchange in self.exchanges):
            own = [exchange for exchange in self.exchanges if exchange.scope == scope]
            said = [_direction("forward", own, False), _direction("backward", own, True)]
            yield f"  {scope or 'outside its splits'}: {'; '.join(filter(None, said))}"
        if not self.exchanges:
            yield "  nothing is sent"
        if self.gathered:
            more = f" and {len(self.gathered) - 3} more" if len(self.gathered) > 3 else ""
            yield f"  taken whole by {', '.join(self.gathered[:3])}{more}"

    def to_proto(self) -> plan_pb2.MeshUse:
        """The message of this value."""
        return plan_pb2.MeshUse(
            stage=self.stage,
            members=self.members,
            parameters=self.parameters,
            exchanges=[plan_pb2.Exchange(**vars(exchange)) for exchange in self.exchanges],
            gathered=self.gathered,
        )

    @classmethod
    def from_proto(cls, message: plan_pb2.MeshUse) -> MeshUse:
        """The value of a message."""
        return cls(
            message.stage,
            message.members,
            {name: message.parameters[name] for name in sorted(message.parameters)},
            tuple(Exchange(x.scope, x.backward, x.op, x.count, x.bytes) for x in message.exchanges),
            tuple(message.gathered),
        )


def _direction(name: str, exchanges: Sequence[Exchange], backward: bool) -> str:
    own = [exchange for exchange in exchanges if exchange.backward == backward]
    said = [f"{exchange.count} {exchange.op} of {in_bytes(exchange.bytes)}" for exchange in own]
    return f"{name} {', '.join(said)}" if said else ""
