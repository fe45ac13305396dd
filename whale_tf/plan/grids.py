"""The grids of a step: one for each pipeline class.

Replicas in which the same stages share a device are of one class. All classes have the same stages and micro-batches,
so a grid says itself which class it is for:

    device 0: 0F0 1F0 1B0 0B0     stages 0 and 1 share a device

    device 0: 0F0 0B0             each stage has its own
    device 1: 1F0 1B0
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from whale_tf._protos import plan_pb2
from whale_tf.plan.grid import Grid


@dataclass(frozen=True)
class Grids:
    """The order of actions in each pipeline class.

    Attributes:
      by_class: a grid for each.
    """

    by_class: tuple[Grid, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.by_class))

    @property
    def patterns(self) -> tuple[tuple[int, ...], ...]:
        """Of each class which stages share a device, as `grid.pattern_of` tells it."""
        return tuple(grid.pattern for grid in self.by_class)

    def of(self, pattern: tuple[int, ...]) -> Grid:
        """The grid for a class of replicas, one of `patterns`."""
        return self.by_class[self.patterns.index(pattern)]

    @property
    def splits_backward(self) -> bool:
        """Whether a backward is an I and a W."""
        return any(grid.splits_backward for grid in self.by_class)

    @classmethod
    def parse(cls, text: str) -> Grids:
        """The grids that `text` shows, with an empty line between two.

        Raises:
          ScheduleError: as `Grid.parse`.
        """
        return cls(tuple(map(Grid.parse, _BETWEEN.split(text))))

    def to_proto(self) -> plan_pb2.Grids:
        """The message of these grids."""
        return plan_pb2.Grids(by_class=[grid.to_proto() for grid in self.by_class])

    @classmethod
    def from_proto(cls, message: plan_pb2.Grids) -> Grids:
        """The grids of a message.

        Raises:
          ScheduleError: an action cannot be read.
        """
        return cls(tuple(map(Grid.from_proto, message.by_class)))


_BETWEEN = re.compile(r"(?<=\S)[^\S\n]*\n(?:[^\S\n]*\n)+(?=\s*(?:clock|device\s+0\s*:))")
