"""The plan: every decision about a step, as one frozen value. The passes obey it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from whale_tf.ir.graph import Ref
from whale_tf.plan.grid import Grid
from whale_tf.plan.layout import Layout


@dataclass(frozen=True)
class StageCost:
    """What one stage holds and moves, for one replica.

    Attributes:
      name: the user's; its number if it has none.
      ops: operations, forward and backward.
      parameters: elements of the trained variables that it owns.
      parameter_bytes: their bytes.
      flops: floating-point operations of one micro-batch, forward and backward.
      bytes_in: bytes of activations and gradients received per micro-batch.
      bytes_out: the same, sent.
      residual_bytes: bytes that one micro-batch's forward keeps for its backward.
      peak_live: micro-batches whose residuals are kept at the same time, at most.
    """

    name: str
    ops: int
    parameters: int
    parameter_bytes: int
    flops: float
    bytes_in: int
    bytes_out: int
    residual_bytes: int
    peak_live: int

    @property
    def peak_bytes(self) -> int:
        """Bytes of activations kept at the same time, at most."""
        return self.residual_bytes * self.peak_live


@dataclass(frozen=True)
class Plan:
    """Which part of the step runs where, on which examples, in what order.

    Attributes:
      layout: the devices of each replica and stage.
      sizes: for each replica, how many examples each micro-batch holds.
      schedule: the schedule's name.
      loss: `mean` or `sum`: what the loss is over the examples.
      grid: the order of actions on each device of a replica.
      forward_grid: the same for phases that have no backward.
      stage_of: the stage of every operation that runs per micro-batch.
      device_of: the device of every operation that runs once per step, as an index into the layout's devices.
      owner: the device that owns each trained variable.
      home_of: the device where the user's variable is.
      merges: how per-micro-batch values become the step's.
      stages: the cost of each stage.
    """

    layout: Layout
    sizes: tuple[tuple[int, ...], ...]
    schedule: str
    loss: str
    grid: Grid
    forward_grid: Grid
    stage_of: Mapping[str, int]
    device_of: Mapping[str, int]
    owner: Mapping[str, int]
    home_of: Mapping[str, int]
    merges: Mapping[Ref, str]
    stages: tuple[StageCost, ...]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one replica."""
        return len(self.sizes[0])

    @property
    def parts(self) -> int:
        """Micro-batches of all replicas."""
        return self.layout.replicas * self.micro_batches

    @property
    def examples(self) -> int:
        """The global batch."""
        return sum(map(sum, self.sizes))

    @property
    def largest(self) -> int:
        """Examples of the largest micro-batch."""
        return max(map(max, self.sizes))

    @property
    def even(self) -> bool:
        """Whether all micro-batches have the same size."""
        return len({size for row in self.sizes for size in row}) == 1

    @property
    def inline(self) -> bool:
        """Whether calls may be dissolved: with one micro-batch the data alone gives the order."""
        return self.micro_batches == 1

    def part_order(self) -> Iterator[tuple[int, int]]:
        """(replica, micro-batch) in the order of the caller's examples."""
        return ((r, i) for r in range(self.layout.replicas) for i in range(self.micro_batches))

    def offset(self, replica: int, i: int) -> int:
        """The first example of a micro-batch, in the global batch."""
        return sum(map(sum, self.sizes[:replica])) + sum(self.sizes[replica][:i])

    def weight(self, replica: int, i: int) -> float:
        """A micro-batch's part of the examples; 1 if the step has no batch."""
        return self.sizes[replica][i] / self.examples if self.examples else 1.0 / self.parts

    def share(self, replica: int) -> float:
        """A replica's part of the examples."""
        return sum(self.weight(replica, i) for i in range(self.micro_batches))

    def __str__(self) -> str:
        from whale_tf.plan.table import print_plan

        return print_plan(self)
