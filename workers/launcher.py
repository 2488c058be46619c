"""Launcher: the worker's side of the fork server; hands it requests and replaces it when it dies."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers import forkserver, wire

logger = logging.getLogger(__name__)

#: what a Python may need to start at all; nothing else of our environment gets there
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


class NoAnswer(Exception):
    """The fork server or its shim is gone or hangs; whether the run was started, its folder tells."""


class Launcher:
    """One fork server; may be asked by several threads at once."""

    def __init__(
        self,
        *,
        python: str = sys.executable,
        answer_seconds: float = 20.0,
        reap_orphans: bool = True,
        descriptors: int = 0,
    ) -> None:
        self._python = python
        #: how many descriptors a run may open by default; 0 = as many as we
        self._descriptors = descriptors
        self._mode = "reap" if reap_orphans else "plain"
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The fork server's pid, None before the first launch."""
        return self._process.pid if self._process else None

    def launch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a shim and return its answer; raises `NoAnswer`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                self._hand_over(theirs)
            ours.settimeout(self._answer_seconds)
            try:
                wire.send(ours, request)
                return wire.receive(ours)
            except TimeoutError as exc:
                self.close()  # it hangs; a new one will be started for the next run
                raise NoAnswer(f"no answer from the shim within {self._answer_seconds:.0f} s") from exc
            except (OSError, EOFError) as exc:
                raise NoAnswer("the launcher process ended before it answered") from exc

    def _hand_over(self, connection: socket.socket) -> None:
        with self._lock:
            for again in (True, False):
                control = self._ready()
                try:
                    socket.send_fds(control, [b"+"], [connection.fileno()])
                    return
                except (BrokenPipeError, ConnectionResetError) as exc:
                    logger.warning("launcher replaced", extra={"pid": self.pid})
                    self._discard()
                    if not again:
                        raise NoAnswer("the launcher process does not stay alive") from exc

    def _ready(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            logger.warning("launcher replaced", extra={"pid": self.pid})
            self._discard()
        if self._control is None:
            self._control = self._start()
        return self._control

    def start(self) -> None:
        """Start the fork server now rather than with the first run."""
        with self._lock:
            self._ready()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            file = str(Path(forkserver.__file__).resolve())
            try:
                self._process = subprocess.Popen(
                    [self._python, "-I", "-S", "-E", file, str(theirs.fileno()), self._mode, str(self._descriptors)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in _NEEDED if name in os.environ},
                    start_new_session=True,
                )
            except OSError as exc:
                ours.close()
                raise NoAnswer(f"the launcher process cannot be started: {exc.strerror}") from exc
        logger.info("launcher started", extra={"pid": self._process.pid})
        return ours

    def _discard(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the fork server; the shims go on."""
        with self._lock:
            self._discard()
