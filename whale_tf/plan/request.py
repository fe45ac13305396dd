"""What the scopes of a step ask for: one replica scope, a pipeline of stages, and what is cut in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whale_tf.annotate.subgroup import Opened
from whale_tf.errors import ScopeError


@dataclass(frozen=True)
class Request:
    """What the user's scopes ask for.

    Attributes:
      replica: the replica scope, if there is one.
      stages: the stage scopes in the order of the pipeline; empty if the step has none.
      splits: the split scopes, in the order they were opened.
      wholes: those of what every device has whole.
    """

    replica: Opened | None
    stages: tuple[Opened, ...]
    splits: tuple[Opened, ...] = ()
    wholes: tuple[Opened, ...] = ()

    @property
    def stage_of_scope(self) -> dict[str, int]:
        """The number of each stage, by the key of its scope and of the scopes inside."""
        found = {scope.key: index for index, scope in enumerate(self.stages)}
        for scope in (*self.splits, *self.wholes):  # a whole may be inside a split
            if scope.parent in found:
                found[scope.key] = found[scope.parent]
        return found

    @property
    def split_stages(self) -> frozenset[int]:
        """The stages whose operators are cut."""
        found = self.stage_of_scope
        return frozenset(found.get(scope.key, 0) for scope in self.splits)

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names; of one without a name its number."""
        return tuple(scope.name or str(index) for index, scope in enumerate(self.stages))


def read_scopes(opened: Sequence[Opened]) -> Request:
    """Sorts the scopes into one replica scope and a pipeline.

    Raises:
      ScopeError: scopes that this version cannot combine.
    """
    replicas = [scope for scope in opened if scope.kind == "replica"]
    stages = [scope for scope in opened if scope.kind == "stage"]
    if len({(scope.count, scope.shares) for scope in replicas}) > 1:
        raise ScopeError(
            "the step has replica scopes that differ",
            scope=[str(scope) for scope in replicas],
            way_out="The batch is cut once: give all of them the same count and shares, or write replica() for all but "
            "one.",
        )
    keys = {scope.key for scope in stages}
    inside = [scope for scope in replicas if scope.parent in keys]
    if inside:
        raise ScopeError(
            "a stage cannot be replicated by itself",
            scope=[str(scope) for scope in inside],
            way_out="Put replica() around all the stages: every replica is then a pipeline of its own.",
        )
    if replicas and any(not scope.parent for scope in stages) and any(scope.parent for scope in stages):
        raise ScopeError(
            "some stages are inside replica() and some are not",
            scope=[str(scope) for scope in stages if not scope.parent],
            way_out="Put replica() around all of them.",
        )
    splits = tuple(scope for scope in opened if scope.kind == "split")
    outside = [scope for scope in splits if stages and scope.parent not in keys]
    if outside:
        raise ScopeError(
            "a split is outside the stages of the step",
            scope=[str(scope) for scope in outside],
            way_out="Open it inside a stage, as `with whale.stage(devices=2), whale.split():`.",
        )
    wholes = tuple(scope for scope in opened if scope.kind == "whole")
    return Request(replicas[0] if replicas else None, tuple(_in_order(stages)), splits, wholes)


def _in_order(stages: Sequence[Opened]) -> list[Opened]:
    numbered = [scope for scope in stages if scope.index is not None]
    if numbered and len(numbered) != len(stages):
        raise ScopeError(
            "stages are both annotated and opened with `with`",
            scope=[str(scope) for scope in stages],
            way_out="Use annotate for all of them, or stage() for all of them.",
        )
    return sorted(stages, key=lambda scope: scope.index or 0) if numbered else list(stages)
