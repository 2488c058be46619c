"""Framing: JSON messages with a length in front, over a socket of this host."""

from __future__ import annotations

import json
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Mapping
    from typing import Any

_LENGTH = struct.Struct("!I")
#: far above every request: the kernel's own limit for an environment and an argument list is a few MiB
MAX_BYTES = 64 * 1024 * 1024


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one message whole."""
    data = json.dumps(message).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any]:
    """Receive a message; raises `EOFError` when the other side is gone or sends no object, `ValueError` for no JSON."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_BYTES:
        raise EOFError(f"a message of {length} bytes")
    message = json.loads(_exactly(connection, length))
    if not isinstance(message, dict):
        raise EOFError("a message that is no object")  # noqa: TRY004 - for the caller it is one kind of trouble
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
