"""Names that are not taken yet."""

from __future__ import annotations

from collections.abc import Container


class Names:
    """Gives `name`, then `name_1`, `name_2` ...; remembers how far it came, so many of one name cost no search."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def unused(self, name: str, taken: Container[str]) -> str:
        """The first of these that is not taken."""
        count = self._counts.get(name, 0)
        candidate = f"{name}_{count}" if count else name
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        self._counts[name] = count
        return candidate
