"""TcpBridge: a loopback relay in front of a real server, whose link can be broken in many ways for one fleet alone."""

import contextlib
import socket
import threading
import time

from tests.valkey import free_port

TO_SERVER, TO_CLIENT = "to the server", "to the client"


class TcpBridge:
    """Listens at `host`, relays to `target`; `cut` resets all links and refuses new ones, `mend` listens again.

    `hold` is a partition: links stay, and what is sent goes nowhere, or in one direction only, until `let_go`; then all
    of it arrives, as over a network that sends again what was lost. `delay` is added to each direction, `late_answers`
    to what comes from the server alone. `answer` is a proxy that says no: nothing of a request goes on to the server.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.target = target
        self.host = host
        self._listener: socket.socket | None = None
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        # ours also while the link is cut
        self.port = free_port()
        #: links accepted since the start
        self.accepted = 0
        #: seconds by which each piece of data is late, in each direction
        self.delay = 0.0
        self.late_answers = 0.0
        self._answer, self._answers_left = b"", 0
        #: requests that were answered here
        self.answered = 0
        self._clear = {direction: threading.Event() for direction in (TO_SERVER, TO_CLIENT)}
        self.let_go()
        self.mend()

    def mend(self) -> None:
        """Listen (again, at the same port)."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    @property
    def closed(self) -> bool:
        """Is the link cut?"""
        return self._listener is None

    def cut(self) -> None:
        """Nobody listens any more, and every link is broken."""
        if self._listener is not None:
            # shutdown first: a mere close would leave a thread in accept() holding the port
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """The end: nothing is held any more either."""
        self.cut()
        self.let_go()

    def hold(self, *directions: str) -> None:
        """What is sent in these directions (both if none is named) is held."""
        for direction in directions or (TO_SERVER, TO_CLIENT):
            self._clear[direction].clear()

    def let_go(self) -> None:
        """All that was held goes on its way."""
        for clear in self._clear.values():
            clear.set()

    def answer(self, data: bytes, times: int) -> None:
        """The next so many pieces of data from clients get this for an answer, and their links end."""
        with self._lock:
            self._answer, self._answers_left = data, times

    @property
    def answers_left(self) -> int:
        """How many are still to be answered here."""
        return self._answers_left

    def lead_to(self, target: tuple[str, int]) -> None:
        """Every link is broken, and new ones lead to another server."""
        self.cut()
        self.target = target
        self.mend()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for link in (near, far):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                if self._listener is not listener:
                    near.close()
                    far.close()
                    continue
                self._links |= {near, far}
            for source, sink, way in ((near, far, TO_SERVER), (far, near, TO_CLIENT)):
                threading.Thread(target=self._relay, args=(source, sink, way), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        """One direction of a link; its end is that of the other too."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                late = self.delay + (self.late_answers if direction == TO_CLIENT else 0.0)
                if late:
                    time.sleep(late)
                self._clear[direction].wait()
                if direction == TO_SERVER and self._says_no(source):
                    break
                sink.sendall(data)
        with self._lock:
            self._links -= {source, sink}
        for link in (source, sink):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _says_no(self, client: socket.socket) -> bool:
        with self._lock:
            if not self._answers_left:
                return False
            self._answers_left -= 1
            self.answered += 1
            data = self._answer
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        # what is left of the request is read to its end: a close before that resets the link, and the answer with it
        client.settimeout(5)
        while client.recv(1 << 16):
            pass
        return True
