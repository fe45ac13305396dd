"""Where a hub listens: every address of its host, one port, and the token that lets in.

Host names are not used: in containers and network namespaces they are all the same, or resolve to nothing. Whoever
connects tries the addresses in turn until one answers that knows the token.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whale_tf.errors import DeviceError
from whale_tf.world import frames

SECONDS_PER_TRY = 3.0
SIOCGIFCONF = 0x8912  # linux/sockios.h: all IPv4 addresses of all interfaces


@dataclass(frozen=True)
class Address:
    """Prints as `token@10.0.0.1:4000,[fd00::1]:4000`, and parses back."""

    token: str
    places: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        places = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.places)
        return f"{self.token}@{','.join(places)}"

    @staticmethod
    def parse(text: str) -> Address:
        token, at, rest = text.partition("@")
        try:
            split = [place.rpartition(":") for place in rest.split(",")]
            places = tuple((str(ipaddress.ip_address(host.strip("[]"))), int(port)) for host, _, port in split)
        except ValueError:
            places = ()
        if not (token and at and places):
            raise DeviceError(
                "the address of the hub cannot be read",
                details=[f"it has {len(text)} characters; expected token@host:port,..."],
                way_out="Leave WHALE_TF_HUB to `whale run`, which sets it.",
            )
        return Address(token, places)


def addresses_of_this_host() -> list[str]:
    """IPv4, then global IPv6, those of the loopback last: elsewhere they lead to another host's own."""
    found = list(_ipv4())
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else []:
        digits, _, _, scope = line.split()[:4]
        if scope == "00":  # global: link-local ones would need the interface's name on the other host
            found.append(str(ipaddress.IPv6Address(int(digits, 16))))
    return sorted(set(found), key=lambda host: (ipaddress.ip_address(host).is_loopback, ":" in host, found.index(host)))


def _ipv4() -> Iterator[str]:
    """Asks the kernel, as `ifconfig` does: struct ifreq is 40 bytes, the address at 20."""
    room = array.array("B", bytes(40 * 256))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("iL", len(room), room.buffer_info()[0])
        used = struct.unpack("iL", fcntl.ioctl(any_socket, SIOCGIFCONF, request))[0]
    for start in range(0, used, 40):
        yield socket.inet_ntoa(room[start + 20 : start + 24].tobytes())


def connect(address: Address, hello: frames.Header, timeout: float) -> socket.socket:
    """A connection on which the hub has said welcome.

    Args:
      address: the hub's.
      hello: who calls; the token is added.
      timeout: seconds in which one of the addresses must answer.
    Raises:
      DeviceError: none answered, or the hub refused.
    """
    end = time.monotonic() + timeout
    while True:
        reasons = []
        for place in address.places:
            try:
                connection = socket.create_connection(place, timeout=SECONDS_PER_TRY)
            except OSError as error:
                reasons.append(f"{place[0]} port {place[1]}: {error.strerror or error}")
                continue
            try:
                connection.sendall(frames.pack({**hello, "kind": "hello", "token": address.token}))
                answer = frames.receive(connection)
                if answer is not None and answer[0]["kind"] == "welcome":
                    connection.settimeout(None)
                    return connection
                refused = answer[0].get("why", "") if answer is not None else "it closed the connection"
            except (OSError, frames.FrameError) as error:
                refused = str(error)
            connection.close()
            reasons.append(f"{place[0]} port {place[1]}: {refused}")
            if answer_is_final(refused):
                end = 0.0
        if time.monotonic() > end:
            raise DeviceError(
                f"rank {hello['rank']} cannot join the hub of its world",
                details=reasons,
                way_out="Check that the run's first process is alive, and that no firewall is between the hosts.",
            )
        time.sleep(0.1)


def answer_is_final(refused: str) -> bool:
    """Whether the right hub has spoken: asking it again changes nothing."""
    return refused.startswith("rank ")


def watch_for_silence(connection: socket.socket, seconds: float) -> None:
    """Ends a connection whose other host has vanished without a word, within about `seconds`.

    Source: tcp(7): keepalive probes when idle, TCP_USER_TIMEOUT when something sent is not acknowledged.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(seconds / 2)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(seconds / 6)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
