"""Control session: what a shim and the Prefect 3 engine below it tell each other, over a connection of this host.

The engine gets a port and a token, connects as soon as it can be told something, and says once how its attempt ended: a
receipt of the last state that it has reported, or the acknowledgement of an intent. The protocol is Prefect's own and
versioned (source: prefect 3.9.1, _internal.attempt_control). An engine that knows none of it leaves the port alone.

The first connection that shows the token is the session; then nobody can connect any more. The token guards against
other users of this host only: code of the run itself can read it, as it can read the key of the API.

Nothing here waits: the shim's loop asks for `descriptors` and calls `serve` with those that are readable. What others
send, or do not send, is bounded, in bytes and in connections, so that they hold up neither signals nor the run's end.

Standard library only: part of the shim.
"""

from __future__ import annotations

import json
import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable, Container
    from typing import Any

_ENGINE_HELLO = b"\0PF"
_HELLO_BYTES = 5
#: version 2, with receipts; an engine of another version takes what it knows of it
_OUR_HELLO = _ENGINE_HELLO + b"\x02\x01"
_CANCEL, _ACKNOWLEDGED = b"c", b"a"
_RECEIPT, _RECEIPT_TAKEN = b"\x01", b"\x02"
_LENGTH_BYTES = 4
_MOST_RECEIPT_BYTES = 4096
#: longer names are cut: the record of the end has a reserved place on the disk, and must fit into it
_MOST_NAME = 200
#: connections that have not shown the token yet; one more, and the oldest is closed. The engine shows it at once
_MOST_STRANGERS = 4
#: connections that are accepted before signals are looked at again
_MOST_AT_ONCE = 16
_READ_BYTES = 8192


class ControlSession:
    """The session with one engine: the port that waits for it, then its connection, then what it has said."""

    def __init__(self, listener: socket.socket, token: str, hit: Callable[[str], None]) -> None:
        self._listener: socket.socket | None = listener
        self._token = token
        self._hit = hit
        self._strangers: list[_Peer] = []
        self._engine: _Peer | None = None
        self._greeted = False
        #: how the engine's attempt ended, by its own word; the first receipt counts
        self.receipt: dict[str, str] | None = None
        #: when it came, by the monotonic clock
        self.receipt_at: float | None = None
        #: whether the engine was told of a cancel: None, "sent" or "acknowledged"
        self.intent: str | None = None

    @classmethod
    def open(cls, hit: Callable[[str], None] = lambda _name: None) -> ControlSession | None:
        """Listen on a port of this host; None where that is not possible, and the run goes without.

        `hit` is called with the name of each failpoint on the way.
        """
        listener = None
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 0))  # the engine connects to no other address
            listener.listen(128)
            listener.settimeout(0.0)
        except OSError:
            if listener is not None:
                listener.close()
            return None
        return cls(listener, os.urandom(32).hex(), hit)

    def variables(self) -> dict[str, str]:
        """The variables by which the engine finds the session; it takes them out of its environment at its start."""
        assert self._listener is not None
        return {"PREFECT__CONTROL_PORT": str(self._listener.getsockname()[1]), "PREFECT__CONTROL_TOKEN": self._token}

    def descriptors(self) -> list[int]:
        """The descriptors to wait for."""
        peers = [peer.connection for peer in self._strangers + ([self._engine] if self._engine else [])]
        return [place.fileno() for place in ([self._listener] if self._listener else []) + peers]

    def serve(self, ready: Container[int]) -> None:
        """Read once from each of these descriptors, and answer."""
        if self._engine is not None and self._engine.connection.fileno() in ready:
            self._hear()
        for peer in self._strangers[:]:
            if peer.connection.fileno() in ready:
                self._know(peer)
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)

    def facts(self) -> dict[str, Any]:
        """What the record of the run's end has of the session."""
        age = None if self.receipt_at is None else round(time.monotonic() - self.receipt_at, 3)
        return {"receipt": self.receipt, "receipt_age": age, "intent": self.intent}

    def tell_cancel(self) -> bool:
        """Tell the engine that its run is being cancelled; False when there is nobody to tell.

        One that has ended by its own word is not told: it takes no intent any more.
        """
        if self._engine is None or self.receipt is not None or not self._send(_CANCEL):
            return False
        self.intent = "sent"
        return True

    @property
    def answered(self) -> bool:
        """Whether there is nothing to wait for after `tell_cancel`: the engine has answered, or closed."""
        return self._engine is None or self.intent == "acknowledged"

    def close(self) -> None:
        """Read what the engine has sent before its end, and close everything."""
        for _ in range(2):  # a receipt comes in one piece, perhaps after a hello; nothing is waited for
            if self._engine is not None:
                self._hear()
        self._close_engine()
        self._close_to_others()

    # -- before the token was shown

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:  # no descriptor is left: a port that stays readable would keep the loop spinning
                self._close_to_others()
                return
            connection.settimeout(0.0)
            peer = _Peer(connection)
            self._strangers.append(peer)
            self._know(peer)  # an engine has sent its token already
            if self._engine is not None:
                return
            if len(self._strangers) > _MOST_STRANGERS:
                self._strangers.pop(0).connection.close()

    def _know(self, peer: _Peer) -> None:
        open_ = peer.read(len(self._token) + 1 + _HELLO_BYTES)
        word, end, rest = bytes(peer.unread).partition(b"\n")
        if end and _same(word, self._token.encode()):
            self._strangers.remove(peer)
            self._close_to_others()
            self._engine, peer.unread = peer, bytearray(rest)
            self._obey_engine()
        elif end or not open_ or len(peer.unread) > len(self._token):
            self._strangers.remove(peer)
            peer.connection.close()

    def _close_to_others(self) -> None:
        for peer in self._strangers:
            peer.connection.close()
        self._strangers = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # -- the session

    def _hear(self) -> None:
        assert self._engine is not None
        open_ = self._engine.read(_READ_BYTES)
        self._obey_engine()
        if not open_:
            self._close_engine()

    def _obey_engine(self) -> None:
        """Answer every whole message that has come; what is none ends the session."""
        while self._engine is not None and self._engine.unread:
            used = self._answer(bytes(self._engine.unread))
            if used is None:
                self._close_engine()
            elif used == 0:
                return
            elif self._engine is not None:
                del self._engine.unread[:used]

    def _answer(self, unread: bytes) -> int | None:
        """How many bytes the first message has; 0 = it is not whole yet, None = it is none."""
        kind = unread[:1]
        if kind == _ENGINE_HELLO[:1]:
            if len(unread) < _HELLO_BYTES:
                return 0
            if self._greeted or not unread.startswith(_ENGINE_HELLO):
                return None
            self._greeted = True
            return _HELLO_BYTES if self._send(_OUR_HELLO) else None
        if kind == _ACKNOWLEDGED and self.intent is not None:
            self.intent = "acknowledged"
            self._hit("cancel.after_ack")
            return 1
        return self._take_receipt(unread) if kind == _RECEIPT else None

    def _take_receipt(self, unread: bytes) -> int | None:
        begin = len(_RECEIPT) + _LENGTH_BYTES
        if len(unread) < begin:
            return 0
        length = int.from_bytes(unread[len(_RECEIPT) : begin], "big")
        if length > _MOST_RECEIPT_BYTES:
            return None
        if len(unread) < begin + length:
            return 0
        receipt = parse_receipt(unread[begin : begin + length])
        if receipt is None or self.intent == "acknowledged":
            return None
        if self.receipt is None:
            self.receipt, self.receipt_at = receipt, time.monotonic()
        self._hit("shim.before_ack")
        taken = self._send(_RECEIPT_TAKEN)
        self._hit("shim.after_receipt")
        return begin + length if taken else None

    def _send(self, data: bytes) -> bool:
        assert self._engine is not None
        try:
            return self._engine.connection.send(data) == len(data)
        except OSError:  # it has closed, or it reads nothing
            return False

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.connection.close()
            self._engine = None


class _Peer:
    """One connection, and what has come over it and is not answered yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unread = bytearray()

    def read(self, size: int) -> bool:
        """Read at most so much, without waiting; False when no more will come."""
        try:
            data = self.connection.recv(size)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        self.unread += data
        return bool(data)


def _same(word: bytes, token: bytes) -> bool:
    # in the same time for every wrong word of this length, so that nobody can guess it byte by byte; `hmac`, which has
    # a function for that, would bring some MiB into each shim
    different = len(word) ^ len(token)
    for one, other in zip(word, token):  # noqa: B905 - the flows' Python 3.9 knows no `strict`
        different |= one ^ other
    return different == 0


def parse_receipt(data: bytes) -> dict[str, str] | None:
    """Read a receipt; None when it is none. What it has beyond the known fields is left out."""
    try:
        facts: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict):
        return None
    names = ("state_type", "state_name", "state_id")
    if facts.get("disposition") == "ORCHESTRATION_ABORTED":
        return {"disposition": "ORCHESTRATION_ABORTED"}
    if facts.get("disposition") != "STATE_REPORTED" or not all(isinstance(facts.get(name), str) for name in names):
        return None
    return {"disposition": "STATE_REPORTED", **{name: facts[name][:_MOST_NAME] for name in names}}
