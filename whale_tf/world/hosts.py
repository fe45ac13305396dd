"""Which hosts a run may use, and how many ranks each takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from whale_tf.errors import DeviceError


@dataclass(frozen=True)
class Host:
    """Prints as `a:2`."""

    name: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.name}:{self.ranks}"


def parse_hosts(text: str) -> tuple[Host, ...]:
    """`a:2,b:2`; a host without a number takes one rank."""
    return _parsed(text.split(","), "--hosts")


def parse_hostfile(text: str, name: str) -> tuple[Host, ...]:
    """One host a line, as `a:2` or `a slots=2`; from # on it is a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return _parsed([line for line in lines if line], name)


def _parsed(entries: Iterable[str], where: str) -> tuple[Host, ...]:
    hosts, offenders = [], []
    for entry in entries:
        name, _, ranks = entry.strip().replace(" slots=", ":").partition(":")
        name, ranks = name.strip(), ranks.strip() or "1"
        if not name or " " in name or not ranks.isdecimal() or int(ranks) < 1:
            offenders.append(f"{entry.strip()!r} is not a host and its number of ranks")
        else:
            hosts.append(Host(name, int(ranks)))
    if not hosts and not offenders:
        offenders.append("there is no host in it")
    if offenders:
        raise DeviceError(
            f"cannot read the hosts in {where}",
            details=offenders,
            way_out="Give them as a:2,b:2 with --hosts, or one `a:2` a line with --hostfile.",
        )
    return tuple(hosts)
