"""How a process ended, in words."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Ending:
    """A rank that failed: what is said of it, and its traceback where there is one."""

    rank: int
    summary: str
    traceback: str = ""


def describe_status(status: int) -> str:
    """`exit code 3`, `killed by SIGKILL (signal 9)`: a negative status is a signal, as in `subprocess`."""
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = "a signal"
    return f"killed by {name} (signal {-status})"


def last_traceback(text: str, status: int) -> str:
    """What a process that ended so has said of it at the end of its error output; empty where that is nothing."""
    sign = "Fatal Python error" if status < 0 else TRACEBACK if status == 1 else None
    start = text.rfind(sign) if sign else -1
    return text[start:].rstrip() if start >= 0 else ""


def summary(traceback: str) -> str:
    """`ValueError: no` of an exception's traceback: the first line after the frames."""
    lines = traceback[max(0, traceback.rfind(TRACEBACK)) :].splitlines()  # of a chain, the last
    if not lines or lines[0] != TRACEBACK:
        return ""
    first = next((line for line in lines[1:] if line and not line.startswith(" ")), "")
    return re.sub(r"^(\w+\.)+(?=\w+(:|$))", "", first).rstrip(".")


def exit_code(status: int) -> int:
    """What a shell would give: 128 + the signal."""
    return 128 - status if status < 0 else status
