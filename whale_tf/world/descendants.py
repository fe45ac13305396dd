"""The processes below one, which end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

KILL_SECONDS = 5.0


def kill_descendants(process: int) -> None:
    """Kills what a process has started, and what that has started, until nothing of it lives."""
    end = time.monotonic() + KILL_SECONDS
    while (alive := living_descendants(process)) and time.monotonic() < end:
        for descendant in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)
        time.sleep(0.002)


def living_descendants(process: int) -> list[int]:
    """Of all sessions and groups. The dead ones that nobody has asked for (state Z) are not counted."""
    parent_of: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            # `pid (any name) state parent ...`
            state, parent = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parent_of[int(entry)] = int(parent)
    found = [process]
    for above in found:  # it grows while it is gone through
        found += [child for child, parent in parent_of.items() if parent == above]
    return found[1:]
