"""Groups of replicas: those that are joined by common processes keep one copy of every variable together.

    process 0    process 1    process 2          replicas 0 and 1 share process 0, replica 2 has two of its own
    r0  r1       r2 stage 0   r2 stage 1         groups: (0, 1), (2)

Nothing but collectives joins two groups, so each process builds the program of its own group only. What one group does
once per step, every group with as many replicas does alike, on its own devices: they are of one *kind*, and a plan says
it once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from whale_tf.ir.disjoint import DisjointSets


@dataclass(frozen=True)
class Groups:
    """How replicas and processes are divided.

    Attributes:
      members: the replicas of each group, in order; groups are ordered by their first replica.
      processes: those of each group, in order; the first group also serves those that have no replica.
    """

    members: tuple[tuple[int, ...], ...]
    processes: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def of_process(self) -> dict[int, int]:
        """The group of each process."""
        return {process: group for group, processes in enumerate(self.processes) for process in processes}

    @cached_property
    def of_replica(self) -> dict[int, int]:
        """The group of each replica."""
        return {replica: group for group, members in enumerate(self.members) for replica in members}

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many replicas a group of each kind has; the first group is of the first kind."""
        return tuple(dict.fromkeys(map(len, self.members)))

    def kind_of(self, group: int) -> int:
        """The kind of a group, as an index into `sizes`."""
        return self.sizes.index(len(self.members[group]))

    @cached_property
    def runs(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """All replicas in order, divided into a group and its replicas that follow each other."""
        found: list[tuple[int, list[int]]] = []
        for replica, group in sorted(self.of_replica.items()):
            if not found or found[-1][0] != group:
                found.append((group, []))
            found[-1][1].append(replica)
        return tuple((group, tuple(members)) for group, members in found)


def find_groups(devices: Sequence[Sequence[int]], processes: Sequence[int]) -> Groups:
    """The groups of a layout.

    Args:
      devices: those of each replica.
      processes: the process of each device; empty if there is only one.
    """
    joined = DisjointSets()
    own = [sorted({processes[device] if processes else 0 for device in row}) for row in devices]
    for first, *others in own:
        for other in others:
            joined.join(other, first)
    members: dict[Hashable, list[int]] = {}
    for replica, (first, *_) in enumerate(own):
        members.setdefault(joined.root(first), []).append(replica)
    numbers = {each: group for group, each in enumerate(members)}
    served: list[list[int]] = [[] for _ in numbers]
    for process in range(max(processes, default=0) + 1):
        served[numbers.get(joined.root(process), 0)].append(process)
    return Groups(tuple(map(tuple, members.values())), tuple(map(tuple, served)))
