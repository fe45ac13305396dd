"""Disjoint sets of anything, which are joined one by one."""

from __future__ import annotations

from collections.abc import Hashable


class DisjointSets:
    """At first each item is in a set of its own."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def root(self, item: Hashable) -> Hashable:
        """What stands for the set of an item."""
        while (parent := self._parent.get(item, item)) != item:
            self._parent[item] = self._parent.get(parent, parent)
            item = parent
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Makes one set of those of two items; what stood for the second stands for it."""
        self._parent[self.root(one)] = self.root(other)
