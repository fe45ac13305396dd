"""What ranks agree on: exchanges in which all must take part, and reports that must be equal. Without sockets.

A rank's exchanges are numbered from 0; the k-th of one rank meets the k-th of every other. A digest is compared with
those under the same topic and number, whenever they come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

PENDING_REPORTS = 4096  # per topic: of ranks that run apart this far, the oldest digests are forgotten

SAME_STEPS = "All ranks must take part in the same number of steps: give each the same script and as much data."


@dataclass(frozen=True)
class Refusal:
    """Why a run ends, in the parts of an error."""

    rule: str
    details: tuple[str, ...] = ()
    way_out: str = ""


@dataclass
class Exchange:
    """One exchange: what has come so far, by rank."""

    number: int
    names: dict[int, str] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return next(iter(self.names.values()))

    def differs(self) -> bool:
        return len(set(self.names.values())) > 1

    def disagreement(self) -> Refusal:
        return Refusal(
            "ranks ask for different exchanges",
            by_ranks({rank: repr(name) for rank, name in self.names.items()}),
            "All ranks must run the same script with the same arguments.",
        )

    def late(self, missing: Mapping[int, str], seconds: float) -> Refusal:
        """Args: what is known of each rank that is missing; the seconds that were waited."""
        return Refusal(
            f"{ranks_text(missing)} did not arrive in the exchange {self.name!r} within {seconds:g} s",
            (
                *(f"rank {rank}: {state}" for rank, state in sorted(missing.items())),
                f"{ranks_text(self.names)} waited",
            ),
            "Look at what the missing ranks do; if they are only slow, give them longer: `whale run --timeout`.",
        )

    def left(self, gone: Iterable[int]) -> Refusal:
        return Refusal(
            f"{ranks_text(gone)} ended while others wait in the exchange {self.name!r}",
            (f"{ranks_text(self.names)} waited",),
            SAME_STEPS,
        )


class Reports:
    """Digests that wait to be compared."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._topics: dict[str, dict[int, dict[int, str]]] = {}

    def add(self, rank: int, topic: str, number: int, digest: str) -> dict[int, str]:
        """Takes one. Returns all under its topic and number where they differ: later ones will be in there too.

        What all ranks have said equally is dropped.
        """
        numbers = self._topics.setdefault(topic, {})
        digests = numbers.setdefault(number, {})
        digests[rank] = digest
        if len(set(digests.values())) > 1:
            return digests
        if len(digests) == self.size:
            del numbers[number]
        elif len(numbers) > PENDING_REPORTS:
            del numbers[min(numbers)]
        return {}

    def lacking(self, left: Collection[int]) -> Refusal | None:
        """Why the run cannot go on, where ranks that have ended would still have to say something."""
        for topic, numbers in self._topics.items():
            for number, digests in sorted(numbers.items()):
                if gone := [rank for rank in left if rank not in digests]:
                    return Refusal(
                        f"{ranks_text(gone)} ended before {topic} {number}, in which all take part",
                        by_ranks(digests),
                        SAME_STEPS,
                    )
        return None

    def pending(self) -> int:
        return sum(len(numbers) for numbers in self._topics.values())


def difference(topic: str, number: int, digests: Mapping[int, str]) -> Refusal:
    return Refusal(
        f"ranks differ in {topic} {number}",
        by_ranks(first_difference(digests)),
        "All ranks must run the same script with the same arguments.",
    )


def first_difference(texts: Mapping[int, str]) -> dict[int, str]:
    """The first line that is not the same in all texts, for each; `(nothing)` where a text is shorter."""
    lines = {rank: text.splitlines() or [""] for rank, text in texts.items()}
    for at in range(max(len(of_rank) for of_rank in lines.values())):
        here = {rank: of_rank[at] if at < len(of_rank) else "(nothing)" for rank, of_rank in lines.items()}
        if len(set(here.values())) > 1:
            several = max(len(of_rank) for of_rank in lines.values()) > 1
            return {rank: f"line {at + 1}: {line.strip()}" if several else line for rank, line in here.items()}
    return dict(texts)  # they differ in how their lines end


def by_ranks(said: Mapping[int, str]) -> tuple[str, ...]:
    """`ranks 0 and 2: this`, `rank 1: that`: each text once, by the lowest rank that says it."""
    groups: dict[str, list[int]] = {}
    for rank in sorted(said):
        groups.setdefault(said[rank], []).append(rank)
    return tuple(f"{ranks_text(ranks)}: {text}" for text, ranks in groups.items())


def ranks_text(ranks: Iterable[int]) -> str:
    """`rank 2`, `ranks 0, 1 and 5`, `ranks 0 to 6 and 9`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = []
    for run in runs:
        parts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(rank) for rank in run]
    word = "rank" if sum(map(len, runs)) == 1 else "ranks"
    return f"{word} {' and '.join([', '.join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)}"
