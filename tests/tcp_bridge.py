"""TcpBridge: a loopback relay in front of a real server, whose link can be cut and mended for one fleet alone."""

import contextlib
import socket
import threading

from tests.valkey import free_port


class TcpBridge:
    """Listens at `host`, relays to `target`; `cut` resets all links and refuses new ones, `mend` listens again."""

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

    close = cut

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
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        """One direction of a link; its end is that of the other too."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with self._lock:
            self._links -= {source, sink}
        for link in (source, sink):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
