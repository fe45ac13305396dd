"""What goes over a hub's connections: frames of a JSON header and a raw payload, after their two lengths.

| header bytes: uint32 | payload bytes: uint32 | header: JSON object | payload |      numbers in network order
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

Header = dict[str, Any]

LENGTHS = struct.Struct(">II")
HEADER_BYTES = 1 << 24  # tracebacks are in headers
PAYLOAD_BYTES = 1 << 30
GREETING_BYTES = 4096  # all that is read from somebody who has not shown the token


class FrameError(Exception):
    """What came is no frame: a stranger, or a connection that ended in the middle of one."""


def pack(header: Header, payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(payload)) + text + payload


def receive(connection: socket.socket) -> tuple[Header, bytes] | None:
    """The next frame, or None where the connection ended between two frames."""
    lengths = _receive_exactly(connection, LENGTHS.size, may_end=True)
    if not lengths:
        return None
    header_bytes, payload_bytes = _checked(lengths)
    header = _receive_exactly(connection, header_bytes)
    return _parsed(header), _receive_exactly(connection, payload_bytes)


async def read(reader: asyncio.StreamReader, *, limit: int | None = None) -> tuple[Header, bytes] | None:
    """As `receive`, for the hub; `limit` is for the whole frame."""
    try:
        lengths = await reader.readexactly(LENGTHS.size)
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise FrameError("the connection ended inside a frame") from None
        return None
    header_bytes, payload_bytes = _checked(lengths)
    if limit is not None and header_bytes + payload_bytes > limit:
        raise FrameError(f"a frame of {header_bytes + payload_bytes} bytes; at most {limit} were expected")
    try:
        header = await reader.readexactly(header_bytes)
        return _parsed(header), await reader.readexactly(payload_bytes)
    except asyncio.IncompleteReadError:
        raise FrameError("the connection ended inside a frame") from None


def _checked(lengths: bytes) -> tuple[int, int]:
    header_bytes, payload_bytes = LENGTHS.unpack(lengths)
    if header_bytes > HEADER_BYTES or payload_bytes > PAYLOAD_BYTES:
        raise FrameError(f"lengths {header_bytes} and {payload_bytes} are no frame's")
    return header_bytes, payload_bytes


def _parsed(text: bytes) -> Header:
    try:
        header = json.loads(text)
    except ValueError:
        raise FrameError("the header is no JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise FrameError("the header has no kind")
    return header


def _receive_exactly(connection: socket.socket, count: int, *, may_end: bool = False) -> bytes:
    parts, missing = [], count
    while missing:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            if may_end and missing == count:
                return b""
            raise FrameError("the connection ended inside a frame")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
