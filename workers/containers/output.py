"""Output: what a container prints, copied into the run's file, each of its two streams in order.

The engine keeps its own copy, so a worker that comes back reads on where the one before it has stopped, to the byte:
how far it was written stands in a small file beside the run's own. Docker is asked for what came since the time of the
last entry.

Podman is asked for all of it, again and again. Its times are whole seconds, and parts of one line have different ones.
What it lets follow has gaps: where its reader meets the end of the file amid an entry, it hands over the half, and goes
on at the end that the file has by then (4.3.1; of 60,000 quick lines three quarters were missing). A reading that does
not follow has every entry, and only the last one may be half.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
import urllib3

from flowfleet.errors import EngineRefused
from workers.containers.engine import Engine, StreamIdle, is_missing
from workers.containers.log_entries import LONGEST_ENTRY, TERMINAL, Entry, entries_of, since
from workers.shim import atomic_files
from workers.shim.log_cap import LogCap

#: a stream in which nothing comes for so long is opened anew, once it was looked whether its container still runs
IDLE_SECONDS = 30.0
#: the pause between two readings of all of it: as long as this many readings take, within these limits (seconds)
_PAUSE_READINGS, _PAUSE_LEAST, _PAUSE_MOST = 20.0, 1.0, 30.0
#: after so long it is looked whether a container that is read so still runs: its end may have been told of in a gap
_LOOK_SECONDS = 5.0
_PIECE = 256 * 1024
#: the cap is applied, and the place written down, each time that so much was copied
_STEP = 1 << 20


@dataclass(frozen=True)
class _Place:
    """How far the output was copied."""

    #: the time of the last entry, as the engine writes it, and how many bytes of that time there were; without times,
    #: how many there were in all
    time: str = ""
    bytes: int = 0
    #: the size of the run's file then
    size: int = 0

    @classmethod
    def read(cls, path: Path) -> _Place | None:
        """The place that was noted there; None where nothing was copied yet."""
        found: Mapping[str, Any] | None = atomic_files.read_json(path)
        if found is None:
            return None
        return cls(str(found.get("time") or ""), int(found.get("bytes") or 0), int(found.get("size") or 0))

    def behind(self, part: _Part) -> _Place:
        """The place behind this part, which is written."""
        before = self.bytes if part.time in ("", self.time) else 0
        return _Place(part.time or self.time, before + part.read, self.size + len(part.data))

    def write(self, path: Path) -> None:
        atomic_files.write_json(path, {"v": 1, **vars(self)}, sync=False)


class Output:
    """The copier of one container's output, used by one thread; `close` may be called by another one."""

    def __init__(self, engine: Engine, container: str, log: Path, *, limit: int, holes: bool) -> None:
        self._engine, self._id, self._log = engine, container, log
        self._path = log.with_name("log.place")
        self._place = _Place.read(self._path)
        self._limit, self._holes = limit, holes
        self._answer: requests.Response | None = None
        self._closed = threading.Event()
        #: there is nothing to wait for any more between two readings
        self._ended = threading.Event()
        self._growth = _Growth()

    def copy(self, *, follow: bool, tty: bool) -> bool:
        """Copy what is new; with `follow` until the container ends, or it is time to look whether it has.

        Returns True where the engine has said that there is no more. Raises `EngineAway`, and `OSError` of our disk.
        """
        try:
            if self._engine.facts().product != "podman":
                return self._read(follow=follow, tty=tty, times=True)
            if follow:
                return self._read_again_and_again(tty=tty)
            return self._read(follow=False, tty=tty, times=False)
        except StreamIdle:
            return False
        except EngineRefused as exc:
            if is_missing(exc):
                return True
            raise

    def _read(self, *, follow: bool, tty: bool, times: bool, grows: bool = False) -> bool:
        answer = self._open(follow=follow, times=times)
        with contextlib.closing(answer), self._file() as file:
            entries = entries_of(self._pieces(answer), tty=tty, times=times)
            return self._take(self._growth.settled(entries) if grows else entries, file)

    def _read_again_and_again(self, *, tty: bool) -> bool:
        until = time.monotonic() + _LOOK_SECONDS
        while True:
            began = time.monotonic()
            self._read(follow=False, tty=tty, times=False, grows=True)
            took = time.monotonic() - began
            pause = min(_PAUSE_MOST, max(_PAUSE_LEAST, _PAUSE_READINGS * took))
            if self._ended.wait(pause) or time.monotonic() >= until:
                return False

    def container_ended(self) -> None:
        """Let `copy` end soon where it would wait for more without being told of the end by the engine."""
        self._ended.set()

    def close(self) -> None:
        """Let `copy` end soon."""
        self._closed.set()
        self._ended.set()
        answer = self._answer
        if answer is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # it is closed already
                answer.raw.shutdown()

    def _open(self, *, follow: bool, times: bool) -> requests.Response:
        params: dict[str, Any] = {"stdout": 1, "stderr": 1, "timestamps": int(times), "follow": int(follow)}
        if self._place and self._place.time:
            params["since"] = since(self._place.time)
        idle = IDLE_SECONDS if follow else self._engine.request_seconds
        self._answer = self._engine.stream(f"/containers/{self._id}/logs", params, idle_seconds=idle)
        return self._answer

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(fd).st_size
            if self._place is None:
                self._note(_Place(size=size))
            elif size > self._place.size:
                os.ftruncate(fd, self._place.size)  # written and not noted: it is read once more
            yield fd
        finally:
            os.close(fd)

    def _take(self, entries: Iterator[Entry], file: int) -> bool:
        assert self._place is not None
        cap = LogCap(str(self._log), self._limit, holes=self._holes)
        # `place` is how far was read and written; `whole` the last such place at which no part of a line was held back
        place = whole = replace(self._place, size=os.fstat(file).st_size)
        noted = place.size
        try:
            for part in _joined(_unseen(entries, place)):
                _append(file, part.data)
                place = place.behind(part)
                if part.whole:
                    whole = place
                    if place.size - noted >= _STEP:
                        place = whole = self._capped(place, file, cap)
                        noted = place.size
                        self._note(place)
                if self._closed.is_set():
                    return True
        finally:
            self._note(self._capped(whole, file, cap) if whole is place else whole)
            cap.close()
        return True

    def _capped(self, place: _Place, file: int, cap: LogCap) -> _Place:
        cap.apply()
        return replace(place, size=os.fstat(file).st_size)

    def _note(self, place: _Place) -> None:
        if place != self._place:
            self._place = place
            place.write(self._path)

    def _pieces(self, answer: requests.Response) -> Iterator[bytes]:
        # errors of the reading alone are the engine's: those of our disk are raised where the pieces are written
        while True:
            with self._engine.errors():
                try:
                    piece = answer.raw.read1(_PIECE)  # what has come, however little
                except urllib3.exceptions.ReadTimeoutError as exc:
                    raise StreamIdle from exc
            if not piece and self._closed.is_set():
                raise StreamIdle  # it may have ended amid an entry
            if not piece:
                return
            yield piece


@dataclass(frozen=True)
class _Part:
    """What is to be written of one entry."""

    #: of which stream it is
    stream: int
    #: the engine's time of the entry; empty for what was held back and is read already
    time: str
    data: bytes
    #: how many bytes of the entry were read
    read: int = 0
    #: nothing that was read before is still held back
    whole: bool = True


class _Growth:
    """What readings of a whole log, one after the other, tell of its last entry: it may have been read amid a write."""

    def __init__(self) -> None:
        self._size: int | None = None

    def settled(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """These entries, of one reading; without the last one, unless the reading before it was as long."""
        size, last = 0, None
        for entry in entries:
            if last is not None:
                yield last
            size, last = size + len(entry.data), entry
        before, self._size = self._size, size
        if last is not None and before == size:
            yield last


def _append(file: int, data: bytes) -> None:
    """Write all of it, or on a full disk nothing."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(file, left) :]
    except OSError:
        os.ftruncate(file, os.fstat(file).st_size - (len(data) - len(left)))
        raise


def _unseen(entries: Iterator[Entry], place: _Place) -> Iterator[_Part]:
    """What stands behind this place, of entries that begin with those of its time."""
    left, stamp = place.bytes, ""
    for entry in entries:
        stamp = entry.time or stamp
        if stamp not in ("", place.time):
            left = 0
        seen = min(left, len(entry.data))
        left -= seen
        if seen < len(entry.data):
            yield _Part(entry.stream, stamp, entry.data[seen:], read=len(entry.data) - seen)


def _joined(parts: Iterator[_Part]) -> Iterator[_Part]:
    """The same, where a line that comes in parts is held back until its end: the other stream must not cut it."""
    held: dict[int, bytes] = {}
    idle = False
    try:
        for part in parts:
            data = held.pop(part.stream, b"") + part.data
            if part.stream != TERMINAL and not data.endswith(b"\n") and len(data) < LONGEST_ENTRY:
                held[part.stream], data = data, b""
            yield replace(part, data=data, whole=not held)
    except StreamIdle:
        idle = True
    for stream in tuple(held):
        yield _Part(stream, "", held.pop(stream), whole=not held)
    if idle:
        raise StreamIdle
