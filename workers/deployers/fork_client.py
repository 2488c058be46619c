"""Fork client: the worker's side of a fork server; hands requests to the server and replaces it when it dies."""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.shim import forkserver, framing

logger = logging.getLogger(__name__)

#: how long a launch waits while others hand their requests over; longer means that a new fork server is being loaded
_TURN_SECONDS = 1.0
#: variables that a Python may need to start at all; nothing else of our environment reaches the fork server
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


class NoAnswer(Exception):
    """The fork server or its shim is gone or hangs; the run's folder tells whether the run was started."""


class NotFit(Exception):
    """A program has said that it cannot be a fork server on this host, and why."""


@dataclass(frozen=True, kw_only=True)
class ForkServerProgram:
    """The program that is started as a fork server; descriptor, mode and limit are added to its arguments."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    name: str = "launcher"
    #: the program sends a greeting within this time, when it is ready; None = it is ready at once and sends none
    greeting_seconds: float | None = None


def own_program(python: str = sys.executable) -> ForkServerProgram:
    """The fork server of this package, in our own Python with nothing of the user's environment."""
    file = str(Path(forkserver.__file__).resolve())
    env = {name: os.environ[name] for name in _NEEDED if name in os.environ}
    return ForkServerProgram(argv=(python, "-I", "-S", "-E", file), env=env)


@dataclass(kw_only=True)
class ForkClient:
    """The client of one fork server; several threads may use it at once."""

    program: ForkServerProgram = field(default_factory=own_program)
    #: a launch starts the fork server if there is none; else a launch never waits for a start
    on_demand: bool = True
    answer_seconds: float = 20.0
    reap_orphans: bool = True
    #: how many descriptors a run may open by default; 0 = as many as the worker
    descriptors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _aborted: bool = field(default=False, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _control: socket.socket | None = field(default=None, init=False)

    @property
    def pid(self) -> int | None:
        """The fork server's pid; None while there is none."""
        return self._process.pid if self._process else None

    def launch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a shim and return its answer; raises `NoAnswer`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                asked = self._hand_over(theirs)
            ours.settimeout(self.answer_seconds)
            try:
                framing.send(ours, request)
                return framing.receive(ours)
            except TimeoutError as exc:
                self._end(asked)  # the fork server hangs; a new one will be started for the next run
                raise NoAnswer(f"no answer from the shim within {self.answer_seconds:.0f} s") from exc
            except (OSError, EOFError) as exc:
                raise NoAnswer("the launcher process ended before it answered") from exc

    def _hand_over(self, connection: socket.socket) -> subprocess.Popen[bytes] | None:
        if not self._lock.acquire(timeout=-1 if self.on_demand else _TURN_SECONDS):
            raise NoAnswer(f"the {self.program.name} process is being loaded")
        try:
            for again in (True, False):
                control = self._ready() if self.on_demand else self._running()
                try:
                    socket.send_fds(control, [b"+"], [connection.fileno()])
                    return self._process
                except (BrokenPipeError, ConnectionResetError) as exc:
                    logger.warning("launcher replaced", extra={"pid": self.pid, "program": self.program.name})
                    self._discard()
                    if not again:
                        raise NoAnswer("the launcher process does not stay alive") from exc
        finally:
            self._lock.release()
        raise AssertionError

    def _running(self) -> socket.socket:
        if self._control is None or self._gone():
            raise NoAnswer(f"the {self.program.name} process is gone")
        return self._control

    def _ready(self) -> socket.socket:
        if self._control is not None and self._gone():
            logger.warning("launcher replaced", extra={"pid": self.pid, "program": self.program.name})
            self._discard()
        if self._control is None:
            self._control = self._start()
        return self._control

    def _gone(self) -> bool:
        assert self._control is not None
        if self._process is None or self._process.poll() is not None:
            return True
        try:  # a fork server that is ending has closed its side; after its greeting it never sends anything
            return not self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def start(self) -> None:
        """Start the fork server now rather than with the first run; raises `NotFit` and `NoAnswer`."""
        with self._lock:
            self._ready()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        *self.program.argv,
                        str(theirs.fileno()),
                        "reap" if self.reap_orphans else "plain",
                        str(self.descriptors),
                    ],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=self.program.env,
                    start_new_session=True,
                )
            except OSError as exc:
                ours.close()
                raise NoAnswer(f"the {self.program.name} process cannot be started: {exc.strerror}") from exc
        if self._aborted:
            self._process.kill()
        if self.program.greeting_seconds is not None:
            self._await_greeting(ours, self.program.greeting_seconds)
        logger.info("launcher started", extra={"pid": self._process.pid, "program": self.program.name})
        return ours

    def _await_greeting(self, control: socket.socket, seconds: float) -> None:
        control.settimeout(seconds)
        try:
            greeting = framing.receive(control)
        except (OSError, EOFError, ValueError) as exc:
            control.close()
            self._discard(kill=True)
            trouble = f"did not get ready within {seconds:.0f} s" if isinstance(exc, TimeoutError) else "ended at once"
            raise NoAnswer(f"the {self.program.name} process {trouble}") from exc
        control.settimeout(None)
        if not greeting.get("fit"):
            control.close()
            self._discard()
            why = str(greeting.get("why") or "it does not say why")
            raise NoAnswer(why) if greeting.get("again") else NotFit(why)

    def _discard(self, *, kill: bool = False) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            if kill:
                process.kill()
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def abort(self) -> None:
        """Kill the fork server without waiting, also one that is still being started; from now on there is none."""
        self._aborted = True  # first: whoever starts the process looks here once it is there
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the fork server; the shims go on."""
        with self._lock:
            self._discard()

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        with self._lock:
            if self._process is process:  # else another launch has replaced it meanwhile
                self._discard()
