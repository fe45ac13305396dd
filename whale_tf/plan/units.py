"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def in_bytes(count: int) -> str:
    """`96 B`, `6.8 KiB`."""
    return in_units(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def in_units(value: float, step: int, units: Sequence[str]) -> str:
    """Three digits or more, in the largest unit that leaves at least 1: `999 B`, `1.0 KiB`."""
    unit = 0
    while value >= step and unit + 1 < len(units):
        value /= step
        unit += 1
    return f"{value:.1f} {units[unit]}" if unit else f"{value:.0f} {units[0]}".rstrip()
