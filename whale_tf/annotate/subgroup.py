"""A subgroup of the step, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from whale_tf.annotate.cluster import VirtualDevice
from whale_tf.errors import Line


@dataclass(frozen=True)
class Opened:
    """A subgroup of the step, as its scope was first opened: prints as `stage 'a' opened at train.py:3`.

    Attributes:
      key: unique in its recording, and what is stamped on ops.
      name: the user's, or `stage k` where `annotate` gave the number k; empty if there is none.
      parent: the key of the scope around it; empty at the top.
      line: where the `with` is, or the call of `annotate`.
      count: how many replicas; None for a stage, and for as many as the devices allow.
      shares: relative parts of the batch, one per replica.
      devices: how many devices a stage takes, or which.
      dim: which dim of parameters a split cuts; None for a choice.
      index: the number of the stage, where `annotate` gave one; other stages count in order of first opening.
    """

    key: str
    kind: Literal["replica", "stage", "split", "whole"]
    name: str
    parent: str
    line: Line
    count: int | None = None
    shares: tuple[float, ...] | None = None
    devices: int | VirtualDevice = 1
    index: int | None = None
    dim: int | None = None

    def joined(self, other: Opened) -> Opened | None:
        """The two as one subgroup, or None where they ask for different replicas; a count may be left out in one."""
        if other.count is None:
            return self
        if self.count is None:
            return replace(self, count=other.count, shares=other.shares, line=other.line)
        return self if self._parts() == other._parts() else None

    def _parts(self) -> tuple[float, ...]:
        """The part of the batch that each replica gets."""
        shares = self.shares or (1.0,) * (self.count or 1)
        return tuple(round(share / sum(shares), 9) for share in shares)

    @property
    def label(self) -> str:
        """What the user wrote, in short: `stage 'a'`, `stage(2)`, `replica(2)`."""
        if self.shares is not None:
            return f"replica(shares=[{', '.join(f'{share:g}' for share in self.shares)}])"
        if self.kind == "replica":
            return f"replica({'' if self.count is None else self.count})"
        if self.kind == "whole":
            return "whole()"
        if self.kind == "split":
            return f"split({'' if self.dim is None else f'dim={self.dim}'})"
        if self.index is not None:
            return self.name
        if self.name:
            return f"stage {self.name!r}"
        return f"stage({'' if self.devices == 1 else self.devices})"

    def __str__(self) -> str:
        verb = "opened" if self.index is None else "annotated"
        return f"{self.label} {verb} at {self.line.file}:{self.line.number}"
