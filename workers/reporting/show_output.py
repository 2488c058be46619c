"""Show output: what runs print is copied to the worker's own stdout, each line behind the run's name."""

import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from flowfleet import logs

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
#: how long a stop waits for the last lines: its watchdog must not run out before the sign-off
_LAST_LINES_SECONDS = 1.0
_CHUNK = 64 * 1024
#: a line that does not end is shown in pieces of this size, rather than kept in memory whole
_LONGEST_LINE = 1024 * 1024


@dataclass
class _Tail:
    path: Path
    name: str
    offset: int = 0
    rest: bytes = b""


class OutputFollower:
    """A thread that copies to a stream what is new in all followed files."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._encoding = self._stream.encoding or "utf-8"
        self._troubled = False
        self._lock = threading.Lock()
        self._tails: dict[Path, _Tail] = {}
        #: the files whose runs have ended
        self._ended: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="flow-output", daemon=True)
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def follow(self, path: Path, name: str, *, from_now: bool = False) -> None:
        """Copy this file from now on, line by line behind `name`: all of it, or with `from_now` only what is new."""
        offset = path.stat().st_size if from_now and path.exists() else 0
        with self._lock:
            self._tails.setdefault(path, _Tail(path, name, offset))

    def finish(self, path: Path) -> None:
        """Copy what is left of this file, whose run has ended, and follow it no longer."""
        with self._lock:
            self._ended |= self._tails.keys() & {path}

    def close(self) -> None:
        """Copy what is there and end the thread; waits for it a second at most."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_LINES_SECONDS)

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            self.copy()
        self.copy()

    def copy(self) -> None:
        """Copy what is new in each followed file."""
        with self._lock:
            tails = [(tail, tail.path in self._ended) for tail in self._tails.values()]
        for tail, last in tails:
            try:
                self._copy(tail)
                if last and tail.rest:
                    self._say(tail.name, tail.rest)
            except (OSError, ValueError) as exc:  # the reader is gone or the disk full: the runs' own files have it all
                self._failed(exc)
            if last:
                with self._lock:
                    self._tails.pop(tail.path, None)
                    self._ended.discard(tail.path)

    def _failed(self, exc: Exception) -> None:
        if not self._troubled:
            logger.warning("what runs print cannot be copied: their own files have it", extra={"error": str(exc)})
        self._troubled = True

    def _copy(self, tail: _Tail) -> None:
        try:
            fd = os.open(tail.path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            size = os.fstat(fd).st_size
            if size < tail.offset:  # the log was cut to its cap by copying: all that is there now counts as new
                tail.offset = 0
            while data := os.pread(fd, _CHUNK, tail.offset):
                tail.offset += len(data)
                lines = (tail.rest + data.replace(b"\0", b"")).split(b"\n")
                tail.rest = lines.pop()
                for line in lines:
                    self._say(tail.name, line)
                if len(tail.rest) > _LONGEST_LINE:
                    line, tail.rest = tail.rest, b""
                    self._say(tail.name, line)
        finally:
            os.close(fd)

    def _say(self, name: str, line: bytes) -> None:
        text = f"{name} | {logs.redact(line.decode('utf-8', 'replace'))}\n"
        # a terminal or file of another encoding gets a question mark for what it cannot show
        self._stream.write(text.encode(self._encoding, "replace").decode(self._encoding))
        self._stream.flush()
        self._troubled = False
